"""Published sizes of the encoders: exact counts with and without their heads, and where each number comes from."""

import dataclasses
import json
from typing import Any

import pytest

from zoo import catalogue, configs, models
from zoo.configs import bert, distilbert, roberta

COUNTS = {
    "bert-base-uncased": (109_482_240, 110_106_428, 109_514_298),
    "bert-base-cased": (108_310_272, 108_932_934, 108_340_804),
    "bert-large-uncased": (335_141_888, 336_226_108, 335_174_458),
    "bert-large-cased": (333_579_264, 334_661_958, 333_610_308),
    "bert-base-multilingual-cased": (177_853_440, 178_566_653, 177_974_523),
    "bert-base-chinese": (102_267_648, 102_882_442, 102_290_312),
    "bert-tiny": (4_385_920, 4_433_468, 4_416_698),
    "bert-mini": (11_170_560, 11_267_900, 11_201_594),
    "bert-small": (28_763_648, 29_058_876, 28_795_194),
    "bert-medium": (41_373_184, 41_668_412, 41_404_730),
    "roberta-base": (124_645_632, None, 124_697_433),
    "roberta-large": (355_359_744, None, 355_412_057),
    "distilroberta-base": (82_118_400, None, 82_170_201),
    "distilbert-base-uncased": (66_362_880, None, 66_985_530),
    "distilbert-base-cased": (65_190_912, None, 65_812_036),
}
"""Counted tensor by tensor from the released shapes: the body, with the two pretraining heads of BERT, with the masked head."""

RELEASED = {name for name in COUNTS if name not in ("bert-tiny", "bert-mini", "bert-small", "bert-medium", "distilroberta-base")}
"""Those whose count of the body is also printed with the checkpoint."""

GRID = [(layers, width) for layers in (2, 4, 6, 8, 10, 12) for width in (128, 256, 512, 768)]
NAMED = {"bert-tiny": (2, 128), "bert-mini": (4, 256), "bert-small": (4, 512), "bert-medium": (8, 512)}
SIZES = {name: size for family in (bert, roberta, distilbert) for name, size in family.SIZES.items()}


def count(name: str, task: Any) -> int:
    return models.parameter_count(dataclasses.replace(SIZES[name].config, task=task))


@pytest.mark.parametrize("name", COUNTS)
def test_count_is_exact(name: str) -> None:
    body, pretraining, masked = COUNTS[name]
    assert count(name, "body") == body
    assert count(name, "masked") == masked
    assert pretraining is None or count(name, "pretraining") == pretraining


def body(vocab: int, context: int, types: int, layers: int, width: int) -> int:
    """Parameters of a released body, of feed-forward layers of four times the width, written out; the pooler left out."""
    norm = 2 * width
    attention = 4 * (width * width + width)
    mlp = 2 * 4 * width * width + 4 * width + width
    return (vocab + context + types) * width + norm + layers * (attention + mlp + 2 * norm)


@pytest.mark.parametrize(("layers", "width"), GRID)
def test_the_small_berts_are_a_grid(layers: int, width: int) -> None:
    """All 24 of Turc et al.: the count by hand, with the dense layer of the pooler; heads of 64."""
    name = f"bert-uncased-l{layers}-h{width}"
    assert count(name, "body") == body(30_522, 512, 2, layers, width) + width * width + width
    assert (SIZES[name].config.head, SIZES[name].config.ffn) == (64, 4 * width)


def test_names_of_the_grid_are_its_sizes() -> None:
    for name, (layers, width) in NAMED.items():
        assert SIZES[name].config == SIZES[f"bert-uncased-l{layers}-h{width}"].config
        assert f"bert-uncased-l{layers}-h{width} of the grid" in SIZES[name].note


def test_counts_by_hand_are_those_of_the_other_families_too() -> None:
    """No pooler and no types in DistilBERT; two more rows of positions and one type in RoBERTa."""
    assert count("distilbert-base-uncased", "body") == body(30_522, 512, 0, 6, 768)
    assert count("roberta-large", "body") == body(50_265, 514, 1, 24, 1024) + 1024 * 1024 + 1024


