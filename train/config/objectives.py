"""Declarations of the objectives: a class for each, with its data, scorer, metrics, and only the options that it uses."""

import dataclasses
from typing import Any, ClassVar

from train.config import option_groups as groups
from train.config.data_options import (
    PAIRED,
    CausalData,
    DialogueData,
    EncoderData,
    LabelledData,
    PairData,
    PreferenceData,
    PromptData,
    TextData,
    UnpairedData,
)
from train.config.declaration import ObjectiveOptions, TokenOptions
from train.config.distillation_options import Distillation, ResponseDistillation, StoredDistillation, TripleLoss
from train.config.dpo_options import Dpo
from train.config.embedding_options import ContrastiveOptions, SimilarityOptions
from train.config.kto_options import Kto
from train.config.late_interaction_options import LateInteractionOptions
from train.config.policy_gradient_options import PolicyGradientLoss, Ppo
from train.config.ranking_options import RankingOptions
from train.config.rerank_options import RerankOptions
from train.config.rollout_options import Rollout
from train.config.sentence_denoising_options import SentenceDenoisingOptions
from zoo.configs import longest_row
from zoo.configs._encoder import LABELLED
from zoo.errors import require

LOSS_METRICS = ("bits_per_byte", "perplexity", "loss")
"""Metrics that increase with the loss, so that all of them select the same checkpoint."""
WORD_METRICS = ("perplexity", "loss", "masked_loss", "accuracy")
"""Metrics of the validations of encoders that predict words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentOptions(TokenOptions):
    """Options of an objective that predicts the tokens of its data, whose model may also learn from a teacher."""

    distillation: Distillation | TripleLoss = Distillation()

    def check_run(self, run: Any) -> None:
        """Refuse options of distillation that have no effect."""
        super().check_run(run)
        if isinstance(self.distillation, Distillation):
            self.distillation.check_run(run)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalOptions(StudentOptions):
    """Options of causal language modelling."""

    objective, data, scorer = "causal", CausalData, "language_model"
    metrics = LOSS_METRICS
    distillation: StoredDistillation = StoredDistillation()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedOptions(TokenOptions):
    """Options of masked language modelling."""

    objective, data, scorer = "masked", EncoderData, "masked_lm"
    metrics = WORD_METRICS
    masking: groups.Masking = groups.Masking()

    def check_run(self, run: Any) -> None:
        """Refuse a causal model, single texts for a next-sentence head, and options of masks that contradict each other."""
        super().check_run(run)
        fix = "masked tokens are predicted from both sides; choose --objective left_to_right, or --model.no-causal"
        require(not getattr(run.model, "causal", False), "model.causal", True, fix)
        fix = f"the model has a next-sentence head, which needs pairs; choose {' or '.join(PAIRED)}, or --model.task masked"
        require(run.model.task != "pretraining" or run.data.rows in PAIRED, "data.rows", run.data.rows, fix)
        fix = "it samples tokens, not whole words; leave out --masking.whole-words"
        require(not (self.masking.rare and self.masking.whole_words), "masking.rare", self.masking.rare, fix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeftToRightOptions(TokenOptions):
    """Options of left-to-right language modelling with an encoder."""

    objective, data, scorer = "left_to_right", EncoderData, "masked_lm"
    metrics = WORD_METRICS

    def check_run(self, run: Any) -> None:
        """Refuse a model that sees both sides, or whose head does not predict masked tokens alone."""
        super().check_run(run)
        fix = "every token would see the one that it predicts; choose --model.causal, or --objective masked"
        require(run.model.causal, "model.causal", run.model.causal, fix)
        # The head for masked tokens predicts the next token; there is no next-sentence head.
        fix = "it has no head for tokens, or one for next sentences besides; choose --model.task masked"
        require(run.model.task == "masked", "model.task", run.model.task, fix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistilledOptions(StudentOptions, MaskedOptions):
    """Options of masked language modelling with a teacher."""

    objective = "distilled"
    # A student begins with parameters of its teacher.
    has_pretrained_start = True
    distillation: TripleLoss = TripleLoss()

    def check_run(self, run: Any) -> None:
        """Refuse a run whose student would start from two models or none."""
        super().check_run(run)
        fresh = self.distillation.fresh
        fix = f"the student starts from --init {run.init}; leave out one of the two"
        require(not (fresh and run.init), "distillation.fresh", fresh, fix)

    def check_start(self, run: Any) -> None:
        """Refuse a run without a teacher."""
        super().check_start(run)
        teacher = self.distillation.teacher
        require(bool(teacher), "distillation.teacher", teacher, "name the run or the weights to learn from")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PermutationOptions(StudentOptions):
    """Options of permutation language modelling."""

    objective, data, scorer = "permutation", TextData, "masked_lm"
    metrics = WORD_METRICS
    permutation: groups.Permutation = groups.Permutation()
    masking: groups.Replacement = groups.Replacement()
    distillation: Distillation = Distillation()

    def check_run(self, run: Any) -> None:
        """Refuse a model that predicts no tokens, and rows whose parts do not hold their targets or do not follow each other."""
        super().check_run(run)
        data, model, options = run.data, run.model, self.permutation
        fix = "it predicts no tokens; choose permutation, or pretraining to add next-sentence prediction"
        require(model.generates, "model.task", model.task, fix)
        least = groups.NUM_SPECIAL_TOKENS + 2
        needs = f"a row of {data.length} needs {least} tokens for two texts and special tokens"
        fix = f"{needs}; choose at most {data.length - least}"
        require(0 <= model.reuse <= data.length - least, "model.reuse", model.reuse, fix)
        reused, rest = options.num_targets(data.length, model.reuse)
        limit = data.length - model.reuse - groups.NUM_SPECIAL_TOKENS
        fix = f"a row of {data.length} has {model.reuse} reused tokens and {limit} others that can be predicted; choose fewer"
        require(reused <= model.reuse and rest <= limit, "permutation.predictions", options.predictions, fix)
        parts = f"{model.reuse} reused tokens and {data.length - model.reuse} others"
        divides = not options.window or not (model.reuse % options.window or data.length % options.window)
        fix = f"it does not divide the parts of a row, {parts}; choose a divisor of both, or 0"
        require(divides, "permutation.window", options.window, fix)
        memory = model.memory > 0
        cause, choice = ("of a model with a memory", "--model.memory 0") if memory else ("in order", "--permutation.no-ordered")
        fix = f"rows {cause} continue each other, but rows of several sources alternate; choose {choice}"
        alternate = (memory or options.ordered) and data.weights
        require(not alternate, "data.weights", " ".join(map(str, data.weights)), fix)
        even = not options.bidirectional or data.batch % 2 == 0
        require(even, "data.batch", data.batch, "half of the rows are read from right to left; choose an even number")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisingOptions(StudentOptions):
    """Options of denoising."""

    objective, data, scorer = "denoising", TextData, "seq2seq"
    metrics = ("perplexity", "loss")
    denoising: groups.Denoising = groups.Denoising()
    distillation: Distillation = Distillation()

    def check_run(self, run: Any) -> None:
        """Refuse rows that are too short, and corruption that needs a decoder without an encoder."""
        super().check_run(run)
        fix = "choose 4 tokens or more: source, target and two end tokens"
        require(run.data.length >= 4, "data.length", run.data.length, fix)
        has_encoder, kind = run.model.is_encoder_decoder, self.denoising.kind
        fix = "the source of the encoder would be empty; choose prefix, or --model.architecture decoder"
        require(kind != "lm" or not has_encoder, "denoising.kind", kind, fix)
        causal = self.denoising.causal
        require(not (causal and has_encoder), "denoising.causal", causal, "an encoder is never causal; leave it out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToTextOptions(StudentOptions):
    """Options of text to text."""

    objective, data, scorer = "text_to_text", PairData, "seq2seq"
    metrics = ("perplexity", "loss")
    pairs: groups.Pairs = groups.Pairs()
    distillation: ResponseDistillation = ResponseDistillation()
    labelled: groups.PairTables = groups.PairTables()
    denoising: groups.SourceMask = groups.SourceMask()
    chat: groups.Chat = groups.Chat()

    def check_run(self, run: Any) -> None:
        """Refuse packing of a decoder."""
        super().check_run(run)
        fix = "a decoder-only model has one pair per row; remove it"
        require(run.model.is_encoder_decoder or not run.data.pack, "data.pack", run.data.pack, fix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstructionOptions(StudentOptions):
    """Options of fine-tuning on responses."""

    objective, data, scorer = "instruction", DialogueData, "seq2seq"
    metrics = ("perplexity", "loss")
    distillation: ResponseDistillation = ResponseDistillation()
    labelled: groups.ExampleFileOptions = groups.ExampleFileOptions()
    chat: groups.Chat = groups.Chat()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationOptions(ObjectiveOptions):
    """Options of classification."""

    objective, data, scorer = "classification", LabelledData, "labelled"
    labelled: groups.LabelledTexts = groups.LabelledTexts()

    def check_run(self, run: Any) -> None:
        """Refuse smoothed labels that are no classes, and several outputs of a regression."""
        one_class = not (self.labelled.regression or self.labelled.multi_label)
        fix = "neither regression nor multi-label classification can smooth labels; remove it"
        require(run.label_smoothing == 0 or one_class, "label_smoothing", run.label_smoothing, fix)
        has_labels, labels = run.model.task in LABELLED, run.model.labels
        fix = "a regression has one output; name one, or remove --labelled.regression"
        valid = not (self.labelled.regression and has_labels) or len(labels) <= 1
        require(valid, "model.labels", " ".join(labels), fix)


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

    def check_run(self, run: Any) -> None:
        """Refuse options that have no effect, and a model without a head of one score."""
        _check_completions(run)
        labels, task = getattr(run.model, "labels", ()), getattr(run.model, "task", "sequence")
        fix = "a reward model has a reward head, which has one output; use the recipe reward-model"
        require(len(labels) == 1, "model.labels", " ".join(labels), fix)
        require(task == "sequence", "model.task", task, "a reward model scores sequences; choose sequence")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceOptions(TokenOptions):
    """Options of objectives whose loss may compare completions with a reference; the field of the objective's name says so."""

    labelled: groups.Preferences = groups.Preferences()
    chat: groups.ChatRendering = groups.ChatRendering()

    def check_run(self, run: Any) -> None:
        """Refuse options that have no effect, and a model that predicts no words."""
        super().check_run(run)
        _check_completions(run)

    def check_start(self, run: Any) -> None:
        """Refuse a reference without --init."""
        options, name = getattr(self, self.objective), self.objective
        fix = f"the reference is the model of --init, which is not set; name one, or choose --{name}.reference none"
        require(bool(run.init) or not options.has_reference, f"{name}.reference", options.reference, fix)
        _check_reference(run, options.has_reference)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpoOptions(ReferenceOptions):
    """Options of direct preference optimization and its variants."""

    objective, data, scorer = "dpo", PreferenceData, "dpo"
    metrics = ("loss", "accuracy", "reward_margin")
    dpo: Dpo = Dpo()


