"""Declarations of experiments: frozen dataclasses that describe rows, stages, claims and tiers. Nothing here imports JAX.

A row is a variant of a method; each of its cells is a chain of stages with one seed: training, fine-tuning, evaluation. The
options of a stage are, in rising precedence, those of the stage, of the tier, and of the row.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from zoo.errors import BadInput

Budget = Literal["input_tokens", "text_tokens", "flops"]
Corpus = Literal["embedded", "public", "user"]
Tasks = Literal["generated", "files"]
Kind = Literal["less", "greater", "equivalent"]
TIERS = ("smoke", "nano", "night", "paper")
LARGEST_CLAIMS = 4
"""Maximum number of claims: Holm's correction for more would need many more seeds."""
FEWEST_SEEDS = 5
"""Seeds of each row without which there is no verdict."""
TEXT = {"data.paths": "{train}", "data.valid_paths": "{valid}"}
"""Options of a stage that trains on the experiment's corpus. In values, {train} and {valid} stand for the folders of the training
text and of the held-out text, {tasks} for the folder of the task files, and {run} for the folder of the stage's own parent."""


@dataclasses.dataclass(frozen=True)
class Times:
    """A value of a row that is a multiple of the stage's value, for example four times the steps."""

    factor: float


@dataclasses.dataclass(frozen=True)
class Flops:
    """The number of steps with which a training run takes so many FLOPs, by the formula of its objective."""

    total: float


