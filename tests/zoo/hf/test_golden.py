"""Models against frozen vectors of `transformers` on torch, which `tests.golden.make` writes: outputs and gradients."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.golden import make
from tests.support import published, transformers_outputs
from tests.support.small import as_batch, decode, said
from train.config import run_config
from train.engine import device_mesh
from zoo import configs, models, published_weights
from zoo.batch import Batch, Output
from zoo.hf import safetensors_dir
from zoo.hf.config_json import PublishedConfig
from zoo.models import llama

BODY = ("embed", "first", "layers", "norm", "encoder", "decoder")
"""The parameters that hidden states depend on."""


def frozen_vectors(model: str) -> dict[str, Any]:
    """Return what `transformers` computes; of GPT-2 the logits and the gradients of a cross-entropy."""
    family, task, _ = published.MODELS[model]
    if task == "sequence" and family in ("gpt", "t5"):
        return json.loads((Path(make.__file__).parent / "scores.json").read_text())[model]
    file = {"gpt": "gpt2", "t5": "encoder_decoders", "transformer": "encoder_decoders"}.get(family, family)
    content = json.loads((Path(make.__file__).parent / f"{file}.json").read_text())
    return content if family == "gpt" else content[model.removeprefix(f"{file}-")]


@functools.cache
def body(family: str, numbers: str) -> Any:
    """Compile (hidden states, gradient of their product with a cotangent) of a tiny body, which all heads share."""
    cfg = configs.family(family).from_published(PublishedConfig(Path(), json.loads(numbers)))

    def hidden_and_gradient(params: Any, batch: Batch, cotangent: Any) -> tuple[Any, Any]:
        hidden, back = jax.vjp(lambda params: models.family(family).apply(cfg, params, batch).hidden, params)
        return hidden, back(cotangent)[0]

    # One family with LLVM's optimizations; they take longer than all else here.
    return jax.jit(hidden_and_gradient)


@published.every_model
def test_outputs_and_gradients_are_those_of_transformers(model: str, tmp_path: Path) -> None:
    """Outputs of a padded batch are equal within 1e-5; of each gradient, the norm and a projection are compared."""
    family, task, numbers = published.MODELS[model]
    frozen = frozen_vectors(model)
    published.write_model(tmp_path / "model", model)
    cfg, params = published_weights.load_published(
        tmp_path / "model", device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])
    )
    net = models.model(cfg)
    given, words = transformers_outputs.given(numbers, make.LENGTHS, task), "logits" in frozen
    if words:
        given = dict(zip(("tokens", "real"), make.batch(cfg.vocab), strict=True))
    batch, below = as_batch(given), {name: params[name] for name in BODY if name in params}
    compiled = body(family, json.dumps(numbers))
    hidden, _ = compiled(below, batch, np.zeros((*batch.tokens.shape, cfg.width), np.float32))

    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def score(params: Any, hidden: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        outputs = {name: each[..., : cfg.vocab] for name, each in said(net, params, Output(hidden=hidden), batch).items()}
        if words:
            return cross_entropy(given, outputs["words"]), outputs
        along = transformers_outputs.directions({name: each.shape for name, each in outputs.items()}, given["real"])
        return sum((each * along[name]).sum() for name, each in outputs.items()), outputs

    (total, outputs), (gradients, cotangent) = jax.jit(score)(params, hidden)
    if words:
        assert total == pytest.approx(frozen["loss"], rel=1e-5)
        frozen["outputs"] = {"words": np.array(frozen["logits"])[given["real"]].ravel()}
    assert outputs.keys() == frozen["outputs"].keys()
    for name, each in outputs.items():
        ours = make.counted(name, np.asarray(each), given)
        np.testing.assert_allclose(ours, frozen["outputs"][name], atol=1e-5, rtol=0)

    _, of_body = compiled(below, batch, cotangent)
    gradients |= jax.tree.map(lambda one, other: np.asarray(one) + np.asarray(other), {n: gradients[n] for n in below}, of_body)
    published_weights.save_published(tmp_path, cfg, gradients)
    stored = load_file(tmp_path / safetensors_dir.SINGLE)
    total_norm = np.sqrt(sum(norm**2 for norm, _ in frozen["gradients"].values()))
    # The bias of Marian's logits is a buffer in transformers, without a gradient.
    assert stored.keys() - {"final_logits_bias"} == frozen["gradients"].keys()
    for name, probe in frozen["gradients"].items():
        # The project's bound against torch (DESIGN, "Equal gradients"), of the norm and of a projection as long as the leaf.
        bound = np.sqrt(stored[name].size) * (1e-3 * probe[0] + 1e-5 * total_norm)
        assert make.probe(name, stored[name]) == pytest.approx(probe, abs=bound), name


def cross_entropy(given: dict[str, np.ndarray], logits: jax.Array) -> jax.Array:
    """Return the summed cross-entropy of the real tokens that follow others."""
    logs = jax.nn.log_softmax(logits[:, :-1])
    return -(jnp.take_along_axis(logs, given["tokens"][:, 1:, None], -1)[..., 0] * given["real"][:, 1:]).sum()


@functools.cache
def rotations() -> dict[str, Any]:
    return json.loads((Path(make.__file__).parent / "rotations.json").read_text())


def read_rotations(keys: dict[str, Any]) -> Any:
    """Return the configuration of a config.json with these keys, and that of its export."""
    module = configs.family("llama")
    cfg = module.from_published(PublishedConfig(Path("config.json"), make.ROTATED | keys))
    written = {"model_type": "llama", **module.to_published(cfg)}
    assert module.from_published(PublishedConfig(Path("config.json"), written)) == cfg
    return cfg


def computed_frequencies(cfg: Any, length: int) -> tuple[np.ndarray, float]:
    inverse, factor = llama._frequencies(cfg, Batch(tokens=np.zeros((1, length), np.int32)))
    return np.asarray(inverse, np.float64).reshape(-1, cfg.head // 2)[0], factor


@pytest.mark.parametrize("name", make.ROTATIONS)
def test_frequencies_of_rotations_are_those_of_transformers(name: str) -> None:
    """Frequencies within the rounding of float32, in which `transformers` computes; the attention factor is equal."""
    cfg, frozen = read_rotations(make.ROTATIONS[name]), rotations()["frequencies"][name]
    for length, inverse in frozen["inverse"].items():
        computed, factor = computed_frequencies(cfg, int(length))
        np.testing.assert_allclose(computed, inverse, rtol=1e-6, atol=0)
        assert factor == pytest.approx(frozen["factor"], rel=1e-15)


@pytest.mark.planted
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("yarn, as in old files", {"original_max_position_embeddings": 16}),
        ("yarn, as in new files", {"beta_slow": None}),
        ("yarn, as in new files", {"rope_theta": 9900.0}),
        ("yarn, not truncated", {"truncate": True}),
        ("yarn, another attention factor", {"attention_factor": None}),
        ("yarn, two scales", {"mscale": None}),
        ("yarn of few positions", {"original_max_position_embeddings": 32}),
        ("dynamic", {"factor": 2.99}),
    ],
)
def test_every_key_of_rotations_counts(name: str, change: dict[str, Any]) -> None:
    ((key, section),) = ((key, section) for key, section in make.ROTATIONS[name].items() if isinstance(section, dict))
    cfg, frozen = read_rotations({**make.ROTATIONS[name], key: section | change}), rotations()["frequencies"][name]
    length, inverse = list(frozen["inverse"].items())[-1]
    computed, factor = computed_frequencies(cfg, int(length))
    assert max(np.abs(computed / inverse - 1).max(), abs(factor / frozen["factor"] - 1)) > 1e-4


def test_logits_with_dynamic_scaling_are_those_of_transformers(tmp_path: Path) -> None:
    """Of complete rows, also of several lengths in a batch, and token by token with a cache, whose keys are not rotated again."""
    published.write(tmp_path / "model", published.config("llama", "causal", make.DYNAMIC))
    mesh = device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])
    cfg, params = published_weights.load_published(tmp_path / "model", mesh)
    net, tokens, frozen = models.model(cfg), make.dynamic_tokens(), rotations()["logits"]
    assert (cfg.context, cfg.original_context) == (24, 8)
    segments = np.array([[1] * tokens.size, [1] * make.PROMPT + [0] * make.GENERATED], np.int32)

    @jax.jit
    def logits(params: Any, batch: Batch) -> jax.Array:
        return net.unembed(params, net.apply(params, batch).hidden)[..., : cfg.vocab]

    @jax.jit
    def step(params: Any, batch: Batch, cache: Any) -> tuple[jax.Array, Any]:
        hidden, cache = decode(net, params, batch, cache)
        return net.unembed(params, hidden[0, -1])[: cfg.vocab], cache

    complete, prompt = np.asarray(logits(params, Batch(tokens=np.repeat(tokens, 2, 0), segments=segments)))
    np.testing.assert_allclose(complete, frozen["complete"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(prompt[: make.PROMPT], frozen["prompt"], rtol=0, atol=1e-5)
    generated, cache = step(params, Batch(tokens=tokens[:, : make.PROMPT]), net.init_cache(1, tokens.size, jnp.float32))
    rows = [generated]
    for at in range(make.PROMPT, tokens.size):
        generated, cache = step(params, Batch(tokens=tokens[:, at : at + 1]), cache)
        rows.append(generated)
    np.testing.assert_allclose(np.stack(rows), frozen["generated"], rtol=0, atol=1e-5)
    # A forward pass over all tokens rotates the first ones by the length of the row.
    assert np.abs(complete[-1] - rows[-1]).max() > 1e-3
