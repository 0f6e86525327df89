"""The base classes of training objectives, with a default for everything that an objective may leave out."""

import abc
import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Int, Int64

from train.config.declaration import ObjectiveOptions
from train.config.run_config import Run
from train.engine.losses import model_terms, pair_loss, token_losses
from train.engine.state_init import TrainedParams
from train.rows import batch_counts
from train.rows.batch_feed import Feed, FeedSource, data_feed
from train.rows.batches import Batches, Build
from train.rows.example_rows import ExampleRow, is_typed, padded_row
from train.rows.mixture import Component, Mixture
from train.rows.row_source import RowSource
from train.rows.token_cache import Tokens
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import IGNORED, Batch, Output
from zoo.models import Model
from zoo.nn import task_heads


class Objective(abc.ABC):
    """The predictions that a run learns: how rows become arrays on the host, and the loss of these arrays on the devices.

    The class methods run on the host, and read no weights: they plan rows and convert each row to arrays. `bind` returns an
    instance, which has the arrays that the loss reads in addition to the model's parameters; all other methods need an instance.

    The letters of shapes are those of `zoo.batch`. Parameters are nested dicts of arrays.
    """

    OPTIONS: ClassVar[type[ObjectiveOptions]]
    """Declaration of the objective: its name, which is also that of its file; the kind of its data; its options, scorer and
    metrics."""
    HAS_DROPOUT: ClassVar[bool] = True
    """False if the loss is computed without dropout."""

    # --- On the host ---

    @classmethod
    def plan_rows(cls, tokens: Tokens, run: Run, tokenizer: Tokenizer) -> RowSource:
        """Return the rows of the training text. Examples and pairs are planned by `train.inputs` instead.

        Raises:
            BadInput: the text is too short, or the run's rows or tokenizer do not fit the objective.
        """
        raise NotImplementedError(f"{cls.OPTIONS.objective} plans no rows of text")

    @classmethod
    def scored_rows(cls, tokens: Tokens, run: Run, tokenizer: Tokenizer, stride: int) -> RowSource:
        """Return the rows of the held-out text that a score is computed on; by default planned like the training rows.

        Args:
            stride: new tokens of each row after the first one, if rows are overlapping windows; ignored for other rows.
        """
        return cls.plan_rows(tokens, run, tokenizer)

    @classmethod
    @abc.abstractmethod
    def builder(cls, run: Run, tokenizer: Tokenizer, counts: Callable[[], Int64[np.ndarray, " V"]]) -> Build:
        """Return `build(rng, row, length)`, which converts a row to the fields of `zoo.batch.Batch` for one example.

        Its arrays have no batch axis and the same shapes for every row; `weights` is among them. Every random choice is sampled
        from `rng`, so that a row is a function of the seed, the epoch and its number.

        Args:
            counts: returns the number of occurrences of each id in the training data. It reads all data: call it only if needed.

        Raises:
            BadInput: the run's options or tokenizer do not fit the objective.
        """

    @classmethod
    def target_options(cls, run: Run, counts: Callable[[], Int64[np.ndarray, " V"]]) -> dict[str, Any]:
        """Return the options that determine which held-out tokens are scored and what the model sees of the others, as JSON.

        The scores of runs that differ in it are not comparable. By default it is empty, because every target of the data is
        scored.

        Args:
            counts: as in `builder`.
        """
        return {}

    @classmethod
    def text_ids(cls, run: Run, batch: Batch) -> list[Int[np.ndarray, " _"]]:
        """Return the ids of the text from which a host batch was made; the default is `train.rows.batch_counts.text_ids`."""
        return batch_counts.text_ids(batch)

    @classmethod
    def abstract_batch(cls, run: Run, tokenizer: Tokenizer, rows: RowSource) -> Batch:
        """Return the shapes and dtypes of a global batch, the first axis of every array being `run.data.batch`.

        Args:
            rows: at least one row of any data, since shapes do not depend on the contents of a row.
        """
        build = cls.builder(run, tokenizer, lambda: np.ones(tokenizer.vocab_size, np.int64))
        return Batches(Mixture((Component("", 1.0, (), rows),)), build, run.seed, run.data.batch, np.arange(1)).shapes()

    @classmethod
    def extend_inputs(cls, run: Run, mesh: Mesh, inputs: Any, cache: Path, *, progress: Callable[[int, int], None]) -> Any:
        """Return the inputs of a run, with numbers for each row that are computed before the first step; by default unchanged.

        Args:
            inputs: what `train.inputs.run_inputs.read_inputs` returns.
            cache: folder in which the numbers may be stored for the next call.
            progress: function that is called with (batches done, total batches) if there is something to compute.

        Raises:
            BadInput: a model that the numbers are computed with does not exist or does not fit the run.
        """
        return inputs

    @classmethod
    def extend_scored_inputs(cls, run: Run, mesh: Mesh, inputs: Any, cache: Path, *, progress: Callable[[int, int], None]) -> Any:
        """Return the inputs with additions that scoring reads, which may be fewer than those of training; see `extend_inputs`."""
        return cls.extend_inputs(run, mesh, inputs, cache, progress=progress)

    @classmethod
    def frozen_config(cls, run: Run) -> Any:
        """Return the configuration of a model that the loss reads and that is not trained, such as a teacher; None by default.

        Raises:
            BadInput: the model does not exist.
        """
        return None

    @classmethod
    def bind(cls, run: Run, mesh: Mesh) -> "Objective":
        """Return the objective of a run, with `frozen_inputs` sharded over the mesh.

        Raises:
            BadInput: a model that the loss reads does not exist or does not fit the run.
        """
        return cls()

    @classmethod
    def bind_abstract(cls, run: Run, mesh: Mesh) -> "Objective":
        """Return the objective as `bind` does, with shapes and shardings instead of arrays, for a step that is only compiled."""
        return cls.bind(run, mesh)

    @classmethod
    def learns_from_teacher(cls) -> bool:
        """Return whether the loss has the terms of a teacher, if a run has one; False by default."""
        return False

    # --- On the devices ---

    z_loss: float = 0.0
    """Weight of the squared log-normalizer of each prediction, see `train.engine.losses.token_losses`."""

    @classmethod
    def has_normalizer(cls) -> bool:
        """Return whether `token_terms` reads `z_loss`: it and `loss` are those of this class."""
        return cls.loss is Objective.loss and cls.token_terms is Objective.token_terms

    def with_z_loss(self, weight: float) -> "Objective":
        """Return the same objective with another `z_loss`."""
        changed = copy.copy(self)
        changed.z_loss = weight
        return changed

    def frozen_inputs(self) -> Any:
        """Return a pytree of the untrained arrays that the loss reads, such as a teacher's parameters; by default {}.

        They are an argument of the step, which neither donates nor saves them.
        """
        return {}

    def added_params(self, model: Model) -> TrainedParams:
        """Return parameters that the loss reads and the optimizer updates beside those of the model; by default none.

        They are new in every run, and lie in its checkpoints under names of their own; scores, samples and exports do not have
        them, unless they have a use (`TrainedParams.has_use`).
        """
        return TrainedParams(lambda key: {}, ())

    def initial_params(self, model: Model, params: Any) -> Any:
        """Return the model's parameters to start from, sharded over the run's mesh, or None to start from new ones.

        By default they are `params`.

        Args:
            params: the parameters loaded from `--init`; None without it.
        """
        return params

    def complete_batch(
        self,
        model: Model,
        params: Callable[[], Any],
        batch: Batch,
        frozen: Any,
        *,
        seeds: Any,
        reduce: Callable[[Any], Any],
        num_micro: int,
        chunk: int,
    ) -> Batch:
        """Return the batch, with numbers that depend on the current parameters and on all of its rows; by default unchanged.

        A step calls it once, before it splits the batch, and takes no gradient through the result. `weights` and `loss` read it.

        Args:
            params: returns the same parameters as the argument `params` of `loss`.
            batch: the rows of the global batch; under pmap, those of one device.
            seeds: as in `loss`, of all rows of the batch.
            reduce: function that sums a pytree of arrays over devices under pmap, and does nothing elsewhere.
            num_micro: number of micro-batches, a divisor of the rows; larger parts of the batch may not fit into memory
                (`train.engine.micro_batches.map_rows`).
            chunk: as in `loss`.
        """
        return batch

    @property
    def target_term(self) -> str:
        """The name of the main term of the loss, by default that of the objective."""
        return self.OPTIONS.objective

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the divisor of each term of the loss, float32 [].

        By default the sum of the batch's weights, and the number of labelled pairs if there are any. The step adds the divisors
        of all devices before it divides, so that a loss does not depend on their number.
        """
        assert batch.weights is not None
        counted = {self.target_term: batch.weights.sum()}
        return counted if batch.labels is None else {**counted, "next": jnp.float32(batch.labels != IGNORED).sum()}

    def loss(
        self, model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
    ) -> tuple[dict[str, jax.Array], Any]:
        """Return (the terms of the loss as sums over the batch, float32 []; the model's new carry).

        The names of the terms are those of `weights` and perhaps of `Model.loss_factors`, with which the step scales them. The
        loss is the sum over terms of the term divided by its divisor. By default the terms are the weighted cross-entropy in nats
        of `batch.targets`, [B, T] or [B, P]; that of the labels of pairs if there are any; and those that the model itself adds.

        Args:
            params: the parameters of the model and `added_params`, in the dtype of the arithmetic.
            batch: a batch or a micro-batch, whose arrays have the shapes of `builder` after the batch axis B, with what
                `complete_batch` adds.
            frozen: what `frozen_inputs` returns.
            seeds: seeds of dropout, uint32 [B, 2]; None = no dropout.
            carry: state of the model from the rows before, arrays [B, ...]; {} for a model without a memory.
            smoothing: share of the uniform distribution in the targets (Szegedy et al. 2016, section 7).
            chunk: number of predictions per row whose logits are computed at a time; 0 = all.
        """
        out = model.apply(params, batch, seeds=seeds, carry=carry)
        terms = self.token_terms(model, params, out, batch, frozen, smoothing=smoothing, chunk=chunk)
        pairs = {} if batch.labels is None else {"next": pair_loss(model, params, out, batch, seeds)}
        return {**terms, **pairs, **model_terms(out)}, out.carry

    def token_terms(
        self, model: Model, params: Any, out: Output, batch: Batch, frozen: Any, *, smoothing: float, chunk: int
    ) -> dict[str, jax.Array]:
        """Return the terms of `loss` that are about tokens: by default the weighted cross-entropy of the batch's targets.

        Args:
            out: output of the model for the batch.
        """
        assert batch.targets is not None and batch.weights is not None
        nats = token_losses(
            Partial(model.unembed, params),
            task_heads.predicting_states(out, batch),
            batch.targets,
            vocabulary=model.config.vocab,
            smoothing=smoothing,
            z_loss=self.z_loss,
            chunk=chunk,
        )
        return {self.target_term: (nats * batch.weights).sum()}

    def feed(self, source: FeedSource, first: int) -> AbstractContextManager[Feed]:
        """Return the batches of a run from step `first` on: by default those of the data, which do not depend on the state.

        Raises:
            BadInput: a model that the batches are made with does not exist or does not fit the run.
        """
        return data_feed(source, first)

    def flops(self, model: Model, batch: Batch) -> float:
        """Return the matrix-product FLOPs of a training step on a global batch; `batch` may consist of shapes.

        By default they are three times those of the forward pass: the backward pass has two products for each of its products.
        """
        return 3 * self.forward_flops(model, batch)

    def forward_flops(self, model: Model, batch: Batch) -> float:
        """Return the matrix-product FLOPs of the trained model's forward pass in a step; `batch` may consist of shapes."""
        return model.flops(batch)


class LabelledObjective(Objective):
    """An objective of labelled examples, whose rows are `train.rows.example_rows.ExampleRow`s."""

    @classmethod
    def builder(cls, run: Run, tokenizer: Tokenizer, counts: Callable[[], Int64[np.ndarray, " V"]]) -> Build:
        """Return `build(rng, row, length)`, which converts a row to the fields of `Batch`; `rng` is not used.

        tokens, segments, positions and types are int32 [length], with XLNet's special tokens or a causal model also summary_at,
        int32 [1] (see `train.rows.example_rows.padded_row`). labels and weights (float32) are those of the row; each objective
        states their shapes.
        """
        special_tokens = tokenizer.special_tokens
        assert special_tokens is not None, "rows are made with a tokenizer that has special tokens"
        typed, causal = is_typed(run.model.types, special_tokens), getattr(run.model, "causal", False)

        def build(rng: np.random.Generator, row: ExampleRow, length: int) -> dict[str, np.ndarray]:
            options = [padded_row(inputs, length, special_tokens, typed=typed, causal=causal) for inputs in row.inputs]
            return cls.join_options(options) | cls.padded_labels(row, length)

        return build

    @classmethod
    def join_options(cls, options: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Return the fields of a row from the fields of its texts; only multiple choice has several."""
        (fields,) = options
        return fields

    @classmethod
    def padded_labels(cls, row: ExampleRow, length: int) -> dict[str, np.ndarray]:
        """Return the fields labels and weights of a row of `length` tokens; by default those of the example."""
        return {"labels": row.labels, "weights": row.weights}

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the divisor of the loss, the sum of the batch's weights: its labels are not those of pairs of texts."""
        assert batch.weights is not None
        return {self.OPTIONS.objective: batch.weights.sum()}
