"""Outcomes of single items: RUN/outcomes.npz, by which two runs can be compared item by item.

The file has four arrays, each of N items, for every set of items NAME: a task of RUN/evaluations.json, by its name there, or
`HELD_OUT`, the held-out examples of a fine-tuning. They are NAME/id, NAME/right, NAME/nats and NAME/count; see `Outcomes`.
"""

import collections
import dataclasses
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from train.run import outcome_sets
from train.run.run_dir import RunDir
from zoo.errors import BadInput

HELD_OUT = "held_out"
"""Name of the held-out examples among the sets of items."""


@dataclasses.dataclass(frozen=True, eq=False)
class Outcomes:
    """The outcome of each of N items, in the order of the files."""

    id: tuple[str, ...]
    """Name of each item, the same for every model: file name without folder, and line."""
    right: Float64[np.ndarray, " N"]
    """Number of right predictions of the item (1/2 for a tie); NaN where no prediction can be right, as in regression."""
    nats: Float64[np.ndarray, " N"]
    """-log p of the truth, summed over the item's predictions (tags and answers: the mean loss; numbers: the squared error); NaN
    where it is not computed."""
    count: Int64[np.ndarray, " N"]
    """Number of predictions of the item."""

    @classmethod
    def of(cls, origins: Iterable[str], right: np.ndarray, nats: np.ndarray, count: np.ndarray | None = None) -> "Outcomes":
        """Return outcomes of items that are named by the places they were read from.

        Args:
            origins: place of each item, as file:line.
            count: number of predictions of each item; None = one each.
        """
        ids, seen = [], collections.Counter[str]()
        for origin in origins:
            name = Path(origin).name
            seen[name] += 1
            ids.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
        counts = np.ones(len(ids)) if count is None else count
        return cls(tuple(ids), right.astype(np.float64), nats.astype(np.float64), counts.astype(np.int64))


def write_outcomes(folder: RunDir, name: str, outcomes: Outcomes) -> None:
    """Write a set of items to outcomes.npz, in place of an earlier set of this name; the other sets stay.

    Raises:
        BadInput: the file is damaged, or cannot be written.
    """
    arrays = _read(folder.outcomes) if folder.outcomes.exists() else {}
    values = dataclasses.asdict(outcomes) | {"id": np.array(outcomes.id, np.str_)}
    arrays |= {f"{name}/{field}": value for field, value in values.items()}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # pyright: ignore[reportArgumentType]
    outcome_sets.write_outcomes_file(folder.outcomes, content.getvalue())


def read_outcomes(folder: RunDir, name: str) -> Outcomes:
    """Return a set of items of a run.

    Raises:
        BadInput: the run has no such set, or the file is damaged.
    """
    arrays = _read(folder.outcomes) if folder.outcomes.exists() else {}
    if f"{name}/id" not in arrays:
        names = ", ".join(sorted({key.rpartition("/")[0] for key in arrays})) or "none"
        raise BadInput(f"{folder.outcomes}: no outcomes of {name} (it has {names}); score the run again")
    return Outcomes(tuple(arrays[f"{name}/id"].tolist()), *(arrays[f"{name}/{field}"] for field in ("right", "nats", "count")))


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here: numpy leaves a damaged file open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return dict(file)
    except outcome_sets.DAMAGE as error:
        raise BadInput(f"{path} is not a file of arrays ({error}); remove it, and score the run again") from None
