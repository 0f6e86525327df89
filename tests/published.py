"""Published folders for tests: weights that anybody can compute again from their names, in files of one tensor each."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from zoo import configs, pretrained, tensors

GPT2 = dict(model_type="gpt2", vocab_size=61, n_positions=16, n_layer=2, n_embd=12, n_head=3, n_inner=20)
"""A config.json of sizes that are no multiple of anything, so that no wrong order of axes fits."""


def weights(shapes: dict[str, tuple[int, ...]], spread: float = 0.2) -> dict[str, np.ndarray]:
    """Tensors drawn from generators that are seeded by their names, of standard deviation `spread`; scales of norms around 1."""
    drawn = {}
    for name, shape in shapes.items():
        values = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
        norm = ".ln_" in name and name.endswith("weight")
        drawn[name] = (1 + 0.1 * values if norm else spread * values).astype(np.float32)
    return drawn


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Published names and shapes of the model in a folder's config.json."""
    cfg, _ = pretrained.read_config(folder)
    return {name: shape for name, shape, *_ in pretrained.explain(cfg)}


def write(folder: Path, config: dict[str, Any], *, sharded: bool = False, spread: float = 0.2) -> dict[str, np.ndarray]:
    """Make a published folder and return its tensors. Sharded: one file a tensor, so that a test can change one cheaply."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    drawn = weights(shapes_of(folder), spread)
    if not sharded:
        save_file(drawn, folder / tensors.SINGLE)
        return drawn
    for number, (name, tensor) in enumerate(drawn.items()):
        save_file({name: tensor}, folder / file(number))
    write_index(folder, {name: file(number) for number, name in enumerate(drawn)})
    return drawn


def file(number: int) -> str:
    return f"model-{number:05d}.safetensors"


def write_index(folder: Path, files: dict[str, str]) -> None:
    (folder / tensors.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))


def nano() -> dict[str, Any]:
    """config.json of the nano GPT."""
    return {"model_type": "gpt2", **configs.family("gpt").to_published(configs.find("gpt-nano")[1].config)}
