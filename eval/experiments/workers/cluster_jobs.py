"""Submit the nodes of a grid to Slurm or Kubernetes, and follow them until they have ended. The jobs do not need this process."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from eval.experiments import node_status
from eval.experiments.grid import Grid
from eval.experiments.run_progress import RunProgress
from eval.experiments.workers import cluster_scripts
from eval.experiments.workers.cluster_scripts import Resources
from zoo.errors import BadInput

POLL = 10.0
"""Seconds between two questions to the cluster."""
FAILURES = 30
"""Questions in a row that the cluster may leave unanswered."""


def run_on_slurm(grid: Grid, folder: Path, words: Sequence[str], resources: Resources) -> list[str]:
    """Submit the missing nodes, unless jobs of this folder are in the queue, and return a line for each node without results.

    Raises:
        BadInput: Slurm refuses the jobs or does not answer; the message has its last line.
    """
    name = cluster_scripts.job_name(grid, folder)

    def queued() -> bool:
        return bool(_call(["squeue", "--me", "--noheader", "--format=%i", f"--name={name}"]).strip())

    (folder / node_status.LOGS).mkdir(parents=True, exist_ok=True)
    if not queued():
        _call(["bash", "-s"], cluster_scripts.slurm_script(grid, folder, words, resources))
    _follow_interruptibly(grid, folder, queued, nodes_at_a_time(grid, resources))
    return missing_lines(grid, folder)


def run_on_kubernetes(grid: Grid, folder: Path, words: Sequence[str], resources: Resources) -> list[str]:
    """Apply a JobSet of the missing nodes of each level after the one before has ended; as `run_on_slurm`.

    Raises:
        BadInput: `kubectl` reports an error.
    """
    for level, nodes in enumerate(grid.levels()):
        missing = [node for node in nodes if not node_status.is_done(node, folder)]
        if not missing:
            continue
        content = cluster_scripts.job_set(grid, missing, folder, words, resources, level)
        name = content["metadata"]["name"]

        def active(name: str = name) -> bool:
            text = _call(["kubectl", "get", "jobset", name, "--ignore-not-found", "--output=json"])
            conditions = json.loads(text).get("status", {}).get("conditions", []) if text.strip() else [{"type": "Failed"}]
            ended = [condition for condition in conditions if condition["type"] in ("Completed", "Failed")]
            return not any(condition.get("status", "True") == "True" for condition in ended)

        if not active():
            _call(["kubectl", "delete", "jobset", name, "--ignore-not-found"])
            _call(["kubectl", "apply", "--filename=-"], json.dumps(content))
        _follow_interruptibly(grid, folder, active, nodes_at_a_time(grid, resources))
    return missing_lines(grid, folder)


def missing_lines(grid: Grid, folder: Path) -> list[str]:
    """Return a line for each node that failed, and for each that has no results although none that it needs failed."""
    lines = []
    for node in grid.nodes:
        if node_status.is_done(node, folder):
            continue
        if message := node_status.node_failure(node, folder):
            lines.append(f"{node.name} failed: {message}; see {node_status.log_file(node, folder)}")
        elif node_status.failed_ancestor(grid, node, folder) is None:
            lines.append(f"{node.name} has no results; see {folder / node_status.LOGS}, and run the same command again")
    return lines


def nodes_at_a_time(grid: Grid, resources: Resources) -> int:
    """Return how many nodes run at a time if the cluster has room: at most those of a level, which need the level before."""
    widest = max(len(nodes) for nodes in grid.levels())
    return min(resources.workers or widest, widest)


def _follow_interruptibly(grid: Grid, folder: Path, active: Callable[[], bool], workers: int) -> None:
    try:
        _follow(grid, folder, active, workers)
    except KeyboardInterrupt:
        print("! the jobs go on; the same command follows them again", file=sys.stderr, flush=True)
        raise


def _follow(grid: Grid, folder: Path, active: Callable[[], bool], workers: int) -> None:
    """Show which nodes end, and when all of them will if `workers` run at a time, until no job is active."""
    earlier = {node.name: node_status.failed_attempt(node, folder) for node in grid.nodes}
    ended = {node.name for node in grid.nodes if node_status.is_done(node, folder)}
    failures = 0
    with RunProgress(grid, folder, workers) as progress:
        while True:
            try:
                is_active, failures = active(), 0
            except BadInput:
                failures += 1
                if failures > FAILURES:
                    raise
                is_active = True
            for node in (node for node in grid.nodes if node.name not in ended):
                done, attempt = node_status.is_done(node, folder), node_status.failed_attempt(node, folder)
                if done:
                    ended.add(node.name)
                    progress.ended(node, True, f"{len(ended)} of {len(grid.nodes)}")
                elif attempt not in (None, earlier[node.name]):
                    earlier[node.name] = attempt
                    progress.ended(node, False, node_status.node_failure(node, folder))
            if not is_active:
                return
            progress.update([node.name for node in grid.nodes if node.name not in ended and node_status.is_begun(node, folder)])
            time.sleep(POLL)


def require_program(name: str) -> None:
    """Refuse to go on without a program of the cluster.

    Raises:
        BadInput: it is not installed here.
    """
    if shutil.which(name) is None:
        raise BadInput(f"{name} is not installed here; run this command where it is, or add --commands")


def _call(command: Sequence[str], text: str = "") -> str:
    """Return what a command prints.

    Raises:
        BadInput: it failed.
    """
    # Jobs inherit this PATH, on which `zoo` is that of this environment.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "it printed nothing").splitlines()[-1]
        raise BadInput(f"{command[0]} failed with exit code {done.returncode}: {last[:500]}")
    return done.stdout
