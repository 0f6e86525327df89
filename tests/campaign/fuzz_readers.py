"""Damage the inputs of every reader at random and read them: `python -m tests.campaign.fuzz_readers FOLDER COUNT SEED SECONDS`.

The readers are in `tests.campaign.reader_inputs`. A reader may refuse an input, in one line, or read it. Any other exception, a
crash of the process and growth of its memory are failures.
"""

import collections
import itertools
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.support import environment  # noqa: F401 - it starts JAX with eight devices  # isort: skip
from tests.campaign import reader_inputs
from tests.support.fuzz_weights import mutate
from train.checkpoints.manifest import DamagedCheckpoint
from train.rows import token_cache
from zoo.errors import BadInput

LARGEST_GROWTH = 200 << 20
"""Bytes by which the memory of the process may grow after each reader was called once."""
LONGEST = 20.0
"""Seconds that reading a damaged input may take on a busy machine; intact ones take milliseconds."""
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1 << 62, 10**400, 1e308, float("nan"), "", "x", "\x1b[2J", "../../outside", "NaN", "Infinity"),
    *([], {}, [[]], [1], {"a": 1}),
)
"""Values that no program writes in the place of others."""


def mutate_json(raw: bytes, rng: np.random.Generator) -> bytes:
    """Return JSON, or lines of JSON, in which one to three values are others, missing or under another key; else as `mutate`."""
    *lines, last = raw.split(b"\n")
    at = int(rng.integers(len(lines))) if lines and raw.startswith(b"{") and last == b"" else -1
    try:
        content = json.loads(lines[at] if at >= 0 else raw)
    except ValueError:
        return mutate(raw, rng)
    for _ in range(rng.integers(1, 4)):
        content = _changed(content, rng)
    text = json.dumps(content).encode()
    return text if at < 0 else b"\n".join([*lines[:at], text, *lines[at + 1 :], last])


def _changed(value: Any, rng: np.random.Generator) -> Any:
    """Return a JSON value with one inner value changed."""
    if not value or not isinstance(value, dict | list) or rng.random() < 0.1:
        return VALUES[rng.integers(len(VALUES))]
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, changed = keys[rng.integers(len(keys))], value.copy()
    match rng.integers(0, 8):
        case 0:
            del changed[key]
        case 1 if isinstance(changed, dict):
            changed[str(VALUES[rng.integers(9)])] = changed.pop(key)
        case _:
            changed[key] = _changed(value[key], rng)
    return changed


def main(folder: Path, count: int, seed: int, seconds: float) -> dict[str, Any]:
    """Read `count` damaged inputs, for at most `seconds`, and return the counts by reader and outcome."""
    rng, every = np.random.default_rng(seed), reader_inputs.readers(folder)
    for reader in every.values():
        reader.read()
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    counts: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in every}
    failures, number, names = [], 0, list(every)
    for turn in itertools.count():
        if number >= count or (turn >= len(names) and time.monotonic() - began >= seconds):
            break
        name = names[turn % len(names)]
        reader = every[name]
        if turn // len(names) % reader.rounds:
            continue
        content = (mutate_json if rng.random() < 0.5 else mutate)(reader.content, rng)
        reader.file.write_bytes(reader.damage(content) if reader.damage else content)
        started = time.monotonic()
        try:
            reader.read()
            counts[name]["read"] += 1
        except (BadInput, DamagedCheckpoint, token_cache._Damaged) as refusal:
            counts[name]["refused"] += 1
            if "\n" in str(refusal) or len(str(refusal)) > 2000:
                failures.append(f"{name}: not one short line: {str(refusal)[:300]!r}")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # Errors of the tokenizers library that it did not expect are no `Exception`.
            failures.append(f"{name}, input {number}: {type(error).__name__}: {str(error)[:300]}")
            (folder / f"failure-{number}").write_bytes(reader.file.read_bytes())
        if (spent := time.monotonic() - started) > LONGEST:
            failures.append(f"{name}, input {number}: {spent:.0f} s")
        reader.file.write_bytes(reader.content)
        number += 1
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
    return {"count": number, "readers": counts, "failures": failures, "growth": growth}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))
