"""The attention function of all models: `attention(q, k, v, mask=..., bias=..., dropout=..., impl=...)`.

Masks and biases are small specifications; only implementations that need a dense array build one. The table `IMPLEMENTATIONS`
lists what each implementation supports, and an entry point in `zoo.attention` adds a row from another distribution (see
`docs/extending.md`). An unsupported request raises an error with the reason. In every implementation a query without a visible
key has a zero output and a zero gradient.
"""

import contextlib
import contextvars
import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, Float, UInt32

from zoo import plugins
from zoo.attention import auto
from zoo.attention.auto import Line
from zoo.attention.biases import Bias, distance_flops
from zoo.attention.kernel_check import first_uses
from zoo.attention.kernels import Kernel
from zoo.attention.kernels.reference import reference
from zoo.attention.local_arrays import heads_are_divided, on_local_arrays, sequence_devices
from zoo.attention.masks import Mask
from zoo.attention.recorded_calls import record_call
from zoo.attention.request import RING, Request, refuse_unless
from zoo.attention.ring import Ring, on_ring
from zoo.attention.ring_layout import Division
from zoo.errors import BadInput, install_advice
from zoo.sharding import ANY_PLATFORM, target_device_kind, target_platform


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    mask: Mask,
    bias: Bias | None = None,
    scale: float | None = None,
    dropout: tuple[float, UInt32[Array, "B 2"]] | None = None,
    sinks: Float[Array, " N"] | None = None,
    impl: str = "auto",
    sequence: str = "auto",
) -> Float[Array, "B T N H"]:
    """Return softmax(scale * q k^T + bias, over the pairs that `mask` allows) v; K divides N (grouped heads).

    Scores and softmax are float32. `scale` defaults to 1/sqrt(H). `dropout = (rate, seeds)` zeroes entries of the softmax; which
    ones depends on (seeds, head, query index, key index) only, so every implementation, mesh and block size drops the same.
    `sinks` are learned logits, one for each query head: each is one more key of its head that every query sees and whose value is
    zero, so that a query can attend to nothing (gpt-oss model card, arXiv:2508.10925, section 2.2). It is neither scaled nor
    dropped.

    Under a mesh the implementation runs on local arrays in `jax.shard_map`: batch over data, fsdp and expert, heads over tensor.
    `sequence` says how it uses the devices that have other positions of the same examples: `all_to_all` (see `local_arrays`),
    `ring` (see `zoo.attention.ring`), or `auto`: all_to_all where they divide the heads, else ring.

    On an accelerator, the numbers of an implementation with a set of features are checked before a process uses them the first
    time; see `zoo.attention.kernel_check`.

    Raises:
        BadInput: the request is malformed, or `impl` does not support it, and the message names the implementations that do; or
            the implementation computes wrong numbers on this device.
    """
    request = Request.of(q, k, v, mask, bias, dropout, sinks)
    form = sequence_form(sequence, request)
    # A ring needs a query for each device: one query, as in decoding, is computed on all devices alike.
    is_ring = form == "ring" and 1 < sequence_devices() <= request.shape[1]
    division = Division.of(sequence_devices(), q.shape[1], k.shape[1], mask, bias) if is_ring else None
    kernel_request = request if division is None else division.of_chunk(request, mask)
    line = auto_line(kernel_request, target_platform(), target_device_kind()) if impl == "auto" else None
    name = choose(impl, kernel_request) if line is None else line.implementation

    scale = float(q.shape[-1] ** -0.5) if scale is None else scale
    rate, seed = dropout if dropout is not None and dropout[0] > 0 else (0.0, None)
    heads = jnp.arange(q.shape[2], dtype=jnp.uint32)
    if (recorded := _watched.get()) is not None:
        # With one-hot values the output of attention is its weights.
        one_hot = jnp.broadcast_to(jnp.eye(k.shape[1], dtype=v.dtype)[:, None], (*k.shape[:3], k.shape[1]))  # [B, S, K, S]
        weights = reference(q, k, one_hot, mask, bias, seed, heads, sinks, scale=scale, rate=rate)  # [B, T, N, S]
        io_callback(lambda array: recorded.append(np.moveaxis(array, 1, 2)), None, weights, ordered=True)
    # A plug-in that takes the name of one of the zoo does not affect "auto".
    row = IMPLEMENTATIONS[name] if impl == "auto" else find_implementation(name)
    first_uses.check(name, row.load(), kernel_request, mask, bias)

    def scope(products: float, **of_ring: Any) -> str:
        """Record a call of the implementation, and return its name scope."""
        products = products if row.multiplies_distances else 0.0
        return record_call(name=name, request=request, mask=mask, line=line, distance_flops=products, **of_ring)

    if division is not None:
        kernel: Any = row.load()
        ring = Ring(kernel=kernel, division=division, scale=scale, rate=rate, scope=scope)
        return on_ring(ring, q, k, v, mask, bias, seed, heads, sinks)
    run = functools.partial(row.load(), scale=scale, rate=rate)
    with jax.named_scope(scope(distance_flops(bias))):
        return on_local_arrays(run, q, k, v, mask, bias, seed, heads, sinks, exchange=form == "all_to_all")


