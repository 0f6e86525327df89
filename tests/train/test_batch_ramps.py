"""Runs whose batches grow: the same bits after a kill, in a fork and in a replay; what is counted; what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import runs, tiny
from tests.support.commands import assert_refused, call, words
from tests.support.runs import Training, assert_same
from train.config import mesh_sizes
from train.config.batch_sizes import batch_sizes
from train.run.costs import read_costs
from train.run.run_dir import RunDir, read_config
from zoo.cli import main
from zoo.errors import BadInput
from zoo.fault_points import faults

SIZES = [2, 2, 2, 2, 4, 4, 4, 8, 8, 8]
FLAGS = [*tiny.FLAGS, "--data.paths", "text.txt", "--data.ramp", "2@200", "4@600", "--accumulate", "2", "--log.ledger"]
FLAGS += words("--steps 10 --checkpoint.every 3 --checkpoint.keep 9 --log.every 1 --mesh.data 2 --mesh.tensor 4")


@pytest.fixture
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(runs.text())


def train(name: str, *flags: str) -> Training:
    assert main.main(["train", "gpt-nano", *FLAGS, *flags, "--name", name]) == 0
    return Training(Path.cwd(), name)


@pytest.mark.full
@pytest.mark.usefixtures("_folder")
def test_a_run_whose_batches_grow_is_counted_and_continues_after_a_kill_and_in_a_fork(capsys: pytest.CaptureFixture[str]) -> None:
    reference = train("reference")
    ledger, rows = reference.ledger(), [row for row in reference.rows() if row["kind"] == "train"]
    assert [len(row["rows"]) for row in ledger] == SIZES
    assert [row["tokens"] for row in rows] == (32 * np.cumsum(SIZES)).tolist()
    # No row is used twice in an epoch, which has 45 rows.
    used = np.concatenate([row["rows"] for row in ledger])
    assert len(used) == len({*used.tolist()}) == sum(SIZES) < 45
    with faults("train.step:error:6"), pytest.raises(RuntimeError, match="fault at"):
        train("killed")
    killed = train("killed")
    assert killed.resumed_at() == [0, 3]
    assert_same(killed, reference)
    costs = read_costs(RunDir(reference.folder), 10, {}, read_config(reference.folder).data.sizes)
    per_step = json.loads((reference.folder / "starts.jsonl").read_text())["flops"]
    assert (costs["tokens"], costs["flops"]) == (32 * sum(SIZES), pytest.approx(per_step * sum(SIZES) / 8))
    forked = train("forked", "--init", "runs/reference", "--fork", "3")
    states = [run.state() for run in (forked, reference)]
    assert not [path for path in states[0] if states[0][path].tobytes() != states[1][path].tobytes()]
    assert call(capsys, "audit", "runs/reference", "--steps", "0").code == 0
    scored = dict(line.split() for line in call(capsys, "eval", "runs/reference").stdout.splitlines())
    assert float(scored["loss"]) == pytest.approx(json.loads((reference.folder / "scores.json").read_text())["loss"], abs=1e-5)
    # The stored numbers of a teacher are those of the rows of each step.
    student = train("student", "--distillation.teacher", "runs/reference", *words("--distillation.top-k 4 --steps 5"))
    assert [len(row["rows"]) for row in student.ledger()] == SIZES[:5]
    shown = call(capsys, "data", "inspect", "gpt-nano", *FLAGS, "--first", "9", "--rows", "1")
    assert f"step 4, place 1; row {ledger[4]['rows'][1]:,} of" in shown.stdout


REFUSED = {
    "gpt-nano --data.ramp 4": "--data.ramp 4: choose ROWS@TOKENS, whole numbers of 1 or more, such as 1024@252e6",
    "gpt-nano --data.ramp 4@0": "--data.ramp 4@0: choose ROWS@TOKENS",
    "gpt-nano --data.ramp 4@1.5": "--data.ramp 4@1.5: choose ROWS@TOKENS",
    "gpt-nano --data.ramp 8@100 4@200": "--data.ramp 8@100 4@200: rows and tokens must grow from item to item",
    "gpt-nano --data.ramp 4@200 8@100": "--data.ramp 4@200 8@100: rows and tokens must grow",
    "gpt-nano --data.ramp 64@100": "--data.batch 16: the ramp begins with 64 rows; choose more, or an empty --data.ramp",
    "gpt-nano --data.batch 16 --accumulate 4 --data.ramp 10@100": "--data.ramp 10@100: 10 rows do not divide into 3 "
    "micro-batches, of at most 4 rows; choose a multiple of 4",
    "gpt-nano --data.ramp 4@100 --engine pmap": "--data.ramp 4@100: pmap has batches of one size",
    "xlnet-nano --data.ramp 4@100": "there is no option --data.ramp",
    "grpo --data.ramp 4@100": "there is no option --data.ramp",
}


def test_ramps_that_are_none_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(capsys, tmp_path, {line: (("train", *words(line)), message) for line, message in REFUSED.items()})


def test_a_ramp_that_the_mesh_does_not_divide_is_refused_by_name() -> None:
    run = tiny.run()
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, ramp=("4@100", "12@200")), accumulate=2)
    sizes = {"data": 4, "fsdp": 1, "tensor": 1, "sequence": 1, "expert": 1}
    with pytest.raises(
        BadInput, match=r"--data.ramp 4@100 12@200: 6 rows \(of each of 2 micro-batches\) do not divide over data x"
    ):
        mesh_sizes.check_rows(run, sizes)
    mesh_sizes.check_rows(run, {**sizes, "data": 2})
    assert [run.micro_batches(rows) for rows in (4, 12, 16)] == [1, 2, 2]
    assert str(batch_sizes(16, ("4@100",), 32)) == "4 to 16"
