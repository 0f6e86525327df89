"""GGUF files, read by the reader of the package gguf and compared with the weights tensor by tensor."""

from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest

from tests.support.commands import BOOK, in_folder, printed, write_gpt2
from tests.support.hard_texts import HARD
from tests.support.small import random_params, small
from train.config import run_config
from train.engine import device_mesh
from train.exports import forms, gguf_file, gguf_tokenizer
from train.tokenizers.tokenizer import Tokenizer
from train.weights.load import Loaded
from zoo.errors import BadInput
from zoo.models import Model

LLAMA = dict(kv_heads=2, scaling="none", scaling_factor=1.0, original_context=8192, tied=False)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt", {}),
    "llama": ("llama", {"attention_bias": True}),
    "qwen2": ("llama", {"qkv_bias": True}),
    "qwen3": ("llama", {"query_key_norm": True}),
    "smollm3": ("llama", {"unrotated_every": 4, "layers": 4}),
}
"""Architecture in llama.cpp -> family and numbers."""
DTYPES = {"gpt2": "float32", "llama": "bfloat16", "qwen2": "float16", "qwen3": "float32", "smollm3": "float32"}
ROUNDING = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([BOOK, HARD], 290)


def model_of(name: str, **changes: Any) -> tuple[Model, Any]:
    family, numbers = VARIANTS[name]
    net = small(family, **{**(LLAMA if family == "llama" else {}), **numbers, **changes})
    return net, random_params(net)


def loaded_model(model: tuple[Model, Any], tokenizer: Tokenizer) -> Loaded:
    return Loaded("small", *model, tokenizer, device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1]))


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """Return the tensors as the reader of gguf finds them, as float32."""
    reader = gguf.GGUFReader(file)
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors}


