"""Options of rollouts: the responses that the model in training writes, and their rewards."""

import dataclasses
import math

from zoo.errors import require


def _check_temperature(temperature: float) -> None:
    fix = "responses are sampled; choose a number above 0, such as 1"
    require(1e-3 <= temperature < math.inf, "rollout.temperature", temperature, fix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgedResponses:
    """Responses that are sampled from a model and judged, as in training, but not trained on."""

    reward: tuple[str, ...] = ()
    """Judges of responses, as in training. A response is chosen by the sum of their rewards; @0 after a name: it has no part in
    the choice, and is only reported."""
    samples: int = 1
    """Number of responses to each prompt."""
    tokens: int = 64
    """Most tokens of a response, its end mark included."""
    temperature: float = 1.0
    """Divides the logits."""
    reference: str = ""
    """Run or weights of the model to which the KL divergence is estimated; empty = none."""
    seed: int = 0
    """Seed of sampling."""

    def __post_init__(self) -> None:
        require(1 <= self.samples <= 1 << 16, "rollout.samples", self.samples, "choose 1 to 65,536 responses")
        require(1 <= self.tokens <= 1 << 16, "rollout.tokens", self.tokens, "choose 1 to 65,536 tokens")
        require(0 <= self.seed < 1 << 32, "rollout.seed", self.seed, "choose 0 to 4,294,967,295")
        _check_temperature(self.temperature)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
    """Responses to prompts, sampled from the model in training."""

    reward: tuple[str, ...] = ()
    """Judges of responses, whose rewards are summed: functions, MODULE:FUNCTION, folders of reward models, which are runs or
    published weights, and labels of classifiers, FOLDER:LABEL; @WEIGHT after a name multiplies its rewards. Modules are also
    imported from the working directory.
    A function is called as f(prompts=[...], completions=[...], ids=[...], **columns) and returns a number for each
    completion."""
    samples: int = 8
    """Number of responses to each prompt, G, which policy_gradient compares. It divides the rows of each device."""
    tokens: int = 64
    """Most tokens of a response, its end mark included."""
    missing_end: float | None = None
    """Reward that replaces the reward of a response which is cut off before an end mark; None = its reward is not replaced."""
    reward_truncate: bool = False
    """Cut the end of a response that is too long for a reward model, for this model alone, and count such responses in the
    metrics; otherwise the first of them ends the run. A run that ended for this reason continues if the option is added."""
    temperature: float = 1.0
    """Divides the logits, in sampling and in training alike."""
    steps: int = 1
    """Number of training steps on the responses of one rollout, which are all sampled before the first of them."""
    epochs: int = 1
    """Passes over the responses of a rollout: it has --rollout.steps / --rollout.epochs batches, which follow each other as
    often."""
    write_every: int = 1
    """Write the texts of every n-th rollout to RUN/rollouts; 0 = none."""

    def __post_init__(self) -> None:
        require(1 <= self.samples <= 1 << 16, "rollout.samples", self.samples, "choose 1 to 65,536 responses")
        require(1 <= self.tokens <= 1 << 16, "rollout.tokens", self.tokens, "choose 1 to 65,536 tokens")
        finite = self.missing_end is None or math.isfinite(self.missing_end)
        require(finite, "rollout.missing_end", self.missing_end, "choose a finite number, such as -1, or leave it out")
        _check_temperature(self.temperature)
        require(1 <= self.steps <= 1 << 16, "rollout.steps", self.steps, "choose 1 or more steps")
        fix = f"it must divide --rollout.steps {self.steps}"
        require(self.epochs >= 1 and self.steps % self.epochs == 0, "rollout.epochs", self.epochs, fix)
        require(self.write_every >= 0, "rollout.write_every", self.write_every, "choose 0 (none) or more")

    @property
    def batches(self) -> int:
        """Number of different batches of a rollout."""
        return self.steps // self.epochs

    def batches_of(self, steps: int) -> int:
        """Return the number of different batches in the first `steps` steps of a run."""
        rollouts, rest = divmod(steps, self.steps)
        return rollouts * self.batches + min(rest, self.batches)

    def batch_of(self, step: int) -> int:
        """Return the number of the batch of a step, counted over the run: which of `batches_of` it is trained on."""
        rollout, offset = divmod(step, self.steps)
        return rollout * self.batches + offset % self.batches
