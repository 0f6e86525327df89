"""The models that a run starts from: the row of a comparison that each belongs to, and the costs of training them.

A run records its parents, the models of `init` and of `distillation.teacher`, in the metadata of its checkpoints when it begins,
so that the record remains if a parent is moved, trained again or deleted. Two parents belong to the same row if their
configurations differ only in the seed and their own parents belong to the same rows.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.checkpoints.checkpoints import Checkpoints
from train.config.run_config import Run
from train.run.costs import NAMES, Costs, read_known_costs
from train.run.run_dir import RunDir, is_run, no_checkpoint, read_config
from train.run.run_identity import flat_options, may_change
from train.weights.load import open_checkpoints
from train.weights.resolve_model_name import resolve_model_name
from zoo.hf import hub
from zoo.sha256_and_fsync import sha256

Parent = dict[str, Any]
"""The record of a parent, as JSON: `path`, as the option names it; `from_run`, the same relative to the run's folder; `row`, a
SHA-256 digest that is equal for two parents if and only if they belong to the same row; `seeds` of its ancestors and of itself,
the oldest first; and `ancestors`, which are its ancestors and itself, each with `row`, `seeds`, `path` and `costs`. Published
weights have no seeds and no ancestors, because nothing is known about their training. If they, or those that the first of its
ancestors began with, came from the hub, `hub` is their ORG/NAME@REVISION."""

PARENT_KEYS = ("init", "distillation.teacher")
"""Keys of `train.run.run_identity.flat_options` that name a parent."""


def read_parents(run: Run) -> dict[str, Parent]:
    """Return the record of each parent of a run, by its key of `PARENT_KEYS`.

    Raises:
        BadInput: a parent does not exist, or is a run without a checkpoint.
    """
    names, folder = dict(zip(PARENT_KEYS, (run.init, run.teacher), strict=True)), RunDir.of(run).path
    return {
        key: _read_parent(name) | {"from_run": os.path.relpath(resolve_model_name(name), folder)}
        for key, name in names.items()
        if name
    }


def row_options(run: Run, parents: Mapping[str, Parent], tokenizer: str) -> dict[str, Any]:
    """Return the options that determine the row of a comparison that a run belongs to: all that identify it, except its seed.

    The path of a parent is replaced by its row, and the path of a loaded tokenizer by its fingerprint, `tokenizer`.
    """
    options = {key: value for key, value in flat_options(run).items() if key != "seed" and not may_change(key)}
    if options["tokenizer.path"]:
        options["tokenizer.path"] = tokenizer
    return options | {key: parent["row"] for key, parent in parents.items()}


def seeds_of(run: Run, parents: Mapping[str, Parent]) -> tuple[int, ...]:
    """Return the seeds of a run's ancestors, the oldest first, and then its own."""
    return (*(seed for parent in parents.values() for seed in parent["seeds"]), run.seed)


def total_costs(own: Costs, parents: Iterable[Parent]) -> Costs:
    """Return the costs of a run and of all of its ancestors, each counted once; None where one of them is not recorded.

    Costs are summed, except the memory: its total is the maximum.
    """
    ancestors = {
        json.dumps([ancestor["row"], ancestor["seeds"]]): ancestor["costs"]
        for parent in parents
        for ancestor in parent["ancestors"]
    }
    return {name: _total(name, [own.get(name), *(costs.get(name) for costs in ancestors.values())]) for name in own}


def _total(name: str, values: Sequence[float | int | None]) -> float | int | None:
    """Return the sum of the values of a cost, or their maximum for memory; None if a value is not recorded."""
    recorded = [value for value in values if value is not None]
    total = max if name == "peak_bytes" else sum
    return total(recorded) if len(recorded) == len(values) else None


def _read_parent(name: str) -> Parent:
    folder = resolve_model_name(name)
    if not is_run(folder):
        origin = hub.read_origin(folder, name)
        of_hub: Parent = {"hub": origin} if origin else {}
        return {"path": name, **of_hub, "row": digest_of_weights(folder), "seeds": [], "ancestors": []}
    run, files = read_config(folder), RunDir(folder)
    source = open_checkpoints(folder, run)
    if (step := source.latest()) is None:
        raise no_checkpoint(folder)
    meta = source.meta(step)
    # A checkpoint from before parents were recorded has none, so the row contains the paths of its parents instead.
    own_parents = meta.get("parents", {})
    training = Checkpoints(files.checkpoints, 1, notify=lambda _: None)
    taken = training.latest()
    # The counts of the newest training checkpoint, because the best checkpoint has none: the run continued after it.
    counted = {} if taken is None else training.meta(taken)
    taken = step if taken is None else taken
    options = row_options(run, own_parents, meta.get("tokenizer", ""))
    if taken < run.steps and not run.selection.patience:
        options["steps"] = taken
    row = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()
    seeds = list(seeds_of(run, own_parents))
    costs = read_known_costs(files, taken, counted, run.data.sizes)
    if not own_parents and (run.init or run.teacher):
        costs = dict.fromkeys(NAMES)
    itself = {"row": row, "seeds": seeds, "path": name, "costs": costs}
    weights = own_parents.get("init", {})
    return {
        "path": name,
        **({"hub": weights["hub"]} if "hub" in weights else {}),
        "row": row,
        "seeds": seeds,
        "ancestors": [*(ancestor for parent in own_parents.values() for ancestor in parent["ancestors"]), itself],
    }


def digest_of_weights(folder: Path) -> str:
    """Return the digest of the configuration and the weights in a folder, independent of its path."""
    files = sorted([folder / "config.json", *folder.glob("*.safetensors")])
    digests = [f"{file.name} {sha256(file)}" for file in files if file.exists()]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
