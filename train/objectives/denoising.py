"""Denoising: predict the removed spans of a text, or the original text (Raffel et al. 2020, sections 3.1.4, 3.2 and 3.3)."""

import bisect
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int, Int64

from train.config.objectives import DenoisingOptions
from train.config.option_groups import MEAN_SPAN, Denoising
from train.config.run_config import Run
from train.objectives.student import StudentObjective
from train.rows import batch_counts, lm_rows, seq2seq_rows
from train.rows.batches import Build
from train.rows.lm_rows import LmRow, LmRows
from train.rows.seq2seq_rows import SourceTarget
from train.rows.token_cache import Tokens
from train.targets import span_corruption
from train.targets.span_corruption import RowSizes
from train.tokenizers.special_tokens import TextSpecialTokens
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.errors import BadInput


class Denoised(StudentObjective):
    """Prediction of the removed spans of a text, or of the original text."""

    OPTIONS = DenoisingOptions

    @classmethod
    def plan_rows(cls, tokens: Tokens, run: Run, tokenizer: Tokenizer) -> LmRows:
        """Return the rows of the training text: consecutive windows over all documents, without end-of-document tokens.

        Raises:
            BadInput: fewer tokens than one row, or a tokenizer without sentinels.
        """
        raw, available = _lengths(run, tokenizer).raw, len(tokens.ids) - len(tokens.offsets) + 1
        if available < raw:
            raise BadInput(
                f"--data.length {run.data.length}: a row is made of {raw} tokens, and the training text has {available}; "
                "choose a shorter length, or give more text in --data.paths"
            )
        return lm_rows.stream_windows(tokens, raw, with_ends=False, least=2)

    @classmethod
    def scored_rows(cls, tokens: Tokens, run: Run, tokenizer: Tokenizer, stride: int) -> LmRows:
        """Return the rows of the held-out text, planned like those of the training text: each token is in one row."""
        return lm_rows.stream_windows(tokens, _lengths(run, tokenizer).raw, with_ends=False, least=2)

    @classmethod
    def builder(cls, run: Run, tokenizer: Tokenizer, counts: Callable[[], Int64[np.ndarray, " V"]]) -> Build:
        """Return `build(rng, row, length)`, which converts a row to the fields of `Batch`.

        See `train.rows.seq2seq_rows.encoder_decoder_row`, and `decoder_only_row` for a decoder without an encoder. Source and
        target end with the tokenizer's end token. `train.config.option_groups.Denoising` describes the kinds of corruption.
        """
        special_tokens, lengths = _special_tokens(tokenizer), _lengths(run, tokenizer)
        entries = np.delete(np.arange(tokenizer.vocab_size, dtype=np.int32), list(special_tokens.special))
        decoder_only, options = _decoder_only(run), run.options.denoising
        # A prefix and the rest together are the text.
        total = (
            lengths.raw + 2
            if run.options.denoising.kind == "prefix"
            else lengths.target
            if _lm(run)
            else lengths.source + lengths.target
        )

        def build(rng: np.random.Generator, row: LmRow, length: int) -> dict[str, Any]:
            del length
            ids = np.concatenate([piece.ids for piece in row.pieces]).astype(np.int32)
            source, target = (
                np.append(side, special_tokens.end).astype(np.int32)
                for side in _corrupt(rng, ids, options, special_tokens, entries)
            )
            if decoder_only:
                return seq2seq_rows.decoder_only_row(
                    SourceTarget(source[: 0 if _lm(run) else None], target), total, special_tokens.pad, causal=options.causal
                )
            return seq2seq_rows.encoder_decoder_row(
                [SourceTarget(source, target)], lengths.source, lengths.target, special_tokens.pad
            )

        return build

    @classmethod
    def text_ids(cls, run: Run, batch: Batch) -> list[Int[np.ndarray, " _"]]:
        """Return the ids of the text of a batch: source and target together, or the target alone where it is all of the text."""
        in_parts = run.options.denoising.kind in ("spans", "iid", "drop", "prefix")
        return batch_counts.text_ids(batch) if in_parts else [batch_counts.counted_targets(batch)]

    @classmethod
    def target_options(cls, run: Run, counts: Callable[[], Int64[np.ndarray, " V"]]) -> dict[str, Any]:
        """Return the kind of corruption, the options that it uses, and the tokens of text in a row."""
        options = run.options.denoising
        used = ("density",) if options.kind not in ("deshuffle", "prefix", "lm") else ()
        used = (*used, "mean_span") if options.kind == "spans" else used
        raw = span_corruption.row_sizes(options, run.data.length - 2 * (options.kind == "prefix" and _decoder_only(run))).raw
        return {f"denoising.{name}": getattr(options, name) for name in ("kind", *used)} | {"tokens of a row": raw}


