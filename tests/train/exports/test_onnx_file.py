"""ONNX files of the encoders, run by ONNX Runtime and compared with the zoo's own function."""

import importlib.util
from typing import Any

import jax
import numpy as np
import pytest

from tests.support.small import random_params, small
from tests.support.type_checks import symbolic_sizes
from train.exports import forms, onnx_file
from train.exports.model_programs import flat_params, model_programs
from zoo.errors import BadInput
from zoo.sharding import any_platform

FAMILIES = forms.FORMS["onnx"].families
TOLERANCE = 1e-4


@pytest.mark.onnx
@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_runtime_computes_the_same(family: str, rng: np.random.Generator) -> None:
    """Two numbers of rows, and two lengths where the file has any."""
    import onnxruntime

    net = small(family)
    params = random_params(net)
    with symbolic_sizes():
        content, length = onnx_file.onnx_model(net, params, 300)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    weights = flat_params(params)
    programs = model_programs(net, 300, weights, np.float32)
    program = programs["encoder" if net.is_encoder_decoder else "forward"]
    differences = []
    for rows, size in ((2, 7), (3, 12)):
        sizes = {"B": rows, "T": length or size, "R": length or size}
        inputs: dict[str, Any] = {}
        for name, shape in program.arguments(sizes)[0].items():
            values = rng.integers(0, 2 if name in ("types", "summary_at") else 300, shape.shape)
            if name.endswith("segments"):
                values = np.ones(shape.shape)
                values[0, -2:] = 0
            inputs[name] = np.int32(values)
        names = [output.name for output in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, inputs), strict=True))
        with any_platform():
            expected = jax.jit(program.compute)(weights, inputs)
        assert outputs.keys() == expected.keys()
        differences += [np.abs(outputs[name] - np.asarray(expected[name])).max() for name in outputs]
    print(family, f"{max(differences):.1e}")
    assert max(differences) < TOLERANCE


@pytest.mark.planted(count=3)
def test_what_has_no_onnx_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="--onnx: gpt has no ONNX files; these families have: bert, distilbert, "):
        forms.check_form("onnx", small("gpt").config, "float32")
    with pytest.raises(BadInput, match="--dtype bfloat16: --onnx writes float32"):
        forms.check_form("onnx", small("bert").config, "bfloat16")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="--onnx: this needs the package jax2onnx"):
        onnx_file.onnx_model(small("bert"), {}, 300)
