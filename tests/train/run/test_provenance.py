"""The commit that a run was computed with, and what there is where git or a checkout is missing."""

import subprocess
from pathlib import Path

import pytest

from train.run import provenance
from train.run.provenance import read_commit

IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@b")


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *IDENTITY, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.planted(2)
def test_the_commit_of_a_checkout_and_changes_of_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "a.py").write_text("1")
    (tmp_path / "train").mkdir()
    assert read_commit(tmp_path) == {"commit": None, "dirty": None}
    read_commit.cache_clear()
    git(tmp_path, "init")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-m", "x")
    head = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "notes.txt").write_text("not code")
    assert read_commit(tmp_path) == {"commit": head, "dirty": False}
    read_commit.cache_clear()
    (tmp_path / "train" / "new.py").write_text("a file that no commit has")
    assert read_commit(tmp_path) == {"commit": head, "dirty": True}
    read_commit.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_commit(tmp_path) == {"commit": None, "dirty": None}
    read_commit.cache_clear()


def test_a_run_records_where_it_is_computed() -> None:
    facts = provenance.read_provenance()
    assert set(facts) == {"version", "commit", "dirty", "host", "processor", "device", "devices", "processes"}
    assert facts["device"] == "cpu" and facts["version"]
