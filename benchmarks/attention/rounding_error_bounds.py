"""Bounds of the rounding errors of attention and its gradients, derived from the arithmetic and the numbers of a call.

Model. An operation returns its exact result times 1 + d, |d| <= u, the unit roundoff (Higham, Accuracy and Stability of
Numerical Algorithms, 2nd edition, section 2.2). The error of a sum is, to first order, the sum of d_k S_k over its partial sums
S_k (section 4.2). Its worst case, gamma_n times the sum of the absolute terms (section 3.1), is hundreds of times what occurs,
and would hide mistakes. With d_k independent and of mean zero the error grows with the root of n instead (Higham and Mary, A new
approach to probabilistic rounding error analysis, SIAM J. Sci. Comput. 41, 2019): d_k counts with its largest square, u^2, as
Hoeffding's inequality needs it. "Variance" below means the sum of such squares, each times the square of what it multiplies.

Sums. Of n terms with the sum S and the sum of squares Q, taken in random order, S_k^2 is S^2 k^2 / n^2 + (Q - S^2 / n) k (n - k)
/ n (n - 1) on average. Summed over k that is at most n (S^2 / 3 + Q / 6), to which the roundings of the n products add Q. Blocks,
trees and fused multiply-adds only make it less.

Propagation. Variances of the scores, of the row sums, of dp = g v, of D = g out and of ds = p dp - p D are carried to each
output by the derivatives of the definition. What a row of the softmax shares (its sum, D) is one error for all its pairs. Scores
are at least float32; the scaled queries, a bias, weights, dp, ds and results may be stored in the dtype of the inputs.

Tail. By Hoeffding one of N entries exceeds l standard deviations with a probability of at most 2 N exp(-l^2 / 2). `l` is chosen
so that this is `FALSE_ALARM`: 7.0 for 18,000 entries.

Values, over all cases of `benchmarks.attention.conformance` and of the entries that use most of their bound, relative to the
array's largest entry or 1: float32 8e-10 to 3e-6 (d_table 5e-8 to 3e-6), bfloat16 3e-5 to 0.03 (d_table up to 0.13). On two cores
with AVX2 `reference`, `xla` and `blocked` use at most 0.44 of a bound, and mostly 0.1 to 0.3.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from zoo.attention.biases import Buckets
from zoo.attention.kernels.reference import reference

UNIT_ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
FALSE_ALARM = 1e-6
"""Probability that an array of correct results exceeds its bound somewhere."""
EXP, ROW = 4, 8
"""Squared roundings of an exponential (1 unit in the last place is 2 u), and of logarithm, division and scale of a row."""
OF_QUERIES = ("d_q", "d_q_r", "d_q_s")
"""Gradients whose entries sum over the keys of one query; entries of the others sum over at most one pair of each query."""


def allowed_deviations(entries: int) -> float:
    """Return how many standard deviations the largest of `entries` errors is allowed."""
    return math.sqrt(2 * math.log(2 * max(entries, 1) / FALSE_ALARM))


def sum_variance(n: Any, total: Any, squares: Any, unit: float) -> Any:
    """Return the variance of the rounding error of a sum of `n` products: see "Sums" above.

    Args:
        total: the exact sum.
        squares: the sum of the squared products.
        unit: variance of a rounding, u^2.
    """
    return unit * (n * (total**2 / 3 + squares / 6) + squares)


@functools.partial(jax.jit, static_argnames=("scale", "rate", "dtype"), compiler_options={"xla_backend_optimization_level": 0})
def rounding_error_bounds(
    inputs: tuple[Array, Array, Array, Array],
    mask: Any,
    bias: Any,
    seeds: Array | None,
    sinks: Array | None = None,
    *,
    scale: float,
    rate: float,
    dtype: str,
) -> dict[str, Array]:
    """Return the largest error allowed of each entry: "out", "d_q", "d_k", "d_v", "d_<array>" of the bias and "d_sinks".

    Args:
        inputs: exact q, k, v and cotangent of the output, [B, T, N, H] or [B, S, K, H], float64.
        seeds: of dropout, uint32[B, 2]; None without it.
        dtype: dtype of the inputs of the implementations.
    """
    q, k, v, probe = inputs
    wide, store = (UNIT_ROUNDOFF[name] ** 2 for name in ("float32", dtype))
    by_distance = bias.prepare(q.shape[1], k.shape[1]) if isinstance(bias, Buckets) else bias
    call = _Call(q, k, v, probe, by_distance, sinks, scale, wide, store)
    p = call.weights(mask, None, 0.0)
    p_dropped = p if seeds is None else call.weights(mask, seeds, rate)
    of_scores, of_rows = _softmax(call, p)
    out, of_sum, of_out = _output(call, p, p_dropped, of_scores, of_rows)
    variances = {"out": of_out, "d_v": _values(call, p_dropped, of_scores + (of_rows + (p**2 * of_scores).sum(-1))[..., None])}
    d_scores, own, of_row, of_mean = _score_gradients(call, p, p_dropped, of_scores, of_rows, out, of_sum)
    variances |= _inputs(call, p, d_scores, own, of_row, of_mean)
    if isinstance(bias, Buckets):
        variances["d_table"] = _table(call, bias, p, d_scores, variances.pop("d_values"))
    if sinks is not None:
        variances["d_sinks"] = _sinks(call, p, p_dropped, of_row, of_mean)
    return {name: allowed_deviations(x.size) * jnp.sqrt(x) for name, x in variances.items()}


@dataclasses.dataclass(frozen=True)
class _Call:
    """The exact numbers of a call, its sums over keys, queries and heads, and the variances of a rounding."""

    q: Array
    k: Array
    v: Array
    probe: Array
    bias: Any
    sinks: Array | None
    scale: float
    wide: float
    """Variance of a rounding to float32, u^2."""
    store: float
    """Variance of a rounding to the dtype of the inputs."""

    @property
    def shared(self) -> int:
        """Query heads of a key/value head."""
        return self.q.shape[2] // self.k.shape[2]

    @property
    def numbers(self) -> Any:
        return None if self.bias is None else self.bias.differentiable()

    @property
    def exact(self) -> tuple[Any, ...]:
        """Arguments of `score`."""
        return self.q, self.k, self.numbers, self.scale

    def raised(self, power: int) -> tuple[Any, ...]:
        """Arguments with which `score` sums that power of its terms; with power 0 it counts them."""
        return *jax.tree.map(lambda x: jnp.abs(x) ** power, (self.q, self.k, self.numbers)), self.scale**power

    def score(self, q: Array, k: Array, numbers: Any, scale: float) -> Array:
        products = scale * self.over_head(q, k)
        return (
            products if self.bias is None else products + self.bias.with_differentiable(numbers).dense(*products.shape[2:], scale)
        )

    def to_inputs(self, q: Array, k: Array, numbers: Any, scale: float, *pairs: Array) -> list[dict[str, Array]]:
        """Sum each of `pairs`, [B, N, T, S], times the derivatives of the scores, to the shapes of q, k and the bias."""
        pull = jax.vmap(jax.vjp(lambda q, k, numbers: self.score(q, k, numbers, scale), q, k, numbers)[1])
        d_q, d_k, d_numbers = pull(jnp.stack(pairs))
        sums = {"d_q": d_q, "d_k": d_k} | ({} if self.bias is None else {f"d_{name}": x for name, _, x in d_numbers.arrays()})
        return [{name: x[i] for name, x in sums.items()} for i in range(len(pairs))]

    def weights(self, mask: Any, seeds: Array | None, rate: float) -> Array:
        """Return the softmax, [B, N, T, S]: the output for values that are the unit vector of each key."""
        keys, heads = self.k.shape[1], jnp.arange(self.q.shape[2], dtype=jnp.uint32)
        unit = jnp.broadcast_to(jnp.eye(keys)[:, None], (*self.k.shape[:3], keys))
        weights = reference(self.q, self.k, unit, mask, self.bias, seeds, heads, self.sinks, scale=self.scale, rate=rate)
        return jnp.moveaxis(weights, 1, 2)

    def over_head(self, x: Array, y: Array) -> Array:
        return jnp.einsum("btnh,bsnh->bnts", x, jnp.repeat(y, self.shared, 2))

    def over_keys(self, pairs: Array, x: Array) -> Array:
        return jnp.einsum("bnts,bsnh->btnh", pairs, jnp.repeat(x, self.shared, 2))

    def over_queries(self, pairs: Array, x: Array) -> Array:
        by_head = jnp.einsum("bnts,btnh->bsnh", pairs, x)
        return by_head.reshape(*self.v.shape[:3], self.shared, -1).sum(3)


def _of_heads(rows: Array) -> Array:
    """[B, N, T] -> [B, T, N, 1]."""
    return jnp.moveaxis(rows, 1, 2)[..., None]


def _softmax(call: _Call, p: Array) -> tuple[Array, Array]:
    """Return the relative variances of the exponentials, [B, N, T, S], and of each row's sum without theirs, [B, N, T]."""
    scores, squares, terms = call.score(*call.exact), call.score(*call.raised(2)), call.score(*call.raised(0))
    log_p = jnp.log(jnp.where(p > 0, p, 1))
    of_scores = sum_variance(terms, scores, squares, call.wide) + call.store * squares + call.wide * (EXP + log_p**2)
    # Without a sink a row sums to 1; with one it sums to the rest, and the sink is one more term, with its own exponential.
    seen, total = (p > 0).sum(-1), p.sum(-1)
    log_sum = (p * (scores - log_p)).sum(-1) / jnp.where(total > 0, total, 1)
    squares, of_sink = (p**2).sum(-1), 0.0
    if call.sinks is not None:
        sink = 1 - total
        seen, squares, log_sum = seen + 1, squares + sink**2, jnp.where(total > 0, log_sum, call.sinks[:, None])
        of_sink = sink**2 * call.wide * (EXP + (call.sinks[:, None] - log_sum) ** 2)
    return of_scores, sum_variance(seen, 1.0, squares, call.wide) + call.wide * (ROW + log_sum**2) + of_sink


