"""`zoo bench feedback`: an iteration is timed in parts, and a peer only if it agrees."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks.core import result_files, timing
from benchmarks.core.guarded_trials import WrongResult
from benchmarks.core.options import FeedbackOptions, Output
from benchmarks.core.peer_process import Kind
from benchmarks.feedback import bench_feedback, measure_iteration
from benchmarks.feedback.iteration import ITERATION, PARTS, Iteration
from benchmarks.step.programs import OURS
from tests.support import benchmark_steps as steps
from tests.support.commands import call
from tests.support.processes import ROOT
from train.config import run_config
from train.engine import device_mesh
from zoo import published_weights

SIZES: dict[str, Any] = {"model": "gpt-nano", "prompts": 2, "group": 2, "prompt_length": 3, "tokens": 4, "rounds": 2}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    steps.shrink(monkeypatch)


def quick_probe(precision: str) -> tuple[Callable[[], object], float]:
    return lambda: sum(range(100)), 1e9


def measured(folder: Path, **changes: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """Measure, and return the cells by program and part."""
    bench_feedback.main(FeedbackOptions(**SIZES, output=Output(str(folder), json=True), **changes), [])
    return {(cell["key"]["program"], cell["key"]["part"]): cell for cell in result_files.read_results(folder).cells}


class OwnPeer:
    """Our own iteration as a peer, of the weights that were written for it."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        shape = bench_feedback.feedback_shape(bench_feedback.resolve_feedback_options(FeedbackOptions(**SIZES), "cpu"))
        self._changed, self._first_call, self.resident = kind.module == "one other token", True, 1
        self._iteration = Iteration(
            shape, published_weights.load_published(folder, device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1]))[1]
        )

    def begin(self) -> dict[str, Any]:
        return {"versions": {}}

    def run(self) -> dict[str, Any]:
        if self._first_call:
            self._first_call = False
            return {"result": self._first_steps()}
        return {"result": self._iteration.run()}

    def _first_steps(self) -> dict[str, Any]:
        first = self._iteration.first_steps()
        tokens = self._iteration.greedy(first.prompts).copy()
        tokens[1, 2] += self._changed
        return {"greedy": tokens.tolist(), "losses": first.losses}

    def close(self) -> None:
        pass


@pytest.mark.planted
def test_an_iteration_is_timed_in_parts_and_a_peer_only_if_it_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "matrix_products", quick_probe)
    monkeypatch.setattr(measure_iteration, "Peer", OwnPeer)
    packages = {"the same": (), "one other token": (), "absent": ("no_such_package",)}
    monkeypatch.setattr(measure_iteration, "PEERS", {name: Kind(name, needed) for name, needed in packages.items()})
    cells = measured(tmp_path / "out", peers=True)
    for part in (*PARTS, ITERATION):
        cell = cells[OURS, part]
        assert cell["state"] == "timed" and cell["ratio"] == 1.0 and cell["n"] == 2
        assert cell["tokens_per_s"] == pytest.approx(cell["tokens"] / cell["seconds"])
        assert part == "policy" or cells["the same", part]["ratio"] > 0
    # Medians of two rounds are means.
    assert sum(cells[OURS, part]["seconds"] for part in PARTS) == pytest.approx(cells[OURS, ITERATION]["seconds"], rel=1e-9)
    assert cells[OURS, "rollout"]["tokens"] == 16 and cells[OURS, "step"]["tokens"] == 28
    # Keys and values of 2 layers and 2 heads of 16 in float32, of 4 responses, in 3 + 3 slots.
    assert cells[OURS, "rollout"]["memory"] > 2 * 2 * 2 * 16 * 4 * 4 * (3 + 3)
    assert cells[OURS, "step"]["memory"] > 0 and cells[OURS, ITERATION]["loss"] != cells[OURS, ITERATION]["loss_after"]
    wrong, absent = cells["one other token", ITERATION], cells["absent", "step"]
    assert wrong["state"] == "wrong"
    assert wrong["reason"].startswith("1 of 4 greedy responses differ: its token 2 of response 1 is"), wrong
    assert absent["state"] == "skipped" and absent["reason"] == "no_such_package not installed"
    for name in ("table.md", "table.csv", "report.html"):
        assert "scores of the reference" in (tmp_path / "out" / name).read_text() or name == "table.csv"


@pytest.mark.planted
@pytest.mark.parametrize(
    ("tokens", "losses", "reason"),
    [
        ([[1, 2]], (0.1, -0.2), "have the shape"),
        ([[1, 2, 4]], (0.1, -0.2), "1 of 1 greedy responses differ: its token 2 of response 0 is 4, and ours 3"),
        ([[1, 2, 3]], (0.1, float("nan")), "loss after an update is nan"),
    ],
)
def test_other_tokens_or_losses_are_refused(tokens: Any, losses: Any, reason: str) -> None:
    expected = np.array([[1, 2, 3]])
    measure_iteration.check_agreement(expected, [[1, 2, 3]], (0.1, -0.2), (0.1 + 1e-6, -0.2))
    with pytest.raises(WrongResult, match=reason):
        measure_iteration.check_agreement(expected, tokens, (0.1, -0.2), losses)


def test_sizes_and_models_are_refused_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    for line, message in {
        "--group 1": "--group 1: responses are compared; choose 2 or more",
        "gpt-nano --prompt-length 8 --tokens 9": "--tokens 9: a prompt of 8 and this response do not fit in the 16 positions",
        "bert-nano": "bert-nano is not a decoder that learns from rewards",
        "t5-nano": "t5-nano is not a decoder that learns from rewards",
    }.items():
        ended = call(capsys, "bench", "feedback", *line.split())
        assert (ended.code, ended.stdout) == (2, "") and ended.stderr.startswith(f"zoo: {message}"), ended


@pytest.mark.parity
def test_trl_writes_the_same_tokens_and_has_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cells = measured(tmp_path / "out", peers=True)
    assert cells["TRL", ITERATION]["state"] == "timed", cells["TRL", ITERATION]
    assert all(cells["TRL", part]["seconds"] > 0 for part in ("rollout", "reference", "step"))
