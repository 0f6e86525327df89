"""What must be true before JAX starts. Each case is a process of its own: flags are read once."""

import json
import os
import resource
import stat
from pathlib import Path

import jax
import pytest

from tests.support.processes import run_python
from zoo.errors import BadInput
from zoo.runtime import jax_setup

UNSAFE = f"{jax_setup.SAFE_FLAG}=dot,reduce"
PROGRAM = """
import json, os, sys
from zoo.runtime import jax_setup
from zoo.errors import BadInput
assert "jax" not in sys.modules
jax_setup.prepare(devices=int(sys.argv[1]))
import jax
try:
    verdict = jax_setup.canary()
except BadInput as wrong:
    verdict = str(wrong)
settings = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
facts = [verdict, os.environ["XLA_FLAGS"], jax.device_count(), jax.default_backend(), *map(jax.config.values.get, settings)]
names = [open(f"/proc/self/task/{thread}/comm").read().strip() for thread in os.listdir("/proc/self/task")]
facts.append(names.count("tf_XLAEigen"))
print(json.dumps(facts))
"""


def started(devices: int = 0, **env: str | None) -> list:
    done = run_python("-c", PROGRAM, str(devices), env=env)
    assert done.code == 0, done.stderr
    return json.loads(done.stdout)


def test_right_numbers_on_simulated_devices(tmp_path: Path) -> None:
    verdict, flags, devices, platform, cache, seconds, threads = started(
        4, ZOO_CACHE=str(tmp_path / "zoo"), JAX_COMPILATION_CACHE_DIR=None, XLA_FLAGS="--xla_cpu_enable_fast_math=false"
    )
    assert verdict < 1e-5
    own = f"{jax_setup.SAFE_FLAG}={jax_setup.SAFE_VALUE} {jax_setup.PATIENCE_FLAG}={jax_setup.PATIENCE}"
    assert flags == f"--xla_cpu_enable_fast_math=false {own}"
    assert (devices, platform, seconds) == (4, "cpu", 0.0)
    assert threads == max(4 * jax_setup.THREADS_PER_DEVICE, os.cpu_count() or 1)
    assert Path(cache).parent == tmp_path / "zoo"
    assert stat.S_IMODE(os.stat(cache).st_mode) == 0o700
    assert any(file.name.startswith("jit_") for file in Path(cache).iterdir()), "a small program was not kept"


@pytest.mark.planted
def test_the_canary_detects_what_the_flag_prevents() -> None:
    """Compute the same program under a fusion setting known to be wrong, which stays because the user set it."""
    verdict, flags, *_ = started(XLA_FLAGS=UNSAFE)
    assert flags == UNSAFE
    assert "wrong numbers" in verdict and UNSAFE in verdict and "\n" not in verdict


@pytest.mark.full
def test_freed_memory_is_kept_for_the_next_step_unless_the_user_has_settings_of_malloc() -> None:
    program = """
import resource
from zoo.runtime import jax_setup
jax_setup.prepare(1)
import jax, jax.numpy as jnp
# 100 MB of temporaries: more than an arena of a thread can hold.
step = jax.jit(lambda x: jnp.sin(x @ x.T) @ x)
x = jnp.ones((5000, 8))
fresh = []
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    fresh.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
# Small blocks may lie in the way of the first large ones.
print(sorted(fresh[6:])[3])
"""
    kept, given_back = (int(run_python("-c", program, env=env).stdout) for env in ({}, {"MALLOC_TOP_PAD_": "131072"}))
    pages = 100e6 / resource.getpagesize()
    assert kept < 0.1 * pages and given_back > 0.9 * pages


def test_preparing_twice_does_nothing_and_preparing_too_late_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jax.device_count() == 8
    jax_setup.prepare(8)
    jax_setup.prepare()
    with pytest.raises(BadInput, match=r"^devices 4: JAX has started with 8 CPU devices; use the zoo before the first"):
        jax_setup.prepare(4)
    monkeypatch.setenv("XLA_FLAGS", "")
    with pytest.raises(BadInput, match=r"^JAX has started without --xla_cpu.* in XLA_FLAGS.*; use the zoo before the first"):
        jax_setup.prepare(8)
    # The flag concerns XLA's CPU compiler only.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax_setup.prepare(8)


def test_cache_folder_is_the_users_and_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ZOO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert jax_setup.cache_dir() == tmp_path / "zoo"
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(BadInput, match="others can write"):
        jax_setup.private_folder(shared)
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="set ZOO_CACHE"):
        jax_setup.private_folder(tmp_path / "file" / "below")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file"))
    assert jax_setup.cache_folder("below") is None
    [line] = capsys.readouterr().err.splitlines()
    assert "set ZOO_CACHE to a folder you can write to. Until then nothing is cached" in line


def test_too_little_memory_to_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax_setup.resource, "getrlimit", lambda _: (300 << 20, 300 << 20))
    with pytest.raises(BadInput, match="out of memory: this process may use 300 MiB of address space, and JAX needs 1,024"):
        jax_setup.prepare()


@pytest.mark.full
def test_doctor_reports_a_foreign_package_train(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    program = (
        "from zoo.runtime import jax_setup; from zoo.cli.doctor_report import doctor; jax_setup.prepare(1); exit(doctor([], ''))"
    )
    done = run_python("-c", program, cwd=tmp_path)
    assert done.code == 1
    assert "come from different folders" in done.stdout
