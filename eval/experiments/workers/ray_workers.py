"""Workers on a Ray cluster: a task runs the command of a node in a process that ends with it."""

import contextlib
import importlib
import importlib.util
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.experiments import node_status
from eval.experiments.grid import Node
from eval.experiments.workers.cluster_scripts import RESTARTS, Resources
from eval.experiments.workers.node_process import PROGRAM, Outcome
from zoo.errors import BadInput
from zoo.runtime.jax_setup import THREADS_VARIABLE

SECONDS_TO_SAVE = 120.0


class RayWorkers:
    """The CPUs (or GPUs) of a Ray cluster. Every machine of it sees the experiment's folder, and has this environment."""

    def __init__(self, folder: Path, words: Sequence[str], resources: Resources) -> None:
        """Connect to the cluster in RAY_ADDRESS or on this machine, or start one on this machine.

        Args:
            words: arguments of `zoo` to which `--node NODE` is added.

        Raises:
            BadInput: Ray is not installed or cannot be reached, or the cluster is too small for a node.
        """
        require_ray()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray = _import_ray()
        self._folder, self._words = folder, words
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False, ignore_reinit_error=True)
        except (ConnectionError, RuntimeError, OSError, ValueError) as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BadInput(f"--on ray: {line}; correct RAY_ADDRESS, or start the cluster") from None
        available = ray.cluster_resources()
        needs = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory << 30}
        places = min(int(available.get(name, 0) // amount) for name, amount in needs.items() if amount)
        if places < 1:
            cpus, gpus, memory = (available.get(name, 0) for name in ("CPU", "GPU", "memory"))
            raise BadInput(
                f"--on ray: the cluster has {cpus:g} CPUs, {gpus:g} GPUs and {memory / 2**30:.0f} GiB of memory; "
                f"choose at most that for --cpus {resources.cpus}, --gpus {resources.gpus} and --memory {resources.memory}"
            )
        self.count = min(resources.workers or places, places)
        self._task = ray.remote(_run_command).options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            memory=resources.memory << 30,
            max_retries=RESTARTS,
            runtime_env={"env_vars": {THREADS_VARIABLE: str(resources.cpus)}},
        )

    def start(self, node: Node, slot: int) -> "RayNode":
        """Submit the task of a node; the node is claimed where it runs."""
        del slot
        # A task can fail before its node begins, and must not report the reason of an earlier attempt.
        node_status.clear_failure(node, self._folder)
        return RayNode(node, self._folder, self._task.remote([*self._words, "--node", node.name]))


class RayNode:
    """The task of a node."""

    def __init__(self, node: Node, folder: Path, task: Any) -> None:
        self._node, self._folder, self._task, self._stopped = node, folder, task, False

    def poll(self) -> Outcome | None:
        """Return how the task ended; None if it waits or runs."""
        ray = _import_ray()
        if not ray.wait([self._task], timeout=0)[0]:
            return None
        try:
            code, message = ray.get(self._task)
        except ray.exceptions.RayError as error:
            code, message = 1, (str(error).strip() or type(error).__name__).splitlines()[0]
        if node_status.is_done(self._node, self._folder):
            return Outcome("done", "on the cluster")
        if self._stopped:
            return Outcome("stopped", message)
        if not (noted := node_status.node_failure(self._node, self._folder)):
            noted = f"exit code {code}: {message}"
            node_status.note_failure(self._node, self._folder, noted)
        return Outcome("failed", noted)

    def stop(self, number: int) -> None:
        """Interrupt the task, whose run saves and ends."""
        ray = _import_ray()
        del number
        self._stopped = True
        ray.cancel(self._task, force=False)

    def kill(self) -> None:
        """Kill the task's process, and so its run."""
        ray = _import_ray()
        self._stopped = True
        with contextlib.suppress(ray.exceptions.RayError):
            ray.cancel(self._task, force=True)


def require_ray() -> None:
    """Refuse to go on without Ray.

    Raises:
        BadInput: it is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise BadInput("--on ray: Ray is not installed; install the extra ray (docs/install.md), or choose another --on")


def _import_ray() -> Any:
    """Return the module; type checkers do not look for the optional package."""
    return importlib.import_module("ray")


def _run_command(words: Sequence[str]) -> tuple[int, str]:
    """Run `zoo` with these arguments on a machine of the cluster, and return its exit code and last line."""
    process = subprocess.Popen(
        [*PROGRAM, str(os.getpid()), "all", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        process_group=0,
    )
    try:
        _, text = process.communicate()
    except BaseException:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_SAVE)
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        raise
    lines = [line for line in text.splitlines() if line.strip()]
    return process.returncode, lines[-1].removeprefix("zoo: ") if lines else "it printed nothing"
