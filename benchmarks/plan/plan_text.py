"""Sentences and tables of a plan, which `plan_page` puts together."""

import re

from benchmarks.core.result_tables import Block, Heading
from benchmarks.plan.plan_record import Plan, SearchResult
from benchmarks.plan.target_devices import parse_target
from eval.pages.html_page import Table

TIMES = {
    "compute": "compute",
    "memory": "memory",
    "interconnect": "interconnect",
    "between_slices": "between slices",
    "host": "host",
}
"""Times of a step, and what tables call them."""
BAR = 28
"""Columns of the bar for a device's full memory on a terminal."""
SURROUNDINGS = {"jvp()", "closed_call", "shard_map", "while", "body", "checkpoint", "rematted_computation"}
"""Parts of the JAX name of an operation that say nothing about what it computes."""
ROLLOUT_NOTE = "Prompts have the most tokens that fit. Reward models and the temporaries of a rollout are left out."
"""Explanation of the table of a rollout."""


def search_blocks(result: SearchResult, top: int) -> list[Block]:
    """Return the best `top` plans of a search, and how much of it was done."""
    best = result.ranked[:top]
    optional = {
        "between_slices": any(plan.slice_count > 1 for plan in best),
        "host": any(plan.to_host for plan in best),
        "optimizer": any(plan.optimizer for plan in best),
    }
    names = [name for name in TIMES if optional.get(name, True)]
    rows = []
    for plan in best:
        times = {name: _seconds(getattr(plan.times, name)) for name in names}
        if plan.times.between_slices is None:
            times["between_slices"] = f"{format_decimal(bytes_sent(plan, between_slices=True))}B"
        bound = "" if plan.bound is None else f"{plan.bound:.1%}"
        policies = (plan.remat, *([plan.optimizer] if optional["optimizer"] else []), str(plan.accumulate))
        rows.append((mesh_text(plan.mesh), *policies, format_bytes(plan.total), *times.values(), bound))
    policies = ("remat", *(["optimizer"] if optional["optimizer"] else []), "micro")
    head = ("mesh", *policies, "holds", *(TIMES[name] for name in names), "MFU bound")
    title = [Heading(f"{plan_headline(plan)}: the best of {len(result.ranked)} that fit") for plan in best[:1]]
    links = {"between_slices": "the network between slices", "host": "the link to the memory of the host"}
    unknown = [link for name, link in links.items() if any(getattr(plan.times, name) is None for plan in best)]
    bounded = any(plan.bound is not None for plan in best)
    notes = [f"No rate of {link} is published: the bounds leave it out." for link in unknown if bounded]
    return [*title, Table(head, rows, words=2), *notes, result.summary]


def plan_headline(plan: Plan) -> str:
    """Return the planned run and its devices in a line."""
    return f"{plan.name}, {plan.mode}, for {plan.devices} x {plan.kind} ({plan.target})"


def plan_inputs(plan: Plan) -> dict[str, str]:
    """Return the inputs of a plan, by name."""
    micro = f" in {plan.accumulate} micro-batches" if plan.accumulate > 1 else ""
    rows = f"{plan.batch:,} rows of {plan.length:,} tokens{micro}"
    return {
        "model": f"{plan.parameters:,} parameters, {plan.precision}, remat {plan.remat}",
        **({"optimizer": plan.optimizer} if plan.optimizer else {}),
        "attention": ", ".join(plan.attention) or "none",
        **({"experts": ", ".join(plan.experts)} if plan.experts else {}),
        **({"logits": plan.logits} if plan.logits else {}),
        **({"teacher": f"stored, {plan.stored:,} bytes on disk for each training row"} if plan.stored else {}),
        "step": f"{plan.batch:,} tokens, each after {plan.length:,} others" if plan.mode == "decode" else rows,
        "mesh": mesh_text(plan.mesh),
        **({"slices": f"{plan.slice_count}, over {mesh_text(plan.slices)}"} if plan.slice_count > 1 else {}),
    }


def mesh_text(mesh: dict[str, int]) -> str:
    """Return the axes of a mesh that have more than one device as text, such as "data=4 x tensor=2"."""
    return " x ".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1) or "one device"


