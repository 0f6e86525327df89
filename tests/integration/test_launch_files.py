"""What docs/ and the README tell people to run: launch files that shells and Kubernetes can read, and options that exist."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import tyro
import yaml

from benchmarks.plan import target_devices
from tests.support import published
from tests.support.processes import ROOT
from train import recipes
from train.config.run_config import Run, kind_of
from train.tokenizers import hf_files
from train.tokenizers.tokenizer import Tokenizer
from zoo.cli import main
from zoo.cli.commands import plan

DOCS, README = ROOT / "docs", (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = sorted((DOCS / "launch").glob("*.sh"))


def started(text: str) -> Run:
    """Return the run of the `zoo train` in a file, the variables being numbers."""
    found = re.search(r"(?:zoo|run\.py(?: --extra tpu)?) train (.*)", re.sub(r"\\\n\s*", " ", text))
    assert found
    numbered = re.sub(r'"?\\?\$\{?COORDINATOR\}?"?', "host:1", found[1])
    numbered = re.sub(r'(--process )"?\\?\$\{?\w+\}?"?', r"\g<1>0", numbered)
    name, *options = shlex.split(re.sub(r'"?\\?\$\{?\w+\}?"?', "128", numbered).strip(" '\""))
    default = recipes.find_recipe(name)()
    return tyro.cli(kind_of(default), default=default, args=options)


@pytest.mark.parametrize("file", [*SCRIPTS, DOCS / "launch/jobset.yaml"], ids=lambda path: path.name)
def test_launch_files_are_readable_and_start_runs_that_join_by_an_address(file: Path) -> None:
    if file.suffix == ".sh":
        done = subprocess.run(["bash", "-n", file], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    run = started(file.read_text(encoding="utf-8"))
    assert run.machine.coordinator and run.data.paths == ("corpus/",)


def test_the_job_set_is_one_slice() -> None:
    jobset = yaml.safe_load((DOCS / "launch/jobset.yaml").read_text(encoding="utf-8"))
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    chips = 1
    for size in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(size)
    hosts = chips // container["resources"]["limits"]["google.com/tpu"]
    script = container["command"][-1]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == hosts
    assert f"--processes {hosts} " in script and "$JOB_COMPLETION_INDEX" in script
    assert f"{jobset['metadata']['name']}-{job['name']}-0-0.{jobset['metadata']['name']}:" in script


def test_slurm_starts_as_many_processes_as_nodes() -> None:
    text = (DOCS / "launch/slurm.sh").read_text(encoding="utf-8")
    asked = {name: int(value) for name, value in re.findall(r"#SBATCH --([\w-]+)=(\d+)$", text, re.MULTILINE)}
    run = started(text)
    assert asked["ntasks-per-node"] == 1
    assert run.mesh.fsdp * run.mesh.tensor == asked["nodes"] * asked["gpus-per-node"]


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [(0, 0, False), (1, 0, False), (2, 0, False), (143, 0, True), (143, 99, True), (75, 9, True), (75, 10, False)],
)
def test_slurm_requeues_only_a_job_that_ran_out_of_time_or_was_stuck(
    tmp_path: Path, code: int, restarts: int, again: bool
) -> None:
    """And no other: one that is done or that failed would be run for ever."""
    log = tmp_path / "log"
    queue = f'[ "$1" = show ] && echo node1 || echo "$@" >> {shlex.quote(str(log))}'
    for name, line in ("srun", f"exit {code}"), ("scontrol", queue):
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "node[1-8]", "SLURM_JOB_ID": "7"}
    environment["SLURM_RESTART_COUNT"] = str(restarts)
    done = subprocess.run(["bash", DOCS / "launch/slurm.sh"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    assert (log.read_text() if log.exists() else "") == ("requeue 7\n" if again else "")


PLANS = re.findall(r"`(zoo plan [^`]*)`", (DOCS / "scale.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("line", PLANS)
def test_plans_that_are_shown_can_be_asked_for(line: str) -> None:
    _, _, name, *options = shlex.split(line)
    if not name.isupper():
        target_devices.parse_target(plan.parse_options(name, options).target)


def test_the_python_example_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    folder = tmp_path / "runs" / "gpt-nano"
    folder.parent.mkdir()
    published.write(folder, dict(model_type="gpt2", vocab_size=300, n_positions=32, n_layer=2, n_embd=32, n_head=4))
    hf_files.write_tokenizer(folder, Tokenizer.train(["The white whale. " * 40], 300), longest=32)
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert capsys.readouterr().out


def test_the_documentation_names_every_command_and_no_other():
    text = README + (DOCS / "cli.md").read_text(encoding="utf-8")
    assert set(re.findall(r"(?:`|^)zoo ([a-z-]+)", text, re.MULTILINE)) == main.COMMANDS.keys()
