"""Published weights: exact in, exact out, and refused by name when a single tensor is not what it must be."""

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.golden import make
from tests.support import published
from tests.support.processes import ROOT, run_python
from train import config
from train import mesh as meshes
from zoo import configs, models, names, pretrained, tensors
from zoo.batch import Batch
from zoo.errors import BadInput


def mesh(name: str = "one"):
    return meshes.make(config.Mesh(), jax.devices()[:1]) if name == "one" else meshes.make(config.Mesh(fsdp=2, tensor=4))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "gpt2"
    published.write(folder, published.GPT2)
    return folder


def test_what_transformers_computes(gpt2: Path, tmp_path: Path):
    frozen = json.loads((Path(make.__file__).parent / "gpt2.json").read_text())
    cfg, params = pretrained.load(gpt2, mesh())
    net = models.model(cfg)
    ids, real = make.batch(cfg.vocab)
    batch = Batch(tokens=jnp.asarray(ids), segments=jnp.asarray(real, jnp.int32))

    def loss(params):
        logits = net.unembed(params, net.apply(params, batch).hidden)
        logs = jax.nn.log_softmax(logits[:, :-1])
        return -(jnp.take_along_axis(logs, ids[:, 1:, None], -1)[..., 0] * real[:, 1:]).sum(), logits

    (total, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert np.abs(np.asarray(logits)[real][:, : cfg.vocab] - np.array(frozen["logits"])[real]).max() < 1e-5
    assert total == pytest.approx(frozen["loss"], rel=1e-5)
    pretrained.save(tmp_path, cfg, gradients)
    ours = load_file(tmp_path / tensors.SINGLE)
    whole = np.sqrt(sum(norm**2 for norm, _ in frozen["gradients"].values()))
    assert ours.keys() == frozen["gradients"].keys()
    for name, expected in frozen["gradients"].items():
        # The project's bound against torch (DESIGN, "Equal gradients"), of the norm and of a projection as long as the leaf.
        size = np.sqrt(ours[name].size)
        bound = 1e-3 * expected[0] + 1e-5 * whole
        assert make.probe(name, ours[name]) == pytest.approx(expected, abs=size * bound), name


def test_the_same_bits_come_out(gpt2: Path, tmp_path: Path):
    for which in ("one", "sharded"):
        cfg, params = pretrained.load(gpt2, mesh())
        folder = tmp_path / which
        folder.mkdir()
        pretrained.save(folder, cfg, params, largest=5_000_000_000 if which == "one" else 4_000)
        assert (folder / tensors.INDEX).exists() == (which == "sharded")
        written = {name: tensor.view() for name, tensor in tensors.read(folder).items()}
        original = load_file(gpt2 / tensors.SINGLE)
        assert written.keys() == original.keys()
        assert all(np.array_equal(written[name], original[name]) for name in original)
        again, same = pretrained.load(folder, mesh())
        assert again == cfg
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, same))


def test_shards_land_where_the_table_says(tmp_path: Path):
    published.write(tmp_path / "even", published.GPT2 | {"vocab_size": 130, "n_embd": 16, "n_head": 4})
    _, params = pretrained.load(tmp_path / "even", mesh("fsdp"))
    _, whole = pretrained.load(tmp_path / "even", mesh())
    assert params["layers"]["attention"]["qkv"]["kernel"].sharding.shard_shape((2, 16, 3, 4, 4)) == (2, 8, 3, 1, 4)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), params, whole))
    assert whole["embed"]["tokens"]["embedding"].shape == (256, 16)
    assert not np.asarray(params["embed"]["tokens"]["embedding"])[130:].any()


