"""Forgeries of a run that an audit must find, each a function of the folder of a copy and a generator."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.audited_runs import EVERY, STEPS, edit_arrays, edit_config, edit_json, edit_rows, reseal
from train.run.metrics_file import read_rows

Forgery = Callable[[Path, random.Random], None]


def better_loss(run: Path, rng: random.Random) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        row = rng.choice([row for row in rows if row["kind"] == "train"])
        row["loss"] *= 0.9

    edit_rows(run / "metrics.jsonl", change)


def last_bit_of_a_loss(run: Path, rng: random.Random) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        row = rng.choice([row for row in rows if "loss" in row])
        row["loss"] *= 1 + 2**-23

    edit_rows(run / "metrics.jsonl", change)
    reseal(run)


def better_validation(run: Path, rng: random.Random) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        row = rng.choice([row for row in rows if row["kind"] == "valid"])
        name = rng.choice([name for name, value in row.items() if isinstance(value, float)])
        row[name] = row[name] * 0.9 + 0.01

    edit_rows(run / "metrics.jsonl", change)
    reseal(run)


def row_removed(run: Path, rng: random.Random) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        del rows[rng.randrange(len(rows))]

    edit_rows(run / "metrics.jsonl", change)
    reseal(run)


def other_samples(run: Path, rng: random.Random) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        row = rng.choice(rows)
        row["rows"] = [*row["rows"][1:], row["rows"][0] + 1]

    edit_rows(run / "ledger.jsonl", change)
    reseal(run)


def data_file(run: Path) -> Path:
    """Return the first training file of a run."""
    config = json.loads((run / "config.json").read_text())
    return Path(config["data"]["paths"][0] if config["data"]["paths"] else config["pairs"]["target"][0])


def edited_data(run: Path, rng: random.Random) -> None:
    """Change one digit of the text; the first half is not held out."""
    file = data_file(run)
    text = file.read_text()
    place = rng.choice([place for place, letter in enumerate(text[: len(text) // 2]) if letter.isdigit()])
    file.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])


def swapped_data(run: Path, rng: random.Random) -> None:
    file = data_file(run)
    first, *lines = file.read_text().splitlines(keepends=True) if file.suffix != ".txt" else ["", file.read_text()[::-1]]
    file.write_text(first + "".join(reversed(lines)))


def other_seed(run: Path, rng: random.Random) -> None:
    edit_config(run, "seed", rng.randrange(1, 1000), sealed=False)


def other_seed_sealed(run: Path, rng: random.Random) -> None:
    edit_config(run, "seed", rng.randrange(1, 1000), sealed=True)


def other_rate(run: Path, rng: random.Random) -> None:
    edit_config(run, "optim.lr", 0.00123, sealed=False)


def other_rate_sealed(run: Path, rng: random.Random) -> None:
    edit_config(run, "optim.lr", 0.00123, sealed=True)


def other_decay_sealed(run: Path, rng: random.Random) -> None:
    edit_config(run, "optim.weight_decay", 0.77, sealed=True)


def other_batch(run: Path, rng: random.Random) -> None:
    edit_config(run, "data.batch", 16, sealed=False)


def other_batch_sealed(run: Path, rng: random.Random) -> None:
    edit_config(run, "data.batch", 16, sealed=True)


def other_dropout_sealed(run: Path, rng: random.Random) -> None:
    edit_config(run, "model.dropout", 0.25, sealed=True)


def renumbered_steps(run: Path, rng: random.Random) -> None:
    """Claim more steps than were taken: everything from a step on gets a higher number, in every file."""
    skipped = rng.randrange(1, EVERY)

    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["step"] += skipped * (row["step"] > EVERY)

    for name in ("metrics.jsonl", "ledger.jsonl"):
        edit_rows(run / name, change)
    for folder in sorted(run.glob("checkpoints/*"), reverse=True):
        if int(folder.name) > EVERY:
            folder.rename(folder.with_name(f"{int(folder.name) + skipped:08d}"))
    edit_config(run, "steps", STEPS + skipped, sealed=True)
    edit_json(run / "scores.json", lambda scores: scores.update(step=scores["step"] + skipped))


def renumbered_checkpoint(run: Path, rng: random.Random) -> None:
    """Put the arrays of an earlier step into the folder of the last one."""
    last, earlier = run / f"checkpoints/{STEPS:08d}", run / f"checkpoints/{rng.choice([EVERY, 2 * EVERY]):08d}"
    commit = (last / "COMMIT.json").read_text()
    shutil.rmtree(last)
    shutil.copytree(earlier, last)
    (last / "COMMIT.json").write_text(commit)
    reseal(run)


def better_score(run: Path, rng: random.Random) -> None:
    def change(scores: dict[str, Any]) -> None:
        name = rng.choice([name for name, value in scores.items() if isinstance(value, float) and value])
        scores[name] *= 0.99

    edit_json(run / "scores.json", change)


def step_of_score(run: Path, rng: random.Random) -> None:
    edit_json(run / "scores.json", lambda scores: scores.update(step=EVERY if scores["step"] != EVERY else STEPS))


def score_of_another_checkpoint(run: Path, rng: random.Random) -> None:
    """Store what the validation at step 4 measured as the score of the last step."""
    valid = next(row for row in read_rows(run / "metrics.jsonl") if row["kind"] == "valid" and row["step"] == 4)
    edit_json(run / "scores.json", lambda scores: scores.update({name: valid[name] for name in ("loss",) if name in scores}))


def edited_parameters(run: Path, rng: random.Random) -> None:
    edit_arrays(run, rng.choice([EVERY, 2 * EVERY, STEPS]), "params", rng)


def edited_moments(run: Path, rng: random.Random) -> None:
    edit_arrays(run, rng.choice([EVERY, 2 * EVERY, STEPS]), "opt_state", rng)


def flipped_bit(run: Path, rng: random.Random) -> None:
    """Change a bit of an array without computing the digests again."""
    file = max((run / f"checkpoints/{STEPS:08d}").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1
    file.write_bytes(content)


def better_evaluation(run: Path, rng: random.Random) -> None:
    edit_json(run / "evaluations.json", lambda tasks: tasks["blimp"]["metrics"].update(accuracy=0.987))


def step_of_evaluation(run: Path, rng: random.Random) -> None:
    edit_json(run / "evaluations.json", lambda tasks: tasks["blimp"].update(step=EVERY))


FORGERIES: dict[str, Forgery] = {
    function.__name__: function
    for function in (
        *(better_loss, last_bit_of_a_loss, better_validation, row_removed, other_samples, edited_data, swapped_data, other_seed),
        *(other_seed_sealed, other_rate, other_rate_sealed, other_decay_sealed, other_batch, other_batch_sealed),
        *(other_dropout_sealed, renumbered_steps, renumbered_checkpoint, better_score, step_of_score),
        *(score_of_another_checkpoint, edited_parameters, edited_moments, flipped_bit),
    )
}
"""Name -> forgery of any run."""
EVALUATED: dict[str, Forgery] = {function.__name__: function for function in (better_evaluation, step_of_evaluation)}
"""Name -> forgery of a run that was evaluated."""
