"""The arithmetic of the models, one file per family; the file of the same name in `zoo.configs` has its configuration.

XLNet's memory, the recurrence from row to row, is in `xlnet`: `init_carry` makes it, `apply` reads and returns it as
`Output.carry`, and the training step passes it to the next batch as `State.carry`.

Each file ends with `FAMILY`, a `zoo.nn.family.Family`. The families of the zoo are the files in this folder; another distribution
adds one by an entry point in `zoo.models`.
"""

import dataclasses
import functools
import importlib
import math
import pkgutil
from typing import Any

import jax
from jaxtyping import Array, Float, UInt32

from zoo import configs, plugins
from zoo.batch import Batch, Output
from zoo.errors import BadInput
from zoo.hf.param_name_types import ParamNames
from zoo.nn.family import Family
from zoo.nn.kv_cache import AnyCache, Cache, add_slots
from zoo.ops.adapted_kernel import with_seeds


def families() -> list[str]:
    """Return the names of the zoo's own families, which are those of the files in this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def family(name: str) -> Family:
    """Return a family.

    Raises:
        BadInput: two distributions have a family of this name, or that of the plug-in cannot be used.
    """
    plugin = plugins.find_plugin("zoo.models", name, families())
    if plugin is None:
        return importlib.import_module(f"{__name__}.{name}").FAMILY
    arithmetic = dataclasses.replace(plugin, value=f"{configs.family(name).MODEL_MODULE}:FAMILY")
    return plugins.load_plugin(arithmetic, "a zoo.nn.family.Family", lambda value: isinstance(value, Family))


def model(cfg: Any) -> "Model":
    """Return a configuration bound to its family's arithmetic."""
    name = configs.family_of(cfg)
    return Model(family=name, config=cfg, definition=family(name))


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
        for leaf, field in bound.definition.padded.items()
        if leaf in stored
    )
    return sum(map(math.prod, stored.values())) - padding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A family's functions with the configuration filled in, without parameters."""

    family: str
    config: Any
    definition: Family

    @property
    def task(self) -> str:
        """The task of the head: that of the configuration; else "sequence" for a reward model, or the family's first task."""
        if hasattr(self.config, "task"):
            return self.config.task
        return "sequence" if getattr(self.config, "labels", ()) else next(iter(self.definition.names))

    @property
    def is_encoder_decoder(self) -> bool:
        """True for an encoder-decoder, which predicts a text from another one, `Batch.source`."""
        return self.config.is_encoder_decoder

    @property
    def generates(self) -> bool:
        """True if the model generates text: its family has a cache, and it has a language-model head."""
        return self.definition.init_cache is not None and self.config.generates

    @property
    def reads_both_ways(self) -> bool:
        """True if a prompt may be read both ways: a call with a cache takes equal ranks in `batch.order`."""
        return self.config.reads_both_ways

    @property
    def names(self) -> ParamNames:
        """The model's published names."""
        return self.definition.names[self.task]

    def init(self, key: Array) -> dict[str, Any]:
        """Return new parameters: a nested dict of float32 arrays, with per-layer leaves stacked on axis 0."""
        return self.definition.init(self.config, key)

    def apply(
        self,
        params: Any,
        batch: Batch,
        *,
        cache: Cache | None = None,
        seeds: UInt32[Array, "B 2"] | None = None,
        carry: Any = None,
    ) -> Output:
        """Return the hidden states of a batch; `seeds` enables dropout.

        With a cache, those of T more tokens of each row, and the cache with them as `Output.cache`; those that predict the token
        after each are `zoo.nn.task_heads.predicting_states`. A prompt is read in one call. Tokens of segment 0 are padding, which
        no token sees; rows of different lengths are padded on the left. Positions are those within each row; without segments and
        positions all tokens are real, and their positions are their slots. The first call of an encoder-decoder has
        `batch.source`; the cache stores it for the later calls. The caller must ensure that `Cache.at` + T does not exceed the
        number of slots: JAX would silently overwrite the last ones.

        Raises:
            BadInput: a cache, and a family that does not generate text.
        """
        if cache is not None:
            self._able("init_cache")
        return self.definition.apply(self.config, with_seeds(params, seeds), batch, cache=cache, seeds=seeds, carry=carry)

    def unembed(self, params: Any, hidden: Float[Array, "*B D"]) -> Float[Array, "*B rows"]:
        """Return the float32 logits of the LM head; padding rows of the vocabulary get no probability."""
        return self.definition.unembed(self.config, params, hidden)

    def sequence_logits(
        self, params: Any, hidden: Float[Array, "B Q D"], seeds: UInt32[Array, "B 2"] | None = None
    ) -> Float[Array, "B Q O"]:
        """Return float32 logits of sequences, from the hidden states that summarize them (`task_heads.sequence_summaries`)."""
        return self._able("sequence_logits")(self.config, with_seeds(params, seeds), hidden, seeds=seeds)

    def token_logits(
        self, params: Any, hidden: Float[Array, "B T D"], seeds: UInt32[Array, "B 2"] | None = None
    ) -> Float[Array, "B T O"]:
        """Return float32 logits of each token: of its labels, or the start and end logits of a span."""
        return self._able("token_logits")(self.config, with_seeds(params, seeds), hidden, seeds=seeds)

    def init_carry(self, rows: int) -> Any:
        """Return the initial state that the model carries from step to step, for `rows` rows; `{}` for a family without any."""
        init_carry = self.definition.init_carry
        return {} if init_carry is None else init_carry(self.config, rows)

    @property
    def loss_factors(self) -> dict[str, float]:
        """The names of `Output.losses`, each with the factor of its mean over rows in a training loss; 0: only reported."""
        factors = self.definition.loss_factors
        return {} if factors is None else factors(self.config)

    def init_cache(self, rows: int, length: int, dtype: Any) -> Cache:
        """Return an empty cache for `apply`, of keys and values of `dtype`, with `length` slots for each of `rows` rows.

        Raises:
            BadInput: the family does not generate text, or not with this head.
        """
        empty = self._able("init_cache")
        if not self.generates:
            raise BadInput(f"model.task {self.task}: a {self.family} with this head does not generate text")
        return empty(self.config, rows, length, dtype)

    def grow_cache(self, params: Any, cache: AnyCache, length: int) -> AnyCache:
        """Return a cache with the same tokens, and with `length` slots for each row, more than it has."""
        grow: Any = self.definition.grow_cache
        return add_slots(cache, length) if grow is None else grow(self.config, params, cache, length)

    def flops(self, batch: Batch) -> float:
        """Return the matrix-product FLOPs of a forward pass over a batch. Only the shapes of the batch are used."""
        return self.definition.flops(self.config, batch)

    def _able(self, name: str) -> Any:
        if (function := getattr(self.definition, name)) is None:
            supported = ", ".join(other for other in families() if getattr(family(other), name) is not None)
            raise BadInput(f"{self.family} does not {ABILITIES[name]}; these do: {supported}")
        return function


ABILITIES = {
    "init_cache": "generate text",
    "sequence_logits": "classify sequences",
    "token_logits": "classify tokens",
}
"""Functions that not every family has -> what they do, for messages."""
