"""Learn from a teacher: its probabilities, its hidden states, and masked words (Sanh et al. 2019, section 2)."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from train.config import run_config
from train.engine.losses import soft_losses, token_losses
from train.objectives import masked
from train.weights import init_config
from train.weights.load import load
from zoo import configs, models, sharding
from zoo.batch import Batch
from zoo.errors import BadInput, require
from zoo.hf import hub
from zoo.models import Model
from zoo.nn import heads

DATA = "text"


plan, scored, builder = masked.plan, masked.scored, masked.builder


def bind(run: run_config.Run, mesh: Mesh) -> "Distilled":
    """The objective with its teacher, whose parameters lie on the mesh as the student's do.

    Raises:
        BadInput: no teacher, or one that cannot teach this student.
    """
    chosen = run.distillation
    require(bool(chosen.teacher), "distillation.teacher", chosen.teacher, "name the run or the weights to learn from")
    loaded = load(chosen.teacher, mesh)
    if "masked" not in loaded.params:
        raise BadInput(
            f"--distillation.teacher {chosen.teacher}: it has no head for masked words, so it has no probabilities to teach"
        )
    _check(run, loaded.net.config)
    frozen = jax.tree.map(lambda leaf: leaf.astype(run.precision), loaded.params)
    return Distilled(teacher=loaded.net, frozen=frozen, chosen=chosen, given=loaded.params, mesh=mesh)


def sketch(run: run_config.Run, mesh: Mesh) -> "Distilled":
    """The same in shapes. A teacher that is not here is the published size that its folder is named after.

    Raises:
        BadInput: no teacher, one that cannot teach this student, or a folder that is neither there nor named after a size.
    """
    teacher = models.model(dataclasses.replace(named(run), task="masked"))
    _check(run, teacher.config)
    shapes = jax.eval_shape(lambda: teacher.init(jax.random.key(0)))
    places = sharding.shardings(mesh, shapes, teacher.module.SHARDING)

    def of(dtype: Any) -> Any:
        return jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=place), shapes, places)

    return Distilled(teacher=teacher, frozen=of(run.precision), chosen=run.distillation, given=of(jnp.float32), mesh=mesh)


def named(run: run_config.Run) -> Any:
    """The numbers of a run's teacher, whose weights are not read.

    Raises:
        BadInput: no teacher, or a folder that is neither there nor named after a size.
    """
    teacher = run.distillation.teacher
    require(bool(teacher), "distillation.teacher", teacher, "name the run or the weights to learn from")
    if teacher.startswith(hub.PREFIX) or Path(teacher).exists():
        return init_config.numbers(teacher)
    try:
        return configs.find(Path(teacher).name)[1].config
    except BadInput as unknown:
        raise BadInput(f"--distillation.teacher {teacher}: nothing is there, and {unknown}") from None


def _check(run: run_config.Run, theirs: Any) -> None:
    student = run.model
    for field in ("vocab", "width"):
        ours = getattr(student, field)
        fix = f"its teacher has {getattr(theirs, field):,}; choose the same"
        require(ours == getattr(theirs, field), f"model.{field}", ours, fix)
    fix = f"its teacher has {theirs.context} positions; choose at most as many"
    require(run.data.length <= theirs.context, "data.length", run.data.length, fix)
    fix = f"its teacher has {theirs.layers}; choose at most as many"
    require(student.layers <= theirs.layers, "model.layers", student.layers, fix)


@dataclasses.dataclass(frozen=True, eq=False)
class Distilled:
    """The triple loss; see `train.objectives` for what its parts are."""

    teacher: Model
    frozen: Any
    """The teacher's parameters, in the dtype of the arithmetic."""
    chosen: run_config.Distillation
    given: Any
    """The teacher's parameters as they are, float32: what the student begins with."""
    mesh: Mesh

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Predictions, and tokens that the teacher is followed at."""
        assert batch.weights is not None
        followed = self._followed(batch).sum(dtype=jnp.float32)
        return {"masked": batch.weights.sum(), "soft": followed, "cosine": followed}

    def loss(
        self, model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
    ) -> tuple[dict[str, jax.Array], Any]:
        """Weighted sums, in nats but for the cosine: of masked words; of the divergence KL(teacher || student), both at the
        temperature, times its square; and of 1 - cosine of the last hidden states."""
        assert batch.targets is not None and batch.weights is not None
        out = model.apply(params, batch, seeds=seeds, carry=carry)
        shown = jax.lax.stop_gradient(self.teacher.apply(frozen, batch).hidden)
        followed, chosen = self._followed(batch), self.chosen
        nats = token_losses(
            lambda hidden: model.unembed(params, hidden),
            heads.gather(out.hidden, batch.predict_at),
            batch.targets,
            vocabulary=model.config.vocab,
            smoothing=smoothing,
        )
        soft = soft_losses(
            lambda hidden: model.unembed(params, hidden),
            lambda hidden: self.teacher.unembed(frozen, hidden),
            out.hidden,
            shown,
            temperature=chosen.temperature,
            chunk=chunk,
        )
        away = 1 - _cosine(out.hidden, shown)
        terms = {
            "masked": chosen.masked * (nats * batch.weights).sum(),
            "soft": chosen.soft * chosen.temperature**2 * jnp.where(followed, soft, 0).sum(),
            "cosine": chosen.cosine * jnp.where(followed, away, 0).sum(),
        }
        return terms, out.carry

    def begin(self, model: Model, params: Any) -> Any:
        """The teacher's embeddings, head, and evenly spaced layers, the first and the last among them; `params` if there are any.

        Of 12 layers a student of 6 takes 0, 2, 4, 7, 9 and 11, as the released one did.
        """
        if params is not None:
            return params
        layers = student_layers(self.teacher.config.layers, model.config.layers)

        def begun(given: Any) -> Any:
            theirs = {sharding.path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(given)}
            theirs = {path: leaf[jnp.asarray(layers)] if path.startswith("layers/") else leaf for path, leaf in theirs.items()}

            def take(keys: Any, fresh: jax.Array) -> jax.Array:
                leaf = theirs.get(sharding.path_of(keys), fresh)
                return leaf if leaf.shape == fresh.shape else fresh

            return jax.tree_util.tree_map_with_path(take, model.init(jax.random.key(0)))

        places = sharding.shardings(self.mesh, jax.eval_shape(begun, self.given), model.module.SHARDING)
        with jax.set_mesh(self.mesh):
            return jax.jit(begun, out_shardings=places)(self.given)

    def flops(self, model: Model, batch: Batch) -> float:
        """Of a step: the student forward and backward, its words predicted everywhere, and the teacher forward."""
        everywhere = dataclasses.replace(batch, predict_at=None)
        return 3 * model.flops(everywhere) + self.teacher.flops(everywhere)

    def _followed(self, batch: Batch) -> Bool[Array, "B T"]:
        """Tokens at which the student follows its teacher: all but padding, or those that it predicts."""
        if self.chosen.masked_only:
            assert batch.predict_at is not None and batch.weights is not None
            rows = jnp.arange(batch.tokens.shape[0])[:, None]
            counted = jnp.zeros(batch.tokens.shape, bool)
            return counted.at[rows, batch.predict_at].max(batch.weights > 0)
        return jnp.ones(batch.tokens.shape, bool) if batch.segments is None else batch.segments > 0


def student_layers(teacher: int, student: int) -> list[int]:
    """The numbers of the teacher's layers that a student takes."""
    return np.linspace(0, teacher - 1, student).round().astype(int).tolist()


def _cosine(a: Float[Array, "B T D"], b: Float[Array, "B T D"]) -> Float[Array, "B T"]:
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    # Hidden states have gone through a norm: none is zero, unless its scale is.
    sizes = jnp.sqrt(jnp.square(a).sum(-1) * jnp.square(b).sum(-1))
    return (a * b).sum(-1) / jnp.maximum(sizes, 1e-8)
