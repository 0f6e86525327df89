"""Tiny runs of every family that can be audited, and copies of them in which something was forged."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from eval.audit.audit_run import AuditOptions, audit_run
from tests.support.commands import in_folder, words
from tests.support.environment import SCRATCH
from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.manifest import Manifest
from train.config.run_config import Mesh
from train.engine import device_mesh
from train.objectives import objective
from train.run import metrics_file
from train.run.run_dir import RunDir, read_config
from train.step.assembly import assemble
from zoo.cli import main
from zoo.errors import BadInput
from zoo.fault_points import faults

STEPS, EVERY = 8, 3
RUN = f"--steps {STEPS} --checkpoint.every {EVERY} --checkpoint.keep 9 --log.ledger --log.every 2 --log.validate-every 4"
RUN += " --log.validate-rows 8 --log.samples 0 --data.length 32 --data.batch 8 --data.valid-fraction 0.3 --optim.warmup 1"
SIZE = "--model.vocab 384 --model.layers 2 --model.width 32 --model.heads 4 --model.ffn 64 --tokenizer.vocab 300"
CONTEXT = f"{SIZE} --model.context 32 --data.paths text.jsonl"
PAIRS = "--pairs.source train.en --pairs.target train.de"
FAMILIES = {
    "gpt": f"gpt-nano {CONTEXT} --model.dropout 0.1",
    "bert": f"bert-nano {CONTEXT}",
    "roberta": f"roberta-nano {CONTEXT}",
    "modernbert": f"modernbert-nano {CONTEXT}",
    "distilbert": f"distilbert-nano {CONTEXT} --distillation.teacher runs/bert --model.layers 1",
    "llama": f"llama-nano {CONTEXT}",
    "ettin-decoder": f"ettin-decoder-nano {CONTEXT}",
    "t5": f"t5-nano {SIZE} --model.decoder-layers 2 --model.head 8 --data.paths text.jsonl",
    "transformer": f"transformer-nano {SIZE} --data.target-length 40 {PAIRS}",
    "xlnet": f"xlnet-nano {SIZE} --data.paths one.txt --model.memory 16 --model.reuse 12",
    "translation": f"finetune-text-to-text --init runs/t5 {PAIRS}",
    "classes": "finetune-classification --init runs/xlnet --data.paths labels.tsv",
    "adapters": f"gpt-nano {CONTEXT} --model.dropout 0.1 --init runs/gpt --lora.rank 2",
}
"""Name of a run -> the recipe and the options that are particular to it."""
PARENTS = {"distilbert": "bert", "translation": "t5", "classes": "xlnet", "adapters": "gpt"}


@functools.cache
def home() -> Path:
    """Return a folder with a text of many documents, the same as one, parallel files, labels, and minimal pairs."""
    folder = SCRATCH / "audits"
    folder.mkdir()
    sentences = [f"The {n}th whale of {n % 7} is seen{'!' if n % 2 else '.'} {n * n} more swim." for n in range(200)]
    text = [" ".join(five) for five in zip(*[iter(sentences)] * 5, strict=True)]
    labels = (f"{sentence}\t{label}\n" for sentence, label in zip(sentences, itertools.cycle(("bad", "good")), strict=False))
    pairs = ({"sentence_good": f"The {n}th whale is seen.", "sentence_bad": f"The {n}th whale seen is."} for n in range(9))
    files = {
        "text.jsonl": "".join(json.dumps({"text": document}) + "\n" for document in text),
        "one.txt": " ".join(text),
        "train.en": "".join(f"{sentence}\n" for sentence in sentences),
        "train.de": "".join(f"der wal {n} von {n % 7}\n" for n in range(200)),
        "labels.tsv": "text\tlabel\n" + "".join(labels),
        "pairs.jsonl": "".join(json.dumps(pair) + "\n" for pair in pairs),
    }
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder


@functools.cache
def trained(family: str, *flags: str, fault: str = "") -> Path:
    """Return the folder of a finished run of a family, after a `fault` that ended its first start."""
    if family in PARENTS:
        trained(PARENTS[family])
    recipe, _, own = FAMILIES[family].partition(" ")
    name = family if not flags and not fault else f"{family}-{len(list(home().glob('runs/*')))}"
    argv = ["train", *words(f"{recipe} {RUN} {own}"), *flags, "--name", name]
    with in_folder(home()):
        if fault:
            with faults(fault), contextlib.suppress(RuntimeError):
                main.main(argv)
        assert main.main(argv) == 0
    return home() / "runs" / name


def extended(family: str, steps: int) -> Path:
    """Return the folder of a run of a family that was finished after `steps` steps, and then extended to `STEPS`."""
    recipe, _, own = FAMILIES[family].partition(" ")
    argv = ["train", *words(f"{recipe} {RUN} {own}"), "--name", f"{family}-extended"]
    with in_folder(home()):
        for flags in (("--steps", str(steps)), ("--extend",)):
            assert main.main([*argv, *flags]) == 0
    return home() / "runs" / f"{family}-extended"


def evaluated(family: str) -> Path:
    """Return a copy of a run of a family with the score of minimal pairs in its evaluations.json."""
    run = trained(family).with_name(f"{family}-evaluated")
    if not run.exists():
        shutil.copytree(trained(family), run)
        with in_folder(home()):
            assert main.main(["eval", f"runs/{run.name}", "--task", "blimp", "--files", "pairs.jsonl"]) == 0
    return run


@contextlib.contextmanager
def copied(run: Path) -> Iterator[Path]:
    """Make a copy of a run and of the data the current folder's, and yield the path of the run in it."""
    place = SCRATCH / f"copy-{len(list(SCRATCH.glob('copy-*')))}"
    (place / "runs").mkdir(parents=True)
    for file in home().iterdir():
        if file.is_file():
            shutil.copyfile(file, place / file.name)
    for parent in home().glob("runs/*"):
        if parent.name in PARENTS.values() and parent != run:
            (place / "runs" / parent.name).symlink_to(parent)
    shutil.copytree(run, place / "runs" / run.name)
    with in_folder(place):
        yield Path("runs", run.name)
    shutil.rmtree(place / "runs" / run.name)


