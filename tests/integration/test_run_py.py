"""The bare-machine path. What `install` does is tested over the network by .ci/run, which starts with it."""

import shutil
from pathlib import Path

from tests.support.processes import ROOT, Ended, run_python

# run.py with the one step that needs a network put aside: what it would install is written down, and the commands print.
OFFLINE = """
import importlib.util, os, pathlib, sys
spec = importlib.util.spec_from_file_location("run", sys.argv[1])
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
def install(extra, groups, fresh):
    run.STAMP.unlink(missing_ok=True)
    (run.ENV / "bin").mkdir(parents=True, exist_ok=True)
    for name in ("zoo", "pytest"):
        command = run.ENV / "bin" / name
        command.write_text('#!/bin/sh\\necho "$(basename $0) in $(pwd):$(printf " <%s>" "$@")"\\n')
        command.chmod(0o755)
    print("install", extra, *groups, "fresh" if fresh else "more", file=sys.stderr)
    if "FAIL" in os.environ:
        raise run.subprocess.CalledProcessError(1, "uv")
run.install = install
del sys.argv[0]
run.main()
"""


class Checkout:
    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("run.py", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()

    def run(self, *argv: str, **env: str) -> Ended:
        return run_python("-c", OFFLINE, str(self.folder / "run.py"), *argv, env=env, cwd=self.elsewhere)


def test_commands_reach_zoo_and_pytest_unchanged(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    done = checkout.run("--extra", "none", "train", "gpt-nano", "--optim.lr", "1e-3", "a b")
    assert (done.code, done.stderr) == (0, "install none fresh\n")
    assert done.stdout == f"zoo in {checkout.elsewhere}: <train> <gpt-nano> <--optim.lr> <1e-3> <a b>\n"
    done = checkout.run("test", "-k", "x")
    assert done.stdout == f"pytest in {checkout.folder}: <-k> <x>\n"


def test_set_up_happens_once_and_again_when_something_changed_or_failed(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)

    def installed(*argv: str) -> str:
        return checkout.run(*argv).stderr.strip()

    failed = checkout.run("--extra", "none", "train", FAIL="1")
    assert failed.code == 1
    assert "run the same command again" in failed.stderr and "Traceback" not in failed.stderr
    assert installed("--extra", "none", "train") == "install none fresh"
    assert installed("train") == "", "the second start must be at once, and remember --extra"
    assert installed("test") == "install none test more"
    assert installed("test") == installed("train") == ""
    with (checkout.folder / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert installed("train") == "install none fresh"
    assert checkout.run("test", FAIL="1").code == 1
    assert installed("test") == "install none test fresh"
    assert installed("--extra", "cuda12", "train") == "install cuda12 fresh"


def test_an_unknown_extra_and_an_old_python_get_one_line(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    done = checkout.run("--extra", "cuda11", "train")
    assert (done.code, done.stderr) == (1, "--extra cuda11: choose cuda12, cuda13, tpu or none\n")
    path = str(checkout.folder / "run.py")
    old = f"import runpy, sys; sys.version_info = (3, 10, 1); runpy.run_path({path!r}, run_name='__main__')"
    done = run_python("-c", old)
    assert done.code == 1
    assert done.stderr.startswith("Python 3.11 or newer is needed; ")
    assert done.stderr.count("\n") == 1


def test_constraints_are_names_and_versions_only() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all("==" in line and "/" not in line for line in lines)
    names = {line.partition("==")[0] for line in lines}
    assert {"jax", "flax", "pytest", "ruff", "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu"} <= names
    assert "torch" not in names, "its pinned build would be the one for CUDA"
