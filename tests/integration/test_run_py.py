"""The bare-machine path. What `install` does is tested over the network by .ci/run, which starts with it."""

import re
import shutil
from pathlib import Path

import pytest

from tests.support.processes import ROOT, Ended, run_python

# run.py with the one step that needs a network put aside: what it would install is written down, and the commands print.
OFFLINE = """
import importlib.util, os, pathlib, sys
spec = importlib.util.spec_from_file_location("run", sys.argv[1])
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
def install(extras, groups, fresh):
    run.STAMP.unlink(missing_ok=True)
    (run.ENV / "bin").mkdir(parents=True, exist_ok=True)
    for name in ("zoo", "pytest"):
        command = run.ENV / "bin" / name
        command.write_text('#!/bin/sh\\necho "$(basename $0) in $(pwd):$(printf " <%s>" "$@")"\\n')
        command.chmod(0o755)
    print("install", *extras, *groups, "fresh" if fresh else "more", file=sys.stderr)
    if "FAIL" in os.environ:
        raise run.subprocess.CalledProcessError(1, "uv")
run.install = install
del sys.argv[0]
run.main()
"""


class Checkout:
    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("run.py", "pyproject.toml", "constraints-hashes.txt"):
            shutil.copy(ROOT / name, folder)
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()

    def run(self, *argv: str, **env: str) -> Ended:
        return run_python("-c", OFFLINE, str(self.folder / "run.py"), *argv, env=env, cwd=self.elsewhere)


def test_commands_reach_zoo_and_pytest_unchanged(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    done = checkout.run("--extra", "none", "train", "gpt-nano", "--optim.lr", "1e-3", "a b")
    assert (done.code, done.stderr) == (0, "install fresh\n")
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
    assert installed("--extra", "none", "train") == "install fresh"
    assert installed("train") == "", "the second start must be at once, and remember --extra"
    assert installed("test") == "install test more"
    assert installed("test") == installed("train") == ""
    with (checkout.folder / "constraints-hashes.txt").open("a") as file:
        file.write("# changed\n")
    assert installed("train") == "install fresh"
    assert checkout.run("test", FAIL="1").code == 1
    assert installed("test") == "install test fresh"
    assert installed("--extra", "eval", "train") == "install eval test more"
    assert installed("--extra", "eval", "--extra", "data", "train") == "install data eval test more"
    assert installed("--extra", "data", "train") == installed("train") == ""
    assert installed("--extra", "cuda12", "train") == "install cuda12 data eval fresh"


def test_an_unknown_extra_and_an_old_python_get_one_line(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    done = checkout.run("--extra", "cuda11", "train")
    assert (done.code, done.stderr) == (
        1,
        "--extra cuda11: choose cuda12, cuda13, tpu, none, data, eval, gcs, mlflow, ray, s3, sweep, tokamax, track, trackio\n",
    )
    path = str(checkout.folder / "run.py")
    old = f"import runpy, sys; sys.version_info = (3, 10, 1); runpy.run_path({path!r}, run_name='__main__')"
    done = run_python("-c", old)
    assert done.code == 1
    assert done.stderr.startswith("Python 3.11 or newer is needed; ")
    assert done.stderr.count("\n") == 1


# run.py with every process put aside that it would start to install: its command is printed.
INSTALL = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("run", sys.argv[1])
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
real = run.subprocess.run
def print_command(command, **options):
    if "install" not in command:
        return real(command, **options)
    files = [name for name in map(str, command) if name.endswith(".txt")]
    print(*(name.rpartition("/")[2] for name in map(str, command)))
    print(open(files[0]).read() if command[0] == str(run.ENV / "bin" / "python") else len(files))
run.subprocess.run = print_command
run.install("none", ["test"], True)
"""


def test_installations_compare_digests(tmp_path: Path) -> None:
    """Those of uv by pip, and those of everything else by uv, build tools included."""
    checkout = Checkout(tmp_path)
    done = run_python("-c", INSTALL, str(checkout.folder / "run.py"))
    assert done.code == 0, done.stderr
    pip, requirement, *digests, _, uv, files = done.stdout.splitlines()
    assert pip.endswith("-r uv-requirement.txt") and requirement.startswith("uv==")
    assert digests and all(re.fullmatch(r" +--hash=sha256:[0-9a-f]{64}( \\)?", line) for line in digests)
    assert "-c constraints-hashes.txt --build-constraints constraints-hashes.txt" in uv and files == "2"


@pytest.mark.planted(3)
def test_every_constraint_has_digests(tmp_path: Path) -> None:
    def pairs(text: str) -> dict[str, list[str]]:
        """Return the digests of each line of constraints."""
        pinned: dict[str, list[str]] = {}
        for line in text.replace("\\\n", " ").splitlines():
            constraint, *digests = re.split(r" +--hash=sha256:", line)
            if not line.startswith("#"):
                pinned[constraint.strip()] = [digest.strip() for digest in digests]
        return pinned

    def wrong(hashes: str) -> list[str]:
        digests = pairs(hashes)
        bad = [line for line, values in digests.items() if not values or not all(re.fullmatch("[0-9a-f]{64}", v) for v in values)]
        return sorted({*bad, *(pairs((ROOT / "constraints.txt").read_text()).keys() ^ digests.keys())})

    text = (ROOT / "constraints-hashes.txt").read_text()
    assert wrong(text) == [] and "://" not in text
    assert {"uv", "hatchling", "editables", "setuptools"} <= {line.partition("==")[0] for line in pairs(text)}
    # The mistakes: no digest, half of one, another version.
    assert wrong(re.sub(r"(uv==\S+) (\\\n.*)+", r"\1", text)) != []
    assert wrong(re.sub(r"sha256:[0-9a-f]{4}", "sha256:", text, count=1)) != []
    assert wrong(re.sub(r"jax==0.10.2", "jax==0.10.3", text)) != []


def test_constraints_are_names_and_versions_only() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all("==" in line and "/" not in line for line in lines)
    names = {line.partition("==")[0] for line in lines}
    assert {"jax", "flax", "pytest", "ruff", "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu"} <= names
    assert "torch" not in names, "its pinned build would be the one for CUDA"
