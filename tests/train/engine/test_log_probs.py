"""Log-probabilities of sampled tokens: those of the sampler are those of the forward pass that training computes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import responses
from tests.support.enumeration import float64
from tests.support.small import random_params, shallow
from tests.support.toy_policy import wide
from train.engine.log_probs import token_log_probs
from zoo.batch import Batch
from zoo.generation import decode_loop, sampling
from zoo.generation.decode_loop import Decoder
from zoo.generation.decoding_settings import GREEDY, Sampling
from zoo.models import Model

LENGTHS, COUNT, LONGEST = (6, 3, 1), 6, 6
PROMPTS = [np.random.default_rng(length).integers(3, 300, length) for length in LENGTHS]


@functools.cache
def network(family: str, dtype: str = "float32") -> tuple[Model, Any]:
    net = shallow(family)
    return net, random_params(net) if dtype == "float32" else wide(random_params(net))


def left_padded(*, from_the_end: bool) -> Batch:
    """Return the prompts with positions from 0, or with those of a row in which all of them end at the same position."""
    tokens, segments, positions = np.zeros((3, len(PROMPTS), LONGEST), np.int32)
    for row, prompt in enumerate(PROMPTS):
        tokens[row, -len(prompt) :], segments[row, -len(prompt) :] = prompt, 1
        positions[row, -len(prompt) :] = (LONGEST - len(prompt)) * from_the_end + np.arange(len(prompt))
    return Batch(tokens=tokens, segments=segments, positions=positions)


@functools.cache
def sample(
    family: str, settings: Sampling, *, log_probs: bool = True, from_the_end: bool = False, dtype: str = "float32"
) -> tuple[np.ndarray, Any]:
    """Return (tokens, log-probabilities), each [B, COUNT]."""
    net, params = network(family, dtype)
    prompts = left_padded(from_the_end=from_the_end)
    if net.is_encoder_decoder:
        begin = np.zeros((len(PROMPTS), 1), np.int32)
        prompts = Batch(tokens=begin, segments=begin + 1, positions=begin, source=prompts)
    decoder = Decoder(net, net.config.vocab, np.dtype(dtype), log_probs=log_probs)
    numbers = np.arange(2 * len(PROMPTS), dtype=np.uint32).reshape(2, -1)
    state, first = decode_loop.start_decoding(decoder, settings, COUNT - 1, params, prompts, np.uint32(0), numbers)
    _, rest = decode_loop.sample_tokens(decoder, settings, COUNT - 1, params, state)
    tokens = np.concatenate([first.tokens, rest.tokens]).T
    return tokens, np.concatenate([first.log_probs, rest.log_probs]).T if log_probs else (first.log_probs, rest.log_probs)


@functools.partial(jax.jit, static_argnums=(0, 3))
def forward(net: Model, params: Any, batch: Batch, temperature: float) -> tuple[jax.Array, jax.Array]:
    """Return the log-probabilities, and the largest logit by its size."""
    logits = net.unembed(params, net.apply(params, batch).hidden)[..., : net.config.vocab] / temperature
    return token_log_probs(net, params, batch, temperature=temperature), jnp.abs(logits).max()


def check_one_distribution(
    family: str, temperature: float, *, trained_at: float | None = None, dtype: str = "float32", **options: Any
) -> None:
    net, params = network(family, dtype)
    tokens, sampled = sample(family, Sampling(temperature=temperature), dtype=dtype, **options)
    batch = responses.rows(net, PROMPTS, tokens, length=LONGEST + COUNT, target_length=COUNT)
    trained, largest = jax.device_get(forward(net, params, batch, trained_at or temperature))
    counted = np.asarray(batch.weights) > 0
    assert (counted.sum(1) == COUNT).all() and (trained[~counted] == 0).all()
    bound = 2e-6 * largest + 1e-6 if dtype == "float32" else 1e-12
    assert trained.dtype == sampled.dtype == dtype
    np.testing.assert_allclose(trained[counted].reshape(sampled.shape), sampled, atol=bound, rtol=0)
    assert sampled.min() < -1


FAST = ("gpt", 1.0)
FULL = (("ettin_decoder", 1.0), ("gpt", 0.5), ("llama", 1.0), ("t5", 2.0))
CASES = [(family, temperature) for family in ("ettin_decoder", "gpt", "llama", "t5") for temperature in (1.0, 0.5, 2.0)]
MARKS: dict[tuple[str, float], Any] = {FAST: (), **dict.fromkeys(FULL, pytest.mark.full)}


@pytest.mark.parametrize(
    ("family", "temperature"), [pytest.param(*case, marks=MARKS.get(case, pytest.mark.slow)) for case in CASES]
)
def test_sampled_and_trained_log_probabilities_are_of_one_distribution(family: str, temperature: float) -> None:
    check_one_distribution(family, temperature)


@pytest.mark.full
@pytest.mark.parametrize("family", ["gpt", "t5"])
def test_in_float64_they_agree_to_the_last_digits(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    update, sample_token = jax.lax.dynamic_update_slice, sampling.sample_token

    # With 64 bits, Python's numbers and the results of argmax are int64, and positions and tokens of the loop are int32.
    def update_equal_types(array: Any, part: Any, starts: Any) -> Any:
        return update(array, part.astype(array.dtype), [jnp.asarray(start, jnp.int32) for start in starts])

    def sample_int32(*arguments: Any) -> Any:
        token, *rest = sample_token(*arguments)
        return token.astype(jnp.int32), *rest

    monkeypatch.setattr(jax.lax, "dynamic_update_slice", update_equal_types)
    monkeypatch.setattr(sampling, "sample_token", sample_int32)
    with float64():
        for temperature in (0.5, 1.0, 2.0):
            check_one_distribution(family, temperature, dtype="float64")


@pytest.mark.planted
@pytest.mark.parametrize("mistake", [{"trained_at": 2.0}, {"from_the_end": True}])
def test_another_temperature_and_other_positions_are_noticed(mistake: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        check_one_distribution("gpt", 1.0, **mistake)


def check_logits_of_responses_alone(longest: int) -> None:
    """Check log-probabilities and their gradient, with responses of different lengths, one of which ends its row."""
    net, params = network("gpt")
    texts = [np.random.default_rng(length).integers(3, 300, length) for length in (COUNT, 1, COUNT - 1)]
    batch = responses.rows(net, PROMPTS, texts, length=LONGEST + COUNT, target_length=0)
    factors = jnp.asarray(np.random.default_rng(0).standard_normal(batch.weights.shape), jnp.float32)

    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.value_and_grad, has_aux=True)
    def compute(params: Any, longest: int | None) -> tuple[jax.Array, jax.Array]:
        values = token_log_probs(net, params, batch, longest=longest)
        return (values * factors).sum(), values

    ((_, values), gradient), ((_, expected), expected_gradient) = (compute(params, limit) for limit in (longest, None))
    np.testing.assert_allclose(values, expected, atol=2e-6)
    assert (np.asarray(values) != 0).sum() == 2 * COUNT
    jax.tree.map(lambda leaf, other: np.testing.assert_allclose(leaf, other, atol=2e-6), gradient, expected_gradient)


def test_logits_of_responses_alone_give_the_same_log_probabilities_and_gradients() -> None:
    check_logits_of_responses_alone(COUNT)


@pytest.mark.planted
def test_a_response_that_is_longer_than_the_limit_is_noticed() -> None:
    with pytest.raises(AssertionError):
        check_logits_of_responses_alone(COUNT - 1)


def test_log_probabilities_change_no_token_and_are_of_the_filtered_distribution() -> None:
    tokens, none = sample("gpt", Sampling(), log_probs=False)
    assert none == (None, None) and (tokens == sample("gpt", Sampling())[0]).all()
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((4, 9)), jnp.float32)
    assert (sampling.log_probs(logits, GREEDY, logits.argmax(-1)) == 0).all()
    # Of the two tokens that top_k leaves, the probabilities add up to 1.
    settings = Sampling(temperature=0.7, top_k=2)
    remaining = sampling.filter_logits(logits, settings)
    both = [sampling.log_probs(remaining, settings, token) for token in jax.lax.top_k(logits, 2)[1].T]
    np.testing.assert_allclose(np.exp(both).sum(0), 1, rtol=1e-6)
