"""Published sizes: exact parameter counts, the numbers of the sources, what is assumed, and what `zoo models` shows of them."""

import dataclasses
import json
from typing import Any

import pytest

from zoo import configs, models
from zoo.cli import models_table, parameter_counts
from zoo.configs import gpt, xlnet
from zoo.errors import BadInput

GPT = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "distilgpt2": 81_912_576,
    "gpt3-small": 125_226_240,
    "gpt3-medium": 355_871_744,
    "gpt3-large": 760_300_032,
    "gpt3-xl": 1_315_723_264,
    "gpt3-xl-literal": 1_517_123_584,
    "gpt3-2.7b": 2_651_553_280,
    "gpt3-6.7b": 6_658_404_352,
    "gpt3-13b": 12_853_386_240,
    "gpt3-13b-literal": 12_936_488_380,
    "gpt3-175b": 174_604_259_328,
    "turing-nlg": 17_176_845_728,
    "megatron-8.3b": 8_314_143_744,
}
"""Counted tensor by tensor from the papers' shapes; the four of GPT-2 are also those of the released checkpoints."""

ENCODERS = {
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
    "xlm-roberta-base": (278_043_648, None, 278_295_186),
    "xlm-roberta-large": (559_890_432, None, 560_142_482),
    "distilbert-base-uncased": (66_362_880, None, 66_985_530),
    "distilbert-base-cased": (65_190_912, None, 65_812_036),
}
"""Counted tensor by tensor from the released shapes: the body, with the two pretraining heads of BERT, with the masked head."""

MODERNBERT = {
    "modernbert-base": (149_014_272, 149_655_232),
    "modernbert-large": (394_781_696, 395_881_664),
    "ettin-encoder-17m": (16_797_440, 16_913_600),
    "ettin-encoder-32m": (31_883_136, 32_081_344),
    "ettin-encoder-68m": (68_144_640, 68_457_664),
    "ettin-encoder-150m": (149_014_272, 149_655_232),
    "ettin-encoder-400m": (394_781_696, 395_881_664),
    "ettin-encoder-1b": (1_028_050_688, 1_031_314_112),
}
"""The body, and with the masked head, whose table is that of the body."""

ETTIN_DECODER = {
    "ettin-decoder-17m": 16_913_600,
    "ettin-decoder-32m": 32_081_344,
    "ettin-decoder-68m": 68_457_664,
    "ettin-decoder-150m": 149_655_232,
    "ettin-decoder-400m": 395_881_664,
    "ettin-decoder-1b": 1_031_314_112,
}
"""The body and the head of words, whose table is that of the body; as many as the encoder of the same size has."""

LLAMA = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
}
"""Counted tensor by tensor from the released shapes, a tied table once."""

GPT_OSS = {"gpt-oss-20b": (20_914_757_184, 3_608_307_264), "gpt-oss-120b": (116_829_156_672, 5_132_849_472)}
"""All parameters, and those of which a token uses each; the model card says 20.91B, 3.61B, 116.83B and 5.13B."""

XLNET = {"xlnet-base-cased": (116_718_336, 116_750_336), "xlnet-large-cased": (360_268_800, 360_300_800)}
"""The body, and with the bias of the words."""

ENCODER_DECODERS = {
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
    "mt5-small": 300_176_768,
    "mt5-base": 582_401_280,
    "mt5-large": 1_229_581_312,
    "mt5-xl": 3_742_619_648,
    "mt5-xxl": 12_921_057_280,
    "ul2": 19_591_209_984,
    "flan-ul2": 19_591_209_984,
    "byt5-small": 299_637_760,
    "byt5-base": 581_653_248,
    "byt5-large": 1_228_183_552,
    "byt5-xl": 3_737_801_728,
    "byt5-xxl": 12_906_899_328,
    "umt5-small": 306_601_984,
    "umt5-base": 592_043_520,
    "umt5-xl": 3_768_356_864,
    "umt5-xxl": 12_972_531_712,
    "transformer-base": 63_045_632,
    "transformer-big": 214_171_648,
}
"""Counted tensor by tensor from the released shapes; of T5 1.1 and its successors with the output's own table."""
FLAN = {f"flan-t5-{size}": f"t5-v1.1-{size}" for size in ("small", "base", "large", "xl", "xxl")}
ENCODER_DECODERS |= {name: ENCODER_DECODERS[size] for name, size in FLAN.items()}

