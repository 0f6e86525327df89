"""Training and reading with a run in an object store, by the commands of a user."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.support import runs, tiny
from tests.support.commands import assert_refused, call
from tests.support.object_stores import Place
from tests.support.runs import Training
from zoo import object_store
from zoo.cli import main
from zoo.errors import install_advice
from zoo.fault_points import faults

FLAGS = [*tiny.FLAGS, "--data.paths", "text.txt", "--steps", "6", "--checkpoint.every", "2", "--log.ledger"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(runs.text())


def move_to(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Continue on another machine: with a cache in which nothing is."""
    monkeypatch.setenv("ZOO_CACHE", os.path.abspath(machine))


def test_a_run_that_moves_to_another_machine_ends_with_the_same_bits(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    move_to("first", monkeypatch)
    assert main.main(["train", "gpt-nano", *FLAGS, "--name", "local"]) == 0
    command = ["train", "gpt-nano", *FLAGS, "--name", "moved", "--out", place.uri]
    with faults("train.step:error:6"), pytest.raises(RuntimeError, match=r"fault at train\.step"):
        main.main(command)
    move_to("second", monkeypatch)
    assert main.main(command) == 0
    working = object_store.working_folder(f"{place.uri}/moved")
    assert working.is_relative_to(os.path.abspath("second"))
    shutil.copytree(working, "runs/moved")
    moved, local = (Training(Path.cwd(), name) for name in ("moved", "local"))
    assert moved.resumed_at() == [0, 4]
    runs.assert_same(moved, local)
    # A third machine reads what the second one wrote.
    move_to("third", monkeypatch)
    done = call(capsys, *command)
    assert done.code == 0 and "is finished" in done.stdout
    done = call(capsys, "compare", f"{place.uri}/moved", "runs/local")
    assert done.code == 2 and "are the same run: seed and configuration are equal" in done.stderr
    done = call(capsys, "train", "gpt-nano", *FLAGS, "--name", "moved", "--out", place.uri, "--seed", "5")
    assert done.code == 2 and "holds another run" in done.stderr


@pytest.mark.slow
def test_readers_accept_a_run_in_a_store(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    move_to("first", monkeypatch)
    for out in ("runs", place.uri):
        assert main.main(["train", "gpt-nano", *FLAGS, "--name", "parent", "--out", out]) == 0
    move_to("second", monkeypatch)
    uri, local = f"{place.uri}/parent", "runs/parent"
    Path("prompt.txt").write_text("the old ")
    commands = {
        "eval": ["--batch", "5"],
        "generate": ["--prompt", "the old", "--limit", "4", "--temperature", "0"],
    }
    for name, options in commands.items():
        ended = [call(capsys, name, source, *options) for source in (uri, local)]
        assert [(done.code, done.stdout) for done in ended] == [(0, ended[1].stdout)] * 2, ended
    for source, target in ((uri, "from-store"), (local, "from-folder")):
        assert call(capsys, "export", source, target, "--last", "2").code == 0
    assert Path("from-store/model.safetensors").read_bytes() == Path("from-folder/model.safetensors").read_bytes()
    done = call(capsys, "eval", uri, "--task", "perplexity", "--files", "text.txt")
    assert done.code == 0, done
    assert "perplexity" in place.store("parent").read("evaluations.json").decode()
    for source, name in ((uri, "child-of-store"), (local, "child-of-folder")):
        assert main.main(["train", "gpt-nano", *FLAGS, "--steps", "2", "--init", source, "--name", name]) == 0
    rows = [Training(Path.cwd(), f"child-of-{name}").rows() for name in ("store", "folder")]
    assert rows[0] == rows[1]


def test_what_cannot_be_a_store_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    for module in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, module, None)
    scheme = r"there is no object store ftp://; begin with s3:// or gs://, or name a local folder"
    s3, gs = (
        f"{module} is needed for {uri} and is not installed; {re.escape(install_advice(extra))}"
        for module, uri, extra in (("s3fs", "s3://bucket/out/gpt", "s3"), ("gcsfs", "gs://bucket/out/gpt", "gcs"))
    )
    train = ["train", "gpt-nano", *FLAGS, "--name", "gpt"]
    cases = {
        "scheme": ([*train, "--out", "ftp://bucket/out"], f"ftp://bucket/out: {scheme}"),
        "no bucket": ([*train, "--out", "s3:///out"], r"s3:///out: write s3://BUCKET/FOLDER"),
        "up": ([*train, "--out", "s3://bucket/../out"], r"s3://bucket/\.\./out: write s3://BUCKET/FOLDER, .* without '\.\.'"),
        "no s3fs": ([*train, "--out", "s3://bucket/out"], s3),
        "no gcsfs": ([*train, "--out", "gs://bucket/out/"], gs),
        "init": ([*train, "--init", "s3://bucket/out/gpt"], s3),
        "generate": (["generate", "gs://bucket/out/gpt", "--prompt", "a"], gs),
        "eval": (["eval", "s3://bucket/out/gpt"], s3),
        "compare": (["compare", "s3://bucket/out/gpt"], s3),
        "export": (["export", "s3://bucket/out/gpt", "target"], s3),
        "inspect": (["data", "inspect", "s3://bucket/out/gpt"], s3),
        "reader's scheme": (["eval", "azure://bucket/gpt"], "azure://bucket/gpt: there is no object store azure://"),
    }
    assert_refused(capsys, tmp_path, cases)
