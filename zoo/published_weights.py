"""Import and export of published weights, by the table of names that each family's module declares as `HF`.

Import is exact or fails: the message names tensors that are missing, unexpected, of another shape or type, or not finite. Export
writes files that `transformers` loads; importing them gives the same bits.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from zoo import configs, models, multi_vector_files, sharding
from zoo.errors import BadInput
from zoo.hf import mxfp4, quantized_formats, safetensors_dir, weight_files
from zoo.hf.config_json import PublishedConfig
from zoo.hf.param_name_types import Layout, ParamNames
from zoo.hf.safetensors_dir import Tensor
from zoo.published_family import find_family

MAX_NAMED = 5
"""Maximum number of problems that an error message lists; it counts the others."""
TABLE_ERROR = 2.0**-23
"""Largest difference between a stored table and the computed one: a float32 rounding below 1, by which sines of libraries
differ."""
CHUNK = 1 << 24
"""Number of elements that are checked at once when a tensor is searched for infinities and NaN."""


def load_published(folder: Path, mesh: Mesh, notify: Callable[[str], None] = lambda line: None) -> tuple[Any, dict[str, Any]]:
    """Return (configuration, parameters) of a folder of published weights: float32, each shard read directly onto its device.

    `notify` is called with a line for whatever is not used: keys of config.json that this version does not know, idle tensors.

    Raises:
        BadInput: see `open_folder` and `weight_files.read_tensors`; or a leaf that the mesh does not divide.
    """
    opened = open_folder(folder)
    for line in opened.notes:
        notify(line)
    leaves = {leaf.path: leaf for leaf in opened.leaves}
    model = models.model(opened.config)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))

    def read_leaf(keys: Any, shape: jax.ShapeDtypeStruct, leaf_sharding: Any) -> jax.Array:
        leaf = leaves[sharding.path_of(keys)]
        return jax.make_array_from_callback(shape.shape, leaf_sharding, lambda index: leaf.read(opened.tensors, index or ()))

    shardings = sharding.shardings(mesh, shapes, model.definition.sharding)
    try:
        return opened.config, jax.tree_util.tree_map_with_path(read_leaf, shapes, shardings)
    finally:
        mxfp4.forget_decoded()


def save_published(
    folder: Path, cfg: Any, params: Any, *, extra: Mapping[str, Any] | None = None, largest: int = 5_000_000_000
) -> str:
    """Write config.json and the weights into an existing folder: one safetensors file, or shards of at most `largest` bytes.

    Returns the type of the tensors, float32, or bfloat16 for a family that is published so if no number is rounded by it.

    Args:
        params: a tree as from `Model.init`, with every shard on a device of this process.
        extra: further keys of config.json (ids of the tokenizer's special tokens).

    Raises:
        BadInput: a configuration that has no published form.
        OSError: the folder cannot be written.
    """
    model = models.model(cfg)
    family, names = configs.family(model.family), model.names
    if not names.architecture:
        raise BadInput(
            f"model.task {model.task}: no {model.family} with this head was published, so this model cannot be exported"
        )
    numbers = family.to_published(cfg)
    shapes, fetch = published_tensors(cfg, params)
    fits = names.released_in_bfloat16 and all(map(_fits_bfloat16, jax.tree.leaves(params)))
    dtype = jnp.bfloat16 if fits else np.float32
    safetensors_dir.write_tensors(folder, shapes, lambda name: fetch(name).astype(dtype), largest=largest, dtype=dtype)
    model_type, architecture = configs.exported_class(cfg, names.architecture)
    header = {"architectures": [architecture], "model_type": model_type, "dtype": np.dtype(dtype).name}
    text = json.dumps({**header, **numbers, **(extra or {})}, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    return np.dtype(dtype).name


def published_tensors(cfg: Any, params: Any) -> tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray]]:
    """Return the shape of each published tensor of a model by name, and a function from a name to the tensor, float32.

    Args:
        params: a tree as from `Model.init`, with every shard on a device of this process.
    """
    sources = {
        name: (leaf, layer, part)
        for leaf in name_table(cfg, models.model(cfg).names.prefixes[0])
        for layer, parts in enumerate(leaf.names)
        for part, name in enumerate(parts)
    }
    stored = {sharding.path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def fetch(name: str) -> np.ndarray:
        leaf, layer, part = sources[name]
        array = stored[leaf.path][layer] if leaf.stacked else stored[leaf.path]
        # Padding rows of a vocabulary are not published.
        return leaf.layout.publish(np.asarray(jax.device_get(array), np.float32)[: leaf.shape[0]], part)

    return {name: leaf.published for name, (leaf, _, _) in sources.items()}, fetch


def _fits_bfloat16(leaf: Any) -> bool:
    """Return whether all numbers of a leaf are numbers of bfloat16."""
    return bool(jax.device_get((leaf == leaf.astype(jnp.bfloat16)).all()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A folder of published weights that passed all checks; no weight is in memory yet."""

    config: Any
    leaves: "tuple[Leaf, ...]"
    tensors: Mapping[str, Tensor]
    """Tensors by their current names."""
    notes: tuple[str, ...]
    """A line for each thing in the folder that is not used."""


def open_folder(folder: Path) -> Opened:
    """Check a folder of published weights, every tensor of it, and return its contents. Every tensor is read once.

    The tensors determine the head of the model, or `architectures` of config.json if several heads have tensors of the same
    names.

    Raises:
        BadInput: no config.json, an unknown family, or a number or name that its family does not support; tensors that are
            missing, unexpected, of another shape, of mixed types, not finite, or different from the tensor they are tied to.
    """
    published, family = _read_config_json(folder)
    heads: Mapping[str, ParamNames] = models.family(family).names
    architecture = _architecture(published, family)
    tensors, notes = weight_files.read_tensors(folder)
    if architecture == multi_vector_files.ORIGINAL:
        # This layer is no part of the encoder; `zoo.embedding_modules` reads it.
        tensors.pop(multi_vector_files.LAYER, None)
    published.task = resolve_task(heads, tensors, architecture)
    names = heads[published.task]
    cfg = _to_config(published, family)
    quantized_formats.refuse_quantized(tensors, folder)
    tensors = mxfp4.decode_mxfp4(_current_names(names, tensors, folder), folder)
    for name in _needed_substitutes(cfg, names, tensors):
        tensors[name] = tensors[names.substitutes[name]]
        notes.append(f"{folder}: has no {name}; {names.substitutes[name]} is read in its place, as in `transformers`")
    leaves, idle = plan_import(cfg, tensors, folder)
    if architecture != names.architecture and any(architecture == other.architecture for other in heads.values()):
        notes.append(f"{published.file}: says {architecture}, but the tensors are of {names.architecture or published.task}")
    if unread := published.unread():
        notes.append(f"{published.file}: not known to this version, and not used: {', '.join(unread)}")
    if idle:
        notes.append(f"{folder}: not used by {names.architecture}, its head: {', '.join(idle)}")
    return Opened(config=cfg, leaves=leaves, tensors=tensors, notes=tuple(notes))


def read_config(folder: Path) -> tuple[Any, list[str]]:
    """Return the configuration in a folder's config.json, and the keys of it that this version does not know.

    The weights are not read: the head is the one that `architectures` names, or the family's first.

    Raises:
        BadInput: no config.json, an unknown family, or a number or name that its family does not support.
    """
    published, family = _read_config_json(folder)
    published.task = resolve_task(models.family(family).names, {}, _architecture(published, family))
    return _to_config(published, family), published.unread()


def resolve_task(heads: Mapping[str, ParamNames], tensors: Mapping[str, Any], architecture: str) -> str:
    """Return the task whose head the tensors have; of several such tasks, the one that `architecture` names, or else the first.

    A part of a head counts if any of its tensors is present, so that a later check can name the missing ones. A file may also
    contain idle parts.
    """
    declared = next((task for task, names in heads.items() if names.architecture == architecture != ""), next(iter(heads)))
    if not tensors:
        return declared
    # A leaf belongs to a head if not all tasks have it; the shapes of the layers do not matter here.
    body = frozenset.intersection(*(frozenset(row.leaf for row in names.rows) for names in heads.values()))
    present = set(tensors)

    def head_names(names: ParamNames) -> dict[str, set[str]]:
        """Return the names that a head adds to the body, by part."""
        parts: dict[str, set[str]] = {}
        for row in names.rows:
            if row.leaf not in body:
                row_names = (row.names,) if isinstance(row.names, str) else row.names
                full_names = {name if row.bare else prefix + name for name in row_names for prefix in names.prefixes}
                parts.setdefault(row.leaf.split("/")[0], set()).update(full_names)
        return parts

    present_heads = {name for names in heads.values() for part in head_names(names).values() for name in part} & present

    def mismatch(task: str) -> tuple[bool, int, bool]:
        """Return (a part of the head is absent, number of tensors of heads it does not read, another task is declared)."""
        parts = head_names(heads[task])
        idle = {prefix + name for prefix in heads[task].prefixes for name in heads[task].idle}
        unread = present_heads - idle - {name for part in parts.values() for name in part}
        return any(not part & present for part in parts.values()), len(unread), task != declared

    return min(heads, key=mismatch)


def plan_import(cfg: Any, tensors: Mapping[str, Tensor], folder: Path) -> "tuple[tuple[Leaf, ...], list[str]]":
    """Check every tensor; return the leaves of a model and the names of the tensors that its head does not use.

    Raises:
        BadInput: see `open_folder`.
    """
    names = models.model(cfg).names
    by_prefix = {prefix: name_table(cfg, prefix) for prefix in names.prefixes}
    prefix = max(by_prefix, key=lambda prefix: sum(name in tensors for leaf in by_prefix[prefix] for name in leaf.every_name()))
    leaves = by_prefix[prefix]
    expected = {name: leaf.published for leaf in leaves for name in leaf.every_name()}
    constants = {prefix + name.format(layer=layer) for name in names.constants for layer in range(cfg.layers)}
    unused = [prefix + name for name in names.idle]
    idle = [name for name in unused if name in tensors]
    tables = {prefix + name: table for name, table in names.tables.items() if prefix + name in tensors}
    allowed = expected.keys() | constants | tables.keys() | names.tied.keys() | set(idle)
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is missing" for name in unused if idle and name not in tensors]
    problems += [f"{_described(name, tensors[name])} is unexpected" for name in tensors if name not in allowed]
    present = {name: tensors[name] for name in (*expected, *idle) if name in tensors}
    types = [tensor.dtype for tensor in present.values()]
    # Other types do not convert to float32 exactly. A single half-precision tensor is a mistake, not the type of a checkpoint.
    usual = max(FLOATS, key=types.count)
    for name, tensor in present.items():
        if name in expected and tensor.shape != expected[name]:
            problems.append(f"{_described(name, tensor)} has shape {list(tensor.shape)}, not {list(expected[name])}")
        elif tensor.dtype != usual:
            problems.append(f"{name} is {tensor.dtype}, not {usual}")
        elif not _finite(tensor.view()):
            problems.append(f"{name} holds NaN or infinity")
    problems += [problem for name, table in tables.items() for problem in _table_problems(name, tensors[name], table(cfg))]
    by_path = {leaf.path: leaf for leaf in leaves}
    for name, path in names.tied.items():
        original = by_path[path].names[0][0]
        tied = name in tensors and name not in expected and original in tensors
        if tied and not _equal(tensors[name], tensors[original]):
            problems.append(f"{name} differs from {original}, which this family ties it to")
    if problems:
        more = f"; and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        raise BadInput(f"{folder}: not the weights of its config.json: {'; '.join(problems[:MAX_NAMED])}{more}")
    return leaves, idle


def explain_import(cfg: Any) -> Iterator[tuple[str, tuple[int, ...], str, str]]:
    """Yield (published name, its shape, leaf, layout from its axes to the leaf's) for every tensor of a model."""
    names = models.model(cfg).names
    layouts = {row.leaf: row.layout for row in names.rows}
    for leaf in name_table(cfg, names.prefixes[0]):
        for layer, parts in enumerate(leaf.names):
            for name in parts:
                yield name, leaf.published, f"{leaf.path}[{layer}]" if leaf.stacked else leaf.path, layouts[leaf.path]


def _read_config_json(folder: Path) -> tuple[PublishedConfig, str]:
    """Return a folder's config.json and its family."""
    published = PublishedConfig.load(folder)
    return published, find_family(published)


def _architecture(published: PublishedConfig, family: str) -> str:
    """Return the class that a config.json names, as the family's table of names has it; "" if it names none."""
    module, names = configs.family(family), {name: name for name in configs.published_types()}
    return configs.usual_class(module, published.choice("model_type", names, "none"), published.architecture())


def _current_names(names: ParamNames, tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Return tensors by their current names, which replace old ones."""
    for name in tensors:
        if (new := names.today(name)) != name and new in tensors:
            raise BadInput(f"{folder}: holds both {name} and {new}, an old and a new name of one tensor; remove one of them")
    return {names.today(name): tensor for name, tensor in tensors.items()}


def _needed_substitutes(cfg: Any, names: ParamNames, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that a model has and its files lack, in whose place the files have another tensor."""
    if not names.substitutes:
        return []
    needed = {name for leaf in name_table(cfg, names.prefixes[0]) for name in leaf.every_name()}
    return [name for name, other in names.substitutes.items() if name in needed and name not in tensors and other in tensors]


def _to_config(published: PublishedConfig, family: str) -> Any:
    try:
        return configs.from_published(family, published)
    except BadInput as error:
        message = published.with_keys(str(error))
        raise BadInput(message if message.startswith(str(published.file)) else f"{published.file}: {message}") from None


FLOATS = ("F32", "F16", "BF16")
"""Types of published parameters, all of which convert to float32 without rounding."""


# --- the table of names, filled in for a model ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    """A leaf of a model's parameters and the published tensors it is made of."""

    path: str
    stacked: bool
    """True if axis 0 is the layer axis."""
    shape: tuple[int, ...]
    """Shape of one layer, without padding rows."""
    padding: int
    """Number of zero rows that are stored after those of `shape`."""
    layout: Layout
    linear: bool
    """False if a matrix is not the weight of a linear layer of `transformers`."""
    names: tuple[tuple[str, ...], ...]
    """Published names by layer (one if not stacked), then along the axis that the layout adds."""

    @property
    def published(self) -> tuple[int, ...]:
        """The shape of each of its published tensors."""
        return self.layout.published(self.shape)

    def every_name(self) -> Iterator[str]:
        return (name for parts in self.names for name in parts)

    def read(self, tensors: Mapping[str, Tensor], index: tuple[slice, ...]) -> np.ndarray:
        """Return the slice `index` of the leaf as it is stored: float32, padding rows zero."""
        layers, layer_index = (index[0], index[1:]) if self.stacked else (slice(None), index)
        arrays = [self._read_layer([tensors[name].view() for name in parts], layer_index) for parts in self.names[layers]]
        return np.stack(arrays) if self.stacked else arrays[0]

    def _read_layer(self, views: Sequence[np.ndarray], index: tuple[slice, ...]) -> np.ndarray:
        part = self.layout.arrange(views, self.shape)(index).astype(np.float32)
        if not self.padding:
            return part
        first, end, _ = index[0].indices(self.shape[0] + self.padding)
        return np.pad(part, [(0, end - first - len(part)), *[(0, 0)] * (part.ndim - 1)])


@functools.cache
def name_table(cfg: Any, prefix: str) -> tuple[Leaf, ...]:
    """Return a leaf for each row of a family's table that applies to a model.

    Raises:
        ValueError: the table and the model's parameters do not have the same leaves.
    """
    model = models.model(cfg)
    names, stored = model.names, _stored_shapes(cfg)
    needed = {row.leaf for row in names.rows if not row.optional}
    if differing := (stored.keys() - {row.leaf for row in names.rows}) | (needed - stored.keys()):
        raise ValueError(f"the published names of {model.family} and its parameters differ in {', '.join(sorted(differing))}")
    return present_leaves(cfg, prefix)


@functools.cache
def present_leaves(cfg: Any, prefix: str) -> tuple[Leaf, ...]:
    """Return a leaf for each row of a family's table that applies to a model, which may have parameters that are not in it."""
    model, stored = models.model(cfg), _stored_shapes(cfg)
    leaves = []
    for row in model.names.rows:
        if row.leaf not in stored:
            continue
        stacked = "layers" in row.leaf.split("/")
        shape = stored[row.leaf][1:] if stacked else stored[row.leaf]
        padding = 0
        if row.leaf in model.definition.padded:
            rows = getattr(cfg, model.definition.padded[row.leaf])
            shape, padding = (rows, *shape[1:]), shape[0] - rows
        row_names = (row.names,) if isinstance(row.names, str) else row.names
        by_layer = tuple(
            tuple(("" if row.bare else prefix) + name.format(layer=row.first + layer) for name in row_names)
            for layer in range(stored[row.leaf][0] if stacked else 1)
        )
        layout = Layout.parse(row.layout, len(shape))
        fields: dict[str, Any] = {"stacked": stacked, "shape": shape, "padding": padding, "layout": layout, "names": by_layer}
        leaves.append(Leaf(path=row.leaf, linear=row.linear, **fields))
    return tuple(leaves)


@functools.cache
def _stored_shapes(cfg: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of every leaf of a model's parameters by path."""
    model = models.model(cfg)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    return {sharding.path_of(keys): leaf.shape for keys, leaf in jax.tree_util.tree_leaves_with_path(shapes)}


def _described(name: str, tensor: Tensor) -> str:
    """Return the name of a tensor for a message, with that in its file if it is another one."""
    return f"{name} ({tensor.stored_name})" if tensor.stored_name else name


def _finite(view: np.ndarray) -> bool:
    # In the order of the memory, so that a transposed array is not copied.
    flat = view.ravel("K")
    return all(np.isfinite(flat[start : start + CHUNK]).all() for start in range(0, flat.size, CHUNK))


def _table_problems(name: str, tensor: Tensor, table: np.ndarray) -> list[str]:
    """Return how a stored table differs from the computed table, in one line; [] if it does not differ."""
    if tensor.shape != table.shape:
        return [f"{name} has shape {list(tensor.shape)}, not {list(table.shape)}"]
    error = np.abs(tensor.view().astype(np.float64) - table).max()
    # Written so that NaN fails, too.
    if error <= TABLE_ERROR:
        return []
    return [f"{name} differs by {error:.2g} from the computed table; if only by rounding, remove it from the file"]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool(np.array_equal(one.view(), other.view()))
