"""Facts about a run that its console and its report show: model, data, devices and attention."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from train.config import run_config
from train.config.run_plugins import used_plugins
from train.engine import device_mesh, loss_chunks
from train.inputs.run_inputs import Inputs
from train.objectives.base import Objective
from train.parametrization import Parametrization
from train.run.run_dir import RunDir
from zoo.attention import recorded_calls
from zoo.batch import Batch
from zoo.models import Model, parameter_count
from zoo.precision import DTYPES, cast_params


def describe_run(
    run: run_config.Run, model: Model, mesh: Mesh, data: Inputs, traced: dict[str, str], rate_source: str, folder: RunDir
) -> dict[str, str]:
    """Return the facts about a run that the console and the report show."""
    devices = mesh.devices.size
    axes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
    plugins = ", ".join(f"{plugin.name} ({plugin.origin})" for plugin in used_plugins(run))
    slices = len(device_mesh.divide_into_slices(run.mesh, list(mesh.devices.flat)))
    parts = (f"mesh {axes}" if axes else "", f"{slices} slices" if slices > 1 else "")
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return {
        "model": f"{model.family}, {parameter_count(run.model):,} parameters{_inner_width(model.config)}",
        **data.describe(run),
        "devices": f"{devices} x {mesh.devices.flat[0].device_kind}{processes}{''.join(f', {part}' for part in parts if part)}",
        "precision": run.precision,
        **traced,
        **({"plug-ins": plugins} if plugins else {}),
        "MFU against": rate_source,
        "run": str(folder.path),
    }


def _inner_width(config: Any) -> str:
    """Return the product of heads and their size where it is not the width, since --model.heads alone changes it; else ""."""
    if "head" not in {field.name for field in dataclasses.fields(config)} or config.heads * config.head == config.width:
        return ""
    return f", attention of {config.heads} x {config.head} = {config.heads * config.head} dimensions in a width of {config.width}"


def describe_loss(
    run: run_config.Run, parameters: Parametrization, objective: Objective, batch: Batch, mesh: Mesh
) -> dict[str, str]:
    """Describe the attention implementations and the logits of the loss, from tracing it on a batch's shapes.

    On an accelerator this is where a kernel with wrong numbers is refused; see `zoo.attention.kernel_check`.
    """
    dtype, model = DTYPES[run.precision], parameters.model

    def loss(params: Any, batch: Batch, seeds: Any, frozen: Any, base: Any, carry: Any) -> Any:
        cast = cast_params(parameters.training_params(params, base), dtype)
        batch = objective.complete_batch(
            model, lambda: cast, batch, frozen, seeds=seeds, reduce=lambda x: x, num_micro=1, chunk=run.loss_chunk
        )
        return objective.loss(model, cast, batch, frozen, seeds=seeds, carry=carry, smoothing=0.0, chunk=run.loss_chunk)

    seeds = jax.ShapeDtypeStruct((run.data.batch, 2), jnp.uint32)
    init = parameters.trained.init
    params, carry = jax.eval_shape(lambda: (init(jax.random.key(0)), model.init_carry(run.data.batch)))
    with recorded_calls.record_calls() as calls, loss_chunks.record_logits() as traced:
        jax.eval_shape(loss, params, batch, seeds, objective.frozen_inputs(), parameters.base, carry)
    logits = loss_chunks.describe_logits(traced, mesh.size * run.accumulate)
    return {"attention": recorded_calls.describe_calls(calls) or "none"} | ({"logits": logits} if logits else {})
