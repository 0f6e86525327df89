"""Direct preference optimization and its variants: learn which of two answers was preferred (Rafailov et al. 2023)."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int64

from train.config.dpo_options import Dpo
from train.config.objectives import DpoOptions
from train.config.run_config import Run
from train.engine.log_probs import pair_weights, sequence_log_probs, split_pairs
from train.engine.preference_losses import implicit_rewards, pair_losses
from train.objectives.base import Objective
from train.rows.batches import Build
from train.rows.feedback import preference_rows
from train.tokenizers.tokenizer import Tokenizer
from train.weights.reference_log_probs import add_reference, with_reference
from zoo.batch import Batch
from zoo.models import Model


@dataclasses.dataclass(frozen=True)
class ReferenceObjective(Objective):
    """Base class of objectives that compare the log-probabilities of two answers to a prompt with those under a reference.

    With a reference, extra["reference"] has its log-probabilities of both answers, float32 [2]; see
    `train.weights.reference_log_probs`.
    """

    HAS_DROPOUT = False
    ROWS: ClassVar[Any]
    """Module of `train.rows` with the function `builder` of the objective's rows."""

    options: Any
    """The options of the objective itself, with `reference` and `has_reference`."""

    @classmethod
    def bind(cls, run: Run, mesh: Mesh) -> "ReferenceObjective":
        """Return the objective of a run; the log-probabilities of its reference are part of the batch."""
        return cls(getattr(run.options, run.objective))

    @classmethod
    def builder(cls, run: Run, tokenizer: Tokenizer, counts: Callable[[], Int64[np.ndarray, " V"]]) -> Build:
        """Return `build(rng, row, length)`, which converts a row of preferences to the fields of `Batch`; `rng` is not used.

        See the function of the same name in `ROWS`. A row with a reference gives extra["reference"], float32 [2].

        Raises:
            BadInput: the tokenizer does not fit the model.
        """
        build_pair = cls.ROWS.builder(run.model, tokenizer, run.data.target_length)

        def build(rng: np.random.Generator, row: Any, length: int) -> dict[str, Any]:
            fields = build_pair(rng, row, length)
            return fields if row.reference is None else fields | {"extra": fields["extra"] | {"reference": row.reference}}

        return build

    @classmethod
    def extend_inputs(cls, run: Run, mesh: Mesh, inputs: Any, cache: Path, *, progress: Callable[[int, int], None]) -> Any:
        """Return the run's inputs with the reference's log-probabilities in every row, if the loss has a reference.

        Raises:
            BadInput: nothing to load in `run.init`, or another model than the run's.
        """
        if not getattr(run.options, run.objective).has_reference:
            return inputs
        build = cls.builder(run, inputs.tokenizer, inputs.counts)
        return add_reference(run, mesh, inputs, build, cache, progress=progress)

    @classmethod
    def abstract_batch(cls, run: Run, tokenizer: Tokenizer, rows: Any) -> Batch:
        """Return the shapes and dtypes of a global batch, with the log-probabilities of a reference if there is one."""
        if getattr(run.options, run.objective).has_reference:
            rows = with_reference(rows, np.zeros((len(rows), 2), np.float32))
        return super().abstract_batch(run, tokenizer, rows)

    def reference(self, batch: Batch) -> jax.Array | None:
        """Return the log-probabilities of both answers under the reference, float32 [B, 2]; None if there is no reference."""
        if not self.options.has_reference:
            return None
        assert batch.extra is not None, "the rows of a run with a reference have its log-probabilities"
        return batch.extra["reference"]


@dataclasses.dataclass(frozen=True)
class DirectPreferences(ReferenceObjective):
    """Training on pairs of answers, one of which was preferred, without a reward model and without sampling.

    The options are those of `train.config.dpo_options.Dpo`.
    The arrays of a pair are those of `train.rows.feedback.preference_rows`, [2, T], the chosen answer first.
    """

    OPTIONS = DpoOptions
    ROWS = preference_rows

    options: Dpo

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the divisors of the terms: the number of pairs, and for "sft" that of the tokens of chosen answers."""
        assert batch.weights is not None
        tokens = {"sft": batch.weights[:, 0].sum()} if self.options.sft else {}
        return {"dpo": pair_weights(batch).sum()} | tokens

    def loss(
        self, model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
    ) -> tuple[dict[str, jax.Array], Any]:
        """Return the summed losses of the pairs, with --dpo.sft also that of the chosen answers' tokens, and the model's carry.

        There is no dropout: it would make the log-ratios noise (`seeds` is not used).
        """
        log_probs, lengths = sequence_log_probs(model, params, batch, chunk=chunk)
        losses = pair_losses(implicit_rewards(log_probs, self.reference(batch), lengths, self.options), self.options)
        terms = {"dpo": (losses * pair_weights(batch)).sum()}
        if self.options.sft:
            terms["sft"] = self.options.sft * -log_probs[:, 0].sum()
        return terms, carry

    def forward_flops(self, model: Model, batch: Batch) -> float:
        """Return the matrix-product FLOPs of the forward pass over both answers."""
        return model.flops(jax.eval_shape(split_pairs, batch))


OBJECTIVE = DirectPreferences
