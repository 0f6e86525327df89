"""Running texts through an encoder: special tokens, rows of few shapes, sharding over the mesh."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int32, Integer

from eval import task_data_files
from eval.inference.batch_loop import cast_to
from eval.inference.encoder_inputs import Texts
from eval.inference.likelihood import LOGITS, row_length
from train.data.text_files import STDIN, nonblank_lines
from train.engine import device_mesh
from train.rows.example_rows import is_typed
from train.tokenizers.special_tokens import SpecialTokens
from train.weights.load import Loaded
from zoo.batch import Batch
from zoo.errors import BadInput, require
from zoo.models import Model
from zoo.sharding import target_platform

UNLIMITED = 512
"""Most tokens in a row for a model without learned positions: the length that published ones are pretrained with."""

CPU_TOKENS = 1024
"""Most tokens of a batch for each CPU device, where no logits are made: the layers' activations then stay in the cache.

On one Xeon core a token of MiniLM takes 1.3 times as long in batches of 64 rows of 128 tokens as in those of 4, and 1.1 times in
those of 16."""

Compute = Callable[[Model, Any, Batch], tuple[jax.Array, ...]]
"""(model, parameters, batch with one position to predict per row) -> arrays whose first axis is the batch's rows.

Equal functions share their compiled programs."""


class Text(NamedTuple):
    """A text and its name in messages."""

    where: str
    """Position as file:line, or the option."""
    text: str


class EncoderRow(NamedTuple):
    """The tokens of a row, which the model reads at once, and the results for them."""

    number: int
    """Number of the caller's result that the row contributes to."""
    where: str
    """Name of that result in messages."""
    tokens: Int32[np.ndarray, " n"]
    """Ids, special tokens included."""
    at: int = 0
    """Position to predict."""
    target: int = 0
    """Id to score at that position."""
    types: Int32[np.ndarray, " n"] | None = None
    """Token types of a pair of texts, or of a text that more tokens follow; None = those of a single text."""
    order: Int32[np.ndarray, " n"] | None = None
    """Ranks in a factorization order; with it every token is predicted, from those of lower rank."""
    seen: int | None = None
    """Number of first tokens that the tokens of the row see; None = all."""


