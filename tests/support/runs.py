"""Runs as a user starts them: `zoo train` in processes of their own, watched, signalled, killed and compared."""

import contextlib
import dataclasses
import functools
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tests.support import compilation, forked, tiny
from tests.support.environment import SCRATCH
from tests.support.processes import Ended, children, clean_environment
from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.manifest import by_path
from train.config import run_config
from train.engine import device_mesh
from train.objectives import objective
from train.run import metrics_file
from train.run.run_dir import read_config
from train.step.assembly import assemble
from train.tokenizers.tokenizer import Tokenizer

PATIENCE = 600.0
"""Seconds after which a process that does not end is taken for stuck, on a machine busy with other things."""
WORDS = ("the", "old", "white", "whale", "sea", "ship", "storm", "captain", "sail", "mast", "boat", "man", "night", "wind", "of")
STEPS, EVERY = 14, 3
ANY = f"--steps {STEPS} --checkpoint.every {EVERY} --checkpoint.keep 9 --log.ledger --model.compute.unroll 1"
SMALL = (
    "--model.vocab 384 --model.layers 2 --model.width 32 --model.heads 4 --model.ffn 64 --model.dropout 0.1 --tokenizer.vocab 300"
    " --data.length 32 --data.batch 8 --optim.warmup 5 --log.every 2 --log.validate-every 10 --log.samples 0"
)
ROLLOUTS = (
    "--model.vocab 257 --model.context 32 --model.layers 1 --model.width 32 --model.heads 4 --model.head 8 --model.ffn 64"
    " --tokenizer.path bytes --data.paths prompts.jsonl --data.length 16 --data.batch 16 --optim.lr 0.01"
    " --rollout.tokens 6 --rollout.steps 3 --rollout.reward low_ids:share --log.every 2 --log.validate-every 10"
)
FLAGS = {
    "bert-nano": f"{SMALL} --data.paths text.txt --data.rows full_sentences --model.context 32 --model.task masked".split(),
    "gpt-nano": [*tiny.FLAGS, "--data.paths", "text.txt", "--model.attention-dropout", "0.1"],
    "t5-nano": f"{SMALL} --data.paths text.txt --model.decoder-layers 2 --model.head 8".split(),
    "transformer-nano": f"{SMALL} --pairs.source text.txt --pairs.target turned.txt".split(),
    "ppo": [*ROLLOUTS.split(), "--rollout.epochs", "3", "--ppo.beta", "0"],
    "rloo": [*ROLLOUTS.split(), "--policy-gradient.beta", "0"],
    "xlnet-nano": f"{SMALL} --data.paths text.txt --data.valid-fraction 0.4 --model.memory 16 --model.reuse 12".split(),
}


def text(lines: int = 80) -> str:
    rng = random.Random(0)
    return "".join(" ".join(rng.choices(WORDS, k=12)) + ".\n" for _ in range(lines))


@functools.cache
def home() -> Path:
    folder = SCRATCH / "home"
    folder.mkdir()
    (folder / "text.txt").write_text(text())
    (folder / "turned.txt").write_text("".join(" ".join(reversed(line.split())) + "\n" for line in text().splitlines()))
    (folder / "prompts.jsonl").write_text("".join(f'{{"prompt": "{n}="}}\n' for n in range(30)))
    (folder / "low_ids.py").write_text("def share(ids, **_):\n    return [sum(id < 64 for id in row) / 6 for row in ids]\n")
    (folder / "bytes").mkdir()
    Tokenizer.train([], 257).save(folder / "bytes")
    return folder


@functools.cache
def reference(*flags: str, recipe: str = "gpt-nano", **machine: int) -> "Training":
    """A run from start to end that nothing happened to: in one process on four devices, unless `machine` says otherwise."""
    run = Training(home(), f"reference-{len(list(home().glob('runs/reference-*')))}", flags, recipe)
    run.finish(**machine)
    assert run.resumed_at() == [0]
    return run


