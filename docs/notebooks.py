"""Write the tutorials as notebooks, which Jupyter, Colab and Kaggle open.

`python docs/notebooks.py FOLDER REQUIREMENT` makes FOLDER/PAGE.ipynb of each docs/tutorials/PAGE.md with jupytext (dependency
group `docs`). A notebook begins with one cell that installs REQUIREMENT, as pip reads it: the address or file of a wheel, or
`transformer-zoo` where a package index has it. Shell blocks become cells with `%%bash`, Python blocks cells of code.
"""

import re
import sys
from pathlib import Path

import jupytext
import nbformat

TUTORIALS = Path(__file__).parent / "tutorials"
HEADER = "---\njupyter:\n  kernelspec:\n    display_name: Python 3\n    language: python\n    name: python3\n---\n\n"
"""The language of the notebooks, which jupytext otherwise takes from the first block."""


def write(folder: Path, requirement: str) -> None:
    """Write a notebook of each tutorial into `folder`, whose first cell installs `requirement`."""
    folder.mkdir(parents=True, exist_ok=True)
    for page in sorted(TUTORIALS.glob("*.md")):
        # Notebooks lie elsewhere than the pages that they refer to: links within the documentation become text.
        text = re.sub(r"\[([^\]]+)\]\((?!\w+://)[^)]+\)", r"\1", page.read_text(encoding="utf-8"))
        notebook = jupytext.reads(HEADER + text, fmt="md")
        install = nbformat.v4.new_code_cell(f'%pip install --quiet "{requirement}"')
        notebook.cells.insert(0, install)
        nbformat.write(notebook, folder / f"{page.stem}.ipynb")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python docs/notebooks.py FOLDER REQUIREMENT")
    write(Path(sys.argv[1]), sys.argv[2])
