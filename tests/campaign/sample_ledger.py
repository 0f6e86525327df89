"""The ledger of sample ids over kills and changed processes, with the rows and the files of real runs and without a model."""

import random

import numpy as np

from tests.campaign.row_types import Outcome, Task
from train.objectives import causal
from train.rows.batches import Batches
from train.rows.lm_rows import Tokens, stream_windows
from train.rows.mixture import Component, Mixture
from train.run.metrics_file import Metrics, read_rows

BATCH, LENGTH, ROWS, SEED, EVERY = 64, 8, 30_011, 7, 20
TOPOLOGIES = (1, 2, 4, 8, 32)
"""Numbers of processes; each has its part of every batch."""
KILLS = 50


def batches_of(processes: int) -> list[Batches]:
    """Return the batches of each process."""
    size = ROWS * LENGTH
    tokens = Tokens(np.arange(size, dtype=np.uint32), np.array([0, size]), np.array([size]), 0, "")
    rows = Mixture((Component("all", 1.0, (), stream_windows(tokens, LENGTH)),))
    parts = np.split(np.arange(BATCH), processes)
    return [Batches(rows, causal.build, SEED, BATCH, part) for part in parts]


def rows_of_step(parts: list[Batches], step: int, chance: random.Random) -> np.ndarray:
    """Return the rows that all processes use at a step; at one of a hundred, compare them with the batches that they read."""
    numbers = [part.use(step * BATCH + int(offset)).row for part in parts for offset in part._local[BATCH]]
    if chance.random() < 0.01:
        index = np.concatenate([part.batch(step).index for part in parts])
        np.testing.assert_array_equal(index, np.arange(step * BATCH, (step + 1) * BATCH))
        read = np.concatenate([part.batch(step).targets[:, 0] for part in parts])
        np.testing.assert_array_equal(read, np.array(numbers) * LENGTH)
    return np.array(numbers)


def ledger(task: Task, outcome: Outcome) -> None:
    """Write the ledger of as many samples as the goal says, with a kill after about each fiftieth, and count every sample."""
    chance, path = task.random(), task.folder / "ledger.jsonl"
    length, first, end, kills = max(2 * EVERY, task.goal // KILLS // BATCH), 0, 0, 0
    while task.more(outcome):
        parts = batches_of(chance.choice(TOPOLOGIES))
        file, end = Metrics(path, resume_at=first if end else None), first + chance.randint(length // 2, length * 3 // 2)
        for step in range(first, end):
            file.write({"step": step + 1, "rows": rows_of_step(parts, step, chance)})
        file.close()
        outcome.parts[f"starts with {len(parts)} processes"] += 1
        # A kill leaves a part of a line, and the run continues from its newest checkpoint.
        with path.open("ab") as rest:
            rest.write(b'{"step":1,"rows":['[: chance.randint(0, 18)])
        first = end // EVERY * EVERY
        kills += 1
        outcome.count = end * BATCH
    rows = read_rows(path)
    with outcome.check("steps"):
        assert [row["step"] for row in rows] == list(range(1, end + 1))
    samples = np.concatenate([row["rows"] for row in rows])
    with outcome.check("samples"):
        assert len(samples) == end * BATCH
        # Within an epoch no row is repeated, so in all but the last one, which may be a part, none is lost.
        for epoch in np.split(samples, range(ROWS, len(samples), ROWS)):
            assert len(np.unique(epoch)) == len(epoch), "a row is repeated within an epoch"
            assert epoch.min() >= 0 and epoch.max() < ROWS
    with outcome.check("order"):
        [alone] = batches_of(1)
        for step in chance.sample(range(end), min(end, 500)):
            np.testing.assert_array_equal(samples[step * BATCH : (step + 1) * BATCH], alone.rows_of(step))
    outcome.notes.append(f"{kills} kills, {len(samples) / ROWS:.1f} epochs of {ROWS:,} rows")
