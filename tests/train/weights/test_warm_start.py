"""What a run begins with: another model's body, and its head where that serves the same task and labels."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.support import tiny
from tests.support.encoder_text import uncased
from tests.support.small import small
from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.manifest import by_path
from train.config import run_config
from train.config.data_options import CausalData
from train.config.lora_options import Lora
from train.config.objectives import CausalOptions
from train.engine import device_mesh
from train.engine.state import State
from train.run.run_dir import RunDir
from train.weights import warm_start
from zoo import configs, sharding
from zoo.cli import early_checks
from zoo.errors import BadInput
from zoo.models import Model, model

NUMBERS = dict(vocab=128, context=16, layers=2, width=32, heads=4, ffn=64, dropout=0.0, attention_dropout=0.0)
STEP = 7


def net(name: str, task: str, labels: tuple[str, ...] = (), multi_label: bool = False, **changes: Any) -> Model:
    size = configs.find_size(name)[1].config
    head = {"task": task, "labels": labels, "multi_label": multi_label}
    return model(dataclasses.replace(size, **{**NUMBERS, **head, **changes}))


def run(of: Model, init: Path | str = "", **changes: Any) -> run_config.Run:
    parts = {"options": CausalOptions(), "data": CausalData(length=16)}
    return run_config.Run(recipe="fitted", model=of.config, init=str(init), **parts, **changes)


@functools.cache
def fresh_params(of: Model, seed: int = 0) -> dict[str, np.ndarray]:
    return by_path(jax.device_get(jax.jit(of.init)(jax.random.key(seed))))


def trained(folder: Path, of: Model) -> dict[str, np.ndarray]:
    """Make a run of one checkpoint in a folder; returns its parameters by path, none of them a fresh one."""
    files, rng, tokenizer = RunDir(folder), np.random.default_rng(0), uncased()
    files.tokenizer.mkdir(parents=True)
    tokenizer.save(files.tokenizer)
    files.write_config(run(of))
    everywhere = NamedSharding(device_mesh.make_mesh(run_config.Mesh()), PartitionSpec())
    params = jax.tree.map(
        lambda leaf: jax.device_put(np.float32(rng.standard_normal(leaf.shape)), everywhere),
        jax.eval_shape(of.init, jax.random.key(0)),
    )
    step, key = (jax.device_put(value, everywhere) for value in (np.int32(STEP), np.zeros(2, np.uint32)))
    with Checkpoints(files.checkpoints, 1, notify=pytest.fail) as checkpoints:
        checkpoints.save(State(step=step, params=params, opt_state={}, carry={}, key=key), {"tokenizer": tokenizer.fingerprint})
        assert checkpoints.wait()
    return by_path(jax.device_get(params))


def begun(of: Model, init: Path, mesh: run_config.Mesh | None = None, seed: int = 3) -> tuple[dict[str, np.ndarray], list[str]]:
    """Parameters by path that a run begins with, and the messages to the user."""
    messages: list[str] = []
    chosen = run(of, init, seed=seed)
    warm_start.check_init(chosen)
    params = warm_start.initial_params_from(chosen, of, device_mesh.make_mesh(mesh or run_config.Mesh()), messages.append)
    assert jax.tree.structure(params) == jax.tree.structure(jax.eval_shape(of.init, jax.random.key(0)))
    return by_path(jax.device_get(params)), messages


def begun_longer(of: Model, init: Path, how: configs.InitPositions) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return what `begun` does for a run with other positions than its beginning."""
    messages: list[str] = []
    chosen = run(of, init, seed=3, init_positions=how)
    warm_start.check_init(chosen)
    params = warm_start.initial_params_from(chosen, of, device_mesh.make_mesh(run_config.Mesh()), messages.append)
    return by_path(jax.device_get(params)), messages


def parts(paths: set[str]) -> set[str]:
    return {path.split("/")[0] for path in paths}


SEQUENCE = ("sequence", ("no", "yes"))
OTHER_HEADS = (
    ("bert-nano", ("pretraining",), SEQUENCE, ["classifier"]),
    ("bert-nano", SEQUENCE, ("pretraining",), ["masked", "masked/dense", "masked/norm", "next"]),
    ("bert-nano", SEQUENCE, ("tokens", ("no", "yes")), ["classifier"]),
    ("bert-nano", SEQUENCE, ("sequence", ("yes", "no")), ["classifier"]),
    ("bert-nano", SEQUENCE, (*SEQUENCE, True), ["classifier"]),
    ("roberta-nano", ("masked",), SEQUENCE, ["classifier", "dense"]),
    ("modernbert-nano", ("masked",), SEQUENCE, ["classifier", "dense", "dense/norm"]),
)


