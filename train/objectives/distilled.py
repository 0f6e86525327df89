"""Distillation: learn a teacher's probabilities and hidden states, and masked tokens (Sanh et al. 2019, section 2)."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float

from train.config import run_config
from train.config.objectives import DistilledOptions
from train.config.option_groups import Distillation
from train.engine.losses import distillation_losses, token_losses
from train.objectives.masked import Masked
from train.weights import pretrained_config
from train.weights.load import load_model
from zoo import configs, models, sharding
from zoo.batch import Batch
from zoo.errors import BadInput, require
from zoo.hf import hub
from zoo.models import Model
from zoo.nn import task_heads
from zoo.precision import cast_params


@dataclasses.dataclass(frozen=True, eq=False)
class Distilled(Masked):
    """Prediction of the masked tokens of a text, of a teacher's probabilities and of its last hidden states: the triple loss."""

    OPTIONS = DistilledOptions

    teacher: Model
    frozen: Any
    """The teacher's parameters, in the dtype of the arithmetic."""
    options: Distillation
    teacher_params: Any
    """The teacher's parameters in float32, from which the student is initialized."""
    mesh: Mesh

    @classmethod
    def frozen_config(cls, run: run_config.Run) -> Any:
        """Return the configuration of a run's teacher, without reading its weights.

        Raises:
            BadInput: no teacher, or a folder that neither exists nor is named after a size.
        """
        teacher = run.options.distillation.teacher
        if teacher.startswith(hub.PREFIX) or Path(teacher).exists():
            return pretrained_config.read_model_config(teacher)
        try:
            return configs.find_size(Path(teacher).name)[1].config
        except BadInput as error:
            raise BadInput(f"--distillation.teacher {teacher}: no such folder, and {error}") from None

    @classmethod
    def bind(cls, run: run_config.Run, mesh: Mesh) -> "Distilled":
        """Return the objective with its teacher, whose parameters are sharded over the mesh like the student's.

        Raises:
            BadInput: no teacher, or one that cannot teach this student.
        """
        options = run.options.distillation
        loaded = load_model(options.teacher, mesh)
        if "masked" not in loaded.params:
            raise BadInput(
                f"--distillation.teacher {options.teacher}: it has no head for masked tokens and gives no probabilities to learn"
            )
        _check(run, loaded.model.config)
        frozen = cast_params(loaded.params, run.precision)
        return cls(teacher=loaded.model, frozen=frozen, options=options, teacher_params=loaded.params, mesh=mesh)

    @classmethod
    def bind_abstract(cls, run: run_config.Run, mesh: Mesh) -> "Distilled":
        """Return the objective with shapes instead of arrays.

        A missing teacher is the published size that its folder is named after.

        Raises:
            BadInput: no teacher, one that cannot teach this student, or a folder that neither exists nor is named after a size.
        """
        teacher = models.model(dataclasses.replace(cls.frozen_config(run), task="masked"))
        _check(run, teacher.config)
        shapes = jax.eval_shape(lambda: teacher.init(jax.random.key(0)))
        shardings = sharding.shardings(mesh, shapes, teacher.definition.sharding)

        def abstract(dtype: Any) -> Any:
            return jax.tree.map(lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=spec), shapes, shardings)

        return cls(
            teacher=teacher,
            frozen=abstract(run.precision),
            options=run.options.distillation,
            teacher_params=abstract(jnp.float32),
            mesh=mesh,
        )

    def frozen_inputs(self) -> Any:
        """Return the teacher's parameters, in the dtype of the arithmetic."""
        return self.frozen

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the divisors of the terms: the number of predictions, and of tokens at which the student follows the teacher."""
        assert batch.weights is not None
        followed = self._followed(batch).sum(dtype=jnp.float32)
        return {"masked": batch.weights.sum(), "soft": followed, "cosine": followed}

    def loss(
        self, model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
    ) -> tuple[dict[str, jax.Array], Any]:
        """Return the weighted sums of the terms, in nats except for the cosine, and the model's carry.

        The terms are the cross-entropy of masked tokens; T^2 KL(teacher || student) of the distributions softened
        by the temperature T; and 1 - cosine of the last hidden states.
        """
        assert batch.targets is not None and batch.weights is not None
        out = model.apply(params, batch, seeds=seeds, carry=carry)
        teacher_hidden = jax.lax.stop_gradient(self.teacher.apply(frozen, batch).hidden)
        followed, options = self._followed(batch), self.options
        nats = token_losses(
            Partial(model.unembed, params),
            task_heads.gather_positions(out.hidden, batch.predict_at),
            batch.targets,
            vocabulary=model.config.vocab,
            smoothing=smoothing,
        )
        soft = distillation_losses(
            Partial(model.unembed, params),
            Partial(self.teacher.unembed, frozen),
            out.hidden,
            teacher_hidden,
            temperature=options.temperature,
            chunk=chunk,
        )
        cosine_distance = 1 - _cosine(out.hidden, teacher_hidden)
        terms = {
            "masked": options.masked * (nats * batch.weights).sum(),
            "soft": options.soft * options.temperature**2 * jnp.where(followed, soft, 0).sum(),
            "cosine": options.cosine * jnp.where(followed, cosine_distance, 0).sum(),
        }
        return terms, out.carry

    def initial_params(self, model: Model, params: Any) -> Any:
        """Return `params`, or if None the teacher's embeddings, head, and evenly spaced layers, including the first and the last.

        A teacher that has its layers in several stacks gives its embeddings and head alone.

        From 12 layers, a student of 6 takes 0, 2, 4, 7, 9 and 11, as the released one did. With `fresh` the result is `params` in
        either case: None stands for random parameters.
        """
        if params is not None or self.options.fresh:
            return params
        teacher_layers = self.teacher.config.layers
        layers = student_layers(teacher_layers, model.config.layers)

        def initial(teacher_params: Any) -> Any:
            leaves = {sharding.path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(teacher_params)}
            # The layers of ModernBERT are two stacks, of which neither has all of them.
            partial = {path for path, leaf in leaves.items() if path.startswith("layers/") and len(leaf) != teacher_layers}
            leaves = {
                path: leaf[jnp.asarray(layers)] if path.startswith("layers/") else leaf
                for path, leaf in leaves.items()
                if path not in partial
            }

            def take(keys: Any, fresh: jax.Array) -> jax.Array:
                leaf = leaves.get(sharding.path_of(keys), fresh)
                return leaf if leaf.shape == fresh.shape else fresh

            return jax.tree_util.tree_map_with_path(take, model.init(jax.random.key(0)))

        shardings = sharding.shardings(self.mesh, jax.eval_shape(initial, self.teacher_params), model.definition.sharding)
        with jax.set_mesh(self.mesh):
            return jax.jit(initial, out_shardings=shardings)(self.teacher_params)

    def flops(self, model: Model, batch: Batch) -> float:
        """Return the FLOPs of a step: the student's forward and backward, predicting at all tokens, and the teacher's forward."""
        return super().flops(model, batch) + self.forward_flops(self.teacher, batch)

    def forward_flops(self, model: Model, batch: Batch) -> float:
        """Return the FLOPs of a forward pass that predicts at all tokens."""
        return model.flops(dataclasses.replace(batch, predict_at=None))

    def _followed(self, batch: Batch) -> Bool[Array, "B T"]:
        """Return the tokens at which the student follows its teacher: all but padding, or only those that it predicts."""
        if self.options.masked_only:
            assert batch.predict_at is not None and batch.weights is not None
            rows = jnp.arange(batch.tokens.shape[0])[:, None]
            counted = jnp.zeros(batch.tokens.shape, bool)
            return counted.at[rows, batch.predict_at].max(batch.weights > 0)
        return jnp.ones(batch.tokens.shape, bool) if batch.segments is None else batch.segments > 0


OBJECTIVE = Distilled


def student_layers(teacher: int, student: int) -> list[int]:
    """Return the indices of the teacher's layers that a student takes."""
    return np.linspace(0, teacher - 1, student).round().astype(int).tolist()


def _cosine(a: Float[Array, "B T D"], b: Float[Array, "B T D"]) -> Float[Array, "B T"]:
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    # Hidden states are outputs of a norm, so they are not zero unless the scale of the norm is.
    sizes = jnp.sqrt(jnp.square(a).sum(-1) * jnp.square(b).sum(-1))
    return (a * b).sum(-1) / jnp.maximum(sizes, 1e-8)


def _check(run: run_config.Run, teacher: Any) -> None:
    student, fresh = run.model, run.options.distillation.fresh
    sides = getattr(teacher, "causal", False)
    require(not sides, "distillation.teacher", run.options.distillation.teacher, "its tokens see one side only; choose another")
    for field in ("vocab", "width"):
        value, expected = getattr(student, field), getattr(teacher, field)
        require(value == expected, f"model.{field}", value, f"its teacher has {expected:,}; choose the same")
    fix = f"its teacher has {teacher.context} positions; choose at most as many"
    require(run.data.length <= teacher.context, "data.length", run.data.length, fix)
    fix = f"it starts from the layers of its teacher, which has {teacher.layers}; choose at most as many, or --distillation.fresh"
    require(fresh or student.layers <= teacher.layers, "model.layers", student.layers, fix)
