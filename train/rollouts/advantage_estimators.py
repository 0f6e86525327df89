"""Estimators of the advantages of a rollout's responses, over each other or over the values that the model predicts."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64

from train.config.policy_gradient_options import PolicyGradientLoss, Ppo
from train.rollouts import generalized_advantages
from train.rollouts.advantages import group_advantages


class ScoredBatch(NamedTuple):
    """The responses of a training batch. Arrays have all of its rows; log-probabilities are 0 where the weight is 0."""

    rewards: Float64[np.ndarray, " B"]
    """Sum of the rewards that functions and reward models give each response."""
    ended: Any
    """bool [B]: True for responses with an end mark."""
    samples: int
    """Number of responses to a prompt, which follow each other."""
    weights: Float32[np.ndarray, "B T"]
    """1 where a target is a token of the response."""
    old: Float32[np.ndarray, "B T"]
    """Log-probabilities in nats under the parameters that sampled."""
    reference: Float32[np.ndarray, "B T"] | None
    """Log-probabilities under the reference, if there is one."""
    values: Float32[np.ndarray, "B T"] | None
    """Values at the tokens under the parameters that sampled, if they were computed."""


class Estimate(NamedTuple):
    """The numbers of a batch that depend on rewards."""

    extra: dict[str, Any]
    """`Batch.extra` of all rows, float32."""
    advantages: Float64[np.ndarray, " B"]
    """Advantage of each response; if its tokens have different advantages, their mean."""


@runtime_checkable
class Estimator(Protocol):
    """The function from rewards to advantages that an objective has."""

    @property
    def reads_values(self) -> bool:
        """True if the advantages depend on the values that the model predicts."""
        ...

    @property
    def equal(self) -> str:
        """Condition under which all advantages of a rollout are 0 and nothing is learned from it; "" = there is none."""
        ...

    def estimate(self, batches: Sequence[ScoredBatch]) -> tuple[list[Estimate], dict[str, float]]:
        """Return the numbers of each batch of a rollout, and numbers about the rollout for its metrics."""
        ...


@dataclasses.dataclass(frozen=True)
class GroupEstimator:
    """Advantages over the other responses to the same prompt; see `train.rollouts.advantages`."""

    options: PolicyGradientLoss
    reads_values = False

    @property
    def equal(self) -> str:
        """Condition under which nothing is learned; a KL divergence in the loss is learned from at any reward."""
        return "" if self.options.kl_in_loss else "all responses to a prompt have the same reward"

    def estimate(self, batches: Sequence[ScoredBatch]) -> tuple[list[Estimate], dict[str, float]]:
        """Return "old", "advantage" [B] and, if the loss reads it, "reference" of each batch, and no further numbers."""
        return [self._of_batch(batch) for batch in batches], {}

    def _of_batch(self, batch: ScoredBatch) -> Estimate:
        returns, extra = batch.rewards, {"old": batch.old}
        if batch.reference is not None and self.options.kl_in_loss:
            extra["reference"] = batch.reference
        elif batch.reference is not None:
            returns = returns - self.options.beta * (batch.old - batch.reference).sum(1, dtype=np.float64)
        of_responses = group_advantages(returns.reshape(-1, batch.samples), self.options.advantage).reshape(-1)
        return Estimate(extra | {"advantage": of_responses.astype(np.float32)}, of_responses)


@dataclasses.dataclass(frozen=True)
class ValueEstimator:
    """Generalized advantage estimation with the values of the model; see `train.rollouts.generalized_advantages`."""

    options: Ppo
    reads_values = True
    equal = "the rewards of all responses are what their values predict"

    def estimate(self, batches: Sequence[ScoredBatch]) -> tuple[list[Estimate], dict[str, float]]:
        """Return "old", "advantage", "value" and "return" [B, T] of each batch, and three metrics of the values.

        Advantages are whitened over all tokens of the rollout, if at all; returns are those before.
        """
        numbers = [self.of_tokens(batch) for batch in batches]
        counted = [batch.weights > 0 for batch in batches]
        advantage, value, future = (
            np.concatenate([arrays[at][is_token] for arrays, is_token in zip(numbers, counted, strict=True)]) for at in range(3)
        )
        scaled = generalized_advantages.whiten_advantages(advantage) if self.options.whiten else advantage
        parts = np.split(scaled, np.cumsum([is_token.sum() for is_token in counted])[:-1])
        estimates = []
        for batch, arrays, is_token, part in zip(batches, numbers, counted, parts, strict=True):
            of_tokens = np.zeros(batch.old.shape, np.float32)
            of_tokens[is_token] = part
            extra = {"old": batch.old, "advantage": of_tokens}
            extra |= {name: values.astype(np.float32) for name, values in zip(("value", "return"), arrays[1:], strict=True)}
            estimates.append(Estimate(extra, arrays[0].sum(1) / is_token.sum(1)))
        means = {"mean_value": float(value.mean()), "mean_return": float(future.mean())}
        return estimates, {"explained_variance": generalized_advantages.explained_variance(value, future), **means}

    def of_tokens(self, batch: ScoredBatch) -> tuple[Float64[np.ndarray, "B T"], ...]:
        """Return (advantages before whitening, values, returns), which are 0 where the weight is 0."""
        assert batch.values is not None
        options, weights = self.options, batch.weights.astype(np.float64)
        values = np.where(weights > 0, batch.values.astype(np.float64), 0.0)
        log_ratios = np.zeros_like(values) if batch.reference is None else batch.old.astype(np.float64) - batch.reference
        rewards = generalized_advantages.token_rewards(batch.rewards, log_ratios, weights, options.beta)
        advantage, future = generalized_advantages.advantages_and_returns(
            rewards, values, weights, gamma=options.gamma, lam=options.lam
        )
        return advantage, values, future
