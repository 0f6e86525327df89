"""Links, pipes, devices and sockets in the place of files, and names that lead out of a folder."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

from tests.hostile.case_types import (
    READ_RUN,
    READ_TEMPLATE,
    READ_TOKENIZER,
    READ_WEIGHTS,
    Case,
    Place,
    edit,
    link,
    replace,
    step_of,
)

ALL, COMPARE = ("*",), ("compare",)
FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "run": {
        **{"config.json": ALL, "scores.json": COMPARE, "metrics.jsonl": COMPARE, "starts.jsonl": COMPARE},
        **{"evaluations.json": ("compare", "eval --task"), "tokenizer/tokenizer.json": READ_RUN, "data.json": ()},
        **{"reward_scale.json": ("generate", "zoo.load"), "outcomes.npz": (), "samples.json": (), "run.lock": ()},
        "ledger.jsonl": ("audit",),
    },
    "model": {
        **{"config.json": ALL, "model.safetensors": READ_WEIGHTS, "model.safetensors.index.json": READ_WEIGHTS},
        **{"tokenizer.json": READ_TOKENIZER, "tokenizer_config.json": READ_TOKENIZER},
        **{"generation_config.json": (), "added_tokens.json": ()},
    },
    "chat": {"chat_template.jinja": READ_TEMPLATE},
    "adapter": {"adapter_config.json": ALL, "adapter_model.safetensors": ALL},
    "tokenizer": {"tokenizer.json": ALL, "tokenizer_config.json": ALL},
    "text": {"book.txt": ALL, "lines.jsonl": ALL},
    "examples": {"rows.jsonl": ALL},
    "experiment": {"registration.json": ("experiment*",), "runs/dynamic-pretrain-0/config.json": ALL},
    "bench": {"cells.jsonl": ALL},
}
"""Kind of argument -> its files -> patterns of the commands that read the file."""


def special(kind: str) -> Callable[[Path, Place], None]:
    """Return a function that writes a file of a kind."""

    def write(file: Path, place: Place) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        content = file.read_bytes()[:64] if file.is_file() else b"{"
        file.unlink(missing_ok=True)
        match kind:
            case "pipe":
                os.mkfifo(file)
            case "socket":
                os.mknod(file, stat.S_IFSOCK | 0o600)
            case "link to /dev/zero":
                file.symlink_to("/dev/zero")
            case "link to a secret":
                file.symlink_to(place.home / ".ssh/id_rsa")
            case "link to itself":
                file.symlink_to(file.name)
            case "folder":
                file.mkdir()
            case "100 GB":
                file.write_bytes(content)
                os.truncate(file, 100 << 30)

    return write


SPECIAL = ("pipe", "link to /dev/zero", "link to a secret", "100 GB")
"""Kinds of file that every file of `FILES` is replaced by."""
FURTHER = ("socket", "link to itself", "folder")
"""Kinds of file that config.json and the text are replaced by."""


def replaced(name: str, kind: str) -> Callable[[Place], None]:
    """Return a function that writes a special file in the place of a file."""
    write = special(kind)
    return lambda place: write(place.folder / name, place)


def linked(name: str, target: str, config: bool = False) -> Callable[[Place], None]:
    """Return a function that links a file or folder to one of another project."""

    def write(place: Place) -> None:
        link(place.folder / name, place.outside / target)
        if config:
            # Without results, and of another configuration: training removes the files of the run that was here.
            (place.folder / "scores.json").unlink(missing_ok=True)
            link(place.folder / "checkpoints", place.outside / "checkpoints")
            (place.folder / "checkpoints").unlink()
            edit(place.folder / "config.json", seed=5)

    return write


def _partial_files(place: Place) -> None:
    """Link the temporary names of files that the next processes write, which contain the number of the process."""
    newest = int(Path("/proc/loadavg").read_text().split()[-1])
    for name in ("evaluations.json", "report.html", "config.json", "scores.json", "starts.jsonl"):
        for pid in range(newest, newest + 600):
            (place.folder / f".{name}.{pid}.partial").symlink_to(place.outside / "notes.txt")


def _wandb(place: Place) -> None:
    """Let the id of a tracker lead out of its folder, whose earlier files are deleted."""
    replace(place.folder / "wandb" / "id", "x/../../../../../outside")
    (place.folder / "wandb" / "offline-run-1-x").mkdir()


def _index(target: str) -> Callable[[Place], None]:
    """Return a function that lets an index name a file elsewhere."""

    def write(place: Place) -> None:
        (place.folder / "model.safetensors").rename(place.outside / "secret.safetensors")
        named = target.replace("OUTSIDE", str(place.outside))
        replace(place.folder / "model.safetensors.index.json", json.dumps({"weight_map": {"wte.weight": named}}))

    return write


def _tokenizer_file(place: Place) -> None:
    edit(place.folder / "tokenizer_config.json", tokenizer_file=str(place.home / ".ssh/id_rsa"), vocab_file="../../home/.netrc")


def _link_in_checkpoint(place: Place) -> None:
    file = step_of(place.folder) / "_METADATA"
    link(file, place.outside / "notes.txt")


CASES = [
    *(
        Case(f"{name}: {kind}", "reads" if "secret" in kind else "limits", argument, replaced(name, kind), readers)
        for argument, files in FILES.items()
        for name, readers in files.items()
        for kind in (*SPECIAL, *(FURTHER if name in ("config.json", "book.txt") else ()))
    ),
    Case("rollouts of another project", "writes", "run", linked("rollouts", "rollouts", config=True), ()),
    Case("metrics of another project", "writes", "run", linked("metrics.jsonl", "metrics.jsonl", config=True), ()),
    Case("stacks of another project", "writes", "run", linked("stacks.txt", "stacks.txt", config=True), ()),
    Case("report that is a link", "writes", "run", linked("report.html", "notes.txt"), ()),
    Case("results that are a link", "writes", "run", linked("evaluations.json", "evaluations.json"), ()),
    Case("lock that is a link", "writes", "run", linked("run.lock", "notes.txt", config=True), ()),
    Case("checkpoints of another project", "writes", "run", linked("checkpoints", ""), ()),
    Case("tokenizer of another project", "writes", "run", linked("tokenizer", "", config=True), ()),
    Case("links in a checkpoint", "reads", "run", _link_in_checkpoint, ("eval", "generate", "zoo.load")),
    Case("temporary files that are links", "writes", "run", _partial_files, ()),
    Case("id of a tracker with a path", "writes", "run", _wandb, ()),
    Case("logs of an experiment that are a link", "writes", "experiment", linked("logs", ""), ()),
    Case("registration that is a link", "writes", "experiment", linked("registration.json", "notes.txt"), ("experiment*",)),
    Case("page of an experiment that is a link", "writes", "experiment", linked("report.html", "notes.txt"), ()),
    Case("lock of an experiment that is a link", "writes", "experiment", linked("experiment.lock", "notes.txt"), ()),
    Case("index with ..", "reads", "model", _index("../../outside/secret.safetensors"), READ_WEIGHTS),
    Case("index with an absolute path", "reads", "model", _index("OUTSIDE/secret.safetensors"), READ_WEIGHTS),
    Case("index that names itself", "reads", "model", _index("model.safetensors.index.json"), READ_WEIGHTS),
    Case("weights of another project", "reads", "model", linked("model.safetensors", "model.safetensors"), READ_WEIGHTS),
    Case("files that tokenizer_config.json names", "reads", "model", _tokenizer_file, ()),
]
