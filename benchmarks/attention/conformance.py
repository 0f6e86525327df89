"""Every attention implementation against the definition in float64: output and gradients, for everything a call can request.

`python -m benchmarks.attention.conformance > benchmarks/SUPPORT.md` runs all implementations that this machine can run and writes
the page of support; with names as arguments it runs these, which may be plug-ins. The exit code is 1 if one of them is wrong, or
supports no case although it was named. The tests run the same cases, and the benchmark checks an implementation here before it
times it.

The allowed error is derived for every entry from the arithmetic of the case: see `benchmarks.attention.rounding_error_bounds`.
"""

import contextlib
import dataclasses
import functools
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from benchmarks.attention.conformance_cases import CASES, Case
from benchmarks.attention.rounding_error_bounds import nearest_to_bound, rounding_error_bounds, share_of_bound
from train.run.progress_display import PieceProgress
from zoo.attention import attention
from zoo.attention.biases import Bias
from zoo.attention.masks import Mask
from zoo.errors import BadInput
from zoo.sharding import target_platform

DTYPES = ("float32", "bfloat16")
ROUND_LENGTH, ROUND_HEAD = 640, 64
"""Sizes at which implementations are checked that refuse the odd length or the small heads of a case."""
UNOPTIMIZED: dict[str, Any] = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):
    UNOPTIMIZED["xla_cpu_use_fusion_emitters"] = False  # newer compilers refuse an option that they do not know
    if platform.machine() in ("x86_64", "AMD64"):
        UNOPTIMIZED["xla_cpu_max_isa"] = "AVX2"
"""Options of the compiler for programs that run once. In `flash_tpu` with XLNet's bias a thread of the compiler (JAX 0.10.2, CPU)
overflows its stack, which ends the process: with fusion emitters, and with AVX-512 instructions."""


@dataclasses.dataclass(frozen=True)
class CaseResult:
    """The error and bound of each array at the entry that uses most of its bound, relative to the array's largest entry or 1."""

    errors: Mapping[str, tuple[float, float]]

    @property
    def nearest(self) -> str:
        """Return the array that uses most of its bound."""
        return max(self.errors, key=lambda name: share_of_bound(*self.errors[name]))

    @property
    def worst(self) -> tuple[float, float]:
        """Return (error, bound) of that array."""
        return self.errors[self.nearest]

    @property
    def ok(self) -> bool:
        """Return whether all errors are within their bounds; NaN is not."""
        return all(error <= bound for error, bound in self.errors.values())

    @property
    def forward(self) -> "CaseResult":
        """Return the result of the output alone, without gradients."""
        return CaseResult({"out": self.errors["out"]})


def check_implementation(
    impl: str, name: str, dtype: str = "float32", options: Mapping[str, Any] | None = None, *, round_sizes: bool = False
) -> CaseResult:
    """Compare an implementation with the reference in float64 on a case of `CASES`.

    Args:
        options: options of the compiler.
        round_sizes: at `ROUND_LENGTH` and `ROUND_HEAD`, where the case does not have sizes of its own.

    Raises:
        BadInput: the implementation does not support the case here, with the reason.
    """
    case = _sized(name, round_sizes)
    # The implementation runs first, because it may refuse the case, and the reference takes longer.
    results = _run(case, impl, _inputs(case, jnp.dtype(dtype), jnp.dtype(dtype)), options)
    expected, allowed = _reference(name, dtype, round_sizes)
    return CaseResult({key: nearest_to_bound(np.asarray(results[key]), exact, allowed[key]) for key, exact in expected.items()})


def _sized(name: str, round_sizes: bool) -> Case:
    case = CASES[name]
    if not round_sizes or (case.queries, case.keys) != (Case.queries, Case.keys):
        return case
    head = ROUND_HEAD if case.head == Case.head else case.head
    return dataclasses.replace(case, queries=ROUND_LENGTH, keys=ROUND_LENGTH, head=head)


class Inputs(NamedTuple):
    """The arrays of a case, in the form that an implementation gets."""

    q: Array
    k: Array
    v: Array
    probe: Array
    """Cotangent of the output."""
    mask: Mask
    bias: Bias | None
    seeds: Array
    sinks: Array | None


