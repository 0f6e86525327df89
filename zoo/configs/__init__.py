"""Model configurations: one file per family with its `Config` and its published `SIZES`. Nothing here imports JAX.

A plug-in adds a family by an entry point in `zoo.models`, which names such a module (see `docs/extending.md`).

Each value of a size is either `published` (the source states it) or `assumed` (chosen by this project, with the reason). An
architecture that was never published has no size; looking it up is an error that names the nearest published model.
"""

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal, get_args

from zoo import plugins
from zoo.errors import BadInput, require

Activation = Literal["gelu", "gelu_tanh", "relu", "relu2", "silu"]
AttentionPattern = Literal["full", "window"]
Objective = Literal[
    "causal",
    "left_to_right",
    "masked",
    "distilled",
    "permutation",
    "classification",
    "tagging",
    "span",
    "choice",
    "contrastive",
    "similarity",
    "ranking",
    "rerank",
    "late_interaction",
    "sentence_denoising",
    "denoising",
    "text_to_text",
    "instruction",
    "preference",
    "dpo",
    "kto",
    "policy_gradient",
    "ppo",
]
Implementation = Literal["auto", "reference", "xla", "blocked", "cudnn", "tokamax", "splash", "flash_tpu", "flash_gpu"]
Precision = Literal["auto", "float32", "bfloat16"]
SequenceForm = Literal["auto", "all_to_all", "ring"]
InitPositions = Literal["same", "interpolate", "recompute"]
Remat = Literal["none", "full", "attention", "save_out", "save_qkv", "save_mlp", "save_dots", "offload"]


