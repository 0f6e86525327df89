"""The directions of the optimizers' updates, before the learning rate: transformations of optax."""

import functools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from train.config.optim_options import Optim
from train.engine.matrix_axes import (
    from_matrices,
    is_matrix,
    map_local_matrices,
    map_matrices,
    matrix_kinds,
    matrix_sizes,
    to_matrices,
)
from zoo import plugins
from zoo.errors import BadInput
from zoo.sharding import path_of

DECAYED = {
    "matrices": re.compile(r"(^|/)(kernel|embedding)$"),
    "kernels": re.compile(r"(^|/)kernel$"),
    "all": re.compile(""),
}
"""Value of `Optim.decayed` -> leaves with weight decay, by path."""
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration of Muon (Jordan et al. 2024)."""


def direction_of(cfg: Optim) -> optax.GradientTransformation:
    """Return the optimizer that a configuration names, the zoo's or a plug-in's.

    Raises:
        BadInput: two distributions have the name, or the plug-in cannot be used.
    """
    if (plugin := plugins.find_plugin("zoo.optimizers", cfg.name, DIRECTIONS)) is None:
        return DIRECTIONS[cfg.name](cfg)
    expected = "a function that takes a `train.config.optim_options.Optim`"
    direction = plugins.load_plugin(plugin, f"{expected} and returns a transformation of optax", callable)(cfg)
    if not isinstance(direction, optax.GradientTransformation):
        fix = f"not a transformation of optax; report it to {plugin.distribution}"
        raise BadInput(f"{plugin.title}: returned a {type(direction).__name__}, {fix}")
    return direction


def decayed_weights(cfg: Optim) -> optax.GradientTransformation:
    """Return the link that adds the decayed weights to updates that the learning rate has yet to be multiplied with."""
    if not cfg.weight_decay:
        return optax.identity()
    return optax.add_decayed_weights(
        cfg.weight_decay / (cfg.lr if cfg.independent_decay else 1.0), mask=functools.partial(decay_mask, cfg)
    )


def decay_mask(cfg: Optim, params: Any) -> Any:
    """Return a tree of booleans that is True where weight decay applies."""
    pattern = DECAYED[cfg.decayed]
    return jax.tree_util.tree_map_with_path(lambda keys, _: bool(pattern.search(path_of(keys))), params)


def map_tensors(function: Callable[..., jax.Array], tree: Any, *others: Any) -> Any:
    """Return a tree with `function` of each tensor: of each layer of a leaf of stacked layers, and of any other leaf."""

    def apply(keys: Any, *leaves: jax.Array) -> jax.Array:
        return (jax.vmap(function) if _is_stacked(keys) else function)(*leaves)

    return jax.tree_util.tree_map_with_path(apply, tree, *others)


def _adam(cfg: Optim) -> optax.GradientTransformation:
    return optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps)


def _stable_adam(cfg: Optim) -> optax.GradientTransformation:
    """Return AdamW with update clipping (Wortsman et al. 2023, algorithm 2).

    The updates and the weight decay of a tensor are divided by max(1, RMS), where RMS is the root of the mean of g^2 / max(v,
    eps^2) over the tensor, with the second moment v after its bias is corrected.
    """
    adam, decay = _adam(cfg), decayed_weights(cfg)

    def clip(update: jax.Array, grad: jax.Array, second: jax.Array) -> jax.Array:
        mean = jnp.mean(jnp.square(grad) / jnp.maximum(second, cfg.eps**2))
        return update / jnp.maximum(1.0, jnp.sqrt(mean))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        grads = updates
        updates, state = adam.update(grads, state, params)
        updates, _ = decay.update(updates, decay.init(params), params)
        second = optax.tree.bias_correction(state.nu, cfg.b2, state.count)
        return map_tensors(clip, updates, grads, second), state

    return optax.GradientTransformation(adam.init, update)


def _schedule_free_adam(cfg: Optim) -> optax.GradientTransformation:
    """Return the gradient over the root of its second moment: `train.engine.averages.schedule_free` is in place of a momentum."""
    return optax.scale_by_rms(cfg.b2, cfg.eps, eps_in_sqrt=False, bias_correction=True)


def _lamb(cfg: Optim) -> optax.GradientTransformation:
    """Return Adam's updates and the weight decay, scaled to the norm of the tensor (You et al. 2020, algorithm 2).

    As in the released code of BERT, tensors without weight decay are not scaled; the others are if neither norm is 0.
    """
    adam, decay = _adam(cfg), decayed_weights(cfg)

    def trust(update: jax.Array, param: jax.Array) -> jax.Array:
        own, other = (jnp.sqrt(jnp.sum(jnp.square(leaf))) for leaf in (param, update))
        has_norms = (own > 0) & (other > 0)
        return update * jnp.where(has_norms, own / jnp.where(has_norms, other, 1.0), 1.0)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = adam.update(updates, state, params)
        updates, _ = decay.update(updates, decay.init(params), params)
        scaled = map_tensors(trust, updates, params)
        return jax.tree.map(lambda yes, new, old: new if yes else old, decay_mask(cfg, params), scaled, updates), state

    return optax.GradientTransformation(adam.init, update)


def _lion(cfg: Optim) -> optax.GradientTransformation:
    return optax.scale_by_lion(cfg.b1, cfg.b2)


def _sgd(cfg: Optim) -> optax.GradientTransformation:
    return optax.trace(cfg.momentum)


def _adafactor(cfg: Optim) -> optax.GradientTransformation:
    """Return factored second moments, with updates clipped to unit RMS and scaled by the parameter's RMS, without momentum.

    Shazeer and Stern 2018; Raffel et al. 2020. The relative step is the schedule inverse_sqrt_flat. As in T5, the queries, keys
    and values are parameters of their own, and so are the two kernels of a gated layer; each is a matrix of all its heads.
    """
    moments = optax.scale_by_factored_rms()
    scales = optax.chain(optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms())
    # All tensors of a leaf have the same count.
    axes: Any = optax.FactoredState(count=None, v_row=0, v_col=0, v=0)  # pyright: ignore[reportArgumentType]

    def fields(states: Any) -> list[Any]:
        is_state = lambda node: isinstance(node, optax.FactoredState)  # noqa: E731
        return [jax.tree.map(lambda state, i=i: state[i], states, is_leaf=is_state) for i in range(1, 4)]

    def init(params: Any) -> optax.FactoredState:
        def of_leaf(keys: Any, leaf: jax.Array) -> optax.FactoredState:
            state: Any = jax.vmap(moments.init, out_axes=axes)(_to_tensors(keys, leaf))
            return state._replace(v=state.v.reshape(leaf.shape) if state.v.size == leaf.size else state.v)

        return optax.FactoredState(jnp.int32(0), *fields(jax.tree_util.tree_map_with_path(of_leaf, params)))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.FactoredState]:
        def of_tensor(grad: jax.Array, state: Any, param: jax.Array) -> tuple[jax.Array, Any]:
            direction, state = moments.update(grad, state, param)
            return scales.update(direction, scales.init(param), param)[0], state  # pyright: ignore[reportReturnType]

        def of_leaf(keys: Any, grad: jax.Array, param: jax.Array, *factors: jax.Array) -> tuple[jax.Array, Any]:
            # A moment that is not factored is stored, and sharded, as its parameter is.
            is_whole = factors[2].shape == grad.shape
            row, column, second = factors[0], factors[1], _to_tensors(keys, factors[2]) if is_whole else factors[2]
            inner = optax.FactoredState(state.count, row, column, second)
            tensors = _to_tensors(keys, grad), inner, _to_tensors(keys, param)
            moved, inner = jax.vmap(of_tensor, in_axes=(0, axes, 0), out_axes=(0, axes))(*tensors)
            if is_whole:
                inner = inner._replace(v=_from_tensors(keys, inner.v, grad.shape))
            return _from_tensors(keys, moved, grad.shape), inner

        results = jax.tree_util.tree_map_with_path(of_leaf, updates, params, *state[1:])
        is_pair = lambda node: type(node) is tuple  # noqa: E731
        directions, states = (jax.tree.map(lambda pair, i=i: pair[i], results, is_leaf=is_pair) for i in range(2))
        return directions, optax.FactoredState(state.count + 1, *fields(states))

    return optax.GradientTransformation(init, update)


def _to_tensors(keys: Any, leaf: Float[Array, "*S"]) -> Float[Array, "B *T"]:
    """Return the tensors of a leaf: its matrices, else its layers, else itself."""
    path = path_of(keys)
    return to_matrices(path, leaf) if is_matrix(path) else leaf if _is_stacked(keys) else leaf[None]


def _from_tensors(keys: Any, tensors: Float[Array, "B *T"], shape: tuple[int, ...]) -> Float[Array, "*S"]:
    """Return the leaf with these tensors; the inverse of `_to_tensors`."""
    path = path_of(keys)
    return from_matrices(path, tensors, shape) if is_matrix(path) else tensors.reshape(shape)


class MuonState(NamedTuple):
    """The state of Muon for the matrices of layers."""

    momentum: Any
    """A tree like the parameters."""


def _muon(cfg: Optim) -> optax.GradientTransformation:
    """Return orthogonalized Nesterov momentum for the matrices of the layers, and Adam for all other leaves.

    Jordan et al. 2024. The scale "adam" is 0.2 sqrt(max(inputs, outputs)), which gives the root mean square of Adam's updates
    (Liu et al. 2025, section 2.2), so that both kinds of leaves use the same learning rate and weight decay.
    """

    def orthogonalize(keys: Any, leaf: jax.Array) -> jax.Array:
        path = path_of(keys)
        return muon_scale(cfg, *matrix_sizes(path, leaf.shape)) * map_matrices(newton_schulz, path, leaf)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, MuonState]:
        def blend(old: jax.Array, new: jax.Array) -> jax.Array:
            return cfg.momentum * old + (1.0 - cfg.momentum) * new

        momentum = jax.tree.map(blend, state.momentum, updates)
        ahead = jax.tree.map(blend, momentum, updates)
        return jax.tree_util.tree_map_with_path(orthogonalize, ahead), MuonState(momentum)

    matrices = optax.GradientTransformation(lambda params: MuonState(optax.tree.zeros_like(params)), update)
    return optax.partition({"matrix": matrices, "other": _adam(cfg)}, matrix_kinds)


def muon_scale(cfg: Optim, inputs: int, outputs: int) -> float:
    """Return the factor of Muon's orthogonalized updates of a matrix."""
    return 0.2 * math.sqrt(max(inputs, outputs)) if cfg.muon_scale == "adam" else math.sqrt(max(1.0, outputs / inputs))


