"""Permutation language modelling: predict tokens in a random order (Yang et al. 2019, sections 2.2 to 2.5)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int64

from train.config.objectives import PermutationOptions
from train.config.run_config import Run
from train.objectives.student import StudentObjective
from train.rows import continued_rows
from train.rows.batches import Build
from train.rows.continued_rows import NUM_SPECIAL_TOKENS, ContiguousRows, Window
from train.rows.token_cache import Tokens
from train.targets import factorization_orders
from train.targets.masking import apply_masking
from train.tokenizers.special_tokens import SpecialTokens
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput

PRETRAINING = "pretraining"
"""Task of a model that also has a next-sentence head (a row of the paper's Table 6)."""


class Permuted(StudentObjective):
    """Prediction of tokens in a random order, and for pairs of texts whether the second one follows the first."""

    OPTIONS = PermutationOptions

    @classmethod
    def plan_rows(cls, tokens: Tokens, run: Run, tokenizer: Tokenizer) -> ContiguousRows:
        """Return the rows of the training text, in order for a model with a memory or with `permutation.ordered`.

        See `continued_rows.plan_streams`.
        """
        return _streams(tokens, run, tokenizer)

    @classmethod
    def scored_rows(cls, tokens: Tokens, run: Run, tokenizer: Tokenizer, stride: int) -> ContiguousRows:
        """Return the rows of the held-out text, planned like the training rows and used in the same order."""
        return _streams(tokens, run, tokenizer, where="--data.valid-paths: the held-out text")

    @classmethod
    def builder(cls, run: Run, tokenizer: Tokenizer, counts: Callable[[], Int64[np.ndarray, " V"]]) -> Build:
        """Return `build(rng, row, length)`, which converts a row of `train.rows.continued_rows` to the fields of `Batch`.

        The row is the reused tokens, then A <sep> B <sep> <cls>. tokens, types (0; 1 for B and its separator, 2 for <cls>) and
        order are int32 [length]. order has the rank of each token: the reused part comes before the rest; in each part, tokens
        that are not predicted have the lowest rank, and targets and special tokens follow in a random order. query_at, targets
        (int32) and weights (float32) are [P]; P is exactly `permutation.predictions`, divided between both parts by their
        length. For bidirectional data there is also backward, True if the row is read from right to left.

        A model with a next-sentence head also gets summary_at, the position of <cls>, and labels, 1 if B is random; both int32
        [1].

        Denoising has predict_at instead of query_at, masked targets among the tokens, and a single rank for each part: the reused
        part does not see the rest, which would reveal through the memory what the next row predicts.

        Raises:
            BadInput: another tokenizer.
        """
        options, masking = run.options.permutation, run.options.masking
        reuse, text_length = run.model.reuse, run.data.length - run.model.reuse - NUM_SPECIAL_TOKENS
        special_tokens, num_targets = _special_tokens(tokenizer), options.num_targets(run.data.length, reuse)
        labelled = run.model.task == PRETRAINING
        begins, entries = tokenizer.word_starts(), np.arange(tokenizer.vocab_size, dtype=np.int32)

        def build(rng: np.random.Generator, row: Window, length: int) -> dict[str, np.ndarray]:
            first, second, follows = continued_rows.sample_texts(rng, row, text_length)
            reused = row.reading.ids[row.begin : row.begin + reuse]
            tokens = np.concatenate(
                [reused, first, [special_tokens.sep], second, [special_tokens.sep, special_tokens.cls]]
            ).astype(np.int32)
            text = np.ones(length, bool)
            text[[reuse + len(first), length - 2, length - 1]] = False
            types = np.zeros(length, np.int32)
            types[reuse + len(first) + 1 :] = 1
            types[-1] = 2
            # From right to left, a word begins with its last token, after the first token of the word to its right.
            starts = np.append(True, begins[tokens[:-1]]) if row.reading.backward else begins[tokens]
            parts = [slice(0, reuse), slice(reuse, length)]
            targets = np.concatenate(
                [
                    factorization_orders.choose_targets(rng, starts[part], text[part], count, options)
                    for part, count in zip(parts, num_targets, strict=True)
                ]
            )
            indices = np.flatnonzero(targets).astype(np.int32)
            arrays = {"tokens": tokens, "types": types, "targets": tokens[indices], "weights": np.ones(len(indices), np.float32)}
            if labelled:
                arrays |= {"summary_at": np.array([length - 1], np.int32), "labels": np.array([int(not follows)], np.int32)}
            if options.bidirectional:
                arrays["backward"] = np.array(row.reading.backward)
            bases = [-1, reuse or -1]
            if options.kind == "denoising":
                inputs = tokens.copy()
                inputs[indices] = apply_masking(
                    rng, tokens[indices], masking.masked, masking.random, special_tokens.mask, entries
                )
                order = np.repeat(bases, [reuse, length - reuse]).astype(np.int32)
                return arrays | {"tokens": inputs, "order": order, "predict_at": indices}
            later = targets | ~text
            ranks = [
                factorization_orders.factorization_ranks(rng, later[part], options.window, base)
                for part, base in zip(parts, bases, strict=True)
            ]
            return arrays | {"order": np.concatenate(ranks), "query_at": indices}

        return build

    @classmethod
    def target_options(cls, run: Run, counts: Callable[[], Int64[np.ndarray, " V"]]) -> dict[str, Any]:
        """Return the options of the streams, the targets and their factorization order.

        The size of the memory, and the order in which training uses rows, are not among them.
        """
        options, data = run.options.permutation, run.data
        values: dict[str, Any] = {"data.length": data.length, "data.batch": data.batch, "model.reuse": run.model.reuse}
        names = [field.name for field in dataclasses.fields(options) if field.name != "ordered"]
        values |= {f"permutation.{name}": getattr(options, name) for name in names}
        if options.kind == "denoising":
            values |= {f"masking.{name}": getattr(run.options.masking, name) for name in ("masked", "random")}
        return values


OBJECTIVE = Permuted


def _streams(tokens: Tokens, run: Run, tokenizer: Tokenizer, **where: str) -> ContiguousRows:
    data, memory, reuse, options = run.data, run.model.memory, run.model.reuse, run.options.permutation
    _special_tokens(tokenizer)
    return continued_rows.plan_streams(
        tokens,
        tokenizer,
        length=data.length,
        reuse=reuse,
        batch=data.batch,
        bidirectional=options.bidirectional,
        ordered=memory > 0 or options.ordered,
        predictions=sum(options.num_targets(data.length, reuse)),
        **where,
    )


def _special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    if tokenizer.special_tokens is None or not tokenizer.special_tokens.cls_last:
        raise BadInput(
            f"--tokenizer.kind {tokenizer.kind}: its <cls> does not end a text; choose xlnet, or a --tokenizer.path of that kind"
        )
    return tokenizer.special_tokens
