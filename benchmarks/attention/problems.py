"""The kinds of attention that the zoo's models use, at any shape: arrays, masks, biases, and the number of allowed pairs."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from zoo.attention import attention
from zoo.attention.biases import Bias, Buckets, Relative
from zoo.attention.masks import Mask
from zoo.attention.request import Request
from zoo.errors import BadInput


class Shape(NamedTuple):
    """Sizes of one attention call."""

    batch: int
    queries: int
    keys: int
    heads: int
    groups: int
    """Key/value heads."""
    head: int

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """Return the shape of a text "B,T,S,N,K,H".

        Raises:
            BadInput: not six whole numbers of 1 or more, or K does not divide N.
        """
        parts = text.split(",")
        fix = "write six whole numbers, --shape B,T,S,N,K,H: batch, queries, keys, heads, key/value heads, size of a head"
        if len(parts) != 6 or not all(part.strip().isdecimal() for part in parts):
            raise BadInput(f"--shape {text}: {fix}")
        shape = cls(*map(int, parts))
        if min(shape) < 1:
            raise BadInput(f"--shape {text}: every number must be 1 or more; {fix}")
        if shape.heads % shape.groups:
            raise BadInput(f"--shape {text}: {shape.groups} key/value heads do not divide {shape.heads} heads")
        return shape


class Call(NamedTuple):
    """One call of attention: its queries, mask and bias."""

    queries: int
    mask: Mask
    pairs: int
    """Allowed (query, key) pairs over the whole batch, for one head."""
    bias: Bias | None = None


Make = Callable[[Shape, np.random.Generator], list[Call]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feature:
    """A kind of attention."""

    what: str
    """Description in the report."""
    cases: tuple[str, ...]
    """Cases of `benchmarks.attention.conformance` that an implementation must pass before it is timed."""
    make: Make
    scale: float | None = None
    rate: float = 0.0
    sinks: bool = False
    square: bool = True
    """True if it needs as many queries as keys."""
    products: tuple[int, int] = (2, 5)
    """Products of two vectors of a head for each allowed pair: 2 forward (q k, w v), 5 backward (q k again, dw, dv, dq, dk)."""

    grouped: bool = False
    """True if several heads share a key/value head."""

    def shaped(self, shape: Shape) -> Shape:
        """Return the shape at which it is timed; if it is grouped, its key/value heads are at most a quarter of the heads."""
        if not self.grouped or shape.groups < shape.heads:
            return shape
        few = max(divisor for divisor in range(1, max(1, shape.heads // 4) + 1) if shape.heads % divisor == 0)
        return shape._replace(groups=few)


# --- what masks and biases are made of ------------------------------------------------------------------------------------------

WINDOW = 256
"""Keys in a window, at most half the length: GPT-3's alternating layers as the zoo assumes them."""
DOCUMENTS = 4
"""Number of documents of a packed row."""


def _plain(shape: Shape, mask: Mask, pairs: int, bias: Bias | None = None) -> list[Call]:
    return [Call(shape.queries, mask, shape.batch * pairs, bias)]


def _full(shape: Shape, rng: np.random.Generator) -> list[Call]:
    return _plain(shape, Mask(), shape.queries * shape.keys)


def _triangle(length: Any) -> Any:
    return length * (length + 1) // 2


def _causal(shape: Shape, rng: np.random.Generator) -> list[Call]:
    return _plain(shape, Mask(causal=True), _triangle(shape.queries))


