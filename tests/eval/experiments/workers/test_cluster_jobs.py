"""Nodes as commands, Slurm arrays and job sets; the programs of the cluster are replaced by ones that run the jobs here."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from eval.experiments import node_status
from eval.experiments.workers import cluster_jobs, cluster_scripts, node_process
from eval.experiments.workers.cluster_scripts import Resources
from tests.support.commands import call
from tests.support.processes import ROOT
from tests.support.small_experiment import STAND_IN, order, small_grid
from zoo.cli.commands import experiment
from zoo.errors import BadInput

WORDS = ["zoo", "experiment", "small", "/it's here"]
SBATCH = """
number=$(($(ls jobs | wc -l) + 1)); cat > "jobs/$number"; echo "$@" >> jobs.log; echo "$number;cluster"
last=0; for word in "$@"; do case "$word" in --array=0-*) last="${word#--array=0-}"; last="${last%\\%*}";; esac; done
for task in $(seq 0 "$last"); do
    SLURM_ARRAY_JOB_ID=$number SLURM_ARRAY_TASK_ID=$task bash "jobs/$number" >> output.log 2>&1 \\
        || echo "$number $task $?" >> ended.log
done
"""
"""A Slurm that runs the jobs of an array at once, one after another."""
KUBECTL = """
case "$1" in
apply) cat > applied.json; exec "$PYTHON" run_pods.py;;
get) [ ! -e "set-$3" ] || echo '{"status": {"conditions": [{"type": "Failed", "status": "True"}]}}';;
delete) rm -f "set-$3";;
esac
"""
PODS = """
import json, os, subprocess
content = json.load(open("applied.json"))
name, job = content["metadata"]["name"], content["spec"]["replicatedJobs"][0]["template"]["spec"]
(container,) = job["template"]["spec"]["containers"]
(failures,) = [rule["onExitCodes"]["values"] for rule in job["podFailurePolicy"]["rules"] if rule["action"] == "FailIndex"]
for index in range(job["completions"]):
    for attempt in range(1 + job["backoffLimitPerIndex"]):
        code = subprocess.call(container["command"], env=os.environ | {"JOB_COMPLETION_INDEX": str(index)})
        open("pods.log", "a").write(f"{name} {index} {code}\\n")
        if code == 0 or code in failures: break
open("set-" + name, "w").close()
"""


LIGHT = """
node="${@: -1}"; echo "$node" >> nodes.log; [ ! -e "leave-$node" ] || exit "$(cat "leave-$node")"
case "$node" in
*-score-0) echo '{"perplexity": {}}' > "runs/${node%-score-0}-pretrain-0/evaluations.json";;
*)
    mkdir -p "runs/$node/checkpoints/00000004"; echo '{}' > "runs/$node/checkpoints/00000004/COMMIT.json"
    touch "runs/$node/report.html"; echo '{}' > "runs/$node/scores.json";;