def memory_parts(plan: Plan) -> dict[str, int]:
    """Return the bytes on a device by their use; together they are the total."""
    parts = {**plan.memory, "temporaries": plan.temporaries}
    # Arrays are padded to tiles, and the program itself needs some memory.
    rest = plan.total - sum(parts.values())
    return {**parts, "tiles and program": rest} if rest > 0 else parts


def plan_verdict(plan: Plan) -> str:
    """Return whether it fits, in words."""
    if plan.device_memory is None:
        return "no limit is published"
    return f"of {format_bytes(plan.device_memory)}: {'fits' if plan.fits else 'does not fit'}"


def excess_sentence(plan: Plan) -> str:
    """Return which parts of a plan that does not fit need the most memory; "" if it fits or no limit is published."""
    if plan.fits or plan.device_memory is None:
        return ""
    parts = rollout_parts(plan) if plan.rollout_total > plan.total else memory_parts(plan)
    name, size = max(parts.items(), key=lambda part: part[1])
    largest = f"The largest part is {name}, {format_bytes(size)}{', more than a device has' * (size > plan.device_memory)}"
    gradient = f"; {format_bytes(plan.gradient)} of the temporaries are a gradient of the parameters" if plan.gradient else ""
    return f" {format_bytes(plan.largest - plan.device_memory)} are missing. {largest}{gradient}."


def large_table(plan: Plan) -> Table:
    """Return the table of the largest temporaries of a plan that does not fit."""
    rows = []
    for row in plan.large:
        # Copies of arguments have their Python names.
        names = re.findall(r"\['(\w+)", row.operation.replace("\\", "")) or row.operation.split("/")
        names = [name for name in names if name not in SURROUNDINGS and not name.startswith("jit(")]
        count = f"{row.count} x " if row.count > 1 else ""
        rows.append(
            (
                "/".join(names) or row.operation.rpartition("/")[2],
                row.source,
                count + row.shape,
                format_bytes(row.bytes * row.count),
            )
        )
    return Table(("made by", "at", "arrays", "bytes"), rows, words=3)


def bound_sentence(plan: Plan) -> str:
    """Return the bound on MFU in a sentence; a bound by memory is an estimate."""
    if plan.products is None:
        least = "" if plan.times.compute is None else f" Its FLOPs alone, as traced, take {_seconds(plan.times.compute)}."
        return f"The compiler ran out of device memory, so there is no program whose time could be bounded.{least}"
    share = ""
    if compiled := plan.products + (plan.kernels or 0):
        share = f" The model's own FLOPs are {plan.model_flops / plan.devices / compiled:.0%} of those compiled."
    if plan.bound is None:
        return f"No rates are published for {plan.kind} in {plan.precision}, so MFU has no bound here.{share}"
    slowest = plan.times.slowest
    limit, cache = (slowest, "")
    if slowest == "memory":
        limit, cache = "memory traffic", f" and nothing is cached, and {plan.ceiling:.1%} at most"
    if slowest == "between_slices":
        limit = "the network between slices"
    if slowest == "host":
        limit = "the link to the host"
    unknown = ""
    if plan.times.between_slices is None:
        unknown = " No rate of the network between slices is published: its time is left out."
    return f"MFU is {bound_text(plan)}, limited by {limit}, if compute, memory and links overlap{cache}.{unknown}{share}"


def bound_text(plan: Plan) -> str:
    """Return the bound on MFU: an upper bound by compute or links, or an estimate by memory, which a cache may exceed."""
    if plan.bound is None:
        return "not bound"
    return f"about {plan.bound:.1%}" if plan.times.slowest == "memory" else f"{plan.bound:.1%} at most"


def plan_warnings(plan: Plan) -> list[str]:
    """Return all warnings of a plan, one in a line."""
    return [*plan.warnings, *(f"the FLOPs of {name} are not counted" for name in plan.unknown)]


