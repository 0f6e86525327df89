"""Exact parameter counts of all sizes, stored in a file because counting traces every model.

`python -m zoo.cli.parameter_counts` writes the file.
"""

import functools
import hashlib
import json
from pathlib import Path

from zoo import configs
from zoo.configs import Size

FILE = Path(__file__).with_name("parameter_counts.json")
"""File that maps the name of a size to [parameters, digest of the configuration that was counted]."""


def parameter_count(name: str, size: Size) -> int:
    """Return the exact parameter count of a published size: stored, or counted anew if its configuration changed."""
    count, digest = _stored().get(name, (0, ""))
    return count if digest == _digest(size) else count_parameters(size)


def count_parameters(size: Size) -> int:
    """Return the parameter count by tracing the model, which imports JAX and takes up to a second."""
    from zoo.models import parameter_count

    return parameter_count(size.config)


def count_all_sizes() -> dict[str, tuple[int, str]]:
    """Return the content of the file, with every size counted again."""
    sizes = {name: size for family in configs.families() for name, size in configs.family(family).SIZES.items()}
    return {name: (count_parameters(size), _digest(size)) for name, size in sizes.items()}


@functools.cache
def _stored() -> dict[str, tuple[int, str]]:
    return {name: (count, digest) for name, (count, digest) in json.loads(FILE.read_text()).items()}


def _digest(size: Size) -> str:
    numbers = [(field, getattr(size.config, field)) for field in Size.numbers_of(size.config)]
    return hashlib.sha256(repr((type(size.config).__module__, numbers)).encode()).hexdigest()[:16]


if __name__ == "__main__":
    rows = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in count_all_sizes().items())
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")