def _output(call: _Call, p: Array, p_dropped: Array, of_scores: Array, of_rows: Array) -> tuple[Array, Array, Array]:
    """Return the output, and the variances of its sums alone and of all that is in it, [B, T, N, H]."""
    out, squares = call.over_keys(p_dropped, call.v), call.over_keys(p_dropped**2, call.v**2)
    of_sum = sum_variance(_of_heads((p > 0).sum(-1)), out, squares, call.wide) + call.store * (squares + out**2)
    # A score moves the output by p_dropped * v - p * out.
    moved = call.over_keys(p_dropped**2 * of_scores, call.v**2) - 2 * out * call.over_keys(p_dropped * p * of_scores, call.v)
    moved += out**2 * _of_heads((p**2 * of_scores).sum(-1) + of_rows)
    return out, of_sum, of_sum + moved


def _values(call: _Call, p_dropped: Array, of_weights: Array) -> Array:
    """Return the variance of d_v."""
    probe = call.probe
    terms = call.over_queries(1.0 * (p_dropped > 0), jnp.ones_like(probe))
    d_v, squares = call.over_queries(p_dropped, probe), call.over_queries(p_dropped**2, probe**2)
    rounded = sum_variance(terms, d_v, squares, call.wide) + call.store * (squares + d_v**2)
    return rounded + call.over_queries(p_dropped**2 * of_weights, probe**2)


