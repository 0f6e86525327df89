"""Small models of every family, for the tests that ask what a model computes."""

import dataclasses
import functools
import importlib
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import configs, models, sharding
from zoo.batch import Batch, Output
from zoo.configs import Compute
from zoo.configs._encoder import LABELLED, EncoderConfig
from zoo.models import Model, model
from zoo.nn import encoder
from zoo.nn.kv_cache import Cache
from zoo.nn.task_heads import gather_positions, predicting_states, sequence_summaries
from zoo.ops.counter_rng import example_seeds

SMALL = dict(vocab=300, context=32, layers=2, decoder_layers=2, width=32, heads=4, head=8, ffn=64, pattern=("full",), window=0)
OWN = {
    **{"modernbert": {"layers": 4, "local_window": 4}, "ettin_decoder": {"layers": 4, "window": 4}},
    **{"gpt_oss": {"window": 4, "experts": 4, "ffn": 16, "kv_heads": 2}, "nanochat": {"kv_heads": 2}},
}
"""A local layer next to local and global ones, and a window that is narrower than the rows of tests."""
LABELS = ("no", "perhaps", "yes")
HEADS = [(family, task) for family in models.families() for task in models.family(family).names]
ENCODERS = [family for family in models.families() if hasattr(configs.family(family).Config, "task")]
PLACED = [family for family in ENCODERS if issubclass(configs.family(family).Config, EncoderConfig)]
"""Encoders that learn positions."""
GENERATORS = [family for family in models.families() if models.family(family).init_cache is not None]
ONE_WAY = [family for family in GENERATORS if family not in ENCODERS]
"""Families in which no token sees those behind it."""

SAYS = {
    "body": ("hidden",),
    "causal": ("words",),
    "text_to_text": ("words",),
    "pretraining": ("words", "sequences"),
    "masked": ("words",),
    "permutation": ("words",),
    "next": ("sequences",),
    "sequence": ("sequences",),
    "choice": ("sequences",),
    "tokens": ("tokens",),
    "span": ("tokens",),
}
"""What a model says by its task, as `outputs` calls it."""


def small(family: str, **changes: Any) -> Model:
    """The family's first size, made small and without dropout, with three labels if its task has any."""
    first = next(iter(configs.family(family).SIZES.values())).config
    fields = {field.name for field in dataclasses.fields(first)}
    numbers = {name: value for name, value in {**SMALL, **OWN.get(family, {})}.items() if name in fields}
    rates = {name: 0.0 for name in fields if name.endswith("dropout")}
    labels = {"labels": LABELS} if changes.get("task") in LABELLED else {}
    return model(dataclasses.replace(first, **{**numbers, **rates, **labels, "compute": Compute(), **changes}))


def patch_family(patch: pytest.MonkeyPatch, module: ModuleType, **changes: Any) -> None:
    """Put a family with other functions or tables in the place of a module's."""
    patch.setattr(module, "FAMILY", dataclasses.replace(module.FAMILY, **changes))


def shallow(family: str, **changes: Any) -> Model:
    """Return `small` with as few layers as the family admits."""
    fewest = {"t5": {"layers": 1, "decoder_layers": 1}, "ettin_decoder": {"layers": 2}}
    return small(family, **{**fewest.get(family, {"layers": 1}), **changes})


def with_head(family: str, task: str, **changes: Any) -> Model:
    """The same with another head: a score of a family of decoders, or an encoder's for a task."""
    if family in ENCODERS:
        return small(family, task=task, **changes)
    return small(family, **({"labels": ("reward",)} if task == "sequence" else {}), **changes)


def outputs(net: Model, params: Any, batch: Batch, seeds: Any = None) -> dict[str, jax.Array]:
    """All that a model says of a batch: "words" [B, P, rows], "sequences" [B, Q, O], "tokens" [B, T, O]; a body its "hidden"
    states."""
    return said(net, params, net.apply(params, batch, seeds=seeds), batch, seeds)


def said(net: Model, params: Any, out: Output, batch: Batch, seeds: Any = None) -> dict[str, jax.Array]:
    say = {
        "hidden": lambda: out.hidden,
        "words": lambda: net.unembed(params, gather_positions(out.hidden, batch.predict_at)),
        "sequences": lambda: net.sequence_logits(params, sequence_summaries(out, batch), seeds),
        "tokens": lambda: net.token_logits(params, out.hidden, seeds),
    }
    return {name: say[name]() for name in SAYS[net.task]}


def with_dropout(net: Model) -> dict[str, float]:
    return {field.name: 0.1 for field in dataclasses.fields(net.config) if field.name.endswith("dropout")}


def home(net: Model, name: str) -> ModuleType:
    """The module in which a model's arithmetic looks a name up, where a test puts another: its own or the encoders'."""
    own = importlib.import_module(f"zoo.models.{net.family}")
    return own if hasattr(own, name) else encoder


BODIES = list({home(small(family), "run_stack"): family for family in reversed(models.families())}.values())
"""One family of each body: what heads and numbers do not touch is asked of it."""