def _window(shape: Shape, rng: np.random.Generator) -> list[Call]:
    window = min(WINDOW, max(1, shape.queries // 2))
    return _plain(shape, Mask(causal=True, window=window), window * shape.queries - _triangle(window - 1))


def _padding(shape: Shape, rng: np.random.Generator) -> list[Call]:
    """Return a call with lengths spread evenly from half of the keys to all of them; three quarters for a single row."""
    lengths = np.linspace(shape.keys, -(-shape.keys // 2), shape.batch).astype(np.int32)
    if shape.batch == 1:
        lengths[:] = -(-3 * shape.keys // 4)
    return [Call(shape.queries, Mask(key_lengths=lengths), shape.queries * int(lengths.sum()))]


def _packed(shape: Shape, rng: np.random.Generator) -> list[Call]:
    """Return a call with packed documents of random lengths, causal within each document, without padding."""
    begins_document = rng.random((shape.batch, shape.queries - 1)).argsort(1) < DOCUMENTS - 1
    segments = (1 + np.pad(begins_document, ((0, 0), (1, 0))).cumsum(1)).astype(np.int32)
    sizes = (segments[:, :, None] == np.arange(1, DOCUMENTS + 1)).sum(1)
    mask = Mask(causal=True, query_segments=segments, key_segments=segments)
    return [Call(shape.queries, mask, int(_triangle(sizes).sum()))]


def _t5(shape: Shape, rng: np.random.Generator) -> list[Call]:
    return _plain(shape, Mask(), shape.queries * shape.keys, Buckets(table=rng.standard_normal((32, shape.heads))))


def _xlnet(shape: Shape, rng: np.random.Generator) -> list[Call]:
    """Return both streams of XLNet's pretraining: a sixth of the tokens is predicted, in a random order, after all others.

    The content stream sees every token that is not predicted, and predicted tokens up to itself in the order; the query stream
    consists of the predicted tokens alone, which do not see themselves.
    """
    b, t, n, h = shape.batch, shape.queries, shape.heads, shape.head
    count = max(1, t // 6)
    at = np.sort(rng.random((b, t)).argsort(1)[:, :count], axis=1).astype(np.int32)
    ranks = np.full((b, t), -1, np.int32)
    np.put_along_axis(ranks, at, rng.permuted(np.broadcast_to(np.arange(count, dtype=np.int32), (b, count)), axis=1), axis=1)
    types = np.broadcast_to(np.int32(np.arange(t) >= t // 2), (b, t))
    r, picked = rng.standard_normal((n, h, 2 * t)), np.take_along_axis(ranks, at, axis=1)

    def relative(queries: int, of_queries: np.ndarray, **places: Any) -> Relative:
        q_r, q_s = rng.standard_normal((b, queries, n, h)), rng.standard_normal((b, queries, n, 2))
        return Relative(q_r=q_r, r=r, first=t - 1, q_s=q_s, query_types=of_queries, key_types=types, **places)

    visible = t - count
    content = Mask(query_ranks=ranks, key_ranks=ranks)
    query = Mask(query_ranks=picked, key_ranks=ranks, strict=True)
    of_query = relative(count, np.take_along_axis(types, at, axis=1), query_positions=at)
    return [
        Call(t, content, b * (visible * visible + visible * count + _triangle(count)), relative(t, types)),
        Call(count, query, b * (visible * count + _triangle(count - 1)), of_query),
    ]


FEATURES: Mapping[str, Feature] = {
    "full": Feature(what="every query sees every key", cases=("full",), make=_full, square=False),
    "causal": Feature(what="a query sees itself and the keys before it", cases=("causal",), make=_causal),
    "window": Feature(what=f"causal, the last {WINDOW} keys, half the length at most", cases=("window",), make=_window),
    "padding": Feature(
        what="keys of half the length to all of it, evenly over the batch", cases=("key lengths",), make=_padding, square=False
    ),
    "packed": Feature(what=f"rows of {DOCUMENTS} documents, each causal", cases=("packed segments",), make=_packed),
    "t5": Feature(
        what="a learned bias of 32 buckets of distances, with its gradient",
        cases=("bucket bias",),
        make=_t5,
        scale=1.0,
        square=False,
    ),
    "xlnet": Feature(
        what="two streams, masked by ranks, with the relative bias and its gradients; a sixth of the tokens is predicted",
        cases=("content ranks", "query ranks", "relative bias, memory and types", "relative bias, scattered queries"),
        make=_xlnet,
        # Also q_r r; again q_r r, then dq_r, dr.
        products=(3, 8),
    ),
    "dropout": Feature(what="causal, a tenth of the weights dropped", cases=("dropout",), make=_causal, rate=0.1),
    "sinks": Feature(what="causal, a learned sink of each head", cases=("sinks",), make=_causal, sinks=True),
    "grouped": Feature(
        what="causal, a quarter of the heads for keys and values", cases=("grouped heads",), make=_causal, grouped=True
    ),
}
"""Feature -> its definition; every row is swept, checked, counted and shown without further changes."""


# --- arrays ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Problem:
    """Arrays of one feature at one shape and dtype, and its calls of attention."""

    feature: Feature
    shape: Shape
    calls: tuple[Call, ...]
    trained: Any
    """{"k", "v", "sinks" or None, "calls": [{"q", "numbers"}]}: what has a gradient; "numbers" are the arrays of the bias."""
    fixed: Any
    """([(mask, bias without its differentiable arrays)], seeds): everything without a gradient."""
    cotangents: list[Array]

    @classmethod
    def of(cls, feature: Feature, shape: Shape, dtype: str) -> "Problem":
        """Return a problem of normal random numbers; they are the same for every implementation, dtype and process."""
        rng, shape = np.random.default_rng(0), feature.shaped(shape)
        calls = tuple(feature.make(shape, rng))

        def normal(*sizes: int) -> Array:
            return jnp.asarray(rng.standard_normal(sizes, np.float32), dtype)

        of_queries = [(shape.batch, call.queries, shape.heads, shape.head) for call in calls]
        k, v = (normal(shape.batch, shape.keys, shape.groups, shape.head) for _ in range(2))
        inputs = [
            {"q": normal(*sizes), "numbers": _differentiable(call.bias, dtype)}
            for sizes, call in zip(of_queries, calls, strict=True)
        ]
        fixed = [(jax.tree.map(jnp.asarray, call.mask), _without_differentiable(call.bias)) for call in calls]
        seeds = jnp.asarray(rng.integers(0, 2**32, (shape.batch, 2), np.uint32)) if feature.rate else None
        cotangents = [normal(*sizes) for sizes in of_queries]
        sinks = normal(shape.heads) if feature.sinks else None
        return cls(feature, shape, calls, {"k": k, "v": v, "sinks": sinks, "calls": inputs}, (fixed, seeds), cotangents)

    def requests(self) -> list[Request]:
        """Return the attention requests, one for each call."""
        (fixed, seeds), (k, v, sinks) = self.fixed, (self.trained[name] for name in ("k", "v", "sinks"))
        dropout = (self.feature.rate, seeds) if self.feature.rate else None
        return [
            Request.of(arrays["q"], k, v, mask, _with_differentiable(bias, arrays["numbers"]), dropout, sinks)
            for arrays, (mask, bias) in zip(self.trained["calls"], fixed, strict=True)
        ]

    def program(self, impl: str, direction: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return (function, its arguments); it returns the outputs of all calls, and for `both` the gradients of `trained`."""

        def forward(trained: Any, fixed: Any) -> list[Array]:
            calls, seeds = fixed
            return [
                attention.attention(
                    arrays["q"],
                    trained["k"],
                    trained["v"],
                    mask=mask,
                    bias=_with_differentiable(bias, arrays["numbers"]),
                    scale=self.feature.scale,
                    dropout=(self.feature.rate, seeds) if self.feature.rate else None,
                    sinks=trained["sinks"],
                    impl=impl,
                )
                for arrays, (mask, bias) in zip(trained["calls"], calls, strict=True)
            ]

        def both(trained: Any, fixed: Any, cotangents: list[Array]) -> tuple[list[Array], Any]:
            out, pull = jax.vjp(lambda trained: forward(trained, fixed), trained)
            return out, pull(cotangents)[0]

        if direction == "forward":
            return forward, (self.trained, self.fixed)
        return both, (self.trained, self.fixed, self.cotangents)


def _differentiable(bias: Bias | None, dtype: str) -> Any:
    return None if bias is None else jax.tree.map(lambda x: jnp.asarray(x, dtype), bias.differentiable())


def _without_differentiable(bias: Bias | None) -> Any:
    """Return a bias without its differentiable arrays."""
    if bias is None:
        return None
    numbers = {name: None for name, _, _ in bias.differentiable().arrays()}
    return jax.tree.map(jnp.asarray, dataclasses.replace(bias, **numbers))


def _with_differentiable(rest: Any, numbers: Any) -> Any:
    return None if rest is None else rest.with_differentiable(numbers)