# --- implementations ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implementation:
    """A row of the table of implementations: the module and name of its function, what it supports, and its limits."""

    module: str
    function: str
    platforms: frozenset[str]
    """Platforms it runs on."""
    features: frozenset[str]
    limits: str = ""
    """Name of a function in `module`: Request -> why it is not supported, or None if it is."""
    requires: str = ""
    """Package that must be installed; the extra of the same name installs it."""
    python: str = ""
    """Oldest Python version that this package supports, if this project supports older ones."""
    is_interpretable: bool = False
    """True if the function computes the same on other platforms, by Pallas's interpreter; see `interpreted`."""
    multiplies_distances: bool = False
    """True if its kernels compute the products of a relative bias; otherwise operations of the program do."""
    plugin: plugins.Plugin | None = None
    """The plug-in whose row this is; set by `find_implementation`."""

    def load(self) -> Kernel:
        """Return the implementation's function."""
        return self._function(self.function)

    def _function(self, name: str) -> Callable[..., Any]:
        if self.plugin is None:
            return getattr(importlib.import_module(self.module), name)
        return plugins.load_plugin(dataclasses.replace(self.plugin, value=f"{self.module}:{name}"), "a function", callable)

    def unsupported_reason(self, request: Request, platform: str) -> str | None:
        """Return why this implementation does not support a request on a platform; None if it does."""
        if platform not in self.platforms:
            return f"it runs on {', '.join(sorted(self.platforms))}, and this is {platform}"
        if missing := sorted(request.features - self.features):
            return f"it has no {', no '.join(missing)}"
        if self.requires and importlib.util.find_spec(self.requires) is None:
            since = f" (Python {self.python} or newer)" if self.python else ""
            return f"it needs {self.requires}{since}: {install_advice(self.requires)}"
        return self._function(self.limits)(request) if self.limits else None


ALL_FEATURES = frozenset(
    {"causal", "window", "key lengths", "segments", "positions", "ranks", "explicit mask"}
    | {"dense bias", "bucket bias", "relative bias", "dropout", "grouped heads", "sinks"}
)
EVERYWHERE = frozenset({"cpu", "gpu", "tpu"})

