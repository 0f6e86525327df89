"""The check before a release: `python -m tests.release` prints a line for each thing that is missing, and ends with 1 if any is.

It needs git and the package index, and takes a minute or two. The tests are not part of it: `.ci/run` and the tier `slow` are.
"""

import re
import runpy
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import packages
from tests.support.processes import ROOT

PYTHONS = ("3.11", "3.13")
"""The oldest and the newest Python that the extras must resolve on."""


def project(root: Path) -> dict[str, Any]:
    """Return the table `project` of a checkout's pyproject.toml, the one place of the version."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def version_problems(root: Path) -> list[str]:
    """Return which of CHANGELOG.md and CITATION.cff do not have the version."""
    version = project(root)["version"]
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    problems = []
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        problems.append(f"CHANGELOG.md: has no heading '## [{version}] - DATE'; move what is under Unreleased below one")
    cited = citation_value(root, "version")
    if cited != version:
        problems.append(f"CITATION.cff: has the version {cited}, and pyproject.toml {version}")
    return problems


def citation_value(root: Path, key: str) -> str:
    """Return a value of CITATION.cff, a text on one line; "" if it is absent."""
    match = re.search(rf"^{key}: (.*)$", (root / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    return match[1].strip("\"'") if match else ""


def licence_problems(root: Path) -> list[str]:
    """Return what is wrong with the licence: its text, and its name in pyproject.toml and CITATION.cff."""
    declared, cited = project(root).get("license"), citation_value(root, "license")
    problems = [] if declared == "Apache-2.0" else [f"pyproject.toml: the license is {declared}, not Apache-2.0"]
    if cited != declared:
        problems.append(f"CITATION.cff: the license is {cited or 'absent'}, and in pyproject.toml {declared}")
    text = root / "LICENSE"
    if not text.is_file() or "Apache License\n                           Version 2.0" not in text.read_text(encoding="utf-8"):
        problems.append("LICENSE: is not the text of the Apache License 2.0")
    return problems


def tree_problems(root: Path) -> list[str]:
    """Return a line if git has changes that are not committed."""
    done = subprocess.run(["git", "-C", str(root), "status", "--porcelain"], capture_output=True, text=True)
    if done.returncode:
        return ["git: this is not a checkout; release from one"]
    changed = done.stdout.splitlines()
    return [f"git: {len(changed)} files are changed or not committed, such as {changed[0][3:]}"] if changed else []


def constraint_problems(root: Path) -> list[str]:
    """Return a line if constraints.txt is not what its own command gives, or constraints-hashes.txt has other versions."""
    file = root / "constraints.txt"
    text = file.read_text(encoding="utf-8")
    _, command = text.splitlines()[:2]
    words = shlex.split(command.removeprefix("# "))
    with tempfile.TemporaryDirectory() as folder:
        # uv keeps the versions of the file that it writes, as far as they satisfy pyproject.toml.
        made = Path(folder) / file.name
        made.write_text(text)
        done = compile_requirements(root, *words[3:], "--output-file", str(made))
        if done.returncode:
            return [f"constraints.txt: {last_line(done)}"]
        lines = {line for line in made.read_text().splitlines() if not line.startswith("#")}
    pinned = {line for line in text.splitlines() if not line.startswith("#")}
    problems = [f"constraints.txt: out of date, {len(lines ^ pinned)} lines differ; run its command"] if lines != pinned else []
    hashes = (root / "constraints-hashes.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    hashed = {re.split(r" +--hash=", line)[0].strip() for line in hashes.splitlines() if not line.startswith("#")}
    if hashed != pinned:
        problems.append(f"constraints-hashes.txt: {len(hashed ^ pinned)} lines have other versions than constraints.txt")
    return problems


def extra_problems(root: Path) -> list[str]:
    """Return the extras that do not resolve with the pinned versions, on each Python."""
    problems = []
    for python in PYTHONS:
        for extra in project(root)["optional-dependencies"]:
            args = ("--python-version", python, "--extra", extra, "-c", "constraints.txt", "pyproject.toml")
            done = compile_requirements(root, *args)
            if done.returncode:
                problems.append(f"extra {extra}: does not resolve on Python {python} ({last_line(done)})")
    return problems


def compile_requirements(root: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run `uv pip compile`."""
    return subprocess.run([packages.uv(), "pip", "compile", "-q", *args], cwd=root, capture_output=True, text=True)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that a command wrote to stderr."""
    return " ".join(done.stderr.strip().splitlines()[-1:]) or f"exit code {done.returncode}"


def package_problems(root: Path) -> list[str]:
    """Return what is wrong with the wheel and the source distribution."""
    wheel, source = packages.built_packages()
    size = wheel.stat().st_size
    problems = []
    if size > packages.LARGEST_WHEEL:
        problems.append(f"wheel: has {size / 1e6:.1f} MB, and {packages.LARGEST_WHEEL / 1e6:.0f} are allowed")
    wrong = {
        "wheel": packages.wrong_wheel_files(packages.wheel_files(wheel)),
        "sdist": packages.wrong_source_files(packages.source_files(source)),
    }
    for name, files in wrong.items():
        if files:
            problems.append(f"{name}: {len(files)} files are missing or do not belong there, such as {files[0]}")
    return problems


def page_problems(root: Path) -> list[str]:
    """Return the generated pages of docs/ that are not current."""
    pages = runpy.run_path(str(root / "docs" / "generate.py"))["pages"]()
    stale = [name for name, text in pages.items() if (root / "docs" / name).read_text(encoding="utf-8") != text]
    return [f"docs/{name}: not current; run python docs/generate.py" for name in stale]


CHECKS: tuple[Callable[[Path], list[str]], ...] = (
    version_problems,
    licence_problems,
    tree_problems,
    page_problems,
    package_problems,
    constraint_problems,
    extra_problems,
)


def run_checks(root: Path) -> int:
    """Print what is missing for a release of a checkout, and return the exit code."""
    problems = []
    for check in CHECKS:
        for problem in check(root):
            print(problem, flush=True)
            problems.append(problem)
    if not problems:
        print(f"version {project(root)['version']} can be released")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(run_checks(ROOT))
