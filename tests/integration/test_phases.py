"""Runs by one command, each from the parameters of the one before: killed anywhere and started again, they have the same bits."""

import collections
import functools
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import zoo
from tests.support import compilation, forked
from tests.support.commands import assert_refused, words
from tests.support.processes import Ended, clean_environment
from tests.support.runs import PATIENCE, Training, assert_same, home, inode
from train.run.run_dir import read_config
from zoo.cli.commands.train import train
from zoo.cli.phases import split_phases
from zoo.errors import BadInput

PHASES = ("modernbert-base", "modernbert-base-context", "modernbert-base-decay")
STEPS = (8, 6, 6)
LENGTHS = (16, 32, 32)
SIZE = (
    "--model.vocab 384 --tokenizer.vocab 300 --model.layers 2 --model.width 32 --model.heads 4 --model.ffn 48 --model.context 32"
    " --model.local-window 8 --model.compute.unroll 1 --data.paths text.txt --checkpoint.every 2"
    " --checkpoint.keep 1 --log.every 1 --log.validate-every 0 --log.ledger"
    " --modernbert-base.optim.warmup 2 --modernbert-base.data.ramp 4@256 --modernbert-base-decay.optim.decay-steps 6"
)
COMMAND = ["train", PHASES[0], "--phases", *PHASES[1:], *words(SIZE), "--steps", str(sum(STEPS))]
for phase, steps, length in zip(PHASES, STEPS, LENGTHS, strict=True):
    COMMAND += words(f"--{phase}.steps {steps} --{phase}.data.length {length} --{phase}.data.batch 8 --{phase}.accumulate 1")


class Chain:
    """The three phases in `home()`/runs/`name`."""

    def __init__(self, name: str) -> None:
        self.name, self.phases = name, [Training(home(), f"{name}/{phase}") for phase in PHASES]

    def start(self, before: Callable[[], None] | None = None):
        out, err = (home() / f"{self.name}.{number}" for number in ("out", "err"))
        return forked.start(
            [*COMMAND, "--out", f"runs/{self.name}"], home(), out, err, clean_environment() | compilation.FLAGS, before
        )

    def ended(self, process) -> Ended:
        process.join(PATIENCE)
        out, err = ((home() / f"{self.name}.{number}").read_text() for number in ("out", "err"))
        return Ended(process.exitcode, out, err)

    def finish(self) -> Ended:
        done = self.ended(self.start())
        assert done.code == 0, done
        return done

    def killed_at(self, fault: str) -> None:
        done = self.ended(self.start(functools.partial(forked.with_faults, fault)))
        assert done.code == -signal.SIGKILL, done

    def ledgers(self) -> list[int]:
        return [inode(phase.folder / "ledger.jsonl") for phase in self.phases]

    def taken(self, before: list[int]) -> int:
        """Return the steps that finished phases have, and the one in progress in a start before which `before` was `ledgers`."""
        total = 0
        for phase, old, now in zip(self.phases, before, self.ledgers(), strict=True):
            if not (phase.folder / "scores.json").exists() and now in (0, old):
                break
            rows = phase.ledger()
            total += rows[-1]["step"] if rows else 0
        return total

    def committed(self) -> list[int]:
        return [phase.latest() or 0 for phase in self.phases]


@functools.cache
def unharmed() -> Chain:
    chain = Chain("unharmed")
    chain.finish()
    return chain


def assert_same_chain(chain: Chain) -> None:
    for phase, reference in zip(chain.phases, unharmed().phases, strict=True):
        assert_same(phase, reference)
        assert (phase.folder / "report.html").exists()
        assert not phase.left_over()


@pytest.mark.slow
def test_killed_between_two_phases_and_inside_a_save_phases_end_with_the_same_bits() -> None:
    first, second, third = (read_config(phase.folder) for phase in unharmed().phases)
    assert [run.model.global_base for run in (first, second, third)] == [1e4, 1.6e5, 1.6e5]
    assert (first.init, second.init_positions, third.init) == ("", "recompute", "runs/unharmed/modernbert-base-context")
    chain = Chain("harmed")
    chain.killed_at("train.start:kill:2")
    assert chain.committed() == [8, 0, 0]
    chain.killed_at("checkpoint.rename:kill:2")
    assert chain.committed() == [8, 2, 0]
    assert chain.phases[1].left_over()
    chain.finish()
    assert [phase.resumed_at() for phase in chain.phases] == [[0], [0, 2], [0]]
    assert_same_chain(chain)


