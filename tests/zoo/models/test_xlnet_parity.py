"""XLNet's pretraining against `transformers` on torch: both streams, memory, padding, rows that run backwards, and gradients."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import published
from tests.support import transformers_outputs as theirs
from train.config import run_config
from train.engine import device_mesh
from zoo import models, published_weights
from zoo.batch import Batch
from zoo.models import Model

pytestmark = pytest.mark.parity

NUMBERS = {"model_type": "xlnet", "vocab_size": 131, "d_model": 64, "n_layer": 3, "n_head": 4, "d_inner": 96}
ROWS, LENGTH, MEMORY, REUSE = 4, 9, 8, 5
"""An odd length; a memory that the second row fills and the third pushes on."""


@pytest.fixture
def model(tmp_path: Path) -> tuple[Model, Any, Any]:
    """(ours, its parameters, theirs)."""
    pytest.importorskip("torch")
    folder = tmp_path / "xlnet"
    said = published.config("xlnet", "permutation", {**NUMBERS, "mem_len": MEMORY, "reuse_len": REUSE})
    published.write(folder, said, spread=0.1)
    cfg, params = published_weights.load_published(folder, device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1]))
    assert (cfg.memory, cfg.reuse) == (MEMORY, REUSE)
    return models.model(cfg), params, theirs.load(folder, "XLNetLMHeadModel")


def drawn(seed: int, *, padding: bool = False) -> Batch:
    """Rows in an order with tokens that all see, of which four are predicted; padded in front or not."""
    rng = np.random.default_rng(seed)
    first = np.arange(ROWS) if padding else np.zeros(ROWS, int)
    real = np.arange(LENGTH) >= first[:, None]
    order = np.stack([np.maximum(rng.permutation(LENGTH) - 2, -1) for _ in range(ROWS)])
    at = np.stack([rng.permutation(np.flatnonzero(ranks >= 0))[:4] for ranks in np.where(real, order, -1)])
    fields = {"tokens": rng.integers(0, 131, (ROWS, LENGTH)), "types": rng.integers(0, 3, (ROWS, LENGTH)), "order": order}
    fields |= {"query_at": at} | ({"segments": real} if padding else {})
    return Batch(**{name: jnp.asarray(each, jnp.int32) for name, each in fields.items()})


def asked(batch: Batch) -> dict[str, Any]:
    """The batch as theirs takes it: whom a position does not see (itself, where it is predicted), and one-hot targets."""
    import torch

    order, at = np.asarray(batch.order), np.asarray(batch.query_at)
    hidden = (order[:, None] >= order[..., None]) & (order[:, None] >= 0)
    given = {
        "input_ids": torch.tensor(np.asarray(batch.tokens)).long(),
        "perm_mask": torch.tensor(hidden).float(),
        "target_mapping": torch.tensor(at[..., None] == np.arange(LENGTH)).float(),
    }
    if batch.types is not None:
        given["token_type_ids"] = torch.tensor(np.asarray(batch.types)).long()
    if batch.segments is not None:
        given["attention_mask"] = torch.tensor(np.asarray(batch.segments)).float()
    return given


def said(net: Model, params: Any, batch: Batch, carry: Any = None) -> tuple[jax.Array, Any]:
    """(logits of the predicted words, the carry)."""
    out = net.apply(params, batch, carry=carry)
    assert out.predicted is not None
    return net.unembed(params, out.predicted)[..., :131], out.carry


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("types", [False, True])
def test_logits_and_gradients_in_any_order(model: tuple[Model, Any, Any], padding: bool, types: bool) -> None:
    """Logits within 1e-4, and every gradient (DESIGN, "Numbers")."""
    import torch

    net, params, reference = model
    batch = drawn(0, padding=padding)
    batch = batch if types else Batch(**{**vars(batch), "types": None})
    along = np.float32(np.random.default_rng(1).standard_normal((ROWS, 4, 131)))

    def score(params: Any) -> tuple[jax.Array, jax.Array]:
        logits, _ = said(net, params, batch)
        return (logits * along).sum(), logits

    gradients, logits = jax.jit(jax.grad(score, has_aux=True))(params)
    expected = reference(**asked(batch), use_mems=False).logits
    (expected * torch.tensor(along)).sum().backward()
    np.testing.assert_allclose(logits, expected.detach().numpy(), atol=1e-4, rtol=0)
    theirs.assert_gradients(net.config, gradients, theirs.gradients_of(reference))


def test_three_rows_with_memory(model: tuple[Model, Any, Any]) -> None:
    """The logits of each, and all that is remembered after it."""
    net, params, reference = model
    carry, memories, step = net.init_carry(ROWS), None, jax.jit(lambda params, batch, carry: said(net, params, batch, carry))
    for row, filled in enumerate((REUSE, MEMORY, MEMORY)):
        batch = drawn(row)
        logits, carry = step(params, batch, carry)
        out = reference(**asked(batch), mems=memories, use_mems=True)
        memories = out.mems
        np.testing.assert_allclose(logits, out.logits.detach().numpy(), atol=1e-4, rtol=0)
        assert carry["filled"].tolist() == [filled] * ROWS
        theirs_ = np.stack([each.numpy() for each in memories]).transpose(2, 0, 1, 3)
        np.testing.assert_allclose(carry["hidden"][:, :, MEMORY - filled :], theirs_, atol=1e-4, rtol=0)


@pytest.mark.planted
def test_half_of_the_rows_run_backwards(model: tuple[Model, Any, Any]) -> None:
    """As theirs do in the second half of a batch, if it is told to."""
    net, params, reference = model
    reference.transformer.bi_data = True
    batch = Batch(**{**vars(drawn(0)), "backward": jnp.arange(ROWS) >= ROWS // 2})
    expected = reference(**asked(batch), use_mems=False).logits.detach().numpy()
    logits, _ = jax.jit(lambda params: said(net, params, batch))(params)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    forward, _ = jax.jit(lambda params: said(net, params, drawn(0)))(params)
    assert np.abs(np.asarray(forward) - expected)[ROWS // 2 :].max() > 1e-2
