"""Requests: the features, shapes and dtype that a call of attention needs from an implementation. Malformed calls are refused."""

import dataclasses
import itertools
from collections.abc import Set
from typing import Any

from zoo.attention.biases import Buckets, ByDistance, Dense, Relative
from zoo.attention.masks import Mask
from zoo.errors import BadInput
from zoo.ops.tile_sizes import KernelCall

RING = "ring form"
"""The feature of implementations that also compute a chunk of the keys: `zoo.attention.kernels.ChunkKernel`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The features that a call needs from an implementation, and the shapes and dtype of its arrays."""

    features: frozenset[str]
    shape: tuple[int, int, int, int, int, int]
    """B, T, S, N, K, H."""
    dtype: str
    scattered_distances: int = 0
    """Number of distances of a relative bias whose queries are scattered; 0: there is no such bias."""

    @classmethod
    def of(cls, q: Any, k: Any, v: Any, mask: Any, bias: Any, dropout: Any, sinks: Any = None) -> "Request":
        """Return the request that the arguments of a call make.

        Raises:
            BadInput: shapes, dtypes or values that do not fit each other, or a mask that is not a `Mask`.
        """
        fix = "pass a Mask: Mask() is full attention, Mask(causal=True) causal, and Mask(allowed=array) any array [B, N, T, S]"
        refuse_unless(isinstance(mask, Mask), f"the mask is of type {type(mask).__name__}; {fix}")
        ranks = len(q.shape), len(k.shape)
        refuse_unless(ranks == (4, 4), f"q has shape {q.shape} and k {k.shape}; expected [B, T, N, H] and [B, S, K, H]")
        b, t, n, h = q.shape
        s, groups = k.shape[1], k.shape[2]
        refuse_unless(k.shape == v.shape == (b, s, groups, h), f"k {k.shape} and v {v.shape} do not fit q {q.shape}")
        refuse_unless(n % groups == 0, f"{groups} key/value heads do not divide {n} query heads")
        refuse_unless(
            q.dtype == k.dtype == v.dtype, f"q, k and v have dtypes {q.dtype}, {k.dtype} and {v.dtype}; cast them to one"
        )
        letters = {"B": b, "T": t, "S": s, "N": n}
        for name, axes, array in itertools.chain.from_iterable(spec.arrays() for spec in (mask, bias) if spec is not None):
            _check_shape(name, axes, array, letters)
        features = _mask_and_bias_features(mask, bias)
        if mask.causal or mask.window is not None:
            same = mask.query_positions is None and mask.key_positions is None
            refuse_unless(not same or t == s, f"causal or window attention of {t} queries over {s} keys needs query_positions")
        if mask.window is not None:
            refuse_unless(mask.window > 0, f"window {mask.window}: choose 1 or more positions")
        for name in ("segments", "ranks"):
            pair = getattr(mask, f"query_{name}"), getattr(mask, f"key_{name}")
            refuse_unless((pair[0] is None) == (pair[1] is None), f"query_{name} and key_{name} must be set together, or neither")
        if bias is not None:
            refuse_unless((reason := bias.missing_distances(t, s)) is None, reason or "")
        if dropout is not None:
            refuse_unless(0 <= dropout[0] < 1, f"dropout {dropout[0]}: choose a rate of at least 0 and below 1")
        if dropout is not None and dropout[0] > 0:
            seed = dropout[1]
            got = "None" if seed is None else f"{seed.dtype}{list(seed.shape)}"
            refuse_unless(got == f"uint32[{b}, 2]", f"dropout needs seeds uint32[{b}, 2], [B, 2], and these are {got}")
            features.add("dropout")
        if sinks is not None:
            refuse_unless(
                sinks.shape == (n,), f"sinks has shape {sinks.shape}; expected one number for each of the {n} query heads"
            )
            features.add("sinks")
        if groups != n:
            features.add("grouped heads")
        scattered = bias if isinstance(bias, Relative) and bias.query_positions is not None else None
        return cls(
            features=frozenset(features),
            shape=(b, t, s, n, groups, h),
            dtype=str(q.dtype),
            scattered_distances=0 if scattered is None else scattered.first + s,
        )

    def kernel_call(self, kernel: str) -> KernelCall:
        """Return the part of this request on which the sizes of a kernel's tiles depend."""
        _, t, s, _, _, h = self.shape
        form = _tile_form(self.features, is_scattered=self.scattered_distances > 0)
        return KernelCall(kernel=kernel, dtype=self.dtype, form=form, head=h, queries=t, keys=s)


def kernel_call(kernel: str, q: Any, k: Any, mask: Mask, bias: Any, rate: float) -> KernelCall:
    """Return `Request.kernel_call` of the request that these arguments of a kernel have been checked for."""
    features = _mask_and_bias_features(mask, bias) | ({"dropout"} if rate else set())
    form = _tile_form(features, is_scattered=isinstance(bias, Relative) and bias.query_positions is not None)
    return KernelCall(kernel=kernel, dtype=str(q.dtype), form=form, head=q.shape[-1], queries=q.shape[1], keys=k.shape[1])


def _mask_and_bias_features(mask: Mask, bias: Any) -> set[str]:
    features = {
        feature for spec in (mask, bias) if spec is not None for name, _, _ in spec.arrays() for feature in _FEATURES[name]
    }
    names = {"causal": mask.causal, "window": mask.window is not None, _BIASES.get(type(bias), ""): bias is not None}
    return features | {name for name, is_set in names.items() if is_set}


def _tile_form(features: Set[str], *, is_scattered: bool) -> str:
    """Return what a tile holds besides scores, and which tiles are skipped, in words: "full" if neither."""
    words = sorted(features & _TILE_FEATURES)
    words += ["numbers"] if features & {"segments", "positions", "ranks"} else []
    return ", ".join([*words, *(["scattered"] if is_scattered else [])]) or "full"


_TILE_FEATURES = frozenset({"causal", "window", "explicit mask", "dense bias", "bucket bias", "relative bias", "dropout"})
_FEATURES: dict[str, tuple[str, ...]] = {
    "key_lengths": ("key lengths",),
    "query_segments": ("segments",),
    "key_segments": ("segments",),
    "query_positions": ("positions",),
    "key_positions": ("positions",),
    "query_ranks": ("ranks",),
    "key_ranks": ("ranks",),
    "allowed": ("explicit mask",),
    # Fields of biases: the features are the biases themselves, see `_BIASES`.
    **dict.fromkeys(("values", "table", "q_r", "r", "q_s", "query_types", "key_types"), ()),
}
"""Array field of a mask or bias -> the features that a call needs if it is set. A field without an entry would be a mask that
implementations ignore without saying so."""

_BIASES = {Dense: "dense bias", Buckets: "bucket bias", ByDistance: "bucket bias", Relative: "relative bias"}


def refuse_unless(ok: bool, message: str) -> None:
    """Refuse a call of attention.

    Raises:
        BadInput: `ok` is false.
    """
    if not ok:
        raise BadInput(f"attention: {message}")


def _check_shape(name: str, axes: str, value: Any, letters: dict[str, int]) -> None:
    broadcasts = axes == "BNTS"
    fits = value.ndim == len(axes) and all(
        letters.get(letter, size) == size or (broadcasts and size == 1) for letter, size in zip(axes, value.shape, strict=True)
    )
    refuse_unless(fits, f"{name} has shape {value.shape}; expected [{', '.join(axes)}] of {letters}")
