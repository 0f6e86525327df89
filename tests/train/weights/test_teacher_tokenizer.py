"""The tokenizers of a student and its teacher, whose ids must have the same meaning: what differs is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny
from train.config.distillation_options import StoredDistillation
from train.config.run_config import Tokenizer as TokenizerOptions
from train.run.run_dir import RunDir
from train.tokenizers import hf_files
from train.tokenizers.tokenizer import FILE, Tokenizer
from train.weights.tokenizer_choice import existing_tokenizer
from zoo.errors import BadInput

TEXT = ["the whale is seen by the man at the mast, and the whale is seen no more. " * 4]


def stored(folder: Path, content: Any) -> Path:
    """Write a tokenizer as published, and return its folder."""
    folder.mkdir()
    hf_files.write_tokenizer(folder, content if isinstance(content, Tokenizer) else Tokenizer(content), longest=32)
    # Only the configuration of a model makes a folder one of published weights.
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return folder


def choose(tmp_path: Path, teacher: Path, own: Path) -> Tokenizer | None:
    run = tiny.run(distillation=StoredDistillation(teacher=str(teacher)), tokenizer=TokenizerOptions(path=str(own)))
    return existing_tokenizer(run, RunDir(tmp_path / "run"))


@pytest.mark.planted(3)
def test_the_first_token_that_differs_is_named(tmp_path: Path) -> None:
    own = Tokenizer.train(TEXT, 270)
    folder = stored(tmp_path / "own", own)
    same = stored(tmp_path / "same", own)
    chosen = choose(tmp_path, same, folder)
    assert chosen is not None and chosen.fingerprint == own.fingerprint
    larger = Tokenizer.train(TEXT, 272)
    names = larger.entries([270, 271])
    other = Tokenizer.train([TEXT[0].replace("whale", "shark")], 270)
    number = next(i for i in range(270) if other.entries([i]) != own.entries([i]))
    parts = own.content()
    parts["normalizer"] = {"type": "Lowercase"}
    differences = {
        "larger": (larger, f"272 entries, and the student's 270; token 270 is {names[0]!r} there and missing in the student's"),
        "other": (
            other,
            f"270 entries, and the student's 270; token {number} is {other.entries([number])[0]!r} there and "
            f"{own.entries([number])[0]!r} in the student's",
        ),
        "lower": (parts, "it splits or normalizes text in another way, with the same 270 entries"),
    }
    assert (folder / FILE).exists()
    for name, (content, text) in differences.items():
        teacher = stored(tmp_path / name, content)
        with pytest.raises(BadInput) as refused:
            choose(tmp_path, teacher, folder)
        fix = "remove --tokenizer.path and --init to use the teacher's"
        assert str(refused.value) == f"--distillation.teacher {teacher}: it has another tokenizer ({text}); {fix}"
