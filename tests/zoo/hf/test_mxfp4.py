"""MXFP4: decoded as the standard says, number by number; a folder of gpt-oss with such tensors; pairs that do not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support import published
from train.config import run_config
from train.engine import device_mesh
from zoo import published_weights
from zoo.errors import BadInput
from zoo.hf import mxfp4, safetensors_dir

WIDE = published.GPT_OSS | {"hidden_size": 32, "intermediate_size": 64, "quantization_config": {"quant_method": "mxfp4"}}
EXPERTS = 3
KERNELS = {"gate_up_proj": (128, 1), "down_proj": (32, 2)}
"""Rows and groups of the experts' kernels."""


def number(code: int, scale: int) -> float:
    """Return a number of 4 bits, E2M1: subnormal below an exponent of 1, bias 1."""
    exponent, mantissa = code >> 1 & 3, code & 1
    magnitude = mantissa / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2)
    return (-1) ** (code >> 3) * magnitude * 2.0 ** (scale - 127)


def by_loop(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    experts, rows, groups, _ = blocks.shape
    kernel = np.zeros((experts, 32 * groups, rows))
    for e, r, g, place in np.ndindex(experts, rows, groups, 32):
        byte = int(blocks[e, r, g, place // 2])
        kernel[e, 32 * g + place, r] = number(byte >> 4 if place % 2 else byte & 15, int(scales[e, r, g]))
    return kernel


def test_a_quantized_folder_is_decoded_and_exported_as_bfloat16(tmp_path: Path) -> None:
    """Every leaf has the numbers of the standard, and an export has them as bfloat16, which rounds none."""
    stored = published.write_mxfp4(tmp_path / "model", WIDE)
    mesh = device_mesh.make_mesh(run_config.Mesh(data=1, expert=1), jax.devices()[:1])
    cfg, params = published_weights.load_published(tmp_path / "model", mesh)
    for layer in range(2):
        expected = {
            name: by_loop(*(stored[f"model.layers.{layer}.mlp.experts.{name}_{part}"] for part in ("blocks", "scales")))
            for name in KERNELS
        }
        leaves = params["layers"]["mlp"]["experts"]
        interleaved = expected["gate_up_proj"]
        np.testing.assert_array_equal(leaves["gated"]["kernel"][layer, :, :, 0], interleaved[..., ::2])
        np.testing.assert_array_equal(leaves["gated"]["kernel"][layer, :, :, 1], interleaved[..., 1::2])
        np.testing.assert_array_equal(leaves["down"]["kernel"][layer], expected["down_proj"])
    (tmp_path / "out").mkdir()
    assert published_weights.save_published(tmp_path / "out", cfg, params) == "bfloat16"
    exported = load_file(tmp_path / "out" / safetensors_dir.SINGLE)
    assert {str(x.dtype) for x in exported.values()} == {"bfloat16"}
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["dtype"] == "bfloat16" and "quantization_config" not in said
    _, again = published_weights.load_published(tmp_path / "out", mesh)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    # A number that bfloat16 lacks is not rounded.
    params["norm"]["scale"] = params["norm"]["scale"] + 2.0**-20
    (tmp_path / "finer").mkdir()
    assert published_weights.save_published(tmp_path / "finer", cfg, params) == "float32"


BLOCKS, SCALES = (f"model.layers.1.mlp.experts.down_proj_{part}" for part in ("blocks", "scales"))
DAMAGE: dict[str, tuple[Callable[[dict[str, np.ndarray]], Any], str]] = {
    "no scales": (lambda s: s.pop(SCALES), f"{SCALES} is missing"),
    "no blocks": (lambda s: s.pop(BLOCKS), f"{BLOCKS} is missing"),
    "blocks of 8 bytes": (lambda s: s.update({BLOCKS: s[BLOCKS][..., :8]}), f"{BLOCKS} has shape .*must be .*16"),
    "fewer scales": (lambda s: s.update({SCALES: s[SCALES][:, :5]}), f"{BLOCKS} has shape .*with its scales it must be"),
    "flat blocks": (lambda s: s.update({BLOCKS: s[BLOCKS].reshape(EXPERTS, 32, 32)}), f"{BLOCKS} is U8 of shape"),
    "signed blocks": (lambda s: s.update({BLOCKS: s[BLOCKS].astype(np.int8)}), f"{BLOCKS} is I8"),
    "scales as numbers": (lambda s: s.update({SCALES: s[SCALES].astype(np.float32)}), f"{SCALES} is F32"),
    "another kernel": (
        lambda s: s.update({BLOCKS: s[BLOCKS][:, :16].copy(), SCALES: s[SCALES][:, :16].copy()}),
        r"down_proj has shape \[3, 64, 16\], not \[3, 64, 32\]",
    ),
    "the scale that is not a number": (lambda s: s[SCALES].fill(255), "down_proj holds NaN or infinity"),
    "twice": (
        lambda s: s.update({BLOCKS.removesuffix("_blocks"): np.zeros((3, 64, 32), np.float32)}),
        "holds both .*down_proj and .*down_proj_blocks",
    ),
}


@pytest.mark.planted(len(DAMAGE))
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    stored = published.write_mxfp4(tmp_path / "model", WIDE)
    for case, (damage, message) in DAMAGE.items():
        changed = {name: x.copy() for name, x in stored.items()}
        damage(changed)
        save_file({name: np.ascontiguousarray(x) for name, x in changed.items()}, tmp_path / "model" / safetensors_dir.SINGLE)
        with pytest.raises(BadInput, match=message) as refusal:
            published_weights.open_folder(tmp_path / "model")
        assert "\n" not in str(refusal.value), case


@pytest.mark.planted(2)
def test_halves_and_scales_in_another_order_are_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, scales = np.full((1, 1, 1, 16), 0x21, np.uint8), np.full((1, 1, 1), 128, np.uint8)
    assert by_loop(blocks, scales)[0, :2, 0].tolist() == [1.0, 2.0]
    assert by_loop(blocks >> 4 | blocks << 4, scales)[0, :2, 0].tolist() == [2.0, 1.0]
    np.testing.assert_array_equal(mxfp4.VALUES, [number(code, 127) for code in range(16)])
