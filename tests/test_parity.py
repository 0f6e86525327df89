"""Against the real thing: `transformers` on torch, at published shapes. Needs the group `parity`; run with --parity."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import published
from train import config
from train import mesh as meshes
from zoo import models, pretrained, tensors
from zoo.batch import Batch

pytestmark = pytest.mark.parity

SIZES: dict[str, dict[str, Any]] = {"gpt2": {"model_type": "gpt2"}}
"""config.json of each published shape; what it leaves out is the default there and here."""


@pytest.fixture(scope="module", params=SIZES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("parity") / request.param
    # Twice the spread that training begins with: with much more, rounding alone moves the logits by more than the bound.
    published.write(made, SIZES[request.param], spread=0.04)
    return made


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    pytest.importorskip("torch")
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def test_logits_and_gradients(folder: Path, theirs: Any, tmp_path: Path):
    """A padded batch: real positions have equal logits, every published tensor an equal gradient (DESIGN, "Numbers")."""
    import torch

    cfg, params = pretrained.load(folder, meshes.make(config.Mesh(), jax.devices()[:1]))
    net = models.model(cfg)
    lengths = np.array([48, 31])
    rng = np.random.default_rng(0)
    real = np.arange(48) < lengths[:, None]
    ids = np.where(real, rng.integers(0, cfg.vocab, (2, 48)), 0)
    batch = Batch(tokens=jnp.asarray(ids, jnp.int32), segments=jnp.asarray(real, jnp.int32))

    def loss(params: Any) -> Any:
        logits = net.unembed(params, net.apply(params, batch).hidden)
        logs = jax.nn.log_softmax(logits[:, :-1])
        return -(jnp.take_along_axis(logs, batch.tokens[:, 1:, None], -1)[..., 0] * real[:, 1:]).sum(), logits

    (total, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    tokens, mask = torch.tensor(ids), torch.tensor(real)
    expected = theirs(tokens, attention_mask=mask.long()).logits
    labels = torch.where(mask, tokens, -100)[:, 1:].flatten()
    their_loss = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), labels, ignore_index=-100, reduction="sum")
    their_loss.backward()

    difference = np.abs(np.asarray(logits)[..., : cfg.vocab] - expected.detach().numpy())[real].max()
    print(f"logits: largest difference {difference:.1e} of {expected.detach().numpy()[real].std():.2f}")
    assert difference < 1e-4
    assert float(total) == pytest.approx(their_loss.item(), rel=1e-5)
    pretrained.save(tmp_path, cfg, gradients)
    ours = load_file(tmp_path / tensors.SINGLE)
    wanted = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    whole = np.sqrt(sum(float((each.astype(np.float64) ** 2).sum()) for each in wanted.values()))
    assert ours.keys() == wanted.keys()
    worst = 0.0
    for name, each in wanted.items():
        off, size = np.linalg.norm(ours[name] - each), np.linalg.norm(each)
        worst = max(worst, off / (1e-3 * size + 1e-5 * whole))
        assert off <= 1e-3 * size + 1e-5 * whole, name
    print(f"gradients: largest difference {worst:.3f} of the bound, over {len(wanted)} tensors")


def test_an_export_loads_there_and_is_the_same(folder: Path, theirs: Any, tmp_path: Path):
    import torch
    import transformers

    cfg, params = pretrained.load(folder, meshes.make(config.Mesh(fsdp=4), jax.devices()[:4]))
    for name, largest in {"one": 5_000_000_000, "sharded": 150_000_000}.items():
        made = tmp_path / name
        made.mkdir()
        pretrained.save(made, cfg, params, largest=largest)
        assert (made / tensors.INDEX).exists() == (name == "sharded")
        again, told = transformers.AutoModelForCausalLM.from_pretrained(
            made, output_loading_info=True, attn_implementation="eager"
        )
        assert not any(told.values()), told
        state = again.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in theirs.state_dict().items())
    said = json.loads((made / "config.json").read_text())
    assert said["architectures"] == [type(theirs).__name__]
    tokens = torch.arange(20)[None]
    assert torch.equal(again.eval()(tokens).logits, theirs(tokens).logits)
