"""The lines of source that the instructions of a compiled program come from, read from the tables at the head of its text."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping


@dataclasses.dataclass(frozen=True)
class Frame:
    """A place in the source: a file as Python names it, the qualified name of a function in it, and a line."""

    file: str
    function: str
    line: int


TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")


def call_stacks(head: Iterable[str]) -> Mapping[int, tuple[Frame, ...]]:
    """Return the call stacks by their numbers, innermost frame first, from the lines before the first computation."""
    tables: dict[str, dict[int, str]] = {title: {} for title in TABLES}
    title = ""
    for line in head:
        if line in TABLES:
            title = line
        elif title and (row := re.match(r"(\d+) (.*)", line)):
            tables[title][int(row[1])] = row[2]
    files, functions, locations, links = tables.values()
    frames = {
        number: Frame(
            files.get(_id(row, "file_name_id"), "").strip('"'),
            functions.get(_id(row, "function_name_id"), "").strip('"'),
            _id(row, "line"),
        )
        for number, row in locations.items()
    }
    # The outermost frame has no parent, which XLA writes as 0, or as 1 where it counts every parent one too high.
    shift = _id(links.get(1, ""), "parent_frame_id")

    @functools.cache
    def stack(number: int) -> tuple[Frame, ...]:
        if number not in links:
            return ()
        row = links[number]
        return (frames[_id(row, "file_location_id")], *stack(_id(row, "parent_frame_id") - shift))

    return {number: stack(number) for number in links}


def _id(row: str, name: str) -> int:
    """Return a number of a row; 0 if it is missing."""
    match = re.search(rf"\b{name}=(\d+)", row)
    return int(match[1]) if match else 0
