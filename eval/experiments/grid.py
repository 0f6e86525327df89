"""The nodes of an experiment: for each row, seed and stage a command of `zoo`, and the run that it describes.

Every command is parsed at once by the code that `zoo train` uses, so a wrong option is refused before anything runs. A stage that
continues another run needs that run's configuration; until the run exists, a temporary folder with its config.json replaces it.
"""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.experiments.declaration import Experiment, Flops, Options, Row, Stage, Times, Value
from eval.experiments.experiment_data import Files
from train.config.run_config import Run
from train.run.run_dir import RunDir
from zoo.errors import BadInput

ReadRun = Callable[[str, list[str]], Run]
"""Function from a recipe and its options to the run, as `zoo train` parses them."""
RUNS = "runs"
PARENTS = ("init", "distillation.teacher")
"""Options that name another run."""
TOKENIZER = "tokenizer"
"""Name of the run of one step whose tokenizer all rows use that do not name another."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """A process of the grid: a training run, or an evaluation of one."""

    name: str
    """Unique name, also that of its log."""
    run: str
    """Folder of the run that is trained or evaluated, relative to the experiment's."""
    argv: tuple[str, ...]
    """Arguments after `zoo`; paths are relative to the experiment's folder."""
    options: Options
    """The options in the arguments, their placeholders not replaced, without the name and the seed."""
    stage: str
    row: str
    """"" for a node that all rows share."""
    seed: int
    parents: tuple[str, ...]
    """Names of nodes that must be finished first."""
    config: Run
    """The run that is trained; of an evaluation, the one that is evaluated."""
    task: str = ""
    seconds: float = 0.0
    """Estimated seconds in addition to the training steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """All nodes of an experiment at a tier, in an order in which they can run."""

    experiment: Experiment
    tier: str
    seeds: tuple[int, ...]
    files: Files
    nodes: tuple[Node, ...]
    pilot: Mapping[str, Any] | None = None
    """The part of the registration that a pilot determined: `eval.experiments.pilot.read_pilot`."""

    def chain(self, row: str, seed: int) -> list[Node]:
        """Return the nodes of a cell in the order of the stages, those that it shares with other rows included."""
        without = {TOKENIZER, *next(declared.without for declared in self.experiment.rows if declared.name == row)}
        return [node for node in self.nodes if node.seed == seed and node.row in (row, "") and node.stage not in without]

    def levels(self) -> list[list[Node]]:
        """Return the nodes by level: those of a level need only nodes of earlier levels."""
        depth: dict[str, int] = {}
        for node in self.nodes:
            depth[node.name] = 1 + max((depth[name] for name in node.parents), default=-1)
        return [[node for node in self.nodes if depth[node.name] == level] for level in range(max(depth.values()) + 1)]


def build_grid(
    experiment: Experiment,
    tier: str,
    files: Files,
    read_run: ReadRun,
    *,
    seeds: tuple[int, ...] = (),
    flops_per_step: Callable[[Run], float] | None = None,
    pilot: Mapping[str, Any] | None = None,
) -> Grid:
    """Return the grid of an experiment at a tier; every run is parsed.

    Args:
        seeds: none = 0, 1, ... up to the tier's number of seeds.
        flops_per_step: the FLOPs of a training step, for options with a value of `Flops`.
        pilot: the part of the registration that a pilot determined.

    Raises:
        BadInput: the experiment has no such tier; or an option of a stage does not exist or has a wrong value, and the message
            names the experiment, the row and the stage.
    """
    if tier not in experiment.tiers:
        raise BadInput(f"--tier {tier}: {experiment.name} has {', '.join(experiment.tiers)}")
    seeds = seeds or tuple(range(experiment.tiers[tier].seeds or experiment.seeds))
    with tempfile.TemporaryDirectory() as folder:
        builder = _Builder(experiment, tier, files, read_run, flops_per_step, Path(folder))
        nodes = [builder.tokenizer(recipe) for recipe in dict.fromkeys(("", *(r.tokenizer for r in experiment.tier_rows(tier))))]
        for seed in seeds:
            for row in experiment.tier_rows(tier):
                nodes += [node for node in builder.cell(row, seed) if node.name not in {other.name for other in nodes}]
    return Grid(experiment=experiment, tier=tier, seeds=seeds, files=files, nodes=tuple(nodes), pilot=pilot)


@dataclasses.dataclass
class _Builder:
    experiment: Experiment
    tier: str
    files: Files
    read_run: ReadRun
    flops_per_step: Callable[[Run], float] | None
    folder: Path
    parsed: dict[tuple[str, ...], Run] = dataclasses.field(default_factory=dict)
    """Recipe and options of a run, without its seed -> the run."""
    keys: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Folder of a run -> its key in `parsed`."""

    def tokenizer(self, recipe: str) -> Node:
        """Return the node that trains a tokenizer: a run of one step of the main stage, before the options of any row.

        Args:
            recipe: "" = that of the experiment.
        """
        stage, name = self.experiment.main, tokenizer_name(recipe)
        row = Row(name=name, label="", recipes={stage.name: recipe or self.experiment.tokenizer or stage.recipe})
        options = {**_options(self.experiment, self.tier, stage, row), "steps": 1}
        argv, run, resolved = self._train(row, stage, 0, name, options)
        return Node(
            name=name,
            run=f"{RUNS}/{name}",
            argv=argv,
            options=resolved,
            stage=TOKENIZER,
            row="",
            seed=0,
            parents=(),
            config=run,
        )

    def cell(self, row: Row, seed: int) -> Iterator[Node]:
        """Yield the nodes of a row and a seed."""
        nodes: dict[str, Node] = {}
        for stage in self.experiment.stages:
            if stage.name in row.without:
                continue
            parent = nodes.get(stage.after or "")
            is_shared = stage.shared or (stage.task is not None and parent is not None and parent.row == "")
            name = f"{stage.name}-{seed}" if is_shared else f"{row.name}-{stage.name}-{seed}"
            with self._named(row, stage):
                if stage.task is not None:
                    assert parent is not None, "the declaration gives every evaluation a parent"
                    node = self._evaluation(row, stage, parent, name)
                else:
                    node = self._training(row, stage, seed, name, parent)
            nodes[stage.name] = node
            yield node

    def _training(self, row: Row, stage: Stage, seed: int, name: str, parent: Node | None) -> Node:
        options = dict(_options(self.experiment, self.tier, stage, row))
        if parent is None or stage.parent_option != "init":
            options = {"tokenizer.path": f"{RUNS}/{tokenizer_name(row.tokenizer)}/tokenizer", **options}
        if parent is not None:
            options[stage.parent_option] = parent.run
        argv, run, resolved = self._train(row, stage, seed, name, options)
        return Node(
            name=name,
            run=f"{RUNS}/{name}",
            argv=argv,
            options=resolved,
            stage=stage.name,
            row="" if stage.shared else row.name,
            seed=seed,
            parents=(parent.name if parent else tokenizer_name(row.tokenizer),),
            config=run,
            seconds=0.0 if self.tier == "smoke" else stage.seconds,
        )

    def _train(self, row: Row, stage: Stage, seed: int, name: str, options: Options) -> tuple[tuple[str, ...], Run, Options]:
        recipe = row.recipes.get(stage.name, stage.recipe)
        recipe = self.experiment.tiers[self.tier].recipes.get(recipe, recipe)
        resolved = self._resolved(recipe, options)
        words = self._words({"name": name, "out": RUNS, "seed": seed, "checkpoint.keep": 1, **resolved}, run="")
        run = _with_parent(dataclasses.replace(self._parse(recipe, resolved, name), name=name, out=RUNS, seed=seed), options)
        # The parent of a later stage, as far as its configuration is concerned.
        RunDir(self.folder / RUNS / name).path.mkdir(parents=True, exist_ok=True)
        RunDir(self.folder / RUNS / name).write_config(run)
        return ("train", recipe, *words), run, resolved

    def _resolved(self, recipe: str, options: Options) -> dict[str, Value]:
        """Return options without `Times` and `Flops`."""
        values: dict[str, Value] = {key: value for key, value in options.items() if not isinstance(value, Flops)}
        for key in options.keys() - values.keys():
            run = self._parse(recipe, values)
            assert self.flops_per_step is not None, f"{key} needs the FLOPs of a step"
            value = options[key]
            assert isinstance(value, Flops)
            values[key] = max(1, round(value.total / self.flops_per_step(run)))
        return values

    def _parse(self, recipe: str, options: Options, name: str = "") -> Run:
        """Return the run of a recipe and options; the runs that they name are those in the temporary folder."""
        parents = {key: str(options[key]) for key in PARENTS if options.get(key)}
        key = (recipe, *self._words({key: value for key, value in options.items() if key not in parents}, run=""))
        # The parents of two seeds have equal configurations, apart from their seed.
        key += tuple(word for parent in parents.values() for word in self.keys[parent])
        if key not in self.parsed:
            paths = {option: str(self.folder / parent) for option, parent in parents.items()}
            self.parsed[key] = self.read_run(recipe, self._words({"checkpoint.keep": 1, **options, **paths}, run=""))
        if name:
            self.keys[f"{RUNS}/{name}"] = key
        return self.parsed[key]

    def _evaluation(self, row: Row, stage: Stage, parent: Node, name: str) -> Node:
        assert stage.task is not None
        options = _options(self.experiment, self.tier, stage, row)
        return Node(
            name=name,
            run=parent.run,
            options=options,
            argv=("eval", parent.run, "--task", stage.task, *self._words(options, run=parent.run)),
            stage=stage.name,
            row=parent.row,
            seed=parent.seed,
            parents=(parent.name,),
            config=parent.config,
            task=stage.task,
            seconds=0.0 if self.tier == "smoke" else stage.seconds,
        )

    def _words(self, options: Options, run: str) -> list[str]:
        words = []
        for key, value in options.items():
            words += option_words(key, value, functools.partial(self.files.fill, run=run))
        return words

    @contextlib.contextmanager
    def _named(self, row: Row, stage: Stage) -> Iterator[None]:
        try:
            yield
        except BadInput as error:
            raise BadInput(f"experiment {self.experiment.name}, row {row.name}, stage {stage.name}: {error}") from None


