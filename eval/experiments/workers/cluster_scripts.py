"""The nodes of a grid as shell commands, Slurm arrays or Kubernetes job sets, to run them on other machines.

Nodes of a level are independent of each other. A job runs `zoo experiment ... --node NODE`, which claims the node, checks its
parents and writes down its failure, as the engine does on one machine. So a level begins after the one before has ended, whether
its nodes succeeded or not, and a failed node stops only its descendants.
"""

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.experiments import node_status
from eval.experiments.grid import Grid, Node
from eval.experiments.workers.node_process import STUCK
from zoo.runtime.jax_setup import THREADS_VARIABLE

SECONDS_TO_SAVE = 120
NEEDS_FAILED = 3
"""Exit code of a node of which a parent failed."""
FINAL = (1, 2, NEEDS_FAILED)
"""Exit codes of failures that would repeat: a diverged run, wrong input, a failed parent."""
RESTARTS = 3
"""Restarts of a node that was killed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """The needs of a node on another machine, and the number of nodes that run at a time."""

    workers: int = 0
    """0 = as many as there is room for."""
    cpus: int = 1
    gpus: int = 0
    memory: int = 4
    """GiB."""
    image: str = "IMAGE"
    """Container image of a job set, with `zoo` on PATH."""
    volume: str = "zoo"
    """Persistent volume claim of a job set, which has the experiment's folder."""
    mount: Path | None = None
    """Folder at which pods have the volume; None = the one above that of the nodes."""


def node_command(node: Node, folder: Path) -> str:
    """Return the command of a node as a line of a shell; it can be run in any folder."""
    return f"cd {shlex.quote(str(folder.resolve()))} && {shlex.join(['zoo', *node.argv])}"


def command_lines(grid: Grid, folder: Path) -> list[str]:
    """Return the commands of all nodes, a comment before each level."""
    lines = []
    for number, nodes in enumerate(grid.levels()):
        lines.append(f"# level {number}: {len(nodes)} commands, in any order and at the same time")
        lines += [node_command(node, folder) for node in nodes]
    return lines


def job_name(grid: Grid, folder: Path) -> str:
    """Return a name for the jobs of an experiment's folder, of lower-case letters, digits and '-'."""
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:6]
    return f"zoo-{grid.experiment.name}-{grid.tier}-{digest}".replace("_", "-").lower()


def missing_levels(grid: Grid, folder: Path) -> list[list[Node]]:
    """Return the nodes that are not done, by level; levels without such nodes are left out."""
    levels = ([node for node in nodes if not node_status.is_done(node, folder)] for nodes in grid.levels())
    return [nodes for nodes in levels if nodes]


def slurm_script(grid: Grid, folder: Path, words: Sequence[str], resources: Resources) -> str:
    """Return a shell script that submits an array of jobs for each level, and prints the numbers of the arrays.

    It is run on a machine with `sbatch`. A run gets a signal to save two minutes before its time limit, and is requeued, and so
    is one that was stuck, or whose parent has no result yet.

    Args:
        words: the command `zoo experiment NAME DIR ...`, to which `--node NODE` is added.
    """
    options = [
        f"--job-name={job_name(grid, folder)}",
        f"--chdir={folder.resolve()}",
        f"--output={node_status.LOGS}/slurm-%A_%a.log",
        f"--cpus-per-task={resources.cpus}",
        f"--mem={resources.memory}G",
        *([f"--gpus={resources.gpus}"] if resources.gpus else []),
        f"--signal=TERM@{SECONDS_TO_SAVE}",
        "--requeue",
        "--open-mode=append",
    ]
    at_once = f"%{resources.workers}" if resources.workers else ""
    blocks = [
        f"#!/bin/bash\n# {grid.experiment.name}, tier {grid.tier}: bash THIS_FILE, with `zoo` on PATH; all see its folder.\n"
        "# Other options of sbatch (partition, account) are read from its variables, such as SBATCH_PARTITION.\n"
        f"set -euo pipefail\nmkdir -p {shlex.quote(str(folder.resolve() / node_status.LOGS))}\n"
        f'options=({shlex.join(options)} --time="${{SBATCH_TIMELIMIT:-24:00:00}}")\nafter=()\n'
    ]
    for number, nodes in enumerate(missing_levels(grid, folder)):
        blocks.append(
            f"level{number}() {{ cat <<'END'\n{_slurm_job(nodes, words)}END\n}}\n"
            f'job=$(level{number} | sbatch --parsable "${{options[@]}}" "${{after[@]}}" --array=0-{len(nodes) - 1}{at_once})\n'
            # A node checks its parents itself: afterok would stop all nodes of later levels if one fails.
            'after=(--dependency="afterany:${job%%;*}")\necho "$job"\n'
        )
    return "\n".join(blocks)


