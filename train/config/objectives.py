"""Declarations of the objectives: a class for each, with its data, scorer, metrics, and only the options that it uses."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar, get_type_hints

from train.config import option_groups as groups
from train.config.data_options import (
    CausalData,
    Data,
    DialogueData,
    EncoderData,
    LabelledData,
    PairData,
    PreferenceData,
    PromptData,
    TextData,
    UnpairedData,
)
from train.config.dpo_options import Dpo
from train.config.kto_options import Kto
from train.config.policy_gradient_options import PolicyGradientLoss
from train.config.ppo_options import Ppo
from train.config.rollout_options import Rollout
from zoo.configs import Objective
from zoo.errors import require

Kind = TypeVar("Kind")
LOSS_METRICS = ("bits_per_byte", "perplexity", "loss")
"""Metrics that increase with the loss, so that all of them select the same checkpoint."""
WORD_METRICS = ("perplexity", "loss", "masked_loss", "accuracy")
"""Metrics of the validations of encoders that predict words."""


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
    """Name of the scorer of its held-out data in `eval.scoring.scorers`. A subclass of a declared objective that names none has
    scores that are comparable with those of that objective."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics of its validations, any of which may select the checkpoint; empty = they depend on the labels.
    `train.run.metric_definitions.validation_metrics` adds those that depend on the head."""
    unused: ClassVar[tuple[str, ...]] = ()
    """Options of a run that the objective does not use, by dotted name; that of a group stands for all of its options."""
    has_pretrained_start: ClassVar[bool] = False
    """True if training begins with parameters of another model also without --init."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenOptions(ObjectiveOptions):
    """Options of an objective that predicts tokens."""

    # The model has a head of words, and not one of labels or scores.
    unused = ("model.labels", "model.head_dropout")
    loss_chunk: int = 0
    """Number of positions whose logits are computed at a time in the loss, to save memory; 0 = all T."""

    def __post_init__(self) -> None:
        require(self.loss_chunk >= 0, "loss_chunk", self.loss_chunk, "choose 0 (off) or a number of positions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalOptions(TokenOptions):
    """Options of causal language modelling."""

    objective, data, scorer = "causal", CausalData, "language_model"
    metrics = LOSS_METRICS


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedOptions(TokenOptions):
    """Options of masked language modelling."""

    objective, data, scorer = "masked", EncoderData, "masked_lm"
    metrics = WORD_METRICS
    masking: groups.Masking = groups.Masking()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeftToRightOptions(TokenOptions):
    """Options of left-to-right language modelling with an encoder."""

    objective, data, scorer = "left_to_right", EncoderData, "masked_lm"
    metrics = WORD_METRICS


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistilledOptions(MaskedOptions):
    """Options of distillation."""

    objective = "distilled"
    # A student begins with parameters of its teacher.
    has_pretrained_start = True
    distillation: groups.Distillation = groups.Distillation()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PermutationOptions(TokenOptions):
    """Options of permutation language modelling."""

    objective, data, scorer = "permutation", TextData, "masked_lm"
    metrics = WORD_METRICS
    permutation: groups.Permutation = groups.Permutation()
    masking: groups.Replacement = groups.Replacement()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisingOptions(TokenOptions):
    """Options of denoising."""

    objective, data, scorer = "denoising", TextData, "seq2seq"
    metrics = ("perplexity", "loss")
    denoising: groups.Denoising = groups.Denoising()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToTextOptions(TokenOptions):
    """Options of text to text."""

    objective, data, scorer = "text_to_text", PairData, "seq2seq"
    metrics = ("perplexity", "loss")
    pairs: groups.Pairs = groups.Pairs()
    labelled: groups.PairTables = groups.PairTables()
    denoising: groups.SourceMask = groups.SourceMask()
    chat: groups.Chat = groups.Chat()


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstructionOptions(TokenOptions):
    """Options of fine-tuning on responses."""

    objective, data, scorer = "instruction", DialogueData, "seq2seq"
    metrics = ("perplexity", "loss")
    labelled: groups.ExampleFileOptions = groups.ExampleFileOptions()
    chat: groups.Chat = groups.Chat()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationOptions(ObjectiveOptions):
    """Options of classification."""

    objective, data, scorer = "classification", LabelledData, "labelled"
    labelled: groups.LabelledTexts = groups.LabelledTexts()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaggingOptions(ObjectiveOptions):
    """Options of tagging."""

    objective, data, scorer = "tagging", LabelledData, "labelled"
    labelled: groups.TaggedWords = groups.TaggedWords()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanOptions(ObjectiveOptions):
    """Options of span extraction: answers that are parts of a text."""

    objective, data, scorer = "span", LabelledData, "labelled"
    metrics = ("loss", "f1", "exact")
    # The head has one output for each position.
    unused = ("model.labels",)
    labelled: groups.Questions = groups.Questions()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoiceOptions(ObjectiveOptions):
    """Options of multiple choice."""

    objective, data, scorer = "choice", LabelledData, "labelled"
    metrics = ("loss", "accuracy")
    # The head has one output for each choice.
    unused = ("model.labels",)
    labelled: groups.Choices = groups.Choices()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceOptions(ObjectiveOptions):
    """Options of training a reward model."""

    objective, data, scorer = "preference", PreferenceData, "preference"
    metrics = ("loss", "accuracy", "reward_margin")
    preference: groups.RewardLoss = groups.RewardLoss()
    labelled: groups.Preferences = groups.Preferences()
    chat: groups.ChatRendering = groups.ChatRendering()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpoOptions(TokenOptions):
    """Options of direct preference optimization and its variants."""

    objective, data, scorer = "dpo", PreferenceData, "dpo"
    metrics = ("loss", "accuracy", "reward_margin")
    dpo: Dpo = Dpo()
    labelled: groups.Preferences = groups.Preferences()
    chat: groups.ChatRendering = groups.ChatRendering()


@dataclasses.dataclass(frozen=True, kw_only=True)
class KtoOptions(TokenOptions):
    """Options of Kahneman-Tversky optimization."""

    objective, data, scorer = "kto", UnpairedData, "kto"
    metrics = ("loss", "reward_margin")
    kto: Kto = Kto()
    labelled: groups.Preferences = groups.Preferences()
    chat: groups.ChatRendering = groups.ChatRendering()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutOptions(TokenOptions):
    """Options of objectives whose responses the model in training samples."""

    data = PromptData
    metrics = ("reward",)
    # The losses of rollouts are not comparable.
    unused = (*TokenOptions.unused, "spikes")
    rollout: Rollout = Rollout()
    labelled: groups.Prompts = groups.Prompts()
    chat: groups.ChatRendering = groups.ChatRendering()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyGradientOptions(RolloutOptions):
    """Options of policy gradients."""

    objective, scorer = "policy_gradient", "responses"
    policy_gradient: PolicyGradientLoss = PolicyGradientLoss()

    def __post_init__(self) -> None:
        super().__post_init__()
        fix = "the rewards of a prompt's responses are compared with each other; choose 2 or more"
        require(self.rollout.samples >= 2, "rollout.samples", self.rollout.samples, fix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoOptions(RolloutOptions):
    """Options of proximal policy optimization."""

    objective, scorer = "ppo", "responses"
    ppo: Ppo = Ppo()


OPTIONS: dict[str, type[ObjectiveOptions]] = {
    kind.objective: kind
    for kind in (
        *(CausalOptions, LeftToRightOptions, MaskedOptions, DistilledOptions, PermutationOptions, DenoisingOptions),
        *(TextToTextOptions, InstructionOptions, ClassificationOptions, TaggingOptions, SpanOptions, ChoiceOptions),
        *(PreferenceOptions, DpoOptions, KtoOptions, PolicyGradientOptions, PpoOptions),
    )
}
"""Maps the name of an objective of the zoo to the class of its options."""


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


def objectives_with_option(option: str) -> list[str]:
    """Return the objectives that have an option of the command line, such as "masking.rate" or "data.pack"."""
    return [name for name, kind in OPTIONS.items() if option in {*_names(kind, ""), *_names(kind.data, "data.")}]


def _names(kind: Any, prefix: str) -> Iterator[str]:
    for field in dataclasses.fields(kind):
        group = get_type_hints(kind)[field.name]
        if dataclasses.is_dataclass(group):
            yield from _names(group, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"
