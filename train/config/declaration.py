"""Base classes of the declarations of objectives; `train.config.objectives` has the declarations themselves."""

import dataclasses
from typing import Any, ClassVar, TypeVar, get_type_hints

from train.config.data_options import Data
from zoo.configs import Objective
from zoo.configs._encoder import LABELLED
from zoo.errors import require

AUTO_CHUNK = -1
"""Number of positions that stands for `--loss-chunk auto`."""

Kind = TypeVar("Kind")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveOptions:
    """Base class of the declarations of objectives. An instance has the options of one run.

    Each subclass declares one objective, and has a field for each group of options (`Masking`, `Permutation`, ...) that it reads.
    The class of the objective in `train.objectives` names it as its `OPTIONS`.
    """

    objective: ClassVar[Objective | str]
    """Name of the objective."""
    data: ClassVar[type[Data]]
    """Class of the options of its data, which has their kind."""
    scorer: ClassVar[str]
    """Name of the scorer of its held-out data in `eval.tasks.held_out.scorers`. A subclass of a declared objective that names
    none has scores that are comparable with those of that objective."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics of its validations, any of which may select the checkpoint; empty = they depend on the labels.
    `train.run.metric_definitions.validation_metrics` adds those that depend on the head."""
    unused: ClassVar[tuple[str, ...]] = ()
    """Options of a run that the objective does not use, by dotted name; that of a group stands for all of its options."""
    has_pretrained_start: ClassVar[bool] = False
    """True if training begins with parameters of another model also without --init."""

    def check_run(self, run: Any) -> None:
        """Refuse a run whose configuration alone does not fit the objective, which its family supports.

        Args:
            run: a `train.config.run_config.Run` with these options.

        Raises:
            BadInput: names the option of the run.
        """

    def check_start(self, run: Any) -> None:
        """Refuse a run that lacks another model, such as that of --init. A plan, which needs only shapes, does not call this.

        Raises:
            BadInput: names the option that needs it.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenOptions(ObjectiveOptions):
    """Options of an objective that predicts tokens."""

    # The model has an LM head, and not one of labels or scores.
    unused = ("model.labels", "model.head_dropout")
    loss_chunk: int | str = "auto"
    """Number of positions whose logits are computed at a time in the loss, to save memory; 0 = all T, which is faster. auto: all
    where they take at most a quarter of a device's memory, else a part of them."""

    def __post_init__(self) -> None:
        valid = self.loss_chunk == "auto" or (isinstance(self.loss_chunk, int) and self.loss_chunk >= 0)
        require(valid, "loss_chunk", self.loss_chunk, "choose auto, 0 (all at once) or a number of positions")

    def check_run(self, run: Any) -> None:
        """Refuse a model that predicts labels or scores."""
        task, labels = getattr(run.model, "task", ""), getattr(run.model, "labels", ())
        fix = f"the text of {self.objective} has no labels; choose a recipe of finetune"
        require(self.data.kind != "text" or task not in LABELLED, "model.task", task, fix)
        fix = f"{self.objective} trains a model that predicts words, not a reward model; name another --init"
        require(not labels, "model.labels", " ".join(labels), fix)


def scored_as(kind: type[ObjectiveOptions]) -> str:
    """Return the objective whose held-out scores are comparable: that of `kind`, or the one that it derives its scorer from."""
    return next(base.objective for base in kind.__mro__ if issubclass(base, ObjectiveOptions) and "scorer" in vars(base))


def adapt_options(options: Any, kind: type[Kind]) -> Kind:
    """Convert options to another class of options. Fields of both classes keep their values; the others get their defaults."""
    own, hints = get_type_hints(type(options)), get_type_hints(kind)
    values = {}
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        if dataclasses.is_dataclass(own.get(field.name)):
            values[field.name] = adapt_options(getattr(options, field.name), hints[field.name])
        elif own.get(field.name) == hints[field.name]:
            values[field.name] = getattr(options, field.name)
    return kind(**values)