IMPLEMENTATIONS: dict[str, Implementation] = {
    "reference": Implementation(
        module="zoo.attention.kernels.reference", function="reference", platforms=EVERYWHERE, features=ALL_FEATURES
    ),
    "xla": Implementation(
        module="zoo.attention.kernels.dense_xla",
        function="xla",
        platforms=EVERYWHERE | {ANY_PLATFORM},
        features=ALL_FEATURES,
    ),
    "blocked": Implementation(
        module="zoo.attention.kernels.blocked", function="blocked", platforms=EVERYWHERE, features=ALL_FEATURES | {RING}
    ),
    "cudnn": Implementation(
        module="zoo.attention.kernels.cudnn",
        function="cudnn",
        platforms=frozenset({"gpu"}),
        features=ALL_FEATURES - {"dropout", "sinks"},
        limits="unsupported_reason",
    ),
    "tokamax": Implementation(
        module="zoo.attention.kernels.tokamax",
        function="tokamax",
        platforms=frozenset({"gpu"}),
        features=ALL_FEATURES - {"dropout", "sinks"},
        limits="unsupported_reason",
        requires="tokamax",
        python="3.12",
    ),
    "splash": Implementation(
        module="zoo.attention.kernels.splash",
        function="splash",
        platforms=frozenset({"tpu"}),
        features=frozenset({"causal", "window", "key lengths", "segments", "grouped heads", "sinks"}),
        limits="unsupported_reason",
    ),
    "flash_tpu": Implementation(
        module="zoo.attention.kernels.flash_tpu",
        function="flash_tpu",
        platforms=frozenset({"tpu"}),
        features=ALL_FEATURES - {"explicit mask", "dense bias"} | {RING},
        limits="unsupported_reason",
        is_interpretable=True,
        multiplies_distances=True,
    ),
    "flash_gpu": Implementation(
        module="zoo.attention.kernels.flash_gpu",
        function="flash_gpu",
        platforms=frozenset({"gpu"}),
        features=ALL_FEATURES - {"explicit mask", "dense bias"} | {RING},
        limits="unsupported_reason",
        is_interpretable=True,
    ),
}


def find_implementation(name: str) -> Implementation:
    """Return the row of an implementation, of the table or of a plug-in.

    Raises:
        BadInput: no implementation has this name, two distributions have one, or that of the plug-in cannot be used.
    """
    if (plugin := plugins.find_plugin("zoo.attention", name, ("auto", *IMPLEMENTATIONS))) is not None:
        expected = f"an `Implementation` of {__name__} whose platforms and features exist"
        row = dataclasses.replace(plugins.load_plugin(plugin, expected, _is_implementation), plugin=plugin)
    else:
        choices = ", ".join([*IMPLEMENTATIONS, *plugins.described_plugins("zoo.attention")])
        refuse_unless(name in IMPLEMENTATIONS, f"there is no implementation {name!r}; choose auto, {choices}")
        row = IMPLEMENTATIONS[name]
    if name in _interpreted.get():
        return dataclasses.replace(row, platforms=EVERYWHERE)
    return row


_interpreted: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("interpreted", default=frozenset())


@contextlib.contextmanager
def interpreted(name: str) -> Iterator[None]:
    """Run an implementation without its platform inside the block, by Pallas's interpreter: for comparisons of its numbers.

    Raises:
        BadInput: the implementation has no interpreted form.
    """
    is_interpretable = find_implementation(name).is_interpretable
    refuse_unless(
        is_interpretable, f"{name!r} has no interpreted form; a row of the table that has one says `is_interpretable=True`"
    )
    token = _interpreted.set(_interpreted.get() | {name})
    try:
        yield
    finally:
        _interpreted.reset(token)


def implementation_names() -> list[str]:
    """Return the names of all implementations, those of plug-ins last; none is imported."""
    return [*IMPLEMENTATIONS, *plugins.plugin_names("zoo.attention")]


def _is_implementation(value: Any) -> bool:
    return isinstance(value, Implementation) and value.features <= ALL_FEATURES | {RING} and value.platforms <= EVERYWHERE


def choose(impl: str, request: Request, platform: str | None = None, kind: str | None = None) -> str:
    """Return the name of the implementation that will run a request; `auto` follows the lines of the device.

    Args:
        platform: cpu, gpu or tpu; None: the one for which a program is compiled here.
        kind: JAX's `device_kind` there; None: likewise, and unknown if `platform` is another one.

    Raises:
        BadInput: an unknown name, or an implementation that does not support the request: why, and which ones do.
    """
    here = target_platform()
    platform = platform or here
    if impl == "auto":
        kind = kind if kind is not None else target_device_kind() if platform == here else ""
        return auto_line(request, platform, kind).implementation
    if reason := find_implementation(impl).unsupported_reason(request, platform):
        supported = [name for name, row in IMPLEMENTATIONS.items() if row.unsupported_reason(request, platform) is None]
        raise BadInput(f"attention {impl!r} cannot do this: {reason}; these can: {', '.join(supported)}")
    return impl