def _score_gradients(
    call: _Call, p: Array, p_dropped: Array, of_scores: Array, of_rows: Array, out: Array, of_sum: Array
) -> tuple[Array, Array, Array, Array]:
    """Return ds = p_dropped dp - p D and the variance of each, [B, N, T, S], and those of its rows' sums and D, [B, N, T]."""
    d_p, squares = call.over_head(call.probe, call.v), call.over_head(call.probe**2, call.v**2)
    of_d_p = sum_variance(call.q.shape[-1], d_p, squares, call.wide) + call.store * (d_p**2 + squares)
    mean = (p_dropped * d_p).sum(-1)
    d_scores = p_dropped * d_p - p * mean[..., None]
    products = jnp.moveaxis((call.probe**2 * out**2).sum(-1), 2, 1)
    # Implementations sum D over the head, its terms divided by the sum of the row one by one, or over the keys.
    of_mean = sum_variance(call.q.shape[-1], mean, products, call.wide) + 2 * call.wide * products
    of_mean += sum_variance((p > 0).sum(-1), mean, (p_dropped**2 * d_p**2).sum(-1), call.wide)
    of_mean += jnp.moveaxis((call.probe**2 * of_sum).sum(-1), 2, 1) + (p_dropped**2 * of_d_p).sum(-1)
    of_mean += (d_scores**2 * of_scores).sum(-1) + mean**2 * of_rows
    own = p_dropped**2 * of_d_p + d_scores**2 * (of_scores + call.store)
    own += call.wide * ((p_dropped * d_p) ** 2 + (p * mean[..., None]) ** 2)
    return d_scores, own, of_rows + (p**2 * of_scores).sum(-1), of_mean


