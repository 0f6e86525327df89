"""Settings of XLA for programs that run once: compiling them takes a quarter of the time.

The gradient of a small model on one core: 2.4 s of compilation with all optimizations, 1.2 s without LLVM's, 0.3 s with these
settings. They change how results are rounded, not what is computed, so a bound must hold with and without them.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import compiler  # JAX has no public setting for the options of all programs

# By default a program is divided into up to 32 parts for LLVM, which pays only with many cores.
OPTIONS: dict[str, Any] = {"xla_cpu_parallel_codegen_split_count": 1}
"""Options of the CPU compiler beside those that `jax_disable_most_optimizations` sets."""
if jax.__version_info__ < (0, 11):
    # LLVM's code for a fusion is written directly, not by way of MLIR. JAX 0.12 has no such option.
    OPTIONS["xla_cpu_use_fusion_emitters"] = False
_ALL = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True, **OPTIONS}
FLAGS = {"XLA_FLAGS": " ".join(f"--{name}={str(value).lower()}" for name, value in _ALL.items())}
"""The same settings in the environment of a process that a test starts."""


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Compile with these settings in this context; options that a call has itself take precedence."""
    original, optimized = compiler.get_compile_options, not jax.config.values["jax_disable_most_optimizations"]

    def get_compile_options(*args: Any, env_options_overrides: dict[str, Any] | None = None, backend: Any, **kwargs: Any) -> Any:
        options = env_options_overrides or {}
        if backend.platform == "cpu":
            options = OPTIONS | options
        return original(*args, env_options_overrides=options, backend=backend, **kwargs)

    jax.config.update("jax_disable_most_optimizations", True)
    compiler.get_compile_options = get_compile_options
    try:
        yield
    finally:
        compiler.get_compile_options = original
        jax.config.update("jax_disable_most_optimizations", not optimized)