def sequence_form(sequence: str, request: Request) -> str:
    """Return the form of attention over devices with other positions, all_to_all or ring, that `auto` stands for.

    Raises:
        BadInput: an unknown form, or all_to_all of heads that the devices do not divide.
    """
    refuse_unless(sequence in FORMS, f"there is no form {sequence!r} of the sequence axis; choose {', '.join(FORMS)}")
    divided, (heads, groups) = heads_are_divided(*request.shape[3:5]), request.shape[3:5]
    fix = f"all_to_all divides heads over the sequence axis, which does not divide {heads} heads and {groups} key/value heads"
    refuse_unless(divided or sequence != "all_to_all", f"{fix}; choose ring")
    return sequence if sequence != "auto" else "all_to_all" if divided else "ring"


FORMS = ("auto", "all_to_all", "ring")


def auto_line(request: Request, platform: str, kind: str) -> Line:
    """Return the line of `auto` that a request follows on a kind of device."""
    lines = auto.device_lines(platform, kind).lines
    if RING in request.features:
        lines += (Line(implementation="blocked", source="supports every ring"),)
    return auto.matching_line(lines, request, lambda name: IMPLEMENTATIONS[name].unsupported_reason(request, platform) is None)


_watched: contextvars.ContextVar[list[np.ndarray] | None] = contextvars.ContextVar("watched", default=None)


@contextlib.contextmanager
def record_weights() -> Iterator[list[np.ndarray]]:
    """Collect the attention weights, [B, N, T, S], of the programs traced inside the block, in the order in which calls run.

    The weights are computed again, dense, so this is for a few examples without a mesh. The list is complete after the block.
    """
    recorded: list[np.ndarray] = []
    token = _watched.set(recorded)
    try:
        yield recorded
        jax.effects_barrier()
    finally:
        _watched.reset(token)


def unsupported_reason(impl: str, request: Request) -> str | None:
    """Return why an implementation does not support a request on this platform; None if it does."""
    return find_implementation(impl).unsupported_reason(request, target_platform())


def implementation_status() -> list[tuple[str, bool, str]]:
    """Return (implementation, whether it runs on this platform, why not) of each one in the table, for a plain causal request."""
    reasons = {name: row.unsupported_reason(_plain_request(), target_platform()) for name, row in IMPLEMENTATIONS.items()}
    return [(name, reason is None, reason or "") for name, reason in reasons.items()]


def wrong_kernels() -> list[str]:
    """Check the implementations that run on this accelerator, with a causal request; return a line for each wrong one."""
    wrong = []
    for name, usable, _ in implementation_status():
        try:
            if usable:
                first_uses.check(name, IMPLEMENTATIONS[name].load(), _plain_request(), Mask(causal=True), None)
        except BadInput as error:
            wrong.append(str(error))
    return wrong


def _plain_request() -> Request:
    shape = jax.ShapeDtypeStruct((1, 128, 1, 64), jnp.bfloat16)
    return Request.of(shape, shape, shape, Mask(causal=True), None, None)


def describe_auto() -> str:
    """Describe what `auto` takes on this device, and the kernels of its platform alone that it does not take."""
    platform = target_platform()
    device = auto.device_lines(platform, target_device_kind())
    lines = [f"{line.implementation} {line.lengths}".strip() for line in device.lines]
    used = {line.implementation for line in device.lines}
    left_out = [name for name, row in IMPLEMENTATIONS.items() if row.platforms == {platform} and name not in used]
    by_name = f"; used only by name: {', '.join(left_out)}" if left_out else ""
    return ", else ".join(dict.fromkeys(lines)) + by_name + (f"; {device.note}" if device.note else "")


def auto_reasons() -> list[tuple[str, str, str]]:
    """Return (implementation, requests, reason) of each line of `auto` on this device; [] on a CPU."""
    device = auto.device_lines(target_platform(), target_device_kind())
    return [(line.implementation, line.requests, line.reason) for line in device.lines if device is not auto.CPU]
