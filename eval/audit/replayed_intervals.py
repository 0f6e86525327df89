"""The replay of intervals of a run: its steps are taken again from stored states in a temporary folder, and compared."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from eval.audit.audit_types import Interval
from eval.audit.comparison import array_problem, relative_difference, row_problem, values_problem
from eval.audit.hardware import LARGEST_DISTANCE, hardware_differences, starts_of_steps
from eval.audit.run_digests import Manifests
from eval.tasks.held_out.scorers import scorer
from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.manifest import NAME, by_path, folder_name
from train.config.run_config import Mesh, Run
from train.engine.averages import scored_parameters
from train.loop.loop_state import TrainingLoop
from train.replay import Replays
from train.run.metrics_file import read_rows
from train.run.run_dir import RunDir, as_json, read_config, write_json
from zoo.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Replayed:
    """The result of the replay of an interval."""

    interval: Interval
    differences: tuple[str, ...]
    """Facts about the machine that differ from those of the run, because of which losses are compared within a bound."""
    rows: int
    """Number of rows of metrics.jsonl that were compared."""
    problems: tuple[str, ...]
    has_best: bool = False
    """True if the best checkpoint is of a step of the interval, and was compared."""
    distance: float | None = None
    """Relative difference of the parameters at the end from those stored there; None if the bits were compared, or nothing."""

    @property
    def has_same_state(self) -> bool:
        """True if the replay ended at a stored state, to the bit."""
        return self.interval.is_complete and not self.differences and not self.problems

    def states(self, best: int | None) -> set[int]:
        """Return the steps of the stored states that the replay has compared, `best` included, if it found no difference."""
        passed = [*([self.interval.end] if self.interval.is_complete else []), *([best] if self.has_best and best else [])]
        return set() if self.problems else {*passed}

    def record(self) -> dict[str, Any]:
        """Return the result as JSON."""
        span, bits = self.interval, not self.differences
        return {
            "from_step": span.first,
            "to_step": span.last,
            "next_stored_state": span.end,
            "compared": "bits" if bits else "losses within the bound",
            "because": list(self.differences),
            "rows": self.rows,
            "state": "not compared" if not span.is_complete else "compared" if bits else "parameters within the bound",
            "best_checkpoint": "compared" if self.has_best else "not in the interval",
            **({} if self.distance is None else {"parameters_differ_by": self.distance}),
            "result": "failed" if self.problems else "passed",
            "problems": list(self.problems),
        }


class RunReplays:
    """Replays of intervals of one run, which write to a temporary folder only.

    Intervals of the same configuration share what is read and compiled.
    """

    def __init__(
        self,
        folder: RunDir,
        run: Run,
        manifests: Manifests,
        starts: Sequence[Mapping[str, Any]],
        here: Any,
        work: Path,
        best: int | None = None,
    ) -> None:
        """Describe the replays.

        Args:
            folder: the run, which is only read.
            run: its configuration.
            manifests: those of its checkpoints.
            starts: rows of its starts.jsonl.
            here: "provenance" and "versions" of this process.
            work: an empty folder for what the replays write.
            best: step of the best checkpoint, which replays that take this step compare; None = the run keeps none.
        """
        self._best = best
        self._folder, self._run, self._manifests, self._starts, self._here, self._work = (
            folder,
            run,
            manifests,
            starts,
            here,
            work,
        )
        self._prepared: dict[str, Replays] = {}
        self._metrics, self._ledger = read_rows(folder.metrics), read_rows(folder.ledger)

    @functools.cached_property
    def final(self) -> Replays:
        """The run with the configuration of its newest start."""
        return self._replays(self._run.steps, self._starts[-1])

    def replay(self, interval: Interval, *, other_versions: Sequence[str]) -> Replayed:
        """Take the steps of an interval again, and compare rows, the ledger, the position of the data, and the state.

        Raises:
            BadInput: the steps cannot be taken here, for example because the model of --init is missing.
        """
        starts = starts_of_steps(self._starts, interval.first, interval.last)
        differences = [line for start in starts for line in hardware_differences(start, self._here)]
        differences = list(dict.fromkeys([*other_versions, *differences]))
        if any(start.get("options") != starts[0].get("options") for start in starts):
            differences.append("options: the interval has steps of several starts")
        manifest = self._manifests[interval.end]
        replays = self._replays(manifest.meta["config"]["steps"], starts[0])
        folder, selected = self._state_folder(interval), dict[str, Any]()

        def keep_best(loop: TrainingLoop) -> None:
            if loop.step == self._best:
                selected.update(_scored_part(loop))

        loop, reached = replays.take_steps(folder, interval.last, keep_best)
        problems = [] if loop.start.first == interval.first else [f"the arrays are of step {loop.start.first}"]
        rows, row_problems = self._compare_rows(folder, interval, bits=not differences)
        problems += row_problems
        if interval.is_complete:
            stored = {name: manifest.meta.get(name) for name in reached}
            problems += [f"checkpoint: {text}"] if (text := values_problem(stored, reached, bits=True)) else []
        distances = []
        if interval.is_complete and not differences:
            problems += self._compare_state(loop, replays, interval.end)
        elif interval.is_complete:
            computed = _parameters(loop.global_state().params, loop)
            distances.append(self._compare_parameters(self._folder.checkpoints, interval.end, computed, replays, problems))
        if selected and self._best is not None:
            exact = not differences
            distance = self._compare_parameters(self._folder.best, self._best, selected, replays, problems, exact=exact)
            distances += [] if exact else [distance]
        return Replayed(interval, tuple(differences), rows, tuple(problems), bool(selected), max(distances, default=None))

    def _compare_parameters(
        self,
        place: Path,
        step: int,
        computed: Mapping[str, Any],
        replays: Replays,
        problems: list[str],
        *,
        exact: bool = False,
    ) -> float:
        """Compare the parameters and the step of a checkpoint, add what is wrong to `problems`, and return their distance."""
        state = replays.abstract_state
        restored = Checkpoints(place, 1, notify=_ignore).restore(
            {"params": state.params, "step": state.step}, step=step, partial=True
        )
        assert restored is not None
        stored = by_path(jax.device_get(restored[0]))
        distance = relative_difference(stored, computed)
        problem = array_problem(stored, computed) if exact else ""
        if not exact and int(stored["step"]) != int(computed["step"]):
            problem = f"the arrays are of step {int(stored['step'])}"
        elif not exact and not distance <= LARGEST_DISTANCE:
            problem = f"the parameters differ by {distance:.2g} of their norm, more than {LARGEST_DISTANCE:g}"
        problems += [f"{place.name}/{folder_name(step)}: {problem}"] if problem else []
        return distance

    def _compare_rows(self, folder: RunDir, interval: Interval, *, bits: bool) -> tuple[int, list[str]]:
        """Return the number of rows of metrics.jsonl that were compared, and what differs in them and in the ledger."""
        first, last, problems = interval.first, interval.last, []
        at_row = first == self._run.fork or any(row["step"] == first and row.get("kind") == "train" for row in self._metrics)
        for path, stored in ((folder.metrics, self._metrics), (folder.ledger, self._ledger)):
            # Fine-tuning begins with a validation before the first step.
            rows = [row for row in stored if first < row["step"] <= last or (first == 0 == row["step"])]
            partial = "" if at_row else next((f"train {row['step']}" for row in rows if row.get("kind") == "train"), "")
            if problem := row_problem(rows, read_rows(path), bits=bits or path == folder.ledger, partial=partial):
                problems.append(f"{path.name}: {problem}")
        return sum(first < row["step"] <= last for row in self._metrics), problems

    def _compare_state(self, loop: TrainingLoop, replays: Replays, step: int) -> list[str]:
        """Return what differs between the state of a replay and that of a checkpoint."""
        stored = Checkpoints(self._folder.checkpoints, 1, notify=_ignore).restore(replays.abstract_state, step=step)
        assert stored is not None
        problem = array_problem(*(by_path(jax.device_get(state)) for state in (stored[0], loop.global_state())))
        return [f"checkpoint of step {step}: {problem}"] if problem else []

    def _replays(self, steps: int, start: Mapping[str, Any]) -> Replays:
        """Return the replays of the configuration that a start had; `steps` are those of the run, which --extend changes."""
        options = dict(start.get("options", {}))
        devices = start.get("provenance", {}).get("devices", jax.device_count())
        key = json.dumps([steps, options, devices], sort_keys=True)
        if key in self._prepared:
            return self._prepared[key]
        place = self._work / f"configuration-{len(self._prepared)}"
        run = self._with_options(place, options)
        if devices != jax.device_count():
            run = dataclasses.replace(run, mesh=Mesh(), engine="jit")
        earlier = tuple(number for number in run.extended_from if number < steps)
        run = dataclasses.replace(run, steps=steps, extended_from=earlier, out=str(self._work), name=place.name)
        # With a checkpoint in it, the tokenizer is used.
        newest = max(self._manifests)
        copy = RunDir(place).checkpoints / folder_name(newest) / NAME
        copy.parent.mkdir(parents=True)
        shutil.copyfile(self._folder.checkpoints / folder_name(newest) / NAME, copy)
        shutil.copytree(self._folder.tokenizer, RunDir(place).tokenizer)
        self._prepared[key] = replays = Replays(run, evaluate=scorer)
        self._check_data(replays)
        return replays

    def _with_options(self, place: Path, options: Mapping[str, Any]) -> Run:
        """Return the run with the options of a start, given by dotted key."""
        stored = json.loads(json.dumps(as_json(self._run)))
        for key, value in options.items():
            *groups, name = key.split(".")
            try:
                functools.reduce(dict.__getitem__, groups, stored)[name] = value
            except (KeyError, TypeError):
                raise BadInput(f"{self._folder.starts}: the run has no option {key!r}; restore the file") from None
        place.mkdir()
        config = RunDir(place).config
        write_json(config, stored)
        run = read_config(place)
        config.unlink()
        return run

    def _check_data(self, replays: Replays) -> None:
        """Refuse data that are not those of the checkpoints, with both digests of each part."""
        current = replays.prepared.data.fingerprints()
        for manifest in self._manifests.values():
            changed = [
                f"{name}: {manifest.meta.get(name)} in the checkpoint, {value} here"
                for name, value in current.items()
                # Checkpoints of earlier versions have no digest of the text, which held_out depends on.
                if manifest.meta.get(name) != value and (name != "held_out_text" or name in manifest.meta)
            ]
            if changed:
                raise BadInput(f"{self._folder.path} was trained on other data: {'; '.join(changed)}; restore its files")

    def _state_folder(self, interval: Interval) -> RunDir:
        """Return a new folder with the state that an interval begins with."""
        folder = RunDir(self._work / f"from-{interval.first}")
        folder.path.mkdir()
        if interval.first > self._run.fork:
            name = folder_name(interval.first)
            shutil.copytree(self._folder.checkpoints / name, folder.checkpoints / name)
            if self._folder.base.is_dir():
                shutil.copytree(self._folder.base, folder.base)
        return folder


def _scored_part(loop: TrainingLoop) -> dict[str, Any]:
    """Return the parameters that RUN/best would have of a replay, and the step, by their paths."""
    return _parameters(scored_parameters(loop.global_state()), loop)


def _parameters(params: Any, loop: TrainingLoop) -> dict[str, Any]:
    """Return parameters of a replay and its step by their paths."""
    state = loop.global_state()
    return by_path(jax.device_get({"params": params, "step": state.step}))


def _ignore(line: str) -> None:
    """Show nothing: what a message of checkpoints says, the checks of an audit say too."""
