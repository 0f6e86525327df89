"""The state before the first step: its shapes and shardings, and its arrays, which are created sharded, never on one device."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.config import run_config
from train.engine.device_mesh import batch_sharding
from train.engine.matrix_axes import factor_spec
from train.engine.moments import is_offloaded, parameter_path
from train.engine.state import State
from train.engine.step_acceptance import make_acceptance
from zoo.models import Model
from zoo.sharding import Rules, host_sharding, path_of, shardings


@dataclasses.dataclass(frozen=True)
class TrainedParams:
    """The parameters that a run trains: the model's own, or others in their place."""

    init: Callable[[jax.Array], Any]
    """Function from a key of `jax.random.key` to random parameters. It is traced, and its result is created sharded."""
    sharding: Rules
    """Rows of the sharding table beside `zoo.sharding.RULES`."""
    has_use: bool = False
    """True for parameters of an objective that its scores read too, and perhaps uses of the trained model."""
    read: Callable[[], Any] | None = None
    """Reads the parameters that `place` returns in place of new ones; it may return None."""

    def beside(self, added: "TrainedParams") -> "TrainedParams":
        """Return these parameters and others, whose names differ."""
        return TrainedParams(lambda key: {**self.init(key), **added.init(key)}, (*self.sharding, *added.sharding))

    def place(self, mesh: Mesh, seed: int) -> Any:
        """Return the parameters of a seed, or those that `read` returns, sharded over the mesh."""
        own = shardings(mesh, jax.eval_shape(lambda: self.init(jax.random.key(0))), self.sharding)
        if self.read is not None and (values := self.read()) is not None:
            return jax.device_put(values, own)
        with jax.set_mesh(mesh):
            return jax.jit(lambda: self.init(jax.random.key(seed)), out_shardings=own)()


def all_params(model: Model) -> TrainedParams:
    """Return all parameters of a model."""
    return TrainedParams(model.init, model.definition.sharding)


def abstract_state(
    run: run_config.Run,
    model: Model,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    trained: TrainedParams | None = None,
) -> State:
    """Return the shapes, dtypes and shardings of the state; nothing is allocated.

    Args:
        trained: the parameters that are trained; None = those of the model.
    """
    trained = trained or all_params(model)
    shapes = jax.eval_shape(_init(run, model, tx, trained))
    params = shardings(mesh, shapes.params, trained.sharding)
    by_path = {
        path_of(keys): (leaf.shape, sharding)
        for (keys, leaf), sharding in zip(_leaves(shapes.params), jax.tree.leaves(params), strict=True)
    }
    replicated = NamedSharding(mesh, PartitionSpec())

    def optimizer_sharding(keys: Any, leaf: Any) -> NamedSharding:
        # An optimizer's moments are sharded like their parameter; counters and factored moments are small and replicated,
        # and square factors of matrices are divided as these are in an update.
        parameter = parameter_path(keys, by_path)
        if parameter is None:
            return replicated
        if by_path[parameter][0] != leaf.shape:
            return NamedSharding(mesh, factor_spec(parameter, leaf.shape, mesh))
        on_host = run.optim.offload and is_offloaded(parameter, leaf.shape)
        return host_sharding(by_path[parameter][1]) if on_host else by_path[parameter][1]

    state_shardings = State(
        step=replicated,
        params=params,
        opt_state=jax.tree_util.tree_map_with_path(optimizer_sharding, shapes.opt_state),
        carry=jax.tree.map(lambda _: batch_sharding(mesh), shapes.carry),
        statistics=jax.tree.map(lambda _: replicated, shapes.statistics),
        key=replicated,
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, state_shardings
    )


def init_state(
    run: run_config.Run,
    model: Model,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    params: Any = None,
    trained: TrainedParams | None = None,
) -> State:
    """Create the state before the first step, each leaf with its sharding; the values are the same on every mesh.

    Args:
        params: parameters to begin from, on the mesh, whose buffers are donated; None = newly initialized ones.
        trained: as in `abstract_state`.
    """
    trained = trained or all_params(model)
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(run, model, tx, mesh, trained))
    with jax.set_mesh(mesh):
        return jax.jit(_init(run, model, tx, trained), out_shardings=state_shardings, donate_argnums=0)(params)


def _init(
    run: run_config.Run,
    model: Model,
    tx: optax.GradientTransformation,
    trained: TrainedParams,
) -> Callable[..., State]:
    def init(params: Any = None) -> State:
        params = trained.init(jax.random.key(run.seed)) if params is None else params
        return State(
            step=jnp.int32(0),
            params=params,
            opt_state=tx.init(params),
            carry=model.init_carry(run.data.batch),
            statistics=make_acceptance(run.spikes).init(),
            key=jnp.array([run.seed, 0x5EED], jnp.uint32),
        )

    return init


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]
