"""`zoo bench step`: steps agree before they are timed, results survive a kill, and the profiler's time is all accounted for."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import cases, peers, programs, records, step, step_group, step_settings, step_tables, timing, trials
from benchmarks.command import Request
from benchmarks.peers import Kind, Peer, PeerFailed
from benchmarks.programs import Step, Variant
from benchmarks.step_settings import OURS, Settings
from tests.support import benchmark_steps as steps
from tests.support.benchmark_steps import SMALL
from tests.support.commands import call
from train import mesh as meshes
from train import optim
from train.objectives import causal
from train.step import ENGINES, make_step

ROOT = Path(peers.__file__).parent.parent


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models, quick compilation, and a machine that is known already."""
    steps.shrink(monkeypatch)
    monkeypatch.setattr(records, "environment", steps.environment)


def settings(*models: str, **changes: Any) -> Settings:
    return Settings(**{"models": models, "rounds": 1, "layers": ("scan",), **SMALL, **changes})


def measured(folder: Path, *models: str, resume: bool = False, **changes: Any) -> dict[str, dict[str, Any]]:
    """Cells by the names of their programs."""
    step.main(settings(*models, **changes), Request([], str(folder), resume=resume, json=True))
    return {cell["key"]["program"] + " " + cell["key"]["layers"]: cell for cell in records.read(folder).cells}


UNIT = {"program": OURS, "remat": "none", "precision": "float32", "attention": "auto", "mesh": "data=1"}

# --- what is measured -----------------------------------------------------------------------------------------------------------

NANOS = ("gpt-nano", "bert-nano", "t5-nano", "xlnet-nano")


@pytest.mark.parametrize("name", NANOS)
def test_every_objective_has_a_batch_that_its_loss_takes(name: str) -> None:
    """Shapes alone: every mode of the family lowers, and predicts what the targets are of."""
    modes = ["train", "inference", *(["decode"] if name != "bert-nano" else [])]
    for mode in modes:
        case = cases.case(name, mode, **SMALL)  # pyright: ignore[reportArgumentType]
        made = Step(case, Variant())
        state, loss = jax.eval_shape(made._jitted, made._made.shapes, made._batch)
        assert loss.shape == () and jax.tree.structure(state) == jax.tree.structure(made._made.shapes)
    batch = cases.case(name, "train", **SMALL).arrays()
    assert batch.targets is not None and batch.weights is not None
    at = batch.places
    if at is not None:
        assert batch.targets.shape == at.shape == batch.weights.shape
        assert (np.diff(at, axis=1) > 0).all()


def test_masked_words_are_hidden_and_predicted_as_they_were() -> None:
    case = cases.case("bert-nano", "train", batch=2, length=16)
    batch = case.arrays()
    assert batch.predict_at is not None and batch.targets is not None
    assert batch.predict_at.shape == (2, 3)  # 15 % of 16, rounded up
    hidden = np.take_along_axis(batch.tokens, batch.predict_at, axis=1)
    assert (hidden == cases.MASK).all() and not (batch.targets == hidden).all()


def test_ways_of_computing_agree_and_are_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(tmp_path / "out", "gpt-nano", layers=("scan", "unroll"), profile=True)
    scan, unroll = found[f"{OURS} scan"], found[f"{OURS} unroll"]
    assert scan["state"] == unroll["state"] == "timed"
    assert scan["ratio"] == 1.0 and unroll["ratio"] > 0
    assert scan["loss"] == pytest.approx(np.log(131), rel=0.02)
    assert abs(scan["loss_after"] - unroll["loss_after"]) < 1e-4 < scan["loss"] - scan["loss_after"]
    assert scan["tokens_per_s"] == pytest.approx(16 / scan["seconds"])
    assert scan["first_step_seconds"] > scan["compile_seconds"] > 0
    # Parameters and both moments, and what XLA plans besides.
    assert scan["memory"] > scan["memory_arguments"] > 3 * 4 * 131 * 32
    assert scan["memory_reused"] > 0.99 * (scan["memory_outputs"] - 64)
    _accounted(scan["profile"])
    capsys.readouterr()
    results = records.read(tmp_path / "out")
    assert results.unit == {**UNIT, "layers": "scan"}
    for name in ("table.md", "table.csv", "report.html"):
        assert "unroll" in (tmp_path / "out" / name).read_text()


