"""Outcomes of single items: RUN/outcomes.npz, by which two runs can be compared item by item.

The file has four arrays, each of N items, for every set of items NAME: a task of RUN/evaluations.json, by its name there, or
`HELD_OUT`, the held-out examples or rows of a text. They are NAME/id, NAME/right, NAME/nats and NAME/count, and for translations
also NAME/bleu; see `Outcomes`.
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
from zoo.file_access import read_regular

LONGEST_ITEM = 1 << 16
"""Bytes of the longest item of an array; a name has four for each character."""
HELD_OUT = "held_out"
"""Name of the held-out examples, or rows of a text, among the sets of items."""


@dataclasses.dataclass(frozen=True, eq=False)
class Outcomes:
    """The outcome of each of N items, in the order of the files."""

    id: tuple[str, ...]
    """Name of each item, the same for every model: file name without folder, and line; of a row of a text, the document that it
    begins in, which is numbered where it has several."""
    right: Float64[np.ndarray, " N"]
    """Number of right predictions of the item (1/2 for a tie); NaN where it is not computed, as in regression."""
    nats: Float64[np.ndarray, " N"]
    """-log p of the truth, summed over the item's predictions (tags and answers: the mean loss; numbers: the squared error); NaN
    where it is not computed."""
    count: Int64[np.ndarray, " N"]
    """Number of predictions of the item."""
    bleu: Float64[np.ndarray, " N"] | None = None
    """Contribution of the item to the BLEU of all, which is their mean; None where BLEU is not computed."""

    @classmethod
    def of(
        cls,
        origins: Iterable[str],
        right: np.ndarray,
        nats: np.ndarray,
        count: np.ndarray | None = None,
        bleu: np.ndarray | None = None,
    ) -> "Outcomes":
        """Return outcomes of items that are named by the places they were read from.

        Args:
            origins: place of each item, as file:line.
            count: number of predictions of each item; None = one each.
            bleu: contribution of each item to BLEU; None = not computed.
        """
        ids, seen = [], collections.Counter[str]()
        for origin in origins:
            name = Path(origin).name
            seen[name] += 1
            ids.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
        counts = np.ones(len(ids)) if count is None else count
        return cls(tuple(ids), right.astype(np.float64), nats.astype(np.float64), counts.astype(np.int64), bleu)


def write_outcomes(folder: RunDir, name: str, outcomes: Outcomes) -> None:
    """Write a set of items to outcomes.npz, in place of an earlier set of this name; the other sets stay.

    Raises:
        BadInput: the file is damaged, or cannot be written.
    """
    arrays = read_arrays(folder.outcomes) if folder.outcomes.exists() else {}
    values = dataclasses.asdict(outcomes) | {"id": np.array(outcomes.id, np.str_)}
    arrays = {key: value for key, value in arrays.items() if key != f"{name}/bleu"}
    arrays |= {f"{name}/{field}": value for field, value in values.items() if value is not None}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # pyright: ignore[reportArgumentType]
    outcome_sets.write_outcomes_file(folder.outcomes, content.getvalue())


def outcome_names(folder: RunDir) -> set[str]:
    """Return the names of the sets of items of a run.

    Raises:
        BadInput: the file is damaged.
    """
    return {key.rpartition("/")[0] for key in read_arrays(folder.outcomes)} if folder.outcomes.exists() else set()


def read_outcomes(folder: RunDir, name: str) -> Outcomes:
    """Return a set of items of a run.

    Raises:
        BadInput: the run has no such set, or the file is damaged.
    """
    arrays = read_arrays(folder.outcomes) if folder.outcomes.exists() else {}
    if f"{name}/id" not in arrays:
        names = ", ".join(sorted({key.rpartition("/")[0] for key in arrays})) or "none"
        raise BadInput(f"{folder.outcomes}: no outcomes of {name} (it has {names}); score the run again")
    fields = {field: kind for field, kind in DTYPES.items() if field != "bleu" or f"{name}/bleu" in arrays}
    values = [arrays.get(f"{name}/{field}", np.zeros(0)) for field in fields]
    wrong = [field for field, array in zip(fields, values, strict=True) if array.dtype.kind != fields[field]]
    if wrong or len({len(array) for array in values}) > 1:
        what = f"no {name}/{wrong[0]}" if wrong else f"arrays of {name} with different lengths"
        raise BadInput(f"{folder.outcomes}: {what}; score the run again")
    return Outcomes(tuple(values[0].tolist()), *values[1:])


DTYPES = {"id": "U", "right": "f", "nats": "f", "count": "i", "bleu": "f"}
"""Field of a set -> kind of its dtype, as numpy calls it; the last may be absent."""


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the one-dimensional arrays of texts and numbers in a .npz file.

    Raises:
        BadInput: the file is damaged, or has other arrays.
    """
    try:
        members = outcome_sets.unpack_outcomes(read_regular(path, outcome_sets.LARGEST_FILE))
        return {name: _parse_array(content) for name, content in members.items()}
    except outcome_sets.DAMAGE as error:
        why = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())[:200]
        raise BadInput(f"{path} is not a file of arrays ({why}); remove it, and score the run again") from None


def _parse_array(content: bytes) -> np.ndarray:
    """Return the one-dimensional array of a .npy file. Memory is used only for what the file has, whatever its header declares.

    Raises:
        ValueError: it is another array or damaged.
    """
    stream = io.BytesIO(content)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if (version := np.lib.format.read_magic(stream)) not in readers:
        raise ValueError(f"version {version} of .npy")
    shape, _, dtype = readers[version](stream)
    if dtype.kind not in DTYPES.values() or not 0 < dtype.itemsize <= LONGEST_ITEM or len(shape) != 1:
        raise ValueError(f"an array of {str(dtype)[:40]} with {len(shape)} axes; expected one of texts or numbers with 1")
    if shape[0] * dtype.itemsize != len(content) - stream.tell():
        raise ValueError(f"{len(content) - stream.tell():,} bytes for {shape[0]:,} items of {dtype.itemsize:,} bytes")
    return np.frombuffer(content, dtype, offset=stream.tell()).copy()