@pytest.mark.full
@pytest.mark.parametrize(("name", "before", "after", "fresh"), OTHER_HEADS)
def test_common_parameters_are_copied_and_new_ones_initialized_and_named(
    name: str, before: Any, after: Any, fresh: list[str], tmp_path: Path
) -> None:
    theirs, ours = trained(tmp_path, net(name, *before)), net(name, *after)
    params, messages = begun(ours, tmp_path)
    assert messages == [f"--init {tmp_path}: it has no weights for this task, newly initialized: {', '.join(fresh)}"]
    new = {path for path in params if path.rpartition("/")[0] in fresh}
    assert parts(new) == parts(set(fresh))
    for path, leaf in params.items():
        if path not in new:
            assert leaf.tobytes() == theirs[path].tobytes(), path
    for path in new:
        # Two programs may round the normal distribution's inverse differently, in its last digits.
        np.testing.assert_allclose(params[path], fresh_params(ours, seed=3)[path], rtol=1e-5, atol=1e-8, err_msg=path)
    kernels = [path for path in new if path.endswith("kernel")]
    assert kernels
    assert all(np.abs(params[path] - fresh_params(ours, seed=4)[path]).max() > 1e-3 for path in kernels)


@pytest.mark.parametrize("head", [SEQUENCE, pytest.param(("pretraining",), marks=pytest.mark.full)])
def test_the_same_task_and_labels_are_copied_whole(head: Any, tmp_path: Path) -> None:
    """Whatever is dropped in training, and however it is computed."""
    theirs = trained(tmp_path, net("bert-nano", *head))
    params, messages = begun(net("bert-nano", *head, dropout=0.3, compute=configs.Compute(remat="full")), tmp_path)
    assert messages == []
    assert params.keys() == theirs.keys()
    assert not [path for path in params if params[path].tobytes() != theirs[path].tobytes()]


@pytest.mark.full
def test_a_mesh_changes_where_the_parameters_lie_and_nothing_else(tmp_path: Path) -> None:
    ours = net("bert-nano", *SEQUENCE)
    trained(tmp_path, net("bert-nano", "pretraining"))
    devices = device_mesh.make_mesh(run_config.Mesh(data=2, fsdp=2, tensor=2))
    params = warm_start.initial_params_from(run(ours, tmp_path, seed=3), ours, devices, lambda _: None)
    places = sharding.shardings(devices, jax.eval_shape(ours.init, jax.random.key(0)), ours.definition.sharding)
    for leaf, place in zip(jax.tree.leaves(params), jax.tree.leaves(places), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(params))
    expected, _ = begun(ours, tmp_path)
    for path, leaf in by_path(jax.device_get(params)).items():
        if path.startswith("classifier"):
            np.testing.assert_allclose(leaf, expected[path], rtol=1e-5, atol=1e-8, err_msg=path)
        else:
            assert leaf.tobytes() == expected[path].tobytes(), path


def test_a_run_without_a_checkpoint_cannot_be_a_beginning(tmp_path: Path) -> None:
    ours = net("bert-nano", "pretraining")
    RunDir(tmp_path).write_config(run(ours))
    with pytest.raises(BadInput, match="no checkpoint yet; train the run first"):
        warm_start.check_init(run(ours, tmp_path))


LEARNED: dict[str, dict[str, Any]] = {
    "gpt": {},
    "bert": {},
    "distilbert": {},
    "roberta": {"position_offset": 2},
    "transformer": {"positions": "learned"},
}
"""Families with learned positions, and changes of their small models. The first position of RoBERTa has row 2."""


def with_positions(family: str, count: int) -> Model:
    field = "max_positions" if family == "transformer" else "context"
    return small(family, **LEARNED[family], **{field: count})


@pytest.mark.parametrize("family", [pytest.param(name, marks=[pytest.mark.full] * (name == "distilbert")) for name in LEARNED])
def test_learned_positions_are_interpolated(family: str, tmp_path: Path) -> None:
    """Between 16 positions and 40, the ends are equal, as every 13th row is: 39 / 15 = 13 / 5. All else is copied."""
    theirs, longer = trained(tmp_path, with_positions(family, 16)), with_positions(family, 40)
    params, messages = begun_longer(longer, tmp_path, "interpolate")
    field = "max_positions" if family == "transformer" else "context"
    assert messages == [f"--init {tmp_path}: --init-positions interpolate: {field} 16 -> 40"]
    tables = [path for path in params if path.endswith(warm_start.LEARNED_POSITIONS)]
    assert len(tables) == (2 if family == "transformer" else 1)
    for path, leaf in params.items():
        if path not in tables:
            assert leaf.tobytes() == theirs[path].tobytes(), path
    offset = LEARNED[family].get("position_offset", 0)
    for path in tables:
        before, after = theirs[path][offset:], params[path][offset:]
        assert (before.shape[0], after.shape[0]) == (16, 40)
        assert params[path][:offset].tobytes() == theirs[path][:offset].tobytes()
        expected = [np.interp(np.arange(40) * 15 / 39, np.arange(16), np.float64(column)) for column in before.T]
        np.testing.assert_allclose(after, np.transpose(expected), rtol=0, atol=1e-6)
        assert after[::13].tobytes() == before[::5].tobytes()


