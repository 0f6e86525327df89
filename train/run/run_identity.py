"""The values of a run that identify it: those that a resumed run may not change."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from train.config.from_json import inner_key
from train.config.run_config import Run
from zoo import configs

MAY_CHANGE = (
    "recipe",
    "name",
    "out",
    "machine",
    "mesh",
    "engine",
    "accumulate",
    "loss_chunk",
    "max_skipped",
    "extended_from",
    "checkpoint",
    "log",
    "model.compute",
    "optim.offload",
    "rollout.write_every",
    "rollout.reward_truncate",
)
"""Fields that a resumed run may change: where and how it is computed, saved and reported.

None of them changes the sequence of samples or the mathematics of a step; the last one decides whether a response that a reward
model cannot read ends the run. A change of any other field makes it another run; `steps`, on which the schedule depends, may only
grow, with --extend.
"""

REPEATED = (
    "mesh",
    "engine",
    "accumulate",
    "loss_chunk",
    "model.compute",
    "optim.offload",
    "log.every",
    "log.validate_every",
    "log.validate_rows",
)
"""Fields of `MAY_CHANGE` on which the last digits of a step or the rows of metrics.jsonl depend; each start records them."""


def flat_options(run: Run) -> dict[str, Any]:
    """Return a run's values by dotted key ("model.compute.attention"), the family of the model and the objective first."""

    def walk(value: Any, key: str) -> Iterator[tuple[str, Any]]:
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                yield from walk(getattr(value, field.name), inner_key(key, field.name))
        else:
            yield key, value

    return {"family": configs.family_of(run.model), "objective": run.objective} | dict(walk(run, ""))


def run_identity(run: Run) -> dict[str, Any]:
    """Return every field that a resumed run may not change, as JSON; it is saved in each checkpoint."""
    return json.loads(json.dumps({key: value for key, value in flat_options(run).items() if not may_change(key)}))


def may_change(key: str) -> bool:
    """Return whether a dotted key of `flat_options` is one of `MAY_CHANGE` or below one."""
    return _is_below(key, MAY_CHANGE)


def repeated_options(run: Run) -> dict[str, Any]:
    """Return the values that repeat the steps of a start of a run to the bit, beside those of `run_identity`, as JSON."""
    return json.loads(json.dumps({key: value for key, value in flat_options(run).items() if is_repeated(key)}))


def is_repeated(key: str) -> bool:
    """Return whether a dotted key is one of `REPEATED` or below one: what a start may record among its options."""
    return _is_below(key, REPEATED)


def _is_below(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def identity_differences(old: Run, new: Run) -> list[str]:
    """Return a line for each field that makes `new` another run than `old` ("model.layers: 4 before, 6 now")."""
    before, now = flat_options(old), flat_options(new)
    changed = [key for key in before | now if before.get(key) != now.get(key) and not may_change(key)]
    texts = {key: [_option_text(values.get(key, "absent")) for values in (before, now)] for key in changed}
    return [f"{key}: {old_text} before, {new_text} now" for key, (old_text, new_text) in texts.items()]


def _option_text(value: Any) -> str:
    """Return a value as on the command line; "none" if it is empty."""
    return " ".join(map(str, value if isinstance(value, tuple) else (value,))) or "none"