@dataclasses.dataclass(frozen=True)
class Training:
    """A run in `home`/runs/`name`; `flags` are added to every start of it."""

    home: Path
    name: str
    flags: tuple[str, ...] = ()
    recipe: str = "gpt-nano"

    @property
    def folder(self) -> Path:
        return self.home / "runs" / self.name

    def argv(self, *flags: str, devices: int = 4, processes: int = 1) -> list[str]:
        several = ["--processes", str(processes)] if processes > 1 else []
        own = [*FLAGS[self.recipe], *ANY.split(), *self.flags, *flags]
        return ["train", self.recipe, *own, "--name", self.name, "--devices", str(devices), *several]

    def copied(self, name: str, step: int, *flags: str, home: Path | None = None) -> "Training":
        """Return a copy of this finished run that is as if it had been killed when its newest checkpoint was of `step`."""
        copy = Training(home or self.home, name, (*self.flags, *flags), self.recipe)
        shutil.copytree(self.folder, copy.folder, ignore=shutil.ignore_patterns("scores.json", "report.html"))
        for checkpoint in copy.checkpoints():
            if int(checkpoint.name) > step:
                shutil.rmtree(checkpoint)
        assert copy.latest() == step
        return copy

    @contextlib.contextmanager
    def start(self, *flags: str, limit: Callable[[], None] | None = None, **machine: int) -> Iterator["Started"]:
        """The command under way, killed at the end of the block if it has not ended by then; `limit` as `forked.start`."""
        before = inode(self.folder / "ledger.jsonl")
        out, err = (self.home / f"{self.name}.{number}" for number in ("out", "err"))
        process = forked.start(self.argv(*flags, **machine), self.home, out, err, clean_environment() | compilation.FLAGS, limit)
        try:
            yield Started(self, process, before, out, err)
        finally:
            process.kill()
            process.join()

    def refused(self, *flags: str, limit: Callable[[], None] | None = None) -> str:
        """Return the one line on stderr with which a start ends."""
        with self.start(*flags, limit=limit) as started:
            done = started.ended()
        assert done.code == 2, done
        [line] = done.stderr.splitlines()
        return line

    def finish(self, *flags: str, **machine: int) -> Ended:
        with self.start(*flags, **machine) as started:
            done = started.ended()
        assert (done.code, done.stderr) == (0, ""), done
        return done

    def rows(self) -> list[dict[str, Any]]:
        rows = metrics_file.read_rows(self.folder / "metrics.jsonl")
        return [{key: value for key, value in row.items() if key != "time"} for row in rows]

    def losses(self) -> np.ndarray:
        return np.array([row["loss"] for row in self.rows()])

    def ledger(self) -> list[dict[str, Any]]:
        return metrics_file.read_rows(self.folder / "ledger.jsonl")

    def resumed_at(self) -> list[int]:
        return [row["step"] for row in metrics_file.read_rows(self.folder / "starts.jsonl")]

    def checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoints/????????"))

    def latest(self) -> int | None:
        return self._reader().latest()

    def state(self, step: int | None = None) -> dict[str, np.ndarray]:
        """Every array of the newest checkpoint, or of one: parameters, optimizer state, carry, key and step."""
        run, mesh = read_config(self.folder), device_mesh.make_mesh(run_config.Mesh())
        abstract = assemble(run, objective(run.objective).bind_abstract(run, mesh), mesh).state
        restored = self._reader().restore(abstract, step=step)
        assert restored is not None
        return by_path(jax.device_get(restored[0]))

    def left_over(self) -> list[str]:
        return [entry.name for entry in self.folder.glob("checkpoints/*.tmp")]

    def _reader(self) -> Checkpoints:
        return Checkpoints(self.folder / "checkpoints", 1, notify=lambda _: None)


