"""The teacher of a run: a frozen model whose probabilities and hidden states its student learns."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from train.config.declaration import scored_as
from train.config.distillation_options import Distillation, TripleLoss
from train.config.run_config import Run
from train.weights import pretrained_config
from train.weights.load import load_model
from zoo import configs, models, sharding
from zoo.configs import longest_row
from zoo.errors import BadInput, require
from zoo.hf import hub
from zoo.models import Model
from zoo.precision import cast_params

LM_HEADS = ("masked", "permutation", "pretraining")
"""Tasks of encoders that have an LM head."""


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A teacher, with the losses that compare its student with it."""

    model: Model
    frozen: Any
    """Its parameters, in the dtype of the arithmetic."""
    options: Distillation | TripleLoss
    params: Any
    """Its parameters in float32, from which the student starts; None if it starts from others."""
    mesh: Mesh
    """The devices that the parameters are sharded over."""


def load_teacher(run: Run, mesh: Mesh) -> Teacher:
    """Return the teacher of a run, whose parameters are sharded over the mesh like the student's.

    Raises:
        BadInput: nothing to load, or a model that cannot teach this student.
    """
    options: Any = run.options.distillation
    loaded = load_model(options.teacher, mesh)
    check_teacher(run, loaded.model.config, has_head=getattr(loaded.model.config, "task", LM_HEADS[0]) in LM_HEADS)
    params = loaded.params if options.starts_from_teacher else None
    return Teacher(loaded.model, cast_params(loaded.params, run.precision), options, params, mesh)


def abstract_teacher(run: Run, mesh: Mesh) -> Teacher:
    """Return the teacher of a run with shapes instead of arrays.

    A missing teacher is the published size that its folder is named after.

    Raises:
        BadInput: a model that cannot teach this student, or a folder that neither exists nor is named after a size.
    """
    options: Any = run.options.distillation
    config = teacher_config(run)
    check_teacher(run, config, has_head=True)
    teacher = models.model(dataclasses.replace(config, task=scored_as(type(run.options))) if hasattr(config, "task") else config)
    shapes = jax.eval_shape(lambda: teacher.init(jax.random.key(0)))
    shardings = sharding.shardings(mesh, shapes, teacher.definition.sharding)

    def abstract(dtype: Any) -> Any:
        return jax.tree.map(lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=spec), shapes, shardings)

    return Teacher(
        teacher, abstract(run.precision), options, abstract(jnp.float32) if options.starts_from_teacher else None, mesh
    )


def teacher_config(run: Run) -> Any:
    """Return the configuration of a run's teacher, without reading its weights.

    Raises:
        BadInput: a folder that neither exists nor is named after a size.
    """
    if run.teacher.startswith(hub.PREFIX) or Path(run.teacher).exists():
        return pretrained_config.read_model_config(run.teacher)
    try:
        return configs.find_size(Path(run.teacher).name)[1].config
    except BadInput as error:
        raise BadInput(f"--distillation.teacher {run.teacher}: no such folder, and {error}") from None


def check_teacher(run: Run, teacher: Any, *, has_head: bool) -> None:
    """Refuse a teacher that does not predict what the student predicts, or another vocabulary than the student's.

    Args:
        teacher: configuration of the teacher.
        has_head: it has the head that predicts tokens.

    Raises:
        BadInput: names the option of the run.
    """
    option, student, options = "distillation.teacher", run.model, run.options.distillation
    objective, family = scored_as(type(run.options)), configs.family_of(teacher)
    tokens = {"masked": "masked tokens"}.get(objective, f"the tokens of {objective}")
    predicts = objective in models.family(family).objectives and has_head and not getattr(teacher, "labels", ())
    fix = f"it has no head for {tokens} and gives no probabilities to learn; choose another"
    require(predicts, option, run.teacher, fix)
    causal = getattr(teacher, "causal", False) == getattr(student, "causal", False)
    require(causal, option, run.teacher, "its tokens see one side only; choose another")
    one, other = ("the student", "it") if student.is_encoder_decoder else ("it", "the student")
    same_rows = student.is_encoder_decoder == teacher.is_encoder_decoder
    fix = f"{one} has an encoder and {other} has none; choose a teacher that reads the same rows"
    require(same_rows, option, run.teacher, fix)
    require(student.vocab == teacher.vocab, "model.vocab", student.vocab, f"its teacher has {teacher.vocab:,}; choose the same")
    memory = getattr(teacher, "memory", 0)
    fix = f"it remembers {memory} positions of the rows before, which a teacher does not read; choose one without a memory"
    require(not memory, option, run.teacher, fix)
    longest = longest_row(teacher)
    for name in ("length", "target_length"):
        value = getattr(run.data, name, 0)
        fix = f"its teacher has {longest} positions; choose at most as many"
        require(longest is None or value <= longest, f"data.{name}", value, fix)
    if options.starts_from_teacher:
        cause = "it starts from the layers of its teacher, which has"
        fix = f"{cause} {teacher.width:,}; choose the same, or --distillation.fresh"
        require(student.width == teacher.width, "model.width", student.width, fix)
        fix = f"{cause} {teacher.layers}; choose at most as many, or --distillation.fresh"
        require(student.layers <= teacher.layers, "model.layers", student.layers, fix)