@pytest.mark.planted
@pytest.mark.parametrize(("name", "dtype"), DTYPES.items())
def test_every_tensor_is_read_back(name: str, dtype: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    net, params = model_of(name)
    line = gguf_file.write_model(tmp_path, loaded_model((net, params), tokenizer), dtype)
    assert line.startswith(f"model.gguf, a {name} of ")
    tensors = read_tensors(tmp_path / "model.gguf")
    limits = {"rtol": ROUNDING[dtype], "atol": 1e-6 if ROUNDING[dtype] else 0.0}

    def same(tensor: str, array: Any) -> bool:
        own = np.asarray(array)
        return tensors[tensor].shape == own.shape and np.allclose(tensors[tensor], own, **limits)

    assert same("token_embd.weight", params["embed"]["tokens"]["embedding"][:300])
    assert same("output_norm.weight", params["norm"]["scale"])
    names = {"token_embd.weight", "output_norm.weight"}
    layers, width, head = params["layers"], net.config.width, net.config.head
    for layer in range(net.config.layers):
        block = f"blk.{layer}."
        part = jax.tree.map(lambda leaf, layer=layer: np.asarray(leaf[layer]), layers)
        expected = {"attn_norm.weight": part["norm1"]["scale"], "ffn_norm.weight": part["norm2"]["scale"]}
        expected["ffn_down.weight"] = part["mlp"]["down"]["kernel"].T
        out = part["attention"]["out"]["kernel"].reshape(-1, width)
        expected["attn_output.weight"] = out.T
        if name == "gpt2":
            expected["attn_qkv.weight"] = part["attention"]["qkv"]["kernel"].reshape(width, -1).T
            expected["attn_qkv.bias"] = part["attention"]["qkv"]["bias"].reshape(-1)
            expected["attn_output.bias"] = part["attention"]["out"]["bias"]
            expected |= {f"ffn_{side}.bias": part["mlp"][side]["bias"] for side in ("up", "down")}
            expected["ffn_up.weight"] = part["mlp"]["up"]["kernel"].T
            expected |= {"attn_norm.bias": part["norm1"]["bias"], "ffn_norm.bias": part["norm2"]["bias"]}
        else:
            gated = part["mlp"]["gated"]["kernel"]
            expected |= {"ffn_gate.weight": gated[:, 0].T, "ffn_up.weight": gated[:, 1].T}
            # Row (head, pair, half) of llama.cpp is row (head, half, pair) here.
            order = np.arange(head).reshape(2, -1).T.reshape(-1) if name in ("llama", "smollm3") else np.arange(head)
            for side in "qkv":
                rows = order if side != "v" else np.arange(head)
                leaves = part["attention"][side]
                expected[f"attn_{side}.weight"] = leaves["kernel"][..., rows].reshape(width, -1).T
                if "bias" in leaves:
                    expected[f"attn_{side}.bias"] = leaves["bias"][..., rows].reshape(-1)
            if "bias" in part["attention"]["out"]:
                expected["attn_output.bias"] = part["attention"]["out"]["bias"]
            if name == "qwen3":
                expected |= {f"attn_{side}_norm.weight": part["attention"][f"{side}_norm"]["scale"] for side in "qk"}
        for tensor, array in expected.items():
            assert same(block + tensor, array), block + tensor
        names |= {block + tensor for tensor in expected}
    if name == "gpt2":
        assert same("position_embd.weight", params["embed"]["positions"]["embedding"])
        assert same("output_norm.bias", params["norm"]["bias"])
        names |= {"position_embd.weight", "output_norm.bias"}
    else:
        assert same("output.weight", params["unembed"]["embedding"][:300])
        names |= {"output.weight"}
        # In the published order the rows would be others.
        rows = layers["attention"]["q"]["kernel"][0].reshape(width, -1).T
        assert same("blk.0.attn_q.weight", rows) == (name in ("qwen2", "qwen3"))
    assert tensors.keys() == names


def test_neighbours_rotate_as_halves_do(rng: np.random.Generator) -> None:
    """llama.cpp rotates entries 2i and 2i + 1 of a head; the dot products of queries and keys are those of this project."""
    heads, head, length = 3, 8, 5
    frequencies = 10.0 ** -(np.arange(0, head, 2) / head)
    angles = np.arange(length)[:, None] * frequencies  # [T, H/2]
    cos, sin = np.cos(angles), np.sin(angles)

    def neighbours(x: np.ndarray) -> np.ndarray:
        a, b = x[..., 0::2], x[..., 1::2]
        return np.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)

    def halves(x: np.ndarray) -> np.ndarray:
        a, b = np.split(x, 2, -1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    kernels, x = rng.standard_normal((2, heads * head, 6)), rng.standard_normal((length, 6))

    def scores(kernels: Any, rotate: Any) -> np.ndarray:
        q, k = (rotate((x @ kernel.T).reshape(length, heads, head).swapaxes(0, 1)) for kernel in kernels)
        return q @ k.swapaxes(1, 2)

    permuted = [gguf_file.in_pairs(kernel, heads) for kernel in kernels]
    np.testing.assert_allclose(scores(permuted, neighbours), scores(kernels, halves), atol=1e-12)
    assert not np.allclose(scores(kernels, neighbours), scores(kernels, halves))


def test_the_file_describes_model_and_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    net, params = model_of("llama", scaling="llama3", scaling_factor=4.0, original_context=16)
    gguf_file.write_model(tmp_path, loaded_model((net, params), tokenizer), "float16")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    values = {name: field.contents() for name, field in reader.fields.items()}
    numbers = {"context_length": 32, "embedding_length": 32, "block_count": 2, "feed_forward_length": 64}
    numbers |= {"attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 8, "rope.dimension_count": 8}
    assert {name: values[f"llama.{name}"] for name in numbers} == numbers
    assert values["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16
    entries = tokenizer.ids()
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert (values["tokenizer.ggml.model"], values["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert {name: tokens.index(name) for name in entries} == entries and len(tokens) == len(types) == 300
    assert types[tokenizer.end_of_text] == gguf.TokenType.CONTROL and types[-1] == gguf.TokenType.UNUSED
    assert values["tokenizer.ggml.eos_token_id"] == tokenizer.end_of_text
    assert all(len(merge.split(" ")) == 2 for merge in values["tokenizer.ggml.merges"])
    factors = read_tensors(tmp_path / "model.gguf")["rope_freqs.weight"]
    assert factors.shape == (4,) and factors.min() >= 1 and factors.max() <= 4


@pytest.mark.planted(count=6)
def test_models_that_llama_cpp_computes_otherwise_are_refused(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = {
        "model.activation gelu: llama.cpp computes only gelu_tanh": ("gpt2", {"activation": "gelu"}),
        "has a score in place of an LM head": ("gpt2", {"labels": ("reward",)}),
        "model.unrotated_every 2: llama.cpp computes only 4": ("llama", {"attention_bias": False, "unrotated_every": 2}),
        "model.scaling dynamic": ("llama", {"scaling": "dynamic", "scaling_factor": 2.0, "original_context": 16}),
    }
    for message, (name, changes) in cases.items():
        with pytest.raises(BadInput, match=message):
            gguf_file.architecture(model_of(name, **changes)[0])
    net, params = model_of("gpt2")
    huge = jax.tree.map(lambda leaf: leaf * 1e6, params)
    with pytest.raises(BadInput, match=r"--dtype float16: .* choose bfloat16 or float32"):
        gguf_file.write_model(tmp_path, loaded_model((net, huge), tokenizer), "float16")
    monkeypatch.setattr(gguf_tokenizer, "WORDS", {})
    with pytest.raises(BadInput, match="splits words by rules"):
        gguf_file.write_model(tmp_path, loaded_model((net, params), tokenizer), "float32")


@pytest.mark.planted(count=5)
def test_forms_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gpt2(tmp_path)
    with in_folder(tmp_path):
        assert "a gpt2 of" in printed(capsys, "export", "gpt2", "file", "--gguf")
        lines = {
            "--gguf --stablehlo": "--gguf: there is --stablehlo too; choose one form",
            "--dtype float16": "--dtype float16: a published folder has the dtype that rounds nothing",
            "--stablehlo --dtype float16": "--dtype float16: --stablehlo writes float32 or bfloat16; choose one of these",
        }
        for options, line in lines.items():
            assert line in printed(capsys, "export", "gpt2", "other", *options.split(), code=2)
        assert not Path("other").exists()
    with pytest.raises(BadInput, match="--gguf: bert has no GGUF files; these families have: gpt, llama"):
        forms.check_form("gguf", small("bert").config, "float32")
