"""`zoo doctor`: what this machine and this installation are, and whether they can be trusted."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from zoo.errors import BadInput
from zoo.runtime import jax_setup

PACKAGES = ("zoo", "train", "eval", "benchmarks")
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What `facts` found. Sizes are in bytes."""

    versions: dict[str, str]
    platform: str
    """JAX's default platform: cpu, gpu or tpu."""
    devices: tuple[str, ...]
    """The kind of each local device."""
    device_memory: int | None
    """Of one device; None where the platform does not tell."""
    host_memory: int
    cpus: int
    xla_flags: str
    cache: Path
    cache_size: int
    canary: float | None
    """Relative error of the wrong-results program, NaN where it is refused; None on a platform other than CPU."""
    packages: dict[str, Path | None]
    """The folder that each of our packages comes from; None: not found."""
    problems: tuple[str, ...]
    """One line for each thing that must be mended before a number from here is believed."""


def doctor(attention: Sequence[tuple[str, bool, str]], auto: str) -> int:
    """Print what was found; returns 0, or 1 on a problem.

    Args:
        attention: (implementation, usable here, why not) rows.
        auto: what is chosen among them where nothing is said.
    """
    found = facts()
    show(found, attention, auto)
    return 1 if found.problems else 0


def facts() -> Facts:
    """Look at this process, after `runtime.prepare`."""
    import jax

    error, problems = None, []
    try:
        error = jax_setup.canary()
    except BadInput as wrong:
        error = float("nan")
        problems.append(str(wrong))
    packages = {name: _folder(name) for name in PACKAGES}
    if len(set(packages.values())) > 1:
        problems.append(f"the packages {', '.join(PACKAGES)} come from different places: another `train` or `eval` is in the way")
    devices = jax.local_devices()
    cache = jax_setup.cache_dir()
    return Facts(
        versions={"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in LIBRARIES}},
        platform=jax.default_backend(),
        devices=tuple(device.device_kind for device in devices),
        device_memory=(devices[0].memory_stats() or {}).get("bytes_limit"),
        host_memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        cpus=os.cpu_count() or 0,
        xla_flags=os.environ.get("XLA_FLAGS", ""),
        cache=cache,
        cache_size=sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()),
        canary=error,
        packages=packages,
        problems=tuple(problems),
    )


def show(found: Facts, attention: Sequence[tuple[str, bool, str]], auto: str) -> None:
    """Print the facts and the attention implementations as tables."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    memory = "not told by this platform" if found.device_memory is None else _size(found.device_memory)
    sound = "not needed on this platform" if found.canary is None else f"relative error {found.canary:.1e} against float64"
    rows = [
        ("versions", ", ".join(f"{name} {version}" for name, version in found.versions.items())),
        ("devices", f"{len(found.devices)} x {', '.join(sorted(set(found.devices)))} ({found.platform})"),
        ("device memory", memory),
        ("host", f"{found.cpus} processors, {_size(found.host_memory)}"),
        ("XLA_FLAGS", found.xla_flags),
        ("cache", f"{found.cache} ({_size(found.cache_size)})"),
        ("canary", sound),
        ("packages", ", ".join(sorted({str(folder) for folder in found.packages.values()}))),
    ]
    console = Console(highlight=False)
    facts_table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in rows:
        facts_table.add_row(f"[bold]{name}", escape(value))
    console.print(facts_table)
    if attention:
        table = Table("attention", "here", "why not", box=None, padding=(0, 2, 0, 0))
        for name, usable, why in attention:
            table.add_row(escape(name), "[green]yes" if usable else "[red]no", escape(why))
        table.add_row("auto", "", escape(auto))
        console.print()
        console.print(table)
    for problem in found.problems:
        console.print(f"[bold red]problem[/]: {escape(problem)}")


def _folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent.parent if spec and spec.origin else None


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
