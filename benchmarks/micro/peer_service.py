"""The process of `transformers` in `benchmarks.micro.generation`. Importing this module imports neither JAX nor torch."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.core import peer_process
from benchmarks.core.peer_process import Kind
from benchmarks.core.worker_process import Answer

PEER = Kind("benchmarks.micro.peer_generation", ("torch", "transformers"))


def serve(kind_fields: Mapping[str, Any], folder: str) -> tuple[Answer, Callable[[], Answer]]:
    """Build the peer, in its own process; the answer has the "tokens" after the prompts."""
    build, arguments = peer_process.load(Kind(**kind_fields), folder)
    generate = build(*arguments)

    def timed() -> Answer:
        generate()
        return {"rss": peer_process.peak_resident()}

    return {"tokens": generate()}, timed