def newton_schulz(matrices: Float[Array, "B M N"], steps: int = 5) -> Float[Array, "B M N"]:
    """Return matrices with about the same singular vectors, whose singular values are about 1 (Jordan et al. 2024)."""
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.swapaxes(1, 2) if is_tall else matrices
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.swapaxes(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.swapaxes(1, 2) if is_tall else x


class SoapState(NamedTuple):
    """The state of SOAP for the matrices of layers; trees like the parameters, or with factors [B, K, K] as leaves."""

    count: Any
    """Updates so far, an int32 scalar."""
    momentum: Any
    second: Any
    """The second moment, in the bases."""
    left: Any
    """Averages of G G^T, K = M inputs."""
    right: Any
    """Averages of G^T G, K = N outputs."""
    left_basis: Any
    """Orthogonal matrices, whose columns are about the eigenvectors of `left`."""
    right_basis: Any


def _soap(cfg: Optim) -> optax.GradientTransformation:
    """Return Adam in the eigenbases of Shampoo's factors for the matrices of the layers, and Adam for all other leaves.

    Vyas et al. 2024, algorithm 3. As in the released code, the first gradient gives the bases and moves nothing, and those of an
    update do not know its gradient. A step of the power iteration follows every `refresh` updates (algorithm 4). All averages
    but that of the gradient have the decay b2.
    """

    def blend(decay: float, old: jax.Array, new: jax.Array) -> jax.Array:
        return decay * old + (1.0 - decay) * new

    def init(params: Any) -> SoapState:
        def factors(side: int) -> Any:
            def zeros(keys: Any, leaf: Any) -> jax.Array:
                size = matrix_sizes(path_of(keys), leaf.shape)
                return jnp.zeros((leaf.size // math.prod(size), size[side], size[side]), leaf.dtype)

            return jax.tree_util.tree_map_with_path(zeros, params)

        zeros = optax.tree.zeros_like(params)
        return SoapState(jnp.int32(0), zeros, zeros, factors(0), factors(1), factors(0), factors(1))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, SoapState]:
        steps = state.count

        def new_basis(factor: jax.Array, basis: jax.Array) -> jax.Array:
            def iterate() -> jax.Array:
                return lax.cond(steps % cfg.refresh == 0, lambda: jnp.linalg.qr(factor @ basis)[0], lambda: basis)

            return lax.cond(steps == 0, lambda: jnp.linalg.eigh(factor)[1], iterate)

        def of_moments(
            grad: jax.Array, momentum: jax.Array, second: jax.Array, left_basis: jax.Array, right_basis: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            rotated = left_basis.swapaxes(1, 2) @ grad @ right_basis
            return blend(cfg.b1, momentum, grad), blend(cfg.b2, second, jnp.square(rotated))

        def of_matrices(matrices: list[jax.Array], factors: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
            (grad, momentum, second), (left, right, left_basis, right_basis) = matrices, factors
            # The first gradient gives the bases alone: in them it is diagonal, and its other entries would be rounding errors,
            # divided by themselves.
            moments = lax.cond(
                steps > 0, lambda: of_moments(grad, momentum, second, left_basis, right_basis), lambda: (momentum, second)
            )
            momentum, second = moments
            scale = jnp.where(steps > 0, steps, 1)
            rotated = left_basis.swapaxes(1, 2) @ momentum @ right_basis / (1.0 - cfg.b1**scale)
            rotated = rotated / (jnp.sqrt(second / (1.0 - cfg.b2**scale)) + cfg.eps)
            direction = left_basis @ rotated @ right_basis.swapaxes(1, 2)
            left = blend(cfg.b2, left, grad @ grad.swapaxes(1, 2))
            right = blend(cfg.b2, right, grad.swapaxes(1, 2) @ grad)
            bases = [new_basis(*pair) for pair in ((left, left_basis), (right, right_basis))]
            return [direction, momentum, second], [left, right, *bases]

        def of_leaf(keys: Any, grad: jax.Array, momentum: jax.Array, second: jax.Array, *factors: jax.Array) -> list[jax.Array]:
            leaves, changed = map_local_matrices(of_matrices, path_of(keys), [grad, momentum, second], factors)
            return [*leaves, *changed]

        trees = (state.momentum, state.second, state.left, state.right, state.left_basis, state.right_basis)
        results = jax.tree_util.tree_map_with_path(of_leaf, updates, *trees)
        direction, *rest = (
            jax.tree.map(lambda leaf, i=i: leaf[i], results, is_leaf=lambda leaf: isinstance(leaf, list)) for i in range(7)
        )
        return direction, SoapState(steps + 1, *rest)

    return optax.partition({"matrix": optax.GradientTransformation(init, update), "other": _adam(cfg)}, matrix_kinds)


def _is_stacked(keys: Any) -> bool:
    return "layers" in path_of(keys).split("/")


DIRECTIONS: dict[str, Callable[[Optim], optax.GradientTransformation]] = {
    "adamw": _adam,
    "stable_adamw": _stable_adam,
    "lamb": _lamb,
    "lion": _lion,
    "adafactor": _adafactor,
    "muon": _muon,
    "sgd": _sgd,
    "soap": _soap,
    "schedule_free_adamw": _schedule_free_adam,
}
INCLUDES_DECAY = ("stable_adamw", "lamb")
"""Optimizers whose directions include the decayed weights, since these are scaled with the update."""
