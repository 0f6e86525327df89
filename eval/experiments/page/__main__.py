"""Write the pages of experiments again from experiment.json alone: `python -m eval.experiments.page FOLDER...`.

A folder needs no runs. If it has an interpretation.md, the text is copied into experiment.json.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from eval.experiments.collect_results import INTERPRETATION, JSON, read_interpretation, write_pages
from train.run.run_dir import write_json
from zoo.errors import BadInput
from zoo.json_shapes import read_shaped_json
from zoo.runtime import stdio

SHAPE = {"name": str, "registration": {str: object}, "cells": [{str: object}], "claims": [{str: object}]}


def render_folder(folder: Path) -> None:
    """Write the pages of one folder.

    Raises:
        BadInput: experiment.json is absent or damaged, or interpretation.md cannot be read.
    """
    result = read_shaped_json(folder / JSON, SHAPE, "restore it")
    if result is None:
        raise BadInput(f"{folder}: has no {JSON}; name the folder of an experiment")
    if (folder / INTERPRETATION).exists():
        result["interpretation"] = read_interpretation(folder)
        write_json(folder / JSON, result)
    write_pages(result, folder)


def main(argv: Sequence[str]) -> int:
    """Write the pages of the folders and return the exit code."""
    if not argv:
        stdio.write_error("name folders with experiment.json: python -m eval.experiments.page FOLDER...")
        return 2
    try:
        for name in argv:
            render_folder(Path(name))
    except (BadInput, OSError) as error:
        stdio.write_error(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
