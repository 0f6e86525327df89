"""The rows of the campaign that are not tests of the suite."""

import json

from tests.campaign import damaged_files, full_disks, killed_runs, process_groups, sample_ledger, stored_runs
from tests.campaign.fuzz_readers import LARGEST_GROWTH
from tests.campaign.row_types import Outcome, Row, Task
from tests.hostile import matrix
from tests.hostile.all_cases import CASES
from tests.hostile.commands import COMMANDS
from tests.support.processes import ROOT, run_python


def fuzz(task: Task, outcome: Outcome) -> None:
    """Read damaged inputs in a process of its own, whose memory is measured."""
    argv = ("-m", "tests.campaign.fuzz_readers", str(task.folder / "inputs"), str(task.goal), str(task.seed), str(task.seconds()))
    done = run_python("-W", "ignore", *argv, cwd=ROOT, timeout=task.seconds() + 600)
    if done.code:
        outcome.add("unknown")
        outcome.fail(f"exit code {done.code}: {done.stderr[-1000:]}")
        return
    result = json.loads(done.stdout)
    for name, counts in result["readers"].items():
        outcome.add(name, sum(counts.values()))
    outcome.count = result["count"]
    read = sum(counts.get("read", 0) for counts in result["readers"].values())
    outcome.notes.append(f"{read:,} inputs were read, all others refused; memory grew by {result['growth'] >> 20} MiB")
    for failure in result["failures"]:
        outcome.fail(failure)
    if result["growth"] > LARGEST_GROWTH:
        outcome.fail(f"memory grew by {result['growth']:,} bytes, at most {LARGEST_GROWTH:,}")


def hostile(task: Task, outcome: Outcome) -> None:
    """Run every command on every hostile argument that it takes."""
    chosen = [*TRIALS]
    task.random("hostile").shuffle(chosen)
    for result in matrix.run_all(chosen[: task.goal], task.jobs, lambda: not task.more(outcome)):
        outcome.add(result.trial.command.title)
        if result.problems:
            outcome.fail(str(result))
    outcome.notes.append(f"{len(COMMANDS)} commands, {len(CASES)} cases, {len(TRIALS):,} pairs of a command and a case")


TRIALS = (*matrix.trials(CASES),)
SAME_BITS = "parameters, optimizer, metrics, ledger and scores have the same bits as those of a run that nothing happened to"
ROWS = [
    Row(
        "killed runs",
        (1, 24),
        200,
        f"at most the steps since the newest checkpoint are lost; {SAME_BITS}",
        30,
        killed_runs.killed_runs,
    ),
    Row("killed saves", (2, 3, 4), 120, "the newest step is intact, also with one that is kept", 8, killed_runs.killed_saves),
    Row("other devices", (15,), 20, "the same samples; losses differ by at most 1e-5", 8, killed_runs.other_devices),
    Row("Ctrl-C twice", (7,), 20, "it ends at once; the newest checkpoint is intact", 4, killed_runs.interrupted_twice),
    Row("SIGTERM at 9.6 M parameters", (5,), 50, "saved, and ended within 5 s", 6, process_groups.terminated),
    Row("SIGTERM to one of two", (6,), 20, "both save the same step and end", 8, process_groups.one_of_two_terminated),
    Row("dead worker", (8, 9), 50, "group gone within 2 s, training again within 15 s", 12, process_groups.dead_workers),
    Row(
        "fewer processes",
        (49,),
        20,
        "continues in fewer processes; the same samples; losses differ by at most 1e-5",
        8,
        process_groups.fewer_processes,
    ),
    Row("stopped worker", (10,), 20, "noticed within 3 s after its limit", 6, process_groups.stopped_workers),
    Row("stuck worker", (11,), 20, "noticed within 3 s after its limit", 6, process_groups.stuck_workers),
    Row("memory at a save", (17,), 10, f"one line, or it continues; {SAME_BITS}", 5, full_disks.memory),
    Row("writes that fail", (30,), 60, f"one line, or it continues; {SAME_BITS}", 14, full_disks.failing_writes),
    Row("full file system", (30,), 20, f"one line, or it continues; {SAME_BITS}", 6, full_disks.full_file_system),
    Row("damaged checkpoints", (29,), 500, "noticed, and the step before is used; or harmless", 4, damaged_files.checkpoints),
    Row("damaged token stores", (22,), 500, "noticed and repaired; or harmless", 2, damaged_files.token_stores),
    Row("killed uploads", (50, 51), 120, "the newest uploaded step is intact, on any machine", 8, stored_runs.killed_uploads),
    Row("moved runs", (52,), 60, f"at most the steps since the newest upload are lost; {SAME_BITS}", 14, stored_runs.moved_runs),
    Row("failing stores", (53, 54), 200, "no effect, or one upload is late", 6, stored_runs.failing_stores),
    Row("damaged objects", (55,), 200, "noticed, and the step before is used; or harmless", 4, stored_runs.damaged_objects),
    Row("ledger", (1, 15), 1_000_000, "no sample is lost and none repeated", 6, sample_ledger.ledger),
    Row("two starts", (33,), 50, "one is refused, the other one ends", 6, full_disks.two_starts),
    Row("killed exports", (40,), 50, "the folder is absent or complete", 6, full_disks.killed_exports),
    Row("damaged inputs", (19, 37, 39), 100_000, "read, or refused in one line; time and memory are bounded", 40, fuzz),
    Row(
        "hostile folders",
        (56,),
        len(TRIALS),
        "no code ran, nothing else was written or read into output, no network; refused in one line, or harmless",
        40,
        hostile,
    ),
]
