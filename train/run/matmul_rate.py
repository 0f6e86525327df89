"""The rate of matrix products that this machine reaches, against which MFU is computed where no peak is published."""

import time
from typing import Any

import numpy as np


def measure(dtype: Any, seconds: float = 0.5) -> float:
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
