"""A cache of plans: a plan is a function of its request, and compiling takes minutes."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

from benchmarks.core.source_paths import ROOT
from benchmarks.plan import compile_program, plan_record
from benchmarks.plan.compile_program import Mode
from benchmarks.plan.plan_record import Plan
from benchmarks.plan.target_devices import Target
from train import objectives
from train.config import run_config
from train.config.run_plugins import used_plugins
from train.run.run_dir import write_text
from zoo.attention import attention
from zoo.file_access import read_regular_text
from zoo.ops import tile_sizes
from zoo.runtime import caches, jax_setup

SOURCES = ("zoo", "train", "benchmarks/core", "benchmarks/flops", "benchmarks/hlo", "benchmarks/plan")
APART = ("name", "out", "checkpoint", "log", "machine", "selection", "seed", "max_skipped", "init")
"""Fields of a run that its step does not depend on."""
TRACED = (
    "flax",
    "optax",
    *(implementation.requires for implementation in attention.IMPLEMENTATIONS.values() if implementation.requires),
)
"""Libraries other than JAX that programs are built with."""


def cached_plan(run: run_config.Run, mode: Mode, target: Target, *, fresh: bool = False) -> Plan:
    """Return the plan of a run, from the cache folder if this code and these compilers made it before.

    Raises:
        BadInput: see `compile_program.compile_run`. A failure is not cached.
    """
    if not fresh and (before := stored_plan(run, mode, target)) is not None:
        return before
    computed = plan_record.make_plan(compile_program.compile_run(run, mode, target), run.recipe)
    if file := _file(run, mode, target):
        write_text(file, json.dumps(computed.plain()))
    return computed


def stored_plan(run: run_config.Run, mode: Mode, target: Target) -> Plan | None:
    """Return the plan of a run from the cache folder; None if this code and these compilers have not made it.

    Raises:
        BadInput: what the run names does not exist.
    """
    file = _file(run, mode, target)
    return None if file is None else _read(file)


def _file(run: run_config.Run, mode: Mode, target: Target) -> Path | None:
    # The code of a plug-in may change without a new version.
    folder = None if used_plugins(run) else caches.cache_folder("plans")
    return folder and folder / f"{plan_key(run, mode, target)}.json"


def plan_key(run: run_config.Run, mode: Mode, target: Target) -> str:
    """Return a digest of everything that a plan depends on.

    That is the run and what it names, the target, this code, its tables, a stored tuning of tiles, and the libraries and
    compilers with their settings; for CPU targets also this processor.

    Raises:
        BadInput: what the run names does not exist, or the file of the stored tuning is damaged.
    """
    numbers = {name: value for name, value in dataclasses.asdict(run).items() if name not in APART}
    frozen = objectives.objective(run.objective).frozen_config(run)
    others = None if frozen is None else [type(frozen).__module__, dataclasses.asdict(frozen)]
    versions = plan_record.compiler_versions(target.platform) | plan_record.installed_versions(TRACED)
    flags = {name: value for name, value in os.environ.items() if name in _FLAGS or name.startswith("JAX_")}
    here = jax_setup.processor_digest() if target.platform == "cpu" else ""
    tiles = tile_sizes.read_tuning(tile_sizes.stored_path(target.kind, target.platform))
    request = [type(run.model).__module__, run.objective, numbers, others, mode, dataclasses.asdict(target)]
    inputs = [*request, versions, flags, here, tiles]
    return hashlib.sha256(f"{_code()} {json.dumps(inputs, sort_keys=True, default=str)}".encode()).hexdigest()[:32]


_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


def _code() -> str:
    """Return the digest of the source code and the tables that plans depend on."""
    digest = hashlib.sha256()
    for file in sorted(file for folder in SOURCES for end in ("py", "json") for file in (ROOT / folder).rglob(f"*.{end}")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _read(file: Path) -> Plan | None:
    """Return the plan in a file; None if it is missing or incomplete."""
    try:
        return Plan.of(json.loads(read_regular_text(file)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
