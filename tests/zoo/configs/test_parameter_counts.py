"""Parameter counts of the sizes: those of the models, those that are stored, and those that sources print."""

import dataclasses
from typing import Any

import pytest

from tests.zoo.configs.published_counts import (
    BIASED,
    ENCODER_DECODERS,
    ENCODERS,
    ETTIN_DECODER,
    FLAN,
    GPT,
    GPT_OSS,
    GRID,
    LLAMA,
    MODERNBERT,
    NAMED,
    NANOCHAT,
    ONE_TABLE,
    SIZES,
    TABLE_2_1,
    XLNET,
)
from zoo import configs, models
from zoo.cli import parameter_counts

PUBLISHED_COUNTS = {
    **{name: GPT[name] for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")},
    **{name: body for name, (body, *_) in ENCODERS.items() if name not in NAMED and name != "distilroberta-base"},
    **{name: ENCODER_DECODERS[name] for name in ("t5-small", "t5-base", "t5-large", *ONE_TABLE, *FLAN)},
    **{name: ENCODER_DECODERS[name] for name in ("mt5-small", "mt5-base", "byt5-small", "byt5-base")},
}
"""Sizes whose exact count a source prints."""


def grid_count(layers: int, width: int) -> int:
    """Return the parameters of a body of Turc et al. with its pooler."""
    return body_count(30_522, 512, 2, layers, width) + width * width + width


def body_count(vocab: int, context: int, types: int, layers: int, width: int) -> int:
    """Return the parameters of a released body without a pooler, whose feed-forward layers have four times the width."""
    norm = 2 * width
    attention = 4 * (width * width + width)
    mlp = 2 * 4 * width * width + 4 * width + width
    return (vocab + context + types) * width + norm + layers * (attention + mlp + 2 * norm)


def expected_counts() -> list[tuple[str, dict[str, Any], int]]:
    """Return (size, changed fields, parameters) of all that is counted above."""
    tasks = ("body", "pretraining", "masked")
    heads = [(name, zip(tasks, counts, strict=True)) for name, counts in ENCODERS.items()]
    heads += [(name, zip(("body", "permutation"), counts, strict=True)) for name, counts in XLNET.items()]
    heads += [(name, zip(("body", "masked"), counts, strict=True)) for name, counts in MODERNBERT.items()]
    return [
        *((name, {}, count) for name, count in (GPT | LLAMA | ETTIN_DECODER | NANOCHAT | ENCODER_DECODERS).items()),
        *((name, {}, count) for name, (count, _) in GPT_OSS.items()),
        *((f"{name}-alternating", {}, GPT[name]) for name in TABLE_2_1),
        *((name, {"tied": True}, count) for name, count in ONE_TABLE.items()),
        *((name, {"attention_bias": True}, count) for name, count in BIASED.items()),
        *((name, {"task": task}, count) for name, pairs in heads for task, count in pairs if count is not None),
        *((name, {"task": "body"}, grid_count(*shape)) for name, shape in GRID.items()),
    ]


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.full] if name in ("bert", "t5") else []) for name in configs.families()]
)
def test_parameter_counts_are_exact(family: str) -> None:
    sizes = configs.family(family).SIZES
    cases = [(name, changes, count) for name, changes, count in expected_counts() if name in sizes]
    assert {name for name, _, _ in cases} == sizes.keys() - {f"{family.replace('_', '-')}-nano"}, "a size is not counted here"
    for name, changes, count in cases:
        assert models.parameter_count(dataclasses.replace(sizes[name].config, **changes)) == count, (name, changes)


@pytest.mark.parametrize("names", [("bert-nano", "gpt2", "t5-small"), pytest.param(tuple(SIZES), marks=pytest.mark.full)])
def test_stored_counts_are_those_of_the_models(names: tuple[str, ...]) -> None:
    """`python -m zoo.cli.parameter_counts` writes them."""
    assert {name: parameter_counts.parameter_count(name, SIZES[name]) for name in names} == {
        name: models.parameter_count(SIZES[name].config) for name in names
    }


def test_a_size_is_counted_only_if_its_configuration_is_not_the_stored_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameter_counts, "count_parameters", lambda size: -1)
    assert all(parameter_counts.parameter_count(name, size) > 0 for name, size in SIZES.items()), (
        "run python -m zoo.cli.parameter_counts"
    )
    assert parameter_counts._stored().keys() == SIZES.keys()
    size = SIZES["gpt2"]
    changed = dataclasses.replace(size, config=dataclasses.replace(size.config, layers=13))
    assert parameter_counts.parameter_count("gpt2", changed) == parameter_counts.parameter_count("gpt2-new", size) == -1


def test_counts_of_sources() -> None:
    published = {name: size.published_count for name, size in SIZES.items() if size.published_count is not None}
    assert published == PUBLISHED_COUNTS
    assert len(SIZES) == sum(len(configs.family(family).SIZES) for family in configs.families()), "a name is there twice"
    assert ENCODERS["distilbert-base-uncased"][0] == body_count(30_522, 512, 0, 6, 768)
    assert ENCODERS["roberta-large"][0] == body_count(50_265, 514, 1, 24, 1024) + 1024 * 1024 + 1024


@pytest.mark.parametrize("architecture", ["encoder_decoder", "shared", "decoder"])
def test_parameter_counts_of_the_architectures_of_t5(architecture: Any) -> None:
    """Table 2 of the paper: two stacks have about twice the parameters of one, and the shared one cross-attention besides."""
    table, norms, relative = 32_128 * 768, 768, 32 * 12
    layer = 4 * 768 * 768 + 2 * 768 * 3072 + 2 * norms
    cross = 4 * 768 * 768 + norms
    expected = {
        "encoder_decoder": table + 12 * (2 * layer + cross) + 2 * (norms + relative),
        "shared": table + 12 * (layer + cross) + norms + 2 * relative,
        "decoder": table + 12 * layer + norms + relative,
    }
    config = dataclasses.replace(SIZES["t5-base"].config, architecture=architecture)
    assert models.parameter_count(config) == expected[architecture]


VASWANI_TABLE_3: dict[str, tuple[dict[str, Any], int, float]] = {
    # 6 layers with one attention and 6 with two, each with 512 columns of queries and as many of keys less.
    "B, d_k 16": ({"head_dim": 16}, 63_045_632 - 18 * 2 * 512 * (512 - 128), 58),
    "B, d_k 32": ({"head_dim": 32}, 63_045_632 - 18 * 2 * 512 * (512 - 256), 60),
    "C, N 2": ({"layers": 2}, 63_045_632 - 4 * (3_150_336 + 4_199_936), 36),
    "E": ({"positions": "learned", "max_positions": 256}, 63_045_632 + 2 * 256 * 512, 65),
}
"""Row -> (changes of the base, parameters counted tensor by tensor, millions of parameters as printed)."""


@pytest.mark.parametrize("row", VASWANI_TABLE_3)
def test_rows_of_the_transformer_have_the_printed_parameters(row: str) -> None:
    """Less than the base, for which the paper prints 65 million, by what it prints, to the million."""
    changes, count, millions = VASWANI_TABLE_3[row]
    base = SIZES["transformer-base"].config
    assert models.parameter_count(dataclasses.replace(base, **changes)) == count
    assert abs((ENCODER_DECODERS["transformer-base"] - count) / 1e6 - (65 - millions)) < 1
    assert dataclasses.replace(base, head_dim=64).key_size == base.key_size == base.head == 64
