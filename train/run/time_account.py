"""The account of the time of a run: its wall-clock seconds in exclusive categories, over all of its starts.

A start charges every second to one category; rows of metrics.jsonl and of starts.jsonl record the sums. A start that is killed
writes nothing more: the next one takes over what the last record has, and charges the steps that it repeats to "lost_steps".
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from train.run.progress_display import format_duration
from zoo.json_shapes import is_usable_number
from zoo.runtime.progress import this_process

Category = Literal["start_up", "compilation", "data_wait", "steps", "validation", "checkpoints", "rollouts", "other"]
Seconds = dict[str, float]
"""Name of `TITLES` -> seconds."""

TITLES = {
    "steps": "steps",
    "data_wait": "data wait",
    "rollouts": "rollouts",
    "validation": "validation",
    "checkpoints": "checkpoints",
    "start_up": "start-up",
    "compilation": "compilation",
    "lost_steps": "lost steps",
    "restart": "restart",
    "other": "other",
}
"""Name of a category -> its title, in the order of a report; "lost_steps" and "restart" are known at the next start only."""
REPEATED = ("data_wait", "steps", "validation", "checkpoints", "rollouts")
"""Categories whose seconds after the checkpoint that a run continues from are lost."""


class TimeAccount:
    """The seconds of this start of a run, each in the category that the process was in."""

    def __init__(self, began: float) -> None:
        """Begin with the start-up, which began at `began`, by `time.perf_counter`."""
        self.seconds: Seconds = {}
        """Seconds up to the last change of the category."""
        self._began = self._changed = began
        self._mean, self._measured = Seconds(), 0.0
        self._category: Category = "start_up"

    def switch(self, category: Category) -> Category:
        """Charge the time since the last call, begin another category, and return the one that ends."""
        now, before = time.perf_counter(), self._category
        self.seconds[before] = self.seconds.get(before, 0.0) + now - self._changed
        self._changed, self._category = now, category
        return before

    @contextlib.contextmanager
    def during(self, category: Category) -> Iterator[None]:
        """Charge the block to a category, and the time after it to the category before it."""
        before = self.switch(category)
        yield
        self.switch(before)

    def sum_of(self, *names: Category) -> float:
        """Return the seconds of some categories up to the last change of the category."""
        return sum((self.seconds.get(name, 0.0) for name in names), 0.0)

    def elapsed(self) -> float:
        """Return the seconds since the start, by the clock alone."""
        return time.perf_counter() - self._began

    def mean(self) -> Seconds:
        """Return the seconds up to now, the mean over all processes, which call it together."""
        # A report is also read without JAX.
        import jax
        from jax.experimental import multihost_utils

        self.switch(self._category)
        self._mean, self._measured = dict(self.seconds), self._changed
        if jax.process_count() > 1:
            own = np.array([self.seconds.get(name, 0.0) for name in TITLES], np.float32)
            with jax.transfer_guard("allow"), this_process.stage("waiting for the other processes", waiting=True):
                mean = np.asarray(multihost_utils.process_allgather(own), np.float64).mean(0)
            self._mean = {name: seconds for name, seconds in zip(TITLES, mean.tolist(), strict=True) if seconds}
        return self._mean

    def final_mean(self) -> Seconds:
        """Return the last `mean`, and the time since then as "other"; a process calls it alone."""
        return self._mean | {"other": self._mean.get("other", 0.0) + time.perf_counter() - self._measured}


def time_columns(seconds: Mapping[str, float], earlier: Mapping[str, float]) -> Seconds:
    """Return columns of a row of metrics: the seconds of this start, and the goodput with those of `earlier` starts."""
    return {f"{name}_seconds": round(value, 3) for name, value in seconds.items()} | {
        "goodput": goodput(_sum([earlier, seconds]))
    }


def settle_killed(starts: Sequence[dict[str, Any]], rows: Sequence[Mapping[str, Any]], step: int, began: float) -> float:
    """Complete the seconds of the last of `starts`, and return those between its last record and the next start.

    Args:
        starts: rows of starts.jsonl, of which the last one is changed in place.
        rows: rows of metrics.jsonl, with those after `step`.
        step: step of the checkpoint that the next start continues from.
        began: the Unix time at which the next start began.
    """
    if not starts or "spent" not in starts[-1]:
        return 0.0
    last = starts[-1]
    records = [(last["spent_step"], dict(last["spent"]))]
    records += [(row["step"], _columns(row)) for row in rows if row["step"] > last["step"] and row.get("kind") == "train"]
    latest = max((seconds for _, seconds in records), key=_total)
    saved = max((seconds for at, seconds in records if at <= step), key=_total, default={})
    lost = {name: max(0.0, latest.get(name, 0.0) - saved.get(name, 0.0)) for name in REPEATED}
    last["spent"] = {name: value - lost.get(name, 0.0) for name, value in latest.items()}
    last["spent"]["lost_steps"] = last["spent"].get("lost_steps", 0.0) + sum(lost.values())
    # Nobody waited for a run that was finished before it was extended.
    return 0.0 if last.get("finished") else max(0.0, began - last["began"] - _total(latest))


def run_seconds(starts: Sequence[Mapping[str, Any]]) -> Seconds:
    """Return the seconds of all starts of a run, rows of starts.jsonl; {} if one of them has not recorded them."""
    if any("spent" not in start for start in starts):
        return {}
    return _sum([start["spent"] | {"restart": start.get("restart", 0.0)} for start in starts])


def goodput(seconds: Mapping[str, float]) -> float:
    """Return the share of the wall clock that was spent in steps that counted."""
    total = _total(seconds)
    return seconds.get("steps", 0.0) / total if total else 0.0


def describe_goodput(starts: Sequence[Mapping[str, Any]]) -> str:
    """Return a line about the seconds of a run: its goodput, and the share of each category; "" if they are not recorded."""
    seconds = run_seconds(starts)
    if not (total := _total(seconds)):
        return ""
    several = f" in {len(starts)} starts" if len(starts) > 1 else ""
    shares = ", ".join(f"{TITLES[name]} {value / total:.1%}" for name, value in seconds.items() if value >= 5e-4 * total)
    return f"goodput {goodput(seconds):.1%} of {format_duration(total)}{several}: {shares}"


def _total(seconds: Mapping[str, float]) -> float:
    return sum(seconds.values(), 0.0)


def _sum(parts: Sequence[Mapping[str, float]]) -> Seconds:
    sums = {name: sum((float(part.get(name, 0.0)) for part in parts), 0.0) for name in TITLES}
    return {name: value for name, value in sums.items() if value}


def _columns(row: Mapping[str, Any]) -> Seconds:
    """Return the seconds in a row of metrics, which may be damaged."""
    measured = row["time"] if isinstance(row.get("time"), Mapping) else {}
    columns = {name: measured.get(f"{name}_seconds") for name in TITLES}
    return {name: float(value) for name, value in columns.items() if value is not None and is_usable_number(value)}
