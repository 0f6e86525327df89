"""Frozen embeddings and frozen first layers: the parameters of a model are cut into a frozen part and a trained one."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from train.config.run_config import Optim, Run
from train.engine.state_init import TrainedParams, all_params
from train.weights import adapter_params
from train.weights.param_parts import ParamParts
from zoo import models
from zoo.lora.adapters import flatten_tree, unflatten_tree
from zoo.models import Model


def param_parts(run: Run) -> ParamParts | None:
    """Return the trained and the frozen parameters of a run; None if it trains all parameters of its model.

    Raises:
        BadInput: as `train.weights.adapter_params.adapters_of`.
    """
    model = models.model(run.model)
    if (spec := adapter_params.adapters_of(run)) is not None:
        return adapter_params.adapter_parts(model, spec)
    return frozen_parts(model, run.optim) if run.optim.freezes else None


def frozen_parts(model: Model, optim: Optim) -> ParamParts:
    """Return the parts of a model with frozen embeddings or frozen layers."""
    parameters = all_params(model)
    return ParamParts(
        model=model,
        trained=TrainedParams(lambda key: split_params(optim, parameters.init(key))[0], parameters.sharding),
        frozen=lambda params: split_params(optim, params)[1],
        join=join_params,
        summary=functools.partial(_summary, model, optim),
    )


def split_params(optim: Optim, params: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (the trained parameters, the frozen ones) of a model.

    A leaf of a stack of L layers, [L, ...], is in both parts, unless all or none of its layers are frozen.
    """
    leaves = flatten_tree(params)
    counts = _frozen_counts(optim, leaves)
    trained = {path: leaf[counts[path] :] if counts[path] else leaf for path, leaf in leaves.items()}
    trained = {path: leaf for path, leaf in trained.items() if not counts[path] or leaf.shape[0]}
    return unflatten_tree(trained), unflatten_tree({path: leaf[: counts[path]] for path, leaf in leaves.items() if counts[path]})


def join_params(base: Any, trained: Any) -> dict[str, Any]:
    """Return the parameters of a model from both results of `split_params`, with any others beside the trained ones."""
    leaves = flatten_tree(base)
    for path, leaf in flatten_tree(trained).items():
        leaves[path] = jnp.concatenate([leaves[path], leaf]) if path in leaves else leaf
    return unflatten_tree(leaves)


def _frozen_counts(optim: Optim, leaves: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of entries of the first axis of each leaf, from the first on, that are frozen."""
    # A model may hold its first layers apart, in `first/layers`.
    first = next((leaf.shape[0] for path, leaf in leaves.items() if path.startswith("first/")), 0)

    def count(path: str, leaf: Any) -> int:
        match path.split("/")[0]:
            case "embed":
                return leaf.shape[0] if optim.freeze_embeddings else 0
            case "first":
                return min(first, optim.freeze_layers)
            case "layers":
                return max(0, optim.freeze_layers - first)
        return 0

    return {path: count(path, leaf) for path, leaf in leaves.items()}


def _summary(model: Model, optim: Optim) -> str:
    parts = jax.eval_shape(lambda: split_params(optim, model.init(jax.random.key(0))))
    trained, frozen = (sum(leaf.size for leaf in jax.tree.leaves(part)) for part in parts)
    names = [f"{optim.freeze_layers} layer{'s' * (optim.freeze_layers > 1)}"] if optim.freeze_layers else []
    names += ["the embeddings"] if optim.freeze_embeddings else []
    return f"{trained:,} parameters, {frozen:,} of {' and '.join(names)} are frozen"
