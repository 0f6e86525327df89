"""`zoo bench step`: steps agree before they are timed, results survive a kill, and the profiler's time is all accounted for."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks.core import guarded_trials, peer_process, result_files, timing
from benchmarks.core.options import Output, StepOptions
from benchmarks.core.peer_process import Kind, Peer
from benchmarks.core.worker_process import WorkerFailed
from benchmarks.step import bench_step, cases, measure_model, peer_libraries, programs
from benchmarks.step.programs import OURS, Step, StepParts, Variant
from tests.support import benchmark_steps as steps
from tests.support.benchmark_steps import SMALL
from tests.support.commands import call
from tests.support.processes import ROOT
from train.engine import optim, state_init
from train.objectives.causal import Causal
from train.step.assembly import ENGINES
from train.step.training_step import make_step

BOTH = ("scan", "unroll")
SCAN, UNROLL = (f"{OURS} {layers}" for layers in BOTH)
PROBE, COLD = timing.matrix_products, timing.without_compilation_cache
UNIT = {"program": OURS, "remat": "none", "precision": "float32", "attention": "auto", "mesh": "data=1"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models, quick compilation, and no matrix products in turns with the steps."""
    steps.shrink(monkeypatch)
    monkeypatch.setattr(timing, "matrix_products", lambda precision: (lambda: sum(range(100)), 1e9))


def options(*models: str, **changes: Any) -> StepOptions:
    return StepOptions(**{"models": models, "rounds": 1, "layers": ("scan",), **SMALL, **changes})


def measured(folder: Path, *models: str, **changes: Any) -> dict[str, dict[str, Any]]:
    """Measure, and return the cells by the names of their programs."""
    bench_step.main(options(*models, output=Output(str(folder), json=True), **changes), [])
    return {cell["key"]["program"] + " " + cell["key"]["layers"]: cell for cell in result_files.read_results(folder).cells}


@pytest.mark.parametrize(
    "name", ["t5-nano", *(pytest.param(f"{name}-nano", marks=pytest.mark.full) for name in ("gpt", "bert", "xlnet"))]
)
def test_every_objective_has_a_batch_that_its_loss_takes(name: str) -> None:
    """By shapes alone: every mode of the family lowers, and predicts what the targets are of."""
    for mode in ["train", "inference", *(["decode"] if name != "bert-nano" else [])]:
        case = cases.make_case(name, mode, **SMALL)  # pyright: ignore[reportArgumentType]
        program = Step(case, Variant())
        state, loss = jax.eval_shape(program._jitted, program._parts.shapes, program._batch)
        assert loss.shape == () and jax.tree.structure(state) == jax.tree.structure(program._parts.shapes)
    batch = cases.make_case(name, "train", **SMALL).arrays()
    assert batch.targets is not None and batch.weights is not None
    if (at := batch.predicted_positions) is not None:
        assert batch.targets.shape == at.shape == batch.weights.shape
        assert (np.diff(at, axis=1) > 0).all()


def test_masked_words_are_hidden_and_predicted_as_they_were() -> None:
    batch = cases.make_case("bert-nano", "train", batch=2, length=16).arrays()
    assert batch.predict_at is not None and batch.targets is not None
    assert batch.predict_at.shape == (2, 3)  # 15 % of 16, rounded up
    hidden = np.take_along_axis(batch.tokens, batch.predict_at, axis=1)
    assert (hidden == cases.MASK).all() and not (batch.targets == hidden).all()


