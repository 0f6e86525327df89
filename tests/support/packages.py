"""The wheel and the source distribution of this checkout, and the rule of what they contain."""

import functools
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from tests.support.environment import SCRATCH
from tests.support.processes import ROOT

LARGEST_WHEEL = 3_000_000
"""Bytes."""
PRODUCT = ("zoo", "train", "eval", "benchmarks")
DATA = {
    "benchmarks/budgets/program_budgets.json",
    "benchmarks/results/published-plans_rules_2026-12-01.md",
    "benchmarks/tiles/rates.json",
    "eval/pages/page.html.j2",
    "eval/pages/style.css",
    "eval/serving/page.html",
    "train/data/embedded/PROVENANCE.md",
    "train/data/embedded/moby_dick.txt.xz",
    "zoo/attention/auto_lines.json",
    "zoo/cli/parameter_counts.json",
    "zoo/ops/tile_sizes.json",
}
"""Files of the product that are no modules."""
DOCUMENTS = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md"}
BUILT_FROM = {"pyproject.toml", "constraints.txt", "constraints-hashes.txt", ".gitignore", "PKG-INFO"}


def uv() -> str:
    """Return the uv of this environment, or that of the system where the environment was made by it."""
    own = Path(sys.executable).with_name("uv")
    program = str(own) if own.exists() else shutil.which("uv")
    assert program, "run.py installs uv"
    return program


def run_uv(*args: str, cwd: Path = ROOT) -> None:
    """Run uv, with the index or the files that the settings of the user name, as run.py does."""
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    done = subprocess.run([uv(), *args], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@functools.cache
def built_packages() -> tuple[Path, Path]:
    """Build the source distribution, and the wheel from it, and return the wheel and the source distribution."""
    folder = SCRATCH / "packages"
    run_uv("build", "-q", "--build-constraints", str(ROOT / "constraints.txt"), "--out-dir", str(folder), str(ROOT))
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


def wheel_files(wheel: Path) -> set[str]:
    """Return the names of the files in a wheel, without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def source_files(source: Path) -> set[str]:
    """Return the names of the files in a source distribution, without its folder."""
    with tarfile.open(source) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


def product_files() -> set[str]:
    """Return the files of this checkout that a wheel contains: every module of the product, and its data."""
    return {path.relative_to(ROOT).as_posix() for name in PRODUCT for path in (ROOT / name).rglob("*.py")} | DATA


def wrong_wheel_files(names: set[str]) -> list[str]:
    """Return the files that a wheel lacks, or has and should not."""
    return sorted(names ^ product_files())


def wrong_source_files(names: set[str]) -> list[str]:
    """Return the files that a source distribution lacks, or has and should not: docs/ may have any of its files."""
    expected = product_files() | DOCUMENTS | BUILT_FROM
    others = {name for name in names - expected if not re.match(r"docs/[\w./-]+\.(md|py|png|svg|sh|yaml|css|js)$", name)}
    return sorted(others | (expected - names))
