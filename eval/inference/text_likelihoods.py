"""Log-likelihoods of texts after other texts under a model of any family: decoders, encoder-decoders and encoders.

Methods, by what a model is trained to predict:

- causal: -log p(continuation | context) from left to right, of a decoder.
- target: the context is an encoder-decoder's source, with its end token, and the continuation the beginning of its target. No end
  token of the target is scored, so that continuations are compared as those of a decoder are.
- sentinel: the same of an encoder-decoder that is trained on removed spans (Raffel et al. 2020, section 3.1.4): the source is
  the context and <extra_id_0>, the target is <extra_id_0> and the continuation, which alone is scored. A text without a context
  is one removed span of an otherwise empty source.
- pseudo: pseudo-log-likelihood of an encoder, each token of the continuation masked alone between all others of both texts
  (Salazar et al. 2020, section 2.2). It is no probability of the continuation.
- within_word: the same, with the later tokens of a token's word masked too, so that they do not reveal it (Kauf and Ivanova 2023,
  "A Better Way to Do Masked Language Model Scoring", the variant from left to right within a word).
- left_to_right: log-likelihood of a permutation language model along one factorization order: the context is visible to all, and
  the continuation follows from left to right. It is a probability of the continuation.
- permutations: the mean of the log-likelihoods along random orders of the continuation, after the context (Yang et al. 2019,
  section 2.2). Continuations of one length after contexts of one length have the same orders.

`auto` is causal for decoders, pseudo for encoders with masks, and left_to_right for an XLNet, or pseudo if it is trained by
denoising, which has no orders. An encoder-decoder's is sentinel if it is a run that was trained on removed spans, else target, as
in lm-evaluation-harness.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int32

from eval.inference.batch_loop import Progress, no_progress
from eval.inference.encoder_likelihoods import ordered_likelihoods, pseudo_likelihoods
from eval.inference.encoder_runner import Encoder
from eval.inference.likelihood import Likelihood, TooLong, encode, likelihoods
from eval.inference.likelihood_methods import LikelihoodMethod
from train.config.objectives import DenoisingOptions, PermutationOptions, TextToTextOptions
from train.rows.seq2seq_rows import text_special_tokens_of
from train.weights.load import Loaded
from zoo.errors import BadInput

Method = Literal["causal", "target", "sentinel", "pseudo", "within_word", "left_to_right", "permutations"]

ORDERS = 8
"""Orders of a continuation by default."""


def find_method(subject: Loaded, chosen: LikelihoodMethod = "auto") -> Method:
    """Return the method by which a model's likelihoods are computed.

    Raises:
        BadInput: a chosen method that the model does not have, by the name of the option; or a model that predicts no text.
    """
    possible = _possible_methods(subject)
    if not possible:
        raise BadInput(f"{subject.where}: a {subject.model.family} for the task {subject.model.task} predicts no text")
    if chosen == "auto":
        return possible[0]
    if chosen not in possible:
        choices = " or ".join(("auto", *(method for method in possible if method in get_args(LikelihoodMethod))))
        raise BadInput(f"--likelihood {chosen}: {subject.where} is a {subject.model.family}; choose {choices}")
    return chosen


def method_items(method: Method, orders: int) -> dict[str, Any]:
    """Return what a score's `Result.items` says of its method: the number of random orders, if there are any."""
    return {"orders": orders or ORDERS} if method == "permutations" else {}


