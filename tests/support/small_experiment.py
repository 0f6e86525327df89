"""An experiment of two tiny runs and a control, and a stand-in for the processes that the engine starts.

`python -m tests.support.small_experiment FOLDER WORKERS` runs it with real processes, as `zoo experiment` does.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from eval.experiments import collect_results, experiment_data, grid_runner, preregistration
from eval.experiments.declaration import TEXT, Claim, Experiment, Row, Stage, Tier
from eval.experiments.experiment_data import Files
from eval.experiments.grid import Grid, build_grid
from eval.experiments.workers import local_workers
from zoo.cli.commands.train import parse_options

FILES = Files(train="files/train", valid="files/valid", tasks="files/tasks", corpus="embedded 0")
TINY = {
    **{"model.layers": 1, "model.width": 32, "model.heads": 2, "model.ffn": 64, "model.vocab": 300, "tokenizer.vocab": 300},
    **{"data.length": 32, "data.batch": 8, "steps": 4, "log.samples": 0, "log.validate_every": 2, "optim.warmup": 1},
}

STAND_IN = """
import json, os, sys, time
argv = sys.argv[3:]
with open("order.txt", "a") as log: log.write(" ".join(argv[:2]) + "\\n")
if argv[0] == "eval":
    path = argv[1] + "/evaluations.json"
    json.dump({argv[3]: {"metrics": {"perplexity": 2.0}}}, open(path, "w"))
else:
    name = argv[argv.index("--name") + 1]
    if os.path.exists(f"fail-{name}"): sys.exit("zoo: " + open(f"fail-{name}").read())
    os.makedirs(f"runs/{name}/checkpoints/00000004", exist_ok=True)
    for file, content in (("checkpoints/00000004/COMMIT.json", "{}"), ("report.html", ""), ("scores.json", '{"loss": 1.5}')):
        open(f"runs/{name}/{file}", "w").write(content)
"""
"""A program that writes the files of a finished node, or fails with the text in the file fail-NAME."""


def experiment(**changes: Any) -> Experiment:
    claim = Claim(
        id="b_below_a",
        text="b is better than a.",
        kind="less",
        metric="pretrain/loss",
        row="b",
        reference=("a",),
        margin=0.01,
        source="Nobody 2026",
    )
    declared = Experiment(
        name="small",
        question="Is b better?",
        source="Nobody 2026",
        scale="{tokens} tokens",
        rows=(
            Row(name="a", label="a"),
            Row(name="b", label="b", overrides={"optim.lr": 2e-3}),
            Row(name="none", label="control"),
        ),
        control="none",
        stages=(
            Stage(name="pretrain", recipe="gpt-nano", overrides={**TEXT, **TINY}),
            Stage(name="score", task="perplexity", after="pretrain", overrides={"files": "{valid}"}),
        ),
        budget="input_tokens",
        claims=(claim,),
        tiers={"smoke": Tier(corpus="embedded", seeds=1)},
        forecast={"b_below_a": "Open."},
    )
    return dataclasses.replace(declared, **changes)


def small_grid(**changes: Any) -> Grid:
    return build_grid(experiment(**changes), "smoke", FILES, parse_options)


def with_row(name: str, **overrides: Any) -> dict[str, Any]:
    """Return the change of an experiment that gives a row other options."""
    rows = experiment().rows
    return {"rows": tuple(dataclasses.replace(row, overrides=overrides) if row.name == name else row for row in rows)}


def with_claim(**changes: Any) -> dict[str, Any]:
    return {"claims": (dataclasses.replace(experiment().claims[0], **changes),)}


def order(folder: Path) -> list[str]:
    return (folder / "order.txt").read_text().splitlines() if (folder / "order.txt").exists() else []


def run_small_experiment(folder: Path, workers: int) -> int:
    """Run the experiment to its page, and return the exit code."""
    grid = small_grid()
    with grid_runner.lock_folder(folder, print):
        registered = preregistration.register_grid(grid, folder)
        experiment_data.write_files(grid.files, folder)
    try:
        failures = grid_runner.run_missing(grid, folder, local_workers.LocalWorkers(folder, workers))
    except grid_runner.Stopped as stopped:
        return 128 + stopped.number
    with grid_runner.lock_folder(folder, print):
        collect_results.write_results(grid, registered, folder)
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(run_small_experiment(Path(sys.argv[1]), int(sys.argv[2])))
