"""`zoo sweep`: its trials are continued after a kill and pruned by validation, and what it cannot vary is refused."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from eval.sweeps import run_sweep
from eval.sweeps.search_space import parse_all, parse_varied
from tests.support import compilation
from tests.support.commands import BOOK, TINY, assert_refused, call, in_folder
from tests.support.processes import ROOT, children, clean_environment
from tests.support.runs import gone
from train.run.metrics_file import read_metrics, read_starts
from train.run.run_dir import RunDir, read_config
from zoo.errors import BadInput

RANGE = "optim.lr=1e-4:1e-2:log"
ARGV = ("sweep", "gpt-nano", "s", "--vary", RANGE, "model.layers=1,2")


def test_ranges_and_lists_are_read() -> None:
    lr, layers, flag, kind = parse_all((RANGE, "model.layers=1:8", "--model.tied=true,false", "optim.name=adamw,lion"))
    assert (lr.values, lr.is_range, lr.is_logarithmic) == ((1e-4, 1e-2), True, True)
    assert (layers.values, layers.is_range, layers.is_logarithmic) == ((1, 8), True, False)
    assert all(isinstance(value, int) for value in layers.values) and parse_varied("x=1:2.5").values == (1.0, 2.5)
    assert (flag.name, flag.values, flag.is_range) == ("model.tied", (True, False), False)
    assert kind.values == ("adamw", "lion")


@pytest.mark.planted
@pytest.mark.parametrize(
    "text",
    ["optim.lr", "=1,2", "a=", "a=1", "a=1,1", "a=2:1", "a=0:1:log", "a=nan:1", "a=1:inf", "a=x:y", "a=1:2:3", "a=1:2:log:4"],
)
def test_an_option_without_a_choice_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=f"^--vary {text}: "):
        parse_varied(text)


def test_what_cannot_be_swept_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    cases = {
        "unknown": ((*ARGV, "optim.speed=1,2"), "there is no option --optim.speed"),
        "twice": ((*ARGV, "optim.lr=1,2"), "--vary optim.lr: given twice"),
        "value": ((*ARGV, "data.batch=0,8"), "--data.batch 0: "),
        "metric": ((*ARGV, "--metric", "lr"), "--metric lr: choose one of bits_per_byte, "),
        "name": ((*ARGV, "--", "--name", "x"), "--name: each trial has a name"),
        "varied name": (("sweep", "gpt-nano", "s", "--vary", "name=a,b"), "--name: each trial has a name"),
        "phases": ((*ARGV, "--", "--phases", "x"), "--phases: a trial is one run"),
        "data": ((*ARGV, "--", "--data.paths", "absent.txt"), ".*absent.txt"),
        "file": (("sweep", "gpt-nano", str(tmp_path / "file"), "--vary", RANGE), ".*file: is a file; name a folder"),
        "store": (
            ("sweep", "gpt-nano", "s3://a/b", "--vary", RANGE),
            "s3://a/b: a sweep needs a folder, and not an object store",
        ),
    }
    assert_refused(capsys, tmp_path, cases)


def start(folder: Path, *argv: str) -> subprocess.Popen[bytes]:
    environment = clean_environment() | compilation.FLAGS | {"PYTHONPATH": str(ROOT)}
    with (folder / "printed").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "zoo.cli", *argv], cwd=folder, env=environment, stdout=log, stderr=log)


@pytest.mark.slow
@pytest.mark.planted(3)
def test_a_killed_sweep_continues_in_two_processes_and_prunes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "book.txt").write_text(BOOK)
    recipe = ("--", *TINY, "--steps", "200", "--checkpoint.every", "20", "--log.validate-every", "20", "--log.every", "20")
    killed = start(tmp_path, *ARGV, "--trials", "1", *recipe)
    first = RunDir(tmp_path / "s" / run_sweep.run_name(0))
    until = time.monotonic() + 200
    while not (first.has_checkpoint and first.metrics.exists() and read_metrics(first)):
        assert killed.poll() is None and time.monotonic() < until, (tmp_path / "printed").read_text()
        time.sleep(0.05)
    runs = children(killed.pid)
    killed.send_signal(signal.SIGKILL)
    killed.wait(60)
    assert runs and gone(runs) and not first.scores.exists()
    with (tmp_path / "s" / run_sweep.STUDY).open("a") as file:
        file.write('{"op_code":')  # as a full disk leaves it
    other = start(tmp_path, *ARGV, "--trials", "3", *recipe)
    with in_folder(tmp_path):
        ended = call(capsys, *ARGV, "--trials", "3", "--json", *recipe)
        assert ended.code == other.wait(400) == 0, ended
        rows = {row["trial"]: row for row in json.loads(ended.stdout)["trials"]}
        lines = ended.stderr + (tmp_path / "printed").read_text()
        for number, row in rows.items():
            run = RunDir(tmp_path / "s" / run_sweep.run_name(number))
            last = [line for line in read_metrics(run) if line["kind"] == "valid"][-1]
            assert (row["state"], row["loss"], last["step"]) == ("complete", last["loss"], 200)
            config, values = read_config(run.path), row["options"]
            assert (config.optim.lr, config.model.layers) == (values["optim.lr"], values["model.layers"])
            assert lines.count(f"trial {number} begins: optim.lr {values['optim.lr']:.4g}, ") == 1 + (number == 0)
        assert [*sorted(rows)] == [0, 1, 2] and len({row["options"]["optim.lr"] for row in rows.values()}) == 3
        assert len(read_starts(first)) == 2, "the run did not continue"
        study = optuna.load_study(
            study_name=run_sweep.NAME,
            storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("s/study.log")),
        )
        distributions = study.trials[0].distributions
        for _ in range(run_sweep.UNPRUNED):
            # Trials that end far below every loss that a run can have.
            values = {step: 0.0 for step in range(20, 201, 20)}
            better = optuna.create_trial(
                params=study.trials[0].params, distributions=distributions, value=0.0, intermediate_values=values
            )
            study.add_trial(better)
        ended = call(capsys, *ARGV, "--trials", "9", *recipe)
        assert ended.code == 0 and "trial 8: pruned at loss " in ended.stderr, ended
        assert study.trials[8].state.name == "PRUNED" and study.trials[8].params != study.trials[0].params
        assert re.search(r"\n +8 +pruned ", ended.stdout)
        assert "best: zoo train gpt-nano " in ended.stdout
        for change, key in ((("--seed", "1"), "seed"), (("--metric", "accuracy"), "metric")):
            ended = call(capsys, *ARGV, *change, *recipe)
            assert ended.code == 2 and f"zoo: s: its sweep has another {key}: " in ended.stderr
