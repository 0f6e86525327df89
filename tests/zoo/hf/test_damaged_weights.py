"""Every tensor of every published model, damaged in every way: all of it is refused, by the tensor's name."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support import published
from zoo import models, pretrained, tensors
from zoo.errors import BadInput

COUNTS = {
    ("gpt", "causal"): (28, 8),
    ("bert", "body"): (39, 7),
    ("bert", "pretraining"): (46, 8),
    ("bert", "masked"): (42, 7),
    ("bert", "next"): (41, 8),
    ("bert", "sequence"): (41, 8),
    ("bert", "choice"): (41, 8),
    ("bert", "tokens"): (39, 8),
    ("bert", "span"): (39, 8),
    ("distilbert", "body"): (36, 6),
    ("distilbert", "masked"): (41, 6),
    ("distilbert", "sequence"): (40, 7),
    ("distilbert", "choice"): (40, 7),
    ("distilbert", "tokens"): (38, 7),
    ("distilbert", "span"): (38, 7),
    ("roberta", "body"): (39, 7),
    ("roberta", "masked"): (42, 7),
    ("roberta", "sequence"): (41, 8),
    ("roberta", "choice"): (41, 8),
    ("roberta", "tokens"): (39, 8),
    ("roberta", "span"): (39, 8),
    ("t5", "text_to_text"): (66, 51),
    ("transformer", "text_to_text"): (86, 10),
    ("xlnet", "body"): (36, 11),
    ("xlnet", "permutation"): (37, 11),
    ("xlnet", "sequence"): (40, 12),
    ("xlnet", "choice"): (40, 12),
    ("xlnet", "tokens"): (38, 12),
    ("xlnet", "span"): (38, 12),
}
"""Tensors of the tiny model with each head, and those of them that are matrices and not square."""

ALONE = {"lm_loss.bias"}
"""Heads of a single tensor: a file without it is a body's, and the note on it says so (tests/zoo/models/test_xlnet.py)."""

NANO = {"gpt": (52, 14), "bert": (69, 11), "distilbert": (36, 6), "roberta": (69, 11), "t5": (97, 27), "transformer": (128, 14)}
NANO |= {"xlnet": (70, 21)}
"""The same of the body of each nano without a pooler (of what has no heads, all)."""

BODY = {"gpt": (28, 8), "bert": (37, 7), "distilbert": (36, 6), "roberta": (37, 7), "t5": (66, 51), "transformer": (86, 10)}
BODY |= {"xlnet": (36, 11)}
"""Of the tiny body without a pooler: what a count has beyond it, its head has, tiny or nano."""

SLIPS = ("deleted", "renamed", "nan", "added")
KINDS = (*SLIPS, "resized", "half", "double", "infinite", "reshaped")
"""Ways to damage any tensor; a matrix that is not square is also transposed."""


def alone(family: str, task: str) -> int:
    """Tensors of a model that may be absent with their whole head."""
    return sum(row.names in ALONE for row in models.family(family).HF[task].rows)


def tiny_mutants(family: str, task: str) -> int:
    """How many mutants the tiny model with this head has."""
    count, matrices = COUNTS[family, task]
    return len(SLIPS) * count + matrices - alone(family, task)


def nano_mutants(family: str, task: str) -> int:
    """How many mutants the nano with this head has."""
    (count, matrices), (tiny, of_tiny), without = NANO[family], COUNTS[family, task], BODY[family]
    return len(KINDS) * (count + tiny - without[0]) + matrices + of_tiny - without[1] - alone(family, task)


def mutants(name: str, tensor: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """What replaces a tensor, by what was done to it."""
    broken = tensor.copy()
    broken.flat[broken.size // 2] = np.nan
    infinite = tensor.copy()
    infinite.flat[-1] = -np.inf
    wider = np.concatenate([tensor, tensor[:1]])
    made = {"deleted": {}, "renamed": {f"{name}s": tensor}, "resized": {name: wider}, "half": {name: tensor.astype(np.float16)}}
    made |= {"nan": {name: broken}, "infinite": {name: infinite}, "double": {name: tensor.astype(np.float64)}}
    made["added"] = {name: tensor, f"{name}.extra": tensor}
    made["reshaped"] = {name: tensor[None]}
    if tensor.ndim == 2 and tensor.shape[0] != tensor.shape[1]:
        made["transposed"] = {name: np.ascontiguousarray(tensor.T)}
    return made


def refused(
    folder: Path,
    stored: Mapping[str, np.ndarray],
    put: Callable[[str, dict[str, np.ndarray]], None],
    kinds: Sequence[str] = KINDS,
) -> int:
    """How many mutants there are, `put` making the folder one of them; all of them are refused in a line with the name."""
    tried = 0
    for name, tensor in stored.items():
        for kind, replacement in mutants(name, tensor).items():
            if kind not in (*kinds, "transposed") or (kind == "deleted" and name in ALONE):
                continue
            put(name, replacement)
            with pytest.raises(BadInput) as refusal:
                pretrained.open_folder(folder)
            assert name in str(refusal.value), kind
            assert "\n" not in str(refusal.value)
            tried += 1
    return tried


@pytest.mark.planted(len(KINDS) * COUNTS["gpt", "causal"][0] + COUNTS["gpt", "causal"][1])
def test_every_mutant_of_a_folder(tmp_path: Path) -> None:
    """Of files, as they lie on a disk."""
    folder = tmp_path / "sharded"
    stored = published.write(folder, published.GPT2, sharded=True)
    files = {name: published.file(number) for number, name in enumerate(stored)}

    def put(name: str, replacement: dict[str, np.ndarray]) -> None:
        # The tensor's own file, and the index, are all that changes.
        save_file(replacement, folder / "mutant.safetensors")
        kept = {other: file for other, file in files.items() if other != name}
        published.write_index(folder, kept | dict.fromkeys(replacement, "mutant.safetensors"))

    pretrained.open_folder(folder)
    count, matrices = COUNTS["gpt", "causal"]
    assert refused(folder, stored, put) == len(KINDS) * count + matrices
    published.write_index(folder, files)
    pretrained.open_folder(folder)


@pytest.mark.parametrize(
    ("family", "task"), [pytest.param(*head, marks=pytest.mark.planted(tiny_mutants(*head))) for head in COUNTS]
)
def test_every_mutant_of_every_head(family: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_memory(tmp_path, monkeypatch, published.config(family, task), SLIPS) == tiny_mutants(family, task)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "task"), [pytest.param(*head, marks=pytest.mark.planted(nano_mutants(*head))) for head in COUNTS]
)
def test_every_mutant_of_every_nano(family: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nano = published.config(family, task, published.nano(family))
    assert in_memory(tmp_path, monkeypatch, nano, KINDS) == nano_mutants(family, task)


def test_all_that_transformers_has_is_counted() -> None:
    assert set(COUNTS) == set(published.HEADS)
    assert sum(tiny_mutants(*head) for head in COUNTS) == 5_130


def in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], kinds: Sequence[str]) -> int:
    """The number of mutants of the model of a config.json, all refused."""
    (folder / "config.json").write_text(json.dumps(config))
    stored = published.weights(published.shapes_of(folder))
    whole = {name: published.held(tensor) for name, tensor in stored.items()}
    now = dict(whole)

    def put(name: str, replacement: dict[str, np.ndarray]) -> None:
        now.clear()
        now.update({other: held for other, held in whole.items() if other != name})
        now.update({other: published.held(tensor) for other, tensor in replacement.items()})

    monkeypatch.setattr(tensors, "read", lambda folder: now)
    pretrained.open_folder(folder)
    return refused(folder, stored, put, kinds)