@pytest.mark.planted(2)
def test_an_offset_and_the_last_row_count() -> None:
    table = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
    longer = np.asarray(warm_start.interpolate_positions(jnp.asarray(table), 24, 2))
    assert np.abs(longer - np.asarray(warm_start.interpolate_positions(jnp.asarray(table), 26, 0))).max() > 0.1
    paper = [np.interp(np.arange(24) * 8 / 24, np.arange(8), column) for column in table[2:].T]
    assert np.abs(longer[2:] - np.transpose(paper)).max() > 0.1


def test_one_position_is_repeated() -> None:
    table = jnp.asarray([[1.0, 2.0]])
    assert warm_start.interpolate_positions(table, 3, 0).tolist() == [[1, 2]] * 3


@pytest.mark.parametrize("of", ["llama", pytest.param("gpt_oss", marks=pytest.mark.full)])
def test_rotations_are_those_of_the_run(of: str, tmp_path: Path) -> None:
    scaling = {"scaling": "yarn"} if of == "llama" else {}
    theirs = trained(tmp_path, small(of))
    longer = small(of, context=64, base=777.0, scaling_factor=2.0, original_context=32, **scaling)
    params, (message,) = begun_longer(longer, tmp_path, "recompute")
    assert message.startswith(f"--init {tmp_path}: --init-positions recompute: context 32 -> 64, base ")
    assert all(params[path].tobytes() == theirs[path].tobytes() for path in params)


NOT_LONGER: list[tuple[str, dict[str, Any], configs.InitPositions, str]] = [
    (
        "gpt",
        {"context": 40},
        "same",
        "another model: context 32 there and 40 here; .* or choose --init-positions interpolate for",
    ),
    (
        "llama",
        {"context": 40},
        "same",
        "another model: context 32 there and 40 here; .* or choose --init-positions recompute for",
    ),
    ("llama", {"context": 40, "ffn": 32}, "same", r"context 32 there and 40 here, ffn 64 there and 32 here; .* set --model\.\*$"),
    ("llama", {"ffn": 32, "base": 5.0}, "recompute", r"another model: ffn 64 there and 32 here; .* set --model\.\*$"),
    ("gpt", {"context": 24}, "interpolate", "--model.context 24: the model of --init has 32 positions, .* choose more"),
    ("gpt", {"context": 40}, "recompute", "--init-positions recompute: a gpt does not have them; choose same or interpolate"),
    (
        "llama",
        {"context": 40},
        "interpolate",
        "--init-positions interpolate: a llama does not have them; choose same or recompute",
    ),
    ("xlnet", {}, "interpolate", "--init-positions interpolate: a xlnet does not have them; choose same$"),
    ("llama", {}, "recompute", "--init-positions recompute: the positions of --init are the same; leave it out"),
]


@pytest.mark.parametrize(("family", "changes", "how", "message"), NOT_LONGER)
def test_positions_are_changed_by_an_option_only(
    family: str, changes: dict[str, Any], how: configs.InitPositions, message: str, tmp_path: Path
) -> None:
    RunDir(tmp_path).write_config(run(small(family)))
    with pytest.raises(BadInput, match=message):
        warm_start.check_init(run(small(family, **changes), tmp_path, init_positions=how))


def test_changed_positions_need_a_beginning_and_have_no_reference() -> None:
    model = small("llama").config
    with pytest.raises(BadInput, match="--init-positions recompute: it has an effect only with --init"):
        run(small("llama"), init_positions="recompute").check_base()
    for objective in ("dpo", "ppo"):
        chosen = tiny.run(objective, model=model, init="x", init_positions="recompute")
        with pytest.raises(BadInput, match="--init-positions recompute: the reference is the model of --init with its own"):
            chosen.options.check_start(chosen)


def test_an_adapter_for_other_positions_than_those_of_its_base_is_not_exported(tmp_path: Path) -> None:
    longer = run(small("llama"), "base", init_positions="recompute", lora=Lora(rank=2))
    RunDir(tmp_path).write_config(longer)
    with pytest.raises(BadInput, match=r"--adapter: .* has other positions than base, to which an adapter would be added; leave"):
        early_checks.check_export(str(tmp_path), 0, None, 5.0, True)