OBJECTIVE = Denoised


def _corrupt(
    rng: np.random.Generator, ids: np.ndarray, options: Denoising, special_tokens: TextSpecialTokens, entries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (source, target) of a text, without end tokens."""
    length = len(ids)
    match options.kind:
        case "spans":
            return span_corruption.source_and_target(
                ids, span_corruption.choose_spans(rng, length, options), special_tokens.sentinels
            )
        case "iid":
            return span_corruption.source_and_target(
                ids, span_corruption.choose_tokens(rng, length, options.density), special_tokens.sentinels
            )
        case "bert":
            return span_corruption.replace_noise(
                rng, ids, span_corruption.choose_tokens(rng, length, options.density), special_tokens.sentinels[0], entries
            ), ids
        case "drop":
            return span_corruption.drop_noise(ids, span_corruption.choose_tokens(rng, length, options.density))
        case "mass":
            noise = span_corruption.choose_tokens(rng, length, options.density)
            return span_corruption.mask_noise(ids, noise, special_tokens.sentinels[0]), ids
        case "deshuffle":
            return rng.permutation(ids), ids
        case "prefix":
            cut = rng.integers(1, length)
            return ids[:cut], ids[cut:]
        case "lm":
            return ids[:0], ids


def _lengths(run: Run, tokenizer: Tokenizer) -> RowSizes:
    options, sentinels = run.options.denoising, len(_special_tokens(tokenizer).sentinels)
    length = run.data.length - 2 * (options.kind == "prefix" and _decoder_only(run))
    lengths = span_corruption.row_sizes(options, length)
    if lengths.sentinels > sentinels:
        longer = _longer_spans(options, length, sentinels) if options.kind == "spans" else 0
        fix = f"choose --denoising.mean-span {longer} or more, or a shorter length" if longer else "choose a shorter length"
        need = f"a row may need {lengths.sentinels} sentinels, and the tokenizer has {sentinels}"
        raise BadInput(f"--data.length {run.data.length}: {need}; {fix}")
    return lengths


def _longer_spans(options: Denoising, length: int, sentinels: int) -> int:
    """Return the smallest mean length of spans with which a row needs no more than so many sentinels; 0 if there is none."""
    spans = range(math.ceil(options.mean_span), 1 + MEAN_SPAN)
    place = bisect.bisect_left(
        spans,
        True,
        key=lambda mean: (
            span_corruption.row_sizes(dataclasses.replace(options, mean_span=float(mean)), length).sentinels <= sentinels
        ),
    )
    return spans[place] if place < len(spans) else 0


def _special_tokens(tokenizer: Tokenizer) -> TextSpecialTokens:
    if tokenizer.text_special_tokens is None:
        raise BadInput(
            f"--tokenizer.kind {tokenizer.kind}: this tokenizer has no sentinels and no padding; choose sentencepiece, or a "
            "--tokenizer.path of T5's kind"
        )
    return tokenizer.text_special_tokens


def _decoder_only(run: Run) -> bool:
    return not run.model.is_encoder_decoder


def _lm(run: Run) -> bool:
    return run.options.denoising.kind == "lm"
