"""Other implementations of the same step: their losses before and after an update must agree with ours before they are timed."""

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.core import peer_process
from benchmarks.core.peer_process import Kind
from zoo.errors import BadInput

TORCH = ("torch", "transformers")
PEERS: dict[str, Kind] = {
    "transformers": Kind("benchmarks.step.peer_torch", TORCH),
    "transformers, eager attention": Kind("benchmarks.step.peer_torch", TORCH, {"attention": "eager"}, reduced=False),
    "transformers, torch.compile": Kind("benchmarks.step.peer_torch", TORCH, {"compile": True}),
    "KerasHub on JAX": Kind("benchmarks.step.peer_keras", ("keras", "keras_hub"), reduced=False),
}
"""transformers: torch's eager mode, with the attention that `transformers` chooses (`scaled_dot_product_attention` if a model has
it). `build` of their modules returns a function that takes a step and returns its loss."""


def requested_peers(settings: Any) -> list[tuple[str, str]]:
    """Return the requested peers as (peer, precision)."""
    pairs = [(name, precision) for precision in settings.precision for name in PEERS] if settings.peers else []
    return [(name, precision) for name, precision in pairs if precision == "float32" or PEERS[name].reduced]


def export_case(folder: Path, case: Any, params: Any, optim: Any) -> None:
    """Write the weights, batch and numbers for the peers of a case.

    Raises:
        BadInput: `transformers` has no such model.
    """
    architecture = case.model.names.architecture
    if not architecture:
        raise BadInput(f"{case.size}: transformers has no model of this kind")
    batch = case.arrays()
    arrays = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    arrays["source"] = None if batch.source is None else batch.source.tokens
    numbers = {"family": case.model.family, "objective": case.objective, "mode": case.mode, "architecture": architecture}
    numbers["optim"] = peer_process.optimizer_numbers(optim)
    present = {name: array for name, array in arrays.items() if array is not None}
    peer_process.export_for_peers(folder, case.config, params, numbers, present)