def tokenizer_name(recipe: str) -> str:
    """Return the name of the run that trains a tokenizer by a recipe; "" = that of the experiment."""
    return f"{TOKENIZER}-{recipe}" if recipe else TOKENIZER


def option_words(key: str, value: Value, fill: Callable[[str], str] = str) -> list[str]:
    """Return an option as words of a command line: --data.batch 16, --selection.no-best, --data.paths a b."""
    name = key.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        group, _, last = name.rpartition(".")
        return [f"--{name}" if value else f"--{group}{'.' * bool(group)}no-{last}"]
    values = value if isinstance(value, tuple) else (value,)
    return [f"--{name}", *(fill(str(item)) for item in values)]


def _with_parent(run: Run, options: Options) -> Run:
    """Return a run whose parents are named as in its options, not as folders of the temporary one."""
    if options.get("init"):
        run = dataclasses.replace(run, init=str(options["init"]))
    if run.teacher:
        distillation = dataclasses.replace(run.options.distillation, teacher=str(options["distillation.teacher"]))
        run = dataclasses.replace(run, options=dataclasses.replace(run.options, distillation=distillation))
    return run


def _options(experiment: Experiment, tier: str, stage: Stage, row: Row) -> dict[str, Value]:
    """Return the options of a row's stage; a multiple is of the value in the stage or the tier."""
    options = {**stage.overrides, **experiment.tiers[tier].overrides.get(stage.name, {})}
    own: Mapping[str, Any] = {**(row.overrides if stage == experiment.main else {}), **row.stages.get(stage.name, {})}
    for key, value in own.items():
        if isinstance(value, Times):
            base = options[key]
            assert isinstance(base, int | float), f"{stage.name} has no number {key} that a row could multiply"
            options[key] = round(base * value.factor) if isinstance(base, int) else base * value.factor
        else:
            options[key] = value
    return options
