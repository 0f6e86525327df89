"""Programs timed side by side in one run, and the machine they ran on; only ratios from one run are compared.

A program is a function that returns when its work is done.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from train.run.metrics_file import mfu
from zoo.precision import DTYPES

Program = Callable[[], object]

FEWEST, FEWEST_SLOW, MOST = 5, 3, 200
"""Number of rounds: at least, at least where a call takes over `SLOW` seconds, and at most."""
SLOW = 2.0
CALM = 0.01
"""Relative uncertainty of all medians below which no more rounds are timed."""

RATIOS = ("ratio", "ratio_p20", "ratio_p80")
"""Columns of the ratio to the unit."""


def time_columns(seconds: Any, unit: Any = None) -> dict[str, float | int | None]:
    """Return the columns of a cell: quantiles of its time, and of its ratio to the unit in the same rounds, None without a unit.

    Args:
        seconds: of each round, [n].
        unit: seconds of the unit of column "ratio" in the same rounds, [n].
    """
    ratios: dict[str, float | None] = dict.fromkeys(RATIOS)
    if unit is not None:
        ratios |= _quantiles("ratio", np.asarray(seconds) / np.asarray(unit))
    return {**_quantiles("seconds", seconds), "seconds_least": float(np.min(seconds)), "n": len(seconds), **ratios}


def _quantiles(name: str, values: Any) -> dict[str, float]:
    p20, median, p80 = (float(x) for x in np.quantile(values, [0.2, 0.5, 0.8]))
    return {name: median, f"{name}_p20": p20, f"{name}_p80": p80}


def median_uncertainty(seconds: Any) -> float:
    """Return about the relative standard error of the median: half of (p80 - p20), over the root of n and the median."""
    p20, median, p80 = np.quantile(seconds, [0.2, 0.5, 0.8])
    return float((p80 - p20) / 2 / len(seconds) ** 0.5 / median)


def warm_up(program: Program, *, limit: int = 10, seconds: float = 3.0) -> list[float]:
    """Call a program until its last two calls are within 10 % of each other, and return the seconds of each call.

    There are at most `limit` calls, and no more after `seconds` in total; there is always one call.
    """
    durations: list[float] = []
    while len(durations) < limit and sum(durations) < seconds:
        durations.append(_seconds(program))
        if len(durations) > 1 and max(durations[-2:]) <= 1.1 * min(durations[-2:]):
            break
    return durations


def time_interleaved(programs: Mapping[str, Program], rounds: int) -> dict[str, np.ndarray]:
    """Return the seconds of each call, [rounds]: one call of each program a round, after two calls to warm up."""
    for program in programs.values():
        program()
        program()
    return time_within_budget(programs, rounds=rounds)


def time_within_budget(programs: Mapping[str, Program], *, rounds: int = 0, budget: float = 0.0) -> dict[str, np.ndarray]:
    """Return the seconds of each call, [n], of warm programs: one call of each a round, so that a disturbance affects all.

    The order changes from round to round, so that no program always follows the same one.

    Args:
        rounds: number of rounds; 0 = until the medians of all are known to 1 %, or `budget` is used up.
        budget: seconds. There are at least five rounds, or three if a call takes over two seconds, and at most 200.
    """
    durations: dict[str, list[float]] = {name: [] for name in programs}
    began = time.perf_counter()
    number = 0
    while number < rounds if rounds else not _enough(durations, number, time.perf_counter() - began, budget):
        for name in _order(list(programs), number):
            durations[name].append(_seconds(programs[name]))
        number += 1
    return {name: np.asarray(seconds) for name, seconds in durations.items()}


def measured_with_rates(
    programs: Mapping[str, Program], precisions: Iterable[str], *, rounds: int | None, budget: float | None
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Time warm programs as `time_within_budget` does, and matrix products in each precision in the same rounds.

    Args:
        budget: seconds for each program.

    Returns:
        The seconds of the programs; and the machine's best rate of matrix products by precision, in FLOP/s.
    """
    probes = {precision: matrix_products(precision) for precision in precisions}
    together = {**programs, **{precision: probe for precision, (probe, _) in probes.items()}}
    seconds = time_within_budget(together, rounds=rounds or 0, budget=(budget or 0.0) * len(programs))
    return seconds, {precision: flops / float(seconds[precision].min()) for precision, (_, flops) in probes.items()}


def step_rate_columns(
    tokens: int, flops: float | None, seconds: float, rate: float, peak: float | None, devices: int = 1
) -> dict[str, Any]:
    """Return the columns of a cell that follow from its time.

    Args:
        rate: FLOP/s of matrix products in the same rounds, on one device. Simulated devices share the cores of one machine.
        peak: published FLOP/s of a device, if there is one.
    """
    columns: dict[str, Any] = {"tokens": tokens, "tokens_per_s": tokens / seconds, "flops": flops, "matrix_rate": rate}
    if flops is not None:
        together = rate if jax.default_backend() == "cpu" else rate * devices
        columns["of_matrix_rate"] = mfu(flops, seconds, together)
        columns["mfu"] = peak and mfu(flops, seconds, peak * devices)
    return columns


def copy_rate(seconds: float = 0.5) -> float:
    """Measure the rate at which this process's first device reads and writes its memory, in bytes/s, reads and writes counted.

    A number is added to an array too large for any cache (512 MiB), in place; the best of the calls within `seconds` counts.
    """
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jax.block_until_ready(add(jnp.zeros(1 << 27, jnp.float32)))
    end, best = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < end:
        began = time.perf_counter()
        x = jax.block_until_ready(add(x))
        best = min(best, time.perf_counter() - began)
    return 2 * x.nbytes / best


def matrix_products(precision: str) -> tuple[Program, float]:
    """Return a program of matrix products for the same rounds, and its FLOPs: it measures the machine's rate in these rounds."""
    size, count = (1024, 16) if jax.default_backend() == "cpu" else (8192, 4)
    operand = jax.jit(lambda key: jax.random.normal(key, (size, size), DTYPES[precision]))(jax.random.key(0))
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    program = lambda: jax.block_until_ready([product(operand) for _ in range(count)])  # noqa: E731
    program()
    return program, 2.0 * size**3 * count


def _seconds(program: Program) -> float:
    began = time.perf_counter()
    program()
    return time.perf_counter() - began


def _order(names: list[str], number: int) -> list[str]:
    """Return the names in the order of a round: forwards and backwards alternate; each pair of rounds starts one name later."""
    start = number // 2 % len(names)
    rotated = names[start:] + names[:start]
    return rotated[::-1] if number % 2 else rotated


def _enough(durations: Mapping[str, list[float]], rounds: int, spent: float, budget: float) -> bool:
    if rounds < FEWEST_SLOW:
        return False
    if rounds < FEWEST and max(map(np.median, durations.values())) <= SLOW:
        return False
    return rounds >= MOST or spent >= budget or max(map(median_uncertainty, durations.values())) <= CALM


def compile_cold(jitted: Any, *arguments: Any) -> tuple[Any, dict[str, float]]:
    """Compile what `jax.jit` returns for arguments or their shapes, without a cache.

    Returns:
        The compiled program, and "lower_seconds" and "compile_seconds".
    """
    with without_compilation_cache():
        began = time.perf_counter()
        lowered = jitted.lower(*arguments)
        between = time.perf_counter()
        compiled = lowered.compile()
        return compiled, {"lower_seconds": between - began, "compile_seconds": time.perf_counter() - between}


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
    """Disable the persistent compilation cache, so that seconds of compilation are those of a first compilation."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    # JAX decides once, at the first program, whether it uses the cache; the reset makes it decide again.
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()
