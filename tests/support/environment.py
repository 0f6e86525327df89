"""The environment in which JAX starts for the tests. `tests/conftest.py` imports this module before anything else.

The process gets eight simulated CPU devices and no network. Compiled programs are kept between runs of the tests, in `tests/`
below the cache folder of the zoo or in the folder that ZOO_TESTS_CACHE names; entries that no run has used for a week are
deleted. A damaged entry is found by its digest and compiled again (`zoo.runtime.compile_cache`). Everything else that is cached
lies in a temporary folder.
"""

import gc
import os
import signal
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# Where it is set, each process that a test starts compiles JAX's sources anew, which takes longer than most tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
INHERITED = dict(os.environ)
"""The environment before any library has changed it: scikit-learn and `tokenizers`, for example, set variables when imported."""
# A shell starts its background jobs, and all their children, with SIGINT ignored: tests that send it would never end.
signal.signal(signal.SIGINT, signal.default_int_handler)
# nohup has SIGHUP ignored. A handler that does nothing protects this process as well, and no process that it starts inherits it.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)

import jax  # noqa: E402

from zoo.runtime import caches, compile_cache, jax_setup  # noqa: E402

COMPILED = caches.private_folder(
    Path(os.environ.get("ZOO_TESTS_CACHE") or caches.cache_dir() / "tests", f"compiled-{jax_setup.processor_digest()}"),
    "ZOO_TESTS_CACHE" if os.environ.get("ZOO_TESTS_CACHE") else "ZOO_CACHE",
)
"""Compiled programs of all runs of the tests, and of the processes that they start."""

_TEMPORARY = tempfile.TemporaryDirectory(prefix="zoo-tests-")
SCRATCH = Path(_TEMPORARY.name)
"""A folder that is deleted when this process ends."""

# Torch would divide each small operation among threads that wait for each other: a model's mutants took 16 s instead of 6 s on
# two busy cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["ZOO_CACHE"] = str(SCRATCH / "here")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(COMPILED)
# JAX has read the environment if a plugin of pytest imported it first.
jax.config.update("jax_compilation_cache_dir", str(COMPILED))
compile_cache.remove_unused(COMPILED, days=7.0)
jax_setup.prepare_jax(devices=8)
# Traced programs are many small objects that live long; Python's default of 700 new ones starts most collections for nothing.
gc.set_threshold(100_000, 50, 100)
