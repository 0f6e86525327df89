"""Predict masked tokens, and whether the second text of a pair follows the first (Devlin et al. 2019, section 3.1)."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32, Int64

from train.config.run_config import Run
from train.engine.losses import pair_loss, token_losses
from train.rows import encoder_rows
from train.rows.batches import Build
from train.rows.encoder_rows import PAIRED, Plan, Row, Sequence
from train.rows.example_rows import is_typed
from train.rows.masking import Masks, Rule, largest_of_packed, mask
from train.rows.token_cache import Tokens
from train.tokenizers.special_tokens import Marks
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import IGNORED, Batch
from zoo.errors import BadInput
from zoo.models import Model
from zoo.nn import heads

DATA: Literal["text", "labelled"] = "text"
PRETRAINING = "pretraining"
"""The task whose model also tells a next sentence from a random one."""


def plan(tokens: Tokens, run: Run, tokenizer: Tokenizer) -> Plan:
    """The rows of the training text; see `train.rows.encoder_rows.plan`."""
    return encoder_rows.plan(tokens, run.data, tokenizer, run.seed)


def scored(tokens: Tokens, run: Run, tokenizer: Tokenizer, stride: int) -> Plan:
    """The rows of the held-out text, planned like those of the training text, and alike for every seed: so that runs compare."""
    return encoder_rows.plan(tokens, run.data, tokenizer, 0, "held-out")


def builder(run: Run, tokenizer: Tokenizer, counts: Callable[[], Int64[np.ndarray, " V"]]) -> Build:
    """`build(rng, row, length)`: one row of `train.rows.encoder_rows` as the fields of `Batch`.

    A sequence is laid out as [CLS] A [SEP], or [CLS] A [SEP] B [SEP] with as many separators between as the tokenizer's marks
    say; XLNet's put [CLS] last. Where one is of several documents, what ends a document stands between them: a separator, or
    XLNet's own mark. tokens, segments (1, 2, ...; 0 = padding), positions (from 0 in each sequence) and types (1 from the second
    text on, where the model tells two apart) are int32 [length]. predict_at, targets (int32) and weights (float32: 1, or 0 for
    the rest of P) are [P], P being the most predictions that a row can have, rounded up so that the loss's chunks are equal. For
    a model with a next-sentence head, or with XLNet's marks, also summary_at, the position of each [CLS], and for such a head
    labels, `IGNORED` for the rest of Q; both int32 [Q], Q being the most sequences that a row can have.

    How many tokens are predicted, and what a random one is, is as in the distiller where rare tokens are preferred, else as in
    fairseq with RoBERTa's kind of tokenizer and as in Google's code with BERT's; see `train.rows.masking.Masks`.

    Args:
        counts: of each id in the training text; asked for where rare tokens are preferred.

    Raises:
        BadInput: rows without pairs for a next-sentence head, or rare whole words.
    """
    marks = tokenizer.marks
    assert marks is not None, "rows are planned with a tokenizer that has marks"
    paired, labelled = run.data.rows in PAIRED, run.model.task == PRETRAINING
    if labelled and not paired:
        raise BadInput(
            f"--data.rows {run.data.rows}: the model also learns which sentence is next, from pairs; "
            f"choose {' or '.join(PAIRED)}, or --model.task masked"
        )
    masks = _masks(run, tokenizer, marks, counts)
    shortest = marks.between + 4 if paired else 3
    packed = run.data.pack or run.data.rows == "packed"
    predicted = largest_of_packed(masks, run.data.length, shortest) if packed else masks.largest(run.data.length)
    pieces = _pieces(predicted, run.loss_chunk)
    predicted = -(-predicted // pieces) * pieces
    sequences = run.data.length // shortest if packed else 1
    typed = is_typed(run.model.types, marks)

    def build(rng: np.random.Generator, row: Row, length: int) -> dict[str, np.ndarray]:
        tokens = np.full(length, marks.pad, np.int32)
        segments, positions, types = np.zeros((3, length), np.int32)
        predict_at, targets = np.zeros((2, predicted), np.int32)
        weights = np.zeros(predicted, np.float32)
        summary_at, labels = np.zeros(sequences, np.int32), np.full(sequences, IGNORED, np.int32)
        start, done = 0, 0
        for number, sequence in enumerate(row):
            ids, kinds = _laid_out(sequence, marks)
            at, shown = mask(rng, ids, (ids != marks.cls) & (ids != marks.sep) & (ids != marks.end), masks)
            end, now = start + len(ids), done + len(at)
            tokens[start:end] = ids
            tokens[start + at] = shown
            segments[start:end] = number + 1
            positions[start:end] = np.arange(len(ids))
            types[start:end] = kinds * typed
            predict_at[done:now], targets[done:now], weights[done:now] = start + at, ids[at], 1
            summary_at[number] = start + marks.summary(len(ids))
            if sequence.label is not None:
                labels[number] = sequence.label
            start, done = end, now
        arrays = {"tokens": tokens, "segments": segments, "positions": positions, "types": types}
        arrays |= {"predict_at": predict_at, "targets": targets, "weights": weights}
        if labelled or marks.cls_last:
            arrays["summary_at"] = summary_at
        return arrays | {"labels": labels} if labelled else arrays

    return build


def weights(batch: Batch) -> dict[str, jax.Array]:
    """What each term of the loss is divided by: the number of predictions, and of labelled pairs where there are any."""
    assert batch.weights is not None
    counted = {"masked": batch.weights.sum()}
    return counted if batch.labels is None else {**counted, "next": jnp.float32(batch.labels != IGNORED).sum()}


def loss(
    model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
) -> tuple[dict[str, jax.Array], Any]:
    """Summed cross-entropies of a batch, in nats, of its predictions and of its pairs' labels; and the model's carry.

    At most `chunk` predictions of a row have logits at a time.
    """
    assert batch.targets is not None and batch.weights is not None
    predicted = batch.targets.shape[1]
    out = model.apply(params, batch, seeds=seeds, carry=carry)
    nats = token_losses(
        lambda hidden: model.unembed(params, hidden),
        heads.gather(out.hidden, batch.predict_at),
        batch.targets,
        vocabulary=model.config.vocab,
        smoothing=smoothing,
        chunk=predicted // _pieces(predicted, chunk),
    )
    sums = {"masked": (nats * batch.weights).sum()}
    if batch.labels is None:
        return sums, out.carry
    return {**sums, "next": pair_loss(model, params, out.hidden, batch, seeds)}, out.carry


def _pieces(predicted: int, chunk: int) -> int:
    """How many pieces of at most `chunk` predictions are computed one after the other; 0 = all at once."""
    return -(-predicted // chunk) if chunk else 1


def _masks(run: Run, tokenizer: Tokenizer, marks: Marks, counts: Callable[[], Int64[np.ndarray, " V"]]) -> Masks:
    asked, special = run.masking, list(marks.special)
    if asked.rare > 0 and asked.whole_words:
        raise BadInput(f"--masking.rare {asked.rare}: it draws tokens, not whole words; leave out --masking.whole-words")
    rule: Rule = "distilbert" if asked.rare > 0 else "roberta" if tokenizer.kind == "roberta" else "bert"
    rare = None
    if asked.rare > 0:
        rare = np.maximum(counts(), 1) ** -float(asked.rare)
        rare[special] = 0
    entries = np.arange(tokenizer.vocab_size, dtype=np.int32)
    return Masks(
        rate=asked.rate,
        masked=asked.masked,
        random=asked.random,
        most=asked.most or max(1, math.ceil(asked.rate * run.data.length)),
        rule=rule,
        mask=marks.mask,
        entries=np.delete(entries, special) if rule == "roberta" else entries,
        starts=tokenizer.word_starts() if asked.whole_words else None,
        weights=rare,
    )


def _laid_out(sequence: Sequence, marks: Marks) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
    """(ids, token types) of a sequence in its template. Between documents stands what ends one; a text has none of its own."""
    if sequence.pair:
        first, second = sequence.parts
        return marks.pair(first.ids, second.ids)
    parts = [sequence.parts[0].ids]
    for part in sequence.parts[1:]:
        parts += [np.array([marks.end]), part.ids]
    return marks.single(np.concatenate(parts))
