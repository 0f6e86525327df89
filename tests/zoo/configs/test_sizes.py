"""Published sizes: the numbers of the sources, what is assumed, and what `zoo models` shows of them."""

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tests.zoo.configs.published_counts import (
    BIASED,
    ENCODER_DECODERS,
    ENCODERS,
    ETTIN_DECODER,
    GRID,
    MODERNBERT,
    NAMED,
    ONE_TABLE,
    SIZES,
    TABLE_2_1,
    XLNET,
)
from zoo import configs, models
from zoo.cli import models_table
from zoo.configs import gpt, xlnet
from zoo.errors import BadInput


def test_rows_of_gpt3_have_the_printed_values() -> None:
    """Where a row contradicts itself, the changed field is marked as assumed, and a literal form keeps the printed value."""
    for name, row in TABLE_2_1.items():
        contradictory = name in ("gpt3-xl", "gpt3-13b")
        for form in ("", "-alternating", *(["-literal"] if contradictory else [])):
            size = SIZES[name + form]
            for field, printed in zip(("layers", "width", "heads", "head"), row, strict=True):
                assert (getattr(size.config, field) == printed) != (field in size.assumed), (name, form, field)
            assert (size.config.ffn, size.config.context) == (4 * size.config.width, 2048)
            assert ("contradicts itself" in size.note) == contradictory
        dense, alternating = SIZES[name].config, SIZES[f"{name}-alternating"].config
        assert alternating == dataclasses.replace(dense, pattern=("full", "window"), window=256)
    for name, size in gpt.SIZES.items():
        fills = size.config.heads * size.config.head == size.config.width
        assert fills != name.endswith("-literal"), name


RELEASED: dict[str, dict[str, Any]] = {
    "bert-base-uncased": dict(vocab=30_522, context=512, types=2, position_offset=0, eps=1e-12, dropout=0.1, head_dropout=0.1),
    "bert-large-cased": dict(vocab=28_996, layers=24, width=1024, heads=16, ffn=4096, activation="gelu"),
    "roberta-base": dict(vocab=50_265, context=512, types=1, position_offset=2, eps=1e-5, dropout=0.1, attention_dropout=0.1),
    "distilroberta-base": dict(vocab=50_265, layers=6, width=768, heads=12, ffn=3072),
    "xlm-roberta-large": dict(vocab=250_002, context=512, layers=24, heads=16, types=1, position_offset=2, eps=1e-5),
    "distilbert-base-cased": dict(vocab=28_996, layers=6, types=0, eps=1e-12, dropout=0.1, head_dropout=0.2),
    "modernbert-base": dict(vocab=50_368, context=8192, local_window=128, global_base=160_000.0, local_base=10_000.0, heads=12),
    "ettin-encoder-1b": dict(context=7999, layers=28, width=1792, ffn=3840, heads=28, global_every=3, local_base=160_000.0),
    "ettin-decoder-17m": dict(vocab=50_368, context=7999, heads=4, window=64, global_base=160_000.0, local_base=10_000.0),
    "ettin-decoder-1b": dict(context=7999, layers=28, width=1792, ffn=3840, heads=28, global_every=3, local_base=160_000.0),
    "t5-3b": dict(vocab=32_128, layers=24, decoder_layers=24, width=1024, heads=32, head=128, ffn=16_384),
    "t5-11b": dict(heads=128, head=128, ffn=65_536, activation="relu", gated=False, tied=True),
    "t5-v1.1-small": dict(layers=8, width=512, heads=6, head=64, ffn=1024, activation="gelu_tanh", gated=True, tied=False),
    "t5-v1.1-xxl": dict(layers=24, width=4096, heads=64, head=64, ffn=10_240, buckets=32, max_distance=128, eps=1e-6),
    "mt5-large": dict(vocab=250_112, layers=24, width=1024, heads=16, head=64, ffn=2816, activation="gelu_tanh", tied=False),
    "byt5-large": dict(vocab=384, layers=36, decoder_layers=12, width=1536, heads=16, head=64, ffn=3840, dropout=0.1),
    "umt5-base": dict(vocab=256_384, layers=12, width=768, heads=12, ffn=2048, bias_per_layer=True, buckets=32),
    "flan-ul2": dict(vocab=32_128, layers=32, decoder_layers=32, width=4096, heads=16, head=256, ffn=16_384, activation="silu"),
    "transformer-base": dict(layers=6, width=512, heads=8, ffn=2048, dropout=0.1, activation="relu", attention_bias=False),
    "transformer-big": dict(layers=6, width=1024, heads=16, ffn=4096, dropout=0.3, sinusoids="interleaved"),
}
"""Numbers that a parameter count does not show."""