def _accounted(profile: dict[str, Any]) -> None:
    """The parts sum up to the step, and a training step has all of those that it must have."""
    total = sum(sum(by.values()) for by in profile["parts"].values())
    assert total == pytest.approx(profile["seconds"], rel=1e-3)
    assert {"matrix products", "attention", "loss head", "norms", "optimizer"} <= set(profile["parts"])
    for part in ("matrix products", "attention", "norms"):
        assert {"forward", "backward"} <= set(profile["parts"][part])
    assert profile["parts"]["optimizer"].keys() <= {"update", "forward", "backward"}
    named = sum(row["seconds"] for row in profile["other"])
    assert named >= 0.9 * sum(profile["parts"].get("other", {}).values())


def test_it_is_the_trainers_own_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, twice: what is measured is what `train.step` launches."""
    monkeypatch.delitem(programs.COMPILER, "xla_backend_optimization_level")
    case = cases.case("gpt-nano", "train", **SMALL)
    ours, params = Step(case, Variant()), programs.initial(case)
    ours.compile()
    ours.start(params)
    run, net = ours.run_config, ours.net
    tx = optim.optimizer(run.optim)
    places = jax.tree.map(lambda leaf: leaf.sharding, meshes.abstract_state(run, net, tx, ours.mesh))
    engine = ENGINES["jit"](make_step(run, net, causal, tx, ours.dtype), ours.mesh, places, case.batch)
    state = dataclasses.replace(meshes.init_state(run, net, tx, ours.mesh, params), key=jax.numpy.zeros(2, "uint32"))
    batch = engine.place(case.arrays())
    for _ in range(2):
        state, metrics = engine.step(state, batch, {})
        assert float(metrics["loss"]) == ours.run()


def test_tables_begin_with_the_unit() -> None:
    """Peers need no profile, so that their cells are written before ours; ratios are over the first row."""
    job = {"model": "gpt2", "mode": "train", "batch": 2, "length": 512, "source": 0, "dropout": False}
    made = [("transformers", "", "timed"), (OURS, "unroll", "failed"), (OURS, "scan", "timed")]
    cells = [{"key": {**job, **UNIT, "program": name, "layers": layers}, "state": state} for name, layers, state in made]
    rows = step_tables.models(cells)["gpt2, train, 2 x 512"]
    assert [row["key"]["layers"] for row in rows] == ["scan", "unroll", ""]


def test_decoding_costs_no_prompt(tmp_path: Path) -> None:
    cell = measured(tmp_path / "out", "gpt-nano", mode="decode")[f"{OURS} scan"]
    assert cell["state"] == "timed" and cell["flops"] is None
    assert cell["tokens_per_s"] == pytest.approx(2 / cell["seconds"])
    assert cell["bytes_per_s"] == pytest.approx(cell["bytes"] / cell["seconds"])
    assert cell["of_copy_rate"] == pytest.approx(cell["bytes_per_s"] / 1e9)
    for name in ("table.md", "report.html"):
        shown = (tmp_path / "out" / name).read_text()
        assert "of copies" in shown and f"{cell['of_copy_rate']:.0%}" in shown and "what a step must read once" in shown
    assert "bytes_per_s" in (tmp_path / "out" / "table.csv").read_text().splitlines()[0]


# --- what must not be timed -----------------------------------------------------------------------------------------------------


@pytest.mark.planted
def test_another_loss_is_wrong_and_never_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variant whose norms are others."""
    honest = programs._inference

    def planted(made: Step) -> programs.Made:
        if made.variant.layers == "unroll":
            case = dataclasses.replace(made.case, config=dataclasses.replace(made.case.config, eps=0.5))
            made.net = dataclasses.replace(made.net, config=dataclasses.replace(case.config, compute=made.net.config.compute))
        return honest(made)

    monkeypatch.setitem(programs.MODES, "inference", planted)
    found = measured(tmp_path / "out", "gpt-nano", mode="inference", layers=("scan", "unroll"))
    wrong = found[f"{OURS} unroll"]
    assert wrong["state"] == "wrong" and "first loss" in wrong["reason"] and "seconds" not in wrong
    assert found[f"{OURS} scan"]["state"] == "timed"


