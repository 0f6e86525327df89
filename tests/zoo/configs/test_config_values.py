"""Values that a model may not have are refused with their option, their value and what to choose."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests.support.processes import run_python
from tests.support.small import random_params, small
from zoo.batch import Batch
from zoo.configs import LARGEST
from zoo.errors import BadInput

NAN = float("nan")
SHARE, EPS, PAIRS = "choose a share of at least 0 and less than 1", "choose 0 < eps <= 1", "choose an even number"
WINDOWS = "the pattern has window layers; choose 1 to 32 tokens"

BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("gpt", {"embedding_dropout": -0.1}, "--model.embedding-dropout -0.1: ", SHARE),
    ("gpt", {"pattern": ()}, "--model.pattern (): ", "name layers, each one of full, window"),
    ("gpt", {"pattern": ("full",) * 3}, "--model.pattern full full full: ", "its length, 3, must divide --model.layers 2"),
    ("gpt", {"pattern": ("full", "window")}, "--model.window 0: ", WINDOWS),
    ("gpt", {"pattern": ("window",), "window": 33}, "--model.window 33: ", WINDOWS),
    ("ettin_decoder", {"heads": 3}, "--model.heads 3: ", "it must divide --model.width 32"),
    ("ettin_decoder", {"heads": 32}, "--model.heads 32: ", "heads rotate in pairs of dimensions, and have 1"),
    ("ettin_decoder", {"layers": 1}, "--model.layers 1: ", "choose 2 or more: the first one has parameters of its own"),
    ("ettin_decoder", {"window": 0}, "--model.window 0: ", "choose 1 to 524,288 tokens"),
    ("ettin_decoder", {"local_base": 0.5}, "--model.local-base 0.5: ", "choose 1 to 1e12"),
    ("ettin_decoder", {"labels": ("a", "b")}, "--model.labels a b: ", "a reward model has one score"),
    ("gpt_oss", {"kv_heads": 3}, "--model.kv-heads 3: ", "choose a divisor of --model.heads 4"),
    ("gpt_oss", {"head": 7}, "--model.head 7: ", PAIRS),
    ("gpt_oss", {"experts": 0}, "--model.experts 0: ", "choose 1 to 4,096 experts"),
    ("gpt_oss", {"active_experts": 5}, "--model.active-experts 5: ", "choose 1 to --model.experts 4"),
    ("gpt_oss", {"window": 0}, "--model.window 0: ", "choose 1 to 1,048,576 tokens"),
    ("gpt_oss", {"limit": 0.0}, "--model.limit 0.0: ", "choose more than 0, to 1e6"),
    ("gpt_oss", {"base": 1.0}, "--model.base 1.0: ", "choose more than 1, to 1e12"),
    ("gpt_oss", {"scaling_factor": 0.5}, "--model.scaling-factor 0.5: ", "choose 1 to 1e6"),
    ("gpt_oss", {"beta_slow": 0.0}, "--model.beta-slow 0.0: ", "choose more than 0, to 1e6"),
    ("gpt_oss", {"beta_fast": 1.0}, "--model.beta-fast 1.0: ", "choose more than --model.beta-slow 1.0, to 1e6"),
    ("gpt_oss", {"original_context": 0}, "--model.original-context 0: ", "choose 1 to 1,048,576 positions"),
    ("gpt_oss", {"router_loss": -1.0}, "--model.router-loss -1.0: ", "choose a factor of 0 to 100"),
    ("gpt_oss", {"labels": ("a", "b")}, "--model.labels a b: ", "a reward model has one score"),
    ("llama", {"kv_heads": 3}, "--model.kv-heads 3: ", "choose a divisor of --model.heads 4"),
    ("llama", {"head": 7}, "--model.head 7: ", PAIRS),
    (
        "llama",
        {"qkv_bias": True, "attention_bias": True},
        "--model.qkv-bias True: ",
        "--model.attention-bias adds these biases too",
    ),
    ("llama", {"base": 0.5}, "--model.base 0.5: ", "choose 1 to 1e12"),
    ("llama", {"scaling_factor": 2.0}, "--model.scaling-factor 2.0: ", "--model.scaling none does not use it; choose 1.0"),
    (
        "llama",
        {"scaling": "linear", "original_context": 9},
        "--model.original-context 9: ",
        "--model.scaling linear does not use it",
    ),
    (
        "llama",
        {"scaling": "llama3", "low_freq_factor": 4.0},
        "--model.high-freq-factor 4.0: ",
        "choose more than --model.low-freq",
    ),
    ("llama", {"scaling": "llama3", "original_context": 0}, "--model.original-context 0: ", "choose 1 to 1,048,576 positions"),
    ("llama", {"unrotated_every": -1}, "--model.unrotated-every -1: ", "choose 0 (never) to 512 layers"),
    ("llama", {"labels": ("a", "b")}, "--model.labels a b: ", "a reward model has one score"),
    ("t5", {"buckets": 3}, "--model.buckets 3: ", "choose 4 to 65,536"),
    ("t5", {"max_distance": 16}, "--model.max-distance 16: ", "choose more than 16 (half of --model.buckets)"),
    ("t5", {"architecture": "shared", "decoder_layers": 3}, "--model.decoder-layers 3: ", "shared has one stack; choose"),
    ("t5", {"dropout": 1.0}, "--model.dropout 1.0: ", SHARE),
    ("t5", {"eps": 0.0}, "--model.eps 0.0: ", EPS),
    ("transformer", {"width": 33, "heads": 3}, "--model.width 33: ", PAIRS),
    ("transformer", {"heads": 5}, "--model.heads 5: ", "it must divide --model.width 32"),
    ("transformer", {"head_dim": -1}, "--model.head-dim -1: ", "choose 0 (width / heads) to 65,536"),
    ("transformer", {"dropout": -0.1}, "--model.dropout -0.1: ", SHARE),
    ("transformer", {"eps": 2.0}, "--model.eps 2.0: ", EPS),
    ("xlnet", {"width": 15, "heads": 3}, "--model.width 15: ", PAIRS),
    ("xlnet", {"memory": -1}, "--model.memory -1: ", "choose 0 (no memory) to 1,048,576 positions"),
    ("xlnet", {"reuse": -1}, "--model.reuse -1: ", "choose 0 (whole rows) to 1,048,576 positions"),
    ("xlnet", {"heads": 3}, "--model.heads 3: ", "it must divide --model.width 32"),
    ("bert", {"layers": 0}, "--model.layers 0: ", "choose 1 to 512"),
    ("bert", {"vocab": (1 << 21) + 1}, "--model.vocab 2097153: ", "choose 1 to 2,097,152"),
    ("bert", {"types": -1}, "--model.types -1: ", "choose 0 (none) to 1,024"),
    ("bert", {"position_offset": 1025}, "--model.position-offset 1025: ", "choose 0 to 1,024"),
    ("bert", {"head_dropout": NAN}, "--model.head-dropout nan: ", SHARE),
    ("bert", {"eps": 0.0}, "--model.eps 0.0: ", EPS),
    ("bert", {"labels": ("a",)}, "--model.labels a: ", "only sequence and tokens do"),
    ("bert", {"task": "tokens", "labels": ("a", "a")}, "--model.labels a a: ", "name each label once"),
]


@pytest.mark.parametrize(("family", "changes", "value", "fix"), BAD)
def test_a_value_out_of_range_is_refused(family: str, changes: dict[str, Any], value: str, fix: str) -> None:
    with pytest.raises(BadInput) as refusal:
        small(family, **changes)
    message = str(refusal.value)
    assert message.startswith(value) and fix in message and "\n" not in message


@pytest.mark.parametrize(("family", "count"), [("gpt", 7), ("t5", 7), ("transformer", 6)])
def test_whole_numbers_have_limits(family: str, count: int) -> None:
    fields = {field.name for field in dataclasses.fields(small(family).config)} & LARGEST.keys()
    assert len(fields) == count
    for field in sorted(fields):
        largest = LARGEST[field]
        for value in (0, -1, largest + 1):
            with pytest.raises(BadInput) as refusal:
                small(family, **{field: value})
            assert str(refusal.value) == f"--model.{field.replace('_', '-')} {value}: choose 1 to {largest:,}"
        if family == "gpt":
            assert all(getattr(small("gpt", **{field: limit}).config, field) == limit for limit in (1, largest))


def test_values_of_another_type_are_refused_without_a_type_checker() -> None:
    """In a new process: here the type checker of the tests would refuse them first."""
    bad = {"activation": "swish", "pattern": ("full", "band"), "layers": NAN}
    code = (
        "import dataclasses; from zoo.configs.gpt import SIZES; from zoo.errors import BadInput; nan = float('nan')\n"
        f"for field, value in {bad!r}.items():\n"
        "    try: dataclasses.replace(SIZES['gpt-nano'].config, **{field: value})\n"
        "    except BadInput as wrong: print(wrong)"
    )
    assert run_python("-c", code).stdout.splitlines() == [
        "--model.activation swish: choose one of gelu, gelu_tanh, relu, relu2, silu",
        "--model.pattern full band: name layers, each one of full, window",
        "--model.layers nan: choose 1 to 512",
    ]


def test_rows_of_xlnet_have_no_limit() -> None:
    net = small("xlnet")
    batch = Batch(tokens=jnp.ones((1, 3000), jnp.int32))
    assert jax.eval_shape(lambda: net.apply(random_params(net), batch).hidden).shape == (1, 3000, 32)
