"""The cache of every family that generates: what it gives, where it lies, and that it is written in place."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.rounding import assert_rounded_alike
from tests.support.small import GENERATORS, decode, following, random_params, shapes, small
from train.config import run_config
from train.engine import device_mesh
from zoo import sharding
from zoo.attention.masks import Mask
from zoo.batch import Batch
from zoo.generation.decode_loop import decoding_params
from zoo.generation.split_layers import split_cache
from zoo.models import Model
from zoo.nn import kv_cache
from zoo.nn.kv_cache import Cache
from zoo.nn.layer_arrays import SplitLayers

every_generator = pytest.mark.parametrize(
    "family", [family if family == "t5" else pytest.param(family, marks=pytest.mark.full) for family in GENERATORS]
)

LENGTHS = (7, 3, 12, 1)
SLOTS, GIVEN = 16, 12
NO_RANKS = {"query_ranks": None, "key_ranks": None}
NO_SEGMENTS = {"key_segments": None, "query_segments": None}
LEAKS: dict[str, tuple[dict[str, Any], ...]] = {
    "ettin_decoder": ({"causal": False}, {"window": None}, NO_SEGMENTS, {"key_positions": None}),
    "gpt": ({"causal": False}, {"window": None}, NO_SEGMENTS, {"key_positions": None}),
    "gpt_oss": ({"causal": False}, NO_SEGMENTS, {"key_positions": None}),
    "llama": ({"causal": False}, NO_SEGMENTS, {"key_positions": None}),
    "nanochat": ({"causal": False}, NO_SEGMENTS, {"key_positions": None}),
    "t5": ({"causal": False}, NO_SEGMENTS, {"key_positions": None}),
    "transformer": ({"causal": False}, NO_SEGMENTS, {"key_positions": None}),
    "xlnet": (NO_RANKS, NO_SEGMENTS),
}
"""What a mask may lack, by family: no two of them say in the same words who is behind whom."""
VARIED: dict[str, dict[str, Any]] = {
    "gpt": {"pattern": ("full", "window"), "window": 3},
    "llama": {"unrotated_every": 2, "query_key_norm": True},
}
"""Numbers with which the layers of a family differ."""


def padded(lengths: tuple[int, ...] = LENGTHS, slots: int = GIVEN) -> Batch:
    """Rows of different lengths, padded on the left with tokens that must not matter."""
    rng = np.random.default_rng(0)
    column = np.arange(slots) - (slots - np.array(lengths)[:, None])
    tokens = rng.integers(1, 300, (len(lengths), slots))
    segments, positions = column >= 0, np.maximum(column, 0)
    return Batch(tokens=jnp.int32(tokens), segments=jnp.int32(segments), positions=jnp.int32(positions))


def source(net: Model, rows: int) -> Batch | None:
    """What an encoder-decoder reads: rows of different lengths, padded on the right."""
    if "text_to_text" not in net.definition.objectives:
        return None
    tokens = np.random.default_rng(1).integers(1, 300, (rows, 9))
    real = np.arange(9) < 9 - 2 * np.arange(rows)[:, None]
    return Batch(tokens=jnp.int32(tokens), segments=jnp.int32(real))


def part(batch: Batch, first: int, last: int) -> Batch:
    """Some columns of a batch; its source is asked for once, with the first."""
    columns = jax.tree.map(lambda leaf: leaf[:, first:last], dataclasses.replace(batch, source=None))
    return columns if first else dataclasses.replace(columns, source=batch.source)


def decoded(net: Model, params: Any, batch: Batch, cuts: tuple[int, ...], *, split: bool = False) -> tuple[np.ndarray, Cache]:
    """Hidden states of a batch decoded in pieces that end at `cuts`, and the cache at the end, which may be split."""
    step, cache, states = jax.jit(functools.partial(decode, net)), net.init_cache(len(batch.tokens), SLOTS, jnp.float32), []
    for first, last in zip((0, *cuts[:-1]), cuts, strict=True):
        hidden, cache = step(params, part(batch, first, last), split_cache(cache, params) if split else cache)
        states.append(hidden)
    return np.concatenate(states, 1), cache


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[pytest.mark.planted(len(LEAKS[family])), *([] if family == "t5" else [pytest.mark.full])])
        for family in GENERATORS
    ],
)
def test_a_prompt_decoded_in_any_chunks_gives_the_hidden_states_of_each_row_alone(family: str) -> None:
    """Padded rows at once, in pieces and token by token, against the whole forward pass without padding in front."""
    net = small(family, **VARIED.get(family, {}))
    params, read = random_params(net), source(small(family), len(LENGTHS))
    batch = dataclasses.replace(padded(), source=read)
    first = GIVEN - np.array(LENGTHS)
    # What is behind a row's tokens is not seen by them.
    ahead = np.stack([np.roll(row, -start) for row, start in zip(np.asarray(batch.tokens), first, strict=True)])
    forward, alone = functools.partial(following, net), Batch(tokens=jnp.asarray(ahead), source=read)
    expected = jax.jit(forward)(params, alone)

    def check(hidden: np.ndarray, row: int) -> None:
        assert_rounded_alike(hidden[row, first[row] :], expected[row, : GIVEN - first[row]], forward, params, alone)

    # At once; four tokens, four more, and then one by one: three programs.
    for cuts in [(GIVEN,), (4, 8, *range(9, GIVEN + 1))]:
        hidden, cache = decoded(net, params, batch, cuts)
        for row in range(len(LENGTHS)):
            check(hidden, row)
        assert int(cache.at) == GIVEN
        np.testing.assert_array_equal(cache.segments, np.pad(np.asarray(batch.segments), ((0, 0), (0, SLOTS - GIVEN))))
    for leak in LEAKS[family]:
        with pytest.raises(AssertionError):
            check(leaky(net, params, batch, leak), 0)


def leaky(net: Model, params: Any, batch: Batch, changes: dict[str, Any]) -> np.ndarray:
    """Hidden states where the mask is another one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_cache, "Mask", lambda **given: Mask(**{**given, **changes}))
        return np.asarray(decoded(net, params, batch, (GIVEN,))[0])


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt", {}),
        ("t5", {"architecture": "shared"}),
        pytest.param("t5", {}, marks=pytest.mark.slow),
        pytest.param("t5", {"architecture": "decoder"}, marks=pytest.mark.slow),
        pytest.param("ettin_decoder", {}, marks=pytest.mark.slow),
        pytest.param("gpt_oss", {}, marks=pytest.mark.slow),
        pytest.param("llama", {}, marks=pytest.mark.slow),
        pytest.param("nanochat", {}, marks=pytest.mark.slow),
        pytest.param("transformer", {}, marks=pytest.mark.slow),
        pytest.param("xlnet", {}, marks=pytest.mark.slow),
    ],
)
def test_layers_that_are_split_decode_as_their_stack(family: str, changes: dict[str, Any]) -> None:
    """A prompt at once, then token by token, with a stacked cache, as beam search has, and with a split one."""
    net = small(family, **changes)
    params = random_params(net)
    split = jax.jit(lambda params: decoding_params(params, jnp.dtype("float32")))(params)
    batch = dataclasses.replace(padded(), source=source(net, len(LENGTHS)) if net.is_encoder_decoder else None)

    def forward(params: Any, batch: Batch) -> jax.Array:
        return decode(net, params, batch, net.init_cache(len(LENGTHS), SLOTS, jnp.float32))[0]

    cuts = (8, 9, 10)
    expected, _ = decoded(net, params, batch, cuts)
    for splits in (False, True):
        hidden, cache = decoded(net, split, batch, cuts, split=splits)
        assert isinstance(cache.k, SplitLayers) == splits
        assert_rounded_alike(hidden, expected, forward, params, part(batch, 0, cuts[-1]))


