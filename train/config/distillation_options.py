"""Options of distillation: the losses by which a student learns from a teacher."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

from zoo.errors import require

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]
HALF = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherLosses:
    """Losses that compare a student with its teacher."""

    WEIGHTS: ClassVar[tuple[str, ...]] = ("soft", "cosine")
    """Names of the options that are weights of losses."""

    teacher: str = ""
    """Run, folder of published weights, or hub:ID of the teacher."""
    divergence: Divergence = "forward_kl"
    """Divergence of the soft loss, between the teacher's probabilities p and the student's q (Agarwal et al. 2024, section 2).
    forward_kl: KL(p || q). reverse_kl: KL(q || p). jsd, with b = --distillation.beta: b KL(p || m) + (1 - b) KL(q || m), where
    m is b p + (1 - b) q."""
    beta: float = HALF
    """Weight of the teacher's probabilities in jsd: near 0 its gradient is that of forward_kl, near 1 that of reverse_kl, times
    beta or 1 - beta."""
    temperature: float = 1.0
    """Temperature of both softmaxes in the soft loss, which is scaled by the square of it."""
    soft: float = 1.0
    """Weight of the soft loss, from the teacher's probabilities."""
    cosine: float = 0.0
    """Weight of the cosine loss between the last hidden states of both models. If their widths differ, those of the student are
    multiplied by a matrix, which is trained and not exported."""

    def __post_init__(self) -> None:
        """Check the values; subclasses extend this."""
        finite = 0 < self.temperature < math.inf
        require(finite, "distillation.temperature", self.temperature, "choose a temperature above 0")
        for name in self.WEIGHTS:
            value = getattr(self, name)
            require(0 <= value < math.inf, f"distillation.{name}", value, "choose 0 (off) or a weight")
        require(0 < self.beta < 1, "distillation.beta", self.beta, "choose a number between 0 and 1, such as 0.5")
        fix = f"it has no effect on {self.divergence}; remove it, or choose --distillation.divergence jsd"
        require(self.divergence == "jsd" or self.beta == HALF, "distillation.beta", self.beta, fix)
        for field in dataclasses.fields(self):
            value, fix = getattr(self, field.name), "it has no effect with --distillation.soft 0; remove it"
            unused = self.soft == 0 and field.name in ("divergence", "temperature")
            require(not unused or value == field.default, f"distillation.{field.name}", value, fix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation(TeacherLosses):
    """Training as the student of a teacher, whose probabilities of the predicted tokens are targets too (Hinton et al. 2015)."""

    WEIGHTS = ("soft", "targets", "cosine")

    targets: float = 1.0
    """Weight of the loss of the objective itself, that of the predicted tokens."""

    def check_run(self, run: Any) -> None:
        """Refuse a teacher from whom nothing is learned, and options without a teacher.

        Args:
            run: a `train.config.run_config.Run` with these options.

        Raises:
            BadInput: names the option.
        """
        learns = not self.teacher or self.soft + self.cosine > 0
        require(learns, "distillation.soft", self.soft, "nothing is learned from the teacher; choose a weight above 0")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            fix = "there is no teacher; name one by --distillation.teacher, or leave this out"
            require(bool(self.teacher) or value == field.default, f"distillation.{field.name}", value, fix)

    @property
    def starts_from_teacher(self) -> bool:
        """True if the student starts from parameters of its teacher."""
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredDistillation(Distillation):
    """Training as the student of a teacher that reads the same rows in each epoch, so that its probabilities can be stored."""

    top_k: int = 0
    """Number of tokens at each position to which the teacher gives the highest probabilities. These are computed once, before the
    first step, and stored in the cache on disk, so that training does not load the teacher. All other tokens count as one in the
    soft loss. 0 = the teacher computes all probabilities in each step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.top_k >= 0, "distillation.top_k", self.top_k, "choose 0 (none are stored) or a number of tokens")
        fix = "no hidden states are stored; choose --distillation.cosine 0, or --distillation.top-k 0"
        require(not self.top_k or self.cosine == 0, "distillation.cosine", self.cosine, fix)

    def check_run(self, run: Any) -> None:
        """Refuse also more tokens than there are."""
        super().check_run(run)
        fix = f"the vocabulary has {run.model.vocab:,}; choose at most as many"
        require(self.top_k <= run.model.vocab, "distillation.top_k", self.top_k, fix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResponseDistillation(StoredDistillation):
    """Training as the student of a teacher, on responses that are given or that the student samples itself."""

    on_policy: float = 0.0
    """Share of the batches, chosen at random, whose responses the student samples itself, to the prompts of the data (lambda in
    Agarwal et al. 2024, algorithm 1); the others have the responses of the data. 0 = none."""
    response_tokens: int = 64
    """Most tokens of a sampled response, its end mark included."""
    sampling_temperature: float = 1.0
    """Divides the logits when responses are sampled; the softmaxes of the loss have --distillation.temperature."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.on_policy <= 1, "distillation.on_policy", self.on_policy, "choose a share from 0 (none) to 1 (all)")
        tokens, temperature = self.response_tokens, self.sampling_temperature
        require(1 <= tokens <= 1 << 16, "distillation.response_tokens", tokens, "choose 1 to 65,536 tokens")
        fix = "responses are sampled; choose a number above 0, such as 1"
        require(1e-3 <= temperature < math.inf, "distillation.sampling_temperature", temperature, fix)
        fix = "no responses are sampled; choose a share of them by --distillation.on-policy, or leave this out"
        for field in dataclasses.fields(self):
            value, sampled = getattr(self, field.name), field.name in ("response_tokens", "sampling_temperature")
            require(self.on_policy > 0 or not sampled or value == field.default, f"distillation.{field.name}", value, fix)
        fix = "the tokens that the student sampled are no targets; choose --distillation.targets 0 with --distillation.on-policy"
        require(self.on_policy == 0 or self.targets == 0, "distillation.targets", self.targets, fix)
        fix = "the probabilities at sampled responses cannot be stored; choose 0, or leave out --distillation.on-policy"
        require(self.on_policy == 0 or self.top_k == 0, "distillation.top_k", self.top_k, fix)

    def check_run(self, run: Any) -> None:
        """Refuse also rows in which there is no room for a sampled response, or that have several prompts."""
        super().check_run(run)
        if not self.on_policy:
            return
        fix = "a response is sampled to the one prompt of each row; leave it out"
        require(not run.data.pack, "data.pack", run.data.pack, fix)
        architecture = getattr(run.model, "architecture", "")
        fix = "prompts need encoder_decoder, shared, or a model of another family"
        require(architecture != "decoder", "model.architecture", architecture, fix)
        room = (getattr(run.data, "target_length", 0) or run.data.length) - (not run.model.is_encoder_decoder)
        fix = f"a row has room for {room} tokens of a response; choose at most as many"
        require(self.response_tokens <= room, "distillation.response_tokens", self.response_tokens, fix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TripleLoss(TeacherLosses):
    """Losses by which a student learns from its teacher (Sanh et al. 2019, section 2). Defaults: those of the released models."""

    WEIGHTS = ("soft", "masked", "cosine")

    temperature: float = 2.0
    """Temperature of both softmaxes in the soft loss, which is scaled by the square of it."""
    soft: float = 5.0
    """Weight of the soft loss, from the teacher's probabilities."""
    masked: float = 2.0
    """Weight of the loss of the masked tokens."""
    cosine: float = 1.0
    """Weight of the cosine loss between the last hidden states of both models. If their widths differ, those of the student are
    multiplied by a matrix, which is trained and not exported."""
    masked_only: bool = False
    """Compute the soft and cosine losses only at masked tokens, instead of at all tokens."""
    fresh: bool = False
    """Start the student from random parameters, instead of from its teacher's embeddings, head and evenly spaced layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.soft + self.masked + self.cosine > 0, "distillation.soft", self.soft, "one of the weights must be above 0")

    @property
    def targets(self) -> float:
        """The weight of the loss of the masked tokens."""
        return self.masked

    @property
    def starts_from_teacher(self) -> bool:
        """True if the student starts from parameters of its teacher."""
        return not self.fresh
