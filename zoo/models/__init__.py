"""Arithmetic: one file per family, of the same name as its numbers in `zoo.configs`.

A family's module is its interface: `init`, `apply`, `unembed`, `flops`, `OBJECTIVES`, `SHARDING`, `HF`, its published names by
task, and `PADDED`, the leaves stored with rows that are not counted (where a model has them); `init_carry` where something is
carried from step to step. Modules are found by listing this folder; nothing is registered. A family that generates text has
`init_cache` and `decode` (an encoder-decoder's configuration says `sourced`; where some heads are not of words, it says which
`generates`), one whose models tell sequences or tokens apart `sequence_logits` and `token_logits` (see `Model`).
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

from zoo import configs
from zoo.batch import Batch, Output
from zoo.errors import BadInput
from zoo.hf.param_names import Names


def families() -> list[str]:
    """Names of the families, found by listing this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def family(name: str) -> ModuleType:
    """The module with a family's arithmetic."""
    return importlib.import_module(f"{__name__}.{name}")


def model(cfg: Any) -> "Model":
    """A configuration bound to its family's arithmetic."""
    name = configs.family_of(cfg)
    return Model(family=name, config=cfg, module=family(name))


@functools.cache
def parameter_count(cfg: Any) -> int:
    """Parameters of a model as its paper counts them: tied tables once, padding rows of vocabulary tables not at all.

    Counted on shapes: no array is made.
    """
    built = model(cfg)
    shapes = jax.eval_shape(lambda: built.init(jax.random.key(0)))
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    stored = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
    padding = sum(
        (stored[leaf][0] - getattr(cfg, field)) * math.prod(stored[leaf][1:])
        for leaf, field in built.module.PADDED.items()
        if leaf in stored
    )
    return sum(map(math.prod, stored.values())) - padding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A family's functions with the configuration filled in; it holds no parameters."""

    family: str
    config: Any
    module: ModuleType

    @property
    def task(self) -> str:
        """What stands on top of the body; a family with a single kind of model has a single task."""
        return self.config.task if hasattr(self.config, "task") else next(iter(self.module.HF))

    @property
    def sourced(self) -> bool:
        """Whether it writes a text after reading another, `Batch.source`: an encoder-decoder."""
        return getattr(self.config, "sourced", False)

    @property
    def generates(self) -> bool:
        """Whether it writes text: its family does, and what stands on top of it are words."""
        return hasattr(self.module, "init_cache") and getattr(self.config, "generates", True)

    @property
    def names(self) -> Names:
        """Its published names."""
        return self.module.HF[self.task]

    def init(self, key: Array) -> dict[str, Any]:
        """Fresh parameters: a nested dict of float32 arrays, per-layer leaves stacked on axis 0."""
        return self.module.init(self.config, key)

    def apply(self, params: Any, batch: Batch, *, seeds: UInt32[Array, "B 2"] | None = None, carry: Any = None) -> Output:
        """Hidden states of a batch; `seeds` turns dropout on."""
        return self.module.apply(self.config, params, batch, seeds=seeds, carry=carry)

    def unembed(self, params: Any, hidden: Float[Array, "*B D"]) -> Float[Array, "*B rows"]:
        """float32 logits; padding rows of the vocabulary get no probability."""
        return self.module.unembed(self.config, params, hidden)

    def sequence_logits(
        self, params: Any, hidden: Float[Array, "B Q D"], seeds: UInt32[Array, "B 2"] | None = None
    ) -> Float[Array, "B Q O"]:
        """float32 logits of sequences, from the hidden states of what stands for them (`zoo.nn.heads.summaries`)."""
        return self._able("sequence_logits")(self.config, params, hidden, seeds=seeds)

    def token_logits(
        self, params: Any, hidden: Float[Array, "B T D"], seeds: UInt32[Array, "B 2"] | None = None
    ) -> Float[Array, "B T O"]:
        """float32 logits of each token: of its label, or of being the first and the last of a span."""
        return self._able("token_logits")(self.config, params, hidden, seeds=seeds)

    def init_carry(self, rows: int) -> Any:
        """What the model carries from step to step at its start, for `rows` rows; `{}` for a family that carries nothing."""
        return self.module.init_carry(self.config, rows) if hasattr(self.module, "init_carry") else {}

    def init_cache(self, rows: int, length: int, dtype: Any) -> dict[str, Any]:
        """What `decode` keeps of the tokens it has seen, empty: `length` slots for each of `rows` rows.

        A dict of arrays: "k" and "v" [L, B, S, K, H] of `dtype`; "segments" and "positions", int32 [B, S], of the tokens in the
        slots, segment 0 where there is none; "at", int32, the first free slot. A family may keep more under other names: an
        encoder-decoder, what it makes of `batch.source` in the first call; XLNet, its distances, which are no row's.

        Raises:
            BadInput: the family does not generate, or not with this head.
        """
        empty = self._able("init_cache")
        if not self.generates:
            raise BadInput(f"model.task {self.task}: a {self.family} with this head does not generate text")
        return empty(self.config, rows, length, dtype)

    def decode(self, params: Any, batch: Batch, cache: dict[str, Any]) -> tuple[Float[Array, "B T D"], dict[str, Any]]:
        """Hidden states of T more tokens of each row, and the cache with them in it. A prompt is decoded so at once.

        Tokens of segment 0 are padding: nothing sees them, and rows of different lengths are padded on the left. Positions are
        each row's own; without segments and positions the tokens are real and follow the slots. Of an encoder-decoder the first
        call has `batch.source`, which the cache keeps for the others. Every array that is of rows has an axis B, the second if it
        has five, and rows may be chosen along it. The caller sees to it that "at" + T does not exceed the slots: JAX would
        overwrite the last ones unsaid.
        """
        return self.module.decode(self.config, params, batch, cache)

    def flops(self, batch: Batch) -> float:
        """Matrix-product FLOPs of a forward pass over a batch; only its shapes are read."""
        return self.module.flops(self.config, batch)

    def _able(self, name: str) -> Any:
        if not hasattr(self.module, name):
            able = ", ".join(other for other in families() if hasattr(family(other), name))
            raise BadInput(f"{self.family} does not {ABILITIES[name]}; these do: {able}")
        return getattr(self.module, name)


ABILITIES = {
    "init_cache": "generate text",
    "sequence_logits": "classify sequences",
    "token_logits": "classify tokens",
}
"""Functions that not every family has, and what they are for."""