@pytest.mark.slow
def test_killed_at_random_moments_phases_end_with_the_same_bits() -> None:
    """Each kill is at a random step of the chain and up to a second later, which may be between two phases or in a save."""
    seed = int(os.environ.get("KILLS_SEED") or random.SystemRandom().randrange(1 << 32))
    rng, kills, total = random.Random(seed), 10, sum(STEPS)
    unharmed()
    chain, resumed, places = Chain("killed"), 0, collections.Counter()
    for kill in range(kills):
        at = min(resumed + 1 + rng.randint(0, 3 * (total - resumed) // (kills - kill)), total - 1)
        before, deadline = chain.ledgers(), time.monotonic() + PATIENCE
        process = chain.start()
        assert process.pid is not None
        while chain.taken(before) < at:
            assert process.exitcode is None and time.monotonic() < deadline, chain.ended(process)
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 1))
        os.kill(process.pid, signal.SIGKILL)
        assert chain.ended(process).code == -signal.SIGKILL
        committed = chain.committed()
        assert sum(committed) >= resumed
        resumed = sum(committed)
        phase = sum((phase.folder / "scores.json").exists() for phase in chain.phases)
        place = "in a save" if any(each.left_over() for each in chain.phases) else "elsewhere"
        places["between phases" if phase and not committed[min(phase, 2)] else f"phase {phase + 1}, {place}"] += 1
    chain.finish()
    print(f"KILLS_SEED={seed}", dict(places), [phase.resumed_at() for phase in chain.phases])
    assert_same_chain(chain)


REFUSED = {
    "--phases": "--phases: no recipe is named; name those that follow, as --phases NEXT NEXT",
    "--phases modernbert-base": "--phases modernbert-base: named twice",
    "--phases modernbert-large-context": "--init runs/modernbert-base: another model: .*width 768 there and 1024 here",
    "--phases gpt2": "--phases gpt2: another model family than that of modernbert-base",
    "--phases modernbert": "no recipe is called 'modernbert'",
    "--phases finetune-tagging": "--phases finetune-tagging: its recipe reads the model of --init, which is not trained yet",
    "--phases modernbert-base-decay --optim.lr 1e-3": "--optim.lr: the phases have different values of it, 0.0008, 0.0003; write",
    "--phases modernbert-base-decay --steps 10": r"--steps 10: the phases end at 382,742 \+ 10,596 = 393,338; choose that, or",
    "--phases modernbert-base-decay --steps ten": "--steps: ten is not a whole number",
    "--phases modernbert-base-decay --name x": "--name: each phase has the name of its recipe",
    "--phases modernbert-base-decay --extend": "--extend: the next phases began before the added steps",
    "--phases modernbert-base-decay --modernbert-base.devices 2": "--modernbert-base.devices: all phases have one; write ",
    "--phases modernbert-base-decay --modernbert-base-decay.init x": "--modernbert-base-decay.init: it is the phase before",
    "--phases modernbert-base-decay --modernbert-base-decay.fork 4": "--modernbert-base-decay.fork: a phase begins with",
    "--phases=": "--phases: no recipe is named",
    "--phases=modernbert": "no recipe is called 'modernbert'",
    "--phases modernbert-base-decay --modernbert-base-decay.optim.b3 1": "there is no option --optim.b3",
    "--phases modernbert-base-context --modernbert-base-context.data.paths missing": "missing: no such file",
    "--phases modernbert-base-decay --modernbert-large.seed 1": "there is no option --modernbert-large.seed",
}


def test_phases_that_do_not_follow_each_other_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cases = {line: (("train", "modernbert-base", *words(line)), message) for line, message in REFUSED.items()}
    assert_refused(capsys, tmp_path, cases)


def test_an_option_is_of_all_phases_or_of_the_one_that_it_names() -> None:
    line = "--out there --phases modernbert-base-decay --optim.b2 0.9 --modernbert-base.data.batch 8 --init x --mesh.data -1"
    (first, second), steps = split_phases("modernbert-base", [*words(line), "--steps=9"])
    assert steps == 9
    shared = words("--out there --optim.b2 0.9 --mesh.data -1")
    assert first == ("modernbert-base", [*shared, "--data.batch", "8", "--init", "x"])
    assert second == ("modernbert-base-decay", [*shared, "--init", "there/modernbert-base"])


def test_a_check_names_every_phase(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("".join(f"The whale number {number} was seen at dawn.\n" for number in range(400)))
    assert train([*COMMAND[1:], "--check"]) == 0
    printed = capsys.readouterr()
    lines = [line for line in printed.out.splitlines() if line.startswith("then ")]
    assert [line.partition(":")[0] for line in lines] == [f"then {phase}" for phase in PHASES[1:]]
    assert "6 steps of 8 rows" in lines[0] and not (tmp_path / "runs").exists()


def test_phases_from_python_are_checked_as_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="--phases gpt2: another model family than that of modernbert-base"):
        zoo.train("modernbert-base", phases=["gpt2"])
