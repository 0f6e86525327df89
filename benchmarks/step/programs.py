"""Steps of a case as compiled programs: the trainer's own step, a forward pass with its loss, or one token through the cache."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.core import timing
from benchmarks.core.memory import bytes_per_device
from benchmarks.step.bytes_read import argument_bytes_read
from benchmarks.step.cases import Case
from train import objectives
from train.config import run_config
from train.engine import device_mesh, optim, state_init
from train.engine.state import State
from train.step.training_step import make_step
from zoo import sharding
from zoo.batch import Batch
from zoo.configs import Compute
from zoo.errors import BadInput, require
from zoo.generation.decode_loop import decoding_params
from zoo.generation.split_layers import split_cache
from zoo.models import Model
from zoo.nn.task_heads import predicting_states
from zoo.precision import DTYPES

STEP_AXES = ("data", "fsdp", "tensor", "sequence")
"""Axes of a variant's mesh."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """A way of computing a case."""

    layers: str = "scan"
    """"scan" or "unroll"."""
    remat: str = "none"
    precision: str = "float32"
    attention: str = "auto"
    mesh: str = "data=1"
    """Axes and their sizes, such as "data=2,fsdp=2"."""

    def model(self, case: Case) -> Any:
        """Return the case's configuration with this way of computing."""
        depth = max(case.config.layers, getattr(case.config, "decoder_layers", 0))
        compute = Compute(
            attention=self.attention,  # pyright: ignore[reportArgumentType]
            remat=self.remat,  # pyright: ignore[reportArgumentType]
            unroll=depth if self.layers == "unroll" else 1,
        )
        return dataclasses.replace(case.config, compute=compute)

    def axes(self) -> run_config.Mesh:
        """Return the mesh in numbers.

        Raises:
            BadInput: it is not written as axes.
        """
        sizes = {}
        for part in self.mesh.split(","):
            axis, _, size = part.partition("=")
            valid = axis in STEP_AXES and axis not in sizes and size.isdecimal()
            require(valid, "mesh", self.mesh, f"write axes of {', '.join(STEP_AXES)} with their sizes, such as data=2,tensor=2")
            sizes[axis] = int(size)
        return run_config.Mesh(**{"data": 1, **sizes})

    def devices(self) -> list[Any]:
        """Return the devices it runs on.

        Raises:
            BadInput: there are not enough.
        """
        axes = self.axes()
        count, have = math.prod(getattr(axes, axis) for axis in STEP_AXES), jax.device_count()
        fix = f"it takes {count} devices and there are {have}; choose a smaller one"
        fix += f", or simulate them with --devices {count}" if jax.default_backend() == "cpu" else ""
        require(count <= have, "mesh", self.mesh, fix)
        return jax.devices()[:count]


OURS = "jax-zoo"
"""Name of our own programs in tables with peers."""
WAYS = tuple(field.name for field in dataclasses.fields(Variant))
"""Options of a variant, in the order of its name."""


def step_key(case: Case, variant: Variant, program: str = OURS) -> dict[str, Any]:
    """Return the key of a cell."""
    return {**case.axes, "program": program, **dataclasses.asdict(variant)}


def peer_key(case: Case, name: str, precision: str) -> dict[str, Any]:
    """Return the key of a cell of a peer, which has its own way of computing."""
    return step_key(case, Variant(precision=precision, layers="", attention=""), name)


class Step:
    """A case under a variant: first `compile` it, then `start` from parameters, then `run` repeatedly."""

    def __init__(self, case: Case, variant: Variant) -> None:
        """Prepare the step without computing anything.

        Raises:
            BadInput: the mesh or the model does not support the variant.
        """
        self.case, self.variant = case, variant
        self.run_config = case.run(model=variant.model(case), precision=variant.precision, mesh=variant.axes())
        self.mesh = device_mesh.make_mesh(self.run_config.mesh, variant.devices())
        device_mesh.check_mesh(self.run_config, self.mesh)
        if case.mode == "decode" and self.mesh.size > 1:
            raise BadInput(f"--mesh {variant.mesh}: one token is decoded on one device; choose data=1, or another --mode")
        self.model: Model = dataclasses.replace(case.model, config=self.run_config.model)
        self.dtype = DTYPES[variant.precision]
        self._everywhere = NamedSharding(self.mesh, PartitionSpec())
        self._state: Any = None
        self._parts = MODES[case.mode](self)
        self._batch = device_mesh.shard_batch(self._parts.batch, self.mesh, case.batch)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self._parts.shapes)
        self._fresh = jax.jit(self._parts.fresh, out_shardings=shardings)
        # `train.step.jit_engine.jit_engine` launches steps in the same way: over the mesh, with the state donated.
        self._jitted = jax.jit(
            self._parts.step,
            donate_argnums=0,
            in_shardings=(shardings, device_mesh.batch_sharding(self.mesh)),
            out_shardings=(shardings, self._everywhere),
            compiler_options=COMPILER or None,
        )

    def compile(self) -> dict[str, float]:
        """Compile it for its shapes, without allocating arrays; return "lower_seconds" and "compile_seconds"."""
        with jax.set_mesh(self.mesh):
            self.compiled, spent = timing.compile_cold(self._jitted, self._parts.shapes, self._batch)
        return spent

    @property
    def state_bytes(self) -> int:
        """Return the bytes of its state on each device."""
        return bytes_per_device(self._parts.shapes)

    @property
    def bytes_read(self) -> int:
        """Return the bytes of parameters, cache and batch that it must read on one device: see `benchmarks.step.bytes_read`."""
        # Without the mesh: a sharding constraint would come between a table and its lookup.
        return sum(argument_bytes_read(self._jitted, self._parts.shapes, self._batch))

    def start(self, params: Any) -> None:
        """Initialize the state from parameters, which are copied."""
        with jax.set_mesh(self.mesh):
            self._state = jax.block_until_ready(self._fresh(jax.device_put(params, self._everywhere)))

    def run(self) -> float:
        """Take one step, wait until it is done, and return its loss in nats."""
        with jax.set_mesh(self.mesh):
            self._state, loss = self._jitted(self._state, self._batch)
            return float(loss)

    def stop(self) -> None:
        """Release the state, so that its memory is free for the next program."""
        self._state = None

    def transfer_state(self, other: "Step") -> None:
        """Give the state to another step over the same mesh, so that several steps share the memory of one."""
        other._state, self._state = self._state, None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepParts:
    """The parts of a step of one mode."""

    step: Callable[[Any, Batch], tuple[Any, jax.Array]]
    """(state, batch) -> (state, loss)."""
    shapes: Any
    """Shapes of the state, with their shardings."""
    batch: Batch
    fresh: Callable[[Any], Any]
    """Parameters -> the state before the first step."""