def host_sentence(plan: Plan) -> str:
    """Return what a device has in the memory of its host; "" if that is nothing."""
    if not plan.host:
        return ""
    published = parse_target(plan.target).published
    devices = min(plan.devices // plan.slice_count, 1 if published is None else published.host)
    together = f", {format_bytes(devices * plan.host)} for the {devices} devices of a host" if devices > 1 else ""
    return f"In the memory of the host: {format_bytes(plan.host)} of each device{together}."


def memory_table(plan: Plan, *, bars: bool) -> Table:
    """Return the table of the bytes on a device, on request with bars of text."""
    sizes = {**memory_parts(plan), "total": plan.total}
    if not bars:
        return Table(("", "bytes"), [(name, format_bytes(size)) for name, size in sizes.items()])
    capacity = max(plan.device_memory or 0, plan.total)
    rows = [(name, f"{format_bytes(size):>10}  {'█' * round(BAR * size / capacity)}") for name, size in sizes.items()]
    return Table(("", ""), rows, words=2)


def rollout_table(plan: Plan) -> Table:
    """Return the table of the bytes on a device that a rollout holds beside the arguments of the step."""
    parts = {**rollout_parts(plan), "total": plan.rollout_total}
    return Table(("", "bytes"), [(name, format_bytes(size)) for name, size in parts.items()])


def rollout_parts(plan: Plan) -> dict[str, int]:
    """Return the bytes on a device in a rollout by their use."""
    return {"arguments of the step": plan.rollout_total - sum(plan.rollout.values()), **plan.rollout}


def times_table(plan: Plan) -> Table:
    """Return the table of compute, memory traffic and communication of a device in a step, with the seconds for each."""
    kernels = f", {format_decimal(plan.kernels)}FLOP of it in kernels" if plan.kernels else ""
    amounts = {
        "compute": ("at least", f"{format_decimal((plan.products or 0) + (plan.kernels or 0))}FLOP{kernels}"),
        "memory": ("about", f"{format_decimal(plan.bytes or 0)}B, at least {format_decimal(plan.least_bytes or 0)}B"),
    }
    for name in ("interconnect", "between_slices")[: 1 + (plan.slice_count > 1)]:
        amounts[name] = ("at least", f"{format_decimal(bytes_sent(plan, between_slices=name == 'between_slices'))}B")
    rows = [(TIMES[name], amount, _seconds(getattr(plan.times, name), f"{sure} ")) for name, (sure, amount) in amounts.items()]
    if plan.to_host or plan.from_host:
        amount = f"{format_decimal(plan.to_host)}B to it, {format_decimal(plan.from_host)}B from it"
        rows.append((TIMES["host"], amount, _seconds(plan.times.host, "at least ")))
    if plan.times.estimate is not None:
        rows.append(("a step", "one operation after another", _seconds(plan.times.estimate, "about ")))
    return Table(("", "a device does", "takes"), rows, words=2)


def bytes_sent(plan: Plan, *, between_slices: bool) -> float:
    """Return the bytes that a device sends in a step, between slices or within its own."""
    return sum(row.bytes_sent for row in plan.collectives if row.between_slices == between_slices)


def collectives_table(plan: Plan) -> Table:
    """Return the table of the collectives of a step."""
    several = plan.slice_count > 1
    rows = [
        (
            row.kind,
            *((("between slices" if row.between_slices else "within a slice"),) if several else ()),
            row.axes,
            f"{row.members:,}",
            f"{row.count:,.0f}",
            f"{format_decimal(row.bytes)}B",
            f"{format_decimal(row.bytes_sent)}B",
        )
        for row in plan.collectives
    ]
    group = ("network", "axes", "members") if several else ("axes", "devices")
    return Table(("", *group, "count", "arrays", "a device sends"), rows, words=2 + several)


def format_bytes(count: int | float) -> str:
    """Return bytes in powers of 1,024, the units of memory sizes."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:,.1f} {unit}" if count < 100 * size else f"{count / size:,.0f} {unit}"
    return f"{count:,.0f} B"


def format_decimal(count: int | float) -> str:
    """Return a number with a decimal prefix for its unit."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.3g} "


def plan_provenance(plan: Plan) -> str:
    """Return the time of the compilation and the compiler's versions."""
    by = ", ".join(f"{name} {version}" for name, version in plan.versions.items())
    return f"traced and compiled in {plan.seconds:.1f} s by {by}"


def _seconds(value: float | None, sure: str = "") -> str:
    if value is None:
        return "not published"
    return sure + (f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms")
