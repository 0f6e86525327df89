"""Read the final program of a kernel from the files of the TPU compiler: its bundles, and how full their slots are.

A bundle is a VLIW instruction: one cycle, if nothing stalls. The compiler knows of no waits for memory, so bundles bound the time
of a tile from below, and compare kernels that were compiled in one process.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

VARIABLE = "LIBTPU_INIT_ARGS"
"""libtpu reads it once, when it is loaded."""
FLAGS = (
    "--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_html=false "
    "--xla_jf_dump_llo_pass_label_regex=.*final.*"
)
ANALYSIS, BUNDLES = "schedule-analysis_final_bundles.txt", "final_bundles.txt"
WHOLE = "TLP"
"""Label of the program that calls the kernels."""
SLOTS = "final_hlo-static-per-bundle-utilization.txt"
TITLE = "Attention as the compiler for {} schedules it"
NOTE = (
    "A bundle is a cycle if nothing stalls, so those of a tile bound its time from below. Kernels differ in the sizes of "
    "their tiles."
)
HEAD = ("fullest slots", "bundles")
"""Head of `columns`."""


class Kernel(NamedTuple):
    """A kernel of a compiled program."""

    name: str
    bundles: int
    """Bundles of the longest part without a branch, which computes a tile; a kernel that masks tiles only where it must has
    another, shorter one for full tiles."""
    slots: dict[str, float]
    """Slot -> the share of it that the bundles fill, the fullest first."""


def take_kernels(folder: Path, text: str, chip: str) -> list[Kernel]:
    """Return the Pallas kernels whose programs a folder has, in the order of their compilation, and empty the folder.

    A program that is compiled twice is returned once. Neither its text nor the chip is needed: the files have everything.
    """
    kernels: dict[str, Kernel] = {}
    for analysis in sorted(folder.glob(f"*-{ANALYSIS}")):
        if 'custom_call_target="tpu_custom_call"' not in _head(analysis):
            continue
        number, label, _ = analysis.name.split("-", 2)
        if label == WHOLE:
            continue
        bundles, slots = (next(folder.glob(f"{number}-{label}-[0-9][0-9]-{end}")) for end in (BUNDLES, SLOTS))
        names, capacities, rows = _read_slots(slots)
        first, size = max(_straight_parts(bundles.read_text()), key=lambda part: part[1])
        used = {
            name: sum(row[column] for row in rows[first : first + size]) / size / capacity
            for column, (name, capacity) in enumerate(zip(names, capacities, strict=True))
            if capacity
        }
        name = label.partition(".")[0]
        kernels[name] = Kernel(name, size, dict(sorted(used.items(), key=lambda item: -item[1])))
    for path in folder.iterdir():
        path.unlink()
    return list(kernels.values())


def columns(kernel: Mapping[str, Any]) -> list[str]:
    """Return the columns of a kernel under `HEAD`."""
    slots = [f"{slot} {share:.0%}" for slot, share in list(kernel["slots"].items())[:2]]
    return [", ".join(slots), f"{kernel['bundles']:,}"]


def _head(path: Path) -> str:
    """Return the description of the operation, which comes before its bundles."""
    with path.open() as stream:
        return stream.read(8192)


def _straight_parts(text: str) -> Iterator[tuple[int, int]]:
    """Yield (first bundle, number of bundles) of each part of a program that control enters and leaves at its ends alone."""
    first, number = 0, -1
    for line in text.splitlines():
        bundle = re.match(r"\s*(?:0x)?[0-9a-f]+\s+([A-Z: ]*):\s+>*\s*\{(.*)", line)
        if bundle is None:
            continue
        number += 1
        if bundle[1].strip() and number > first:
            yield first, number - first
            first = number
        if re.search(r"\bsbr\.rel|\bbrr\b|sbr\.ind", bundle[2]):
            yield first, number + 1 - first
            first = number + 1
    yield first, number + 1 - first


def _read_slots(path: Path) -> tuple[list[str], list[int], list[list[int]]]:
    """Return the names of the slots, their number in a bundle, and how many of each every bundle uses."""
    lines = path.read_text().splitlines()
    rows = [list(map(int, line.split())) for line in lines[4:] if line.strip()]
    return [name.strip() for name in lines[1].split(",")], list(map(int, lines[2].split())), rows
