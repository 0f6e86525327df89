"""Random models and thousands of mutants of their files: each refused, or equal to `transformers`. Needs the group `parity`."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.support import model_mutants, published
from tests.support import transformers_outputs as theirs
from tests.support.small import as_batch, outputs
from train.config import run_config
from train.engine import device_mesh
from zoo import models, published_weights
from zoo.configs import Exported
from zoo.errors import BadInput

pytestmark = pytest.mark.parity

CONFIGURATIONS, MUTANTS, COMPILED, LENGTHS = 10, 150, 4, (23, 11)
"""Models of a family; mutants of each config.json, and how many of those may be other models, which are compiled; tokens."""
FACTORS = (1.0, 3.0, 10.0)
"""How much larger than usual weights are; the largest saturate attention. T5's scores are not scaled, and 3 saturates them: with
10 they are in the thousands, and their roundings alone move outputs by more than the bound."""
SILENT, LENIENT, HANGS, LINES = "SILENT DIFFERENCE", "read here, refused there", "HANGS", "refused in several lines"
WRONG = (SILENT, LENIENT, HANGS, LINES)
LONGEST_READ = 5
"""Seconds of CPU time that reading a mutant may take."""


@functools.cache
def program(cfg: Any) -> Any:
    return jax.jit(functools.partial(outputs, models.model(cfg)))


def core(cfg: Any) -> Any:
    """Return a configuration without what changes no output: programs are compiled for what is left."""
    rates = {field.name: 0.0 for field in dataclasses.fields(cfg) if field.name.endswith("dropout")}
    memory = {"memory": 0, "reuse": 0} if hasattr(cfg, "memory") else {}
    return dataclasses.replace(cfg, exported=Exported(), **rates, **memory)


@dataclasses.dataclass
class Case:
    """A random model on the disk, and what both sides compute with it."""

    family: str
    task: str
    content: dict[str, Any]
    folder: Path
    stored: dict[str, np.ndarray]

    def __post_init__(self) -> None:
        self.asked = theirs.given(self.content | {"pad_token_id": self.content.get("pad_token_id") or 0}, LENGTHS, self.task)
        # Ids that a mutant calls padding are no token's: RoBERTa counts positions by them.
        # T5's classifier makes the decoder's tokens of the source, so these may not differ from it.
        if (self.family, self.task) != ("t5", "sequence"):
            self.asked["tokens"] = np.where(self.asked["real"], np.maximum(self.asked["tokens"], 8), self.asked["tokens"])
        self.cfg = core(published_weights.open_folder(self.folder).config)
        self.architecture = self.content["architectures"][0]
        self.their_config, self.compiled = self.parsed(), 0
        self.ours, self.expected = self.computed_here(), self.computed_there()

    def parsed(self) -> dict[str, Any]:
        """Return the configuration that `transformers` makes of the file; if it refuses the file, raise what it raises."""
        import transformers

        return getattr(transformers, self.architecture).config_class.from_pretrained(self.folder).to_dict()

    def computed_here(self) -> dict[str, np.ndarray]:
        cfg, params = published_weights.load_published(self.folder, device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1]))
        computed = program(core(cfg))(params, as_batch(self.asked))
        return {name: np.asarray(each)[..., : cfg.vocab] for name, each in computed.items()}

    def computed_there(self, dtype: str = "float32") -> dict[str, np.ndarray]:
        """Return the outputs of `transformers`; if it refuses the file or cannot compute, raise what it raises."""
        import torch
        import transformers

        kind = getattr(transformers, self.architecture)
        # The other implementations of experts need strides of 16 bytes, and have no float64.
        options = {"experts_implementation": "eager"} if self.family == "gpt_oss" else {}
        net, report = kind.from_pretrained(
            self.folder, attn_implementation="eager", output_loading_info=True, dtype=getattr(torch, dtype), **options
        )
        if any(report.values()):
            raise ValueError(report)
        net.config.return_dict, net.config.output_attentions = True, False
        with torch.no_grad():
            return {name: each.numpy() for name, each in theirs.outputs(net.eval(), self.task, self.asked).items()}

    def outcome(self) -> str:
        """Return what becomes of the files as they are now; "" for one model too many."""
        try:
            with cpu_limit(LONGEST_READ):
                same = core(published_weights.read_config(self.folder)[0]) == self.cfg
                if not (same and self.tensors_are_whole()):
                    published_weights.open_folder(self.folder)
        except BadInput as refusal:
            return LINES if "\n" in str(refusal) else f"refused {self.refused_there()}"
        except TimeoutError:
            return HANGS
        self.compiled += not same
        if self.compiled > COMPILED and not same:
            return ""
        try:
            if same and self.tensors_are_whole() and self.parsed() == self.their_config:
                return "the same configuration"
            expected = self.computed_there()
        except Exception:
            return LENIENT
        ours = self.ours if same and self.tensors_are_whole() else self.computed_here()
        return "equal" if self.agree(ours, expected) else SILENT

    def refused_there(self) -> str:
        """Return whether `transformers` refuses the files too, or only the code here."""
        try:
            with warnings.catch_warnings(action="ignore"):
                self.computed_there()
        except Exception:
            return "by both"
        return "here only"

    def agree(self, ours: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
        """Whether the outputs of real tokens are equal within 1e-4 of 1, or of the largest.

        Saturated attention can enlarge roundings beyond that. Then both are compared with `transformers` in float64, and the
        error here may be the bound and twice the error that `transformers` has in float32.
        """
        if ours.keys() != expected.keys() or any(ours[name].shape != each.shape for name, each in expected.items()):
            return False
        exact: dict[str, np.ndarray] = {}
        for name, each in expected.items():
            counts = np.ones(each.shape[:2], bool) if name == "sequences" else self.asked["real"]
            bound = 1e-4 * max(1.0, np.abs(each[counts]).max())
            if np.abs(ours[name] - each)[counts].max() < bound:
                continue
            exact = exact or self.computed_there("float64")
            here, there = (np.abs(outputs - exact[name])[counts].max() for outputs in (ours[name], each))
            if not here < bound + 2 * there:
                return False
        return True

    def tensors_are_whole(self) -> bool:
        return not (self.folder / "damaged").exists()

    def mutated_configs(self, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
        """Write mutants of the config.json, one after the other."""
        several = list(model_mutants.mutants(self.content, self.family))
        for at in rng.permutation(len(several))[:MUTANTS]:
            kind, change, content = several[at]
            (self.folder / "config.json").write_text(json.dumps(content))
            yield f"config.json, {kind}", change
        (self.folder / "config.json").write_text(json.dumps(self.content))

    def mutated_tensors(self, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
        (self.folder / "damaged").touch()
        for kind, change, stored in model_mutants.tensor_mutants(self.stored, rng):
            published.write_files(self.folder, self.content, stored)
            yield f"tensors, {kind}", change


@contextlib.contextmanager
def cpu_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in a block that takes more CPU time."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


Counts = collections.Counter[tuple[str, str, str]]


@pytest.fixture(scope="module")
def counts(request: pytest.FixtureRequest) -> Iterator[Counts]:
    """Models and mutants by their type, their kind and what became of them; printed at the end."""
    counts = Counts()
    yield counts
    capture: Any = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{counts.total():,} models and mutants")
        for first in (1, 0):
            sums = Counts()
            for names, count in counts.items():
                sums[names[first], names[2], ""] += count
            for (name, outcome, _), count in sorted(sums.items()):
                print(f"  {name:34} {outcome:26} {count:6,}")


@pytest.mark.parametrize("base", model_mutants.BASES)
@pytest.mark.parametrize("number", range(CONFIGURATIONS))
def test_every_mutant_is_refused_or_equal(base: str, number: int, tmp_path: Path, counts: Counts) -> None:
    """A model of odd sizes with some head and saturated weights; then one change at a time to its config.json or a tensor."""
    pytest.importorskip("torch")
    family, rng = model_mutants.BASES[base], np.random.default_rng(number)
    tasks = [task for task, names in models.family(family).names.items() if names.architecture]
    task = tasks[number % len(tasks)]
    content = published.config(family, task, model_mutants.drawn(rng, base))
    factor = min(FACTORS[number % len(FACTORS)], 3.0 if family == "t5" else 10.0)
    stored = model_mutants.saturated(published.write(tmp_path / "model", content), factor)
    case = Case(family, task, content, published.write_files(tmp_path / "model", content, stored), stored)
    outcome = "equal" if case.agree(case.ours, case.expected) else SILENT
    wrong = [] if outcome == "equal" else [(SILENT, "as it was drawn")]
    counts[base, "random configuration", outcome] += 1
    for kind, change in itertools.chain(case.mutated_configs(rng), case.mutated_tensors(rng)):
        if outcome := case.outcome():
            counts[base, kind, outcome] += 1
        if outcome in WRONG:
            wrong.append((outcome, change))
    assert wrong == [], content