def case_params(case: Case) -> Any:
    """Return fresh float32 parameters of a case on the first device; they are the same for every variant."""
    return jax.block_until_ready(jax.jit(case.model.init)(jax.random.key(0)))


def _train(step: Step) -> StepParts:
    run, model, mesh = step.run_config, step.model, step.mesh
    objective, tx = objectives.objective(run.objective)(), optim.make_optimizer(run.optim)
    shapes = state_init.abstract_state(run, model, tx, mesh)
    inner = make_step(run, model, objective, tx, step.dtype)

    def step_function(state: State, batch: Batch) -> tuple[State, jax.Array]:
        state, metrics = inner(state, batch)
        return state, metrics["loss"]

    def initial_state(params: Any) -> State:
        return State(
            step=jnp.int32(0),
            params=jax.tree.map(jnp.copy, params),
            opt_state=tx.init(params),
            carry=model.init_carry(run.data.batch),
            key=jnp.zeros(2, jnp.uint32),
        )

    return StepParts(step=step_function, shapes=shapes, batch=step.case.arrays(), fresh=initial_state)


def _inference(step: Step) -> StepParts:
    model, objective = step.model, objectives.objective(step.case.objective)()

    def step_function(params: Any, batch: Batch) -> tuple[Any, jax.Array]:
        sums, _ = objective.loss(model, params, batch, {}, seeds=None, carry={}, smoothing=0.0, chunk=0)
        weights = objective.weights(batch)
        return params, functools.reduce(jnp.add, (sums[name] / weights[name] for name in sums))

    def cast(params: Any) -> Any:
        # A copy, because the result is donated.
        return jax.tree.map(lambda leaf: jnp.array(leaf, step.dtype, copy=True), params)

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    partitions = sharding.shardings(step.mesh, shapes, model.definition.sharding)
    shapes = jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, step.dtype, sharding=where), shapes, partitions)
    return StepParts(step=step_function, shapes=shapes, batch=step.case.arrays(), fresh=cast)


def _decode(step: Step) -> StepParts:
    """Return a step that fills the last slot of a cache, always the same one; its loss is that of a fixed token."""
    model, case, dtype = step.model, step.case, step.dtype
    batch, last = case.arrays(), case.length - 1
    tokens = jnp.asarray(batch.tokens)
    source = None if batch.source is None else jax.tree.map(jnp.asarray, batch.source)

    def prefilled(params: Any) -> Any:
        params = decoding_params(params, dtype)
        prompt = Batch(tokens=tokens[:, :last], source=source)
        cache = model.apply(params, prompt, cache=model.init_cache(case.batch, case.length, dtype)).cache
        return {"params": params, "cache": split_cache(cache, params)}

    def step_function(state: Any, batch: Batch) -> tuple[Any, jax.Array]:
        out = model.apply(state["params"], batch, cache=dataclasses.replace(state["cache"], at=jnp.int32(last)))
        logits = model.unembed(state["params"], predicting_states(out, batch)[:, -1]).astype(jnp.float32)
        nats = jax.nn.logsumexp(logits, -1) - logits[:, TARGET_TOKEN]
        return {"params": state["params"], "cache": out.cache}, nats.mean()

    shapes = jax.eval_shape(prefilled, jax.eval_shape(model.init, jax.random.key(0)))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=step._everywhere), shapes)
    return StepParts(step=step_function, shapes=shapes, batch=Batch(tokens=batch.tokens[:, last:]), fresh=prefilled)


COMPILER: dict[str, Any] = {}
"""Options of the compiler; tests, which measure nothing, set options that compile quickly."""
TARGET_TOKEN = 7
"""The token whose loss decoding returns."""
MODES: dict[str, Callable[[Step], StepParts]] = {"train": _train, "inference": _inference, "decode": _decode}
