"""Plans as a terminal shows them."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.plan.plan_record import Plan

if TYPE_CHECKING:
    from benchmarks.plan.mesh_search import Found

NARROWEST = 100
"""Columns that tables need: a narrower terminal wraps lines, but no number is cut."""
BAR = 28
"""Columns of the whole of a device's memory."""


def plan(found: Plan) -> str:
    """A plan in full, styled if stdout is a terminal."""
    return _captured(lambda console: _plan(console, found))


def search(found: "Found", top: int) -> str:
    """The best `top` of a search, and how much of it there was."""
    return _captured(lambda console: _search(console, found, top))


def headline(found: Plan) -> str:
    """What was planned, in a line."""
    return f"{found.name}, {found.mode}, for {found.devices} x {found.kind} ({found.target})"


def given(found: Plan) -> dict[str, str]:
    """What a plan was made of, by name."""
    micro = f" in {found.accumulate} micro-batches" if found.accumulate > 1 else ""
    rows = f"{found.batch:,} rows of {found.length:,} tokens{micro}"
    return {
        "model": f"{found.parameters:,} parameters, {found.precision}, remat {found.remat}",
        "attention": ", ".join(found.attention) or "none",
        "step": f"{found.batch:,} tokens, each behind {found.length:,} others" if found.mode == "decode" else rows,
        "mesh": axes(found.mesh),
    }


def axes(mesh: dict[str, int]) -> str:
    """A mesh without its axes of one device."""
    return " x ".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1) or "one device"


def held(found: Plan) -> dict[str, int]:
    """Bytes of a device by what holds them; together they are the total."""
    parts = {**found.memory, "temporaries": found.temporaries}
    # Arrays are laid out in tiles, and the program itself takes some memory.
    rest = found.total - sum(parts.values())
    return {**parts, "tiles and program": rest} if rest > 0 else parts


def verdict(found: Plan) -> str:
    """Whether it fits, in words."""
    if found.device_memory is None:
        return "no limit is published"
    return f"of {binary(found.device_memory)}: {'fits' if found.fits else 'does not fit'}"


def judged(found: Plan) -> str:
    """The bound on MFU in a sentence; that by memory is an estimate."""
    if found.products is None:
        return "The compiler gave up for want of memory, so there is no program to judge."
    share = ""
    if compiled := found.products + (found.kernels or 0):
        share = f" The model's own FLOPs are {found.model_flops / found.devices / compiled:.0%} of those compiled."
    if found.bound is None:
        return f"No rates are published for {found.kind} in {found.precision}, so MFU has no bound here.{share}"
    return f"MFU is {worth(found)}, bound by {found.times.slowest}, if all three go on at once.{share}"


def worth(found: Plan) -> str:
    """The bound as what it is: no run exceeds what compute and links allow, and one that finds arrays in a cache the memory's."""
    if found.bound is None:
        return "not bound"
    return f"about {found.bound:.1%}, nothing being cached" if found.times.slowest == "memory" else f"{found.bound:.1%} at most"


def warnings(found: Plan) -> list[str]:
    """All that a plan warns of, a line each."""
    return [*found.warnings, *(f"the FLOPs of {name} are not counted" for name in found.unknown)]


def rates(found: Plan) -> list[tuple[str, str, str]]:
    """(what, how much a device does in a step, seconds that takes) of compute, memory and interconnect."""
    if found.products is None or found.bytes is None:
        return []
    kernels = f", {decimal(found.kernels)}FLOP of it in kernels" if found.kernels else ""
    amounts = {
        "compute": f"{decimal(found.products + (found.kernels or 0))}FLOP{kernels}",
        "memory": f"{decimal(found.bytes)}B",
        "interconnect": f"{decimal(sum(row.sent for row in found.collectives))}B",
    }
    seconds = {name: getattr(found.times, name) for name in amounts}
    sure = {"compute": "at least ", "memory": "about ", "interconnect": "at least "}
    told = {name: _seconds(value) if value is None else sure[name] + _seconds(value) for name, value in seconds.items()}
    return [(name, amount, told[name]) for name, amount in amounts.items()]


def binary(count: int | float) -> str:
    """Bytes in the powers of 1,024 that memory is sold in."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:,.1f} {unit}" if count < 100 * size else f"{count / size:,.0f} {unit}"
    return f"{count:,.0f} B"


def decimal(count: int | float) -> str:
    """A number with the prefix of its unit."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.3g} "


def _plan(console: Console, found: Plan) -> None:
    console.print(headline(found), style="bold")
    console.print(_pairs(given(found).items()))
    console.print(f"\nmemory of a device, {verdict(found)}", style="bold")
    memory = _table("", "", "")
    whole = max(found.device_memory or 0, found.total)
    for name, size in {**held(found), "total": found.total}.items():
        memory.add_row(name, binary(size), Text("█" * round(BAR * size / whole), style="dim"))
    console.print(memory)
    if table := rates(found):
        console.print("\na step of a device, at the published rates", style="bold")
        steps = _table("", "", "", words=(1,))
        for name, amount, seconds in table:
            steps.add_row(name, seconds, Text(amount, style="dim"))
        console.print(steps)
    console.print(judged(found), soft_wrap=True)
    if found.collectives:
        console.print("\nsent in a step", style="bold")
        rows = _table("", "axes", "devices", "count", "arrays", "a device sends", words=(1,))
        for row in found.collectives:
            numbers = (f"{row.members:,}", f"{row.count:,.0f}", f"{decimal(row.bytes)}B", f"{decimal(row.sent)}B")
            rows.add_row(row.kind, row.axes, *numbers)
        console.print(rows)
    if lines := warnings(found):
        console.print()
    for line in lines:
        console.print(Text.assemble(("warning ", "bold"), line), soft_wrap=True)
    console.print(f"\n{made(found)}", style="dim", soft_wrap=True)


def made(found: Plan) -> str:
    """How long it took and what compiled it."""
    by = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    return f"traced and compiled in {found.seconds:.1f} s by {by}"


def _search(console: Console, found: "Found", top: int) -> None:
    shown = found.ranked[:top]
    if shown:
        console.print(f"{headline(shown[0])}: the best of {len(found.ranked)} that fit", style="bold")
    table = _table("mesh", "remat", "micro", "holds", "compute", "memory", "interconnect", "MFU bound", words=(1,))
    for each in shown:
        times = [_seconds(value) for value in (each.times.compute, each.times.memory, each.times.interconnect)]
        bound = "" if each.bound is None else f"{each.bound:.1%}"
        table.add_row(axes(each.mesh), each.remat, str(each.accumulate), binary(each.total), *times, bound)
    console.print(table)
    console.print(f"\n{found.told}", style="dim", soft_wrap=True)


def _seconds(value: float | None) -> str:
    if value is None:
        return "not published"
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def _pairs(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for row in rows:
        table.add_row(*row)
    return table


def _table(*heads: str, words: tuple[int, ...] = ()) -> Table:
    """Columns under heads, if they have any: the first one and `words` are words, the others numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=any(heads), header_style="dim")
    for place, head in enumerate(heads):
        last = place == len(heads) - 1 and not head
        table.add_column(head, justify="left" if place == 0 or place in words or last else "right", no_wrap=not last)
    return table


def _captured(show: Callable[[Console], None]) -> str:
    console = Console(highlight=False, emoji=False, markup=False)
    console.width = max(console.width, NARROWEST)
    with console.capture() as text:
        show(console)
    # Nobody who pipes wants the blanks that fill up a column.
    return "".join(f"{line.rstrip()}\n" for line in text.get().splitlines())
