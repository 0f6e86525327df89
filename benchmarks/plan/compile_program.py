"""The program that a run's devices would execute, compiled from shapes: nothing is allocated, and no device is needed."""

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.core.memory import bytes_per_device, host_bytes_per_device
from benchmarks.core.source_paths import own_path
from benchmarks.flops.traced_flops import TracedWork, traced_work
from benchmarks.plan import large_arrays, target_devices
from benchmarks.plan.large_arrays import LargeArray
from benchmarks.plan.target_devices import Target
from train import objectives
from train.config import mesh_sizes, run_config
from train.config.objectives import RolloutOptions
from train.engine import device_mesh, loss_chunks, optim, state_init
from train.inputs import synthetic_batch
from train.parametrization import parametrization_of
from train.rollouts.sampler import cache_slots
from train.step.assembly import assemble
from zoo import configs, models
from zoo.attention.recorded_calls import Call, record_calls
from zoo.batch import Batch
from zoo.errors import BadInput, require
from zoo.generation.decode_loop import unroll_layers
from zoo.mesh_axes import HEADS
from zoo.nn.task_heads import predicting_states
from zoo.ops import ragged_product
from zoo.precision import DTYPES, cast_params, resolve_precision
from zoo.sharding import BATCH, constrain

Mode = Literal["train", "forward", "decode"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled program, and its inputs."""

    run: run_config.Run
    mode: Mode
    target: Target
    mesh: Mesh
    arguments: dict[str, Any]
    """Arguments of the program as shapes with shardings, by the names that users see."""
    text: str
    """The optimized program of one device, as XLA prints it; "" if it does not fit."""
    temporaries: int
    """Bytes that a device holds in addition to the arguments, including results that do not reuse an argument's memory."""
    total: int
    """Peak bytes on a device."""
    host: int
    """Bytes that a device has in the memory of its host."""
    limit: int | None
    """Bytes of a device that the compiler may use, if it gave up because it ran out of device memory; else None."""
    calls: tuple[Call, ...]
    """Calls of attention, as they were traced."""
    products: tuple[ragged_product.Product, ...]
    """Products of the groups of rows of experts, as they were traced."""
    logits: tuple[loss_chunks.Logits, ...]
    """Logits of the losses, as they were traced."""
    flops: float
    """The model's own FLOPs on all devices in a step, as the MFU of a run counts them: of attention all pairs of positions."""
    traced: TracedWork
    seconds: float
    """Time of tracing and compiling."""
    remarks: tuple[str, ...] = ()
    """Deviations from the normal compilation."""
    refused: tuple[LargeArray, ...] = ()
    """The largest temporaries of a program that the compiler refused."""


def resolve_run(run: run_config.Run, target: Target) -> run_config.Run:
    """Return the run as the target's devices would execute it: with precision, labels and slices filled in.

    Raises:
        BadInput: an objective that the family does not support, or another number of slices than the target's.
    """
    precision = resolve_precision(run.precision, platform=target.platform)
    run = synthetic_batch.resolve_config(dataclasses.replace(run, precision=precision))
    family = configs.family_of(run.model)
    supported = objectives.supported_objectives(run)
    require(
        run.objective in supported,
        "objective",
        run.objective,
        f"a {family} is trained by {', '.join(supported)}; choose one of these",
    )
    own = run.mesh.slices
    fix = f"--target {target.name} is {target.slices} slice{'s' * (target.slices > 1)}; leave out the option, or write --target "
    require(own in (0, target.slices), "mesh.slices", own, f"{fix}{target.chip}:{target.size}*{own} for slices of {target.size}")
    run = dataclasses.replace(run, mesh=dataclasses.replace(run.mesh, slices=target.slices))
    require(run.engine == "jit", "engine", run.engine, "pmap has no program without its devices; choose jit, which does the same")
    return run


def compile_run(run: run_config.Run, mode: Mode, target: Target, options: Mapping[str, Any] | None = None) -> Program:
    """Compile the program of a run for a target; like the trainer, it refuses a mesh that does not divide the run.

    Args:
        options: options of the compiler.

    Raises:
        BadInput: the mesh does not fit the target or the run, a model that does not generate, or an error of the compiler.
    """
    run = resolve_run(run, target)
    if mode != "train":
        run = dataclasses.replace(run, accumulate=1)
    devices = target_devices.devices_of_target(target)
    try:
        mesh = device_mesh.make_mesh(run.mesh, devices)
    except (NotImplementedError, ValueError) as error:
        shape, reason = mesh_sizes.describe(run.mesh), first_error_line(error)
        raise BadInput(f"--mesh {shape}: it does not fit the torus of {target.name} ({reason}); choose another") from None
    device_mesh.check_mesh(run, mesh)
    began = time.perf_counter()
    recorders = record_calls(), ragged_product.record_products(), loss_chunks.record_logits()
    with (
        recorders[0] as calls,
        recorders[1] as products,
        recorders[2] as logits,
        target_devices.simulate_target(target),
        _compiler_errors(target),
    ):
        traced, arguments, flops = _decoding(run, mesh) if mode == "decode" else _batch_program(run, mesh, train=mode == "train")
        lowered = traced.lower(lowering_platforms=(target.lowering,))
    fields: dict[str, Any] = {"run": run, "mode": mode, "target": target, "mesh": mesh}
    fields |= {"arguments": arguments, "calls": tuple(calls), "products": tuple(products), "logits": tuple(logits)}
    fields["traced"] = traced_work(traced, calls, mesh.size, products)
    try:
        with target_devices.simulate_target(target), _compiler_errors(target):
            program, fields["remarks"] = compile_lowered(lowered, options)
    except TooLarge as large:
        argument_bytes = sum(map(bytes_per_device, arguments.values()))
        total = max(large.used, argument_bytes)
        sizes: dict[str, Any] = {"temporaries": total - argument_bytes, "total": total, "limit": large.limit}
        sizes["host"] = sum(map(host_bytes_per_device, arguments.values()))
        with target_devices.simulate_target(target):
            fields["refused"] = tuple(large_arrays.refused_arrays(lowered, sizes["temporaries"]))
        if not fields["refused"]:
            fields["remarks"] = ("the compiler lists no arrays of the program that it refused",)
        return Program(**fields, **sizes, text="", flops=flops, seconds=time.perf_counter() - began)
    seconds, memory = time.perf_counter() - began, program.memory_analysis()
    # `peak_memory_in_bytes` does not replace this sum: on CPU it leaves out the temporaries. To train gpt-nano on cpu:8 it is
    # 7,946,356, with 7,945,752 of arguments and 70,708,440 of temporaries; a real run takes the sum (test_plan.py measures it).
    temporaries = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = memory.argument_size_in_bytes + temporaries + memory.generated_code_size_in_bytes
    host = memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes
    sizes = {"temporaries": temporaries, "total": total, "host": host, "limit": None}
    return Program(**fields, **sizes, text=program.as_text(), flops=flops, seconds=seconds)


def compile_lowered(lowered: Any, options: Mapping[str, Any] | None = None) -> tuple[Any, tuple[str, ...]]:
    """Return the compiled program, and remarks on its compilation."""
    try:
        return lowered.compile(compiler_options=options and dict(options)), ()
    except jax.errors.JaxRuntimeError as error:
        # Without a GPU to time kernels on, XLA computes products with its own kernels, in tiles of a fixed size, which fails for
        # some counts of rows (456 of a T5 at JAX 0.10.2). On a GPU it would try others, and cuBLAS.
        if "Couldn't find output tile sizes" not in str(error):
            raise
    cublas = lowered.compile(compiler_options={**(options or {}), "xla_gpu_enable_triton_gemm": False})
    return cublas, ("XLA has no tiles for a product of this program: planned with all products by cuBLAS",)


# --- what is compiled -----------------------------------------------------------------------------------------------------------


def _batch_program(run: run_config.Run, mesh: Mesh, *, train: bool) -> Any:
    """Trace the trainer's step, or the loss of a batch without gradient and dropout, as a validation computes it."""
    model, objective = models.model(run.model), objectives.objective(run.objective).bind_abstract(run, mesh)
    parameters = parametrization_of(run, objective, mesh)
    if train:
        optim.check_optimizer(run.optim, model)
    assembled, frozen = assemble(run, objective, mesh, parameters), objective.frozen_inputs()
    state, sharding = assembled.state, device_mesh.batch_sharding(mesh)
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), synthetic_batch.batch(run))
    arguments = {"parameters": state.params} | ({"optimizer": state.opt_state} if train else {}) | {"batch": batch}
    others = {"memory of the model": state.carry, "frozen parameters": parameters.base, "teacher": frozen}
    arguments |= {name: tree for name, tree in others.items() if jax.tree.leaves(tree)}
    if train:
        assert assembled.engine.trace is not None
        traced = assembled.engine.trace(state, batch, frozen, parameters.base)
        return traced, arguments, parameters.step_flops(objective, batch)

    def forward(params: Any, batch: Batch, carry: Any, frozen: Any, base: Any) -> Any:
        cast = cast_params(parameters.model_params(params, base), DTYPES[run.precision])
        options: dict[str, Any] = {"seeds": None, "reduce": lambda x: x, "num_micro": 1, "chunk": run.loss_chunk}
        batch = objective.complete_batch(model, lambda: cast, batch, frozen, **options)
        return objective.loss(model, cast, batch, frozen, seeds=None, carry=carry, smoothing=0.0, chunk=run.loss_chunk)

    with jax.set_mesh(mesh):
        traced = jax.jit(forward).trace(state.params, batch, state.carry, frozen, parameters.base)
    return traced, arguments, model.flops(batch)


