"""Plans as text for a terminal."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.plan.plan_record import Plan

if TYPE_CHECKING:
    from benchmarks.plan.mesh_search import SearchResult

NARROWEST = 100
"""Minimum width of tables in columns: a narrower terminal wraps lines, but no number is cut."""
BAR = 28
"""Columns of the bar for a device's full memory."""


def plan_text(plan: Plan) -> str:
    """Return a plan in full, styled if stdout is a terminal."""
    return _captured(lambda console: _plan(console, plan))


def search_text(result: "SearchResult", top: int) -> str:
    """Return the best `top` plans of a search, and how much of it was done."""
    return _captured(lambda console: _search(console, result, top))


def headline(plan: Plan) -> str:
    """Return the planned run and its devices in a line."""
    return f"{plan.name}, {plan.mode}, for {plan.devices} x {plan.kind} ({plan.target})"


def inputs(plan: Plan) -> dict[str, str]:
    """Return the inputs of a plan, by name."""
    micro = f" in {plan.accumulate} micro-batches" if plan.accumulate > 1 else ""
    rows = f"{plan.batch:,} rows of {plan.length:,} tokens{micro}"
    return {
        "model": f"{plan.parameters:,} parameters, {plan.precision}, remat {plan.remat}",
        "attention": ", ".join(plan.attention) or "none",
        "step": f"{plan.batch:,} tokens, each behind {plan.length:,} others" if plan.mode == "decode" else rows,
        "mesh": axes(plan.mesh),
    }


def axes(mesh: dict[str, int]) -> str:
    """Return a mesh without its axes of one device."""
    return " x ".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1) or "one device"


def memory_parts(plan: Plan) -> dict[str, int]:
    """Return the bytes on a device by their use; together they are the total."""
    parts = {**plan.memory, "temporaries": plan.temporaries}
    # Arrays are padded to tiles, and the program itself needs some memory.
    rest = plan.total - sum(parts.values())
    return {**parts, "tiles and program": rest} if rest > 0 else parts


def verdict(plan: Plan) -> str:
    """Return whether it fits, in words."""
    if plan.device_memory is None:
        return "no limit is published"
    return f"of {binary(plan.device_memory)}: {'fits' if plan.fits else 'does not fit'}"


def bound_sentence(plan: Plan) -> str:
    """Return the bound on MFU in a sentence; a bound by memory is an estimate."""
    if plan.products is None:
        return "The compiler ran out of device memory, so there is no program whose time could be bounded."
    share = ""
    if compiled := plan.products + (plan.kernels or 0):
        share = f" The model's own FLOPs are {plan.model_flops / plan.devices / compiled:.0%} of those compiled."
    if plan.bound is None:
        return f"No rates are published for {plan.kind} in {plan.precision}, so MFU has no bound here.{share}"
    return f"MFU is {bound_text(plan)}, bound by {plan.times.slowest}, if all three go on at once.{share}"


def bound_text(plan: Plan) -> str:
    """Return the bound on MFU: an upper bound by compute or links, or an estimate by memory, which a cache may exceed."""
    if plan.bound is None:
        return "not bound"
    return f"about {plan.bound:.1%}, nothing being cached" if plan.times.slowest == "memory" else f"{plan.bound:.1%} at most"


def warnings(plan: Plan) -> list[str]:
    """Return all warnings of a plan, one in a line."""
    return [*plan.warnings, *(f"the FLOPs of {name} are not counted" for name in plan.unknown)]


def rates(plan: Plan) -> list[tuple[str, str, str]]:
    """Return (name, amount per device and step, seconds) of compute, memory and interconnect."""
    if plan.products is None or plan.bytes is None:
        return []
    kernels = f", {decimal(plan.kernels)}FLOP of it in kernels" if plan.kernels else ""
    amounts = {
        "compute": f"{decimal(plan.products + (plan.kernels or 0))}FLOP{kernels}",
        "memory": f"{decimal(plan.bytes)}B",
        "interconnect": f"{decimal(sum(row.bytes_sent for row in plan.collectives))}B",
    }
    seconds = {name: getattr(plan.times, name) for name in amounts}
    sure = {"compute": "at least ", "memory": "about ", "interconnect": "at least "}
    times = {name: _seconds(value) if value is None else sure[name] + _seconds(value) for name, value in seconds.items()}
    return [(name, amount, times[name]) for name, amount in amounts.items()]


def binary(count: int | float) -> str:
    """Return bytes in powers of 1,024, the units of memory sizes."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:,.1f} {unit}" if count < 100 * size else f"{count / size:,.0f} {unit}"
    return f"{count:,.0f} B"


def decimal(count: int | float) -> str:
    """Return a number with a decimal prefix for its unit."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.3g} "


def _plan(console: Console, plan: Plan) -> None:
    console.print(headline(plan), style="bold")
    console.print(_pairs(inputs(plan).items()))
    console.print(f"\nmemory of a device, {verdict(plan)}", style="bold")
    memory = _table("", "", "")
    capacity = max(plan.device_memory or 0, plan.total)
    for name, size in {**memory_parts(plan), "total": plan.total}.items():
        memory.add_row(name, binary(size), Text("█" * round(BAR * size / capacity), style="dim"))
    console.print(memory)
    if table := rates(plan):
        console.print("\na step of a device, at the published rates", style="bold")
        steps = _table("", "", "", words=(1,))
        for name, amount, seconds in table:
            steps.add_row(name, seconds, Text(amount, style="dim"))
        console.print(steps)
    console.print(bound_sentence(plan), soft_wrap=True)
    if plan.collectives:
        console.print("\nsent in a step", style="bold")
        rows = _table("", "axes", "devices", "count", "arrays", "a device sends", words=(1,))
        for row in plan.collectives:
            numbers = (f"{row.members:,}", f"{row.count:,.0f}", f"{decimal(row.bytes)}B", f"{decimal(row.bytes_sent)}B")
            rows.add_row(row.kind, row.axes, *numbers)
        console.print(rows)
    if lines := warnings(plan):
        console.print()
    for line in lines:
        console.print(Text.assemble(("warning ", "bold"), line), soft_wrap=True)
    console.print(f"\n{provenance(plan)}", style="dim", soft_wrap=True)


def provenance(plan: Plan) -> str:
    """Return the time of the compilation and the compiler's versions."""
    by = ", ".join(f"{name} {version}" for name, version in plan.versions.items())
    return f"traced and compiled in {plan.seconds:.1f} s by {by}"


def _search(console: Console, result: "SearchResult", top: int) -> None:
    best = result.ranked[:top]
    if best:
        console.print(f"{headline(best[0])}: the best of {len(result.ranked)} that fit", style="bold")
    table = _table("mesh", "remat", "micro", "holds", "compute", "memory", "interconnect", "MFU bound", words=(1,))
    for plan in best:
        times = [_seconds(value) for value in (plan.times.compute, plan.times.memory, plan.times.interconnect)]
        bound = "" if plan.bound is None else f"{plan.bound:.1%}"
        table.add_row(axes(plan.mesh), plan.remat, str(plan.accumulate), binary(plan.total), *times, bound)
    console.print(table)
    console.print(f"\n{result.summary}", style="dim", soft_wrap=True)


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
    """Return a table with these heads, if any is not empty; the first column and `words` are text, the others numbers."""
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
    # Trailing blanks that fill up columns are removed.
    return "".join(f"{line.rstrip()}\n" for line in text.get().splitlines())
