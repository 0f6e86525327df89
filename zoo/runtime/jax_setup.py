"""Set-up of JAX before it starts (devices, flags, compilation cache), and a check that it computes correct numbers.

JAX is imported only inside functions, so that the command line can answer without it.
"""

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import platform
import resource
from pathlib import Path

from zoo.errors import BadInput
from zoo.runtime import caches
from zoo.runtime.native_log import native_log

SAFE_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
SAFE_VALUE = "individual_dot"
PATIENCE_FLAG = "--xla_cpu_collective_call_terminate_timeout_seconds"
PATIENCE = "600"
"""Seconds that a simulated device waits for the others in a collective. XLA aborts the process after 40, in which a busy machine
with few cores may not have run all of them."""
THREADS_VARIABLE = "NPROC"
"""Environment variable in which XLA's CPU client looks for the size of its two thread pools, before it counts the cores."""
THREADS_PER_DEVICE = 4
"""Threads of each pool per simulated device; XLA starts one, or one per core if there are more cores than devices. A collective
blocks its thread until all devices have reached it, and XLA does not order an all-reduce against an all-gather in a loop that is
independent of it. With eight threads a run stopped for ever when two of them waited in the one and six in the other."""
LEAST_MEMORY = 1 << 30
"""Bytes of address space that JAX needs to start. With two cores it takes 0.6e9; each further core adds thread stacks."""
NATIVE = "native.txt"
"""File of the cache with the messages of native code in commands that write no run; see `zoo.runtime.native_log`."""
ACCELERATORS = ("jax_plugins", "libtpu")
"""Modules through which JAX finds accelerators."""
MALLOPT = {-8: 1, -4: 0, -1: -1}
"""Maps options of glibc's mallopt to values: M_ARENA_MAX, M_MMAP_MAX and M_TRIM_THRESHOLD (malloc.h)."""


def prepare_jax(devices: int = 0) -> None:
    """Set this process up before JAX starts; a second call with the same devices does nothing.

    XLA's CPU compiler returns wrong numbers for some reductions fused with a dot (JAX 0.10.2 to 0.12.0 at least), so the
    flag that keeps dots separate is added to XLA_FLAGS; a value that the user has set for that flag stays, and
    `check_cpu_compiler` tests it. Simulated devices wait longer for each other than XLA's default (see `PATIENCE`), and have more
    threads (see `THREADS_PER_DEVICE`) unless the environment sets their number. Compiled programs are stored in `cache_dir()`,
    unless JAX_COMPILATION_CACHE_DIR names another folder; each is checked when it is read (see `zoo.runtime.compile_cache`). If
    the CPU is the only possible platform, freed memory is kept for the next step (see `_keep_memory`).

    Args:
        devices: CPU devices to simulate, which selects the CPU platform; 0 = the real devices.

    Raises:
        BadInput: the cache folder is not private (see `zoo.runtime.caches.private_folder`), or this process may not allocate the
            memory that JAX needs to start; or JAX started before this call, with another number of CPU devices, or on a CPU
            without the flag.
    """
    _check_memory()
    if native_log.is_separate and not native_log.is_redirected:
        with contextlib.suppress(BadInput):  # a folder that cannot be used is reported below
            native_log.redirect(caches.private_folder(caches.cache_dir()) / NATIVE)
    import jax
    from jax._src.xla_bridge import backends_are_initialized  # JAX has no public function for this

    from zoo.runtime import compile_cache

    flags = os.environ.get("XLA_FLAGS", "").split()
    safe = any(flag.partition("=")[0] == SAFE_FLAG for flag in flags)
    if backends_are_initialized():
        have = len(jax.local_devices(backend="cpu"))
        fix = "use the zoo before the first computation with JAX"
        if devices not in (0, have):
            raise BadInput(f"devices {devices}: JAX has started with {have} CPU devices; {fix}")
        if not safe and jax.default_backend() == "cpu":
            why = f"JAX has started without {SAFE_FLAG}={SAFE_VALUE} in XLA_FLAGS, so that some programs compute wrong numbers"
            raise BadInput(f"{why}; {fix}, or set XLA_FLAGS before Python starts")
        return
    own = {SAFE_FLAG: SAFE_VALUE} | ({PATIENCE_FLAG: PATIENCE} if devices else {})
    missing = [f"{flag}={value}" for flag, value in own.items() if flag not in {word.partition("=")[0] for word in flags}]
    if missing:
        os.environ["XLA_FLAGS"] = " ".join([*flags, *missing])
    if devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
        os.environ.setdefault(THREADS_VARIABLE, str(max(THREADS_PER_DEVICE * devices, os.cpu_count() or 1)))
    if jax.config.values["jax_platforms"] == "cpu" or not any(map(importlib.util.find_spec, ACCELERATORS)):
        _keep_memory()
    if (compiled := jax.config.values["jax_compilation_cache_dir"]) is None:
        folder = caches.cache_folder(f"compiled-{processor_digest()}")
        jax.config.update("jax_compilation_cache_dir", None if folder is None else str(folder))
    elif compiled:
        compile_cache.check_folder(compiled)
    compile_cache.install_checked_cache()
    # JAX by default skips programs that compile in under a second, as all programs of a small model do.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _check_memory() -> None:
    """Refuse a memory limit at which the C++ code of JAX or OpenBLAS would abort the process."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < LEAST_MEMORY:
        fix = f"JAX needs {LEAST_MEMORY >> 20:,} MiB to start; raise the limit (ulimit -v)"
        raise BadInput(f"out of memory: this process may use {limit >> 20:,} MiB of address space, and {fix}")


def _keep_memory() -> None:
    """Make the C library keep freed memory instead of returning it to the system.

    XLA on CPU allocates all temporaries of a step at once and frees them at its end. glibc gets that memory from the system each
    time, which zeroes every page on first use: 5 % of a step's time. The arenas of threads return large blocks regardless of the
    settings, so there is only one arena. Settings of malloc in the environment are not changed.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if platform.libc_ver()[0] == "glibc" and not chosen:
        for option, value in MALLOPT.items():
            ctypes.CDLL(None).mallopt(option, value)