@dataclasses.dataclass(frozen=True)
class Started:
    training: Training
    process: BaseProcess
    ledger_before: int
    out: Path
    err: Path

    def reach(self, step: int) -> int:
        """Wait until this start (not one before it) has taken `step` steps; returns how many it has taken."""
        path = self.training.folder / "ledger.jsonl"

        def taken() -> int:
            # A start replaces the file by one with the steps it goes on from.
            if inode(path) in (0, self.ledger_before):
                return -1
            rows = metrics_file.read_rows(path)
            return rows[-1]["step"] if rows else 0

        return self.wait(lambda: (number := taken()) >= step and number)

    def wait(self, happened: Callable[[], Any]) -> Any:
        """Poll, every two milliseconds, until `happened()` is true, and return its result."""
        deadline = time.monotonic() + PATIENCE
        while not (result := happened()):
            assert self.process.exitcode is None, f"it ended too early: {self.out.read_text()}{self.err.read_text()}"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return result

    def committed(self, step: int) -> None:
        self.wait(lambda: (self.training.latest() or 0) >= step)

    def saving(self) -> None:
        """Wait until a save is under way; the deletion of an old step looks the same, but for its number."""
        self.wait(lambda: max(self.training.left_over(), default="") > f"{self.training.latest() or 0:08d}")

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def stopped(self, number: signal.Signals) -> int:
        """Send a signal that saves and leaves, see that it does, and return the step, after which nothing was lost."""
        self.send(number)
        return self.saved(number)

    def saved(self, number: signal.Signals) -> int:
        """See that the run ends because of a signal, and return the step, after which nothing was lost."""
        done = self.ended()
        assert done.code == 128 + number, done
        # JAX's coordination service says in its own words that a signal came.
        assert not [line for line in done.stderr.splitlines() if "SIGTERM caught" not in line], done
        step = self.training.latest()
        assert f"stopped and saved at step {step} of" in done.stdout
        assert self.training.ledger()[-1]["step"] == step
        assert step is not None
        return step

    def workers(self) -> list[int]:
        assert self.process.pid is not None
        return children(self.process.pid)

    def ended(self) -> Ended:
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, "it does not end"
        return Ended(self.process.exitcode, self.out.read_text(), self.err.read_text())

    def interrupted(self) -> Ended:
        """Send SIGINT again and again, until it has ended."""
        while self.process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):  # it may have ended since
                self.send(signal.SIGINT)
            time.sleep(0.01)
        return self.ended()

    def killed(self) -> None:
        self.send(signal.SIGKILL)
        done = self.ended()
        assert done.code == -signal.SIGKILL, f"it ended before it could be killed: {done}"


def assert_same(run: Training, reference: Training) -> None:
    ours, theirs = run.state(), reference.state()
    assert ours.keys() == theirs.keys()
    assert not [path for path in ours if ours[path].tobytes() != theirs[path].tobytes()]
    assert run.rows() == reference.rows()
    assert run.ledger() == reference.ledger()
    assert (run.folder / "scores.json").read_text() == (reference.folder / "scores.json").read_text()


def assert_close(run: Training, reference: Training, tolerance: float = 1e-5) -> None:
    assert run.ledger() == reference.ledger()
    np.testing.assert_allclose(run.losses(), reference.losses(), rtol=tolerance)


def assert_every_sample_once_per_epoch(run: Training, steps: int = STEPS) -> None:
    ledger = run.ledger()
    assert [row["step"] for row in ledger] == list(range(1, steps + 1))
    samples = np.concatenate([row["rows"] for row in ledger])
    epochs = np.split(samples, range(samples.max() + 1, len(samples), samples.max() + 1))
    assert len(epochs) > 2
    for epoch in epochs[:-1]:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(samples.max() + 1))
    assert (epochs[0] != epochs[1]).any()


@contextlib.contextmanager
def small_files(largest: int) -> Iterator[None]:
    """Let no file grow beyond a size: what a full disk looks like to a program that writes."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "run.lock"]
    return {str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(map(alive, pids))


def inode(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return os.stat(path).st_ino
    return 0
