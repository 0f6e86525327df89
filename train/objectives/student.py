"""The base class of objectives whose model may be the student of a teacher: it adds losses to those of the predicted tokens."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array, Float

from train.config.distillation_options import StoredDistillation
from train.config.run_config import Run
from train.engine.losses import SoftLoss, distillation_losses, target_and_distillation_losses, target_and_stored_losses
from train.engine.state_init import TrainedParams
from train.objectives.base import Objective
from train.rows.batch_feed import Feed, FeedSource
from train.rows.row_source import RowSource
from train.tokenizers.tokenizer import Tokenizer
from train.weights.stored_teacher import IDS, LOG_PROBS, add_teacher, stored_options
from train.weights.teacher import Teacher, abstract_teacher, load_teacher, teacher_config
from zoo.batch import Batch, Output
from zoo.models import Model
from zoo.nn.task_heads import predicting_states
from zoo.ops.products import product

PROJECTION = "teacher_projection"
"""Name of the parameters that map the student's hidden states to the width of the teacher's."""


@dataclasses.dataclass(frozen=True, eq=False)
class StudentObjective(Objective):
    """Base class of objectives that predict tokens, with the losses of a teacher if there is one.

    The teacher reads the same batch as the student. Its losses are about the predictions of the batch, with the same weights.
    """

    NEEDS_TEACHER: ClassVar[bool] = False
    """True if there is no run without a teacher."""

    teacher: Teacher | None = None
    """The teacher; None = there is none, or its probabilities are stored."""
    stored: StoredDistillation | None = None
    """Options of a teacher whose probabilities each batch has in `extra` (`train.weights.stored_teacher`); None = it has none."""

    @classmethod
    def learns_from_teacher(cls) -> bool:
        """Return True, unless a subclass has another loss."""
        return (cls.loss, cls.token_terms) == (Objective.loss, StudentObjective.token_terms)

    @classmethod
    def frozen_config(cls, run: Run) -> Any:
        """Return the configuration of the run's teacher, without reading its weights; None without a teacher.

        Raises:
            BadInput: a folder that neither exists nor is named after a size.
        """
        return teacher_config(run) if (run.teacher or cls.NEEDS_TEACHER) and stored_options(run) is None else None

    @classmethod
    def bind(cls, run: Run, mesh: Mesh) -> "StudentObjective":
        """Return the objective with its teacher, if the run has one.

        Raises:
            BadInput: a teacher that cannot be loaded, or cannot teach this student.
        """
        if stored := stored_options(run):
            return cls(stored=stored)
        return cls(load_teacher(run, mesh)) if run.teacher or cls.NEEDS_TEACHER else cls()

    @classmethod
    def bind_abstract(cls, run: Run, mesh: Mesh) -> "StudentObjective":
        """Return the objective with shapes instead of arrays; see `train.weights.teacher.abstract_teacher`."""
        if stored := stored_options(run):
            return cls(stored=stored)
        return cls(abstract_teacher(run, mesh)) if run.teacher or cls.NEEDS_TEACHER else cls()

    @classmethod
    def abstract_batch(cls, run: Run, tokenizer: Tokenizer, rows: RowSource) -> Batch:
        """Return the shapes and dtypes of a global batch, with the stored probabilities of a teacher if there are any."""
        batch = super().abstract_batch(run, tokenizer, rows)
        if (stored := stored_options(run)) is None:
            return batch
        assert batch.targets is not None
        size, shape = stored.top_k, batch.targets.shape
        ids = jax.ShapeDtypeStruct((*shape, size), np.int32)
        return dataclasses.replace(batch, extra={IDS: ids, LOG_PROBS: jax.ShapeDtypeStruct((*shape, size + 1), np.float32)})

    @classmethod
    def extend_inputs(cls, run: Run, mesh: Mesh, inputs: Any, cache: Path, *, progress: Callable[[int, int], None]) -> Any:
        """Return the run's inputs with the stored probabilities of its teacher, if --distillation.top-k asks for them.

        Raises:
            BadInput: see `train.weights.stored_teacher.add_teacher`.
        """
        if stored_options(run) is None:
            return inputs
        build = cls.builder(run, inputs.tokenizer, inputs.counts)
        return add_teacher(run, mesh, inputs, build, cache, progress=progress)

    @classmethod
    def extend_scored_inputs(cls, run: Run, mesh: Mesh, inputs: Any, cache: Path, *, progress: Callable[[int, int], None]) -> Any:
        """Return the inputs unchanged: a score does not depend on the teacher."""
        return inputs

    def feed(self, source: FeedSource, first: int) -> AbstractContextManager[Feed]:
        """Return the batches of the data, with the stored probabilities of the teacher if there are any."""
        return super().feed(source, first) if self.stored is None else _stored_feed(source, first)

    def frozen_inputs(self) -> Any:
        """Return the teacher's parameters, in the dtype of the arithmetic."""
        return {} if self.teacher is None else self.teacher.frozen

    def added_params(self, model: Model) -> TrainedParams:
        """Return the matrix from the student's hidden states to the teacher's, if the loss compares them and their widths differ.

        It is `teacher_projection/kernel`, [D, E], normal with the variance 1 / D.
        """
        if not self._projects(model):
            return super().added_params(model)
        assert self.teacher is not None
        shape = model.config.width, self.teacher.model.config.width

        def init(key: jax.Array) -> Any:
            # The model's own parameters are sampled from the same key.
            key = jax.random.fold_in(key, shape[1])
            return {PROJECTION: {"kernel": jax.random.normal(key, shape, jnp.float32) / math.sqrt(shape[0])}}

        return TrainedParams(init, ((f"{PROJECTION}/kernel", ("fsdp", None)),))

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the divisors of the terms; that of the teacher's losses is the sum of `followed_weights`."""
        own = super().weights(batch)
        if self.stored is not None:
            return own | {"soft": self.followed_weights(batch).sum()}
        if self.teacher is None:
            return own
        names = [name for name in ("soft", "cosine") if getattr(self.teacher.options, name)]
        return own | dict.fromkeys(names, self.followed_weights(batch).sum())

    @property
    def follows_all_tokens(self) -> bool:
        """True if the student follows its teacher at all tokens but padding, instead of at the predictions of the batch."""
        return False

    def followed_weights(self, batch: Batch) -> Float[Array, "B P"]:
        """Return the weights of the positions at which the student follows its teacher."""
        if not self.follows_all_tokens:
            assert batch.weights is not None
            return batch.weights
        return jnp.float32(batch.segments > 0) if batch.segments is not None else jnp.ones(batch.tokens.shape, jnp.float32)

    @classmethod
    def has_normalizer(cls) -> bool:
        """Return whether `token_terms` reads `z_loss`: it is that of this class, and `loss` that of its base class."""
        return cls.loss is Objective.loss and cls.token_terms is StudentObjective.token_terms

    def token_terms(
        self, model: Model, params: Any, out: Output, batch: Batch, frozen: Any, *, smoothing: float, chunk: int
    ) -> dict[str, jax.Array]:
        """Return the terms of the targets and of the teacher, each times its weight.

        "soft": T^2 times the divergence of the distributions softened by the temperature T, in nats. "cosine": 1 - cosine of the
        last hidden states. A term of weight 0 is absent, apart from that of the targets.
        """
        if self.stored is not None:
            return self._stored_terms(self.stored, model, params, out, batch, smoothing=smoothing, chunk=chunk)
        if self.teacher is None:
            return super().token_terms(model, params, out, batch, frozen, smoothing=smoothing, chunk=chunk)
        options, name, everywhere = self.teacher.options, self.target_term, self.follows_all_tokens
        outputs = out, jax.lax.stop_gradient(self.teacher.model.apply(frozen, batch))
        hidden, teacher_hidden = (o.hidden if everywhere else predicting_states(o, batch) for o in outputs)
        heads = Partial(model.unembed, params), Partial(self.teacher.model.unembed, frozen)
        soft = SoftLoss(options.divergence, options.beta, options.temperature)
        divergences, weights = None, self.followed_weights(batch)
        if options.soft and not everywhere:
            # The student's logits are computed once for both losses.
            assert batch.targets is not None
            sizes = {"vocabulary": model.config.vocab, "smoothing": smoothing, "z_loss": self.z_loss, "chunk": chunk}
            nats, divergences = target_and_distillation_losses(*heads, hidden, teacher_hidden, batch.targets, soft=soft, **sizes)
            terms = {name: (nats * weights).sum()}
        else:
            terms = super().token_terms(model, params, out, batch, frozen, smoothing=smoothing, chunk=chunk)
            if options.soft:
                divergences = distillation_losses(*heads, hidden, teacher_hidden, soft=soft, chunk=chunk)
        terms[name] = options.targets * terms[name]
        if divergences is not None:
            terms["soft"] = options.soft * options.temperature**2 * (divergences * weights).sum()
        if options.cosine:
            projected = product(hidden, params[PROJECTION]["kernel"], 1) if self._projects(model) else hidden
            terms["cosine"] = options.cosine * ((1 - _cosine(projected, teacher_hidden)) * weights).sum()
        return terms

    def _stored_terms(
        self, options: StoredDistillation, model: Model, params: Any, out: Output, batch: Batch, *, smoothing: float, chunk: int
    ) -> dict[str, jax.Array]:
        """Return the terms of the targets and of the most probable tokens of the teacher, each times its weight."""
        assert batch.targets is not None and batch.weights is not None and batch.extra is not None
        nats, divergences = target_and_stored_losses(
            Partial(model.unembed, params),
            predicting_states(out, batch),
            batch.targets,
            batch.extra[IDS],
            batch.extra[LOG_PROBS],
            soft=SoftLoss(options.divergence, options.beta, options.temperature),
            vocabulary=model.config.vocab,
            smoothing=smoothing,
            z_loss=self.z_loss,
            chunk=chunk,
        )
        soft = options.soft * options.temperature**2 * (divergences * batch.weights).sum()
        return {self.target_term: options.targets * (nats * batch.weights).sum(), "soft": soft}

    def flops(self, model: Model, batch: Batch) -> float:
        """Return the FLOPs of a step: the student's forward and backward, and the teacher's forward."""
        return super().flops(model, batch) + (0.0 if self.teacher is None else self.predicting_flops(self.teacher.model, batch))

    def forward_flops(self, model: Model, batch: Batch) -> float:
        """Return the FLOPs of a forward pass of the student, with the projection of its hidden states if there is one."""
        flops = self.predicting_flops(model, batch)
        if not self._projects(model):
            return flops
        assert self.teacher is not None
        positions = math.prod(jax.eval_shape(self.followed_weights, batch).shape)
        return flops + 2.0 * positions * model.config.width * self.teacher.model.config.width

    def predicting_flops(self, model: Model, batch: Batch) -> float:
        """Return the FLOPs of a forward pass that predicts at all tokens at which the student follows its teacher."""
        return model.flops(dataclasses.replace(batch, predict_at=None) if self.follows_all_tokens else batch)

    def _projects(self, model: Model) -> bool:
        """Return whether hidden states of both models are compared that differ in their width."""
        teacher = self.teacher
        return teacher is not None and teacher.options.cosine > 0 and teacher.model.config.width != model.config.width


class _StoredFeed(Feed):
    """The batches of the data, with the stored probabilities of a teacher."""

    def __init__(self, source: FeedSource, stream: Iterator[Batch]) -> None:
        super().__init__(source.batches, stream)
        self._teacher, self._local_rows = source.data.teacher, source.batches.local_rows

    def batch(self, step: int, state: Any) -> Batch:
        rows = self.rows_of(step)[self._local_rows(step)]
        return dataclasses.replace(super().batch(step, state), extra=self._teacher.numbers(rows))


@contextlib.contextmanager
def _stored_feed(source: FeedSource, first: int) -> Iterator[Feed]:
    with source.batches.read(first) as stream:
        yield _StoredFeed(source, stream)


def _cosine(a: Float[Array, "B T D"], b: Float[Array, "B T D"]) -> Float[Array, "B T"]:
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    # Hidden states are outputs of a norm, so they are not zero unless the scale of the norm is.
    sizes = jnp.sqrt(jnp.square(a).sum(-1) * jnp.square(b).sum(-1))
    return (a * b).sum(-1) / jnp.maximum(sizes, 1e-8)
