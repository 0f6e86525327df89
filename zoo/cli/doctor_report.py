"""Report of `zoo doctor`: facts about this machine and this installation, and the problems report."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo import plugins
from zoo.errors import BadInput, printable
from zoo.json_text import print_json
from zoo.runtime import caches, hardware, jax_setup

PACKAGES = ("zoo", "train", "eval", "benchmarks")
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about the machine and the installation. Sizes are in bytes."""

    versions: dict[str, str]
    platform: str
    """JAX's default platform: cpu, gpu or tpu."""
    devices: tuple[str, ...]
    """The kind of each local device."""
    slices: int
    """Number of slices that the devices are in."""
    device_memory: int | None
    """Memory of one device; None if the platform does not report it."""
    host_memory: int
    cpus: int
    xla_flags: str
    cache: Path
    cache_size: int
    tiles: str
    """Which sizes of tiles the kernels of attention have."""
    canary: float | None
    """Relative error of the numerical self-test, NaN if it failed; None on a platform other than CPU."""
    packages: dict[str, Path | None]
    """Folder of each package of this project; None = not report."""
    problems: tuple[str, ...]
    """One line for each problem that must be fixed before numbers from this machine can be trusted."""


def print_doctor_report(
    attention: Sequence[tuple[str, bool, str]],
    auto: str,
    reasons: Sequence[tuple[str, str, str]],
    wrong: Sequence[str],
    logits: str = "",
    *,
    as_json: bool = False,
) -> int:
    """Print the report, as tables or as JSON, and return the exit code: 0, or 1 if there is a problem.

    Args:
        attention: rows (implementation, usable here, reason if not).
        auto: the implementations that "auto" selects.
        reasons: rows (implementation, requests that "auto" selects it for, why).
        wrong: a line for each implementation that computes wrong numbers here.
        logits: what `--loss-chunk auto` does; "": left out.
    """
    report = collect_facts()
    report = dataclasses.replace(report, problems=(*report.problems, *wrong))
    if as_json:
        print_json(doctor_record(report, attention, auto, reasons, logits))
    else:
        print_facts(report, attention, auto, reasons, logits)
    return 1 if report.problems else 0


def collect_facts() -> Facts:
    """Collect the facts in this process, after `jax_setup.prepare_jax`."""
    import jax

    from zoo.ops import tile_sizes

    error, problems = None, []
    try:
        error = jax_setup.check_cpu_compiler()
    except BadInput as failure:
        error = float("nan")
        problems.append(str(failure))
    packages = {name: _folder(name) for name in PACKAGES}
    if len(set(packages.values())) > 1:
        problems.append(f"the packages {', '.join(PACKAGES)} come from different folders; rename the other `train` or `eval`")
    try:
        tiles = tile_sizes.describe_tuning()
    except BadInput as failure:
        tiles = "the file of the stored tuning is damaged"
        problems.append(str(failure))
    devices = jax.local_devices()
    cache = caches.cache_dir()
    return Facts(
        versions={"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in LIBRARIES}},
        platform=jax.default_backend(),
        devices=tuple(device.device_kind for device in devices),
        slices=len({hardware.slice_number(device) for device in jax.devices()}),
        device_memory=(devices[0].memory_stats() or {}).get("bytes_limit"),
        host_memory=hardware.host_memory(),
        cpus=os.cpu_count() or 0,
        xla_flags=os.environ.get("XLA_FLAGS", ""),
        cache=cache,
        cache_size=sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()),
        tiles=tiles,
        canary=error,
        packages=packages,
        problems=tuple(problems),
    )


def doctor_record(
    report: Facts, attention: Sequence[tuple[str, bool, str]], auto: str, reasons: Sequence[tuple[str, str, str]], logits: str
) -> dict[str, Any]:
    """Return the facts, the attention implementations and the plug-ins as JSON; the sizes are in bytes."""
    return {
        **dataclasses.asdict(report),
        "logits": logits,
        "attention": [{"implementation": name, "usable": usable, "why_not": why} for name, usable, why in attention],
        "auto": auto,
        "auto_reasons": [{"implementation": name, "for": requests, "why": why} for name, requests, why in reasons],
        "plugins": [{"name": plugin.name, "kind": plugins.GROUPS[plugin.group], "from": plugin.origin} for plugin in _plugins()],
    }


def print_facts(
    report: Facts,
    attention: Sequence[tuple[str, bool, str]],
    auto: str,
    reasons: Sequence[tuple[str, str, str]] = (),
    logits: str = "",
) -> None:
    """Print the facts and the attention implementations as tables."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    memory = "not reported by this platform" if report.device_memory is None else _size(report.device_memory)
    slices = f" in {report.slices} slices" if report.slices > 1 else ""
    self_test = "not needed on this platform" if report.canary is None else f"relative error {report.canary:.1e} against float64"
    rows = [
        ("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
        ("devices", f"{len(report.devices)} x {', '.join(sorted(set(report.devices)))} ({report.platform}){slices}"),
        ("device memory", memory),
        ("host", f"{report.cpus} processors, {_size(report.host_memory)}"),
        ("XLA_FLAGS", report.xla_flags),
        ("cache", f"{report.cache} ({_size(report.cache_size)})"),
        ("tiles", report.tiles),
        ("canary", self_test),
        ("packages", ", ".join(sorted({str(folder) for folder in report.packages.values()}))),
        *([("logits", logits)] if logits else []),
    ]
    console = Console(highlight=False)
    facts_table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in rows:
        facts_table.add_row(f"[bold]{name}", escape(printable(value)))
    console.print(facts_table)
    if attention:
        table = Table("attention", "here", "why not", box=None, padding=(0, 2, 0, 0))
        for name, usable, why in attention:
            table.add_row(escape(printable(name)), "[green]yes" if usable else "[red]no", escape(printable(why)))
        table.add_row("auto", "", escape(printable(auto)))
        console.print()
        console.print(table)
    if reasons:
        table = Table("auto", "for", "why", box=None, padding=(0, 2, 0, 0))
        for row in reasons:
            table.add_row(*(escape(printable(text)) for text in row))
        console.print()
        console.print(table)
    if entries := _plugins():
        table = Table("plug-in", "kind", "from", box=None, padding=(0, 2, 0, 0))
        for plugin in entries:
            table.add_row(escape(printable(plugin.name)), plugins.GROUPS[plugin.group], escape(printable(plugin.origin)))
        console.print()
        console.print(table)
    for problem in report.problems:
        console.print(f"[bold red]problem[/]: {escape(printable(problem))}")


def _plugins() -> list[plugins.Plugin]:
    return [plugin for group in plugins.GROUPS for plugin in plugins.installed_plugins(group)]


def _folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent.parent if spec and spec.origin else None


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