def _slurm_job(nodes: Sequence[Node], words: Sequence[str]) -> str:
    """Return the script of a job of an array, which runs the node of its number."""
    return (
        f"#!/bin/bash\nnodes=({' '.join(node.name for node in nodes)})\n"
        # srun gets the signal of --signal, a batch shell does not.
        f'code=0\nsrun --ntasks=1 {shlex.join(words)} --node "${{nodes[$SLURM_ARRAY_TASK_ID]}}" || code=$?\n'
        'again() { scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"; }\n'
        'case "$code" in\n    143) again ;;\n'
        f'    {STUCK}) [ "${{SLURM_RESTART_COUNT:-0}}" -ge 10 ] || again ;;\nesac\nexit "$code"\n'
    )


def job_sets(grid: Grid, folder: Path, words: Sequence[str], resources: Resources) -> str:
    """Return a Kubernetes JobSet for each level, as a file for `kubectl`; apply a level when the one before has ended.

    The folder of the experiment must be on a volume that all pods share, at the same path.
    """
    sets = [job_set(grid, nodes, folder, words, resources, number) for number, nodes in enumerate(missing_levels(grid, folder))]
    return "\n---\n".join(json.dumps(content, indent=2) for content in sets)


def job_set(
    grid: Grid, nodes: Sequence[Node], folder: Path, words: Sequence[str], resources: Resources, level: int
) -> dict[str, Any]:
    """Return the JobSet of the nodes of a level: one indexed job, in which each node fails and is restarted for itself."""
    script = (
        f'nodes=({" ".join(node.name for node in nodes)})\nexec {shlex.join(words)} --node "${{nodes[$JOB_COMPLETION_INDEX]}}"\n'
    )
    top = folder.resolve()
    needs = {"cpu": str(resources.cpus), "memory": f"{resources.memory}Gi"}
    needs |= {"nvidia.com/gpu": str(resources.gpus)} if resources.gpus else {}
    container = {
        "name": "zoo",
        "image": resources.image,
        "workingDir": str(top),
        "command": ["bash", "-c", script],
        # A limit in Kubernetes is of time, and does not change the number of cores that XLA counts.
        "env": [{"name": THREADS_VARIABLE, "value": str(resources.cpus)}],
        "resources": {"requests": needs, "limits": needs},
        "volumeMounts": [{"name": "shared", "mountPath": str(resources.mount or top.parent)}],
    }
    pod = {
        "restartPolicy": "Never",
        # After SIGTERM a run saves and exits.
        "terminationGracePeriodSeconds": 300,
        "containers": [container],
        "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": resources.volume}}],
    }
    job = {
        "completionMode": "Indexed",
        "completions": len(nodes),
        "parallelism": min(resources.workers or len(nodes), len(nodes)),
        "backoffLimitPerIndex": RESTARTS,
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
                {"action": "FailIndex", "onExitCodes": {"containerName": "zoo", "operator": "In", "values": list(FINAL)}},
            ]
        },
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": f"{job_name(grid, folder)}-{level}", "labels": {"level": str(level)}},
        "spec": {
            "failurePolicy": {"maxRestarts": 0},
            "replicatedJobs": [{"name": "cells", "replicas": 1, "template": {"spec": job}}],
        },
    }