def text_likelihoods(
    subject: Loaded,
    texts: Sequence[tuple[str, str]],
    *,
    method: Method,
    orders: int = 0,
    batch: int,
    dtype: Any,
    too_long: TooLong = "refuse",
    name: Any = "pair {}".format,
    progress: Progress = no_progress,
) -> list[Likelihood]:
    """Return the likelihood of each (context, continuation), in order; equal ones tie exactly.

    Args:
        method: as `find_method` returns it.
        orders: orders of `permutations`; 0 = `ORDERS`.
        too_long, batch, dtype, name, progress: see `likelihoods`. A text that an encoder masks may have any length: each token
            has a window of its own.

    Raises:
        BadInput: a continuation without tokens; see also `likelihoods`, `pseudo_likelihoods` and `ordered_likelihoods`.
    """
    if method in ("causal", "target", "sentinel"):
        options: dict[str, Any] = dict(batch=batch, dtype=dtype, too_long=too_long, name=name, progress=progress)
        if method == "causal":
            return likelihoods(subject, _nonempty(encode(subject.tokenizer, texts), texts, name), **options)
        sources, pairs = (_sentinel_ids if method == "sentinel" else _target_ids)(subject, texts)
        return likelihoods(subject, _nonempty(pairs, texts, name), sources=sources, **options)
    encoder = Encoder.of(subject, batch=batch, dtype=dtype)
    pairs = _nonempty([_without_end(subject, pair) for pair in encode(subject.tokenizer, texts)], texts, name)
    ids, begins = [np.concatenate(pair).astype(np.int32) for pair in pairs], [len(context) for context, _ in pairs]
    if method in ("pseudo", "within_word"):
        return pseudo_likelihoods(encoder, ids, begins, within_word=method == "within_word", name=name, progress=progress)
    count = 0 if method == "left_to_right" else orders or ORDERS
    return ordered_likelihoods(encoder, ids, begins, orders=count, too_long=too_long, name=name, progress=progress)


def _possible_methods(subject: Loaded) -> tuple[Method, ...]:
    """Return the methods of a model, the one of `auto` first."""
    model, options = subject.model, None if subject.run is None else subject.run.options
    objectives = model.definition.objectives
    if "causal" in objectives:
        return ("causal",)
    if model.is_encoder_decoder:
        tokens = subject.tokenizer.text_special_tokens
        if tokens is None or not tokens.sentinels:
            return ("target",)
        spans = isinstance(options, DenoisingOptions) and options.denoising.kind in ("spans", "iid")
        return ("sentinel", "target") if spans else ("target", "sentinel")
    if "permutation" in objectives:
        denoises = isinstance(options, PermutationOptions) and options.permutation.kind == "denoising"
        return ("pseudo", "within_word") if denoises else ("left_to_right", "permutations", "pseudo", "within_word")
    return ("pseudo", "within_word") if "masked" in objectives and not getattr(model.config, "causal", False) else ()


def _target_ids(subject: Loaded, texts: Sequence[tuple[str, str]]) -> tuple[list[np.ndarray], list[tuple[Any, Any]]]:
    """Return (sources, what the decoder reads and what it predicts); both texts are encoded alone, as training encodes them."""
    tokenizer, options = subject.tokenizer, None if subject.run is None else subject.run.options
    special = text_special_tokens_of(tokenizer)
    prefix = f"{options.pairs.prefix} " if isinstance(options, TextToTextOptions) and options.pairs.prefix else ""
    sources = [np.append(ids, special.end) for ids in tokenizer.encode_many([prefix + context for context, _ in texts])]
    targets = tokenizer.encode_many([continuation.lstrip() for _, continuation in texts])
    return sources, [([special.pad], ids) for ids in targets]


def _sentinel_ids(subject: Loaded, texts: Sequence[tuple[str, str]]) -> tuple[list[np.ndarray], list[tuple[Any, Any]]]:
    """Return the same for a removed span; both texts are encoded as one, as training encodes what it removes spans from."""
    special = text_special_tokens_of(subject.tokenizer)
    begin = special.sentinels[0]
    pairs = [_without_end(subject, pair) for pair in encode(subject.tokenizer, texts)]
    sources = [np.append(context, [begin, special.end]) for context, _ in pairs]
    return sources, [([special.pad, begin], continuation) for _, continuation in pairs]


def _without_end(subject: Loaded, pair: tuple[Any, Any]) -> tuple[Int32[np.ndarray, " a"], Int32[np.ndarray, " b"]]:
    """Return ids without the end-of-text that stands for an empty context, which only a decoder reads."""
    context, continuation = (np.asarray(ids, np.int32) for ids in pair)
    return (context[:0] if context.tolist() == [subject.tokenizer.end_of_text] else context), continuation


def _nonempty(pairs: list[Any], texts: Sequence[tuple[str, str]], name: Any) -> list[Any]:
    """Return the pairs, after refusing a continuation without tokens."""
    empty = next((number for number, (_, continuation) in enumerate(pairs) if not len(continuation)), None)
    if empty is not None:
        raise BadInput(f"{name(empty)}: the tokenizer returns no ids for {texts[empty][1][:60]!r}; leave the text out")
    return pairs
