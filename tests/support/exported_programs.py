"""Runs exported programs in a process without the zoo, by the script of docs/programs.md."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.support import compilation
from tests.support.processes import ROOT, run_python
from zoo.runtime.jax_setup import SAFE_FLAG, SAFE_VALUE

DOCUMENT = ROOT / "docs" / "programs.md"
ENVIRONMENT = {"XLA_FLAGS": f"{SAFE_FLAG}={SAFE_VALUE} {compilation.FLAGS['XLA_FLAGS']}", "JAX_PLATFORMS": "cpu"}
"""As quick a compilation as that of the tests, so that results are rounded alike."""
RUNNER = """
import json, os, sys
sys.path[:] = [folder for folder in sys.path if not os.path.isdir(os.path.join(folder or ".", "zoo"))]
import numpy as np
script, jobs = open("run.py").read(), json.load(open("jobs.json"))
results = []
for number, job in enumerate(jobs):
    sys.argv = ["run.py", job["folder"]]
    names = {"__name__": "run"}
    exec(compile(script, "run.py", "exec"), names)
    programs = {}
    for place, (program, file) in enumerate(job["calls"]):
        arrays, arguments = np.load(file), {}
        for name in arrays:
            part, _, leaf = name.partition("/")
            arguments.setdefault(part, {})[leaf] = arrays[name]
        if program not in programs:
            programs[program] = names["load"](program)
        given = [arguments[part] for part in ("inputs", "cache") if part in arguments]
        outputs = programs[program](names["weights"], *given)
        flat = {name: value for name, value in outputs.items() if name != "cache"}
        flat |= {"cache/" + name: value for name, value in outputs.get("cache", {}).items()}
        np.savez(f"outputs-{number}-{place}.npz", **flat)
    results.append(names["continue_rows"](job["rows"], job["count"]) if job["rows"] else [])
json.dump({"tokens": results, "zoo": [name for name in sys.modules if name.split(".")[0] in ("zoo", "train", "flax")]},
          open("results.json", "w"))
"""


@dataclasses.dataclass(frozen=True)
class Job:
    """What to run of a folder with programs."""

    folder: Path
    calls: Sequence[tuple[str, Sequence[Mapping[str, Any]]]] = ()
    """Programs, each with its inputs and, if it has one, its cache."""
    rows: Sequence[Sequence[int]] = ()
    """Prompts to continue."""
    count: int = 0


def document_script() -> str:
    """Return the script of the document."""
    (script,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return script


def run_without_zoo(place: Path, jobs: Sequence[Job]) -> tuple[list[list[dict[str, np.ndarray]]], list[list[list[int]]]]:
    """Run jobs in one new process, in the folder `place`; return the outputs of all calls by job, and the tokens by job."""
    place.mkdir(exist_ok=True)
    (place / "run.py").write_text(document_script())
    (place / "runner.py").write_text(RUNNER)
    contents: list[dict[str, Any]] = []
    for number, job in enumerate(jobs):
        files = []
        for index, (program, arguments) in enumerate(job.calls):
            parts = zip(("inputs", "cache"), arguments, strict=False)
            arrays = {f"{part}/{name}": value for part, values in parts for name, value in values.items()}
            np.savez(file := place / f"{number}-{index}.npz", **arrays)
            files.append((program, str(file)))
        contents.append({"folder": str(job.folder), "calls": files, "rows": job.rows, "count": job.count})
    (place / "jobs.json").write_text(json.dumps(contents))
    ended = run_python("-P", "runner.py", cwd=place, env=ENVIRONMENT)
    assert ended.code == 0, ended.stderr
    results = json.loads((place / "results.json").read_text())
    assert results["zoo"] == []
    outputs = [
        [dict(np.load(place / f"outputs-{number}-{index}.npz")) for index in range(len(job.calls))]
        for number, job in enumerate(jobs)
    ]
    return outputs, results["tokens"]
