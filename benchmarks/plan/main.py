"""`zoo plan`: one plan, or a search, from what was asked for to what is shown."""

import json
import sys
from pathlib import Path

from benchmarks.plan import cache, page, text_view
from benchmarks.plan.compile_program import Mode
from benchmarks.plan.plan_record import Plan
from benchmarks.plan.targets import Target
from train.config import run_config
from train.run.run_dir import replacing
from zoo.errors import BadInput


def plan(run: run_config.Run, mode: Mode, target: Target, *, file: str, fresh: bool, as_json: bool) -> int:
    """Plan a run for a target and show it; returns the exit code.

    Args:
        file: a page to write, if any.

    Raises:
        BadInput: see `program.compiled`; a page that cannot be written.
    """
    planned = cache.plan(run, mode, target, fresh=fresh)
    if file:
        _write(Path(file), planned)
    print(json.dumps(planned.plain(), indent=2) if as_json else text_view.plan(planned), end="\n" if as_json else "")
    return 0


def search(run: run_config.Run, mode: Mode, target: Target, *, minutes: float, top: int, fresh: bool, as_json: bool) -> int:
    """Search for the best mesh and show what was found; returns the exit code.

    Raises:
        BadInput: nothing that was tried fits.
    """
    from benchmarks.plan import mesh_search

    result = mesh_search.search(run, mode, target, seconds=60 * minutes, fresh=fresh, tell=_told())
    if as_json:
        print(json.dumps([entry.plain() for entry in result.ranked[:top]], indent=2))
    else:
        print(text_view.search(result, top), end="")
    return 0


def _write(file: Path, planned: Plan) -> None:
    try:
        with replacing(file) as stream:
            stream.write(page.page(planned).encode())
    except OSError as error:
        raise BadInput(f"--page {file}: cannot be written ({error.strerror}); name a file in a folder that is there") from None


def _told():
    """Writes a line of progress to stderr, in place on a terminal."""

    def tell(line: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line}", end="" if line else "\n", file=sys.stderr, flush=True)
        elif line:
            print(line, file=sys.stderr, flush=True)

    return tell