@pytest.mark.planted(2)
def test_old_names_buffers_and_a_stored_head(gpt2: Path, tmp_path: Path):
    stored = load_file(gpt2 / tensors.SINGLE)
    old = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    for layer in range(2):
        old[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), np.float32))
        old[f"h.{layer}.attn.masked_bias"] = np.full((), -1e4, np.float32)
    folder = with_tensors(gpt2, tmp_path / "old", old | {"lm_head.weight": old["wte.weight"]})
    _, params = pretrained.load(folder, mesh())
    _, same = pretrained.load(gpt2, mesh())
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, same))
    untied = old | {"lm_head.weight": old["wte.weight"] + np.float32(1e-3)}
    refused(with_tensors(gpt2, tmp_path / "untied", untied), "lm_head.weight differs from wte.weight")
    refused(with_tensors(gpt2, tmp_path / "layer", old | {"h.2.attn.bias": old["h.0.attn.bias"]}), "h.2.attn.bias is unexpected")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_float32_exactly(gpt2: Path, tmp_path: Path, dtype: str):
    half = {name: tensor.astype(jnp.dtype(dtype)) for name, tensor in load_file(gpt2 / tensors.SINGLE).items()}
    _, params = pretrained.load(with_tensors(gpt2, tmp_path / dtype, half), mesh())
    found = np.asarray(params["norm"]["scale"])
    assert found.dtype == np.float32
    assert np.array_equal(found, half["transformer.ln_f.weight"].astype(np.float32))


# --- what does not fit ----------------------------------------------------------------------------------------------------------


@pytest.mark.planted
def test_a_refusal_names_a_few_and_counts_the_rest(gpt2: Path, tmp_path: Path):
    stored = load_file(gpt2 / tensors.SINGLE)
    few = {name: tensor for name, tensor in stored.items() if ".h.1." not in name}
    refused(with_tensors(gpt2, tmp_path / "few", few), "transformer.h.1.ln_1.weight is missing", "and 7 more")


CONFIGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "family": ({"model_type": "mamba"}, ("model_type", "mamba", "gpt2")),
    "activation": ({"activation_function": "swiglu"}, ("activation_function", "swiglu", "gelu_new")),
    "more layers": ({"n_layer": 3}, ("h.2.ln_1.weight is missing",)),
    "fewer layers": ({"n_layer": 1}, ("h.1.attn.c_attn.bias is unexpected",)),
    "another width": ({"n_embd": 24}, ("wte.weight has shape [61, 12], not [61, 24]",)),
    "heads": ({"n_head": 5}, ("n_head", "divide n_embd")),
    "untied": ({"tie_word_embeddings": False}, ("tie_word_embeddings",)),
    "scaled by layer": ({"scale_attn_by_inverse_layer_idx": True}, ("scale_attn_by_inverse_layer_idx",)),
    "cross attention": ({"add_cross_attention": True}, ("add_cross_attention",)),
    "a number for a truth value": ({"scale_attn_weights": 1}, ("scale_attn_weights",)),
    "text for a number": ({"n_layer": "2"}, ("n_layer",)),
    "true layers": ({"n_layer": True}, ("n_layer",)),
    "negative": ({"n_positions": -1}, ("n_positions",)),
    "enormous": ({"n_layer": 10**9}, ("config.json", "layers")),
    "eps": ({"layer_norm_epsilon": 0.0}, ("config.json", "eps")),
    "beyond floats": ({"layer_norm_epsilon": 10**400}, ("layer_norm_epsilon", "finite number")),
    "quantized": ({"quantization_config": {"bits": 4}}, ("quantization_config", "original ones")),
}


UNLIKE_WEIGHTS = ("more layers", "fewer layers", "another width")
"""Those that contradict the tensors beside them."""


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.planted] if case in UNLIKE_WEIGHTS else []) for case in CONFIGS]
)
def test_a_config_that_does_not_fit_is_refused(gpt2: Path, tmp_path: Path, case: str):
    changes, told = CONFIGS[case]
    folder = with_tensors(gpt2, tmp_path / "m", load_file(gpt2 / tensors.SINGLE))
    (folder / "config.json").write_text(json.dumps(published.GPT2 | changes))
    refused(folder, *told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"model_type": "gpt2", "model_type": "gpt2"}', "comes twice"),
        ('{"model_type": "gpt2", "layer_norm_epsilon": NaN}', "NaN"),
        ("[" * 100_000, "JSON"),
        ("[]", "not a JSON object"),
        ("", "JSON"),
        ('{"x": "\udc80"}', "JSON"),
        (" " * (1 << 21), "at most"),
    ],
)
@pytest.mark.planted
def test_a_broken_config_is_refused(tmp_path: Path, text: str, told: str):
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    refused(tmp_path, "config.json", told)