esac
"""
"""A `zoo experiment ... --node NODE` that writes the results of the node, or ends with the exit code in leave-NODE."""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with an apostrophe in its name, in which the programs of clusters work, and `zoo` is `LIGHT`."""
    folder = tmp_path / "it's here"
    programs = tmp_path / "programs"
    (folder / "jobs").mkdir(parents=True)
    programs.mkdir()
    (folder / "run_pods.py").write_text(PODS)
    for name, line in {
        "sbatch": SBATCH,
        "squeue": 'exit "$(cat squeue-code 2> /dev/null || echo 0)"',
        "srun": 'shift; exec "$@"',
        "scontrol": 'echo "$@" >> queued.log',
        "kubectl": KUBECTL,
        "zoo": LIGHT,
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{line}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setattr(cluster_jobs, "POLL", 0.01)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def complete_cluster(cluster: Path) -> Path:
    """Return the folder of `cluster` if `zoo` is a process that runs a node of the small experiment as `zoo experiment` does."""
    programs = Path(shutil.which("zoo") or "").parent
    (programs / "zoo.py").write_text(f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\n{NODE}")
    python = os.environ["PYTHON"]
    (programs / "zoo").write_text(f'#!/bin/bash\nexec {shlex.quote(python)} {shlex.quote(str(programs / "zoo.py"))} "$@"\n')
    return cluster


NODE = f"""
from pathlib import Path
from types import SimpleNamespace
from eval.experiments import grid_runner
from eval.experiments.workers import node_process
from tests.support.small_experiment import small_grid
from zoo.cli.commands import experiment
assert sys.argv[1:3] == ["experiment", "small"], sys.argv
assert Path(sys.argv[3]).samefile("."), sys.argv
node_process.PROGRAM = (sys.executable, "-c", {STAND_IN!r})
grid_runner.POLL = 0.01
sys.exit(experiment._run_node(SimpleNamespace(node=sys.argv[-1]), small_grid(), Path(".")))
"""


def words(folder: Path) -> list[str]:
    return ["zoo", "experiment", "small", str(folder)]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_commands_are_printed_level_by_level(tmp_path: Path) -> None:
    printed = cluster_scripts.command_lines(small_grid(), tmp_path)
    assert [line for line in printed if line.startswith("#")] == [
        "# level 0: 1 commands, in any order and at the same time",
        "# level 1: 3 commands, in any order and at the same time",
        "# level 2: 3 commands, in any order and at the same time",
    ]
    assert printed[-1].endswith("&& zoo eval runs/none-pretrain-0 --task perplexity --files files/valid")


def test_slurm_runs_all_nodes_and_the_lines_name_none(cluster: Path) -> None:
    resources = Resources(workers=2, cpus=3, gpus=1, memory=5)
    assert cluster_jobs.run_on_slurm(small_grid(), cluster, words(cluster), resources) == []
    assert len(lines(cluster / "nodes.log")) == 7 and not (cluster / "ended.log").exists()
    submitted = lines(cluster / "jobs.log")
    assert [line.count("afterany") for line in submitted] == [0, 1, 1] and "--dependency=afterany:2" in submitted[2]
    assert all(
        f"--chdir={cluster} --output=logs/slurm-%A_%a.log --cpus-per-task=3 --mem=5G --gpus=1" in line for line in submitted
    )
    assert submitted[1].endswith("--array=0-2%2") and "--time=24:00:00" in submitted[0]
    # Nothing is left to be submitted.
    assert cluster_jobs.run_on_slurm(small_grid(), cluster, words(cluster), resources) == []
    assert len(lines(cluster / "nodes.log")) == 7 and len(lines(cluster / "jobs.log")) == 3


@pytest.mark.full
def test_a_failed_node_stops_its_descendants_only(complete_cluster: Path) -> None:
    folder = complete_cluster
    (folder / "fail-a-pretrain-0").write_text("3 steps in a row had a non-finite loss or gradient")
    (line,) = cluster_jobs.run_on_slurm(small_grid(), folder, words(folder), Resources())
    assert line.startswith("a-pretrain-0 failed: exit code 1: 3 steps in a row had a non-finite loss")
    # The failure is noted as by the engine of one machine, and so gives the same verdict.
    node = next(node for node in small_grid().nodes if node.name == "a-pretrain-0")
    assert node_status.DIVERGED in node_status.node_failure(node, folder)
    assert lines(folder / "ended.log") == ["2 0 1", "3 0 3"] and len(order(folder)) == 6
    assert (
        "a-score-0 is left out: it needs a-pretrain-0, which failed: exit code 1: 3 steps" in (folder / "output.log").read_text()
    )
    assert not (folder / "queued.log").exists() and (folder / "runs/b-pretrain-0/evaluations.json").exists()


@pytest.mark.parametrize(
    ("code", "restarts", "again"), [(143, 0, True), (143, 99, True), (75, 9, True), (75, 10, False), (1, 0, False), (3, 0, False)]
)
def test_a_run_that_was_stopped_or_stuck_is_requeued(
    cluster: Path, monkeypatch: pytest.MonkeyPatch, code: int, restarts: int, again: bool
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    (cluster / "leave-tokenizer").write_text(str(code))
    left = cluster_jobs.run_on_slurm(small_grid(), cluster, words(cluster), Resources())
    assert "1 0 " + str(code) in lines(cluster / "ended.log")
    assert ("requeue 1_0" in lines(cluster / "queued.log")) == again
    assert left == [f"tokenizer has no results; see {cluster / 'logs'}, and run the same command again"]


def test_jobs_in_the_queue_are_followed_and_not_submitted_again(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(shutil.which("squeue") or "").write_text(
        "#!/bin/bash\necho $(($(cat asked 2> /dev/null) + 1)) > asked; [ $(cat asked) -gt 3 ] || echo 17_0\n"
    )
    left = cluster_jobs.run_on_slurm(small_grid(), cluster, words(cluster), Resources())
    assert len(left) == 7 and not lines(cluster / "jobs.log") and (cluster / "asked").read_text() == "4\n"


def test_a_failure_is_shown_when_it_happens_and_an_interruption_leaves_the_jobs(
    cluster: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, calls = small_grid(), [0]

    def active() -> bool:
        calls[0] += 1
        if calls[0] == 2:
            node_status.note_failure(grid.nodes[0], cluster, "no text")
        if calls[0] == 4:
            raise KeyboardInterrupt
        return True

    (cluster / "logs").mkdir()
    with pytest.raises(KeyboardInterrupt):
        cluster_jobs._follow_interruptibly(grid, cluster, active, workers=3)
    lines_shown = capsys.readouterr().err.splitlines()
    assert lines_shown == ["tokenizer FAILED: no text", "! the jobs go on; the same command follows them again"]


def test_the_script_is_valid_whatever_the_folder_is_called(tmp_path: Path) -> None:
    for name in ("it's here", 'a "quoted" $(folder)', "a\\b;c"):
        folder = tmp_path / name
        folder.mkdir()
        script = cluster_scripts.slurm_script(small_grid(), folder, words(folder), Resources())
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        (content, *_) = yaml.safe_load_all(cluster_scripts.job_sets(small_grid(), folder, words(folder), Resources()))
        (container,) = pod_of(content)["containers"]
        assert shlex.split(container["command"][-1].splitlines()[1])[4] == str(folder) == container["workingDir"]


def pod_of(content: dict[str, Any]) -> dict[str, Any]:
    return content["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_job_sets_run_level_by_level_and_a_failure_is_not_repeated(cluster: Path) -> None:
    for node, code in (("a-pretrain-0", 1), ("a-score-0", 3), ("b-score-0", 137)):
        (cluster / f"leave-{node}").write_text(str(code))
    left = cluster_jobs.run_on_kubernetes(small_grid(), cluster, words(cluster), Resources())
    assert [line.partition(" ")[0] for line in left] == ["a-pretrain-0", "a-score-0", "b-score-0"]
    name = cluster_scripts.job_name(small_grid(), cluster)
    pods = [line.removeprefix(f"{name}-") for line in lines(cluster / "pods.log")]
    assert pods == ["0 0 0", "1 0 1", "1 1 0", "1 2 0", "2 0 3", *["2 1 137"] * 4, "2 2 0"]
    # The same command continues with what is missing.
    for file in cluster.glob("leave-*"):
        file.unlink()
    assert cluster_jobs.run_on_kubernetes(small_grid(), cluster, words(cluster), Resources()) == []
    assert [line.removeprefix(f"{name}-") for line in lines(cluster / "pods.log")[len(pods) :]] == ["1 0 0", "2 0 0", "2 1 0"]


def test_the_time_left_is_that_of_as_many_nodes_as_run_at_a_time() -> None:
    """The widest level has three nodes."""
    for workers, at_a_time in ((0, 3), (2, 2), (9, 3)):
        assert cluster_jobs.nodes_at_a_time(small_grid(), Resources(workers=workers)) == at_a_time


def test_a_job_set_has_resources_a_cap_and_a_name_of_its_folder(tmp_path: Path) -> None:
    resources = Resources(workers=2, cpus=3, gpus=1, memory=5, image="registry/zoo:1", volume="data")
    grid = small_grid()
    sets = list(yaml.safe_load_all(cluster_scripts.job_sets(grid, tmp_path, WORDS, resources)))
    jobs = [content["spec"]["replicatedJobs"][0]["template"]["spec"] for content in sets]
    assert [(job["completions"], job["parallelism"]) for job in jobs] == [(1, 1), (3, 2), (3, 2)]
    (container,) = pod_of(sets[0])["containers"]
    assert container["resources"]["limits"] == {"cpu": "3", "memory": "5Gi", "nvidia.com/gpu": "1"}
    assert container["image"] == "registry/zoo:1" and container["env"] == [{"name": "NPROC", "value": "3"}]
    assert pod_of(sets[0])["volumes"][0]["persistentVolumeClaim"] == {"claimName": "data"}
    assert {content["spec"]["failurePolicy"]["maxRestarts"] for content in sets} == {0}
    names = {cluster_scripts.job_name(grid, folder) for folder in (tmp_path, tmp_path / "other")}
    assert len(names) == 2 and all(name.startswith("zoo-small-smoke-") and len(name) < 40 for name in names)


def test_a_refusal_of_slurm_is_shown(cluster: Path) -> None:
    Path(shutil.which("sbatch") or "").write_text(
        "#!/bin/bash\ncat > /dev/null; echo 'sbatch: error: no partition' >&2; exit 1\n"
    )
    with pytest.raises(BadInput, match="bash failed with exit code 1: sbatch: error: no partition"):
        cluster_jobs.run_on_slurm(small_grid(), cluster, words(cluster), Resources())


def test_a_node_without_its_parents_does_not_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "grid")
    assert call(capsys, "experiment", "masks", folder, "--tier", "smoke", "--commands").code == 0
    ended = call(capsys, "experiment", "masks", folder, "--tier", "smoke", "--node", "dynamic-pretrain-0")
    line = "! dynamic-pretrain-0 cannot begin: it needs tokenizer, which is not done; run that first\n"
    assert (ended.code, ended.stdout, ended.stderr) == (node_process.STUCK, "", line)
    assert not os.path.exists(f"{folder}/runs")


def test_a_node_of_which_a_parent_failed_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = small_grid()
    nodes = {node.name: node for node in grid.nodes}
    (tmp_path / "logs").mkdir()
    node_status.note_failure(nodes["tokenizer"], tmp_path, "no text")
    for name in ("a-pretrain-0", "a-score-0"):
        code = experiment._run_node(SimpleNamespace(node=name), grid, tmp_path)
        assert code == cluster_scripts.NEEDS_FAILED
        assert capsys.readouterr().err == f"! {name} is left out: it needs tokenizer, which failed: no text\n"
    assert not (tmp_path / "runs").exists() and [file.name for file in (tmp_path / "logs").iterdir()] == ["tokenizer.failed"]


def test_a_job_has_the_options_of_the_grid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--tier", "smoke", "--seeds", "2", "--on", "jobset", "--workers", "3")
    printed = call(capsys, "experiment", "masks", "grid", *options, "--commands").stdout
    (first, *_) = printed.split("\n---\n")
    (container,) = pod_of(json.loads(first))["containers"]
    (line,) = [line for line in container["command"][-1].splitlines() if "exec" in line]
    assert line == f'exec zoo experiment masks {tmp_path}/grid --tier smoke --seeds 2 --node "${{nodes[$JOB_COMPLETION_INDEX]}}"'
