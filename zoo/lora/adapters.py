"""Adapters as parameters: which matrices have them, their initial values, and their sum with a model's parameters.

An adapter belongs to a published matrix W [out, in], not to a leaf, which may contain several matrices with split axes: W becomes
W + scale B A with A [r, in] and B [out, r] (Hu et al. 2021, section 4.1). The adapters of a leaf `.../kernel` are the leaves
`.../lora/a` [L, (c,) r, in] and `.../lora/b` [L, (c,) out, r]: L counts the layers, c those of the leaf's published tensors that
have adapters. Parameters are float32.
"""

import dataclasses
import difflib
import functools
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo import models, published_weights
from zoo.errors import BadInput, require
from zoo.lora.adapter_config import Adapters
from zoo.models import Model
from zoo.ops.adapted_kernel import AdaptedKernel
from zoo.published_weights import Leaf
from zoo.sharding import Rules, path_of

KERNEL = "/kernel"
FINE_TUNED = ("sequence", "choice", "tokens", "span")
"""Tasks whose head is trained in full, because it is newly initialized when training for the task begins."""
OPTION = "lora.targets"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matrix:
    """A kernel with adapters."""

    leaf: Leaf
    parts: tuple[int, ...]
    """Which of the published tensors of a layer have adapters; (0,) if there is only one."""
    input_first: bool
    """True if the tensors are published as [in, out]."""

    @property
    def path(self) -> str:
        """The path of the adapters, above `a` and `b`."""
        return self.leaf.path.removesuffix("kernel") + "lora"

    @property
    def fused(self) -> bool:
        """True if a layer of the leaf consists of several published tensors."""
        return len(self.leaf.names[0]) > 1

    def shapes(self, rank: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each leaf of the adapters by its path."""
        lead = ((len(self.leaf.names),) if self.leaf.stacked else ()) + ((len(self.parts),) if self.fused else ())
        first, last = self.leaf.published
        inputs, outputs = (first, last) if self.input_first else (last, first)
        return {f"{self.path}/a": (*lead, rank, inputs), f"{self.path}/b": (*lead, outputs, rank)}

    def product(self, a: Float[Array, "*a"], b: Float[Array, "*b"]) -> Float[Array, "*kernel"]:
        """Return B A in the shape of the kernel, zero for the published tensors without adapters."""
        layout, axis = self.leaf.layout, int(self.leaf.stacked)
        if self.fused:
            a, b = (_scatter_entries(array, self.parts, len(self.leaf.names[0]), axis) for array in (a, b))
        letters = dict(zip(layout.axes, "abcdefgh", strict=False))
        inputs, outputs = self._axes()
        lead = "l" * axis + "".join(letters[name] for name in layout.axes if name not in (*inputs, *outputs))
        a, b = self._split(a, b)
        i, o = ("".join(letters[name] for name in group) for group in (inputs, outputs))
        target = "l" * axis + "".join(letters[name] for name in layout.axes)
        return jnp.einsum(f"{lead}r{i},{lead}{o}r->{target}", a, b, precision=jax.lax.Precision.HIGHEST)

    def adapted(
        self, kernel: Float[Array, "*kernel"], a: Float[Array, "*a"], b: Float[Array, "*b"], rate: float
    ) -> AdaptedKernel:
        """Return the kernel with the adapters A and B beside it, for training with dropout; the scale is a factor of B."""
        axis, layout = int(self.leaf.stacked), self.leaf.layout
        inputs, outputs = self._axes()
        a, b = self._split(a, b)
        if not self.fused:
            a, b = (jnp.expand_dims(array, axis) for array in (a, b))
        own = [name for name in layout.axes if name not in inputs]
        lead = tuple(range(axis + 1))
        a = jnp.moveaxis(a, axis + 1, -1)
        a = a.transpose(*lead, *(axis + 1 + inputs.index(name) for name in layout.axes if name in inputs), a.ndim - 1)
        b = b.transpose(*lead, b.ndim - 1, *(axis + 1 + outputs.index(name) for name in own if name in outputs))
        return AdaptedKernel(
            kernel=kernel,
            a=a,
            b=b,
            parts=self.parts,
            count=len(self.leaf.names[0]),
            axis=next((number for number, name in enumerate(own) if name not in outputs), None),
            stacked=self.leaf.stacked,
            rate=rate,
            site=zlib.crc32(self.path.encode()) & 0x7FFFFFFF,
        )

    def _axes(self) -> tuple[tuple[str, ...], ...]:
        """Return the axes of the leaf that are those of the input, and those of the output, in the published order."""
        groups = self.leaf.layout.groups
        return groups if self.input_first else groups[::-1]

    def _split(self, a: Float[Array, "*a"], b: Float[Array, "*b"]) -> tuple[Array, Array]:
        """Return A [(L,) (c,) r, in] and B [(L,) (c,) out, r] with the axes of the leaf's input and output."""
        sizes = dict(zip(self.leaf.layout.axes, self.leaf.shape, strict=True))
        inputs, outputs = self._axes()
        lead = a.shape[:-2]
        a = a.reshape(*lead, a.shape[-2], *(sizes[name] for name in inputs))
        return a, b.reshape(*lead, *(sizes[name] for name in outputs), b.shape[-1])


def _scatter_entries(array: Array, parts: tuple[int, ...], count: int, axis: int) -> Array:
    """Return an array with its entries along an axis at the indices `parts` of `count`, and zeros between them."""
    entries = [jax.lax.index_in_dim(array, number, axis, keepdims=False) for number in range(len(parts))]
    return jnp.stack([entries[parts.index(part)] if part in parts else jnp.zeros_like(entries[0]) for part in range(count)], axis)


@functools.cache
def adapted_matrices(cfg: Any, targets: tuple[str, ...], prefix: str | None = None) -> tuple[Matrix, ...]:
    """Return the kernels of a model that contain published matrices of the named modules.

    Args:
        targets: as in `Adapters`.
        prefix: prefix of published names; None = the prefix that an export writes.

    Raises:
        BadInput: a target that names no matrix, or targets that name the matrices of only some layers.
    """
    model = models.model(cfg)
    leaves = published_weights.present_leaves(cfg, model.names.prefixes[0] if prefix is None else prefix)
    for target in targets:
        _check_target(model, leaves, target)
    _check_layers(model, leaves, targets)
    adapted = []
    for leaf in leaves:
        # A head that is trained in full needs no adapters.
        if not _is_matrix(leaf) or leaf.path in head_paths(cfg):
            continue
        parts = tuple(number for number, name in enumerate(leaf.names[0]) if _matches(name, targets))
        if parts:
            adapted.append(Matrix(leaf=leaf, parts=parts, input_first=model.names.input_first))
    return tuple(adapted)


def default_targets(cfg: Any) -> tuple[str, ...]:
    """Return the modules that have adapters if none are named.

    Raises:
        BadInput: the family names none.
    """
    model = models.model(cfg)
    targets = model.definition.lora
    require(bool(targets), OPTION, "", f"a {model.family} has no default; name modules: {', '.join(_modules(cfg))}")
    return targets


@functools.cache
def head_paths(cfg: Any) -> frozenset[str]:
    """Return the paths of the leaves that are trained in full: those of a fine-tuned model's head."""
    model = models.model(cfg)
    return frozenset(row.leaf for row in model.names.rows if row.bare) if model.task in FINE_TUNED else frozenset()


def init_adapters(model: Model, adapters: Adapters, key: jax.Array) -> dict[str, Any]:
    """Return the initial trained parameters of a run with adapters: new adapters, and the head of a fine-tuned model.

    A is uniform in +-1/sqrt(in), which is Kaiming-uniform with a = sqrt(5), as in peft; B is 0, so that the sum begins as W.
    """
    leaves: dict[str, Any] = {}
    for matrix in adapted_matrices(model.config, adapters.targets):
        for path, shape in matrix.shapes(adapters.rank).items():
            bound = shape[-1] ** -0.5
            own = jax.random.fold_in(key, zlib.crc32(path.encode()) & 0x7FFFFFFF)
            is_a = path.endswith("/a")
            leaves[path] = jax.random.uniform(own, shape, jnp.float32, -bound, bound) if is_a else jnp.zeros(shape, jnp.float32)
    if heads := head_paths(model.config):
        leaves |= {path: leaf for path, leaf in flatten_tree(model.init(key)).items() if path in heads}
    return unflatten_tree(leaves)


def adapter_sharding_rules(model: Model, adapters: Adapters) -> Rules:
    """Return the rows of the sharding table for what `init_adapters` returns: every device has all of them, as they are small."""
    shapes = {
        path: shape for matrix in adapted_matrices(model.config, adapters.targets) for path, shape in matrix.shapes(1).items()
    }
    stacked = {matrix.path: matrix.leaf.stacked for matrix in adapted_matrices(model.config, adapters.targets)}
    # Anchored, because the path of one stack of layers may end with that of another: first/layers/... and layers/...
    own = ((rf"\A{re.escape(path)}", (None,) * (len(shape) - stacked[path[:-2]])) for path, shape in shapes.items())
    return (*model.definition.sharding, *own)


def base_of(cfg: Any, params: Any) -> dict[str, Any]:
    """Return the parameters that stay frozen: all but those of a head that is trained in full."""
    return unflatten_tree({path: leaf for path, leaf in flatten_tree(params).items() if path not in head_paths(cfg)})


def merge_adapters(cfg: Any, adapters: Adapters, base: Any, trained: Any) -> dict[str, Any]:
    """Return the parameters of a model, from the frozen ones and the trained ones.

    Args:
        base: what `base_of` returns, or a model's complete parameters, whose head is then replaced.
        trained: a tree as from `init_adapters`.
    """
    leaves, own = flatten_tree(base), flatten_tree(trained)
    for matrix in adapted_matrices(cfg, adapters.targets):
        product = matrix.product(own.pop(f"{matrix.path}/a"), own.pop(f"{matrix.path}/b"))
        leaves[matrix.leaf.path] = leaves[matrix.leaf.path] + adapters.scale * product
    return unflatten_tree(leaves | own)


def with_adapters(cfg: Any, adapters: Adapters, base: Any, trained: Any) -> dict[str, Any]:
    """Return the parameters of a model as `merge_adapters` does, for training: the input of the adapters is dropped out.

    Without dropout they are those of `merge_adapters`.
    """
    if not adapters.dropout:
        return merge_adapters(cfg, adapters, base, trained)
    leaves, own = flatten_tree(base), flatten_tree(trained)
    for matrix in adapted_matrices(cfg, adapters.targets):
        a, b = own.pop(f"{matrix.path}/a"), adapters.scale * own.pop(f"{matrix.path}/b")
        leaves[matrix.leaf.path] = matrix.adapted(leaves[matrix.leaf.path], a, b, adapters.dropout)
    return unflatten_tree(leaves | own)


def check_dropout(cfg: Any, adapters: Adapters) -> None:
    """Refuse dropout of adapters outside of the layers of a model with an LM head, whose logits are computed in parts.

    Raises:
        BadInput: names a module.
    """
    outside = [matrix for matrix in adapted_matrices(cfg, adapters.targets) if not matrix.leaf.stacked]
    if adapters.dropout and outside and cfg.task not in FINE_TUNED:
        name = module_of(outside[0].leaf.names[0][0])
        fix = f"{name} is outside of the layers, where it is not applied; name --lora.targets without it, or choose 0"
        raise BadInput(f"--lora.dropout {adapters.dropout}: {fix}")


def flatten_tree(tree: Any) -> dict[str, Any]:
    """Return the leaves of a nested dict by their paths."""
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten_tree(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return leaves by path as a nested dict."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        below = tree
        for parent in parents:
            below = below.setdefault(parent, {})
        below[name] = leaf
    return tree


def module_of(name: str) -> str:
    """Return the name of the module of a published tensor."""
    return name.removesuffix(".weight")


def _is_matrix(leaf: Leaf) -> bool:
    names = leaf.names[0]
    is_weight = leaf.linear and all(name.endswith(".weight") for name in names)
    return leaf.path.endswith(KERNEL) and len(leaf.published) == 2 and is_weight


def _matches(name: str, targets: Iterable[str]) -> bool:
    return any(f".{module_of(name)}".endswith(f".{target}") for target in targets)


def _modules(cfg: Any) -> list[str]:
    """Return the last part of the name of every module that can have adapters, in the order of the table."""
    model = models.model(cfg)
    leaves = published_weights.present_leaves(cfg, model.names.prefixes[0])
    usable = [leaf for leaf in leaves if _is_matrix(leaf) and leaf.path not in head_paths(cfg)]
    return list(dict.fromkeys(module_of(name).rpartition(".")[2] for leaf in usable for name in leaf.names[0]))


def _check_target(model: Model, leaves: Iterable[Leaf], target: str) -> None:
    """Refuse a target that names no matrix; the message says what it names."""
    matched = [leaf for leaf in leaves if any(_matches(name, (target,)) for parts in leaf.names for name in parts)]
    names = _modules(model.config)
    if not any(map(_is_matrix, matched)):
        near = difflib.get_close_matches(target, names, n=1)
        fix = f"no matrix of a {model.family} has this name; {f'the nearest is {near[0]}; ' if near else ''}"
        if matched and matched[0].path.endswith("/embedding"):
            fix = "a table of embeddings; adapters are on matrices; "
        elif matched:
            fix = "not the weight of a linear layer, to which alone peft's adapters of modules apply; "
        raise BadInput(f"--{OPTION} {target}: {fix}choose from {', '.join(names)}")


def _check_layers(model: Model, leaves: Iterable[Leaf], targets: tuple[str, ...]) -> None:
    """Refuse targets that together name a matrix in some layers and not in the others."""
    for leaf in filter(_is_matrix, leaves):
        # Each layer's matrices with an adapter.
        layers = [tuple(_matches(name, targets) for name in parts) for parts in leaf.names]
        if len(set(layers)) > 1:
            names = [name for parts in leaf.names for name in parts]
            target = next(target for target in targets if any(_matches(name, (target,)) for name in names))
            fix = f"it names some of the {len(layers)} layers; all of them have adapters: choose from "
            raise BadInput(f"--{OPTION} {target}: {fix}{', '.join(_modules(model.config))}")