def _decoding(run: run_config.Run, mesh: Mesh) -> Any:
    """Trace one more token of each row after `data.length` cached tokens; weights and cache have the dtype of the arithmetic."""
    model, rows = models.model(run.model), run.data.batch
    jax.eval_shape(lambda: model.init_cache(1, 1, DTYPES[run.precision]))
    model, params = unroll_layers(model), _cast_params(run, mesh)
    token, cache = _tokens(mesh, rows, 1), _cache(run, mesh, params, run.data.length)

    def decode(params: Any, batch: Batch, cache: Any) -> Any:
        out = model.apply(params, batch, cache=cache)
        logits = constrain(model.unembed(params, predicting_states(out, batch)[:, -1]), BATCH)
        return logits.argmax(-1), out.cache

    with jax.set_mesh(mesh):
        shardings = (None, jax.tree.map(lambda leaf: leaf.sharding, cache))
        traced = jax.jit(decode, donate_argnums=2, out_shardings=shardings).trace(params, token, cache)
    source = _tokens(mesh, rows, run.data.length) if model.is_encoder_decoder else None

    def flops(length: int) -> float:
        return model.flops(dataclasses.replace(_tokens(mesh, rows, length), source=source))

    # A forward pass over n tokens costs a n + b n^2, plus the source; one token after n - 1 others costs a + b n.
    length = run.data.length
    one = (flops(length) - flops(length - 1) + flops(1) - flops(0)) / 2
    return traced, {"parameters": params, "batch": token, "cache": cache}, one


