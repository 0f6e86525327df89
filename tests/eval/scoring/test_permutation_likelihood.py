"""Permutation likelihoods: each order's sum is the chain rule's, whatever the batch, and masks are predicted unseen."""

import dataclasses
import itertools
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from eval import permuted
from eval.encoding import Encoder
from eval.fill_mask import fill
from eval.permuted import permuted_nats
from eval.pseudo import pseudo_nats
from tests.support.commands import words
from tests.support.encoders import encoder, folder, loaded, texts
from tests.support.small import jit
from zoo import cli
from zoo.batch import Batch
from zoo.errors import BadInput

IDS = [np.array(ids, np.int32) for ids in ([12, 30, 15, 44, 9], [21, 33], [17, 17, 49, 25, 40, 11, 52])]


def xlnet(batch: int = 4, **which) -> Encoder:
    return encoder("xlnet", batch, task="permutation", **which)


def conditional(model: Encoder, ids: np.ndarray, known: list[int], at: int) -> float:
    """-log p of the token at a place, from those that are known, in their order; what stands elsewhere is something else."""
    garbage = np.full_like(ids, 50)
    garbage[known] = ids[known]
    order = np.full(len(ids), len(ids), np.int32)
    order[known], order[at] = np.arange(len(known)), len(known)
    batch = Batch(tokens=jnp.array([garbage]), order=jnp.array([order]), query_at=jnp.array([[at]]))
    net = model.loaded.net
    predicted = jit(net.apply)(model.loaded.params, batch).predicted
    logits = np.asarray(net.unembed(model.loaded.params, predicted)[0, 0], np.float64)[: net.config.vocab]
    return float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[ids[at]])


def test_a_text_is_as_likely_along_an_order_as_the_chain_rule_says():
    model, ids = xlnet(), IDS[0]
    found = permuted_nats(model, [ids], orders=3)
    for nth in range(3):
        ranks = np.random.default_rng([0, 0, nth]).permutation(5)
        places = np.argsort(ranks).tolist()
        expected = sum(conditional(model, ids, places[:step], at) for step, at in enumerate(places))
        np.testing.assert_allclose(found[0, nth], expected, rtol=2e-6)
    assert len(set(found[0].round(3))) == 3


@pytest.mark.slow
def test_neither_batch_nor_mesh_nor_neighbours_change_a_likelihood():
    found = permuted_nats(xlnet(), IDS, orders=2)
    np.testing.assert_allclose(permuted_nats(xlnet(batch=1), IDS, orders=2), found, rtol=1e-5)
    np.testing.assert_allclose(permuted_nats(xlnet(shape=(2, 1, 2)), IDS, orders=2), found, rtol=1e-5)
    np.testing.assert_allclose(permuted_nats(xlnet(), IDS[:1], orders=2), found[:1], rtol=1e-5)


def test_a_long_text_is_cut_into_pieces_that_do_not_see_each_other():
    parts = permuted_nats(xlnet(), [IDS[2]], orders=1, length=4)
    seen = []
    for start in (0, 4):
        ids, ranks = IDS[2][start : start + 4], np.random.default_rng([0, start, 0])
        places = np.argsort(ranks.permutation(len(ids))).tolist()
        seen.append(sum(conditional(xlnet(), ids, places[:step], at) for step, at in enumerate(places)))
    np.testing.assert_allclose(parts[0, 0], sum(seen), rtol=2e-6)


def test_every_order_is_drawn_alike():
    drawn = [tuple(next(permuted._rows(np.arange(3), 3, 1, number, "")).order.tolist()) for number in range(600)]
    assert {order: drawn.count(order) > 60 for order in itertools.permutations(range(3))} == dict.fromkeys(
        itertools.permutations(range(3)), True
    )


def test_a_mask_is_predicted_from_the_rest_of_its_text_and_from_no_other_mask():
    """As by hand: masks are of rank 0, which nothing sees, the rest is seen by all; only <cls> has a type of its own."""
    model = xlnet()
    net, params, tokenizer = model.loaded.net, model.loaded.params, model.loaded.tokenizer
    parts = [tokenizer.encode(each) for each in ("The", " whale is", " by the men.")]
    ids = np.concatenate([parts[0], [model.marks.mask], parts[1], [model.marks.mask], parts[2]])
    tokens, types = model.marks.single(ids)
    places = np.flatnonzero(tokens == model.marks.mask)
    shown = np.where(tokens == model.marks.mask, 50, tokens)
    for seen in (tokens, shown):
        order = jnp.array([np.where(tokens == model.marks.mask, 0, -1)], jnp.int32)
        batch = Batch(tokens=jnp.array([seen]), types=jnp.array([types]), order=order, query_at=jnp.array([places]))
        predicted = jit(net.apply)(params, batch).predicted
        logits = np.asarray(net.unembed(params, predicted)[0], np.float64)[:, : net.config.vocab]
        wanted = np.exp(logits - logits.max(-1, keepdims=True))
        wanted /= wanted.sum(-1, keepdims=True)
        found = fill(model, texts("The <mask> whale is <mask> by the men."), top=tokenizer.vocab_size)
        for number, each in enumerate(found):
            for candidate in each.candidates:
                np.testing.assert_allclose(candidate.probability, wanted[number, candidate.id], rtol=1e-5, atol=1e-8)


def test_a_token_is_as_likely_as_if_a_mask_stood_there():
    """A pseudo-likelihood is the same whatever id stands for the mask: nothing sees it."""
    model = xlnet()
    strange = dataclasses.replace(model, marks=dataclasses.replace(model.marks, mask=model.marks.eop))
    np.testing.assert_allclose(pseudo_nats(strange, IDS), pseudo_nats(model, IDS), rtol=1e-6)


def test_the_command_says_the_mean_over_orders_and_its_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    where = folder(tmp_path / "model", "xlnet", "permutation")
    (tmp_path / "text.txt").write_text("The old men see the white whale.")
    asked = f"eval {where} --task permutation_likelihood --orders 5 --json --files {tmp_path}/text.txt"
    assert cli.main(words(asked)) == 0
    said = json.loads(capsys.readouterr().out)
    made = loaded("xlnet", "permutation")
    ids = made.tokenizer.encode("The old men see the white whale.")
    nats = permuted_nats(xlnet(), [ids], orders=5)[0] / len(ids)
    assert said["metrics"]["tokens"] == len(ids)
    np.testing.assert_allclose(said["metrics"]["loss"], nats.mean(), rtol=1e-5)
    np.testing.assert_allclose(said["metrics"]["loss_stderr"], nats.std(ddof=1) / 5**0.5, rtol=1e-4)


def test_other_families_are_refused():
    with pytest.raises(BadInput, match="a bert does not predict tokens in any order; choose an XLNet"):
        permuted_nats(encoder("bert"), IDS, orders=1)
