"""The machine and the versions that a run records, compared with those of the audit: they decide how exactly results agree."""

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.errors import BadInput

SAME_BITS = ("device", "devices", "processes", "processor")
"""Facts about a machine on which the bits of a result depend."""
NOT_VERSIONS = ("python", "system", "XLA_FLAGS")
"""Entries of the recorded versions that are not versions of packages whose arithmetic or order of samples counts."""
LARGEST_DIFFERENCE = 1e-5
"""Largest relative difference of a loss between kinds of hardware, as for runs that continue on other devices."""

LARGEST_DISTANCE = 1e-3
"""Largest difference of the parameters of a replay between kinds of hardware, relative to their norm. Replays of 100 steps of a
small GPT with the instructions of older processors (AVX, SSE 4.2) differed by up to 1.0e-4, those of 10 steps by 8e-7."""


def starts_of_steps(starts: Sequence[Mapping[str, Any]], first: int, last: int) -> list[Mapping[str, Any]]:
    """Return the rows of starts.jsonl of the starts that took the steps after `first` up to `last`, in their order.

    A step belongs to the last start that began before it, since each start drops what was done after its own step.
    """
    owners = {
        max((number for number, start in enumerate(starts) if start["step"] < step), default=0)
        for step in range(first + 1, last + 1)
    }
    return [starts[number] for number in sorted(owners)]


def hardware_differences(start: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return a line for each fact on which bits depend that differs between a start and this machine; a start may lack some.

    Args:
        start: a row of starts.jsonl.
        here: the same of this process: "provenance" and "versions".
    """
    places = [(name, start.get("provenance", {}).get(name), here["provenance"][name]) for name in SAME_BITS]
    places.append(("XLA_FLAGS", start["versions"].get("XLA_FLAGS"), here["versions"]["XLA_FLAGS"]))
    return [f"{name}: {old} then, {now} here" for name, old, now in places if old is not None and old != now]


def version_differences(start: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return a line for each package whose version differs between a start and this process ("jax: 0.10.2 then, 0.12.0 here")."""
    old = {name: value for name, value in start["versions"].items() if name not in NOT_VERSIONS}
    old |= {"transformer-zoo": start.get("provenance", {}).get("version")}
    now = here["versions"] | {"transformer-zoo": here["provenance"]["version"]}
    return [f"{name}: {value} then, {now.get(name)} here" for name, value in old.items() if value not in (None, now.get(name))]


def check_versions(path: Any, starts: Sequence[Mapping[str, Any]], here: Mapping[str, Any], *, permitted: bool) -> list[str]:
    """Return the differences between the versions of any start and those here.

    Raises:
        BadInput: there are some, and they are not `permitted`; names them.
    """
    lines = list(dict.fromkeys(line for start in starts for line in version_differences(start, here)))
    if lines and not permitted:
        fix = f"install those versions, or add --other-versions to compare losses within {LARGEST_DIFFERENCE:g}"
        raise BadInput(f"{path} was trained with other versions: {'; '.join(lines)}; {fix}")
    return lines