@pytest.mark.planted
def test_another_optimizer_is_wrong_by_its_second_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = programs._train

    def planted(made: Step) -> programs.Made:
        if made.variant.layers == "unroll":
            optim = dataclasses.replace(made.run_config.optim, lr=2e-3)
            made.run_config = dataclasses.replace(made.run_config, optim=optim)
        return honest(made)

    monkeypatch.setitem(programs.MODES, "train", planted)
    wrong = measured(tmp_path / "out", "gpt-nano", layers=("scan", "unroll"))[f"{OURS} unroll"]
    assert wrong["state"] == "wrong" and "after an update" in wrong["reason"]


@pytest.mark.planted
def test_the_first_of_ours_is_no_measure_if_it_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = programs.MODES["inference"]

    def planted(made: Step) -> programs.Made:
        found = honest(made)
        if made.variant.layers == "unroll":
            return found
        return dataclasses.replace(found, jitted=jax.jit(lambda state, batch: (state, jax.numpy.float32(jax.numpy.inf))))

    monkeypatch.setitem(programs.MODES, "inference", planted)
    found = measured(tmp_path / "out", "gpt-nano", mode="inference", layers=("scan", "unroll"))
    assert found[f"{OURS} scan"]["state"] == "wrong" and "its first two losses are inf and inf" in found[f"{OURS} scan"]["reason"]
    assert found[f"{OURS} unroll"]["state"] == "timed"


PEER = """
def build(folder, asked, batch):
    assert (folder / "config.json").exists() and batch["tokens"].shape == (2, 8)
    losses = iter({losses})
    return lambda: next(losses)
"""
PLANTED = {
    "honest": ("[{first}, {second}] * 99", "timed", ""),
    "off at once": ("[{first} + 0.01] * 99", "wrong", "first loss"),
    "off after an update": ("[{first}, {second} + 0.1] * 99", "wrong", "after an update"),
    "nan": ("[float('nan')] * 99", "wrong", "nan"),
    "unable": ("[1 / 0]", "failed", "ZeroDivisionError: division by zero"),
    "short of breath": ("[{first}, {second}]", "failed", "ended with code 1: StopIteration"),
}


@pytest.mark.planted(3)
def test_a_peer_is_timed_if_it_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpt_losses: tuple[float, float]) -> None:
    """And what is wrong with one peer stops no other."""
    first, second = gpt_losses
    kinds = {}
    for name, (losses, _, _) in PLANTED.items():
        module = f"planted_{name.replace(' ', '_')}"
        (tmp_path / f"{module}.py").write_text(PEER.format(losses=losses.format(first=first, second=second)))
        kinds[name] = Kind(module, ())
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setattr(peers, "PEERS", kinds)
    found = measured(tmp_path / "out", "gpt-nano", peers=True)
    assert found[f"{OURS} scan"]["state"] == "timed"
    for name, (_, state, said) in PLANTED.items():
        peer = found[f"{name} "]
        assert (peer["state"], "seconds" in peer) == (state, state == "timed"), peer
        assert said in peer["reason"]


@pytest.fixture(scope="module")
def _losses() -> dict[str, tuple[float, float]]:
    return {}


