"""Logits processors: frozen probabilities of `transformers`, padding without effect, no cost where they are not used."""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import make
from tests.support import generation_settings as settings_of
from tests.support.generation_settings import AFTER, CASES, FIRST, probabilities
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.generation import logits_processors
from zoo.generation.decoding_settings import UNCHANGED, Processors

FROZEN = json.loads((make.FOLDER / "logits_processors.json").read_text())
every_kind = pytest.mark.parametrize("kind", ["gpt2", pytest.param("t5", marks=pytest.mark.full)])


def compare(kind: str, case: str) -> None:
    settings = {"decoder_start_token_id": FIRST} | CASES[case]
    several = [settings_of.case_arguments(size, pairs=kind == "t5") for size in AFTER]
    logits, (_, *longest) = np.stack([logits for logits, *_ in several]), several[-1]
    actual = settings_of.probabilities_after(AFTER, settings, logits, *longest)
    np.testing.assert_allclose(actual, FROZEN[kind][case], atol=1e-6, rtol=0, err_msg=case)


@every_kind
@pytest.mark.parametrize("case", CASES)
def test_probabilities_are_the_frozen_ones_of_transformers(kind: str, case: str) -> None:
    compare(kind, case)


def later(change: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return `start_context` with a mistake."""
    start = logits_processors.start_context
    return lambda *arguments: change(start(*arguments))


MISTAKES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "padding is text": ("ngrams of 1", lambda context: dataclasses.replace(context, text=jnp.abs(context.text))),
    "one new token more": ("minimum", lambda context: dataclasses.replace(context, new=context.new + 1)),
    "the prompt does not count": ("minimum with the prompt", lambda context: dataclasses.replace(context, length=context.new)),
    "the output does not count": ("ngrams of 2", lambda context: dataclasses.replace(context, text=context.text[:, :1])),
    "no source": ("ngrams of the source", lambda context: dataclasses.replace(context, source=context.source - 1)),
}


@pytest.mark.planted(5)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_noticed(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, change = MISTAKES[mistake]
    monkeypatch.setattr(settings_of, "start_context", later(change))
    with pytest.raises(AssertionError):
        compare("gpt2", case)


def test_a_row_in_a_padded_batch_is_that_row_alone() -> None:
    rng = np.random.default_rng(0)
    for number in range(4):
        values = settings_of.random_settings(rng, settings_of.VOCABULARY, samples=number % 2 > 0)
        prompts = [rng.integers(3, settings_of.VOCABULARY, size).tolist() for size in (1, 3, 6)]
        outputs = rng.integers(3, settings_of.VOCABULARY, (3, 2 * number)).tolist()
        logits = np.float32(3 * rng.standard_normal((3, settings_of.VOCABULARY)))
        together = probabilities(values, logits, prompts, outputs, ())
        for row in range(3):
            alone = probabilities(values, logits[row : row + 1], prompts[row : row + 1], outputs[row : row + 1], ())
            np.testing.assert_array_equal(together[row], alone[0])


def test_processors_that_change_nothing_have_no_state_and_no_operations() -> None:
    batch = Batch(**dict.fromkeys(("tokens", "segments", "positions"), jnp.ones((2, 3), jnp.int32)))
    assert logits_processors.start_context(UNCHANGED, batch, 8, 4) is None
    logits = jnp.zeros((2, 5))
    assert logits_processors.process_logits(logits, UNCHANGED, (), None) is logits
    # Those that read no text keep none, and text of a limited size forgets its oldest tokens.
    assert logits_processors.start_context(Processors(min_tokens=2), batch, 8, 4).text is None  # pyright: ignore[reportOptionalMemberAccess]
    context = logits_processors.start_context(Processors(no_repeat_ngram=2), batch, 4, 4)
    for token in (7, 8):
        context = context.append(jnp.full(2, token, jnp.int32))  # pyright: ignore[reportOptionalMemberAccess]
    assert jax.device_get(context.text).tolist() == [[1, 1, 7, 8]] * 2  # pyright: ignore[reportOptionalMemberAccess]


REFUSED: dict[str, list[Any]] = {
    "repetition_penalty": [0.0, math.inf, math.nan],
    "no_repeat_ngram": [-1],
    "min_tokens": [-2],
    "bad_words": [((),), ((1, -1),)],
    "forced_first": [-1],
    "suppressed": [(-1, 3)],
}


def test_settings_out_of_range_are_refused() -> None:
    for field, value in ((field, value) for field, values in REFUSED.items() for value in values):
        with pytest.raises(BadInput, match=rf"^--{field.replace('_', '-')} [^\n]*$"):
            Processors(**{field: value})
