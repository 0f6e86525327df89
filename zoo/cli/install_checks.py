"""Checks of `zoo test-install`: files, this machine, modules, and a tiny model that is trained, exported and loaded again."""

import base64
import contextlib
import hashlib
import importlib
import importlib.metadata
import io
import pkgutil
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zoo.cli.doctor_report import PACKAGES, collect_facts
from zoo.errors import DISTRIBUTION, BadInput, printable
from zoo.file_access import read_regular

LARGEST_FILE = 1 << 26
"""Bytes; no file of the package is larger."""
TEXT = "".join(f"The {n}th whale is seen, and {n * n} more.\n\n" for n in range(400))
TINY = {
    "steps": 1,
    "model": {"vocab": 300, "context": 32, "layers": 2, "width": 32, "heads": 4, "head": 8, "ffn": 64},
    "tokenizer": {"vocab": 300},
    "optim": {"warmup": 0},
    "log": {"every": 1, "validate_rows": 8, "samples": 0},
}
"""Options of a run that takes seconds."""


def run_install_checks() -> int:
    """Run all checks in this process, which is prepared for JAX, print a line for each, and return the exit code."""
    failures = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checks: dict[str, Callable[[], str]] = {
            "files": check_files,
            "machine": check_machine,
            "modules": check_modules,
            "train": lambda: check_training(folder),
            "export": lambda: check_export(folder),
        }
        for check, function in checks.items():
            began = time.perf_counter()
            try:
                result, text = "ok  ", function()
            except Exception as error:
                failures += 1
                result, text = "FAIL", str(error) if isinstance(error, BadInput) else f"{type(error).__name__}: {error}"
            line = f"{result} {check:8} {' '.join(text.split())} ({time.perf_counter() - began:.1f} s)"
            print(printable(line), flush=True)
    return 1 if failures else 0


def check_files() -> str:
    """Compare the installed files with the digests that the wheel recorded.

    Raises:
        BadInput: a file is missing or was changed.
    """
    recorded = [file for file in importlib.metadata.files(DISTRIBUTION) or () if file.hash]
    own = [file for file in recorded if file.parts[0] in PACKAGES]
    for file in recorded:
        assert file.hash is not None
        path = Path(str(file.locate()))
        if not path.is_file():
            raise BadInput(f"{path}: missing; install {DISTRIBUTION} again")
        digest = hashlib.new(file.hash.mode, read_regular(path, LARGEST_FILE)).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            raise BadInput(f"{path}: was changed after its installation; install {DISTRIBUTION} again")
    return f"{len(own)} files have their recorded digests" if own else "not recorded, because this is an editable installation"


def check_machine() -> str:
    """Run the checks of `zoo doctor`.

    Raises:
        BadInput: the problems that it reports.
    """
    from zoo.attention import attention

    facts = collect_facts()
    if problems := (*facts.problems, *attention.wrong_kernels()):
        raise BadInput("; ".join(problems))
    versions = ", ".join(f"{name} {facts.versions[name]}" for name in ("python", "jax", "flax"))
    return f"{len(facts.devices)} x {facts.devices[0]} ({facts.platform}), {versions}"


def check_modules() -> str:
    """Import every module of the packages; a module may need an optional package that is not installed.

    Raises:
        BadInput: a module cannot be imported, or needs a module of the packages that does not exist.
    """
    count, absent, required = 0, set[str](), required_modules()
    for name in _module_names():
        try:
            importlib.import_module(name)
        except Exception as error:
            # A module may raise a refusal because of it.
            missing = error.__context__ if isinstance(error, BadInput) else error
            top = (missing.name or "").partition(".")[0] if isinstance(missing, ModuleNotFoundError) else ""
            if top in {"", *PACKAGES, *required}:
                fix = f"install {DISTRIBUTION} and its requirements again"
                raise BadInput(f"{name} cannot be imported ({type(error).__name__}: {error}); {fix}") from None
            absent.add(top)
        else:
            count += 1
    optional = f"; others need {', '.join(sorted(absent))}, which this project only uses where it is installed" if absent else ""
    return f"{count} can be imported{optional}"


def required_modules() -> set[str]:
    """Return the top-level modules of the packages that the project requires without an extra.

    Raises:
        BadInput: one of the packages is not installed.
    """
    required = {
        re.split(r"[^\w.-]", text, maxsplit=1)[0].lower().replace("_", "-")
        for text in importlib.metadata.requires(DISTRIBUTION) or ()
        if "extra ==" not in text
    }
    for name in required:
        if not any(importlib.metadata.distributions(name=name)):
            raise BadInput(f"{name}: not installed; install {DISTRIBUTION} and its requirements again")
    modules = importlib.metadata.packages_distributions()
    return {module for module, names in modules.items() if required & {name.lower().replace("_", "-") for name in names}}


def check_training(folder: Path) -> str:
    """Train a tiny model for one step, with its tokenizer, checkpoint, score and report.

    Raises:
        BadInput: training refused, or a result is missing or not finite.
    """
    import jax
    import numpy as np

    from zoo.cli import python_functions

    text = folder / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    rows = {"paths": [str(text)], "length": 32, "batch": 8 * jax.device_count()}
    with _quiet():
        run = python_functions.train("gpt-nano", **TINY, data=rows, out=str(folder), name="run")
    losses = [row["loss"] for row in python_functions.metrics(run)]
    if not losses or not np.isfinite(losses).all() or not (run / "report.html").is_file():
        raise BadInput(f"the losses {losses} are not finite, or the report is missing")
    return f"one step of a tiny GPT, held-out loss {losses[-1]:.3f}"


def check_export(folder: Path) -> str:
    """Export the model that `check_training` trained, load it again, and compare all parameters and the logits of a text.

    Raises:
        BadInput: a parameter or the logits differ.
    """
    import jax
    import numpy as np

    from zoo.cli import python_api

    with _quiet():
        trained = python_api.load(folder / "run")
        trained.export(folder / "exported")
        loaded = python_api.load(folder / "exported")
    before, after = (jax.tree_util.tree_leaves_with_path(model.params) for model in (trained, loaded))
    for (path, array), (_, other) in zip(before, after, strict=True):
        if not np.array_equal(array, other):
            raise BadInput(f"{jax.tree_util.keystr(path)} is different after export and import")
    text = TEXT.partition("\n")[0]
    logits = np.asarray(trained.logits(text))
    if not np.isfinite(logits).all() or not np.array_equal(logits, loaded.logits(text)):
        raise BadInput("the logits are not finite, or different after export and import")
    return f"{len(before)} arrays and the logits have equal bits after export and import"


def _module_names() -> Iterator[str]:
    """Yield the names of all modules of the packages, without programs (`__main__`)."""

    def refuse(name: str) -> Any:
        raise BadInput(f"the package {name} cannot be imported; install {DISTRIBUTION} again")

    for package in PACKAGES:
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, f"{package}.", onerror=refuse):
            if not module.name.endswith("__main__"):
                yield module.name


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard what the commands print; their errors are exceptions."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