@pytest.mark.full
@every_generator
def test_without_segments_and_positions_tokens_follow_the_slots(family: str) -> None:
    net = small(family)
    params, batch = random_params(net), dataclasses.replace(padded((GIVEN,) * 2), source=source(net, 2))
    expected, known = decoded(net, params, batch, (5, GIVEN))
    bare, cache = decoded(net, params, Batch(tokens=batch.tokens, source=batch.source), (5, GIVEN))
    np.testing.assert_array_equal(bare, expected)
    jax.tree.map(np.testing.assert_array_equal, cache, known)


def test_an_empty_cache() -> None:
    for net in map(small, GENERATORS):
        cache = net.init_cache(3, SLOTS, jnp.bfloat16)
        for array in (cache.k, cache.v):
            layers, rows, heads, slots, _ = array.shape
            expected = (jnp.bfloat16, net.config.layers, 3, getattr(net.config, "kv_heads", net.config.heads), SLOTS)
            assert (array.dtype, layers, rows, heads, slots) == expected
        for array in (cache.segments, cache.positions):
            assert (array.dtype, array.shape) == (jnp.int32, (3, SLOTS))
        assert not any(leaf.any() for leaf in jax.tree.leaves(cache))
        with pytest.raises(ValueError, match="17 tokens into a cache of 16 slots"):
            jax.eval_shape(functools.partial(decode, net), shapes(net), Batch(tokens=jnp.zeros((3, 17), jnp.int32)), cache)


