"""The start of every measurement in this folder: parse its options, set up JAX, and print a line about the machine."""

import argparse
from collections.abc import Callable
from typing import Any

from benchmarks.core import result_files
from benchmarks.core.result_tables import environment_line
from zoo.errors import BadInput
from zoo.runtime import jax_setup, stdio


def start_measurement(name: str, documentation: str | None, **defaults: Any) -> argparse.Namespace:
    """Return the options of `python -m benchmarks.micro.<name>`, which have these defaults, and print the machine."""
    description = (documentation or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.micro.{name}", description=description)
    for option, default in defaults.items():
        parser.add_argument(f"--{option}", type=type(default), default=default)
    options = parser.parse_args()
    jax_setup.prepare_jax()
    jax_setup.check_cpu_compiler()
    print(f"{environment_line(result_files.describe_environment())}\n", flush=True)
    return options


def run_measurement(main: Callable[[], int]) -> int:
    """Return the exit code of a measurement; bad input is one line and 2."""
    try:
        return main()
    except BadInput as error:
        stdio.write_error(str(error))
        return 2
