"""The rate that MFU is relative to: the published peak of the devices, or the best measured rate of matrix products."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from train.run.metrics_file import mfu
from zoo.runtime import hardware

INTERVAL = 20.0
"""Least seconds between two measurements during a run."""
BURST = 0.1
"""Seconds of a measurement during a run, 0.5% of `INTERVAL`."""
BUSY = 0.25
"""Share of the time of all processors, spent by other programs or taken by the host of a virtual machine, from which they slow
this one."""
SLOW = 0.5
"""Share of the best rate below which something else slows this machine."""


class PeakRate:
    """The FLOP/s of all devices that MFU is relative to.

    Where a peak is published, it is that. Elsewhere the rate of matrix products is measured at the start and, by `update`, in
    moments in which the devices have nothing to do, and the best rate counts, because other work on the machine only lowers it.
    While other work slows the machine there is no MFU: neither the steps nor the rate are those of the machine.
    """

    def __init__(self, dtype: Any, best: float = 0.0, notify: Callable[[str], None] = lambda line: None) -> None:
        """Look the peak up, or measure the rate, which takes half a second.

        Args:
            best: the best rate that an earlier start of the run measured on these devices, in FLOP/s of all devices.
            notify: shows a line when other work begins or ceases to slow the machine.
        """
        import jax

        self._dtype, self._notify, self._scale = dtype, notify, jax.process_count()
        self._kind = jax.devices()[0].device_kind
        self._peak, self._devices = hardware.device_peak(self._kind, dtype), jax.device_count()
        self.measured, self._busy, self._at = best, False, time.monotonic()
        self._times = _processor_times()
        if self._peak is None:
            self._measure(0.5)

    @property
    def value(self) -> float:
        """The rate of all devices in FLOP/s."""
        return self.measured if self._peak is None else self._peak * self._devices

    @property
    def source(self) -> str:
        """The origin of the rate, in words."""
        if self._peak is None:
            return f"matrix products measured here, {self.value / 1e9:.0f} GFLOP/s"
        return f"{self._kind}'s published peak, {self._peak / 1e12:.0f} TFLOP/s each"

    def update(self) -> None:
        """Measure the rate of CPU devices, which must have nothing to do, again, unless that was done a moment ago.

        An accelerator without a published peak keeps its first rate: nothing else uses it, and its memory may be full.
        """
        import jax

        if self._kind == "cpu" and time.monotonic() - self._at >= INTERVAL:
            with jax.transfer_guard("allow"):
                self._measure(BURST)

    def mfu(self, flops: float, seconds: float) -> float | None:
        """Return the model FLOPs utilization of steps of `flops` and `seconds`; None while other work slows the machine."""
        return None if self._busy else mfu(flops, seconds, self.value)

    def _measure(self, seconds: float) -> None:
        rate = measure_matmul_rate(self._dtype, seconds) * self._scale
        self.measured = max(self.measured, rate)
        before, self._times, start, self._at = self._times, _processor_times(), self._at, time.monotonic()
        processors = os.cpu_count() or 1
        others = 0.0
        # The other processes of this run are no other work, and their time is not known here.
        if self._scale == 1 and before is not None and self._times is not None:
            others = max(0.0, self._times - before) / (processors * (self._at - start))
        busy = others > BUSY or rate < SLOW * self.measured
        if busy != self._busy:
            numbers = f"load average {os.getloadavg()[0]:.1f}, {processors} processors, others use {others:.0%} of them"
            numbers += f"; {rate / 1e9:.0f} of at best {self.measured / 1e9:.0f} GFLOP/s"
            state = "other work slows this machine" if busy else "other work no longer slows this machine"
            effect = "MFU is not shown until it ends" if busy else "MFU is shown again"
            self._notify(f"{state} ({numbers}); {effect}")
        self._busy = busy


def _processor_times() -> float | None:
    """Return the seconds since the start of this machine that its processors spent on other programs; None if not known."""
    try:
        user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    except (OSError, ValueError):
        return None
    own = os.times()
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK") - own.user - own.system


def measure_matmul_rate(dtype: Any, seconds: float = 0.5) -> float:
    """Return the measured rate of square matrix products of `dtype`, accumulated in float32, in FLOP/s of this process's devices.

    It is the best of several bursts over `seconds` after a warm-up, on random numbers (a GPU multiplies zeros faster). Simulated
    CPU devices share the same cores, so on a CPU a single device, which uses all of them, is measured.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        devices, size = devices[:1], 1024
    else:
        size = 8192
    mesh = Mesh(np.asarray(devices), ("device",))
    shape, sharding = (len(devices), size, size), NamedSharding(mesh, PartitionSpec("device"))
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))

    def burst(count: int) -> float:
        start = time.perf_counter()
        jax.block_until_ready([product(operand) for _ in range(count)])
        return (time.perf_counter() - start) / count

    # A separate mesh, independent of the caller's.
    with jax.set_mesh(mesh):
        operand = jax.jit(lambda key: jax.random.normal(key, shape, dtype), out_shardings=sharding)(jax.random.key(0))
        burst(1)
        best = burst(1)
        # A burst is long enough to hide its dispatch, and short enough that several fit and one of them is undisturbed.
        count = max(1, round(seconds / 10 / best))
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            best = min(best, burst(count))
    return 2 * size**3 * len(devices) / best