def read_texts(texts: Texts) -> list[Text]:
    """Read the texts in the options, or those of all files.

    Raises:
        BadInput: see `eval.task_data_files.find_data_files` and `train.data.text_files.nonblank_lines`.
    """
    if texts.texts:
        single = len(texts.texts) == 1
        return [Text("--text" if single else f"--text {number}", text) for number, text in enumerate(texts.texts, 1)]
    lines = []
    for name in texts.files:
        for file in [STDIN] if name == "-" else task_data_files.find_data_files([name], (".txt",)):
            lines += [Text(where, line) for where, line in nonblank_lines(file)]
    return lines


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """A loaded encoder with its batch size and dtype; `Encoder.of` makes one."""

    loaded: Loaded
    special_tokens: SpecialTokens
    room: int
    """Most tokens of a row, special tokens included."""
    batch: int
    dtype: Any

    @staticmethod
    def of(loaded: Loaded, *, batch: int, dtype: Any) -> "Encoder":
        """Return an encoder, after checking that the model is one.

        Args:
            batch: rows of the model's full length computed at a time; batches of shorter rows have as many tokens.
            dtype: dtype of the arithmetic.

        Raises:
            BadInput: a model that reads from left to right, also a causal encoder, or a tokenizer without special tokens.
        """
        require(batch >= 1, "batch", batch, "choose 1 or more rows")
        model = loaded.model
        if "causal" in model.definition.objectives:
            raise BadInput(
                f"{loaded.where}: {model.family} reads from left to right; choose an encoder (BERT, RoBERTa, DistilBERT)"
            )
        if getattr(model.config, "causal", False):
            raise BadInput(f"{loaded.where}: a causal {model.family}, whose tokens see one side only; choose one that sees both")
        if loaded.tokenizer.special_tokens is None:
            raise BadInput(f"{loaded.where}: its tokenizer has no [CLS], [SEP] and [MASK]; use an encoder's tokenizer")
        return Encoder(loaded, loaded.tokenizer.special_tokens, getattr(model.config, "context", UNLIMITED), batch, dtype)

    def check_masked(self) -> None:
        """Refuse a model that does not predict tokens.

        Raises:
            BadInput: it has no head for masked words.
        """
        loaded = self.loaded
        if not {"masked", "unembed"} & loaded.params.keys():
            raise BadInput(
                f"{loaded.where}: a {loaded.model.family} for the task {loaded.model.task} has no head for masked words"
            )

    def with_special_tokens(
        self, ids: Integer[np.ndarray, " n"], where: str, *, truncate: bool = False
    ) -> Int32[np.ndarray, " m"]:
        """Return the ids of a text with its special tokens, cut at the end to `room` tokens if `truncate`.

        Raises:
            BadInput: the text is too long, and `truncate` is False.
        """
        tokens, _ = self.special_tokens.single(ids)
        if len(tokens) <= self.room:
            return tokens
        if not truncate:
            raise BadInput(
                f"{where}: {len(tokens)} tokens with special tokens, and this model reads at most {self.room}; "
                "shorten it, or add --truncate to cut its end off"
            )
        return self.special_tokens.single(ids[: self.room - (len(tokens) - len(ids))])[0]

    def run(
        self, rows: Iterable[EncoderRow], compute: Compute, *, by_length: bool = False
    ) -> Iterator[tuple[EncoderRow, tuple[np.ndarray, ...]]]:
        """Yield each row with its part of the results of `compute`, in any order; rows are read as they are needed.

        Rows are grouped by length into a few shapes, so that few programs are compiled. Padding is on the right and of segment 0,
        so that no token sees it: the other rows, and `batch`, affect a row's result only through rounding.

        Args:
            by_length: read all rows first, and batch them in the order of their lengths, which needs less padding; for a
                `compute` that makes no logits.

        Raises:
            BadInput: a result that is not finite.
        """
        loaded = self.loaded
        compiled = _compiled(loaded.model, loaded.mesh, compute)
        with jax.set_mesh(loaded.mesh):
            params = cast_to(np.dtype(self.dtype))(loaded.params)
        previous: tuple[list[EncoderRow], Any] | None = None
        for length, group, size in self._sorted_groups([*rows]) if by_length else self._groups(rows):
            arrays = self._arrays([*group, *group[:1] * (size - len(group))], length)
            local = device_mesh.local_rows(loaded.mesh, size)
            local_batch = jax.tree.map(lambda array, local=local: array[local], arrays)
            with jax.set_mesh(loaded.mesh):
                results = compiled(params, device_mesh.shard_batch(local_batch, loaded.mesh, size))
            # The devices compute this batch while the previous one is used and the next one is made.
            if previous is not None:
                yield from _split_rows(*previous)
            previous = group, results
        if previous is not None:
            yield from _split_rows(*previous)

    def _groups(self, rows: Iterable[EncoderRow]) -> Iterator[tuple[int, list[EncoderRow], int]]:
        """Yield (length, rows that fit into it, rows of the batch)."""
        waiting: dict[int, list[EncoderRow]] = {}
        frequent: set[int] = set()
        for row in rows:
            length = row_length(len(row.tokens), self.room)
            group = waiting.setdefault(length, [])
            group.append(row)
            if len(group) == self._batch_size(length):
                frequent.add(length)
                yield length, waiting.pop(length), len(group)
        for length, group in sorted(waiting.items()):
            # A small group is rounded up to a power of two, so that calls with similar numbers of rows share a program.
            rounded = device_mesh.round_up_rows(self.loaded.mesh, 1 << (len(group) - 1).bit_length())
            batch_size = self._batch_size(length)
            yield length, group, batch_size if length in frequent else min(batch_size, rounded)

    def _sorted_groups(self, rows: list[EncoderRow]) -> Iterator[tuple[int, list[EncoderRow], int]]:
        """Yield (length, rows that fit into it, rows of the batch), the longest first; the length is a multiple of 8."""
        mesh, budget = self.loaded.mesh, self.batch * self.room
        if target_platform() == "cpu":
            budget = min(budget, CPU_TOKENS * mesh.size)
        rows = sorted(rows, key=lambda row: -len(row.tokens))
        start = 0
        while start < len(rows):
            length = min(-(-len(rows[start].tokens) // 8) * 8, self.room)
            size = device_mesh.round_up_rows(mesh, max(1, budget // length))
            group = rows[start : start + size]
            start += size
            rounded = device_mesh.round_up_rows(mesh, 1 << (len(group) - 1).bit_length())
            yield length, group, min(size, rounded)

    def _batch_size(self, length: int) -> int:
        """Return the number of rows in a batch of rows of this length.

        A batch has about as many tokens as `batch` rows of full length, but at most `LOGITS` logits on each device.
        """
        mesh, rows = self.loaded.mesh, max(self.batch, self.batch * self.room // length)
        return device_mesh.round_up_rows(mesh, min(rows, max(1, LOGITS * mesh.size // self.loaded.model.config.vocab)))

    def _arrays(self, rows: list[EncoderRow], length: int) -> Batch:
        special_tokens = self.special_tokens
        tokens = np.full((len(rows), length), special_tokens.pad, np.int32)
        segments, types = np.zeros((2, *tokens.shape), np.int32)
        summaries = [special_tokens.summary(len(row.tokens)) for row in rows]
        for i, row in enumerate(rows):
            tokens[i, : len(row.tokens)] = row.tokens
            segments[i, : len(row.tokens)] = 1
        if rows[0].order is not None:
            order, positions = np.zeros_like(tokens), np.tile(np.arange(length, dtype=np.int32), (len(rows), 1))
            for i, row in enumerate(rows):
                assert row.order is not None, "either all rows of a batch have an order, or none"
                order[i, : len(row.tokens)] = row.order
            return Batch(tokens=tokens, segments=segments, order=order, query_at=positions)
        columns = [row.at for row in rows], [row.target for row in rows], summaries
        at, targets, summary_at = (np.array(column, np.int32)[:, None] for column in columns)  # [B, 1]
        batch = Batch(tokens=tokens, segments=segments, predict_at=at, targets=targets)
        if rows[0].seen is not None:
            seen = np.array([row.seen for row in rows])[:, None]  # [B, 1]
            batch = dataclasses.replace(batch, key_segments=np.where(np.arange(length) < seen, segments, 0))
        is_permuted = rows[0].seen is None and "permutation" in self.loaded.model.definition.objectives
        if is_permuted and (is_mask := tokens == special_tokens.mask).any():
            # A query stream predicts a token that nothing sees: neither itself nor another mask of the text.
            batch = dataclasses.replace(batch, order=np.where(is_mask, 0, -1).astype(np.int32), query_at=at, predict_at=None)
        if rows[0].types is None and not special_tokens.cls_last:
            return batch
        if is_typed(self.loaded.model.config.types, special_tokens):
            # In a single text, only this special token has a type of its own.
            np.put_along_axis(types, summary_at, special_tokens.types - 1, 1)
            for i, row in enumerate(rows):
                if row.types is not None:
                    types[i, : len(row.tokens)] = row.types
        return dataclasses.replace(batch, types=types, summary_at=summary_at)


@functools.lru_cache(maxsize=8)
def _compiled(model: Model, mesh: Mesh, compute: Compute) -> Callable[[Any, Batch], tuple[jax.Array, ...]]:
    """Return the compiled function of (parameters, batch), the same one for the same arguments; results are replicated."""
    return jax.jit(functools.partial(compute, model), out_shardings=NamedSharding(mesh, PartitionSpec()))


def _split_rows(rows: list[EncoderRow], results: tuple[jax.Array, ...]) -> Iterator[tuple[EncoderRow, tuple[np.ndarray, ...]]]:
    """Yield a batch's results row by row, without those of padding rows."""
    arrays = jax.device_get(results)
    for i, row in enumerate(rows):
        row_results = tuple(array[i] for array in arrays)
        if not all(np.isfinite(result).all() for result in row_results):
            raise BadInput(f"{row.where}: the hidden states are not finite; the weights are damaged, or too large for bfloat16")
        yield row, row_results
