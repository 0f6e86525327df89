"""Published sizes of the encoder-decoders: exact counts, and where each number comes from."""

import dataclasses
from typing import Any

import pytest

from zoo import catalogue, configs, models
from zoo.configs import t5, transformer

COUNTS = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "t5-v1.1-small": 76_961_152,
    "t5-v1.1-base": 247_577_856,
    "t5-v1.1-large": 783_150_080,
    "t5-v1.1-xl": 2_849_757_184,
    "t5-v1.1-xxl": 11_135_332_352,
    "transformer-base": 63_045_632,
    "transformer-big": 214_171_648,
}
"""Counted tensor by tensor from the released shapes; of T5 1.1 with the output's own table."""

UNPRINTED = {"t5-3b", "t5-11b", "transformer-base", "transformer-big"}
"""Those whose exact count no source prints."""

BODIES = {
    "t5-v1.1-small": 60_511_616,
    "t5-v1.1-base": 222_903_552,
    "t5-v1.1-large": 750_251_008,
    "t5-v1.1-xl": 2_783_959_040,
    "t5-v1.1-xxl": 11_003_736_064,
}
"""Without that table."""

BIASED = {"transformer-base": 63_082_496, "transformer-big": 214_245_376}
"""With biases in attention, of which the paper does not speak."""

SIZES = {name: size for family in (t5, transformer) for name, size in family.SIZES.items()}


@pytest.mark.parametrize("name", COUNTS)
def test_count_is_exact(name: str) -> None:
    assert models.parameter_count(SIZES[name].config) == COUNTS[name]
    assert SIZES[name].published_count == (None if name in UNPRINTED else COUNTS[name])


@pytest.mark.parametrize("name", BODIES)
def test_count_without_the_second_table(name: str) -> None:
    assert models.parameter_count(dataclasses.replace(SIZES[name].config, tied=True)) == BODIES[name]


@pytest.mark.parametrize("name", BIASED)
def test_count_with_biases_in_attention(name: str) -> None:
    assert models.parameter_count(dataclasses.replace(SIZES[name].config, attention_bias=True)) == BIASED[name]
    assert f"{BIASED[name]:,}" in SIZES[name].note


def test_a_count_does_not_tell_two_forms_apart() -> None:
    """Three gated matrices of 2048 are as large as two of 3072."""
    assert COUNTS["t5-base"] == BODIES["t5-v1.1-base"]
    assert configs.named(SIZES["t5-base"].config) == "t5-base"
    assert configs.named(dataclasses.replace(SIZES["t5-v1.1-base"].config, dropout=0.0)) == "t5-v1.1-base"


def test_every_size_but_our_own_is_counted_here() -> None:
    assert set(SIZES) == set(COUNTS) | {"t5-nano", "transformer-nano"}


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("t5-3b", dict(vocab=32_128, layers=24, decoder_layers=24, width=1024, heads=32, head=128, ffn=16_384)),
        ("t5-11b", dict(heads=128, head=128, ffn=65_536, activation="relu", gated=False, tied=True)),
        ("t5-v1.1-small", dict(layers=8, width=512, heads=6, head=64, ffn=1024, activation="gelu_tanh", gated=True, tied=False)),
        ("t5-v1.1-xxl", dict(layers=24, width=4096, heads=64, head=64, ffn=10_240, buckets=32, max_distance=128, eps=1e-6)),
        ("transformer-base", dict(layers=6, width=512, heads=8, ffn=2048, dropout=0.1, activation="relu", attention_bias=False)),
        ("transformer-big", dict(layers=6, width=1024, heads=16, ffn=4096, dropout=0.3, sinusoids="interleaved")),
    ],
)
def test_numbers_are_the_released_ones(name: str, numbers: dict[str, Any]) -> None:
    cfg = SIZES[name].config
    assert {field: getattr(cfg, field) for field in numbers} == numbers


@pytest.mark.parametrize("name", SIZES)
def test_sources_and_reasons_are_given(name: str) -> None:
    size = SIZES[name]
    fields = {field.name for field in dataclasses.fields(size.config)} - {"compute"}
    unstated = {"vocab", "attention_bias", "output_bias", "eps"} if name.startswith("transformer") else set()
    assert size.source and all(size.assumed.values())
    assert set(size.assumed) == (fields if name.endswith("-nano") else unstated)


@pytest.mark.parametrize("name", SIZES)
def test_pages_fit_80_columns(name: str) -> None:
    assert max(map(len, catalogue.render(name).splitlines())) <= 80


def test_the_nanos_are_small() -> None:
    for name in ("t5-nano", "transformer-nano"):
        assert 2e6 < models.parameter_count(SIZES[name].config) < 10e6