@pytest.fixture
def gpt_losses(_losses: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """Of the first two steps of the small GPT."""
    if not _losses:
        case = cases.case("gpt-nano", "train", **SMALL)
        made = Step(case, Variant())
        made.compile()
        made.start(programs.initial(case))
        _losses["gpt"] = made.run(), made.run()
    return _losses["gpt"]


def test_peers_that_do_not_fit_together_are_timed_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpt_losses: tuple[float, float]
) -> None:
    """Each with the unit in its rounds; what has room beside none is skipped, with the numbers."""
    first, second = gpt_losses
    (tmp_path / "fitting.py").write_text(PEER.format(losses=f"[{first}, {second}] * 99"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setattr(peers, "PEERS", {name: Kind("fitting", ()) for name in ("one", "two")})
    alive: list[Peer] = []
    start, close = Peer.__init__, Peer.close
    monkeypatch.setattr(Peer, "__init__", lambda self, *given: (start(self, *given), alive.append(self))[0])
    monkeypatch.setattr(Peer, "close", lambda self: (close(self), alive.remove(self) if self in alive else None)[0])
    honest = step_group._Group.crowded
    monkeypatch.setattr(step_group._Group, "crowded", property(lambda self: len(alive) > 0))
    found = measured(tmp_path / "out", "gpt-nano", peers=True)
    assert [found[name]["state"] for name in (f"{OURS} scan", "one ", "two ")] == ["timed"] * 3
    assert found["one "]["ratio"] and found["two "]["ratio"]
    monkeypatch.setattr(trials, "free", lambda: int(2 * found[f"{OURS} scan"]["memory"]))
    monkeypatch.setattr(step_group._Group, "crowded", honest)
    found = measured(tmp_path / "again", "gpt-nano", peers=True)
    assert found["one "]["state"] == "skipped" and " are free" in found["one "]["reason"]


def test_a_peer_that_is_not_installed_gives_a_row_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PEERS", {"absent": Kind("nowhere", ("no_such_package",))})
    cell = measured(tmp_path / "out", "gpt-nano", mode="inference", peers=True)["absent "]
    assert (cell["state"], cell["reason"]) == ("skipped", "no_such_package not installed")


def test_a_peer_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sleepy_peer.py").write_text("import time\nbuild = lambda *_: time.sleep(99)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setattr(peers, "PEERS", {"sleepy": Kind("sleepy_peer", ())})
    monkeypatch.setattr(peers, "PATIENCE", 0.1)
    peer = Peer("sleepy", tmp_path)
    with pytest.raises(PeerFailed, match="no answer within 0 seconds"):
        peer.begin()
    assert peer._process.poll() is not None


def test_what_does_not_fit_the_memory_is_skipped_with_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before compiling by the state alone; after it by what XLA planned."""
    case = cases.case("gpt-nano", "train", **SMALL)
    state = Step(case, Variant()).state_bytes
    for room, said in ((state / 2, "its state alone needs"), (1.2 * state, "compiled, it needs")):
        monkeypatch.setattr(trials, "free", lambda room=room: int(room))
        cell = measured(tmp_path / f"{room}", "gpt-nano")[f"{OURS} scan"]
        assert cell["state"] == "skipped" and said in cell["reason"] and " are free" in cell["reason"]


def test_an_attention_that_refuses_is_skipped_with_the_doors_reason(tmp_path: Path) -> None:
    found = measured(tmp_path / "out", "gpt-nano", mode="inference", attention=("auto", "cudnn"))
    states = {cell["key"]["attention"]: cell for cell in records.read(tmp_path / "out").cells}
    assert found and states["auto"]["state"] == "timed"
    assert states["cudnn"]["state"] == "skipped" and "cudnn" in states["cudnn"]["reason"]


def test_what_breaks_while_it_is_timed_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, calls = Step.run, []

    def run(made: Step) -> float:
        if made.variant.layers == "unroll":
            calls.append(made)
            if len(calls) > 3:
                raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nwhile allocating")
        return honest(made)

    monkeypatch.setattr(Step, "run", run)
    found = measured(tmp_path / "out", "gpt-nano", mode="inference", layers=("scan", "unroll"), rounds=3)
    assert found[f"{OURS} scan"]["state"] == "timed" and found[f"{OURS} scan"]["n"] == 3
    assert found[f"{OURS} unroll"]["state"] == "failed"
    assert found[f"{OURS} unroll"]["reason"] == "RuntimeError: RESOURCE_EXHAUSTED: out of memory"


# --- results --------------------------------------------------------------------------------------------------------------------


def test_a_killed_run_is_completed_and_measures_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, asked = step_group.measure, ("gpt-nano", "bert-nano")

    def killed(case: Any, *given: Any) -> Any:
        if case.size == "bert-nano":
            raise KeyboardInterrupt
        return measure(case, *given)

    monkeypatch.setattr(step_group, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path / "out", *asked, mode="inference")
    before = records.read(tmp_path / "out").cells
    assert [cell["key"]["model"] for cell in before] == ["gpt-nano"]
    assert "gpt-nano" in (tmp_path / "out" / "report.html").read_text()
    again = []
    monkeypatch.setattr(step_group, "measure", lambda case, *given: again.append(case.size) or measure(case, *given))
    measured(tmp_path / "out", *asked, mode="inference", resume=True)
    assert again == ["bert-nano"]
    assert records.read(tmp_path / "out").cells[:1] == before


@pytest.mark.parametrize(("slower", "code"), [(1.0, 0), pytest.param(1.3, 1, marks=pytest.mark.planted)])
def test_compare_takes_steps_over_the_first_way_of_each_model(
    slower: float, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = step_settings.resolved(settings("gpt-nano", "bert-nano", layers=("scan", "unroll")), "cpu")
    for name, factor in (("before", 1.0), ("after", slower)):
        environment = records.environment(("float32",))
        writer = records.Writer(tmp_path / name / records.CELLS, "step", environment, {}, False, step_settings.unit(asked))
        for process, case, way in itertools.product(range(3), step_settings.cases(asked), step_settings.variants(asked)):
            ratio = 0.8 * factor * (1 + 0.01 * process) if way.layers == "unroll" else 1.0
            columns = timing.columns([2.0 * ratio], [2.0])
            writer.write(
                {"key": step_settings.key(case, way, asked), "process": process, "state": "timed", "reason": "", **columns}
            )
        writer.close()
    done = call(capsys, "bench", "compare", str(tmp_path / "before"), str(tmp_path / "after"))
    assert done.code == code, done.stdout
    assert ("regression (2)" in done.stdout) == (code == 1)


BAD = {
    "step": "zoo bench step: name a model, such as gpt2; zoo models lists them",
    "step gpt-nona": "no model is called 'gpt-nona'; the nearest is 'gpt-nano' (all: zoo models)",
    "step gpt-4": "the architecture of gpt-4 is unpublished",
    "step bert-nano --mode decode": "--mode decode: bert-nano does not generate text; these families do: gpt,",
    "step gpt-nano --batch 0": "--batch 0: choose a number above 0, or leave it out",
    "step gpt-nano --length -3": "--length -3: choose a number above 0, or leave it out",
    "step gpt-nano --rounds 0": "--rounds 0: choose a number above 0, or leave it out",
    "step gpt-nano --rounds 3 --budget 3": "--rounds with --budget 3.0: both say when rounds end; leave one of them out",
    "step gpt-nano --length 17": "--length 17: gpt-nano has 16 positions; choose at most as many",
    "step gpt-nano --source-length 8": "--source-length 8: gpt-nano is no encoder-decoder, it reads no source; leave it out",
    "step gpt-nano --mesh": "--mesh: nothing is named; name something, or leave the option out",
    "step gpt-nano --mesh two": "--mesh two: write axes of data, fsdp and tensor with their sizes, such as data=2,tensor=2",
    "step gpt-nano --mesh data=9": "--mesh data=9: it takes 9 devices and there are 8; choose a smaller one, or simulate them",
    "step gpt-nano --mesh tensor=4": "--mesh.tensor 4: it does not divide the 2 heads",
    "step gpt-nano --batch 3 --mesh data=2": "--data.batch 3: 3 rows",
    "step gpt-nano --mode decode --mesh data=2": "--mesh data=2: one token is decoded on one device",
}


@pytest.mark.parametrize("line", BAD)
def test_wrong_input_is_refused_in_a_line(
    line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(capsys, "bench", *line.split())
    assert done.code == 2 and done.stderr.startswith(f"zoo: {BAD[line]}") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_results_that_are_there_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cells.jsonl").write_text("kept")
    done = call(capsys, "bench", "step", "gpt-nano", "--out", str(tmp_path))
    assert done.code == 2 and "has results already; --resume completes them" in done.stderr
    assert (tmp_path / "cells.jsonl").read_text() == "kept"