def check_cpu_compiler() -> float | None:
    """Run a program for which XLA's CPU compiler is known to return wrong numbers, and compare it with float64 numpy.

    The program is a batched dot with one constant operand, multiplied and summed. Fused into one kernel, it reads uninitialized
    memory. Such sums occur in the gradients of ordinary losses.

    Returns:
        The relative error, about 1e-7; None on a platform other than CPU.

    Raises:
        BadInput: the numbers are wrong, so nothing must be trained or measured.
    """
    import jax

    if jax.default_backend() != "cpu":
        return None
    error = canary_error()
    # A NaN compares False and counts as wrong.
    if not error < 1e-4:
        flags = os.environ.get("XLA_FLAGS", "")
        fix = f"put {SAFE_FLAG}={SAFE_VALUE} in XLA_FLAGS instead of what sets it now"
        raise BadInput(f"XLA computes wrong numbers on this CPU with XLA_FLAGS={flags!r} (relative error {error:.1e}): {fix}")
    return error


def canary_error() -> float:
    """Return the canary's largest relative error on the first local device; NaN if the program returned NaN."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    def energy(x):
        return jnp.sum((x @ jnp.full_like(x, 0.37)) * x, axis=-1)

    random = np.random.default_rng(0)
    # The shapes with wrong results depend on the version and the processor.
    shapes = [(4, 48, 48), (5, 60, 60), (2, 96, 96)]
    inputs = [np.float32(random.standard_normal(shape)) for shape in shapes]
    device = jax.local_devices()[0]
    outputs = jax.device_get(jax.jit(lambda xs: [energy(x) for x in xs])(jax.device_put(inputs, device)))
    errors = []
    for x, y in zip(inputs, outputs, strict=True):
        wide = x.astype(np.float64)
        true = ((wide @ np.full_like(wide, np.float32(0.37))) * wide).sum(-1)
        errors.append(float(np.abs(y - true).max() / np.abs(true).max()))
    # max() ignores a NaN that is not first; numpy's max returns it.
    return float(np.max(errors))


def processor_digest() -> str:
    """Return a name for this kind of processor. Compiled programs use its instructions, and machines may share a home folder."""
    kind = platform.machine() + platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        prefixes = ("flags", "Features", "model name")
        kind += "".join(sorted({line for line in info.read_text().splitlines() if line.startswith(prefixes)}))
    return hashlib.sha256(kind.encode()).hexdigest()[:8]
