"""Programs of every family, read and run by a process that has JAX but not the zoo."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from safetensors.numpy import load_file

from eval.generation.generation_options import Decoding
from tests.support.commands import printed, write_gpt2
from tests.support.exported_programs import Job, run_without_zoo
from tests.support.generation import gpt_tokenizer, ids, make_generator
from tests.support.small import random_params, shallow, small
from tests.support.type_checks import symbolic_sizes
from train.exports import model_programs, stablehlo
from train.weights.load import load_model
from zoo import models
from zoo.errors import BadInput
from zoo.generation.decoding_settings import GREEDY
from zoo.models import Model
from zoo.sharding import any_platform

VOCABULARY = 290
"""Entries of the tokenizer, fewer than those of the models."""
FAST = ("bert", "gpt")
OTHERS = tuple(family for family in models.families() if family not in FAST)
SIZES = ({"B": 2, "T": 7, "R": 5, "S": 16}, {"B": 3, "T": 12, "R": 9, "S": 20})
ROWS, COUNT = [[5, 6, 7, 8, 9], [10, 11]], 6
SHALLOW = {"bert", "gpt", "t5"}


def arguments(program: model_programs.Program, name: str, sizes: dict[str, int]) -> list[dict[str, np.ndarray]]:
    """Return inputs of these sizes, with padding, and a cache: empty, or of the first 3 tokens of rows."""
    rng = np.random.default_rng(0)

    def array(leaf: str, shape: Any) -> np.ndarray:
        if leaf.endswith("segments"):
            values = np.ones(shape.shape, np.int32)
            on_left = name == "prefill" and "source" not in leaf
            values[0, slice(2) if on_left else slice(-2, None)] = int(shape.shape[1] == 1)
            return values
        if leaf == "positions":
            return np.broadcast_to(np.arange(shape.shape[1], dtype=np.int32), shape.shape)
        return rng.integers(0, 2 if leaf in ("types", "summary_at") else VOCABULARY, shape.shape).astype(np.int32)

    inputs, *caches = program.arguments(sizes)
    result = [{leaf: array(leaf, shape) for leaf, shape in inputs.items()}]
    for cache in caches:
        if name == "prefill":
            result.append({leaf: np.zeros(shape.shape, shape.dtype) for leaf, shape in cache.items()})
            continue
        values = {leaf: rng.standard_normal(shape.shape).astype(shape.dtype) for leaf, shape in cache.items()}
        segments = np.int32(np.arange(sizes["S"]) < 3) * np.ones((sizes["B"], 1), np.int32)
        result.append(values | {"at": np.int32(3), "segments": segments})
    return result


def own_outputs(program: model_programs.Program, weights: Any, given: list[Any]) -> dict[str, np.ndarray]:
    """Return what the zoo's own jitted function computes."""
    with any_platform():
        outputs = dict(jax.jit(program.compute)(weights, *given))
    cache = outputs.pop("cache", {})
    return {name: np.asarray(value) for name, value in {**outputs, **{f"cache/{leaf}": v for leaf, v in cache.items()}}.items()}


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def net_of(family: str) -> tuple[Model, Any]:
    net = shallow(family) if family in SHALLOW else small(family)
    return net, random_params(net)


def greedy_ids(net: Model, params: Any) -> list[tuple[int, ...]]:
    """Return the tokens of `zoo generate` at temperature 0."""
    decoding = Decoding(limit=COUNT, past_end=True, sampling=GREEDY)
    return ids(make_generator((net, params), gpt_tokenizer(), first=0).generate(ROWS, decoding))


@pytest.mark.planted
@pytest.mark.parametrize("families", [FAST, pytest.param(OTHERS, marks=pytest.mark.slow)])
def test_programs_have_the_bits_and_tokens_of_the_zoo(families: tuple[str, ...], tmp_path: Path) -> None:
    """Two sizes from the same file; greedy tokens are those of the generator. Another number in a weight is noticed."""
    jobs, expected, changed, texts = [], [], [], []
    for family in families:
        net, params = net_of(family)
        (folder := tmp_path / family).mkdir()
        with symbolic_sizes():
            manifest = stablehlo.write_programs(folder, net, params, VOCABULARY, "float32")
        weights = model_programs.flat_params(params)
        programs = model_programs.model_programs(net, VOCABULARY, weights, jnp.float32)
        assert list(manifest["programs"]) == list(programs)
        calls = [(name, arguments(program, name, sizes)) for name, program in programs.items() for sizes in SIZES]
        jobs.append(Job(folder, calls, ROWS if net.generates else (), COUNT))
        expected.append([own_outputs(programs[name], weights, given) for name, given in calls])
        other = {**weights, "embed/tokens/embedding": weights["embed/tokens/embedding"] * 1.0001}
        changed.append(own_outputs(programs["forward"], other, calls[0][1]))
        texts.append(greedy_ids(net, params) if net.generates else [])
    outputs, tokens = run_without_zoo(tmp_path / "process", jobs)
    for family, job, own, run, other in zip(families, jobs, expected, outputs, changed, strict=True):
        for (name, _), mine, theirs in zip(job.calls, own, run, strict=True):
            assert equal(mine, theirs), (family, name)
        assert not equal(other, run[0]), family
    assert [[tuple(row) for row in rows] for rows in tokens] == texts


@pytest.mark.planted
def test_a_folder_describes_its_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_gpt2(tmp_path)
    with symbolic_sizes():
        line = printed(capsys, "export", "gpt2", "programs", "--stablehlo", "--dtype", "bfloat16")
    assert "programs: programs forward, prefill, step for cpu, cuda, tpu, in bfloat16" in line
    manifest = json.loads((tmp_path / "programs" / "manifest.json").read_text())
    assert (tmp_path / "programs" / "tokenizer.json").exists() and (tmp_path / "programs" / "generation_config.json").exists()
    assert manifest["jax"] == jax.__version__ and "6 months" in manifest["compatibility"]
    prefill = manifest["programs"]["prefill"]
    assert prefill["inputs"]["tokens"] == {"shape": ["B", "T"], "dtype": "int32"}
    assert prefill["cache"]["k"] == {"shape": [2, "B", 4, "S", 8], "dtype": "bfloat16"}
    assert prefill["outputs"]["logits"] == {"shape": ["B", load_model("gpt2").tokenizer.vocab_size], "dtype": "float32"}
    assert prefill["limits"] == ["S <= 32", "S >= T"]
    program = export.deserialize(bytearray((tmp_path / "programs" / prefill["file"]).read_bytes()))
    assert program.platforms == stablehlo.PLATFORMS
    assert program.calling_convention_version == manifest["calling_convention_version"]
    assert set(re.findall(r"custom_call @([\w.]+)", program.mlir_module())) == {"shape_assertion"}
    # Rows of more tokens than the model has positions are refused.
    forward = export.deserialize(bytearray((tmp_path / "programs" / manifest["programs"]["forward"]["file"]).read_bytes()))
    weights = load_file(tmp_path / "programs" / manifest["weights"]["file"])
    assert list(weights) == manifest["weights"]["order"]
    with pytest.raises(ValueError, match="refining shapes"):
        jax.jit(forward.call)(weights, dict.fromkeys(("tokens", "segments"), np.ones((1, 33), np.int32)))


@pytest.mark.planted
def test_forms_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stablehlo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="export needs the package flatbuffers"):
        stablehlo.write_programs(tmp_path, small("gpt"), {}, 300, "float32")
    with pytest.raises(BadInput, match="--dtype float16: programs compute in float32 or bfloat16"):
        stablehlo.write_programs(tmp_path, small("gpt"), {}, 300, "float16")