@dataclasses.dataclass(frozen=True, kw_only=True)
class KtoOptions(ReferenceOptions):
    """Options of Kahneman-Tversky optimization."""

    objective, data, scorer = "kto", UnpairedData, "kto"
    metrics = ("loss", "reward_margin")
    kto: Kto = Kto()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutOptions(TokenOptions):
    """Options of objectives whose responses the model in training samples."""

    data = PromptData
    metrics = ("reward",)
    fewest_samples: ClassVar[int] = 1
    """Smallest number of responses to a prompt."""
    # The losses of rollouts are not comparable.
    unused = (*TokenOptions.unused, "spikes")
    rollout: Rollout = Rollout()
    labelled: groups.Prompts = groups.Prompts()
    chat: groups.ChatRendering = groups.ChatRendering()

    def check_run(self, run: Any) -> None:
        """Refuse options that have no effect, responses that do not fit the model, and checkpoints within a rollout."""
        super().check_run(run)
        require(run.label_smoothing == 0, "label_smoothing", run.label_smoothing, "it has no effect on prompts; remove it")
        fix = "the losses of rollouts are not comparable; leave it out"
        require(run.spikes.sigmas == 0, "spikes.sigmas", run.spikes.sigmas, fix)
        longest, tokens, steps = longest_row(run.model), self.rollout.tokens, self.rollout.steps
        fix = f"the model has {longest} positions; choose at most {longest}"
        require(longest is None or tokens <= longest, "rollout.tokens", tokens, fix)
        if run.model.scales_with_length:
            unscaled, length = run.model.original_context, run.data.length
            why = "a token is sampled with the scaling of the text before it and trained with that of the complete text"
            fix = f"{why}; choose at most --model.original-context {unscaled}, or --model.scaling yarn"
            require(length <= unscaled, "data.length", length, fix)
        every = run.checkpoint.every
        nearest = max(1, round(every / steps)) * steps
        fix = f"a run continues between two rollouts of --rollout.steps {steps}; choose a multiple, such as {nearest}"
        require(every % steps == 0, "checkpoint.every", every, fix)

    def check_start(self, run: Any) -> None:
        """Refuse a KL divergence without --init."""
        beta = getattr(self, self.objective).beta
        fix = "the KL divergence is to the model of --init, which is not set; name one, or choose 0"
        require(bool(run.init) or beta == 0, f"{self.objective}.beta", beta, fix)
        _check_reference(run, beta != 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyGradientOptions(RolloutOptions):
    """Options of policy gradients."""

    objective, scorer = "policy_gradient", "responses"
    fewest_samples = 2
    policy_gradient: PolicyGradientLoss = PolicyGradientLoss()

    def __post_init__(self) -> None:
        super().__post_init__()
        fix = "the rewards of a prompt's responses are compared with each other; choose 2 or more"
        require(self.rollout.samples >= self.fewest_samples, "rollout.samples", self.rollout.samples, fix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoOptions(RolloutOptions):
    """Options of proximal policy optimization."""

    objective, scorer = "ppo", "responses"
    ppo: Ppo = Ppo()


def _check_reference(run: Any, has_reference: bool) -> None:
    """Refuse a reference with other positions than the model in training, or of another model than before a fork."""
    fix = "the reference is the model of --init with its own positions; train it with longer rows first, and name that run"
    require(run.init_positions == "same" or not has_reference, "init_positions", run.init_positions, fix)
    fix = "the reference is the model of --init, and that of a continued run would be another one; leave it out"
    require(not run.fork or not has_reference, "fork", run.fork, fix)


def _check_completions(run: Any) -> None:
    """Refuse options that have no effect on preferences."""
    require(run.label_smoothing == 0, "label_smoothing", run.label_smoothing, "it has no effect on preferences; remove it")
    fix, target = "only an encoder-decoder has a target; remove it", run.data.target_length
    require(run.model.is_encoder_decoder or not target, "data.target_length", target, fix)


OPTIONS: dict[str, type[ObjectiveOptions]] = {
    kind.objective: kind
    for kind in (
        *(CausalOptions, LeftToRightOptions, MaskedOptions, DistilledOptions, PermutationOptions, DenoisingOptions),
        *(TextToTextOptions, InstructionOptions, ClassificationOptions, TaggingOptions, SpanOptions, ChoiceOptions),
        *(PreferenceOptions, DpoOptions, KtoOptions, PolicyGradientOptions, PpoOptions),
        *(ContrastiveOptions, SimilarityOptions, RankingOptions, RerankOptions, LateInteractionOptions, SentenceDenoisingOptions),
    )
}
"""Maps the name of an objective of the zoo to the class of its options."""
