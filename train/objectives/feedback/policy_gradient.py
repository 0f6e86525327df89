"""Policy gradients: make responses that the model sampled itself likelier or less likely by their rewards (GRPO, RLOO, ...)."""

import abc
import contextlib
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int64

from train.config.objectives import PolicyGradientOptions
from train.config.policy_gradient_options import PolicyGradientLoss
from train.config.rollout_options import Rollout
from train.config.run_config import Run
from train.engine.log_probs import token_log_probs
from train.engine.policy_losses import clipped_losses, kl_losses, loss_divisor, loss_weights, probability_ratios
from train.objectives.base import Objective
from train.rollouts import rollout_inputs
from train.rollouts.advantage_estimators import Estimator, GroupEstimator
from train.rollouts.kl_reference import load_reference
from train.rollouts.rollout_feed import RolloutFeed
from train.rows.batch_feed import Feed, FeedSource
from train.rows.batches import Build
from train.rows.feedback.response_rows import ResponseRow, row_builder
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.models import Model


@dataclasses.dataclass(frozen=True)
class RolloutObjective(Objective):
    """An objective of responses that the model in training samples itself."""

    HAS_DROPOUT = False
    options: Any
    """The options of the objective itself, with `beta`, the coefficient of a KL divergence to the model of --init."""
    rollout: Rollout

    @abc.abstractmethod
    def estimator(self) -> Estimator:
        """Return the function from rewards to advantages."""

    @classmethod
    def bind(cls, run: Run, mesh: Mesh) -> "RolloutObjective":
        """Return the objective of a run; the numbers of a reference are part of the batch."""
        return cls(getattr(run.options, run.objective), run.options.rollout)

    @classmethod
    def builder(cls, run: Run, tokenizer: Tokenizer, counts: Callable[[], Int64[np.ndarray, " V"]]) -> Build:
        """Return `build(rng, row, length)`, which converts a `ResponseRow` to the fields of `Batch`; `rng` is not used.

        The row is the prompt alone, and the numbers in `extra` are 0: a rollout has the response and its numbers.

        Raises:
            BadInput: the tokenizer does not fit the model.
        """
        build_side = row_builder(run.model, tokenizer, target_length=run.options.rollout.tokens)

        def build(rng: np.random.Generator, row: ResponseRow, length: int) -> dict[str, Any]:
            fields = build_side(row.side, length)
            return fields | {"extra": cls.no_numbers(getattr(run.options, run.objective), len(fields["tokens"]))}

        return build

    @classmethod
    @abc.abstractmethod
    def no_numbers(cls, options: Any, length: int) -> dict[str, Float32[np.ndarray, "..."]]:
        """Return zeros in the shapes of the numbers of a response of `length` targets that the loss reads from `Batch.extra`."""

    @classmethod
    def extend_inputs(cls, run: Run, mesh: Mesh, inputs: Any, cache: Path, *, progress: Callable[[int, int], None]) -> Any:
        """Return the run's inputs with its reward functions and models, and with the digest of the KL divergence's reference.

        Raises:
            BadInput: see `train.rollouts.rollout_inputs.extend_inputs`.
        """
        return rollout_inputs.extend_inputs(run, mesh, inputs, cls._beta(run))

    @classmethod
    def extend_scored_inputs(cls, run: Run, mesh: Mesh, inputs: Any, cache: Path, *, progress: Callable[[int, int], None]) -> Any:
        """Return the run's inputs with its judges: greedy responses are scored without the reference, which may be absent.

        Raises:
            BadInput: see `train.rollouts.rollout_inputs.with_judges`.
        """
        return rollout_inputs.with_judges(run, mesh, inputs)

    def feed(self, source: FeedSource, first: int) -> AbstractContextManager[Feed]:
        """Return the batches of responses that the model samples itself.

        Raises:
            BadInput: see `train.rollouts.kl_reference.load_reference`.
        """
        reference = load_reference(source.run, source.model, source.mesh) if self._beta(source.run) else None
        return contextlib.nullcontext(RolloutFeed(source, self.estimator(), reference))

    def log_probs(
        self, model: Model, params: Any, batch: Batch, *, chunk: int, hidden: Float[Array, "B T D"] | None = None
    ) -> Float[Array, "B T"]:
        """Return the log-probability of each token of the responses, with which it was sampled; see `token_log_probs`."""
        options, longest = self.rollout, self.rollout.tokens
        return token_log_probs(model, params, batch, hidden=hidden, chunk=chunk, temperature=options.temperature, longest=longest)

    def forward_flops(self, model: Model, batch: Batch) -> float:
        """Return the matrix-product FLOPs of the forward pass, which computes no logits of the tokens of prompts."""
        rows, length = batch.tokens.shape
        without = max(length - self.rollout.tokens, 0)
        return model.flops(batch) - 2.0 * rows * without * model.config.width * model.config.vocab

    @classmethod
    def _beta(cls, run: Run) -> float:
        return getattr(run.options, run.objective).beta


@dataclasses.dataclass(frozen=True)
class PolicyGradient(RolloutObjective):
    """The expected reward of responses to prompts; see `train.config.policy_gradient_options.PolicyGradientLoss`.

    The arrays of a response are those of `train.rows.feedback.response_rows`. Its numbers are in `extra`, float32: "old" [T], the
    log-probabilities of its tokens at the start of the rollout; "advantage" [], which contains the reward, and the KL divergence
    unless it is in the loss; and if it is in the loss, "reference" [T], the log-probabilities under the reference.
    """

    OPTIONS = PolicyGradientOptions

    options: PolicyGradientLoss

    def estimator(self) -> Estimator:
        """Return the advantages over the other responses to a prompt."""
        return GroupEstimator(self.options)

    @classmethod
    def no_numbers(cls, options: PolicyGradientLoss, length: int) -> dict[str, Float32[np.ndarray, "..."]]:
        """Return zeros in the shapes of the numbers of a response."""
        per_token = ("old", "reference") if options.kl_in_loss else ("old",)
        return {"advantage": np.zeros((), np.float32)} | {name: np.zeros(length, np.float32) for name in per_token}

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the divisor of the loss, and with --policy-gradient.kl loss that of the KL divergence, which is the same."""
        assert batch.weights is not None
        total = loss_divisor(batch.weights, self.options.aggregation, self.rollout.tokens)
        return {"policy_gradient": total} | ({"kl": total} if self.options.kl_in_loss else {})

    def loss(
        self, model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
    ) -> tuple[dict[str, jax.Array], Any]:
        """Return the summed losses of responses, with --policy-gradient.kl loss also the KL divergence, and the model's carry.

        There is no dropout: it would make the ratios noise (`seeds` is not used).
        """
        assert batch.weights is not None and batch.extra is not None
        options, extra, counted = self.options, batch.extra, batch.weights
        log_probs = self.log_probs(model, params, batch, chunk=chunk)
        ratio = probability_ratios(log_probs, extra["old"], counted, options.ratio)
        losses = clipped_losses(ratio, extra["advantage"][:, None], options.clip_low, options.clip_high)
        factors = loss_weights(counted, options.aggregation)
        terms = {"policy_gradient": (losses * factors).sum()}
        if options.kl_in_loss:
            terms["kl"] = options.beta * (kl_losses(log_probs, extra["reference"], ratio) * factors).sum()
        return terms, carry


OBJECTIVE = PolicyGradient
