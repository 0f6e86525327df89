"""Likelihoods of continuations under every family equal a direct sum of log-probabilities, by the method of the family."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from eval.inference import encoder_likelihoods, text_likelihoods
from eval.inference.likelihood import Likelihood
from eval.inference.text_likelihoods import find_method
from tests.support import encoders, text_tasks
from tests.support.generation import seq2seq_loaded
from train.config import objectives, run_config
from train.weights.load import Loaded
from zoo.batch import Batch
from zoo.errors import BadInput

TEXTS = [("The old white whale", " sleeps by the ship."), ("The capital of France", " is Paris"), ("", "Parisian whales sleep.")]
CALLS = [("Call me", " Ishmael. Some years"), ("", "Call me Ishmael."), ("Some years ago, never", " mind how long")]


def computed(subject: Loaded, texts: Any, method: Any, **options: Any) -> list[Likelihood]:
    return text_likelihoods.text_likelihoods(subject, texts, method=method, batch=4, dtype=jnp.float32, **options)


@functools.cache
def _forward(net: Any) -> Any:
    def forward(params: Any, batch: Batch) -> jax.Array:
        out = net.apply(params, batch)
        return net.unembed(params, out.hidden if out.predicted is None else out.predicted)

    return jax.jit(forward)


def logs(subject: Loaded, batch: Batch) -> np.ndarray:
    """float64 [T, V]: log-probabilities at each prediction of a row alone, without padding."""
    logits = np.asarray(_forward(subject.model)(subject.params, batch)[0], np.float64)[:, : subject.model.config.vocab]
    return np.asarray(log_softmax(logits, -1))


def split(subject: Loaded, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The ids of a context, and of the rest of the joined text."""
    ids = subject.tokenizer.encode(context + continuation).tolist()
    before = subject.tokenizer.encode(context).tolist() if context else []
    assert ids[: len(before)] == before
    return before, ids[len(before) :]


def masked_sum(context: list[int], continuation: list[int], *, words: bool = False, family: str = "bert") -> float:
    subject = encoders.loaded(family)
    special, ids, starts = subject.tokenizer.special_tokens, [*context, *continuation], subject.tokenizer.word_starts()
    total = 0.0
    assert special is not None
    for place in range(len(context), len(ids)):
        row = [special.cls, *ids, special.sep]
        row[place + 1] = special.mask
        for later in range(place + 1, len(ids)):
            if not words or starts[ids[later]]:
                break
            row[later + 1] = special.mask
        total -= float(encoders.logs(subject, row, place + 1)[ids[place]])
    return total


@pytest.mark.parametrize("words", [False, True])
def test_an_encoder_masks_each_token_of_the_continuation_and_none_of_the_context(words: bool) -> None:
    subject = encoders.loaded("bert")
    pairs = [split(subject, *text) for text in TEXTS]
    assert any(not subject.tokenizer.word_starts()[token] for _, continuation in pairs for token in continuation)
    results = computed(subject, [*TEXTS, TEXTS[0]], "within_word" if words else "pseudo")
    for result, pair in zip(results, pairs, strict=False):
        assert result.nats == pytest.approx(masked_sum(*pair, words=words), rel=1e-5) and result.tokens == len(pair[1])
    assert results[3] == results[0]
    assert all(abs(masked_sum(*pair, words=True) - masked_sum(*pair)) > 1e-3 for pair in pairs[2:])


@pytest.mark.planted(2)
def test_a_wrong_border_and_an_unmasked_rest_of_a_word_change_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, right = encoders.loaded("bert"), encoder_likelihoods._masked_rows
    expected = masked_sum(*split(subject, *TEXTS[2]), words=True)

    def score(rows: Any) -> float:
        monkeypatch.setattr(encoder_likelihoods, "_masked_rows", rows)
        return computed(subject, [TEXTS[2]], "within_word")[0].nats

    assert score(right) == pytest.approx(expected, rel=1e-5)
    late = score(lambda encoder, ids, begin, *rest: right(encoder, ids, begin + 1, *rest))
    revealed = score(lambda encoder, ids, begin, starts, *rest: right(encoder, ids, begin, None, *rest))
    assert late != pytest.approx(expected, rel=1e-3) and revealed != pytest.approx(expected, rel=1e-4)


def ordered_sum(context: list[int], continuation: list[int], order: list[int]) -> float:
    """Predict the continuation's tokens in an order, each from a row in which no later token of the order has its own id."""
    subject, ids, total = encoders.loaded("xlnet", "permutation"), np.array([*context, *continuation]), 0.0
    places = [len(context) + int(place) for place in np.argsort(order)]
    for step, at in enumerate(places):
        garbage = ids.copy()
        garbage[places[step:]] = 50
        ranks = np.full(len(ids), -1, np.int32)
        ranks[places[:step]] = np.arange(step)
        ranks[places[step:]] = len(ids)
        batch = Batch(tokens=jnp.array([garbage]), order=jnp.array([ranks]), query_at=jnp.array([[at]]))
        total -= float(logs(subject, batch)[0, ids[at]])
    return total


