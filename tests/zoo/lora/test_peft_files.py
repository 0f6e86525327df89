"""Files of peft: adapters that it wrote are read and written with the same bits, and every damaged one is refused by name."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.golden import make
from tests.support import peft_outputs, published, transformers_outputs
from tests.support.small import as_batch, outputs
from train.config import run_config
from train.engine import device_mesh
from train.weights import adapter_params
from zoo import models, published_weights
from zoo.errors import BadInput
from zoo.lora import adapters, peft_files

FROZEN = json.loads((Path(make.__file__).parent / "adapters.json").read_text())
MESH = device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])
FAST = ("gpt-causal", "bert-sequence", "marian")
every_model = pytest.mark.parametrize(
    "model", [pytest.param(model, marks=[] if model in FAST else [pytest.mark.full]) for model in peft_outputs.MODELS]
)
Files = tuple[dict[str, Any], dict[str, np.ndarray]]


def frozen(model: str) -> Files:
    """Return adapter_config.json and the tensors that peft wrote."""
    return dict(FROZEN[model]["config"]), published.weights({n: tuple(shape) for n, shape in FROZEN[model]["shapes"].items()})


def write(folder: Path, files: Files) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(files[0]))
    save_file(files[1], folder / "adapter_model.safetensors")
    return folder


@functools.cache
def base(folder: Path, model: str) -> Any:
    published.write_model(folder, model)
    return published_weights.load_published(folder, MESH)


@every_model
def test_an_adapter_of_peft_computes_the_same_and_is_exported_with_the_same_bits(model: str, tmp_path: Path) -> None:
    config, tensors = frozen(model)
    cfg, params = base(tmp_path / "m", model)
    spec, values = peft_files.read_peft_adapter(write(tmp_path / "a", (config, tensors)), cfg)
    assert (spec.rank, spec.alpha, list(spec.targets)) == (config["r"], config["lora_alpha"], config["target_modules"])
    merged, net = adapters.merge_adapters(cfg, spec, params, jax.tree.map(jax.numpy.asarray, values)), models.model(cfg)
    asked = transformers_outputs.given(published.MODELS[model][2], make.LENGTHS, published.MODELS[model][1])
    computed = jax.jit(lambda params: outputs(net, params, as_batch(asked)))(merged)
    for name, array in computed.items():
        counted = make.counted(name, np.asarray(array)[..., : cfg.vocab], asked)
        np.testing.assert_allclose(counted, FROZEN[model]["outputs"][name], atol=1e-5, rtol=0)

    (tmp_path / "out").mkdir()
    peft_files.save_adapter(tmp_path / "out", cfg, spec, values, base="m")
    written, stored = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("out", "a"))
    # peft adds the modules of all heads, whether or not the model has them.
    modules = {name.split(".")[2] for name in tensors if "lora" not in name}
    assert set(written.pop("modules_to_save") or ()) == modules
    assert written.items() <= (stored | {"init_lora_weights": True}).items()
    again = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert again.keys() == tensors.keys()
    assert not [name for name in tensors if again[name].tobytes() != tensors[name].tobytes()]


A, B = (f"base_model.model.transformer.h.1.mlp.c_proj.lora_{part}.weight" for part in "AB")


def tensor(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Files], Files]:
    return lambda files: (files[0], files[1] | {name: np.ascontiguousarray(change(files[1][name]))})


def renamed(rename: Callable[[str], str]) -> Callable[[Files], Files]:
    return lambda files: (files[0], {rename(name): array for name, array in files[1].items()})


def key(**values: Any) -> Callable[[Files], Files]:
    return lambda files: (files[0] | values, files[1])


MUTANTS: dict[str, tuple[Callable[[Files], Files], str]] = {
    "transposed": (tensor(A, np.transpose), f"{A} has shape [20, 4], not [4, 20]"),
    "another base": (tensor(B, lambda b: np.zeros((16, 4), np.float32)), f"{B} has shape [16, 4], not [12, 4]"),
    "renamed": (
        renamed(lambda name: name.replace("h.1.mlp.c_proj.lora_A", "h.1.mlp.c_prj.lora_A")),
        "c_prj.lora_A.weight is une",
    ),
    "no prefix": (renamed(lambda n: n.removeprefix("base_model.model.")), "lacks base_model.model. before its name"),
    "swapped": (renamed(lambda name: name.replace("lora_A", "x").replace("lora_B", "lora_A").replace("x", "lora_B")), "shape"),
    "absent": (lambda files: (files[0], {n: array for n, array in files[1].items() if n != A}), f"{A} is missing"),
    "a layer too many": (
        lambda files: (files[0], files[1] | {A.replace("h.1", "h.2"): files[1][A]}),
        "h.2.mlp.c_proj.lora_A.weigh",
    ),
    "a bias": (
        lambda files: (files[0], files[1] | {A.replace("A.weight", "B.bias"): np.ones(12, np.float32)}),
        "lora_B.bias is un",
    ),
    "zero": (tensor(B, np.zeros_like), f"{B} is all zero, so that the adapter does nothing"),
    "not finite": (tensor(A, lambda a: a * np.float32(np.nan)), f"{A} holds NaN or infinity"),
    "integers": (tensor(A, lambda a: a.astype(np.int32)), f"{A} is I32, not one of F32, F16, BF16"),
    "DoRA": (key(use_dora=True), "adapter_config.json: use_dora is true; this is not supported"),
    "dropout": (key(lora_dropout=1.5), "lora_dropout is 1.5; expected a number from 0 to 1"),
    "biases": (key(bias="all"), 'bias is "all"'),
    "bias of B": (key(lora_bias=True), "lora_bias is true"),
    "parameters": (key(target_parameters=["wte"]), 'target_parameters is ["wte"]'),
    "ranks": (key(rank_pattern={"c_attn": 2}), 'rank_pattern is {"c_attn": 2}'),
    "alphas": (key(alpha_pattern={"c_attn": 2}), "alpha_pattern"),
    "layers": (key(layers_to_transform=[0]), "layers_to_transform"),
    "modules": (
        key(modules_to_save=["wte"]),
        'modules_to_save has "wte"; only the head can be trained as a whole (this model has',
    ),
    "a pattern": (key(target_modules="all-linear"), 'target_modules is "all-linear"; expected a list of names'),
    "a bare parameter": (key(target_modules=["wpe"]), "adapter_config.json: target_modules: wpe: a table of embeddings"),
    "another method": (key(peft_type="IA3"), 'peft_type is "IA3"; only LORA'),
    "a changed base": (key(init_lora_weights="pissa_niter_4"), 'init_lora_weights is "pissa_niter_4"; it changes the base'),
    "an unknown key": (key(new_trick=3), "new_trick is 3; this is not supported"),
    "rank": (key(r="4"), 'r is "4"; expected the rank'),
    "alpha": (key(lora_alpha=0), "lora_alpha is 0"),
}


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return base(tmp_path_factory.mktemp("mutants") / "m", "gpt-causal")[0]


@pytest.mark.planted(len(MUTANTS))
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_damaged_adapter_is_refused_by_name(mutant: str, gpt: Any, tmp_path: Path) -> None:
    change, part = MUTANTS[mutant]
    folder = write(tmp_path / "a", change(frozen("gpt-causal")))
    with pytest.raises(BadInput) as refusal:
        peft_files.read_peft_adapter(folder, gpt)
    assert part in str(refusal.value) and str(refusal.value).startswith(str(folder)) and "\n" not in str(refusal.value)


def test_dropout_has_no_effect_but_on_training_further(gpt: Any, tmp_path: Path) -> None:
    """It is exported as it was read, and a run may train it further with another rate."""
    config, tensors = frozen("gpt-causal")
    plain, values = peft_files.read_peft_adapter(write(tmp_path / "plain", (config, tensors)), gpt)
    folder = write(tmp_path / "a", (config | {"lora_dropout": 0.1}, tensors))
    spec, same = peft_files.read_peft_adapter(folder, gpt)
    assert spec == dataclasses.replace(plain, dropout=0.1)
    jax.tree.map(np.testing.assert_array_equal, same, values)
    (tmp_path / "out").mkdir()
    peft_files.save_adapter(tmp_path / "out", gpt, spec, values, base="m")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["lora_dropout"] == 0.1
    net = models.model(gpt)
    for own in (plain, spec):
        jax.tree.map(np.testing.assert_array_equal, adapter_params.read_adapter(folder, net, own), values)


@pytest.mark.planted
@pytest.mark.parametrize("model", ["gpt-causal", "llama-causal"])
def test_targets_may_name_the_matrices_of_every_layer_one_by_one(model: str, tmp_path: Path) -> None:
    """So does peft for `all-linear` of a small model. A layer without one is refused."""
    config, tensors = frozen(model)
    cfg, _ = base(tmp_path / "m", model)
    _, values = peft_files.read_peft_adapter(write(tmp_path / "a", (config, tensors)), cfg)
    start = len(peft_files.PREFIX)
    paths = sorted({name[start:].partition(".lora_")[0] for name in tensors})
    spec, same = peft_files.read_peft_adapter(write(tmp_path / "b", (config | {"target_modules": paths}, tensors)), cfg)
    jax.tree.map(np.testing.assert_array_equal, same, values)
    (tmp_path / "out").mkdir()
    peft_files.save_adapter(tmp_path / "out", cfg, spec, same, base="m")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"] == paths
    fewer = [path for path in paths if path != paths[0]]
    folder = write(tmp_path / "c", (config | {"target_modules": fewer}, tensors))
    with pytest.raises(BadInput, match=r"target_modules: .*: it names some of the 2 layers; all of them have adapters"):
        peft_files.read_peft_adapter(folder, cfg)


def test_a_head_of_which_the_file_has_a_part_is_exported_in_that_part(tmp_path: Path) -> None:
    """peft itself trains the classifier and not the layer before it."""
    config, tensors = frozen("distilbert-sequence")
    part = {name: array for name, array in tensors.items() if "pre_classifier" not in name}
    cfg, _ = base(tmp_path / "m", "distilbert-sequence")
    folder = write(tmp_path / "a", (config | {"modules_to_save": ["classifier", "score"]}, part))
    spec, values = peft_files.read_peft_adapter(folder, cfg)
    (tmp_path / "out").mkdir()
    peft_files.save_adapter(tmp_path / "out", cfg, spec, values, base="m")
    again = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert again.keys() == part.keys() and all(again[name].tobytes() == part[name].tobytes() for name in part)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["modules_to_save"] == ["classifier"]


def test_a_head_of_another_number_of_labels_is_refused(tmp_path: Path) -> None:
    config, tensors = frozen("bert-sequence")
    name = "base_model.model.classifier.weight"
    folder = write(tmp_path / "a", (config, tensors | {name: tensors[name][:2]}))
    cfg, _ = base(tmp_path / "m", "bert-sequence")
    with pytest.raises(BadInput, match=r"classifier.weight has shape \[2, 12\], not \[3, 12\]"):
        peft_files.read_peft_adapter(folder, cfg)
    shutil.rmtree(folder)
    with pytest.raises(BadInput, match="cannot be read"):
        peft_files.read_peft_adapter(folder, cfg)
