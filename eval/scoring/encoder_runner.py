"""Texts through an encoder: read, put between its marks, gathered into rows of few shapes, spread over the mesh."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int32, Integer

from eval import files
from eval.generation.settings import Texts
from eval.scoring.likelihood import LOGITS, row_length
from train.config import run_config
from train.engine import device_mesh
from train.engine.step import DTYPES
from train.rows.example_rows import is_typed
from train.tokenizers.special_tokens import Marks
from train.weights.load import Loaded
from zoo.batch import Batch
from zoo.errors import BadInput, require
from zoo.models import Model

STDIN = Path("/dev/stdin")
UNLIMITED = 512
"""Tokens that a model without learned positions is given at most: as many as published ones are pretrained on."""

Compute = Callable[[Model, Any, Batch], tuple[jax.Array, ...]]
"""(model, parameters, batch with one position a row to predict) -> arrays, the batch's rows first.

Equal ones share their compiled programs."""


class Text(NamedTuple):
    """A text and how a message calls it."""

    where: str
    """file:line, or which of the options."""
    text: str


class Row(NamedTuple):
    """What the model reads at once."""

    number: int
    """Whose result it is part of; the caller's own."""
    where: str
    """How a message calls that."""
    tokens: Int32[np.ndarray, " n"]
    """Ids, marks included."""
    at: int = 0
    """A position that something is asked of."""
    target: int = 0
    """The id asked for there."""
    order: Int32[np.ndarray, " n"] | None = None
    """Ranks in a factorization order: then every token is asked for, from those of lower rank."""