def test_ways_of_computing_agree_and_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "matrix_products", PROBE)
    monkeypatch.setattr(timing, "without_compilation_cache", COLD)
    cells = measured(tmp_path / "out", "gpt-nano", layers=BOTH, profile=True)
    scan, unroll = cells[SCAN], cells[UNROLL]
    assert scan["state"] == unroll["state"] == "timed"
    assert scan["ratio"] == 1.0 and unroll["ratio"] > 0
    assert scan["loss"] == pytest.approx(np.log(131), rel=0.02)
    assert abs(scan["loss_after"] - unroll["loss_after"]) < 1e-4 < scan["loss"] - scan["loss_after"]
    assert scan["tokens_per_s"] == pytest.approx(16 / scan["seconds"])
    assert scan["first_step_seconds"] > scan["compile_seconds"] > 0
    # Parameters and both moments, and what XLA plans besides.
    assert scan["memory"] > scan["memory_arguments"] > 3 * 4 * 131 * 32
    assert scan["memory_reused"] > 0.99 * (scan["memory_outputs"] - 64)
    profile = scan["profile"]
    assert sum(sum(by.values()) for by in profile["parts"].values()) == pytest.approx(profile["seconds"], rel=1e-3)
    assert {"matrix products", "attention", "loss head", "norms", "optimizer"} <= set(profile["parts"])
    assert all({"forward", "backward"} <= set(profile["parts"][part]) for part in ("matrix products", "attention", "norms"))
    assert profile["parts"]["optimizer"].keys() <= {"update", "forward", "backward"}
    assert sum(row["seconds"] for row in profile["other"]) >= 0.9 * sum(profile["parts"].get("other", {}).values())
    assert result_files.read_results(tmp_path / "out").unit == {**UNIT, "layers": "scan"}
    for name in ("table.md", "table.csv", "report.html"):
        assert "unroll" in (tmp_path / "out" / name).read_text()


@pytest.mark.full
def test_the_measured_step_is_that_of_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, twice: what is measured is what `train.step.training_step` launches."""
    monkeypatch.setattr(programs, "COMPILER", {})
    case = cases.make_case("gpt-nano", "train", **SMALL)
    ours, params = Step(case, Variant()), programs.case_params(case)
    ours.compile()
    ours.start(params)
    run, net = ours.run_config, ours.model
    tx = optim.make_optimizer(run.optim)
    places = jax.tree.map(lambda leaf: leaf.sharding, state_init.abstract_state(run, net, tx, ours.mesh))
    engine = ENGINES["jit"](make_step(run, net, Causal(), tx, ours.dtype), ours.mesh, places, case.batch)
    state = dataclasses.replace(state_init.init_state(run, net, tx, ours.mesh, params), key=jax.numpy.zeros(2, "uint32"))
    batch = engine.shard_batch(case.arrays())
    for _ in range(2):
        state, metrics = engine.step(state, batch, {})
        assert float(metrics["loss"]) == ours.run()


@pytest.mark.full
def test_decoding_is_measured_without_the_prompt(tmp_path: Path) -> None:
    cell = measured(tmp_path / "out", "gpt-nano", mode="decode")[SCAN]
    assert cell["state"] == "timed" and cell["flops"] is None
    assert cell["tokens_per_s"] == pytest.approx(2 / cell["seconds"])
    assert cell["bytes_per_s"] == pytest.approx(cell["bytes"] / cell["seconds"])
    assert cell["of_copy_rate"] == pytest.approx(cell["bytes_per_s"] / 1e9)
    assert "bytes that a step must read once" in (tmp_path / "out" / "report.html").read_text()


def other_norms(honest: Callable[[Step], StepParts], program: Step) -> StepParts:
    config = dataclasses.replace(program.case.config, eps=0.5, compute=program.model.config.compute)
    program.model = dataclasses.replace(program.model, config=config)
    return honest(program)


def other_rate(honest: Callable[[Step], StepParts], program: Step) -> StepParts:
    program.run_config = dataclasses.replace(program.run_config, optim=dataclasses.replace(program.run_config.optim, lr=2e-3))
    return honest(program)


def infinite(honest: Callable[[Step], StepParts], program: Step) -> StepParts:
    return dataclasses.replace(honest(program), step=lambda state, batch: (state, jax.numpy.float32(jax.numpy.inf)))


@pytest.mark.planted
@pytest.mark.parametrize(
    ("mode", "layers", "mistake", "reason"),
    [
        ("inference", "unroll", other_norms, "first loss"),
        # Found by the loss after the first update.
        pytest.param("train", "unroll", other_rate, "after an update", marks=pytest.mark.full),
        # Also the first, with which the others are compared.
        pytest.param("inference", "scan", infinite, "its first two losses are inf and inf", marks=pytest.mark.full),
    ],
)
def test_a_wrong_step_is_not_timed(
    mode: Any, layers: str, mistake: Any, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = programs.MODES[mode]
    monkeypatch.setitem(
        programs.MODES, mode, lambda program: mistake(honest, program) if program.variant.layers == layers else honest(program)
    )
    cells = measured(tmp_path / "out", "gpt-nano", mode=mode, layers=BOTH)
    wrong, right = (cells[f"{OURS} {each}"] for each in sorted(BOTH, key=lambda each: each != layers))
    assert wrong["state"] == "wrong" and reason in wrong["reason"] and "seconds" not in wrong
    assert right["state"] == "timed"


PEER = """
def build(folder, asked, batch):
    assert (folder / "config.json").exists() and batch["tokens"].shape == (2, 8)
    losses = iter({losses})
    return lambda: next(losses)