def rollout_arguments(run: run_config.Run, mesh: Mesh) -> dict[str, Any]:
    """Return what a rollout of a run holds beside the arguments of its step, by name, as shapes with shardings.

    Prompts have the most tokens that leave room for a response. The weights are those that responses are sampled with, unless
    they are the ones of the step in its dtype. Reward models are left out.
    """
    if not (tokens := run.sampled_tokens):
        return {}
    params = _cast_params(run, mesh)
    prompt = 1 if models.model(run.model).is_encoder_decoder else max(1, run.data.length - tokens)
    on_one_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
    arguments = {"cache": _cache(run, mesh, params, cache_slots(prompt, tokens))}
    if on_one_cpu or run.precision != "float32" or run.has_frozen or run.width_transfer:
        arguments["weights"] = params
    return arguments


def reference_model(run: run_config.Run, mesh: Mesh) -> dict[str, Any]:
    """Return the parameters of the model that a policy has a KL divergence to, by name, as shapes with shardings; {} = none."""
    if not isinstance(run.options, RolloutOptions) or not getattr(run.options, run.objective).beta:
        return {}
    return {"reference model": _cast_params(run, mesh)}


def _cast_params(run: run_config.Run, mesh: Mesh) -> Any:
    """Return the shapes of the model's parameters in the dtype of the arithmetic."""
    shapes = state_init.abstract_state(run, models.model(run.model), optim.make_optimizer(run.optim), mesh).params
    dtype = DTYPES[run.precision]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding), shapes)