def read(asked: Texts) -> list[Text]:
    """The texts of the options, or of all files.

    Raises:
        BadInput: see `tasks.files` and `tasks.lines`.
    """
    if asked.texts:
        alone = len(asked.texts) == 1
        return [Text("--text" if alone else f"--text {number}", text) for number, text in enumerate(asked.texts, 1)]
    found = []
    for name in asked.files:
        for file in [STDIN] if name == "-" else files.files([name], (".txt",)):
            found += [Text(where, line) for where, line in files.lines(file)]
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """A loaded encoder and how it is to compute; `Encoder.of` makes one."""

    loaded: Loaded
    marks: Marks
    room: int
    """Tokens that it reads at most, marks included."""
    batch: int
    dtype: Any

    @staticmethod
    def of(loaded: Loaded, *, batch: int, dtype: Any) -> "Encoder":
        """Check that it is an encoder.

        Args:
            batch: rows of the model's full length computed at a time, or as many tokens in shorter rows.
            dtype: of the arithmetic.

        Raises:
            BadInput: a model that reads from left to right, or a tokenizer without marks.
        """
        require(batch >= 1, "batch", batch, "choose 1 or more rows")
        net = loaded.net
        if "causal" in net.module.OBJECTIVES:
            raise BadInput(f"{loaded.name}: {net.family} reads from left to right; choose an encoder (BERT, RoBERTa, DistilBERT)")
        if loaded.tokenizer.marks is None:
            raise BadInput(f"{loaded.name}: its tokenizer has no marks for text, separator and mask; give it that of an encoder")
        return Encoder(loaded, loaded.tokenizer.marks, getattr(net.config, "context", UNLIMITED), batch, dtype)

    def check_masked(self) -> None:
        """Refuse a model that predicts no words.

        Raises:
            BadInput: it has no head for masked words.
        """
        loaded = self.loaded
        if not {"masked", "unembed"} & loaded.params.keys():
            raise BadInput(f"{loaded.name}: a {loaded.net.family} for the task {loaded.net.task} has no head for masked words")

    def framed(self, ids: Integer[np.ndarray, " n"], where: str, *, truncate: bool = False) -> Int32[np.ndarray, " m"]:
        """The ids of a text between its marks; truncated, without those at its end that the model has no room for.

        Raises:
            BadInput: it is too long, and not to be truncated.
        """
        tokens, _ = self.marks.single(ids)
        if len(tokens) <= self.room:
            return tokens
        if not truncate:
            raise BadInput(
                f"{where}: {len(tokens)} tokens with its marks, but the model has {self.room} positions; "
                "shorten it, or add --truncate to cut its end off"
            )
        return self.marks.single(ids[: self.room - (len(tokens) - len(ids))])[0]

    def run(self, rows: Iterable[Row], compute: Compute) -> Iterator[tuple[Row, tuple[np.ndarray, ...]]]:
        """Each row with its part of what `compute` gives, in any order. Rows are taken as they are needed.

        Gathered by length into a few shapes, so that few programs are compiled. Padding is on the right and of segment 0, so that
        no token sees it: a row's result depends on the others, and on `batch`, by rounding alone.

        Raises:
            BadInput: a result that is not finite.
        """
        loaded = self.loaded
        program = _Program.of(loaded.net, loaded.mesh, np.dtype(self.dtype), compute)
        with jax.set_mesh(loaded.mesh):
            params = program.cast(loaded.params)
        before: tuple[list[Row], Any] | None = None
        for length, group, size in self._groups(rows):
            arrays = self._arrays([*group, *group[:1] * (size - len(group))], length)
            local = device_mesh.local_rows(loaded.mesh, size)
            mine = jax.tree.map(lambda array, local=local: array[local], arrays)
            with jax.set_mesh(loaded.mesh):
                now = program.compute(params, device_mesh.place(mine, loaded.mesh, size))
            # The devices are at work on this batch while the one before is looked at and the next is made.
            if before is not None:
                yield from _each(*before)
            before = group, now
        if before is not None:
            yield from _each(*before)

    def _groups(self, rows: Iterable[Row]) -> Iterator[tuple[int, list[Row], int]]:
        """(length, rows that fit into it, rows that the batch has)."""
        waiting: dict[int, list[Row]] = {}
        often: set[int] = set()
        for row in rows:
            length = row_length(len(row.tokens), self.room)
            group = waiting.setdefault(length, [])
            group.append(row)
            if len(group) == self._most(length):
                often.add(length)
                yield length, waiting.pop(length), len(group)
        for length, group in sorted(waiting.items()):
            # Rounded up where there are few, so that calls with some more or fewer rows share a program.
            few = device_mesh.fitting(self.loaded.mesh, 1 << (len(group) - 1).bit_length())
            most = self._most(length)
            yield length, group, most if length in often else min(most, few)

    def _most(self, length: int) -> int:
        """Rows of a batch: as many tokens as `batch` rows of full length have, unless there are too many logits."""
        mesh, rows = self.loaded.mesh, max(self.batch, self.batch * self.room // length)
        return device_mesh.fitting(mesh, min(rows, max(1, LOGITS * mesh.size // self.loaded.net.config.vocab)))

    def _arrays(self, rows: list[Row], length: int) -> Batch:
        marks = self.marks
        tokens = np.full((len(rows), length), marks.pad, np.int32)
        segments, types = np.zeros((2, *tokens.shape), np.int32)
        summaries = [marks.summary(len(row.tokens)) for row in rows]
        for i, row in enumerate(rows):
            tokens[i, : len(row.tokens)] = row.tokens
            segments[i, : len(row.tokens)] = 1
        if rows[0].order is not None:
            order, everywhere = np.zeros_like(tokens), np.tile(np.arange(length, dtype=np.int32), (len(rows), 1))
            for i, row in enumerate(rows):
                assert row.order is not None, "of rows that are asked together all have one, or none"
                order[i, : len(row.tokens)] = row.order
            return Batch(tokens=tokens, segments=segments, order=order, query_at=everywhere)
        at, targets, summary_at = (
            np.array(each, np.int32)[:, None] for each in ([row.at for row in rows], [row.target for row in rows], summaries)
        )
        batch = Batch(tokens=tokens, segments=segments, predict_at=at, targets=targets)
        if (hidden := tokens == marks.mask).any() and "permutation" in self.loaded.net.module.OBJECTIVES:
            # A query stream predicts what nothing sees: neither itself nor another mask of the text.
            batch = dataclasses.replace(batch, order=np.where(hidden, 0, -1).astype(np.int32), query_at=at, predict_at=None)
        if not marks.cls_last:
            return batch
        # Of a text alone, only this mark has a type of its own.
        if is_typed(self.loaded.net.config.types, marks):
            np.put_along_axis(types, summary_at, marks.types - 1, 1)
        return dataclasses.replace(batch, types=types, summary_at=summary_at)


def dtype_of(precision: run_config.Precision) -> Any:
    """The dtype of arithmetic; "auto" is float32 on CPU, else bfloat16."""
    return DTYPES[("float32" if jax.default_backend() == "cpu" else "bfloat16") if precision == "auto" else precision]


@dataclasses.dataclass(frozen=True)
class _Program:
    """What is computed on the devices, kept between calls."""

    cast: Callable[[Any], Any]
    compute: Callable[[Any, Batch], tuple[jax.Array, ...]]
    """The same on all devices."""

    @staticmethod
    @functools.lru_cache(maxsize=8)
    def of(net: Model, mesh: Mesh, dtype: np.dtype, compute: Compute) -> "_Program":
        return _Program(
            cast=jax.jit(lambda params: jax.tree.map(lambda leaf: leaf.astype(dtype), params)),
            compute=jax.jit(functools.partial(compute, net), out_shardings=NamedSharding(mesh, PartitionSpec())),
        )


def _each(rows: list[Row], computed: tuple[jax.Array, ...]) -> Iterator[tuple[Row, tuple[np.ndarray, ...]]]:
    """A batch's results row by row; those of the rows it was filled up with are dropped."""
    found = jax.device_get(computed)
    for i, row in enumerate(rows):
        mine = tuple(array[i] for array in found)
        if not all(np.isfinite(each).all() for each in mine):
            raise BadInput(f"{row.where}: the result is not finite; the weights are damaged, or too large for bfloat16")
        yield row, mine
