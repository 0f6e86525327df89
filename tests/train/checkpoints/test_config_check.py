"""A checkpoint is used only by the run that saved it, and one that cannot be read is damaged."""

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny
from tests.support.commands import TINY, call, finished
from tests.support.states import Log, restored, save_all
from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.config_check import check_identity
from train.run.run_identity import run_identity
from zoo.errors import BadInput

OTHER = {
    "seed": 1,
    "steps": 21,
    "precision": "bfloat16",
    "model.layers": 3,
    "model.dropout": 0.2,
    "data.batch": 8,
    "data.length": 16,
    "optim.lr": 2e-3,
    "optim.warmup": 6,
    "tokenizer.vocab": 299,
}
"""A key of a run -> another value of it."""


def replaced(value: Any, key: str, new: Any) -> Any:
    """Return a dataclass with the field of a dotted key replaced."""
    name, _, rest = key.partition(".")
    return dataclasses.replace(value, **{name: replaced(getattr(value, name), rest, new) if rest else new})


@pytest.mark.planted(len(OTHER))
def test_every_changed_key_is_named() -> None:
    run = tiny.run()
    meta = {"config": run_identity(run)}
    check_identity(Path("run"), json.loads(json.dumps(meta)), run)
    for key, value in OTHER.items():
        with pytest.raises(BadInput, match=rf"another configuration: {key}: .* now; put back"):
            check_identity(Path("run"), meta, replaced(run, key, value))


def test_a_field_that_is_newer_than_the_checkpoint_has_its_default() -> None:
    run = tiny.run()
    saved = run_identity(run)
    del saved["optim.warmup"]
    check_identity(Path("run"), {"config": saved}, run)


@pytest.mark.full
@pytest.mark.planted(5)
def test_a_checkpoint_of_another_run_is_refused_by_every_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An edited config.json, and a lost one, for the commands that read checkpoints."""
    monkeypatch.chdir(tmp_path)
    finished(tmp_path)
    train = ("train", "gpt-nano", *TINY, "--name", "done", "--seed")

    def refused(*argv: str) -> None:
        ended = call(capsys, *argv)
        assert ended.code == 2
        assert "another configuration: seed: 0 in the checkpoint, 1 now" in ended.stderr
        assert ended.stderr.count("\n") == 1

    config = Path("runs/done/config.json")
    text = config.read_text()
    config.write_text(text.replace('"seed": 0', '"seed": 1'))
    refused("eval", "runs/done")
    refused("generate", "runs/done", "--prompt", "The")
    refused("compare", "runs/done")
    Path("runs/done/scores.json").unlink()
    refused(*train, "1")
    config.unlink()
    refused(*train, "1")
    assert call(capsys, *train, "0").code == 0  # its own configuration: config.json and scores.json are written again
    assert config.read_text() == text


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
@pytest.mark.planted(2)
def test_a_file_that_cannot_be_read_is_damage(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step before is used, and the notice says why; for the manifest and for an array."""
    real = os.open
    for name in ("COMMIT.json", "manifest.ocdbt"):
        folder = tmp_path / name
        save_all(folder, 1, 2)
        unreadable = next((folder / "00000002").rglob(name))

        def opened(path: Any, *args: Any, unreadable: Path = unreadable, **options: Any) -> Any:
            if path == unreadable:
                raise OSError(code, "unreadable")
            return real(path, *args, **options)

        log = Log()
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", opened)
            assert restored(Checkpoints(folder, 2, notify=log)).step == 1
        assert name in log[0]
        assert "cannot be read (unreadable)" in log[0]
