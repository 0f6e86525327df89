"""Distillation: learn a teacher's probabilities and hidden states, and masked tokens (Sanh et al. 2019, section 2)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train.config.distillation_options import TripleLoss
from train.config.objectives import DistilledOptions
from train.objectives.masked import Masked
from train.objectives.student import StudentObjective
from zoo import sharding
from zoo.models import Model


class Distilled(StudentObjective, Masked):
    """Prediction of the masked tokens of a text, of a teacher's probabilities and of its last hidden states: the triple loss."""

    OPTIONS = DistilledOptions
    NEEDS_TEACHER = True

    @property
    def target_term(self) -> str:
        """The name of the term of masked tokens."""
        return Masked.OPTIONS.objective

    @property
    def follows_all_tokens(self) -> bool:
        """True if the student follows its teacher at all tokens, not only at masked ones."""
        assert self.teacher is not None and isinstance(self.teacher.options, TripleLoss)
        return not self.teacher.options.masked_only

    def initial_params(self, model: Model, params: Any) -> Any:
        """Return `params`, or if None the teacher's embeddings, head, and evenly spaced layers, including the first and the last.

        A student takes no layers of a teacher of another structure: ModernBERT's first layer is in a stack of its own.

        From 12 layers, a student of 6 takes 0, 2, 4, 7, 9 and 11, as the released one did. With `fresh` the result is `params` in
        either case: None stands for random parameters.
        """
        teacher = self.teacher
        assert teacher is not None
        if params is not None or teacher.params is None:
            return params
        layers = student_layers(teacher.model.config.layers, model.config.layers)

        def initial(teacher_params: Any) -> Any:
            leaves = {sharding.path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(teacher_params)}
            first = int(any(path.startswith("first/layers/") for path in leaves))
            others = jnp.asarray(layers[first:], int) - first
            leaves = {path: leaf[others] if path.startswith("layers/") else leaf for path, leaf in leaves.items()}

            def take(keys: Any, fresh: jax.Array) -> jax.Array:
                leaf = leaves.get(sharding.path_of(keys), fresh)
                return leaf if leaf.shape == fresh.shape else fresh

            return jax.tree_util.tree_map_with_path(take, model.init(jax.random.key(0)))

        shardings = sharding.shardings(teacher.mesh, jax.eval_shape(initial, teacher.params), model.definition.sharding)
        with jax.set_mesh(teacher.mesh):
            return jax.jit(initial, out_shardings=shardings)(teacher.params)


OBJECTIVE = Distilled


def student_layers(teacher: int, student: int) -> list[int]:
    """Return the indices of the teacher's layers that a student takes."""
    return np.linspace(0, teacher - 1, student).round().astype(int).tolist()
