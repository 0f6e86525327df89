"""The outcomes of single items of all runs of an experiment, in one file beside experiment.json: outcomes.npz.

The file is enough to judge again what is a mean over items, without the runs. It has these arrays for every set of cells that
were scored on the same N items: SET/id [N], the names of the items; SET/cells [C], the names of the C cells, as ROW-STAGE-SEED;
and for each other field of `train.run.item_outcomes.Outcomes` that the cells have, SET/FIELD [C * N], the outcomes of one cell
after another, with 32 bits. SET is the name of the stage, with a number if its cells have several sets of items.
"""

import dataclasses
import io
import zipfile
from pathlib import Path

import numpy as np

from eval.experiments import node_status
from eval.experiments.grid import TOKENIZER, Grid, Node
from train.run import outcome_sets
from train.run.item_outcomes import HELD_OUT, Outcomes, read_arrays, read_outcomes
from train.run.run_dir import RunDir
from zoo.errors import BadInput
from zoo.sha256_and_fsync import sha256

FILE = "outcomes.npz"
FIELDS = tuple(field.name for field in dataclasses.fields(Outcomes) if field.name != "id")
NEEDED = ("right", "nats", "count")
NARROW = {np.dtype(np.float64): np.float32, np.dtype(np.int64): np.int32}
"""Dtype of an outcome -> its dtype in the file."""


def write_collected_outcomes(grid: Grid, folder: Path) -> str | None:
    """Write the outcomes of all cells that have any, and return the SHA-256 of the file; None if there are none.

    The content depends on the outcomes alone.

    Raises:
        BadInput: the file cannot be written.
    """
    sets: dict[tuple[str, tuple[str, ...], tuple[str, ...]], dict[str, Outcomes]] = {}
    for node in grid.nodes:
        if node.stage != TOKENIZER and (outcomes := _outcomes(node, folder)) is not None:
            fields = tuple(field for field in FIELDS if getattr(outcomes, field) is not None)
            sets.setdefault((node.stage, outcomes.id, fields), {})[node.name] = outcomes
    if not sets:
        return None
    content, used = io.BytesIO(), list[str]()
    # LZMA takes 0.7 of the bytes of DEFLATE: 7 KB for a cell of 1,821 items.
    with zipfile.ZipFile(content, "w", zipfile.ZIP_LZMA) as file:
        for (stage, ids, fields), cells in sets.items():
            used.append(stage)
            name = stage if used.count(stage) == 1 else f"{stage} {used.count(stage)}"
            arrays = {"id": np.array(ids, np.str_), "cells": np.array(list(cells), np.str_)}
            for field in fields:
                array = np.concatenate([getattr(outcomes, field) for outcomes in cells.values()])
                arrays[field] = array.astype(NARROW[array.dtype])
            for field, array in arrays.items():
                member = io.BytesIO()
                np.save(member, array)
                file.writestr(zipfile.ZipInfo(f"{name}/{field}.npy"), member.getvalue(), zipfile.ZIP_LZMA)
    outcome_sets.write_outcomes_file(folder / FILE, content.getvalue())
    return sha256(folder / FILE)


def read_collected_outcomes(path: Path) -> dict[str, Outcomes]:
    """Return name of a cell -> its outcomes.

    Raises:
        BadInput: the file is damaged, or its arrays have other lengths than they should.
    """
    arrays, cells = read_arrays(path), dict[str, Outcomes]()
    for name in dict.fromkeys(key.rpartition("/")[0] for key in arrays):
        names, ids = (arrays.get(f"{name}/{field}", np.zeros(0)) for field in ("cells", "id"))
        values = {field: arrays[f"{name}/{field}"] for field in FIELDS if f"{name}/{field}" in arrays}
        if not len(names) or not len(ids) or any(len(array) != len(names) * len(ids) for array in values.values()):
            raise BadInput(f"{path}: the arrays of {name} have different lengths; restore the file")
        if missing := [field for field in NEEDED if field not in values]:
            raise BadInput(f"{path}: there is no {name}/{missing[0]}; restore the file")
        for place, cell in enumerate(names.tolist()):
            of_cell = slice(place * len(ids), (place + 1) * len(ids))
            wide = {field: array[of_cell].astype(np.int64 if field == "count" else np.float64) for field, array in values.items()}
            cells[cell] = Outcomes(tuple(ids.tolist()), **wide)
    return cells


def _outcomes(node: Node, folder: Path) -> Outcomes | None:
    """Return the outcomes of a cell; None if it has none, or they are damaged, which the command that reads them reports."""
    try:
        return read_outcomes(RunDir(folder / node.run), node_status.evaluation_name(node) if node.task else HELD_OUT)
    except BadInput:
        return None
