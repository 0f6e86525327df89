"""Training steps whose compiled programs have a budget: small models that use the kernels, axes and options of large runs."""

import dataclasses
from typing import Any

from benchmarks.plan import find_run
from train.config.find_objective import with_objective
from train.config.lora_options import Lora
from train.config.run_config import Mesh, Run

TARGETS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "h100": "h100:4"}
"""Targets of four devices, by chip."""
LENGTH = 512
"""Tokens of a row: `auto` then chooses the same kernels as for longer ones."""
WIDTHS = {"vocab": 512, "context": LENGTH, "width": 256, "heads": 4, "kv_heads": 2, "head": 64, "ffn": 512}
"""Sizes of every model that has a field of the name. Those of experts are multiples of a tile of their products."""


def step_program(name: str) -> Run:
    """Return the run of a program.

    Raises:
        KeyError: there is no such program.
    """
    return PROGRAMS[name]()


def _step(size: str, *, mesh: Mesh, layers: int = 2, remat: str = "none", init: str = "", **changes: Any) -> Run:
    """Return a run of 16 rows for each of the four devices.

    Args:
        layers: number of layers, which a loop runs over.
        changes: other fields of the run, and `data` its fields that change.
    """
    run = find_run.run_of_size(size)
    fields = {field.name for field in dataclasses.fields(run.model)}
    sizes = {name: number for name, number in WIDTHS.items() if name in fields}
    sizes |= {name: layers for name in ("layers", "decoder_layers") if name in fields}
    compute = dataclasses.replace(run.model.compute, remat=remat)  # pyright: ignore[reportArgumentType]
    model = dataclasses.replace(run.model, **sizes, compute=compute)
    data = dataclasses.replace(run.data, **{"length": LENGTH, "batch": 64, "ramp": (), **changes.pop("data", {})})
    tokenizer = dataclasses.replace(run.tokenizer, vocab=model.vocab)
    # The programs of Muon, the optimizer of some nano recipes, are larger and compile longer.
    optim = dataclasses.replace(run.optim, name="adamw")
    changes |= {"init": init, "model": model, "optim": optim, "data": data, "tokenizer": tokenizer, "mesh": mesh}
    return dataclasses.replace(run, **changes)


def _preferences() -> Run:
    run = with_objective(_step("gpt2", mesh=Mesh(fsdp=2)), "dpo")
    return dataclasses.replace(run, data=dataclasses.replace(run.data, length=LENGTH, batch=64, ramp=()))


PROGRAMS = {
    "decoder": lambda: _step("gpt-nano", mesh=Mesh()),
    "decoder-sharded": lambda: _step("llama-nano", mesh=Mesh(fsdp=2, tensor=2)),
    "experts": lambda: _step("gpt-oss-nano", mesh=Mesh(fsdp=2, expert=2)),
    "bert": lambda: _step("bert-nano", mesh=Mesh()),
    "modernbert-packed": lambda: _step("modernbert-nano", mesh=Mesh(fsdp=4), layers=3, data={"pack": True}),
    "xlnet": lambda: _step("xlnet-nano", mesh=Mesh(fsdp=2)),
    "t5": lambda: _step("t5-nano", mesh=Mesh(fsdp=2)),
    "transformer": lambda: _step("transformer-nano", mesh=Mesh(tensor=2)),
    "adapters": lambda: _step("llama-nano", mesh=Mesh(fsdp=4), init="weights", lora=Lora(rank=8)),
    "dpo": _preferences,
    "accumulation": lambda: _step("gpt-nano", mesh=Mesh(fsdp=4), accumulate=2),
    "remat": lambda: _step("gpt-nano", mesh=Mesh(fsdp=4), remat="full"),
}
"""Program -> its run."""
