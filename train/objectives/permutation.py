"""Predict tokens in a random order, each from what comes before it there (Yang et al. 2019, sections 2.2 to 2.5)."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int64

from train.config.run_config import Run
from train.engine.losses import pair_loss, token_losses
from train.rows import contiguous_rows, permutation
from train.rows.batches import Build
from train.rows.contiguous_rows import MARKS, Streams, Window
from train.rows.masking import disguised
from train.rows.token_cache import Tokens
from train.tokenizers.special_tokens import Marks
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import IGNORED, Batch
from zoo.errors import BadInput, require
from zoo.models import Model
from zoo.nn import heads

DATA: Literal["text", "labelled"] = "text"
PRETRAINING = "pretraining"
"""The task whose model also tells a text that follows from a random one (a row of the paper's Table 6)."""


def plan(tokens: Tokens, run: Run, tokenizer: Tokenizer) -> Streams:
    """The rows of the training text; see `train.rows.contiguous_rows.streams`. Those of a model with a memory keep their
    order."""
    return _streams(tokens, run, tokenizer)


def scored(tokens: Tokens, run: Run, tokenizer: Tokenizer, stride: int) -> Streams:
    """The rows of the held-out text, planned like those of the training text: a memory is scored with what it remembers."""
    return _streams(tokens, run, tokenizer, where="--data.valid-paths: the held-out text")


def builder(run: Run, tokenizer: Tokenizer, counts: Callable[[], Int64[np.ndarray, " V"]]) -> Build:
    """`build(rng, row, length)`: one row of `train.rows.contiguous_rows` as the fields of `Batch`.

    Its text is the reused stretch, then A <sep> B <sep> <cls>. tokens, types (0; 1 for B and its separator, 2 for <cls>) and
    order are int32 [length]. Ranks: the reused part comes wholly before the rest; in each part what is not predicted has the
    lowest rank, and targets and marks follow in a random order. query_at, targets (int32) and weights (float32) are [P], P being
    exactly `run.permutation.predictions`, shared among both parts by their length. Of bidirectional data also backward, whether
    the row is read from right to left.

    For a model with a next-sentence head also summary_at, the position of <cls>, and labels, whether B is random; int32 [1].

    Denoising has predict_at in the place of query_at, targets disguised among the tokens, and one rank for each part: the reused
    part does not see the rest, which would give away through the memory what the next row predicts.

    Raises:
        BadInput: more targets than a part has tokens, a window that does not divide the parts, or a tokenizer of another kind.
    """
    asked, marks, numbers = run.permutation, _marks(tokenizer), _numbers(run)
    reuse, room = run.model.reuse, run.data.length - run.model.reuse - MARKS
    if asked.window:
        fix = f"it does not divide the parts of a row, {reuse} reused tokens and {run.data.length - reuse} others"
        divides = reuse % asked.window == 0 and (run.data.length - reuse) % asked.window == 0
        require(divides, "permutation.window", asked.window, fix + "; choose a divisor of both, or 0")
    labelled = run.model.task == PRETRAINING
    begins, entries = tokenizer.word_starts(), np.arange(tokenizer.vocab_size, dtype=np.int32)

    def build(rng: np.random.Generator, row: Window, length: int) -> dict[str, np.ndarray]:
        first, second, follows = contiguous_rows.texts(rng, row, room)
        reused = row.reading.ids[row.begin : row.begin + reuse]
        tokens = np.concatenate([reused, first, [marks.sep], second, [marks.sep, marks.cls]]).astype(np.int32)
        text = np.ones(length, bool)
        text[[reuse + len(first), length - 2, length - 1]] = False
        types = np.zeros(length, np.int32)
        types[reuse + len(first) + 1 :] = 1
        types[-1] = 2
        # From right to left a word begins with its last piece, behind the first piece of the word to its right.
        starts = np.append(True, begins[tokens[:-1]]) if row.reading.backward else begins[tokens]
        parts = [slice(0, reuse), slice(reuse, length)]
        targets = np.concatenate(
            [
                permutation.chosen(rng, starts[part], text[part], number, asked)
                for part, number in zip(parts, numbers, strict=True)
            ]
        )
        at = np.flatnonzero(targets).astype(np.int32)
        arrays = {"tokens": tokens, "types": types, "targets": tokens[at], "weights": np.ones(len(at), np.float32)}
        if labelled:
            arrays |= {"summary_at": np.array([length - 1], np.int32), "labels": np.array([int(not follows)], np.int32)}
        if asked.bidirectional:
            arrays["backward"] = np.array(row.reading.backward)
        bases = [-1, reuse or -1]
        if asked.kind == "denoising":
            shown = tokens.copy()
            shown[at] = disguised(rng, tokens[at], run.masking.masked, run.masking.random, marks.mask, entries)
            order = np.repeat(bases, [reuse, length - reuse]).astype(np.int32)
            return arrays | {"tokens": shown, "order": order, "predict_at": at}
        later = targets | ~text
        drawn = [permutation.ranks(rng, later[part], asked.window, base) for part, base in zip(parts, bases, strict=True)]
        return arrays | {"order": np.concatenate(drawn), "query_at": at}

    return build


def weights(batch: Batch) -> dict[str, jax.Array]:
    """What each term of the loss is divided by: the number of predictions, and of labelled pairs where there are any."""
    assert batch.weights is not None
    counted = {"permutation": batch.weights.sum()}
    return counted if batch.labels is None else {**counted, "next": jnp.float32(batch.labels != IGNORED).sum()}


def loss(
    model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
) -> tuple[dict[str, jax.Array], Any]:
    """Summed cross-entropies of a batch, in nats, of its predictions, `chunk` of a row at a time, and of its pairs' labels; and
    the model's carry."""
    assert batch.targets is not None and batch.weights is not None
    out = model.apply(params, batch, seeds=seeds, carry=carry)
    nats = token_losses(
        lambda hidden: model.unembed(params, hidden),
        heads.predictions(out, batch),
        batch.targets,
        vocabulary=model.config.vocab,
        smoothing=smoothing,
        chunk=chunk,
    )
    sums = {"permutation": (nats * batch.weights).sum()}
    if batch.labels is not None:
        sums["next"] = pair_loss(model, params, out.hidden, batch, seeds)
    return sums, out.carry


def _numbers(run: Run) -> tuple[int, int]:
    """Targets of the reused part of a row and of the rest."""
    length, reuse = run.data.length, run.model.reuse
    asked = run.permutation.predictions
    total = asked or max(1, length // 6)
    rest = total * (length - reuse) // length
    most = length - reuse - MARKS
    fits = total - rest <= reuse and rest <= most
    fix = f"a row of {length} has {reuse} reused tokens and {most} others that can be predicted; choose fewer"
    require(fits, "permutation.predictions", asked, fix)
    return total - rest, rest


def _streams(tokens: Tokens, run: Run, tokenizer: Tokenizer, **where: str) -> Streams:
    data, memory, reuse = run.data, run.model.memory, run.model.reuse
    _marks(tokenizer)
    task = run.model.task
    fix = f"it has no words to predict; choose permutation, or {PRETRAINING} for next sentences too"
    require(run.model.generates, "model.task", task, fix)
    require(data.rows == "windows", "data.rows", data.rows, "rows of this objective are windows of one stream; choose windows")
    require(not data.pack, "data.pack", data.pack, "rows of this objective are full; leave it out")
    least = MARKS + 2
    fix = f"a row of {data.length} has {least} tokens for two texts and their marks besides; choose at most {data.length - least}"
    require(0 <= reuse <= data.length - least, "model.reuse", reuse, fix)
    fix = "rows of a model with a memory continue each other, and those of several sources alternate; choose --model.memory 0"
    require(not (memory and data.weights), "data.weights", " ".join(map(str, data.weights)), fix)
    even = not run.permutation.bidirectional or data.batch % 2 == 0
    require(even, "data.batch", data.batch, "half of the rows are read from right to left; choose an even number")
    return contiguous_rows.streams(
        tokens,
        tokenizer,
        length=data.length,
        reuse=reuse,
        batch=data.batch,
        bidirectional=run.permutation.bidirectional,
        ordered=memory > 0,
        predictions=sum(_numbers(run)),
        **where,
    )


def _marks(tokenizer: Tokenizer) -> Marks:
    if tokenizer.marks is None or not tokenizer.marks.cls_last:
        raise BadInput(
            f"--tokenizer.kind {tokenizer.kind}: its <cls> does not end a text; choose xlnet, or a --tokenizer.path of that kind"
        )
    return tokenizer.marks
