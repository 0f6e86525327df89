"""Permutation likelihoods: the sum along each order follows the chain rule, and masks are predicted without being seen."""

import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from eval.commands.fill_mask import fill_masks
from eval.inference.encoder_likelihoods import _ordered_rows, permuted_nats, pseudo_nats
from eval.inference.encoder_runner import Encoder
from tests.support.commands import call
from tests.support.encoders import encoder, folder, loaded, texts
from zoo.batch import Batch
from zoo.errors import BadInput

LENGTH = 5
IDS = [np.array(ids, np.int32) for ids in ([12, 30, 15, 44, 9], [21, 33], [17, 17, 49, 25, 40, 11, 52, 12, 31, 18])]


def xlnet(**which: Any) -> Encoder:
    return encoder("xlnet", task="permutation", **which)


def log_probabilities(batch: Batch) -> np.ndarray:
    """Return float64 [P, V] at the queries of a row."""
    made = loaded("xlnet", "permutation")
    predicted = _apply()(made.params, batch).predicted
    return log_softmax(np.float64(made.model.unembed(made.params, predicted)[0])[:, : made.model.config.vocab], -1)


@functools.cache
def _apply() -> Any:
    return jax.jit(loaded("xlnet", "permutation").model.apply)


def conditional(ids: np.ndarray, known: list[int], at: int) -> float:
    """Return -log p of the token at a place, after the known ones in their order; all other tokens are replaced."""
    garbage = np.full_like(ids, 50)
    garbage[known] = ids[known]
    order = np.full(len(ids), len(ids), np.int32)
    order[known], order[at] = np.arange(len(known)), len(known)
    batch = Batch(tokens=jnp.array([garbage]), order=jnp.array([order]), query_at=jnp.array([[at]]))
    return -float(log_probabilities(batch)[0, ids[at]])


@pytest.mark.full
@pytest.mark.parametrize("shape", [(1, 1, 1), pytest.param((2, 1, 2), marks=pytest.mark.full)])
def test_likelihood_along_an_order_follows_the_chain_rule_within_each_piece(shape: tuple[int, int, int]) -> None:
    result = permuted_nats(xlnet(shape=shape), IDS, orders=3, length=LENGTH)
    for number, nth in itertools.product((0, 2), range(3)):
        expected = 0.0
        for start in range(0, len(IDS[number]), LENGTH):
            ids = IDS[number][start : start + LENGTH]
            places = np.argsort(np.random.default_rng([number, start, nth]).permutation(LENGTH)).tolist()
            expected += sum(conditional(ids, places[:step], at) for step, at in enumerate(places))
        np.testing.assert_allclose(result[number, nth], expected, rtol=2e-6)
    assert len(set(result[0].round(3))) == 3


def test_all_factorization_orders_are_equally_likely() -> None:
    sampled = [tuple(next(_ordered_rows(np.arange(3), 3, 1, number, "")).order.tolist()) for number in range(600)]
    # 100 of each are expected, and their standard deviation is 9.
    assert all(sampled.count(order) > 60 for order in itertools.permutations(range(3)))


@pytest.mark.full
def test_mask_is_predicted_from_the_rest_of_its_text_and_from_no_other_mask() -> None:
    """Compare with a query of rank 0, which no token sees, over tokens that all see each other."""
    model = xlnet()
    tokenizer, mask = model.loaded.tokenizer, model.special_tokens.mask
    parts = [tokenizer.encode(each) for each in ("The", " whale is", " by the men.")]
    tokens, types = model.special_tokens.single(np.concatenate([parts[0], [mask], parts[1], [mask], parts[2]]))
    order, places = jnp.array([np.where(tokens == mask, 0, -1)], jnp.int32), np.flatnonzero(tokens == mask)
    found = fill_masks(model, texts("The <mask> whale is <mask> by the men."), top=tokenizer.vocab_size)
    # Nothing depends on the id that stands where a mask is.
    for seen in (tokens, np.where(tokens == mask, 50, tokens)):
        batch = Batch(tokens=jnp.array([seen]), types=jnp.array([types]), order=order, query_at=jnp.array([places]))
        expected = np.exp(log_probabilities(batch))
        for number, filled in enumerate(found):
            ids, probabilities = zip(*((each.id, each.probability) for each in filled.candidates), strict=True)
            np.testing.assert_allclose(probabilities, expected[number, list(ids)], rtol=1e-5, atol=1e-8)


@pytest.mark.full
def test_pseudo_likelihood_does_not_depend_on_the_id_of_the_mask() -> None:
    model = xlnet()
    strange = dataclasses.replace(model, special_tokens=dataclasses.replace(model.special_tokens, mask=model.special_tokens.eop))
    np.testing.assert_allclose(pseudo_nats(strange, IDS), pseudo_nats(model, IDS), rtol=1e-6)


@pytest.mark.full
def test_command_prints_the_mean_over_orders_and_its_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, text = folder(tmp_path / "model", "xlnet", "permutation"), "The old men see the white whale."
    (tmp_path / "text.txt").write_text(text)
    options = ("--task", "permutation_likelihood", "--orders", "5", "--json", "--files", str(tmp_path / "text.txt"))
    metrics = json.loads(call(capsys, "eval", str(path), *options).stdout)["metrics"]
    ids = loaded("xlnet", "permutation").tokenizer.encode(text)
    nats = permuted_nats(xlnet(), [ids], orders=5)[0] / len(ids)
    assert metrics["tokens"] == len(ids)
    np.testing.assert_allclose(metrics["loss"], nats.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_stderr"], nats.std(ddof=1) / 5**0.5, rtol=1e-4)


def test_other_families_are_refused() -> None:
    with pytest.raises(BadInput, match="a bert does not predict tokens in any order; choose an XLNet"):
        permuted_nats(encoder("bert"), IDS, orders=1)
