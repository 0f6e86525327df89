"""A small model with a tokenizer of few words, and files of examples, for the tests of tasks on local files."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from eval.inference.likelihood import Likelihood, likelihoods
from tests.support import tiny
from tests.support.small import random_params, small
from train.checkpoints.checkpoints import Checkpoints
from train.config import run_config
from train.engine import device_mesh
from train.engine.state import State
from train.run.run_dir import RunDir
from train.tokenizers.tokenizer import Tokenizer
from train.weights.load import Loaded

TEXT = "The whale is seen. The old whale sleeps, and the men of the ship see the whale; naïve 鯨. "


def quiet(done: int, count: int) -> None:
    pass


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 4, 300)


@functools.cache
def subject(devices: int = 1) -> Loaded:
    net = small("gpt")
    return Loaded(
        "small", net, random_params(net), tokenizer(), device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:devices])
    )


def scored(pairs: Any) -> list[Likelihood]:
    return likelihoods(subject(), pairs, batch=4, dtype=jnp.float32)


def write(path: Path, *lines: Any) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def pair(good: str, bad: str, **fields: str) -> dict[str, str]:
    return {"sentence_good": good, "sentence_bad": bad, **fields}


def stored_run(path: Path) -> Path:
    """A run's folder with one checkpoint, of the parameters of `subject` alone."""
    cfg = tiny.run(model=subject().model.config, precision="float32")
    folder, everywhere = RunDir(path), NamedSharding(device_mesh.make_mesh(run_config.Mesh()), PartitionSpec())
    folder.tokenizer.mkdir(parents=True)
    folder.write_config(cfg)
    tokenizer().save(folder.tokenizer)
    state = State(step=np.int32(7), params=subject().params, opt_state={}, carry={}, key=np.zeros(2, np.uint32))
    with Checkpoints(folder.checkpoints, 1, notify=pytest.fail) as checkpoints:
        checkpoints.save(jax.device_put(state, everywhere), {"tokenizer": tokenizer().fingerprint})
        assert checkpoints.wait()
    return path
