"""The intact arguments of commands, one of each kind, that hostile cases are made from. Each is made once and then copied."""

import contextlib
import functools
import io
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from tests.support import commands, encoders, finished_runs, labelled_files
from tests.support.environment import SCRATCH
from train.run.run_dir import read_config
from train.tokenizers import chat_template, tokenizer
from zoo import models
from zoo.cli import main
from zoo.cli.commands.train import parse_options
from zoo.lora import adapter_config, adapters, peft_files

SENTENCES = [f"The {number}th whale is seen, and {number * number} more." for number in range(400)]
DIALOGUE = {"messages": [{"role": "user", "content": "Who is white?"}, {"role": "assistant", "content": "The whale."}]}
HUB = "models--evil--model"
PATHS = {
    **{"run": "runs/done", "policy": "runs/policy", "store": "store/runs/out/done"},
    **{"cache": "../cache", "hub": f"../home/.cache/huggingface/hub/{HUB}"},
}
"""Kind of argument -> its path in the folder where commands run; for a kind that is not here, its own name."""


def path_of(kind: str) -> str:
    """Return the path of an argument in the folder where commands run."""
    return PATHS.get(kind, kind)


def put(kind: str, work: Path) -> Path:
    """Copy the intact argument of a kind into a folder where commands run, and return its path."""
    target = work / path_of(kind)
    shutil.copytree(make_intact(kind), target, dirs_exist_ok=True)
    return target


@functools.cache
def make_intact(kind: str) -> Path:
    """Make the intact argument of a kind, and return its path."""
    folder = SCRATCH / "intact" / path_of(kind).replace("../", "")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        MAKERS[kind](folder)
    return folder


def _run(folder: Path) -> None:
    """Write a run of a language model, and the text that it was trained on beside its folder."""
    commands.finished(folder.parents[1], "--log.ledger")


def _policy(folder: Path) -> None:
    """Write a run that has learned from the rewards of its responses."""
    make_intact("prompts")
    make_intact("run")
    lengths = ["--data.length", "16", "--data.batch", "16", "--rollout.tokens", "4", "--rollout.samples", "2"]
    reward = ["--rollout.reward", "train.rollouts.reward_functions:exact_match", "--log.validate-rows", "8", "--log.samples", "0"]
    argv = ["--init", "runs/done", "--data.paths", "prompts/prompts.jsonl", "--steps", "2", *lengths, *reward]
    with commands.in_folder(folder.parents[1]):
        assert main.main(["train", "grpo", *argv, "--name", "policy"]) == 0


def _model(folder: Path) -> None:
    """Write the run's model as published weights."""
    with commands.in_folder(make_intact("run").parents[1]):
        assert main.main(["export", "runs/done", str(folder)]) == 0


def _chat(folder: Path) -> None:
    """Write published weights with a chat template."""
    shutil.copytree(make_intact("model"), folder)
    (folder / tokenizer.CHAT).write_text(chat_template.TEMPLATE)


def _adapter(folder: Path) -> None:
    """Write an adapter of the published weights, in the format of peft."""
    config = read_config(make_intact("run")).model
    spec = adapter_config.Adapters(rank=2, alpha=4.0, targets=("c_attn",), rslora=False)
    leaves = adapters.flatten_tree(adapters.init_adapters(models.model(config), spec, jax.random.key(0)))
    trained = adapters.unflatten_tree({name: np.full(leaf.shape, 0.01, np.float32) for name, leaf in leaves.items()})
    folder.mkdir()
    peft_files.save_adapter(folder, config, spec, trained, base="model")


def _tokenizer(folder: Path) -> None:
    """Write the run's tokenizer as a folder of its own."""
    shutil.copytree(make_intact("run") / "tokenizer", folder)


def _text(folder: Path) -> None:
    """Write text to train on, in two formats."""
    folder.mkdir()
    (folder / "book.txt").write_text("\n\n".join(SENTENCES))
    (folder / "lines.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES))


def _prompts(folder: Path) -> None:
    """Write prompts with right answers, conversations, and lines of text."""
    folder.mkdir()
    rows = [{"prompt": text[:9], "completion": text[9:14]} for text in SENTENCES[:40]]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "chats.jsonl").write_text(20 * (json.dumps(DIALOGUE) + "\n"))
    (folder / "shots.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    (folder / "lines.txt").write_text("The whale is white.\nThe ship is old.\n")


def _examples(folder: Path) -> None:
    """Write labelled examples."""
    folder.mkdir()
    labelled_files.put(folder / "rows.jsonl", 8 * labelled_files.ROWS)


def _bench(folder: Path) -> None:
    """Write a result of a benchmark."""
    folder.mkdir()
    header = {"schema": 2, "what": "attention", "environment": {"backend": "cpu"}, "asked": {}, "unit": {}}
    cell = {"key": {"implementation": "xla"}, "process": 0, "state": "timed", "reason": "", "seconds": 1.0}
    (folder / "cells.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (header, cell)))


def _experiment(folder: Path) -> None:
    """Write the folder of an experiment whose runs are finished, as far as its page reads them."""
    printed = io.StringIO()
    with commands.in_folder(folder.parent), contextlib.redirect_stdout(printed):
        assert main.main(["experiment", "masks", folder.name, "--tier", "smoke", "--commands"]) == 0
    for line in printed.getvalue().splitlines():
        _, separator, command = line.partition(" && zoo train ")
        if separator:
            recipe, *argv = shlex.split(command)
            with commands.in_folder(folder):
                run = parse_options(recipe, argv)
            # A run of one step has no row of metrics.
            if run.steps > 1:
                finished_runs.make(folder / "runs" / run.name, run, scores={"masked_loss": 5.5, "predictions": 100})


def _task(folder: Path) -> None:
    """Write a task of the harness that is scored on a file beside it."""
    folder.mkdir()
    rows = [{"good": f"The {n}th whale is seen.", "bad": f"The {n}th whale are seen."} for n in range(4)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {
        **{"task": "local", "dataset_path": "json", "dataset_kwargs": "{data_files: {test: task/pairs.jsonl}}"},
        **{"test_split": "test", "output_type": "multiple_choice", "doc_to_text": '""', "doc_to_target": "0"},
        **{"doc_to_choice": '"{{[good, bad]}}"', "target_delimiter": '""'},
        "metric_list": "[{metric: acc, aggregation: mean, higher_is_better: true}]",
    }
    (folder / "local.yaml").write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))


def _store(folder: Path) -> None:
    """Write the objects of the run in an object store."""
    shutil.copytree(make_intact("run"), folder, ignore=shutil.ignore_patterns("run.lock", "evaluations.lock"))


def _hub(folder: Path) -> None:
    """Write published weights as the cache of the hub has them."""
    shutil.copytree(make_intact("model"), folder / "snapshots" / "main")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("main")


MAKERS: dict[str, Callable[[Path], object]] = {
    **{"run": _run, "policy": _policy, "model": _model, "chat": _chat, "adapter": _adapter, "tokenizer": _tokenizer},
    **{"text": _text, "prompts": _prompts, "examples": _examples, "bench": _bench, "experiment": _experiment},
    **{"task": _task, "store": _store, "hub": _hub, "cache": lambda folder: folder.mkdir(mode=0o700)},
    "encoder": lambda folder: encoders.folder(folder, "bert"),
    "classifier": lambda folder: encoders.folder(folder, "bert", "sequence"),
}