"""
PEERS = {
    "honest": ("[{first}, {second}] * 99", "timed", ""),
    "off at once": ("[{first} + 0.01] * 99", "wrong", "first loss"),
    "off after an update": ("[{first}, {second} + 0.1] * 99", "wrong", "after an update"),
    "nan": ("[float('nan')] * 99", "wrong", "nan"),
    "unable": ("[1 / 0]", "failed", "ZeroDivisionError: division by zero"),
    "ending early": ("[{first}, {second}]", "failed", "ended with code 1: StopIteration"),
}
"""Peer -> (its losses, what becomes of it, why)."""


def plant_peers(folder: Path, patch: pytest.MonkeyPatch, sources: dict[str, str]) -> None:
    """Make these modules all the peers that there are."""
    kinds = {}
    for name, source in sources.items():
        module = f"planted_{name.replace(' ', '_')}"
        (folder / f"{module}.py").write_text(source)
        kinds[name] = Kind(module, ())
    patch.setenv("PYTHONPATH", f"{folder}:{ROOT}")
    patch.setattr(peer_libraries, "PEERS", kinds)


@functools.cache
def first_losses() -> tuple[float, float]:
    """Return those of the first two steps of the small GPT."""
    case = cases.make_case("gpt-nano", "train", **SMALL)
    program = Step(case, Variant())
    program.compile()
    program.start(programs.case_params(case))
    return program.run(), program.run()


@pytest.mark.full
@pytest.mark.planted(3)
def test_a_peer_is_timed_if_it_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with one peer stops no other."""
    first, second = first_losses()
    sources = {name: PEER.format(losses=losses.format(first=first, second=second)) for name, (losses, _, _) in PEERS.items()}
    plant_peers(tmp_path, monkeypatch, sources)
    cells = measured(tmp_path / "out", "gpt-nano", peers=True)
    assert cells[SCAN]["state"] == "timed"
    for name, (_, state, reason) in PEERS.items():
        peer = cells[f"{name} "]
        assert (peer["state"], "seconds" in peer) == (state, state == "timed"), peer
        assert reason in peer["reason"]


@pytest.mark.parity
@pytest.mark.parametrize("name", ["gpt-nano", "t5-nano"])
def test_transformers_decodes_the_same_token_at_every_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cache grows by the token, which is removed again: otherwise its second loss would be another."""
    monkeypatch.setattr(peer_libraries, "PEERS", {"transformers": peer_libraries.PEERS["transformers"]})
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    peer = measured(tmp_path / "out", name, mode="decode", peers=True)["transformers "]
    assert peer["state"] == "timed", peer


@pytest.mark.full
def test_peers_without_room_for_all_are_timed_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with the unit in its rounds; what has room beside none is skipped, with the numbers."""
    first, second = first_losses()
    plant_peers(tmp_path, monkeypatch, dict.fromkeys(("one", "two"), PEER.format(losses=f"[{first}, {second}] * 99")))
    alive: list[Peer] = []
    start, close = Peer.__init__, Peer.close
    monkeypatch.setattr(Peer, "__init__", lambda self, *arguments: (start(self, *arguments), alive.append(self))[0])
    monkeypatch.setattr(Peer, "close", lambda self: (close(self), alive.remove(self) if self in alive else None)[0])
    honest = measure_model._Group.out_of_memory
    monkeypatch.setattr(measure_model._Group, "out_of_memory", property(lambda self: len(alive) > 0))
    cells = measured(tmp_path / "out", "gpt-nano", peers=True)
    assert [cells[name]["state"] for name in (SCAN, "one ", "two ")] == ["timed"] * 3
    assert cells["one "]["ratio"] and cells["two "]["ratio"]
    monkeypatch.setattr(guarded_trials, "free_bytes", lambda: int(2 * cells[SCAN]["memory"]))
    monkeypatch.setattr(measure_model._Group, "out_of_memory", honest)
    cells = measured(tmp_path / "again", "gpt-nano", peers=True)
    assert cells["one "]["state"] == "skipped" and " are free" in cells["one "]["reason"]