def test_numbers_are_the_released_ones() -> None:
    for name, numbers in RELEASED.items():
        assert {field: getattr(SIZES[name].config, field) for field in numbers} == numbers, name
    for name, (layers, width) in GRID.items():
        cfg = SIZES[name].config
        assert (cfg.layers, cfg.width, cfg.head, cfg.ffn) == (layers, width, 64, 4 * width)
    for name, (layers, width) in NAMED.items():
        assert SIZES[name].config == SIZES[f"bert-uncased-l{layers}-h{width}"].config


def test_distilled_students_have_half_the_layers_of_their_teachers() -> None:
    """Distillation copies layers: the other numbers must be equal."""
    for student, teacher in (("distilbert-nano", "bert-nano"), ("distilbert-base-uncased", "bert-base-uncased")):
        small, large = SIZES[student].config, SIZES[teacher].config
        assert 2 * small.layers == large.layers
        for field in ("vocab", "context", "width", "heads", "ffn", "activation", "eps"):
            assert getattr(small, field) == getattr(large, field)


GPT3_UNKNOWN = {"eps", "dropout", "embedding_dropout", "attention_dropout", "pattern", "window"}
UNKNOWN = {
    "turing-nlg": {"vocab", "context", "ffn", "eps", "dropout", "embedding_dropout", "attention_dropout"},
    "megatron-8.3b": {"heads", "head"},
}
"""Fields that no source states."""
ASSUMED = {
    **{name: set() for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")},
    **{name: {"initializer"} for name in (*ENCODERS, *GRID)},
    **{name: set() for name in ENCODER_DECODERS if not name.startswith("transformer")},
    **{name: {"vocab", "attention_bias", "output_bias", "max_positions", "eps"} for name in BIASED},
    **{name: {"pooling"} for name in MODERNBERT},
    **{name: {"window"} for name in ETTIN_DECODER},
    "xlnet-base-cased": {"memory", "reuse"},
    "xlnet-large-cased": set(),
}
"""All fields of a size that are assumed."""


def test_every_size_has_a_source_and_a_reason_for_each_assumed_number() -> None:
    for name, size in SIZES.items():
        fields = set(configs.Size.numbers_of(size.config))
        assert size.source and all(size.assumed.values()), name
        assert set(size.assumed) <= fields, name
        unknown = GPT3_UNKNOWN if name.startswith("gpt3-") else UNKNOWN.get(name, set())
        assert unknown <= set(size.assumed), name
        if name in ASSUMED or name.endswith("-nano"):
            assert set(size.assumed) == ASSUMED.get(name, fields), name


def test_objectives_and_heads_of_the_sizes() -> None:
    for name, size in SIZES.items():
        if name.startswith(("bert", "roberta", "distil", "xlm", "modernbert", "ettin-encoder")) and name != "distilgpt2":
            nano_task = "pretraining" if name.startswith("bert") else "masked"
            assert size.config.task == (nano_task if name.endswith("-nano") else "body"), name
            assert size.objective == ("distilled" if name.startswith("distil") else "masked"), name


def test_weights_of_a_size_are_recognized_by_its_numbers() -> None:
    """The published name depends on the body alone, and not on its head, its dropout or how fresh parameters are made."""
    for name in (*ENCODERS, *GRID, *MODERNBERT):
        cfg = dataclasses.replace(SIZES[name].config, task="masked", dropout=0.3, initializer="normal")
        assert SIZES[str(configs.published_name(cfg))].config == SIZES[name].config
        assert configs.published_name(dataclasses.replace(cfg, layers=31)) is None
    for name in XLNET:
        cfg = dataclasses.replace(xlnet.SIZES[name].config, task="permutation", memory=0, reuse=0, dropout=0.3)
        assert configs.published_name(cfg) == name
    # Three gated matrices of 2048 are as large as two of 3072: the count does not distinguish these two.
    assert ENCODER_DECODERS["t5-base"] == ONE_TABLE["t5-v1.1-base"]
    assert configs.published_name(SIZES["t5-base"].config) == "t5-base"
    assert configs.published_name(dataclasses.replace(SIZES["t5-v1.1-base"].config, dropout=0.0)) == "t5-v1.1-base"


@pytest.mark.parametrize("lookup", [configs.find_size, models_table.render_models])
def test_unpublished_architectures_and_unknown_names_are_refused(lookup: Any) -> None:
    with pytest.raises(
        BadInput, match=r"architecture of gpt-4 is unpublished.* here are gpt-oss-120b, by the same lab, and gpt3-175b"
    ):
        lookup("gpt-4")
    for name in ("gpt4", "gpt-4o", "gpt-5"):
        with pytest.raises(BadInput, match=r"is unpublished.* here are gpt-oss-120b"):
            lookup(name)
    for typed, nearest in (("gpt3-175", "gpt3-175b"), ("gtp2-xl", "gpt2-xl"), ("turing", "turing-nlg")):
        with pytest.raises(BadInput, match=f"'{typed}'; the nearest is '{nearest}'"):
            lookup(typed)
    for name, reason in configs.REFUSED.items():
        assert name not in SIZES and any(reason.endswith(size) for size in SIZES)


def test_the_name_of_a_family_lists_its_sizes() -> None:
    for family in configs.families():
        assert {row["name"] for row in json.loads(models_table.render_models(family, as_json=True))} == {
            *configs.family(family).SIZES
        }
    listing = models_table.render_models("xlnet")
    assert all(name in listing for name in xlnet.SIZES) and "gpt2" not in listing


@pytest.mark.parametrize("name", ["gpt3-13b", "bert-nano"])
def test_a_page_and_its_json_say_where_each_number_comes_from(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    size, page, described = (
        SIZES[name],
        models_table.render_models(name),
        json.loads(models_table.render_models(name, as_json=True)),
    )
    for field in set(configs.Size.numbers_of(size.config)):
        why = size.assumed.get(field)
        status = {"status": "published"} if why is None else {"status": "assumed", "why": why}
        value = json.loads(json.dumps(getattr(size.config, field)))
        assert described["fields"].pop(field) == {"value": value, **status}
    assert described["fields"] == {}
    assert all(f"assumed: {reason}" in page for reason in size.assumed.values())
    assert size.source in page and f"{described['parameters']:,}" in page
    parameters = models.parameter_count(size.config)
    assert (described["parameters"], described["published_parameters"]) == (parameters, size.published_count)


def test_a_family_without_a_published_form_does_not_change_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unpublished.py").touch()
    monkeypatch.setattr(configs, "__path__", [*configs.__path__, str(tmp_path)])
    monkeypatch.setitem(sys.modules, "zoo.configs.unpublished", types.ModuleType("zoo.configs.unpublished"))
    assert {"unpublished": "unpublished", "gpt2": "gpt"}.items() <= configs.published_types().items()
    with pytest.raises(BadInput, match=r"^config\.json: model_type 'unpublished': this family reads no published weights$"):
        configs.from_published("unpublished", types.SimpleNamespace(file="config.json"))
