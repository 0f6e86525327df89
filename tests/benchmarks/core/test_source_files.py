"""Source files are recognized in a folder of any name."""

from pathlib import Path

import pytest

from benchmarks import source_files
from benchmarks.source_files import own_path


def test_paths_begin_at_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "zoo" / "train" / "a b"
    monkeypatch.setattr(source_files, "ROOT", root)
    assert own_path(str(root / "zoo/layers.py")) == "zoo/layers.py"
    assert own_path("zoo/layers.py") == "zoo/layers.py"
    other = str(tmp_path / "site-packages/optax/tree.py")
    assert own_path(other) == other