LARGEST = {
    "vocab": 1 << 21,
    "context": 1 << 20,
    "max_positions": 1 << 20,
    "layers": 512,
    "decoder_layers": 512,
    "width": 1 << 16,
    "heads": 1 << 12,
    "head": 1 << 16,
    "ffn": 1 << 20,
}
"""Maps integer fields to their largest value; a larger one is refused as a typing mistake."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Base of the families' configurations: checks of the fields that several of them have, and uses that few families have."""

    @property
    def is_encoder_decoder(self) -> bool:
        """True if the model has an encoder, whose source text the decoder attends to."""
        return False

    @property
    def generates(self) -> bool:
        """True if the model has an LM head, so that a family with a cache generates text; False for one with a score."""
        return not getattr(self, "labels", ())

    @property
    def reads_both_ways(self) -> bool:
        """True if a token may see later ones while the model generates."""
        return False

    @property
    def scales_with_length(self) -> bool:
        """True if the positions of a document depend on its length, so that a row's padding must not count as a part of it."""
        return getattr(self, "scaling", "") == "dynamic"

    def check_fields(self, **choices: Any) -> None:
        """Check the sizes, dropout rates and `eps`, and that each field named in `choices` has one of these values.

        Raises:
            BadInput: a value out of range, or not among the choices.
        """
        for name in (field.name for field in dataclasses.fields(self)):
            value = getattr(self, name)
            if name in LARGEST:
                require(1 <= value <= LARGEST[name], f"model.{name}", value, f"choose 1 to {LARGEST[name]:,}")
            if name.endswith("dropout"):
                require(0 <= value < 1, f"model.{name}", value, "choose a share of at least 0 and less than 1")
            if name == "eps":
                require(0 < value <= 1, "model.eps", value, "choose 0 < eps <= 1")
            if name in choices:
                require(value in choices[name], f"model.{name}", value, f"choose one of {', '.join(choices[name])}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """Options of the computation: they change speed and memory, but neither what is computed nor the layout of the parameters."""

    attention: Implementation | str = "auto"
    """Attention implementation, also one of a plug-in; it is an error if it does not support the attention of the model."""
    sequence: SequenceForm = "auto"
    """Use that attention makes of the devices of `--mesh.sequence`. all_to_all: each takes all positions of a part of the heads;
    ring: keys and values pass from device to device; auto: all_to_all where the devices divide the heads, else ring."""
    remat: Remat = "none"
    """Recomputation in the backward pass. none: nothing; full: layers; attention: all but attention, whose output is kept.
    save_out also keeps the projection of that output; save_qkv and save_mlp also those of queries, keys and values or the first
    of the feed-forward layer; save_dots keeps all projections, and offload keeps them in the memory of the host."""
    unroll: int = 1
    """Number of layers unrolled per scan step; more layers compile longer and may run faster."""

    def __post_init__(self) -> None:
        plugins.check_name("zoo.attention", self.attention, get_args(Implementation), "model.compute.attention")
        require(self.unroll >= 1, "model.compute.unroll", self.unroll, "choose 1 or more layers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """Values from an imported config.json that an export repeats; they have no effect here."""

    initializer: float | None = None
    """`initializer_range` (T5: `initializer_factor`, Marian: `init_std`); None = the default of `transformers`."""
    activation: str = ""
    """Name of the activation in a config.json, if it has several names ("gelu_pytorch_tanh"); empty = its usual name."""
    model_type: str = ""
    """Name of the family in a config.json, if the family has several ("xlm-roberta"); empty = the family's first name."""
    positions: int | None = None
    """Number of rows of Marian's table of sinusoids, which limits the length of a text in `transformers`; None = 1,024."""

    def __post_init__(self) -> None:
        if self.positions is not None:
            in_range = 1 <= self.positions <= 1 << 20
            require(in_range, "model.exported.positions", self.positions, "choose 1 to 1,048,576")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """Published configuration with the source of its values."""

    config: Any
    source: str
    """Paper and table, or repository and file."""
    objective: Objective | str = "causal"
    assumed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Maps a field to the reason for its value; every other field is published in `source`."""
    published_count: int | None = None
    """Exact parameter count, if the source prints one."""
    note: str = ""
    """Remark, for example on a contradiction in the source."""

    @classmethod
    def nano(cls, config: Any, objective: Objective, chosen: str) -> "Size":
        """Return a size of this project; `chosen` says what it was chosen as."""
        assumed = dict.fromkeys(cls.numbers_of(config), f"chosen here: {chosen}")
        return cls(config=config, objective=objective, source="this project", assumed=assumed)

    @staticmethod
    def numbers_of(kind: Any) -> list[str]:
        """Return the names of the fields of a configuration that define the architecture."""
        names = [field.name for field in dataclasses.fields(kind) if field.name not in ("compute", "exported")]
        # The label of a decoder's score is a use of the architecture; an encoder's labels go with its task.
        return [name for name in names if name != "labels" or "task" in names]


NEAREST = "so there is nothing to build. The nearest published architectures here are gpt-oss-120b, by the same lab, and "
NEAREST += "gpt3-175b"
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ("gpt-4", "gpt4"),
        "the architecture of gpt-4 is unpublished: its technical report withholds size, shape and training compute, " + NEAREST,
    ),
    **{
        name: f"the architecture of {name} is unpublished, {NEAREST}"
        for name in ("gpt-3.5", "gpt-3.5-turbo", "gpt-4-turbo", "gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-5", "chatgpt")
    },
}
"""Maps the name of a model whose architecture was never published to the error message."""


def families() -> list[str]:
    """Return the names of the zoo's own families: the modules of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def family(name: str) -> ModuleType:
    """Return the configuration module of a family, of the zoo or of a plug-in.

    Raises:
        BadInput: two distributions have a family of this name, or that of the plug-in cannot be used.
    """
    plugin = plugins.find_plugin("zoo.models", name, families())
    return _own_family(name) if plugin is None else plugins.load_plugin(plugin, FAMILY, lambda module: _is_family(plugin, module))


def published_types() -> dict[str, str]:
    """Return the family of each `model_type` of a published config.json; the type of a plug-in is its name."""
    return {name: name for name in plugins.plugin_names("zoo.models")} | _own_types()


def model_classes(module: ModuleType) -> Mapping[str, str]:
    """Return each `model_type` of a family, with the beginning of the names of its classes in `transformers`.

    The first one is that of the family's table of names. A family with a single one has no `CLASSES`. One that was never
    published has no `MODEL_TYPE` either, so that its name is its type, as a plug-in's is.
    """
    return getattr(module, "CLASSES", None) or {getattr(module, "MODEL_TYPE", module.__name__.rpartition(".")[2]): ""}


def exported_class(config: Any, architecture: str) -> tuple[str, str]:
    """Return (`model_type`, class of `transformers`) of an exported model, whose table of names says `architecture`.

    A family whose numbers determine the type has a function `exported_type`; otherwise it is that of the imported file.

    Raises:
        BadInput: the family does not have the type that the configuration names.
    """
    module = family(family_of(config))
    classes = model_classes(module)
    of_numbers = getattr(module, "exported_type", None)
    model_type = of_numbers(config) if of_numbers else config.exported.model_type or next(iter(classes))
    fix = f"choose one of {', '.join(classes)}"
    require(model_type in classes, "model.exported.model_type", model_type, fix)
    return model_type, classes[model_type] + architecture.removeprefix(next(iter(classes.values())))


def usual_class(module: ModuleType, model_type: str, architecture: str) -> str:
    """Return the class in a family's table of names that corresponds to one of another `model_type` of the family."""
    classes = model_classes(module)
    own, first = classes.get(model_type, ""), next(iter(classes.values()))
    return first + architecture.removeprefix(own) if architecture.startswith(own) else architecture


def from_published(family_name: str, published: Any) -> Any:
    """Return the configuration of a family that a published config.json, a `PublishedConfig`, describes.

    Raises:
        BadInput: the family has no published form, or does not compute what the file says.
    """
    module = family(family_name)
    if not hasattr(module, "from_published"):
        raise BadInput(f"{published.file}: model_type {family_name!r}: this family reads no published weights")
    return module.from_published(published)


FAMILY = (
    "a module with `MODEL_MODULE`, the name of the module of its functions, with `Config`, a frozen dataclass derived from "
    "zoo.configs.ModelConfig that has vocab, layers, width, heads and compute, and with `SIZES`, whose names begin with the "
    "family's name and a hyphen and are new"
)


def _is_family(plugin: plugins.Plugin, module: Any) -> bool:
    """Return whether an object is what a plug-in's entry point in `zoo.models` must name."""
    kind, sizes = getattr(module, "Config", None), getattr(module, "SIZES", None)
    if not (isinstance(module, ModuleType) and isinstance(kind, type) and issubclass(kind, ModelConfig)):
        return False
    if not (isinstance(sizes, Mapping) and isinstance(getattr(module, "MODEL_MODULE", None), str)):
        return False
    fields = {field.name for field in dataclasses.fields(kind)}
    return (
        kind.__module__ == module.__name__ == plugin.value
        and {"vocab", "layers", "width", "heads", "compute"} <= fields
        and all(isinstance(size, Size) and type(size.config) is kind for size in sizes.values())
        and all(name.startswith(f"{plugin.name}-") for name in sizes)
        and not {plugin.name, *sizes} & {*_own_sizes(), *_own_types()}
    )


def _own_family(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def _own_types() -> dict[str, str]:
    return {model_type: name for name in families() for model_type in model_classes(_own_family(name))}


def _own_sizes() -> dict[str, tuple[str, Size]]:
    return {name: (f, entry) for f in families() for name, entry in _own_family(f).SIZES.items()}


def find_size(size: str) -> tuple[str, Size]:
    """Return (family, Size) of a published name.

    Raises:
        BadInput: the name is unpublished or unknown; the message gives the nearest name.
    """
    if size in REFUSED:
        raise BadInput(REFUSED[size])
    sizes = _own_sizes()
    # The name of a size says which plug-in to import.
    if size not in sizes and (name := plugins.plugin_owner("zoo.models", size)):
        sizes |= {entry_name: (name, entry) for entry_name, entry in family(name).SIZES.items()}
    if size not in sizes:
        near = difflib.get_close_matches(size, sizes, n=1, cutoff=0.0)[0]
        raise BadInput(f"no model is called {size!r}; the nearest is {near!r} (all: zoo models)")
    return sizes[size]


def family_of(config: Any) -> str:
    """Return the name of the family of a configuration."""
    package, _, name = (module := type(config).__module__).rpartition(".")
    if package == __name__:
        return name
    return next((plugin.name for plugin in plugins.installed_plugins("zoo.models") if plugin.value == module), name)


def active_parameters(config: Any, parameters: int) -> int | None:
    """Return how many of a model's `parameters` a token uses, in a family with experts; None in any other."""
    count = getattr(family(family_of(config)), "active_parameters", None)
    return None if count is None else count(config, parameters)


def longest_row(config: Any) -> int | None:
    """Return the maximum number of tokens in a row; None = no limit, for a family without learned positions."""
    if hasattr(config, "context"):
        return config.context
    return config.max_positions if getattr(config, "positions", "") == "learned" else None


def changeable_positions(config: Any) -> tuple[InitPositions, tuple[str, ...]]:
    """Return how a model may have other positions than the one whose parameters it begins with, and the fields that may differ.

    They are those of its rotations, or the number of its learned positions. "same", with no field: it has neither.
    """
    names = {field.name for field in dataclasses.fields(config)}
    if names & {"base", "global_base"}:
        return "recompute", tuple(name for name in ROTATION_FIELDS if name in names)
    return ("same", ()) if longest_row(config) is None else ("interpolate", tuple({"context", "max_positions"} & names))


ROTATION_FIELDS = (
    *("context", "base", "global_base", "local_base", "scaling", "scaling_factor", "low_freq_factor", "high_freq_factor"),
    *("beta_fast", "beta_slow", "truncate", "attention_factor", "original_context"),
)
"""Fields on which rotary positions depend and no parameter does."""


def body_fields(config: Any) -> dict[str, Any]:
    """Return the fields of a configuration that the weights of the model's body depend on.

    These are all fields but those of the computation, dropout, the initializer, the memory between rows, and the head.
    """
    numbers = dataclasses.asdict(config)
    return {name: value for name, value in numbers.items() if name not in NOT_IN_SHAPE and not name.endswith("dropout")}


NOT_IN_SHAPE = (
    "compute",
    "exported",
    "initializer",
    "memory",
    "reuse",
    "task",
    "labels",
    "multi_label",
    "pooling",
    "router_loss",
)


def published_name(config: Any) -> str | None:
    """Return the published name whose weights fit a configuration, or None."""
    sizes = family(family_of(config)).SIZES
    return next((name for name, size in sizes.items() if body_fields(size.config) == body_fields(config)), None)
