"""Batches of one source: the training rows as a mixture whose components are the paths that they were read from."""

import dataclasses
from typing import Any

import numpy as np

from train.config.run_config import Run
from train.rows.mixture import Component, Mixture
from train.rows.row_source import digest_of
from zoo.errors import BadInput


def by_source(rows: Mixture, run: Run) -> Mixture:
    """Return the rows of one component, divided by the path of their examples, in batches of one path each.

    The batches of a path are as frequent as its rows, so that each row is used as often as any other.

    Raises:
        BadInput: a path with fewer training rows than a batch.
    """
    (component,) = rows.components
    everything: Any = component.rows
    components = []
    path_numbers = np.array([everything.examples[row.example].path_number for row in everything.rows])
    for number, path in enumerate(run.data.paths):
        numbers = np.flatnonzero(path_numbers == number)
        if len(numbers) < run.data.batch:
            count = f"{len(numbers):,} training rows, and a batch has {run.data.batch:,} of one path"
            raise BadInput(f"--data.paths {path}: {count}; add some, choose a smaller --data.batch, or join files in one folder")
        digest = digest_of(everything.fingerprint, (numbers.tobytes(),))
        part = dataclasses.replace(everything.select_rows(numbers), fingerprint=digest)
        components.append(Component(path, float(len(numbers)), component.documents, part))
    return Mixture(tuple(components), block=run.data.batch)