def test_a_peer_that_does_not_answer_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_peers(tmp_path, monkeypatch, {"sleepy": "import time\nbuild = lambda *_: time.sleep(99)\n"})
    monkeypatch.setattr(peer_process, "PATIENCE", 0.1)
    # A process that starts within this time reads the request and the batch before it sleeps.
    (tmp_path / peer_process.REQUEST).write_text("{}")
    np.savez(tmp_path / peer_process.ARRAYS)
    peer = Peer(peer_libraries.PEERS["sleepy"], tmp_path)
    with pytest.raises(WorkerFailed, match="no answer within"):
        peer.begin()
    assert peer._process.poll() is not None


@pytest.mark.full
def test_programs_that_cannot_run_are_skipped_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that is not installed, and an attention that refuses."""
    monkeypatch.setattr(peer_libraries, "PEERS", {"absent": Kind("nowhere", ("no_such_package",))})
    cells = measured(tmp_path / "out", "gpt-nano", mode="inference", peers=True, attention=("auto", "cudnn"))
    assert (cells["absent "]["state"], cells["absent "]["reason"]) == ("skipped", "no_such_package not installed")
    ours = {cell["key"]["attention"]: cell for cell in result_files.read_results(tmp_path / "out").cells}
    assert ours["auto"]["state"] == "timed"
    assert ours["cudnn"]["state"] == "skipped" and "cudnn" in ours["cudnn"]["reason"]


@pytest.mark.full
def test_programs_that_do_not_fit_into_memory_are_skipped_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before compiling by the state alone; after it by what XLA planned."""
    state = Step(cases.make_case("gpt-nano", "train", **SMALL), Variant()).state_bytes
    for room, reason in ((state / 2, "its state alone needs"), (1.2 * state, "compiled, it needs")):
        monkeypatch.setattr(guarded_trials, "free_bytes", lambda room=room: int(room))
        cell = measured(tmp_path / f"{room}", "gpt-nano")[SCAN]
        assert cell["state"] == "skipped" and reason in cell["reason"] and " are free" in cell["reason"]


@pytest.mark.parametrize(("slower", "code"), [(1.0, 0), pytest.param(1.3, 1, marks=pytest.mark.planted)])
def test_compare_takes_steps_over_the_first_way_of_each_model(
    slower: float, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = bench_step.resolve_step_options(options("gpt-nano", "bert-nano", layers=BOTH), "cpu")
    ways = list(itertools.product(bench_step.step_cases(request), bench_step.step_variants(request)))
    for name, factor in (("before", 1.0), ("after", slower)):
        environment = result_files.describe_environment() | {"versions": {"jax": name}}
        writer = result_files.Writer(
            tmp_path / name / result_files.CELLS, "step", environment, {}, bench_step.unit_of_ratios(request)
        )
        for process, (case, way) in itertools.product(range(3), ways):
            ratio = 0.8 * factor * (1 + 0.01 * process) if way.layers == "unroll" else 1.0
            key, columns = programs.step_key(case, way), timing.time_columns([2.0 * ratio], [2.0])
            writer.write({"key": key, "process": process, "state": "timed", "reason": "", **columns})
        writer.close()
    done = call(capsys, "bench", "compare", str(tmp_path / "before"), str(tmp_path / "after"))
    assert done.code == code and "jax: before before, after now" in done.stdout, done.stdout
    assert ("regression (2)" in done.stdout) == ("+30.0%" in done.stdout) == (code == 1)
