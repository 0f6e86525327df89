"""The cache of compiled programs: shared, and unharmed by damaged entries, killed writers and full disks."""

import os
import time
from pathlib import Path

import pytest

from tests.support.processes import run_python
from zoo.runtime import compile_cache
from zoo.runtime.compile_cache import SUFFIX, UNFINISHED, CheckedCache

PROGRAM = """
import warnings
warnings.simplefilter("error")
from zoo.runtime import jax_setup
jax_setup.prepare_jax(devices=2)
import jax, jax.numpy as jnp
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.rpartition("/")[2]))
print(float(jax.jit(lambda x: (x * 3).sum())(jnp.ones(5))), "cache_hits" in events)
"""


@pytest.fixture
def cache(tmp_path: Path) -> CheckedCache:
    (tmp_path / "programs").mkdir()
    return CheckedCache(tmp_path / "programs")


def entry(cache: CheckedCache, key: str = "key") -> Path:
    return cache.folder / (key + SUFFIX)


@pytest.mark.planted(4)
def test_a_damaged_entry_is_missing_and_can_be_stored_again(cache: CheckedCache) -> None:
    cache.put("key", b"program")
    written = entry(cache).read_bytes()
    for damaged in (b"", written[:-1], written[:20], written[:-1] + b"!"):
        entry(cache).write_bytes(damaged)
        assert cache.get("key") is None
        assert not entry(cache).exists()
    cache.put("key", b"program")
    assert cache.get("key") == b"program"


def test_a_failed_write_leaves_nothing_and_is_reported_once(
    cache: CheckedCache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    for _ in range(2):
        cache.put("key", b"program")
    assert list(cache.folder.iterdir()) == []
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"zoo: cache folder {cache.folder} cannot be written (No space left on device); ")


def test_unused_entries_and_files_of_killed_writers_are_removed(cache: CheckedCache) -> None:
    for key in ("old", "used", "new"):
        cache.put(key, b"program")
    two_days_ago = time.time() - 2 * 86_400
    for key in ("old", "used"):
        os.utime(entry(cache, key), (two_days_ago, two_days_ago))
    for name, age in (("a", 2 * 86_400), ("b", 0)):
        unfinished = cache.folder / (name + UNFINISHED)
        unfinished.touch()
        os.utime(unfinished, (time.time() - age, time.time() - age))
    cache.get("used")
    compile_cache.remove_unused(cache.folder, days=1.0)
    assert sorted(file.name for file in cache.folder.iterdir()) == ["b" + UNFINISHED, "new" + SUFFIX, "used" + SUFFIX]


@pytest.mark.full
@pytest.mark.planted
def test_jax_uses_it_in_every_process_and_compiles_again_what_is_damaged(tmp_path: Path) -> None:
    """Real processes: the second takes the program of the first; after damage the third compiles it, without a warning."""

    def run() -> list[str]:
        done = run_python("-c", PROGRAM, env={"JAX_COMPILATION_CACHE_DIR": str(tmp_path)})
        assert (done.code, done.stderr) == (0, "")
        return done.stdout.split()

    assert run() == ["15.0", "False"]
    entries = [file for file in tmp_path.iterdir() if file.suffix == SUFFIX]
    assert entries
    assert run() == ["15.0", "True"]
    for file in entries:
        file.write_bytes(file.read_bytes()[:-10])
    assert run() == ["15.0", "False"]
