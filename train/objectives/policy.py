"""Policy gradients: make responses that the model sampled itself likelier or less likely by their rewards (GRPO, RLOO, ...)."""

import contextlib
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int64

from train.config.policy_options import Policy
from train.config.rollout_options import Rollout
from train.config.run_config import Run
from train.engine.log_probs import token_log_probs
from train.engine.policy_losses import clipped_losses, divisor, kl_losses, loss_weights, ratios
from train.objectives.base import Objective
from train.rollouts import preparation
from train.rollouts.feed import Feed, FeedSource
from train.rollouts.reference import load_reference
from train.rollouts.rollout_feed import RolloutFeed
from train.rows.batches import Build
from train.rows.response_rows import ResponseRow, row_builder
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.errors import require
from zoo.models import Model


@dataclasses.dataclass(frozen=True)
class PolicyGradient(Objective):
    """The expected reward of responses to prompts; see `train.config.policy_options.Policy`.

    The arrays of a response are those of `train.rows.response_rows`. Their advantages contain the rewards, and the KL divergence
    unless it is in the loss.
    """

    NAME = "policy"
    DATA = "prompts"

    options: Policy
    rollout: Rollout

    @classmethod
    def bind(cls, run: Run, mesh: Mesh) -> "PolicyGradient":
        """Return the objective of a run.

        Raises:
            BadInput: a KL divergence without --init, or as `train.rollouts.preparation.check`.
        """
        fix = "the KL divergence is to the model of --init, which is not set; name one, or choose 0"
        require(bool(run.init) or run.options.policy.beta == 0, "policy.beta", run.options.policy.beta, fix)
        preparation.check(run, mesh)
        return cls.bind_abstract(run, mesh)

    @classmethod
    def bind_abstract(cls, run: Run, mesh: Mesh) -> "PolicyGradient":
        """Return the objective as `bind` does; a KL divergence needs no --init, since its numbers are part of the batch."""
        return cls(run.options.policy, run.options.rollout)

    @classmethod
    def builder(cls, run: Run, tokenizer: Tokenizer, counts: Callable[[], Int64[np.ndarray, " V"]]) -> Build:
        """Return `build(rng, row, length)`, which converts a `ResponseRow` to the fields of `Batch`; `rng` is not used.

        Raises:
            BadInput: the model has a score in place of words, or the tokenizer does not fit it.
        """
        scores = getattr(run.model, "labels", ())
        fix = "policy trains a model that predicts words, not a reward model; name another --init, or remove --model.labels"
        require(not scores, "model.labels", " ".join(scores), fix)
        options = run.options
        build_row = row_builder(run.model, tokenizer, target_length=options.rollout.tokens, reference=options.policy.kl_in_loss)

        def build(rng: np.random.Generator, row: ResponseRow, length: int) -> dict[str, Any]:
            return build_row(row, length)

        return build

    @classmethod
    def extend_inputs(cls, run: Run, mesh: Mesh, inputs: Any, cache: Path, *, progress: Callable[[int, int], None]) -> Any:
        """Return the run's inputs with its judges, and the digest of the reference of a KL divergence.

        Raises:
            BadInput: as `train.rollouts.preparation.extend_inputs`.
        """
        return preparation.extend_inputs(run, mesh, inputs)

    @classmethod
    def extend_scored_inputs(cls, run: Run, mesh: Mesh, inputs: Any, cache: Path, *, progress: Callable[[int, int], None]) -> Any:
        """Return the run's inputs with its judges: greedy responses are scored without the reference, which may be absent.

        Raises:
            BadInput: as `train.rollouts.preparation.with_judges`.
        """
        return preparation.with_judges(run, mesh, inputs)

    def feed(self, source: FeedSource, first: int) -> AbstractContextManager[Feed]:
        """Return the batches of responses that the model samples itself.

        Raises:
            BadInput: as `train.rollouts.reference.load_reference`.
        """
        reference = load_reference(source.run, source.model, source.mesh) if self.options.beta else None
        return contextlib.nullcontext(RolloutFeed(source, reference))

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the divisor of the loss, and with --policy.kl loss that of the KL divergence, which is the same."""
        assert batch.weights is not None
        total = divisor(batch.weights, self.options.aggregation, self.rollout.tokens)
        return {"policy": total} | ({"kl": total} if self.options.kl_in_loss else {})

    def loss(
        self, model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
    ) -> tuple[dict[str, jax.Array], Any]:
        """Return the summed losses of the responses, with --policy.kl loss also the KL divergence, and the model's carry.

        There is no dropout: it would make the ratios noise (`seeds` is not used).
        """
        assert batch.weights is not None and batch.extra is not None
        options, extra, counted = self.options, batch.extra, batch.weights
        log_probs = token_log_probs(model, params, batch, chunk=chunk, temperature=self.rollout.temperature)
        ratio = ratios(log_probs, extra["old"], counted, options.ratio)
        losses = clipped_losses(ratio, extra["advantage"], options.clip_low, options.clip_high)
        factors = loss_weights(counted, options.aggregation)
        terms = {"policy": (losses * factors).sum()}
        if options.kl_in_loss:
            terms["kl"] = options.beta * (kl_losses(log_probs, extra["reference"], ratio) * factors).sum()
        return terms, carry


OBJECTIVE = PolicyGradient
