"""Text to text: translation, summaries, answers (Vaswani et al. 2017; Raffel et al. 2020, section 2.4)."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from train.config.run_config import Run
from train.engine.losses import summed_loss
from train.rows import seq2seq_rows
from train.rows.batches import Build
from train.rows.seq2seq_rows import PackedPair, text_special_tokens_of
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.models import Model

DATA = "pairs"


def builder(run: Run, tokenizer: Tokenizer, counts: Callable[[], np.ndarray]) -> Build:
    """Return `build(rng, row, length)`, which converts a row of `train.inputs.pair_inputs` to the fields of `Batch`.

    See `train.rows.seq2seq_rows.encoder_decoder_row`, and `one` for a decoder without an encoder. `rng` is not used.
    """
    pad, target = text_special_tokens_of(tokenizer).pad, run.data.target_length or run.data.length
    decoder_only = not run.model.is_encoder_decoder

    def build(rng: np.random.Generator, row: tuple[PackedPair, ...], length: int) -> dict[str, Any]:
        if decoder_only:
            return seq2seq_rows.decoder_only_row(row[0].sides, length + target, pad, causal=run.denoising.causal)
        return seq2seq_rows.encoder_decoder_row([pair.sides for pair in row], length, target, pad)

    return build


def weights(batch: Batch) -> dict[str, jax.Array]:
    """Return the divisor of the loss: the number of predictions."""
    assert batch.weights is not None
    return {"text_to_text": batch.weights.sum()}


def loss(
    model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
) -> tuple[dict[str, jax.Array], Any]:
    """Return the summed cross-entropy, in nats, of the targets of a batch, and the model's carry."""
    nats, carry = summed_loss(model, params, batch, seeds=seeds, carry=carry, smoothing=smoothing, chunk=chunk)
    return {"text_to_text": nats}, carry