def first_call(net: Model, params: Any, tokens: jax.Array) -> Any:
    """What `decode` gives of an empty cache, and of a source as long as it if there must be one."""
    read = Batch(tokens=jnp.tile(tokens, 512)) if "text_to_text" in net.definition.objectives else None
    return decode(net, params, Batch(tokens=tokens, source=read), net.init_cache(8, 512, jnp.float32))


def compiled(net: Model, program: Any, *arguments: Any, mesh: tuple[int, int, int] = (1, 1, 1), **options: Any) -> Any:
    """`program(params, tokens, *arguments)` for 8 rows of one token, on a mesh (data, fsdp, tensor)."""
    devices = device_mesh.make_mesh(
        run_config.Mesh(**dict(zip(("data", "fsdp", "tensor"), mesh, strict=True))), jax.devices()[: np.prod(mesh)]
    )

    def at(shape: Any, place: Any) -> Any:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)

    params = jax.tree.map(at, shapes(net), sharding.shardings(devices, shapes(net), net.definition.sharding))
    tokens = at(jax.ShapeDtypeStruct((8, 1), jnp.int32), device_mesh.batch_sharding(devices))
    with jax.set_mesh(devices):
        return jax.jit(program, **options).lower(params, tokens, *arguments).compile()


@every_generator
def test_the_cache_is_written_in_place(family: str) -> None:
    """It is given back in the memory it came in, and no second one is made on the way (one layer's part is)."""
    net = small(family)
    cache = jax.eval_shape(lambda params: first_call(net, params, jnp.zeros((8, 1), jnp.int32))[1], shapes(net))
    program = compiled(
        net, lambda params, tokens, cache: decode(net, params, Batch(tokens=tokens), cache), cache, donate_argnums=2
    )
    memory, size = program.memory_analysis(), sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    assert memory.alias_size_in_bytes >= size
    # Keys and values of one layer, read out and laid out anew for the products; all layers' would be twice as many again. And the
    # scores and weights of two attentions.
    scores = 4 * 8 * net.config.heads * 512
    assert memory.temp_size_in_bytes < 2 * size / net.config.layers + 4 * scores


@pytest.mark.planted
@every_generator
def test_a_split_cache_is_written_and_read_in_place(family: str) -> None:
    """No layer's keys and values are copied before they are read, as they are from a stack."""
    net = small(family)
    params = jax.eval_shape(lambda params: decoding_params(params, jnp.dtype("float32")), shapes(net))
    tokens = jnp.zeros((8, 1), jnp.int32)
    cache = jax.eval_shape(lambda params: first_call(net, params, tokens)[1], shapes(net))
    split = jax.eval_shape(lambda cache: split_cache(cache, params), cache)

    def temporaries(cache: Any) -> int:
        step = jax.jit(lambda params, tokens, cache: decode(net, params, Batch(tokens=tokens), cache), donate_argnums=2)
        memory: Any = step.lower(params, tokens, cache).compile().memory_analysis()
        assert memory.alias_size_in_bytes >= sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
        return memory.temp_size_in_bytes

    assert isinstance(split.k, SplitLayers)
    a_layer = split.k[0].size * split.k.dtype.itemsize
    assert temporaries(split) < a_layer <= temporaries(cache)


ON_MESHES = {("gpt", (8, 1, 1)), ("xlnet", (8, 1, 1)), ("t5", (2, 2, 2)), ("transformer", (2, 2, 2))}
"""The cases of the full tier: every family and every mesh."""


@pytest.mark.parametrize(
    ("family", "mesh"),
    [
        pytest.param(family, mesh, marks=pytest.mark.full if (family, mesh) in ON_MESHES else pytest.mark.slow)
        for family in GENERATORS
        for mesh in ((8, 1, 1), (2, 2, 2))
    ],
)
def test_the_cache_is_sharded_over_rows_and_heads(family: str, mesh: tuple[int, int, int]) -> None:
    """Rows over data and fsdp, heads over tensor, from the first call on; rows that need no others' devices ask none."""
    net = small(family)
    program = compiled(net, functools.partial(first_call, net), mesh=mesh)
    _, found = program.output_shardings
    for name, axes in {"k": (None, sharding.BATCH, "tensor"), "segments": (sharding.BATCH,)}.items():
        leaf, actual = getattr(net.init_cache(8, 1, jnp.float32), name), getattr(found, name)
        wanted = jax.NamedSharding(actual.mesh, jax.sharding.PartitionSpec(*axes))
        assert actual.is_equivalent_to(wanted, leaf.ndim), name
    assert found.v == found.k and found.positions == found.segments
    if found.source is not None:
        for name, ndim in {"k": 5, "v": 5, "segments": 2}.items():
            assert getattr(found.source, name).is_equivalent_to(getattr(found, name), ndim), name
    if mesh == (8, 1, 1):
        assert not re.findall(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter", program.as_text())