def test_an_unknown_key_is_told_not_guessed(gpt2: Path, tmp_path: Path):
    folder = with_tensors(gpt2, tmp_path / "m", load_file(gpt2 / tensors.SINGLE))
    (folder / "config.json").write_text(json.dumps(published.GPT2 | {"attn_logit_cap": 30.0, "summary_type": "first"}))
    assert pretrained.read_config(folder)[1] == ["attn_logit_cap"]


@pytest.mark.parametrize(
    ("change", "told"),
    [(dict(pattern=("window",), window=4), "window layers"), (dict(heads=2, head=4), "heads x head")],
)
def test_no_export_of_what_the_format_cannot_say(tmp_path: Path, change: dict[str, Any], told: str):
    cfg = dataclasses.replace(configs.find("gpt-nano")[1].config, **change)
    with pytest.raises(BadInput, match=told):
        pretrained.save(tmp_path, cfg, {})


# --- the machinery, beyond what GPT-2 needs of it -------------------------------------------------------------------------------


def test_layouts_split_transpose_and_stack(rng: np.random.Generator):
    kernel = rng.standard_normal((5, 3, 2, 4)).astype(np.float32)  # [D, qkv, N, H]
    layout = names.Layout.parse("(n h) d -> d c n h", 4)
    parts = [layout.publish(kernel, number) for number in range(3)]
    assert layout.published(kernel.shape) == parts[0].shape == (8, 5)
    # [out, in], as torch's Linear keeps it.
    assert np.array_equal(parts[1], kernel[:, 1].reshape(5, 8).T)
    read = layout.arrange(parts, kernel.shape)
    for index in [
        (slice(None),) * 4,
        (slice(1, 3), slice(0, 3), slice(1, 2), slice(None)),
        (slice(0, 5), slice(2, 3), slice(0, 2), slice(1, 4)),
    ]:
        assert np.array_equal(read(index), kernel[index])


@pytest.mark.planted
def test_a_table_that_forgets_a_leaf_is_a_defect(monkeypatch: pytest.MonkeyPatch):
    module = models.family("gpt")
    names_ = module.HF["causal"]
    monkeypatch.setattr(module, "HF", {"causal": dataclasses.replace(names_, rows=names_.rows[1:])})
    pretrained.written_out.cache_clear()
    with pytest.raises(ValueError, match="embed/tokens/embedding"):
        pretrained.written_out(configs.find("gpt-nano")[1].config, "")


def with_tensors(source: Path, folder: Path, stored: dict[str, np.ndarray]) -> Path:
    """A copy of a published folder with other tensors."""
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(stored, folder / tensors.SINGLE)
    return folder


def refused(folder: Path, *told: str) -> None:
    with pytest.raises(BadInput) as refusal:
        pretrained.load(folder, mesh())
    for part in told:
        assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)


# --- hostile files --------------------------------------------------------------------------------------------------------------