@functools.cache
def _reference(name: str, input_dtype: str, round_sizes: bool = False) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the exact results for numbers rounded to `input_dtype`, so that only the arithmetic differs, and their bounds."""
    case = _sized(name, round_sizes)
    with jax.enable_x64(True):
        inputs = _inputs(case, jnp.dtype(input_dtype), jnp.dtype("float64"))
        exact = _run(case, "reference", inputs, UNOPTIMIZED)
        seeds, scale = (inputs.seeds if case.rate else None), (case.head**-0.5 if case.scale is None else case.scale)
        allowed = rounding_error_bounds(
            inputs[:4], inputs.mask, inputs.bias, seeds, inputs.sinks, scale=scale, rate=case.rate, dtype=input_dtype
        )
        return {key: np.asarray(x) for key, x in exact.items()}, {key: np.asarray(x) for key, x in allowed.items()}


def _inputs(case: Case, input_dtype: Any, dtype: Any) -> Inputs:
    """Return numbers rounded to `input_dtype`, as arrays of `dtype`."""

    def rounded(tree: Any) -> Any:
        def one(x: Any) -> Array:
            return jnp.asarray(x, input_dtype).astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.asarray(x)

        return jax.tree.map(one, tree)

    of_queries = (case.batch, case.queries, case.heads, case.head)
    of_keys = (case.batch, case.keys, case.groups, case.head)
    # `number`, the size of the last axis, only makes the arrays different.
    q, probe = (rounded(case.arrays(*of_queries, number)[..., 0]) for number in (1, 2))
    k, v = (rounded(case.arrays(*of_keys, number)[..., 0]) for number in (3, 4))
    bias = None if case.bias is None else rounded(case.bias(case))
    seeds = jnp.asarray([case.seed, case.seed[::-1]][: case.batch], jnp.uint32)
    # A sink of about the logarithm of the number of keys takes about half of a row.
    sinks = rounded(case.arrays(case.heads) + np.log(case.keys) - 1) if case.sinks else None
    return Inputs(q, k, v, probe, case.mask(case), bias, seeds, sinks)


def _run(case: Case, impl: str, inputs: Inputs, options: Mapping[str, Any] | None) -> dict[str, Array]:
    """Return the output, and the gradients of a random projection of it by q, k, v, the numbers of the bias and sinks."""
    bias = inputs.bias
    differentiable = None if bias is None else bias.differentiable()

    def value(q: Array, k: Array, v: Array, differentiable: Any, sinks: Array | None) -> tuple[Array, Array]:
        out = attention.attention(
            q,
            k,
            v,
            mask=inputs.mask,
            bias=None if bias is None else bias.with_differentiable(differentiable),
            scale=case.scale,
            dropout=(case.rate, inputs.seeds) if case.rate else None,
            sinks=sinks,
            impl=impl,
        )
        return (out * inputs.probe).astype(jnp.promote_types(q.dtype, jnp.float32)).sum(), out

    gradient = jax.jit(
        jax.value_and_grad(value, argnums=(0, 1, 2, 3, 4), has_aux=True),
        compiler_options=None if options is None else dict(options),
    )
    (_, out), (d_q, d_k, d_v, d_numbers, d_sinks) = gradient(*inputs[:3], differentiable, inputs.sinks)
    by_bias = {} if d_numbers is None else {f"d_{name}": array for name, _, array in d_numbers.arrays()}
    return {"out": out, "d_q": d_q, "d_k": d_k, "d_v": d_v, **by_bias, **({} if d_sinks is None else {"d_sinks": d_sinks})}


# --- the table ------------------------------------------------------------------------------------------------------------------


def support_table(show: Callable[[str], None] = lambda line: None, names: Sequence[str] = ()) -> tuple[str, bool]:
    """Return (a Markdown table of what each implementation supports here, whether all that ran agree).

    If names are given, each of them must support a case: nothing is known of the numbers of one that supports none.

    Args:
        names: the implementations; none = all of the zoo.

    Raises:
        BadInput: there is no such implementation, or a plug-in that cannot be used.
    """
    required, names = set(names), names or list(attention.IMPLEMENTATIONS)
    sound, lines = True, []
    interpreted = {name for name in names if _needs_interpreter(name)}
    titles = [f"`{name}`" + (" (interpreted)" if name in interpreted else "") for name in names]
    reasons: dict[str, list[str]] = {name: [] for name in names}
    for case in CASES:
        cells = []
        for name in names:
            show(f"{name}: {case}")
            cell = []
            for dtype in DTYPES:
                try:
                    with attention.interpreted(name) if name in interpreted else contextlib.nullcontext():
                        # An interpreted kernel is a large program, which takes minutes to optimize.
                        result, at = check_supported(name, case, dtype, UNOPTIMIZED if name in interpreted else None)
                except BadInput as error:
                    cell.append("-")
                    reasons[name].append(str(error).partition(": ")[2].partition("; these can")[0])
                    continue
                required.discard(name)
                sound &= result.ok
                text = "{:.0e} of {:.0e}".format(*result.worst) + (f" at {at}" if at else "")
                cell.append(text if result.ok else f"**wrong: {text}**")
            cells.append("-" if set(cell) == {"-"} else " / ".join(cell))
        lines.append(f"| {case} | {' | '.join(cells)} |")
    head = [f"| | {' | '.join(titles)} |", f"|---|{'---|' * len(names)}"]
    notes = [f"- `{name}`: {'; '.join(_merge_reasons(why))}." for name, why in reasons.items() if why]
    notes += [f"- `{name}`: **no case ran, so nothing is known of its numbers.**" for name in names if name in required]
    return "\n".join([*head, *lines, *([""] if notes else []), *notes]), sound and not required


def check_supported(impl: str, name: str, dtype: str, options: Mapping[str, Any] | None = None) -> tuple[CaseResult, str]:
    """Check a case, at round sizes if the implementation refuses those of the case; see `check_implementation`.

    Returns:
        the result, and the round sizes or "".

    Raises:
        BadInput: the implementation refuses the case at both sizes; the reason is that of the case's own.
    """
    try:
        return check_implementation(impl, name, dtype, options), ""
    except BadInput as refused:
        case = _sized(name, True)
        if case is CASES[name]:
            raise
        try:
            return check_implementation(impl, name, dtype, options, round_sizes=True), f"{case.queries} x {case.head}"
        except BadInput:
            raise refused from None


LACKS = "it has no "


def _merge_reasons(reasons: Sequence[str]) -> list[str]:
    """Return the different reasons, those of missing features as one."""
    features = {feature for why in reasons if why.startswith(LACKS) for feature in why[len(LACKS) :].split(", no ")}
    others = sorted({why for why in reasons if not why.startswith(LACKS)})
    return [*([LACKS + ", no ".join(sorted(features))] if features else []), *others]


def _needs_interpreter(name: str) -> bool:
    """Return whether an implementation runs here only by Pallas's interpreter.

    Raises:
        BadInput: as `attention.find_implementation`.
    """
    row = attention.find_implementation(name)
    return row.is_interpretable and target_platform() not in row.platforms


def main(names: Sequence[str] = ()) -> int:
    """Print the page of the named implementations, by default of the zoo's; return 1 if `support_table` is not sound."""
    progress = PieceProgress(1.0)
    rows, sound = support_table(progress.begin, names)
    progress.close()
    where = f"{jax.devices()[0].device_kind} ({jax.default_backend()}), JAX {jax.__version__}, Python {platform.python_version()}"
    # On the zoo's own page; of plug-ins, and of a machine with such a device, it need not be true.
    never_ran = "" if names or jax.default_backend() != "cpu" else " No implementation has run on a GPU or TPU yet."
    print(f"""# What each attention implementation does

Made by `{" ".join(["python -m benchmarks.attention.conformance", *names])}` on {where}.
A cell has an error against the definition in float64 and its bound: float32 / bfloat16. Of all entries of the output and the
gradients, those of biases and tables included, it is the one that uses most of its bound, relative to its array's largest entry
or 1. The bounds are derived from the arithmetic (`benchmarks/attention/rounding_error_bounds.py`). "-": refused. "Interpreted":
the kernels were run by Pallas's interpreter, on a machine without their device.{never_ran}

{rows}""")
    return 0 if sound else 1


if __name__ == "__main__":
    from zoo.runtime import jax_setup, stdio

    try:
        jax_setup.prepare_jax()
        # Such a program overflows the stack of a thread (2 MiB, JAX 0.10.2) when it is loaded from the compilation cache: LLVM's
        # linker calls itself once for each of its kernels.
        jax.config.update("jax_enable_compilation_cache", False)
        sys.exit(main(sys.argv[1:]))
    except BadInput as error:
        stdio.write_error(str(error))
        sys.exit(2)
