"""The arithmetic of the models, one file per family; the file of the same name in `zoo.configs` has its configuration.

XLNet's memory, the recurrence from row to row, is in `xlnet`: `init_carry` makes it, `apply` reads and returns it as
`Output.carry`, and the training step passes it to the next batch as `State.carry`.

Each module has `init`, `apply`, `unembed`, `flops`, `OBJECTIVES`, `SHARDING`, `HF` (its published names by task), `PADDED`
(leaves stored with padding rows, which are not counted) and, if the model carries state from step to step, `init_carry`. A family
that generates text has `init_cache` and `decode`, `grow_cache` if its cache has other entries that depend on the number of slots
than those of `zoo.nn.kv_cache.add_slots`, and `SPLIT_CACHE` if it takes arrays of the cache as `SplitLayers`; its configuration
has `is_encoder_decoder` if it is an encoder-decoder, `generates` if some of its heads do not predict words, and
`reads_both_ways` if `decode` takes tokens that all see each other. A family that classifies sequences or tokens has
`sequence_logits` and `token_logits`; one that adds terms to a training loss has `loss_factors`; see `Model`. The families of the
zoo are the files in this folder; another distribution adds one by an entry point in `zoo.models`.
"""

import dataclasses
import functools
import importlib
import math
import pkgutil
from types import ModuleType
from typing import Any

import jax
from jaxtyping import Array, Float, UInt32

from zoo import configs, plugins
from zoo.batch import Batch, Output
from zoo.errors import BadInput
from zoo.hf.param_name_types import ParamNames
from zoo.nn import kv_cache
from zoo.ops.adapted_kernel import with_seeds
from zoo.ops.split_layers import split_cache


def families() -> list[str]:
    """Return the names of the zoo's own families, which are those of the files in this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def family(name: str) -> ModuleType:
    """Return the module with a family's arithmetic.

    Raises:
        BadInput: two distributions have a family of this name, or that of the plug-in cannot be used.
    """
    plugin = plugins.find("zoo.models", name, families())
    if plugin is None:
        return importlib.import_module(f"{__name__}.{name}")
    arithmetic = dataclasses.replace(plugin, value=configs.family(name).MODEL_MODULE)
    expected = f"a module with the functions {', '.join(FUNCTIONS)} and with {', '.join(ATTRIBUTES)}"
    return plugins.load(arithmetic, expected, lambda value: plugins.has(value, *FUNCTIONS, attributes=ATTRIBUTES))


FUNCTIONS = ("init", "apply", "unembed", "flops")
ATTRIBUTES = ("OBJECTIVES", "SHARDING", "HF", "PADDED")
"""Names that the module of every family has."""


def model(cfg: Any) -> "Model":
    """Return a configuration bound to its family's arithmetic."""
    name = configs.family_of(cfg)
    return Model(family=name, config=cfg, module=family(name))