def raw(entries: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of a header, given as JSON or as text, and its data."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "damaged"),
    "seven bytes": (b"\0" * 7, "damaged"),
    "header longer than the file": (raw({"a": ONE}, b"\0" * 4, length=1 << 62), "damaged"),
    "header over the cap": (raw(b'{"a": 1' + b" " * (26 << 20) + b"}"), "at most"),
    "no JSON": (raw(b"{\xff}"), "JSON"),
    "a list": (raw(b"[]"), "JSON object"),
    "deep nesting": (raw(b'{"a":' * 50_000), "JSON"),
    "a key twice": (raw(b'{"a": %b, "a": %b}' % ((json.dumps(ONE).encode(),) * 2), b"\0" * 4), "twice"),
    "a path as a name": (raw({"../../etc/passwd": ONE}, b"\0" * 4), "names are"),
    "a NUL in a name": (raw({"a\0b": ONE}, b"\0" * 4), "names are"),
    "a long name": (raw({"a" * 257: ONE}, b"\0" * 4), "names are"),
    "too many tensors": (
        raw({f"{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_001)}),
        "tensors",
    ),
    "overlap": (raw({"a": ONE, "b": ONE}, b"\0" * 4), "damaged"),
    "a hole": (raw({"a": ONE | {"data_offsets": [4, 8]}}, b"\0" * 8), "damaged"),
    "more at the end": (raw({"a": ONE}, b"\0" * 8), "damaged"),
    "negative shape": (raw({"a": ONE | {"shape": [-1]}}, b"\0" * 4), "damaged"),
    "overflowing shape": (raw({"a": ONE | {"shape": [1 << 40, 1 << 40]}}, b"\0" * 4), "damaged"),
    "shape against size": (raw({"a": ONE | {"shape": [2]}}, b"\0" * 4), "damaged"),
    "unknown type": (raw({"a": ONE | {"dtype": "F31"}}, b"\0" * 4), "damaged"),
    "no object": (raw({"a": 3}), "damaged"),
    "fp8": (raw({"a": ONE | {"dtype": "F8_E4M3", "data_offsets": [0, 1]}}, b"\0"), "type"),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.planted
def test_a_hostile_file_is_refused(tmp_path: Path, case: str):
    content, told = HOSTILE[case]
    (tmp_path / tensors.SINGLE).write_bytes(content)
    with pytest.raises(BadInput, match=told) as refusal:
        tensors.read(tmp_path)
    assert tensors.SINGLE in str(refusal.value)
    assert len(str(refusal.value)) < 600


@pytest.mark.parametrize(
    "where", ["../gpt2/model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "x.bin", "x.safetensors/", 3, None]
)
@pytest.mark.planted
def test_an_index_stays_in_its_folder(tmp_path: Path, where: Any):
    published.write_index(tmp_path, {"a": where})
    with pytest.raises(BadInput, match=r"index\.json"):
        tensors.read(tmp_path)


@pytest.mark.planted(4)
def test_an_index_and_its_shards_must_agree(gpt2: Path, tmp_path: Path):
    stored = load_file(gpt2 / tensors.SINGLE)
    save_file(stored, tmp_path / "model-1.safetensors")
    first, *others = sorted(stored)
    for files, told in [
        ({name: "model-1.safetensors" for name in others}, f"also holds {first}"),
        ({name: "model-1.safetensors" for name in [*stored, "x"]}, "lacks x"),
        ({name: "model-2.safetensors" for name in stored}, "cannot be read"),
    ]:
        published.write_index(tmp_path, files)
        with pytest.raises(BadInput, match=told):
            tensors.read(tmp_path)
    save_file(stored, tmp_path / tensors.SINGLE)
    with pytest.raises(BadInput, match="both"):
        tensors.read(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "flax_model.msgpack", "tf_model.h5"])
@pytest.mark.planted
def test_pickle_is_refused_and_not_opened(tmp_path: Path, name: str):
    # Unpickling this would write the file "ran".
    ran = tmp_path / "ran"
    (tmp_path / name).write_bytes(b"cbuiltins\nopen\n(V" + str(ran).encode() + b"\nVw\ntR.")
    with pytest.raises(BadInput, match="only safetensors"):
        tensors.read(tmp_path)
    assert not ran.exists()


@pytest.mark.slow
@pytest.mark.planted(9_700)
def test_random_damage_is_refused_in_bounded_memory():
    count = 10_000
    ended = run_python("-m", "tests.support.fuzz_weights", "1", str(count), cwd=ROOT)
    assert ended.code == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["refused"] + told["read"] == count
    # A few mutants change nothing but the bytes of a weight; far more than those would mean that checks are missing.
    assert told["read"] < 0.03 * count
    assert told["grown_kb"] < 200_000
