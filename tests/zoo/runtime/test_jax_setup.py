"""What must be true before JAX starts. Each case is a process of its own: flags are read once."""

import json
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tests.support.network import in_own_network
from tests.support.processes import clean_environment, run_python
from zoo.errors import BadInput
from zoo.runtime import caches, jax_setup

UNSAFE = f"{jax_setup.SAFE_FLAG}=dot,reduce"
PROGRAM = """
import json, os, sys
from zoo.runtime import caches, jax_setup
from zoo.errors import BadInput
assert "jax" not in sys.modules
jax_setup.prepare_jax(devices=int(sys.argv[1]))
import jax
try:
    verdict = jax_setup.check_cpu_compiler()
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
from zoo.runtime import caches, jax_setup
jax_setup.prepare_jax(1)
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
    jax_setup.prepare_jax(8)
    jax_setup.prepare_jax()
    with pytest.raises(BadInput, match=r"^devices 4: JAX has started with 8 CPU devices; use the zoo before the first"):
        jax_setup.prepare_jax(4)
    monkeypatch.setenv("XLA_FLAGS", "")
    with pytest.raises(BadInput, match=r"^JAX has started without --xla_cpu.* in XLA_FLAGS.*; use the zoo before the first"):
        jax_setup.prepare_jax(8)
    # The flag concerns XLA's CPU compiler only.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax_setup.prepare_jax(8)


def test_cache_folder_is_the_users_and_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ZOO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert caches.cache_dir() == tmp_path / "zoo"
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(BadInput, match="others can write"):
        caches.private_folder(shared)
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="set ZOO_CACHE"):
        caches.private_folder(tmp_path / "file" / "below")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file"))
    assert caches.cache_folder("below") is None
    [line] = capsys.readouterr().err.splitlines()
    assert "set ZOO_CACHE to a folder you can write to. Until then nothing is cached" in line


def tree(tmp_path: Path) -> tuple[Path, Path]:
    """Return (a folder, the cache folder two levels below it)."""
    above = tmp_path / "a b"
    (above / "zoo" / "text").mkdir(parents=True)
    return above, above / "zoo" / "text"


@pytest.mark.planted
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o2775])
def test_a_cache_folder_that_others_can_write_to_is_refused_with_the_command_that_fixes_it(mode: int, tmp_path: Path) -> None:
    _, folder = tree(tmp_path)
    folder.chmod(mode)
    with pytest.raises(BadInput) as refusal:
        caches.private_folder(folder, "SETTING")
    command = f"chmod 700 '{folder}'"
    assert str(refusal.value) == (
        f"cache folder {folder}: others can write to it (mode {mode:04o}); run `{command}`, or set SETTING to a private folder"
    )
    subprocess.run(["sh", "-c", command], check=True)
    assert caches.private_folder(folder) == folder


@pytest.mark.planted(2)
def test_a_folder_above_the_cache_that_others_can_write_to_is_refused_unless_it_is_sticky(tmp_path: Path) -> None:
    above, folder = tree(tmp_path)
    for mode in (0o777, 0o775):
        above.chmod(mode)
        with pytest.raises(
            BadInput, match=rf": others can write to it \(mode {mode:04o}\); run `chmod go-w '{above}'`, or set ZOO"
        ):
            caches.private_folder(folder)
    above.chmod(0o1777)
    caches.private_folder(folder)
    # The cache folder itself may not be like /tmp.
    with pytest.raises(BadInput, match="others can write to it"):
        caches.private_folder(above)


@pytest.mark.planted(2)
def test_links_are_checked_with_everything_on_their_way(tmp_path: Path) -> None:
    above, folder = tree(tmp_path)
    (tmp_path / "first").symlink_to("second/zoo")
    (tmp_path / "second").symlink_to(above)
    through_links = tmp_path / "first" / "text"
    assert caches.private_folder(through_links) == through_links
    for path in (above, folder):
        path.chmod(0o777)
        with pytest.raises(BadInput, match="others can write to it"):
            caches.private_folder(through_links)
        path.chmod(0o700)


@pytest.mark.planted
def test_a_cache_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = tree(tmp_path)
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    monkeypatch.setattr(caches, "_owners_of_system", lambda: {owner + 2})
    with pytest.raises(
        BadInput, match=rf"belongs to user {owner}, who can replace the content; set ZOO_CACHE to a private folder$"
    ):
        caches.private_folder(folder)
    # Root can replace everything anyway.
    monkeypatch.setattr(caches, "_owners_of_system", lambda: {owner})
    caches.private_folder(folder)


def test_a_new_cache_folder_and_those_above_it_are_private_with_any_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = caches.private_folder(tmp_path / "new" / "zoo" / "text")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent, folder.parent.parent)] == [0o700] * 3


def test_a_cache_folder_is_private_in_a_user_namespace_too(tmp_path: Path) -> None:
    """Where the ids of root and others outside are not mapped, so that all their folders belong to one id."""
    program = "from zoo.runtime import caches; print(caches.private_folder(__import__('pathlib').Path(sys.argv[1])))"
    command = in_own_network([sys.executable, "-c", f"import sys; {program}", str(tmp_path / "cache")])
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'cache'}\n"), done.stderr


@pytest.mark.parametrize("setting", ["environment", "option"])
def test_a_folder_of_jaxs_option_that_others_can_write_to_is_not_used(setting: str, tmp_path: Path) -> None:
    """If the option is set after `prepare`, JAX makes a warning of the refusal and compiles without the folder."""
    folder = tmp_path / "compiled"
    folder.mkdir()
    folder.chmod(0o777)
    program = f"""
from zoo.errors import BadInput
from zoo.runtime import caches, jax_setup
try:
    jax_setup.prepare_jax()
    import jax
    jax.config.update("jax_compilation_cache_dir", {str(folder)!r})
    assert jax.jit(lambda x: x + 1)(1) == 2
except BadInput as refusal:
    print("refused:", refusal)
"""
    env = {"JAX_COMPILATION_CACHE_DIR": str(folder) if setting == "environment" else str(tmp_path / "other")}
    done = run_python("-c", program, env=env)
    fix = f"run `chmod 700 {folder}`, or set JAX_COMPILATION_CACHE_DIR to a private folder"
    line = f": cache folder {folder}: others can write to it (mode 0777); {fix}\n"
    assert (done.stdout == f"refused{line}") == (setting == "environment") and done.code == 0, done.stderr
    assert (
        f"UserWarning: Error reading persistent compilation cache entry for 'jit__lambda': BadInput{line}" in done.stderr
    ) == (setting == "option")
    assert list(folder.iterdir()) == []


def test_too_little_memory_to_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax_setup.resource, "getrlimit", lambda _: (300 << 20, 300 << 20))
    with pytest.raises(BadInput, match="out of memory: this process may use 300 MiB of address space, and JAX needs 1,024"):
        jax_setup.prepare_jax()


@pytest.mark.full
def test_doctor_reports_a_foreign_package_train(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    program = (
        "from zoo.runtime import jax_setup; from zoo.cli.doctor_report import print_doctor_report\n"
        "jax_setup.prepare_jax(1); exit(print_doctor_report([], '', [], []))"
    )
    done = run_python("-c", program, cwd=tmp_path)
    assert done.code == 1
    assert "come from different folders" in done.stdout