def _cache(run: run_config.Run, mesh: Mesh, params: Any, slots: int) -> Any:
    """Return the shapes of a cache of `slots` tokens of each row, and of `data.length` tokens of an encoder-decoder's sources."""
    model, rows = models.model(run.model), run.data.batch
    everywhere, by_row = NamedSharding(mesh, PartitionSpec()), device_mesh.batch_sharding(mesh)

    def filled(params: Any, first: Batch) -> Any:
        cache = model.init_cache(rows, slots, DTYPES[run.precision])
        return unroll_layers(model).apply(params, first, cache=cache).cache if model.is_encoder_decoder else cache

    source = _tokens(mesh, rows, run.data.length) if model.is_encoder_decoder else None
    cache = jax.eval_shape(filled, params, dataclasses.replace(_tokens(mesh, rows, 1), source=source))

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        # Arrays with a row axis have it second of five (`zoo.nn.kv_cache.Cache`); the third axis is then the heads.
        if leaf.ndim == 5 and leaf.shape[1] == rows:
            where = NamedSharding(mesh, PartitionSpec(None, BATCH, HEADS))
        else:
            where = by_row if leaf.ndim and leaf.shape[0] == rows else everywhere
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(place, cache)


def _tokens(mesh: Mesh, rows: int, length: int) -> Batch:
    ids: Any = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=device_mesh.batch_sharding(mesh))
    return Batch(tokens=ids, segments=ids, positions=ids)


# --- when it fails --------------------------------------------------------------------------------------------------------------


class TooLarge(Exception):
    """The TPU's compiler gave up: a program needs more memory than a device has."""

    def __init__(self, used: int, limit: int) -> None:
        super().__init__(used, limit)
        self.used, self.limit = used, limit
        """Bytes that it needs, and that it may use."""


@contextlib.contextmanager
def _compiler_errors(target: Target) -> Iterator[None]:
    """Turn errors of JAX and of the compiler into `BadInput` or `TooLarge`."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        if (sizes := bytes_needed(str(error))) is not None:
            raise TooLarge(*sizes) from None
        raise BadInput(f"--target {target.name}: {one_line_error(error)}") from error


def bytes_needed(message: str) -> tuple[int, int] | None:
    """Return the bytes that a program needs, with its arguments, and those that it may use, by an out-of-memory error.

    The result is None for another error.

    A program that is far too large is refused before its memory is laid out, with another message. That speaks of temporaries,
    but its number includes the arguments: of GPT-2 XL on a v5e:2x2 it is 23.32G, with 17.63 GiB of arguments and 5.69 GiB of
    temporaries in the compiler's report of memory (libtpu 0.0.42.1).
    """
    size = r"([\d.]+[KMGT]?)"
    match = re.search(rf"Used {size} of {size} hbm|HLO temporaries \({size}\) exceeds available HBM \({size}\)", message)
    if match is None:
        return None
    used, limit = (group for group in match.groups() if group is not None)
    return _parse_bytes(used), _parse_bytes(limit)


def _parse_bytes(text: str) -> int:
    """Return the bytes that XLA writes in powers of 1,024, as 15.75G."""
    unit = text[-1] if text[-1].isalpha() else " "
    return int(float(text.rstrip(unit)) * 1024 ** " KMGT".index(unit))


def one_line_error(error: BaseException) -> str:
    """Return an error of the compiler in one line: its first line, and the last of our files in its traceback."""
    where, at = "", error.__traceback__
    while at is not None:
        file = own_path(at.tb_frame.f_code.co_filename)
        if file.startswith(("zoo/", "train/")):
            where = f" ({file}:{at.tb_lineno})"
        at = at.tb_next
    return f"the compiler refused the program: {first_error_line(error)}{where}"


def first_error_line(error: BaseException) -> str:
    """Return the first line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]
