"""Against peft on torch, both ways. Needs the group `parity`; run with --parity."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.golden import make
from tests.support import peft_outputs, published
from tests.support import transformers_outputs as theirs
from tests.support.small import as_batch, outputs
from train.config import run_config
from train.engine import device_mesh
from zoo import models, published_weights
from zoo.hf import safetensors_dir
from zoo.lora import adapters, peft_files

# peft 0.21.2 calls what transformers 5.24 is about to rename.
OLD_NAME = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
pytestmark = [pytest.mark.parity, OLD_NAME]
ROUNDING = 2.0**-23


ALL_LINEAR = ("gpt-causal", "bert-sequence", "t5-1.0", "marian", "modernbert-sequence", "llama-causal", "gpt_oss-causal")


@pytest.mark.parametrize("model", ALL_LINEAR)
def test_an_adapter_of_all_linear_layers_with_dropout_computes_the_same(model: str, tmp_path: Path) -> None:
    """peft names each matrix of a small model; its dropout does nothing but in training."""
    pytest.importorskip("peft")
    published.write_model(tmp_path / "m", model)
    cfg, params = published_weights.load_published(tmp_path / "m", device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1]))
    made = peft_outputs.adapted(tmp_path / "m", model, target_modules="all-linear", lora_dropout=0.1)
    made.save_pretrained(tmp_path / "theirs")
    spec, values = peft_files.read_peft_adapter(tmp_path / "theirs", cfg)
    assert spec.dropout == 0.1
    asked = theirs.given(published.MODELS[model][2], make.LENGTHS, published.MODELS[model][1])
    merged = adapters.merge_adapters(cfg, spec, params, jax.tree.map(jax.numpy.asarray, values))
    computed: Any = jax.jit(lambda params: outputs(models.model(cfg), params, as_batch(asked)))(merged)
    for name, array in peft_outputs.outputs(made, model, asked).items():
        counted = [make.counted(name, np.asarray(side)[..., : cfg.vocab], asked) for side in (computed[name], array)]
        np.testing.assert_allclose(*counted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", peft_outputs.MODELS)
def test_an_adapter_exported_to_peft_is_imported_unchanged(model: str, tmp_path: Path) -> None:
    """Ours loads there without a warning and computes the same within 1e-5; theirs has the same bits here; merged there, each
    weight is ours within one rounding."""
    pytest.importorskip("peft")
    from peft import PeftModel

    published.write_model(tmp_path / "m", model)
    cfg, params = published_weights.load_published(tmp_path / "m", device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1]))
    net, asked = models.model(cfg), theirs.given(published.MODELS[model][2], make.LENGTHS, published.MODELS[model][1])

    made = peft_outputs.adapted(tmp_path / "m", model)
    made.save_pretrained(tmp_path / "theirs")
    spec, values = peft_files.read_peft_adapter(tmp_path / "theirs", cfg)
    (tmp_path / "ours").mkdir()
    peft_files.save_adapter(tmp_path / "ours", cfg, spec, values, base=str(tmp_path / "m"))
    stored, again = (load_file(tmp_path / name / peft_files.WEIGHTS) for name in ("theirs", "ours"))
    assert stored.keys() == again.keys()
    assert not [name for name in stored if stored[name].tobytes() != again[name].tobytes()]

    # A warning of peft, of missing keys for one, is an error, as everywhere here.
    loaded = PeftModel.from_pretrained(peft_outputs.load(tmp_path / "m", model), tmp_path / "ours").eval()
    merged = adapters.merge_adapters(cfg, spec, params, jax.tree.map(jax.numpy.asarray, values))
    computed: Any = jax.jit(lambda params: outputs(net, params, as_batch(asked)))(merged)
    for name, array in peft_outputs.outputs(loaded, model, asked).items():
        counted = [make.counted(name, np.asarray(side)[..., : cfg.vocab], asked) for side in (computed[name], array)]
        np.testing.assert_allclose(*counted, atol=1e-5, rtol=0)

    (tmp_path / "merged").mkdir()
    published_weights.save_published(tmp_path / "merged", cfg, merged)
    weights = load_file(tmp_path / "merged" / safetensors_dir.SINGLE)
    state = loaded.merge_and_unload().state_dict()
    for name, tensor in weights.items():
        bound = ROUNDING * np.maximum(np.abs(tensor), 1)
        assert (np.abs(tensor - state[name].numpy()) <= bound).all(), name
    assert json.loads((tmp_path / "ours" / peft_files.CONFIG).read_text())["base_model_name_or_path"] == str(tmp_path / "m")