@functools.cache
def parameter_count(cfg: Any) -> int:
    """Return the number of parameters as papers count them: tied tables once, padding rows of vocabulary tables not at all.

    Only shapes are computed.
    """
    bound = model(cfg)
    shapes = jax.eval_shape(lambda: bound.init(jax.random.key(0)))
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    stored = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
    padding = sum(
        (stored[leaf][0] - getattr(cfg, field)) * math.prod(stored[leaf][1:])
        for leaf, field in bound.module.PADDED.items()
        if leaf in stored
    )
    return sum(map(math.prod, stored.values())) - padding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A family's functions with the configuration filled in, without parameters."""

    family: str
    config: Any
    module: ModuleType

    @property
    def task(self) -> str:
        """The task of the head: that of the configuration; else "sequence" for a reward model, or the family's first task."""
        if hasattr(self.config, "task"):
            return self.config.task
        return "sequence" if getattr(self.config, "labels", ()) else next(iter(self.module.HF))

    @property
    def is_encoder_decoder(self) -> bool:
        """True for an encoder-decoder, which predicts a text from another one, `Batch.source`."""
        return getattr(self.config, "is_encoder_decoder", False)

    @property
    def generates(self) -> bool:
        """True if the model generates text: its family can decode, and it has a language-model head."""
        return hasattr(self.module, "init_cache") and getattr(self.config, "generates", True)

    @property
    def reads_both_ways(self) -> bool:
        """True if a prompt may be read both ways: `decode` takes tokens with equal ranks in `batch.order`."""
        return getattr(self.config, "reads_both_ways", False)

    @property
    def names(self) -> ParamNames:
        """The model's published names."""
        return self.module.HF[self.task]

    def init(self, key: Array) -> dict[str, Any]:
        """Return new parameters: a nested dict of float32 arrays, with per-layer leaves stacked on axis 0."""
        return self.module.init(self.config, key)

    def apply(self, params: Any, batch: Batch, *, seeds: UInt32[Array, "B 2"] | None = None, carry: Any = None) -> Output:
        """Return the hidden states of a batch; `seeds` enables dropout."""
        return self.module.apply(self.config, with_seeds(params, seeds), batch, seeds=seeds, carry=carry)

    def unembed(self, params: Any, hidden: Float[Array, "*B D"]) -> Float[Array, "*B rows"]:
        """Return float32 logits; padding rows of the vocabulary get no probability."""
        return self.module.unembed(self.config, params, hidden)

    def sequence_logits(
        self, params: Any, hidden: Float[Array, "B Q D"], seeds: UInt32[Array, "B 2"] | None = None
    ) -> Float[Array, "B Q O"]:
        """Return float32 logits of sequences, from the hidden states that summarize them (`zoo.nn.task_heads.summaries`)."""
        return self._able("sequence_logits")(self.config, with_seeds(params, seeds), hidden, seeds=seeds)

    def token_logits(
        self, params: Any, hidden: Float[Array, "B T D"], seeds: UInt32[Array, "B 2"] | None = None
    ) -> Float[Array, "B T O"]:
        """Return float32 logits of each token: of its label, or of being the first and the last of a span."""
        return self._able("token_logits")(self.config, with_seeds(params, seeds), hidden, seeds=seeds)

    def init_carry(self, rows: int) -> Any:
        """Return the initial state that the model carries from step to step, for `rows` rows; `{}` for a family without any."""
        return self.module.init_carry(self.config, rows) if hasattr(self.module, "init_carry") else {}

    @property
    def loss_factors(self) -> dict[str, float]:
        """The names of `Output.losses`, each with the factor of its mean over rows in a training loss; 0: only reported."""
        return self.module.loss_factors(self.config) if hasattr(self.module, "loss_factors") else {}

    def init_cache(self, rows: int, length: int, dtype: Any) -> dict[str, Any]:
        """Return an empty cache for `decode`, with `length` slots for each of `rows` rows.

        A dict of arrays: "k" and "v" [L, B, K, S, H] of `dtype`; "segments" and "positions", int32 [B, S], of the tokens in the
        slots, with segment 0 for free slots; "at", int32, the first free slot. A family may add entries of other names: an
        encoder-decoder those of `batch.source` in the first call; XLNet the encodings of distances, which all rows share; XLNet
        and a decoder-only T5 "order", the ranks of the tokens. On one CPU device some of the arrays become `SplitLayers`: see
        `split_cache`.

        Raises:
            BadInput: the family does not generate text, or not with this head.
        """
        empty = self._able("init_cache")
        if not self.generates:
            raise BadInput(f"model.task {self.task}: a {self.family} with this head does not generate text")
        return empty(self.config, rows, length, dtype)

    def split_cache(self, params: Any, cache: dict[str, Any]) -> dict[str, Any]:
        """Return a cache in the form in which generation passes it to `decode` and `grow_cache` with these parameters.

        If the layers of the parameters are split (see `decode`), the arrays that the family's `SPLIT_CACHE` names are
        `zoo.ops.split_layers.SplitLayers`: `zoo.nn.layers.KVCacheView` and `zoo.nn.kv_cache.add_slots` take both forms, and
        `decode` must return the form that it takes. For a family without `SPLIT_CACHE` all entries remain arrays.
        """
        return split_cache(cache, getattr(self.module, "SPLIT_CACHE", ()), params)

    def grow_cache(self, params: Any, cache: dict[str, Any], length: int) -> dict[str, Any]:
        """Return a cache with the same tokens, and with `length` slots for each row, more than it has.

        Its arrays have the form of those of `cache`: see `split_cache`.
        """
        if hasattr(self.module, "grow_cache"):
            return self.module.grow_cache(self.config, params, cache, length)
        return kv_cache.add_slots(cache, length)

    def decode(self, params: Any, batch: Batch, cache: dict[str, Any]) -> tuple[Float[Array, "B T D"], dict[str, Any]]:
        """Return the hidden states of T more tokens of each row, and the cache with them. A prompt is decoded in one call.

        Tokens of segment 0 are padding, which no token sees; rows of different lengths are padded on the left. Positions are
        those within each row; without segments and positions all tokens are real, and their positions are their slots. The first
        call of an encoder-decoder has `batch.source`; the cache stores it for the later calls. Every array with an entry per row
        has an axis B, the second of five axes, else the first, along which rows may be selected. The caller must ensure that "at"
        + T does not exceed the number of slots: JAX would silently overwrite the last ones. It may also move "at" back by fewer
        than T: the tokens of those slots are then read again.

        On one CPU device generation calls it with `zoo.ops.split_layers.split_layers(params)`, whose stacks are tuples of
        layers and whose kernels are `OutputMajor`: `zoo.nn.layer_stack.run_stack` and `zoo.nn.layers.Linear` take both forms. The
        cache then has the form of `split_cache`; beam search passes arrays.
        """
        return self.module.decode(self.config, params, batch, cache)

    def flops(self, batch: Batch) -> float:
        """Return the matrix-product FLOPs of a forward pass over a batch. Only the shapes of the batch are used."""
        return self.module.flops(self.config, batch)

    def _able(self, name: str) -> Any:
        if not hasattr(self.module, name):
            supported = ", ".join(other for other in families() if hasattr(family(other), name))
            raise BadInput(f"{self.family} does not {ABILITIES[name]}; these do: {supported}")
        return getattr(self.module, name)


ABILITIES = {
    "init_cache": "generate text",
    "sequence_logits": "classify sequences",
    "token_logits": "classify tokens",
}
"""Functions that not every family has -> what they do, for messages."""
