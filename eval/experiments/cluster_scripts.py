"""The nodes of a grid as shell commands, Slurm arrays or a chain of Kubernetes job sets, to run them on other machines.

Nodes of a level are independent of each other. The commands are those that the engine runs: a finished run ends at once and an
interrupted one continues, so a level may be repeated. Afterwards `--render` makes the page.
"""

import shlex
from pathlib import Path

from eval.experiments.grid import Grid, Node

SECONDS_TO_SAVE = 120


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


def slurm_script(grid: Grid, folder: Path) -> str:
    """Return a shell script that submits an array of jobs for each level; a level waits until the one before has succeeded.

    It is run on a machine with `sbatch`. A run gets a signal to save two minutes before its time limit, and is requeued.
    """
    name = grid.experiment.name
    blocks = [
        f"#!/bin/bash\n# {name}, {len(grid.nodes)} commands in {len(grid.levels())} levels: bash THIS_FILE, where all nodes see\n"
        f"# {folder.resolve()} and `zoo` is on PATH. Add what your cluster needs (partition, GPUs) to `options`.\n"
        f"set -euo pipefail\noptions=(--time=24:00:00)\nafter=()\n"
    ]
    for number, nodes in enumerate(grid.levels()):
        commands = "\n".join(shlex.quote(shlex.join(["zoo", *node.argv])) for node in nodes)
        blocks.append(
            f"# level {number}\n"
            f'job=$(sbatch --parsable "${{options[@]}}" "${{after[@]}}" --job-name={name}-{number} \\\n'
            f"    --array=0-{len(nodes) - 1} --signal=TERM@{SECONDS_TO_SAVE} --requeue --open-mode=append \\\n"
            "    --output=%x-%A_%a.log <<'END'\n"
            f"#!/bin/bash\ncd {shlex.quote(str(folder.resolve()))}\ncommands=(\n{commands}\n)\n"
            # srun gets the signal of --signal, a batch shell does not.
            'code=0\nsrun --ntasks=1 bash -c "exec ${commands[$SLURM_ARRAY_TASK_ID]}" || code=$?\n'
            '[ "$code" != 143 ] || scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"\n'
            'exit "$code"\nEND\n)\nafter=(--dependency="afterok:$job")\n'
        )
    tail = f'echo "afterwards: zoo experiment {name} {shlex.quote(str(folder.resolve()))} --render"\n'
    return "\n".join([*blocks, tail])


def job_sets(grid: Grid, folder: Path) -> str:
    """Return a Kubernetes JobSet for each level, as one YAML file; apply a level when the one before is done.

    The folder of the experiment must be on a volume that all pods share, at the same path.
    """
    return "---\n".join(_job_set(grid, nodes, folder, number) for number, nodes in enumerate(grid.levels()))


def _job_set(grid: Grid, nodes: list[Node], folder: Path, number: int) -> str:
    name = f"zoo-{grid.experiment.name}-{number}"
    commands = "\n".join(f"                      {shlex.quote(shlex.join(['zoo', *node.argv]))}" for node in nodes)
    return f"""\
# {grid.experiment.name}, level {number}: kubectl apply -f FILE -l level={number}
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: {name}
  labels:
    level: "{number}"
spec:
  # A pod that fails is restarted, and its run continues from its last checkpoint.
  failurePolicy:
    maxRestarts: 10
  replicatedJobs:
    - name: cells
      replicas: 1
      template:
        spec:
          completionMode: Indexed
          completions: {len(nodes)}
          parallelism: {len(nodes)}
          backoffLimit: 10
          template:
            spec:
              restartPolicy: Never
              # After SIGTERM a run saves and exits.
              terminationGracePeriodSeconds: 300
              containers:
                - name: zoo
                  image: IMAGE
                  workingDir: {folder.resolve()}
                  volumeMounts:
                    - name: shared
                      mountPath: {folder.resolve().parent}
                  command:
                    - bash
                    - -c
                    - |
                      commands=(
{commands}
                      )
                      exec bash -c "exec ${{commands[$JOB_COMPLETION_INDEX]}}"
              volumes:
                - name: shared
                  persistentVolumeClaim:
                    claimName: zoo
"""
