"""Published weights in and out, through the table of names that each family's module declares as `HF`.

Import is exact or refused: a tensor that is missing, unexpected, of another shape or type, or not finite is named. Export writes
what `transformers` loads, and importing it gives the same bits.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from zoo import configs, models, sharding
from zoo.errors import BadInput
from zoo.hf import safetensors_dir
from zoo.hf.config_json import Published
from zoo.hf.param_names import Layout, Names
from zoo.hf.safetensors_dir import Tensor

MOST_NAMED = 5
"""Tensors named in a refusal; the others are counted."""
TABLE_ERROR = 2.0**-23
"""How far a stored table may lie from the computed one: a rounding of float32 below 1, in which sines of libraries differ."""
PIECE = 1 << 24
"""Elements looked at at a time when a tensor is searched for infinities and NaN."""


def load(folder: Path, mesh: Mesh, notify: Callable[[str], None] = lambda line: None) -> tuple[Any, dict[str, Any]]:
    """(configuration, parameters) of a folder of published weights: float32, each shard read straight onto its own device.

    `notify` receives a line on what is there and not used: keys of config.json that this version does not know, idle tensors.

    Raises:
        BadInput: see `open_folder` and `tensors.read`; or a leaf that the mesh does not divide.
    """
    opened = open_folder(folder)
    for line in opened.notes:
        notify(line)
    leaves = {leaf.path: leaf for leaf in opened.leaves}
    net = models.model(opened.config)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0)))

    def place(keys: Any, shape: jax.ShapeDtypeStruct, where: Any) -> jax.Array:
        leaf = leaves[sharding.path_of(keys)]
        return jax.make_array_from_callback(shape.shape, where, lambda index: leaf.read(opened.tensors, index or ()))

    places = sharding.shardings(mesh, shapes, net.module.SHARDING)
    return opened.config, jax.tree_util.tree_map_with_path(place, shapes, places)


def save(folder: Path, cfg: Any, params: Any, *, extra: Mapping[str, Any] | None = None, largest: int = 5_000_000_000) -> None:
    """Write config.json and the weights into a folder that exists: one safetensors file, or shards of at most `largest` bytes.

    Args:
        params: as `Model.init` gives them, every shard on a device of this process.
        extra: further keys of config.json (ids of the tokenizer's marks).

    Raises:
        BadInput: a configuration that has no published form.
        OSError: the folder cannot be written.
    """
    net = models.model(cfg)
    family, names = configs.family(net.family), net.names
    if not names.architecture:
        raise BadInput(f"model.task {net.task}: no {net.family} with this head was published; there is no export of this model")
    numbers = family.to_published(cfg)
    where = {
        name: (leaf, layer, number)
        for leaf in written_out(cfg, names.prefixes[0])
        for layer, several in enumerate(leaf.names)
        for number, name in enumerate(several)
    }
    stored = {sharding.path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def fetch(name: str) -> np.ndarray:
        leaf, layer, number = where[name]
        array = stored[leaf.path][layer] if leaf.stacked else stored[leaf.path]
        # Padding rows of a vocabulary are not published.
        return leaf.layout.publish(np.asarray(jax.device_get(array), np.float32)[: leaf.shape[0]], number)

    safetensors_dir.write(folder, {name: leaf.published for name, (leaf, _, _) in where.items()}, fetch, largest=largest)
    header = {"architectures": [names.architecture], "model_type": family.MODEL_TYPE, "dtype": "float32"}
    text = json.dumps({**header, **numbers, **(extra or {})}, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A folder of published weights, checked whole; no weight is in memory yet."""

    config: Any
    leaves: "tuple[Leaf, ...]"
    tensors: Mapping[str, Tensor]
    """By their names of today."""
    notes: tuple[str, ...]
    """What is there and not used, a line each."""


def open_folder(folder: Path) -> Opened:
    """What a folder holds, when every tensor of it is accounted for. All of them are read once.

    Which head a model has, its tensors say; where several heads have tensors of the same names, `architectures` of config.json.

    Raises:
        BadInput: no config.json, a family that is not here, or a number or name that its family does not compute; tensors that
            are missing, unexpected, of another shape, of mixed types, not finite, or unlike their tied one.
    """
    published, family = _published(folder)
    heads: Mapping[str, Names] = models.family(family).HF
    found, said = safetensors_dir.read(folder), published.architecture()
    published.task = settle(heads, found, said)
    names = heads[published.task]
    cfg = _numbers(published, family)
    found = _renamed(names, found, folder)
    leaves, idle = plan(cfg, found, folder)
    notes = []
    if said != names.architecture and any(said == other.architecture for other in heads.values()):
        notes.append(f"{published.file}: says {said}, but the tensors are of {names.architecture or published.task}")
    if unread := published.unread():
        notes.append(f"{published.file}: not known to this version, and not used: {', '.join(unread)}")
    if idle:
        notes.append(f"{folder}: not used by {names.architecture}, its head: {', '.join(idle)}")
    return Opened(config=cfg, leaves=leaves, tensors=found, notes=tuple(notes))


def read_config(folder: Path) -> tuple[Any, list[str]]:
    """The configuration in a folder's config.json, and the keys of it that this version does not know.

    The weights are not looked at: the head is the one of `architectures`, or the family's first.

    Raises:
        BadInput: no config.json, a family that is not here, or a number or name that its family does not compute.
    """
    published, family = _published(folder)
    published.task = settle(models.family(family).HF, {}, published.architecture())
    return _numbers(published, family), published.unread()


def settle(heads: Mapping[str, Names], found: Mapping[str, Any], architecture: str) -> str:
    """The task that tensors are for: of those whose head they have, the one that `architecture` names, or else the first.

    Parts of a head count when any tensor of theirs is there, so that a missing one is missed later, by name. A file may carry
    idle parts besides.
    """
    declared = next((task for task, names in heads.items() if names.architecture == architecture != ""), next(iter(heads)))
    if not found:
        return declared
    # A tensor belongs to a head if no body has its name; the shapes of the layers do not matter here.
    body = frozenset.intersection(*(frozenset(row.leaf for row in names.rows) for names in heads.values()))
    present = set(found)

    def tops(names: Names) -> dict[str, set[str]]:
        """The names that a head adds to the body, by part."""
        parts: dict[str, set[str]] = {}
        for row in names.rows:
            if row.leaf not in body:
                several = (row.names,) if isinstance(row.names, str) else row.names
                spelled = {name if row.bare else prefix + name for name in several for prefix in names.prefixes}
                parts.setdefault(row.leaf.split("/")[0], set()).update(spelled)
        return parts

    every = {name for names in heads.values() for part in tops(names).values() for name in part} & present

    def left(task: str) -> tuple[bool, int, bool]:
        """Whether a part of it is absent, how many tensors of heads it does not read, whether another is declared."""
        parts = tops(heads[task])
        idle = {prefix + name for prefix in heads[task].prefixes for name in heads[task].idle}
        unread = every - idle - {name for part in parts.values() for name in part}
        return any(not part & present for part in parts.values()), len(unread), task != declared

    return min(heads, key=left)


def plan(cfg: Any, found: Mapping[str, Tensor], folder: Path) -> "tuple[tuple[Leaf, ...], list[str]]":
    """The leaves of a model, when every tensor of `found` is accounted for; and those tensors that its head does not use.

    Raises:
        BadInput: see `open_folder`.
    """
    names = models.model(cfg).names
    by_prefix = {prefix: written_out(cfg, prefix) for prefix in names.prefixes}
    prefix = max(by_prefix, key=lambda prefix: sum(name in found for leaf in by_prefix[prefix] for name in leaf.every_name()))
    leaves = by_prefix[prefix]
    expected = {name: leaf.published for leaf in leaves for name in leaf.every_name()}
    constants = {prefix + name.format(layer=layer) for name in names.constants for layer in range(cfg.layers)}
    unused = [prefix + name for name in names.idle]
    idle = [name for name in unused if name in found]
    tables = {prefix + name: table for name, table in names.tables.items() if prefix + name in found}
    allowed = expected.keys() | constants | tables.keys() | names.tied.keys() | set(idle)
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is missing" for name in unused if idle and name not in found]
    problems += [f"{name} is unexpected" for name in found if name not in allowed]
    present = {name: found[name] for name in (*expected, *idle) if name in found}
    types = [tensor.dtype for tensor in present.values()]
    # Other types would not become float32 exactly; a lone half-precision tensor is a slip, not a checkpoint's type.
    usual = max(FLOATS, key=types.count)
    for name, tensor in present.items():
        if name in expected and tensor.shape != expected[name]:
            problems.append(f"{name} has shape {list(tensor.shape)}, not {list(expected[name])}")
        elif tensor.dtype != usual:
            problems.append(f"{name} is {tensor.dtype}, not {usual}")
        elif not _finite(tensor.view()):
            problems.append(f"{name} holds NaN or infinity")
    problems += [problem for name, table in tables.items() for problem in _differences(name, found[name], table(cfg))]
    by_path = {leaf.path: leaf for leaf in leaves}
    for name, path in names.tied.items():
        original = by_path[path].names[0][0]
        if name in found and name not in expected and original in found and not _equal(found[name], found[original]):
            problems.append(f"{name} differs from {original}, which this family ties it to")
    if problems:
        more = f"; and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
        raise BadInput(f"{folder}: not the weights of its config.json: {'; '.join(problems[:MOST_NAMED])}{more}")
    return leaves, idle


def explain(cfg: Any) -> Iterator[tuple[str, tuple[int, ...], str, str]]:
    """(published name, its shape, our leaf, how its axes become the leaf's) of every tensor of a model."""
    names = models.model(cfg).names
    layouts = {row.leaf: row.layout for row in names.rows}
    for leaf in written_out(cfg, names.prefixes[0]):
        for layer, several in enumerate(leaf.names):
            for name in several:
                yield name, leaf.published, f"{leaf.path}[{layer}]" if leaf.stacked else leaf.path, layouts[leaf.path]


def _published(folder: Path) -> tuple[Published, str]:
    """A folder's config.json and the family it is of."""
    published = Published.load(folder)
    known = {configs.family(name).MODEL_TYPE: name for name in configs.families()}
    return published, published.choice("model_type", known, "none", why="the families here are")


def _renamed(names: Names, found: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Tensors by their names of today."""
    for name in found:
        if (new := names.today(name)) != name and new in found:
            raise BadInput(f"{folder}: holds both {name} and {new}, an old and a new name of one tensor; remove one of them")
    return {names.today(name): tensor for name, tensor in found.items()}


def _numbers(published: Published, family: str) -> Any:
    try:
        return configs.family(family).from_published(published)
    except BadInput as error:
        message = str(error)
        raise BadInput(message if message.startswith(str(published.file)) else f"{published.file}: {message}") from None


FLOATS = ("F32", "F16", "BF16")
"""Types of published parameters: all of them become float32 without rounding."""


# --- the table, written out -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    """A leaf of a model's parameters and the published tensors it is made of."""

    path: str
    stacked: bool
    """Whether its axis 0 numbers the layers."""
    shape: tuple[int, ...]
    """Shape of one layer, without padding rows."""
    padding: int
    """Rows that are stored after those of `shape`, all zero."""
    layout: Layout
    names: tuple[tuple[str, ...], ...]
    """By layer (one, where it is not stacked), then along the axis that the layout adds."""

    @property
    def published(self) -> tuple[int, ...]:
        """Shape of each of its published tensors."""
        return self.layout.published(self.shape)

    def every_name(self) -> Iterator[str]:
        return (name for several in self.names for name in several)

    def read(self, found: Mapping[str, Tensor], index: tuple[slice, ...]) -> np.ndarray:
        """The part of the leaf, as it is stored, that `index` cuts out; float32, padding rows zero."""
        layers, own = (index[0], index[1:]) if self.stacked else (slice(None), index)
        arrays = [self._read_layer([found[name].view() for name in several], own) for several in self.names[layers]]
        return np.stack(arrays) if self.stacked else arrays[0]

    def _read_layer(self, views: Sequence[np.ndarray], index: tuple[slice, ...]) -> np.ndarray:
        part = self.layout.arrange(views, self.shape)(index).astype(np.float32)
        if not self.padding:
            return part
        first, end, _ = index[0].indices(self.shape[0] + self.padding)
        return np.pad(part, [(0, end - first - len(part)), *[(0, 0)] * (part.ndim - 1)])


@functools.cache
def written_out(cfg: Any, prefix: str) -> tuple[Leaf, ...]:
    """The rows of a family's table for one of its models.

    Raises:
        ValueError: the table and the model's parameters do not name the same leaves.
    """
    net = models.model(cfg)
    names = net.names
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0)))
    stored = {sharding.path_of(keys): leaf.shape for keys, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    needed = {row.leaf for row in names.rows if not row.optional}
    if differing := (stored.keys() - {row.leaf for row in names.rows}) | (needed - stored.keys()):
        raise ValueError(f"the published names of {net.family} and its parameters differ in {', '.join(sorted(differing))}")
    leaves = []
    for row in names.rows:
        if row.leaf not in stored:
            continue
        stacked = "layers" in row.leaf.split("/")
        shape = stored[row.leaf][1:] if stacked else stored[row.leaf]
        padding = 0
        if row.leaf in net.module.PADDED:
            rows = getattr(cfg, net.module.PADDED[row.leaf])
            shape, padding = (rows, *shape[1:]), shape[0] - rows
        several = (row.names,) if isinstance(row.names, str) else row.names
        by_layer = tuple(
            tuple(("" if row.bare else prefix) + name.format(layer=layer) for name in several)
            for layer in range(stored[row.leaf][0] if stacked else 1)
        )
        layout = Layout.parse(row.layout, len(shape))
        leaves.append(Leaf(path=row.leaf, stacked=stacked, shape=shape, padding=padding, layout=layout, names=by_layer))
    return tuple(leaves)


def _finite(view: np.ndarray) -> bool:
    flat = view.reshape(-1)
    return all(np.isfinite(flat[start : start + PIECE]).all() for start in range(0, flat.size, PIECE))


def _differences(name: str, tensor: Tensor, table: np.ndarray) -> list[str]:
    """Say how a stored table differs from the one that is computed here."""
    if tensor.shape != table.shape:
        return [f"{name} has shape {list(tensor.shape)}, not {list(table.shape)}"]
    error = np.abs(tensor.view().astype(np.float64) - table).max()
    # NaN is not below the bound either.
    if error <= TABLE_ERROR:
        return []
    return [f"{name} differs by {error:.2g} from the table that is computed here; if only by rounding, remove it from the file"]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool(np.array_equal(one.view(), other.view()))