ONE_TABLE = {
    f"t5-v1.1-{size}": ENCODER_DECODERS[f"t5-v1.1-{size}"] - 32_128 * width
    for size, width in {"small": 512, "base": 768, "large": 1024, "xl": 2048, "xxl": 4096}.items()
}
"""T5 1.1 without that table."""

BIASED = {"transformer-base": 63_082_496, "transformer-big": 214_245_376}
"""With biases in attention, of which the paper says nothing."""

GRID = {f"bert-uncased-l{layers}-h{width}": (layers, width) for layers in range(2, 13, 2) for width in (128, 256, 512, 768)}
NAMED = {"bert-tiny": (2, 128), "bert-mini": (4, 256), "bert-small": (4, 512), "bert-medium": (8, 512)}

TABLE_2_1 = {
    "gpt3-small": (12, 768, 12, 64),
    "gpt3-medium": (24, 1024, 16, 64),
    "gpt3-large": (24, 1536, 16, 96),
    "gpt3-xl": (24, 2048, 24, 128),
    "gpt3-2.7b": (32, 2560, 32, 80),
    "gpt3-6.7b": (32, 4096, 32, 128),
    "gpt3-13b": (40, 5140, 40, 128),
    "gpt3-175b": (96, 12288, 96, 128),
}
"""Brown et al. 2020: layers, width, heads, size of a head, as printed."""

SIZES = {name: size for family in configs.families() for name, size in configs.family(family).SIZES.items()}
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
        *((name, {}, count) for name, count in (GPT | LLAMA | ETTIN_DECODER | ENCODER_DECODERS).items()),
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
    assert {name: parameter_counts.parameters(name, SIZES[name]) for name in names} == {
        name: models.parameter_count(SIZES[name].config) for name in names
    }


def test_a_size_is_counted_only_if_its_configuration_is_not_the_stored_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameter_counts, "count_parameters", lambda size: -1)
    assert all(parameter_counts.parameters(name, size) > 0 for name, size in SIZES.items()), (
        "run python -m zoo.cli.parameter_counts"
    )
    assert parameter_counts._stored().keys() == SIZES.keys()
    size = SIZES["gpt2"]
    changed = dataclasses.replace(size, config=dataclasses.replace(size.config, layers=13))
    assert parameter_counts.parameters("gpt2", changed) == parameter_counts.parameters("gpt2-new", size) == -1


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


@pytest.mark.parametrize("lookup", [configs.find_size, models_table.render])
def test_unpublished_architectures_and_unknown_names_are_refused(lookup: Any) -> None:
    with pytest.raises(
        BadInput, match=r"architecture of gpt-4 is unpublished.* here are gpt-oss-120b, by the same lab, and gpt3-175b"
    ):
        lookup("gpt-4")
    for typed, nearest in (("gpt3-175", "gpt3-175b"), ("gtp2-xl", "gpt2-xl"), ("turing", "turing-nlg")):
        with pytest.raises(BadInput, match=f"'{typed}'; the nearest is '{nearest}'"):
            lookup(typed)
    for name, reason in configs.REFUSED.items():
        assert name not in SIZES and any(reason.endswith(size) for size in SIZES)


@pytest.mark.parametrize("name", ["gpt3-13b", "bert-nano"])
def test_a_page_and_its_json_say_where_each_number_comes_from(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    size, page, described = SIZES[name], models_table.render(name), json.loads(models_table.render(name, as_json=True))
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