def _inputs(call: _Call, p: Array, d_scores: Array, own: Array, of_row: Array, of_mean: Array) -> dict[str, Array]:
    """Return the variances of the gradients of q, k and the bias, sums over pairs."""
    of_pairs = d_scores**2 * of_row[..., None] + p**2 * of_mean[..., None]
    total, weighted = call.to_inputs(*call.exact, d_scores, p)
    squares, alone, shared = call.to_inputs(*call.raised(2), d_scores**2, own, of_pairs)
    (terms,) = call.to_inputs(*call.raised(0), 1.0 * (p > 0))
    variances = {}
    for name, d in total.items():
        # Partial sums of tiles and heads may be stored, and the sum once more after it is scaled.
        rounded = sum_variance(terms[name], d, squares[name], call.wide) + 2 * call.store * (d**2 + squares[name])
        of_rows = d**2 * _of_heads(of_row) + weighted[name] ** 2 * _of_heads(of_mean) if name in OF_QUERIES else shared[name]
        variances[name] = rounded + alone[name] + of_rows
    return variances


def _table(call: _Call, bias: Buckets, p: Array, d_scores: Array, of_distances: Array) -> Array:
    """Return the variance of d_table: a bucket sums the gradients of its distances, each of which is a sum over the queries."""

    def values(numbers: Any) -> Array:
        return bias.with_differentiable(numbers).prepare(call.q.shape[1], call.k.shape[1]).values

    def to_table(by_distance: Array) -> Array:
        return jax.vjp(values, bias.differentiable())[1](by_distance)[0].table

    (total,), (terms,) = call.to_inputs(*call.exact, d_scores), call.to_inputs(*call.raised(0), 1.0 * (p > 0))
    d, d_values = to_table(total["d_values"]), total["d_values"]
    rounded = sum_variance(to_table(1.0 * (terms["d_values"] > 0)), d, to_table(d_values**2), call.wide)
    return rounded + to_table(of_distances) + call.store * d**2


def _sinks(call: _Call, p: Array, p_dropped: Array, of_row: Array, of_mean: Array) -> Array:
    """Return the variance of d_sinks, the sum of -p_sink D over examples and queries."""
    assert call.sinks is not None
    sink = 1 - p.sum(-1)  # [B, N, T]
    mean = (p_dropped * call.over_head(call.probe, call.v)).sum(-1)
    squares = (sink * mean) ** 2
    log_sink = jnp.log(jnp.where(sink > 0, sink, 1))
    rounded = sum_variance(sink.shape[0] * sink.shape[2], -(sink * mean).sum((0, 2)), squares.sum((0, 2)), call.wide)
    of_terms = squares * (of_row + call.wide * (EXP + log_sink**2)) + sink**2 * of_mean
    return rounded + of_terms.sum((0, 2)) + call.store * (sink * mean).sum((0, 2)) ** 2


def difference_bound(dtype: str, terms: int) -> float:
    """Return the bound on the difference of two correct results whose entries are sums of at most `terms` terms.

    It is relative to the largest entry or 1. Each result has the error of a sum whose square and sum of squared terms are at most
    1: half as many roundings as terms, some for the softmax, one for storing the result and one for intermediate results.
    """
    wide, store = (UNIT_ROUNDOFF[name] ** 2 for name in ("float32", dtype))
    variance = sum_variance(terms, 1.0, 1.0, wide) + (EXP + ROW) * wide + 2 * store
    return 2 * allowed_deviations(10**6) * math.sqrt(variance)


def share_of_bound(error: float, bound: float) -> float:
    """Return an error over its bound; infinite for NaN and for an error where the bound is 0."""
    if math.isnan(error) or (error > 0 and not bound):
        return math.inf
    return error / bound if bound else 0.0


def nearest_to_bound(result: np.ndarray, exact: np.ndarray, bound: np.ndarray) -> tuple[float, float]:
    """Return (error, bound) of the entry of an array that uses most of its bound, both relative to the largest entry or 1.

    The error is infinite for another shape, and NaN where the result is.
    """
    if result.shape != exact.shape:
        return math.inf, 0.0
    error = np.abs(np.asarray(result, np.float64) - exact)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = np.argmax(np.where(error == 0, 0.0, error / bound))
    scale = max(float(np.abs(exact).max()), 1.0)
    return float(error.flat[at]) / scale, float(bound.flat[at]) / scale