Value = bool | int | float | str | tuple[str | int | float, ...] | Times | Flops | None
"""Value of an option; None leaves the option out, which gives it the default of the recipe."""
Options = Mapping[str, Value]
"""Dotted key of an option, as in config.json ("data.valid_paths") -> its value."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A step of every row's chain: a training run, or with `task` an evaluation of its parent (`zoo eval RUN --task ...`)."""

    name: str
    recipe: str = ""
    """Recipe of a training run."""
    overrides: Options = dataclasses.field(default_factory=dict)
    after: str | None = None
    """Name of the parent stage, whose run this stage continues or evaluates."""
    parent_option: str = "init"
    """Option that names the parent's run: init or distillation.teacher."""
    task: str | None = None
    """Task of an evaluation."""
    shared: bool = False
    """One run for each seed serves all rows, as a teacher does; rows cannot change it."""
    seconds: float = 0.0
    """Estimated seconds of scoring with the nano recipes on `public`, only for the estimate of the time of a tier above smoke."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table: one method, trained with every seed."""

    name: str
    label: str
    overrides: Options = dataclasses.field(default_factory=dict)
    """Options of the main stage, the first that rows do not share."""
    stages: Mapping[str, Options] = dataclasses.field(default_factory=dict)
    """Options of the stages other than the main one, by the name of the stage."""
    recipes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Recipes that replace those of stages, by name of the stage."""
    tokenizer: str = ""
    """Recipe that trains the tokenizer of the row; empty = the tokenizer of all rows. Rows of a claim have one tokenizer."""
    without: tuple[str, ...] = ()
    """Stages that the row does not have; its later stages then have no such parent."""
    group: str = ""
    """Rows of one group have equal budgets; rows of different groups are not compared by their budgets."""
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Published numbers by the paper's name of the metric ("MNLI-m")."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement of the paper about the mean of a metric over seeds."""

    id: str
    text: str
    kind: Kind
    """less: the mean of `row` is below that of each reference."""
    metric: str
    """Name of the stage and of the score: "pretrain/masked_loss"."""
    row: str
    reference: tuple[str, ...]
    """Names of the rows that `row` is compared with."""
    margin: float
    """The margin of an equivalence, or the smallest difference of interest of a direction, in units of the metric. A direction is
    reproduced if the difference is beyond it. A seed learned if it is better than the floor by more than it."""
    source: str
    """Paper, table and rows."""
    paper_difference: float | None = None
    """Published value of `row` minus that of `reference` in the paper's metric, whichever direction is better there; of
    perplexities, the difference of their logarithms."""
    paired: bool = False
    """Compare the rows seed by seed; right if the rows of a seed share a teacher, or initial parameters and the order of rows."""
    better: Literal["lower", "higher"] | None = None
    """The better direction of a score whose name does not determine it."""
    pilot_deviation: float | None = None
    """Standard deviation over seeds in a pilot with other seeds, the largest of the rows (paired: of the differences). The error
    of the claim is never computed from a smaller one."""
    second_metric: str | None = None
    """A further metric by which the claim is judged, with a margin and a pilot of its own; the two may disagree. If the better
    values of one are the lower ones and those of the other the higher ones, the direction is the opposite one."""
    second_margin: float = 0.0
    second_pilot_deviation: float | None = None

    @property
    def by_metric(self) -> tuple["Claim", ...]:
        """Return the claim as it is for each of its metrics."""
        if self.second_metric is None:
            return (self,)
        values = {"metric": self.second_metric, "margin": self.second_margin, "pilot_deviation": self.second_pilot_deviation}
        first = dataclasses.replace(self, second_metric=None, second_margin=0.0, second_pilot_deviation=None)
        return first, dataclasses.replace(first, **values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tier:
    """A scale at which an experiment runs."""

    corpus: Corpus = "public"
    """embedded: Moby-Dick, which the project contains. public: the pinned corpus. user: a corpus that the user names."""
    tasks: Tasks = "files"
    """generated: small task files made of the embedded corpus. files: the published data sets, in a folder of the user's."""
    seeds: int = 5
    """Number of seeds; a verdict needs `FEWEST_SEEDS`."""
    looks: tuple[int, ...] = ()
    """Numbers of seeds after which the claims are judged, the last of them all seeds; none = only after all seeds."""
    rows: tuple[str, ...] = ()
    """Rows of the tier; none = all. Claims about other rows are not registered."""
    overrides: Mapping[str, Options] = dataclasses.field(default_factory=dict)
    """Options by name of the stage."""
    recipes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Recipes that replace others at this scale: {"bert-nano": "bert"}."""
    rates: tuple[float, ...] = ()
    """Factors of each row's learning rate in the main stage, of which a pilot chooses one for the row; none = there is no pilot.
    A row's rate is the stage's or, with `Times`, a multiple of it."""
    pilot_seeds: tuple[int, ...] = (1000, 1001)
    """Seeds of the pilot, none of which the grid may have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A grid of rows and seeds, and the claims that it tests."""

    name: str
    question: str
    source: str
    """Paper and table."""
    scale: str
    """Sizes and budgets here and in the paper, in words; {parameters} and {tokens} are filled in from the runs."""
    rows: tuple[Row, ...]
    control: str
    """Row that does not learn by the method, as one without pretraining: a seed that is not better did not learn."""
    stages: tuple[Stage, ...]
    budget: Budget
    claims: tuple[Claim, ...]
    tiers: Mapping[str, Tier]
    forecast: Mapping[str, str]
    """Claim -> the result that is expected at small scale, written before any run."""
    seeds: int = 5
    """Number of seeds of a tier that does not set it."""
    tokenizer: str = ""
    """Recipe that trains the tokenizer of all rows; empty = the recipe of the main stage."""
    floors: tuple[tuple[str, str, float, str], ...] = ()
    """Scores of trivial baselines on the published task files, which a seed must beat: (name, metric, value, source)."""
    is_pilot: bool = False
    """True for the pilot of an experiment: `eval.experiments.pilot`."""
    judge: Callable[..., list[dict[str, Any]]] | None = None
    """Function with the signature of `eval.experiments.analysis.verdicts.judge` that replaces it."""

    def stage(self, name: str) -> Stage:
        """Return the stage of a name."""
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def main(self) -> Stage:
        """Return the first stage that rows do not share."""
        return next(stage for stage in self.stages if not stage.shared)

    def tier_rows(self, tier: str) -> tuple[Row, ...]:
        """Return the rows of a tier."""
        names = self.tiers[tier].rows
        return tuple(row for row in self.rows if not names or row.name in names)

    def tier_claims(self, tier: str) -> tuple[Claim, ...]:
        """Return the claims about rows of a tier; all claims if the experiment has its own judge."""
        names = {row.name for row in self.tier_rows(tier)}
        return tuple(claim for claim in self.claims if self.judge or {claim.row, *claim.reference} <= names)

    def claims_by_metric(self, tier: str) -> tuple[Claim, ...]:
        """Return the claims of a tier, a claim with two metrics as two."""
        return tuple(part for claim in self.tier_claims(tier) for part in claim.by_metric)

    def __post_init__(self) -> None:
        """Refuse a declaration whose names do not fit together.

        Raises:
            BadInput: names the experiment, the part and the problem.
        """
        for problem in _problems(self):
            raise BadInput(f"experiment {self.name}: {problem}")


def _problems(experiment: Experiment) -> list[str]:
    """Return the errors in the names of an experiment, one in a line."""
    rows, stages = [row.name for row in experiment.rows], [stage.name for stage in experiment.stages]
    problems = []
    if experiment.control not in rows:
        problems.append(f"there is no control: {experiment.control!r} is not a row; add a row that does not learn by the method")
    for kind, names in (("row", rows), ("stage", stages), ("claim", [claim.id for claim in experiment.claims])):
        problems += [
            f"{kind} {name}: two have this name; rename one" for name in sorted({n for n in names if names.count(n) > 1})
        ]
    for place, stage in enumerate(experiment.stages):
        if bool(stage.recipe) == bool(stage.task):
            problems.append(f"stage {stage.name}: give it either a recipe or a task")
        if stage.after is not None and stage.after not in stages[:place]:
            problems.append(f"stage {stage.name}: its parent {stage.after} is not an earlier stage")
        if stage.task and stage.after is None:
            problems.append(f"stage {stage.name}: an evaluation needs a parent")
    for row in experiment.rows:
        shared = {stage.name for stage in experiment.stages if stage.shared}
        used = {*row.stages, *row.recipes, *row.without}
        problems += [f"row {row.name}: there is no stage {name}" for name in sorted(used - {*stages})]
        problems += [
            f"row {row.name}: the stage {name} is shared by all rows" for name in sorted({*row.stages, *row.recipes} & shared)
        ]
    for tier, settings in experiment.tiers.items():
        if tier not in TIERS:
            problems.append(f"tier {tier}: choose {', '.join(TIERS)}")
        problems += [f"tier {tier}: there is no row {name}" for name in settings.rows if name not in rows]
        if settings.rows and experiment.control not in settings.rows:
            problems.append(f"tier {tier}: it lacks the control {experiment.control}; add it")
        problems += [f"tier {tier}: there is no stage {name}" for name in settings.overrides if name not in stages]
        if settings.rates and "optim.lr" not in {**experiment.main.overrides, **settings.overrides.get(experiment.main.name, {})}:
            problems.append(f"tier {tier}: its rates are multiples of optim.lr of the stage {experiment.main.name}; set it")
        looks = settings.looks
        if looks and (looks[0] < FEWEST_SEEDS or looks[-1] != settings.seeds or sorted({*looks}) != [*looks]):
            problems.append(
                f"tier {tier}: its looks {looks} must rise from {FEWEST_SEEDS} to its number of seeds, {settings.seeds}"
            )
    if len(experiment.claims) > LARGEST_CLAIMS:
        problems.append(f"{len(experiment.claims)} claims: register at most {LARGEST_CLAIMS}")
    for claim in experiment.claims:
        if claim.id not in experiment.forecast:
            problems.append(f"claim {claim.id}: it has no forecast; write down what you expect before you run it")
        if experiment.judge is None:
            problems += [f"claim {claim.id}: there is no row {n}" for n in (claim.row, *claim.reference) if n not in rows]
        for part in claim.by_metric:
            if part.metric.partition("/")[0] not in stages:
                problems.append(f"claim {claim.id}: {part.metric} names no stage; write STAGE/SCORE")
            if part.margin <= 0:
                problems.append(f"claim {claim.id}: its margin {part.margin} of {part.metric} must be above 0")
            if part.pilot_deviation is not None and part.pilot_deviation <= 0:
                problems.append(f"claim {claim.id}: its pilot_deviation {part.pilot_deviation} must be above 0")
    return problems