def test_every_size_but_our_own_is_counted_here() -> None:
    grid = {f"bert-uncased-l{layers}-h{width}" for layers, width in GRID}
    assert len(grid) == 24
    assert set(SIZES) == set(COUNTS) | grid | {"bert-nano", "roberta-nano", "distilbert-nano"}


def test_published_counts_are_those_of_the_body() -> None:
    published = {name: size.published_count for name, size in SIZES.items() if size.published_count is not None}
    assert published == {name: COUNTS[name][0] for name in RELEASED}


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        (
            "bert-base-uncased",
            dict(vocab=30_522, context=512, types=2, position_offset=0, eps=1e-12, dropout=0.1, head_dropout=0.1),
        ),
        ("bert-large-cased", dict(vocab=28_996, layers=24, width=1024, heads=16, ffn=4096, activation="gelu")),
        (
            "roberta-base",
            dict(vocab=50_265, context=512, types=1, position_offset=2, eps=1e-5, dropout=0.1, attention_dropout=0.1),
        ),
        ("distilroberta-base", dict(vocab=50_265, layers=6, width=768, heads=12, ffn=3072)),
        ("distilbert-base-cased", dict(vocab=28_996, layers=6, types=0, eps=1e-12, dropout=0.1, head_dropout=0.2)),
    ],
)
def test_numbers_are_the_released_ones(name: str, numbers: dict[str, Any]) -> None:
    cfg = SIZES[name].config
    assert {field: getattr(cfg, field) for field in numbers} == numbers


@pytest.mark.parametrize("name", SIZES)
def test_sources_and_reasons_are_given(name: str) -> None:
    """Nobody published how fresh weights of these were drawn; of a nano everything is ours."""
    size = SIZES[name]
    fields = {field.name for field in dataclasses.fields(size.config)} - {"compute"}
    assert size.source and all(size.assumed.values())
    assert set(size.assumed) == (fields if name.endswith("-nano") else {"initializer"})
    assert size.config.task == ({"bert": "pretraining"}.get(name.split("-")[0], "masked") if name.endswith("-nano") else "body")
    assert size.objective == ("distilled" if name.startswith("distil") else "masked")


@pytest.mark.parametrize("name", SIZES)
def test_a_body_is_named_by_its_numbers_whatever_its_head(name: str) -> None:
    """A folder without a name of its own gets the published one, be it a grid's."""
    cfg = dataclasses.replace(SIZES[name].config, task="masked", dropout=0.3, initializer="normal")
    assert SIZES[configs.named(cfg)].config == SIZES[name].config
    assert configs.named(dataclasses.replace(cfg, layers=31)) is None


def test_a_student_is_half_its_teacher() -> None:
    """What distillation copies must fit: but for the layers, student and teacher have the same numbers."""
    for student, teacher in (("distilbert-nano", "bert-nano"), ("distilbert-base-uncased", "bert-base-uncased")):
        small, large = SIZES[student].config, SIZES[teacher].config
        assert 2 * small.layers == large.layers
        for field in ("vocab", "context", "width", "heads", "ffn", "activation", "eps"):
            assert getattr(small, field) == getattr(large, field)


@pytest.mark.parametrize("name", SIZES)
def test_pages_fit_80_columns(name: str) -> None:
    assert max(map(len, catalogue.render(name).splitlines())) <= 80


def test_listing_and_json_name_every_size_with_its_count() -> None:
    lines = {line.split()[0]: line.split() for line in catalogue.render().splitlines() if line}
    described = {entry["name"]: entry for entry in json.loads(catalogue.render(as_json=True))}
    for name, (parameters, *_) in COUNTS.items():
        assert lines[name][1] == f"{parameters:,}"
        assert described[name]["parameters"] == parameters
    assert lines["bert-base-uncased"][2:] == ["12x768", "12x64", "512", "30522", "1"]
    assert lines["roberta-nano"][-1] == "all"
    assert described["bert-nano"]["fields"]["task"]["value"] == "pretraining"
