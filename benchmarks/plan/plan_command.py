"""The command `zoo plan`: one plan or a search, from the request to the output."""

import dataclasses
import sys
from collections.abc import Collection
from pathlib import Path

from benchmarks.core import result_tables
from benchmarks.plan import plan_cache, plan_page, plan_text, target_devices
from benchmarks.plan.compile_program import Mode
from benchmarks.plan.plan_record import Plan
from benchmarks.plan.target_devices import Target
from train.config import mesh_sizes, run_config
from train.run.progress_display import ProgressBar
from train.run.run_dir import replace_atomically
from zoo.errors import BadInput
from zoo.json_text import print_json


def run_plan(
    run: run_config.Run, mode: Mode, target: Target, *, named: Collection[str], file: str, fresh: bool, as_json: bool
) -> int:
    """Plan a run for a target and print it; return the exit code.

    Args:
        named: axes of the mesh that the user chose; the others are fitted to the devices, which a notice and a warning say.
        file: path of an HTML page to write; "" for none.

    Raises:
        BadInput: see `mesh_sizes.fit_mesh` and `compile_program.compile_run`; the page cannot be written.
    """
    run, notice = mesh_sizes.fit_mesh(run, len(target_devices.devices_of_target(target)), named)
    if notice:
        print(f"! {notice}", file=sys.stderr)
    with ProgressBar(f"compiling for {target.name}", timed=True, quiet=as_json):
        planned = plan_cache.cached_plan(run, mode, target, fresh=fresh)
    planned = dataclasses.replace(planned, warnings=[*([notice] if notice else []), *planned.warnings])
    if file:
        _write(Path(file), planned)
    if as_json:
        print_json(planned.plain())
    else:
        result_tables.print_blocks(plan_page.plan_blocks(planned))
    return 0


def run_mesh_search(
    run: run_config.Run,
    mode: Mode,
    target: Target,
    *,
    named: Collection[str],
    minutes: float,
    top: int,
    fresh: bool,
    as_json: bool,
) -> int:
    """Search for the best mesh that has the axes that the user named, and print the result; return the exit code.

    Raises:
        BadInput: no candidate that was tried fits.
    """
    from benchmarks.plan import mesh_search

    result = mesh_search.search_meshes(run, mode, target, named=named, seconds=60 * minutes, fresh=fresh)
    if as_json:
        print_json([entry.plain() for entry in result.ranked[:top]])
    else:
        result_tables.print_blocks(plan_text.search_blocks(result, top))
    return 0


def _write(file: Path, planned: Plan) -> None:
    try:
        with replace_atomically(file) as stream:
            stream.write(plan_page.render_plan(planned).encode())
    except OSError as error:
        raise BadInput(f"--page {file}: cannot be written ({error.strerror}); name a file in an existing folder") from None
