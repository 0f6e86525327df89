"""Damaged checkpoints and token stores: each change is noticed, or changes nothing."""

import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.campaign.row_types import Outcome, Task
from tests.support.states import abstract, bits, make
from train.checkpoints.checkpoints import Checkpoints
from train.data.text_files import Document
from train.rows import token_cache
from train.tokenizers.tokenizer import Tokenizer

WIDTH = 2048
"""Width of the arrays of a checkpoint: smaller ones are stored among metadata, which has checksums of its own."""
KINDS = ("flip", "flip", "flip", "cut", "append", "delete", "zero", "swap", "link", "folder")


def damage(folder: Path, chance: random.Random) -> str:
    """Change one file of a folder, half of the time one of those with most bytes, and return what was done."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    by_size = chance.choices(files, [file.stat().st_size for file in files])[0]
    file, kind = chance.choice((by_size, chance.choice(files))), chance.choice(KINDS)
    content, at = change(file.read_bytes(), kind, chance, lambda: chance.choice(files).read_bytes())
    if kind in ("delete", "link", "folder"):
        file.unlink()
    if kind == "link":
        file.symlink_to("/dev/null")
    elif kind == "folder":
        file.mkdir()
    elif kind != "delete":
        file.write_bytes(content)
    return f"{kind} {file.relative_to(folder)} at {at}"


def change(original: bytes, kind: str, chance: random.Random, another: Callable[[], bytes]) -> tuple[bytes, int]:
    """Return a changed content, and the place of the change; kinds that do not change the content return it as it is.

    Args:
        another: returns the content of another file, for "swap".
    """
    content = bytearray(original)
    at = chance.randrange(len(content)) if content else 0
    match kind:
        case "flip" if content:
            content[at] ^= 1 << chance.randrange(8)
        case "cut":
            del content[at:]
        case "append":
            content += chance.randbytes(chance.randint(1, 9))
        case "zero":
            content[at:] = bytes(len(content) - at)
        case "swap":
            content = bytearray(another())
    return bytes(content), at


def checkpoints(task: Task, outcome: Outcome) -> None:
    """Damage the newer of two steps: reading gives its bits, or reports it and gives those of the step before."""
    intact, folder, chance = task.folder / "intact", task.folder / "damaged", task.random()
    states = {step: bits(make(step, width=WIDTH)) for step in (1, 2)}
    with Checkpoints(intact, 9, notify=str) as source:
        for step in states:
            source.save(make(step, width=WIDTH), {})
            assert source.wait()
    template = abstract(make(0, width=WIDTH))
    while task.more(outcome):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(intact, folder)
        changed = damage(folder / "00000002", chance)
        reports: list[str] = []
        with outcome.check(changed):
            result = Checkpoints(folder, 9, notify=reports.append).restore(template)
            assert result is not None
            step = int(result[0].step)
            assert bits(result[0]) == states[step], "wrong bits"
            assert step == 2 or any("IS DAMAGED" in line for line in reports), "no report"
            outcome.parts["noticed" if step == 1 else "harmless"] += 1
        outcome.count += 1


def token_stores(task: Task, outcome: Outcome) -> None:
    """Damage a cache of tokens: the next command repairs it, with a warning, or nothing has changed."""
    chance = task.random()
    documents = [Document("", " ".join(chance.choices(("the", "old", "white", "whale"), k=40))) for _ in range(50)]
    tokenizer = Tokenizer.train([document.text for document in documents], 280)
    intact, folder = task.folder / "intact", task.folder / "damaged"
    expected = token_cache.tokenize_documents(documents, tokenizer, intact)
    ids, offsets = np.array(expected.ids), np.array(expected.offsets)
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())
    token_cache.log.addHandler(handler)
    token_cache.log.propagate = False
    try:
        while task.more(outcome):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(intact, folder)
            warnings.clear()
            changed = damage(folder / expected.fingerprint, chance)
            with outcome.check(changed):
                tokens = token_cache.tokenize_documents(documents, tokenizer, folder)
                assert np.array_equal(tokens.ids, ids) and np.array_equal(tokens.offsets, offsets), "other tokens"
                assert tokens.end_of_text == expected.end_of_text and len(tokens.text_bytes) == len(documents)
                outcome.parts["noticed" if warnings else "harmless"] += 1
            outcome.count += 1
    finally:
        token_cache.log.removeHandler(handler)
        token_cache.log.propagate = True
