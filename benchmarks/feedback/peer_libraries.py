"""Other implementations of the same iteration: their tokens and losses must agree with ours before they are timed."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.core import peer_process
from benchmarks.core.peer_process import Kind
from benchmarks.core.worker_process import Answer

PEERS = {"TRL": Kind("benchmarks.feedback.peer_trl", ("torch", "transformers", "trl"))}
"""`build` of their modules returns an object with the methods of `benchmarks.feedback.peer_trl.TrlIteration`."""


def serve(kind_fields: Mapping[str, Any], folder: str) -> tuple[Answer, Callable[[], Answer]]:
    """Build the peer, in its own process.

    Returns:
        "greedy" tokens after the prompts, "losses" of two steps on our responses, and "versions"; and a function that computes an
        iteration, whose answer has the "seconds" of its parts.
    """
    kind = Kind(**kind_fields)
    build, arguments = peer_process.load(kind, folder)
    iteration = build(*arguments)
    # The tokens come first: they are those of the first weights.
    answer = {"greedy": iteration.greedy(), "losses": iteration.losses(), "versions": peer_process.versions(kind)}
    return answer, lambda: {"seconds": iteration.run(), "rss": peer_process.peak_resident()}