def audit(run: Path, intervals: int = 0, **options: Any) -> dict[str, Any]:
    """Return the certificate of an audit in this process; by default of all steps."""
    values: dict[str, Any] = {"share": 0.03, "seed": None, "other_versions": False, **options}
    return audit_run(str(run), AuditOptions(steps=intervals, **values))


def findings(run: Path, intervals: int = 0) -> list[str]:
    """Return what an audit finds wrong with a run: its refusal, or the checks that failed; [] if everything passed."""
    try:
        certificate = audit(run, intervals)
    except BadInput as error:
        return [str(error)]
    wrong = [f"{check['check']}: {check['detail']}" for check in certificate["checks"] if check["result"] != "passed"]
    assert bool(wrong) == (certificate["verdict"] != "passed")
    return wrong


def reseal(run: Path, change: Callable[[dict[str, Any]], None] = lambda meta: None) -> None:
    """Compute all digests of the checkpoints again, as a careful forger does, after a change of their metadata."""
    folder = RunDir(run)
    for commit in [*folder.checkpoints.glob("*/COMMIT.json"), *folder.best.glob("*/COMMIT.json")]:
        content = json.loads(commit.read_text())
        step, meta = int(commit.parent.name), content["meta"]
        change(meta)
        for name in meta.get("records", {}):
            lines = (run / name).read_text().splitlines(keepends=True)
            counted = [line for line in lines if json.loads(line)["step"] <= step]
            meta["records"][name] = {"rows": len(counted), "sha256": hashlib.sha256("".join(counted).encode()).hexdigest()}
        commit.unlink()
        Manifest(step=step, meta=meta, leaves=content["leaves"]).write(commit.parent)


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=2) + "\n")


def edit_rows(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    rows = metrics_file.read_rows(path)
    change(rows)
    path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))


def edit_config(run: Path, key: str, value: Any, *, sealed: bool) -> None:
    """Change a value of the configuration, by dotted key; a careful forger changes it in the checkpoints too."""
    *groups, name = key.split(".")
    edit_json(run / "config.json", lambda config: functools.reduce(dict.__getitem__, groups, config).update({name: value}))
    if sealed:
        reseal(run, lambda meta: meta["config"].update({key: value}))


def edit_arrays(run: Path, step: int, part: str, rng: random.Random, place: str = "checkpoints", by: float = 1e-3) -> None:
    """Change a number of an array of a checkpoint, in `checkpoints` or `best`, and compute the digests again."""
    config, mesh = read_config(run), device_mesh.make_mesh(Mesh())
    abstract = assemble(config, objective(config.objective).bind_abstract(config, mesh), mesh).state
    if place == "best":
        abstract = dataclasses.replace(abstract, opt_state={}, carry={})
    restored = Checkpoints(run / place, 9, notify=print).restore(abstract, step=step)
    assert restored is not None
    state, meta = restored
    leaves, tree = jax.tree.flatten(getattr(state, part))
    number = rng.choice([number for number, leaf in enumerate(leaves) if leaf.ndim > 1 and leaf.dtype == "float32"])
    leaves[number] = leaves[number].at[(0,) * leaves[number].ndim].add(by)
    state = dataclasses.replace(state, **{part: jax.tree.unflatten(tree, leaves)})
    with Checkpoints(run / "edited", 1, notify=print) as checkpoints:
        checkpoints.save(state, meta)
        assert checkpoints.wait()
    shutil.rmtree(run / place / f"{step:08d}")
    (run / "edited" / f"{step:08d}").rename(run / place / f"{step:08d}")
    shutil.rmtree(run / "edited")
