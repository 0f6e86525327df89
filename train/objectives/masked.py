"""Masked language modelling, with next-sentence prediction for pairs of texts (Devlin et al. 2019, section 3.1)."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from train.config.objectives import MaskedOptions
from train.config.run_config import Run
from train.objectives.base import Objective
from train.rows import encoder_rows
from train.rows.batches import Build
from train.rows.encoder_rows import PAIRED, EncoderRow, EncoderRows, Sequence
from train.rows.example_rows import is_typed
from train.rows.row_source import digest_of
from train.rows.token_cache import Tokens
from train.targets.masking import Masks, Rule, choose_masks, max_predictions_for_packed_row
from train.tokenizers.special_tokens import SpecialTokens
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import IGNORED

PRETRAINING = "pretraining"
"""Task of a model that also has a next-sentence head."""


class EncoderObjective(Objective):
    """Base class of objectives whose rows of a text are those of an encoder."""

    @classmethod
    def plan_rows(cls, tokens: Tokens, run: Run, tokenizer: Tokenizer) -> EncoderRows:
        """Return the rows of the training text; see `train.rows.encoder_rows.plan_rows`."""
        return encoder_rows.plan_rows(tokens, run.data, tokenizer, run.seed)

    @classmethod
    def scored_rows(cls, tokens: Tokens, run: Run, tokenizer: Tokenizer, stride: int) -> EncoderRows:
        """Return the rows of the held-out text, planned like the training rows, but the same for every seed, to compare runs."""
        return encoder_rows.plan_rows(tokens, run.data, tokenizer, 0, "held-out")


class Masked(EncoderObjective):
    """Prediction of the masked tokens of a text, and for pairs of texts whether the second one follows the first."""

    OPTIONS = MaskedOptions

    @classmethod
    def builder(cls, run: Run, tokenizer: Tokenizer, counts: Callable[[], Int64[np.ndarray, " V"]]) -> Build:
        """Return `build(rng, row, length)`, which converts a row of `train.rows.encoder_rows` to the fields of `Batch`.

        A sequence is [CLS] A [SEP], or [CLS] A [SEP] B [SEP] with one or two separators between A and B, depending on the
        tokenizer; XLNet has [CLS] last. Several documents in a sequence are separated by [SEP], or by XLNet's end-of-document
        token.

        tokens, segments (1, 2, ...; 0 = padding), positions (from 0 in each sequence) and types (1 from the second text on, if
        the model has two types) are int32 [length]. predict_at, targets (int32) and weights (float32: 1, or 0 for the rest of P)
        are [P]; P is the largest number of predictions in a row, rounded up so that the loss's chunks are equal. A model with a
        next-sentence head or XLNet's special tokens also gets summary_at, the position of each [CLS], and a next-sentence head
        gets labels, `IGNORED` for the rest of Q; both are int32 [Q], and Q is the largest number of sequences in a row.

        The number of predicted tokens and the choice of random tokens follow the distillation code if rare tokens are preferred,
        else fairseq for the kinds of tokenizer of RoBERTa and ModernBERT, and Google's code for BERT's; see
        `train.targets.masking.Masks`.

        Args:
            counts: returns the number of occurrences of each id in the training text; called only if rare tokens are preferred.
        """
        special_tokens = tokenizer.special_tokens
        assert special_tokens is not None, "rows are planned with a tokenizer that has special tokens"
        paired, labelled = run.data.rows in PAIRED, run.model.task == PRETRAINING
        masks = _masks(run, tokenizer, special_tokens, counts)
        shortest = special_tokens.between + 4 if paired else 3
        packed = run.data.pack or run.data.rows == "packed"
        predicted = (
            max_predictions_for_packed_row(masks, run.data.length, shortest)
            if packed
            else masks.max_predictions_for(run.data.length)
        )
        chunks = _num_chunks(predicted, run.loss_chunk)
        predicted = -(-predicted // chunks) * chunks
        sequences = run.data.length // shortest if packed else 1
        typed = is_typed(run.model.types, special_tokens)

        def build(rng: np.random.Generator, row: EncoderRow, length: int) -> dict[str, np.ndarray]:
            tokens = np.full(length, special_tokens.pad, np.int32)
            segments, positions, types = np.zeros((3, length), np.int32)
            predict_at, targets = np.zeros((2, predicted), np.int32)
            weights = np.zeros(predicted, np.float32)
            summary_at, labels = np.zeros(sequences, np.int32), np.full(sequences, IGNORED, np.int32)
            start, first = 0, 0
            for number, sequence in enumerate(row):
                ids, kinds = with_special_tokens(sequence, special_tokens)
                ordinary = (ids != special_tokens.cls) & (ids != special_tokens.sep) & (ids != special_tokens.end)
                indices, replacements = choose_masks(rng, ids, ordinary, masks)
                end, last = start + len(ids), first + len(indices)
                tokens[start:end] = ids
                tokens[start + indices] = replacements
                segments[start:end] = number + 1
                positions[start:end] = np.arange(len(ids))
                types[start:end] = kinds * typed
                predict_at[first:last], targets[first:last], weights[first:last] = start + indices, ids[indices], 1
                summary_at[number] = start + special_tokens.summary(len(ids))
                if sequence.label is not None:
                    labels[number] = sequence.label
                start, first = end, last
            arrays = {"tokens": tokens, "segments": segments, "positions": positions, "types": types}
            arrays |= {"predict_at": predict_at, "targets": targets, "weights": weights}
            if labelled or special_tokens.cls_last:
                arrays["summary_at"] = summary_at
            return arrays | {"labels": labels} if labelled else arrays

        return build

    @classmethod
    def target_options(cls, run: Run, counts: Callable[[], Int64[np.ndarray, " V"]]) -> dict[str, Any]:
        """Return the options of the rows and of their masks; where rare tokens are preferred also the digest of `counts`.

        `masking.static` is not among them: a row of held-out text has one mask.
        """
        data, masking = run.data, run.options.masking
        names = ("rate", "masked", "random", "most", "whole_words", "rare")
        values: dict[str, Any] = {"data.rows": data.rows, "data.length": data.length, "data.pack": data.pack}
        values |= {"data.short": data.short} if data.rows == "segment_pairs" else {}
        values |= {f"masking.{name}": getattr(masking, name) for name in names}
        return values | ({"token counts": digest_of("", [counts().tobytes()])} if masking.rare else {})


OBJECTIVE = Masked


def _num_chunks(predicted: int, chunk: int) -> int:
    """Return the number of chunks of at most `chunk` predictions; 1 if `chunk` is no number of predictions."""
    return -(-predicted // chunk) if chunk > 0 else 1


def _masks(run: Run, tokenizer: Tokenizer, special_tokens: SpecialTokens, counts: Callable[[], Int64[np.ndarray, " V"]]) -> Masks:
    options, special = run.options.masking, list(special_tokens.special)
    rule: Rule = "distilbert" if options.rare > 0 else "roberta" if tokenizer.mask_absorbs_space else "bert"
    rare = None
    if options.rare > 0:
        rare = np.maximum(counts(), 1) ** -float(options.rare)
        rare[special] = 0
    entries = np.arange(tokenizer.vocab_size, dtype=np.int32)
    return Masks(
        rate=options.rate,
        masked=options.masked,
        random=options.random,
        max_predictions=options.most or max(1, math.ceil(options.rate * run.data.length)),
        rule=rule,
        mask=special_tokens.mask,
        entries=np.delete(entries, special) if rule == "roberta" else entries,
        starts=tokenizer.word_starts() if options.whole_words else None,
        weights=rare,
    )


def with_special_tokens(
    sequence: Sequence, special_tokens: SpecialTokens
) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
    """Return (ids, token types) of a sequence with special tokens. An end-of-document token separates documents."""
    if sequence.pair:
        first, second = sequence.parts
        return special_tokens.pair(first.ids, second.ids)
    parts = [sequence.parts[0].ids]
    for part in sequence.parts[1:]:
        parts += [np.array([special_tokens.end]), part.ids]
    return special_tokens.single(np.concatenate(parts))