@functools.cache
def shapes(net: Model) -> Any:
    return jax.eval_shape(lambda: net.init(jax.random.key(0)))


def random_params(net: Model) -> Any:
    """Parameters as after some training: no leaf is all zeros or all ones; padding rows are zero. T5's kernels are as spread as
    they begin, those of queries the least: as its scores are not scaled, more would magnify every rounding."""
    rng = np.random.default_rng(0)

    def draw(keys: Any, leaf: Any) -> jax.Array:
        path = sharding.path_of(keys)
        values = 0.3 * rng.standard_normal(leaf.shape) + path.endswith("scale")
        if net.family == "t5" and path.endswith("kernel"):
            values *= net.config.width**-0.5 / 0.3
            queries = values[:, :, :1] if "qkv" in path else values if "/q/" in path else values[:0]
            queries *= net.config.head**-0.5
        if path in net.definition.padded:
            values[getattr(net.config, net.definition.padded[path]) :] = 0
        return jnp.asarray(np.float32(values))

    return jax.tree_util.tree_map_with_path(draw, shapes(net))


def row(length: int, rows: int = 1, **fields: Any) -> Batch:
    """Rows in which every token is another one: a derivative by its table is one by its position."""
    return Batch(tokens=jnp.arange(1, rows * length + 1, dtype=jnp.int32).reshape(rows, length), **fields)


def with_source(net: Model, batch: Batch) -> Batch:
    """As an encoder-decoder takes it: with a source of the rows' segments, and of tokens that they do not have."""
    if "text_to_text" not in net.definition.objectives:
        return batch
    source = Batch(tokens=batch.tokens + batch.tokens.size, segments=batch.segments, positions=batch.positions)
    return dataclasses.replace(batch, source=source)


def reversed_layers(params: Any) -> Any:

    def turned(keys: Any, leaf: Any) -> Any:
        return leaf[::-1] if "layers" in sharding.path_of(keys).split("/") else leaf

    return jax.tree_util.tree_map_with_path(turned, params)


def as_batch(asked: dict[str, np.ndarray]) -> Batch:
    """What `tests.support.transformers_outputs` asks a model."""
    kinds = jnp.asarray(asked["types"]) if "types" in asked else None
    source = None
    if "source" in asked:
        source = Batch(tokens=jnp.asarray(asked["source"]), segments=jnp.asarray(asked["source_real"], jnp.int32))
    segments = jnp.asarray(asked["real"], jnp.int32)
    last = jnp.asarray(asked["summary_at"]) if "summary_at" in asked else None
    return Batch(tokens=jnp.asarray(asked["tokens"]), segments=segments, types=kinds, summary_at=last, source=source)


def reached_rows(net: Model, params: Any, batch: Batch) -> np.ndarray:
    """Return bool[T, rows]: whether the output at t depends on a row of the table, by derivatives that are exactly 0 or not."""
    probe = np.float32(np.random.default_rng(0).standard_normal(net.config.width))

    def outputs(table: Any) -> Any:
        embed = {**params["embed"], "tokens": {"embedding": table}}
        return net.apply({**params, "embed": embed}, batch).hidden[0] @ probe

    jacobian = jax.jit(jax.jacrev(outputs))(params["embed"]["tokens"]["embedding"])
    return (np.asarray(jacobian) != 0).any(-1)


def sees(net: Model, params: Any, batch: Batch, tokens: Any = None) -> np.ndarray:
    """Return bool[T, S]: whether the output at t depends on the token at s, all different: the row's, or those given [S]."""
    return reached_rows(net, params, batch)[:, np.asarray(batch.tokens[0] if tokens is None else tokens)]


def decode(net: Model, params: Any, batch: Batch, cache: Cache) -> tuple[jax.Array, Any]:
    """Return the hidden states that predict the token after each of a batch, [B, T, D], and the cache with the batch."""
    out = net.apply(params, batch, cache=cache)
    return predicting_states(out, batch), out.cache


def following(net: Model, params: Any, batch: Batch) -> jax.Array:
    """[B, T, D]: what `decode` of a batch gives, in a forward pass over it; of XLNet, predicted in the order of the text."""
    if net.family in ONE_WAY:
        return net.apply(params, batch).hidden
    tokens = jnp.pad(batch.tokens, ((0, 0), (0, 1)))
    order = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    predicted = net.apply(params, Batch(tokens=tokens, order=order, query_at=order[:, 1:])).predicted
    assert predicted is not None
    return predicted


def loss(net: Model, params: Any, batch: Batch, seeds: Any = None) -> jax.Array:
    logits = net.unembed(params, net.apply(params, batch, seeds=seeds).hidden)
    return -jax.nn.log_softmax(logits)[..., 7].mean()


def seeds(rows: int, step: int = 0) -> jax.Array:
    return example_seeds(jnp.array([3, 1], jnp.uint32), jnp.int32(step), jnp.arange(rows, dtype=jnp.uint32))