def test_an_xlnet_predicts_a_continuation_from_left_to_right_or_in_random_orders() -> None:
    subject = encoders.loaded("xlnet", "permutation")
    text = TEXTS[1]
    context, continuation = split(subject, *text)
    size = len(continuation)
    forwards = computed(subject, [text, text], "left_to_right")
    assert forwards[0].nats == pytest.approx(ordered_sum(context, continuation, list(range(size))), rel=1e-5)
    assert forwards[0] == forwards[1] and forwards[0].tokens == size
    orders = [np.random.default_rng([len(context), size, number]).permutation(size).tolist() for number in range(2)]
    mean = np.mean([ordered_sum(context, continuation, order) for order in orders])
    assert computed(subject, [text], "permutations", orders=2)[0].nats == pytest.approx(mean, rel=1e-5)


@pytest.mark.full
def test_an_xlnet_refuses_or_cuts_a_text_longer_than_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.inference.encoder_runner.UNLIMITED", 12)
    subject = encoders.loaded("xlnet", "permutation")
    context, continuation = split(subject, "The whale is seen by the old men of", " the ship.")
    assert len(context) + len(continuation) > 12 > len(continuation)
    text = ("The whale is seen by the old men of", " the ship.")
    with pytest.raises(BadInput, match=r"pair 0: \d+ tokens, but a row has 12"):
        computed(subject, [text], "left_to_right")
    (result,) = computed(subject, [text], "left_to_right", too_long="cut")
    left = context[len(context) + len(continuation) - 12 :]
    assert result.cut == len(context) - len(left)
    assert result.nats == pytest.approx(ordered_sum(left, continuation, list(range(len(continuation)))), rel=1e-5)


def target_sum(subject: Loaded, source: list[int], prefix: list[int], target: list[int]) -> float:
    """Sum up over the rows of one decoder, which reads the tokens before each one."""
    batch = Batch(tokens=jnp.array([[*prefix, *target[:-1]]]), source=Batch(tokens=jnp.array([source])))
    values = logs(subject, batch)[len(prefix) - 1 :]
    return -float(sum(values[step, token] for step, token in enumerate(target)))


@pytest.mark.parametrize("family", ["t5", pytest.param("transformer", marks=pytest.mark.full)])
@pytest.mark.parametrize("method", ["target", "sentinel"])
def test_an_encoder_decoder_reads_the_context_and_predicts_the_continuation(family: str, method: str) -> None:
    subject = seq2seq_loaded(family)
    special = subject.tokenizer.text_special_tokens
    assert special is not None
    results = computed(subject, CALLS, method)
    for (context, continuation), result in zip(CALLS, results, strict=True):
        if method == "target":
            ids = subject.tokenizer.encode(context).tolist(), subject.tokenizer.encode(continuation.strip()).tolist()
            source, prefix = [*ids[0], special.end], [special.pad]
        else:
            ids = split(subject, context, continuation)
            source, prefix = [*ids[0], special.sentinels[0], special.end], [special.pad, special.sentinels[0]]
        assert result.tokens == len(ids[1])
        assert result.nats == pytest.approx(target_sum(subject, source, prefix, ids[1]), rel=1e-5)


@pytest.mark.planted(2)
def test_a_target_without_its_sentinel_and_a_source_without_its_end_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = seq2seq_loaded("t5")
    expected = computed(subject, CALLS[:1], "sentinel")[0].nats
    sources, pairs = text_likelihoods._sentinel_ids(subject, CALLS[:1])
    for wrong in ((sources, [(pairs[0][0][:1], pairs[0][1])]), ([sources[0][:-1]], pairs)):
        monkeypatch.setattr(text_likelihoods, "_sentinel_ids", lambda *_, wrong=wrong: wrong)
        assert computed(subject, CALLS[:1], "sentinel")[0].nats != pytest.approx(expected, rel=1e-4)


def test_padding_of_a_source_is_not_read() -> None:
    """Sources of several lengths share a batch, and none changes another's result."""
    subject = seq2seq_loaded("t5")
    alone = [computed(subject, [text], "sentinel")[0].nats for text in CALLS]
    assert [result.nats for result in computed(subject, CALLS, "sentinel")] == pytest.approx(alone, rel=1e-5)


def test_a_method_follows_from_what_a_model_is_trained_for() -> None:
    xlnet, t5, bert = encoders.loaded("xlnet", "permutation"), seq2seq_loaded("t5"), encoders.loaded("bert")
    assert [find_method(subject) for subject in (xlnet, t5, bert, text_tasks.subject())] == [
        "left_to_right",
        "target",
        "pseudo",
        "causal",
    ]
    spans = _run(t5, objectives.DenoisingOptions())
    assert find_method(spans) == "sentinel" and find_method(spans, "target") == "target"
    kind = objectives.PermutationOptions().permutation
    options = objectives.PermutationOptions(permutation=dataclasses.replace(kind, kind="denoising"))
    assert find_method(_run(xlnet, options)) == "pseudo"
    with pytest.raises(BadInput, match=r"--likelihood sentinel: small bert is a bert; choose auto or pseudo or within_word"):
        find_method(bert, "sentinel")
    with pytest.raises(BadInput, match=r"--likelihood pseudo: small is a gpt; choose auto$"):
        find_method(text_tasks.subject(), "pseudo")
    with pytest.raises(BadInput, match="pair 1: the tokenizer returns no ids for ' '"):
        computed(t5, [CALLS[0], ("Call", " ")], "target")


def _run(subject: Loaded, options: Any) -> Loaded:
    """The same model as a run with options of an objective."""
    run = run_config.Run(recipe="", model=subject.model.config, options=options, data=options.data())
    return dataclasses.replace(subject, run=run)
