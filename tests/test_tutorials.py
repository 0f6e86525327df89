"""The tutorials: the shell and Python blocks of each page run in order, and notebooks have the same ones."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.compilation import FLAGS
from tests.support.processes import ROOT, clean_environment

TUTORIALS = ROOT / "docs" / "tutorials"
PAGES = sorted(TUTORIALS.glob("*.md"))
SHORT = "translate"
COMMANDS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
"""What runs a block of each language, which is the last argument."""
REQUIREMENT = "transformer-zoo @ https://host.invalid/transformer_zoo.whl"


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the language and the text of each block of a page that can be run."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(language, block) for language, block in found if language in COMMANDS]


def run_blocks(text: str, folder: Path) -> None:
    """Run the blocks of a page in `folder`, each in a process of its own; fail with the first one that ends with an error."""
    environment = clean_environment()
    programs = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    paths = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH", "")]))
    environment |= {"PATH": programs, "PYTHONPATH": paths} | FLAGS
    for language, block in blocks(text):
        done = subprocess.run(
            [*COMMANDS[language], block],
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        print(f"{block}\n{done.stdout}")
        if done.returncode:
            pytest.fail(f"this block ended with {done.returncode}:\n{block}\nIts output:\n{done.stdout}", pytrace=False)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.stem, marks=pytest.mark.full if page.stem == SHORT else pytest.mark.slow) for page in PAGES],
)
def test_the_blocks_of_a_tutorial_run(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert any("zoo " in block for _, block in blocks(text))
    run_blocks(text, tmp_path)


@pytest.mark.planted
@pytest.mark.parametrize(
    ("wrong", "output"),
    [
        ("```bash\necho first\nfalse # wrong\necho last\n```", "Its output:\nfirst\n"),
        ("```python\n1 / 0 # wrong\n```", "ZeroDivisionError"),
    ],
)
def test_a_block_that_fails_is_named(wrong: str, output: str, tmp_path: Path) -> None:
    before = "```bash\ntouch before\n```\n\n```text\nnot run\n```\n\n```python\nopen('also', 'w')\n```\n\n"
    run_blocks(before, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"before", "also"}
    with pytest.raises(pytest.fail.Exception) as failure:
        run_blocks(f"{before}{wrong}\n\n```bash\ntouch after\n```\n", tmp_path)
    message = str(failure.value)
    assert "# wrong" in message and output in message and not message.endswith("last\n")
    assert not (tmp_path / "after").exists()


def cells(notebook: Any) -> list[tuple[str, str]]:
    """Return the language and the text of each cell of code of a notebook."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    shell = "%%bash\n"
    return [("bash", text.removeprefix(shell)) if text.startswith(shell) else ("python", text) for text in sources]


@pytest.mark.docs
def test_notebooks_have_the_blocks_of_the_tutorials_in_order(tmp_path: Path) -> None:
    import nbformat

    runpy.run_path(str(ROOT / "docs" / "notebooks.py"))["write"](tmp_path, REQUIREMENT)
    assert sorted(path.stem for path in tmp_path.iterdir()) == [page.stem for page in PAGES]
    for page in PAGES:
        notebook = nbformat.read(tmp_path / f"{page.stem}.ipynb", as_version=4)
        nbformat.validate(notebook)
        install, *others = cells(notebook)
        assert install == ("python", f'%pip install --quiet "{REQUIREMENT}"')
        text = page.read_text(encoding="utf-8")
        assert others == [(language, block.rstrip("\n")) for language, block in blocks(text)]
