"""Write what was left out of a text, or the whole of what was disturbed (Raffel et al. 2020, sections 3.1.4, 3.2 and 3.3)."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from train.config.run_config import Run
from train.engine.losses import summed
from train.rows import lm_rows, seq2seq_rows, span_corruption
from train.rows.batches import Build
from train.rows.lm_rows import Row, Rows
from train.rows.seq2seq_rows import Sides
from train.rows.span_corruption import Room
from train.rows.token_cache import Tokens
from train.tokenizers.special_tokens import TextMarks
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.errors import BadInput, require
from zoo.models import Model

DATA = "text"


def plan(tokens: Tokens, run: Run, tokenizer: Tokenizer) -> Rows:
    """The rows of the training text: consecutive windows over all documents, without the mark that ends each.

    Raises:
        BadInput: fewer tokens than one row, rows of another kind, or a tokenizer without sentinels.
    """
    require(run.data.rows == "windows", "data.rows", run.data.rows, "denoising takes windows of the text; choose windows")
    require(not run.data.pack, "data.pack", run.data.pack, "windows fill their rows; leave it out")
    fix = "denoising has targets as long as its sources ask for; leave it out"
    require(run.data.target_length == 0, "data.target_length", run.data.target_length, fix)
    raw, text = _room(run, tokenizer).raw, len(tokens.ids) - len(tokens.offsets) + 1
    if text < raw:
        raise BadInput(
            f"--data.length {run.data.length}: a row is made of {raw} tokens, and the training text has {text}; "
            "choose a shorter one or give --data.paths more text"
        )
    return lm_rows.windows(tokens, raw, with_ends=False, least=2)


def scored(tokens: Tokens, run: Run, tokenizer: Tokenizer, stride: int) -> Rows:
    """The rows of the held-out text, made as those of the training text; each token is in one of them, whatever the stride."""
    return lm_rows.windows(tokens, _room(run, tokenizer).raw, with_ends=False, least=2)


def builder(run: Run, tokenizer: Tokenizer, counts: Callable[[], np.ndarray]) -> Build:
    """`build(rng, row, length)`: one row as the fields of `Batch`; see `train.rows.seq2seq_rows.two`, and `one` for a decoder
    alone.

    Both sides end with the tokenizer's mark. As the kinds are described in `train.config.objective_options.Denoising`.
    """
    marks, most = _marks(tokenizer), _room(run, tokenizer)
    entries = np.delete(np.arange(tokenizer.vocab_size, dtype=np.int32), list(marks.special))
    alone, causal = _alone(run), run.denoising.causal
    # A prefix and the rest are together a text.
    whole = most.raw + 2 if run.denoising.kind == "prefix" else most.target if _lm(run) else most.source + most.target

    def build(rng: np.random.Generator, row: Row, length: int) -> dict[str, Any]:
        del length
        ids = np.concatenate([piece.ids for piece in row.pieces]).astype(np.int32)
        source, target = (np.append(side, marks.end).astype(np.int32) for side in _disturbed(rng, ids, run, marks, entries))
        if alone:
            return seq2seq_rows.one(Sides(source[: 0 if _lm(run) else None], target), whole, marks.pad, causal=causal)
        return seq2seq_rows.two([Sides(source, target)], most.source, most.target, marks.pad)

    return build


def weights(batch: Batch) -> dict[str, jax.Array]:
    """What the loss is divided by: the number of predictions."""
    assert batch.weights is not None
    return {"denoising": batch.weights.sum()}


def loss(
    model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
) -> tuple[dict[str, jax.Array], Any]:
    """Summed cross-entropy, in nats, of the targets of a batch; and the model's carry."""
    nats, carry = summed(model, params, batch, seeds=seeds, carry=carry, smoothing=smoothing, chunk=chunk)
    return {"denoising": nats}, carry


def _disturbed(
    rng: np.random.Generator, ids: np.ndarray, run: Run, marks: TextMarks, entries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(source, target) of a text, without their ends."""
    options, length = run.denoising, len(ids)
    match options.kind:
        case "spans":
            return span_corruption.sides(ids, span_corruption.spans(rng, length, options), marks.sentinels)
        case "iid":
            return span_corruption.sides(ids, span_corruption.scattered(rng, length, options.density), marks.sentinels)
        case "bert":
            return span_corruption.replaced(
                rng, ids, span_corruption.scattered(rng, length, options.density), marks.sentinels[0], entries
            ), ids
        case "deshuffle":
            return rng.permutation(ids), ids
        case "prefix":
            cut = rng.integers(1, length)
            return ids[:cut], ids[cut:]
        case "lm":
            return ids[:0], ids


def _room(run: Run, tokenizer: Tokenizer) -> Room:
    options, known = run.denoising, len(_marks(tokenizer).sentinels)
    require(
        run.data.length >= 4, "data.length", run.data.length, "choose 4 tokens or more: some to read, some to write, two ends"
    )
    if _lm(run) and not _alone(run):
        raise BadInput("--denoising.kind lm: an encoder has nothing to read; choose prefix, or --model.architecture decoder")
    require(_alone(run) or not options.causal, "denoising.causal", options.causal, "an encoder sees all it reads; leave it out")
    found = span_corruption.room(options, run.data.length - 2 * (options.kind == "prefix" and _alone(run)))
    fix = f"a row may take {found.sentinels} sentinels, and the tokenizer has {known}; choose a shorter one"
    require(found.sentinels <= known, "data.length", run.data.length, fix)
    return found


def _marks(tokenizer: Tokenizer) -> TextMarks:
    if tokenizer.text_marks is None:
        raise BadInput(
            f"--tokenizer.kind {tokenizer.kind}: this tokenizer has no sentinels and no padding; choose sentencepiece, or a "
            "--tokenizer.path of T5's kind"
        )
    return tokenizer.text_marks


def _alone(run: Run) -> bool:
    return not run.model.sourced


def _lm(run: Run) -> bool:
    return run.denoising.kind == "lm"
