"""Published sizes: exact counts, sources, what is assumed, what is refused, and what `zoo models` says about it."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import catalogue, configs, models, sharding
from zoo.batch import Batch
from zoo.configs import gpt
from zoo.errors import BadInput

COUNTS = {
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
"""Brown et al. 2020: layers, width, heads, head, as printed."""

GPT3_UNKNOWN = {"eps", "dropout", "embedding_dropout", "attention_dropout", "pattern", "window"}
UNKNOWN = {
    **{name: GPT3_UNKNOWN for name in gpt.SIZES if name.startswith("gpt3-")},
    "turing-nlg": {"vocab", "context", "ffn", "eps", "dropout", "embedding_dropout", "attention_dropout"},
    "megatron-8.3b": {"heads", "head"},
    "gpt-nano": {field.name for field in dataclasses.fields(gpt.Config)} - {"compute"},
}
"""What no source states."""

TINY = gpt.Config(
    vocab=131,
    context=16,
    layers=2,
    width=24,
    heads=3,
    head=4,
    ffn=40,
    dropout=0.0,
    embedding_dropout=0.0,
    attention_dropout=0.0,
)


def tiny(**changes) -> gpt.Config:
    return dataclasses.replace(TINY, **changes)


# --- counts ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COUNTS)
def test_count_is_exact(name):
    assert models.parameter_count(gpt.SIZES[name].config) == COUNTS[name]


@pytest.mark.parametrize("name", TABLE_2_1)
def test_alternating_form_differs_in_what_layers_see_only(name):
    dense, alternating = gpt.SIZES[name].config, gpt.SIZES[f"{name}-alternating"].config
    assert (alternating.pattern, alternating.window) == (("full", "window"), 256)
    assert dataclasses.replace(alternating, pattern=dense.pattern, window=dense.window) == dense
    assert models.parameter_count(alternating) == COUNTS[name]


def test_every_size_but_our_own_is_counted_here():
    forms = {f"{name}-alternating" for name in TABLE_2_1}
    assert set(gpt.SIZES) == set(COUNTS) | forms | {"gpt-nano"}


def test_published_counts_are_the_counts():
    published = {name: size.published_count for name, size in gpt.SIZES.items() if size.published_count is not None}
    assert published == {name: COUNTS[name] for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}


@pytest.mark.parametrize("vocab", [128, 131])
def test_count_leaves_padding_rows_out(vocab):
    """Against a sum written out by hand, and against the arrays an init would make."""
    cfg = tiny(vocab=vocab)
    inner = cfg.heads * cfg.head
    attention = cfg.width * 3 * inner + 3 * inner + inner * cfg.width + cfg.width
    mlp = cfg.width * cfg.ffn + cfg.ffn + cfg.ffn * cfg.width + cfg.width
    layers = cfg.layers * (attention + mlp + 2 * 2 * cfg.width)
    expected = vocab * cfg.width + cfg.context * cfg.width + layers + 2 * cfg.width
    assert models.parameter_count(cfg) == expected
    stored = jax.eval_shape(lambda: models.model(cfg).init(jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(stored)) - expected == (-vocab % 128) * cfg.width


def test_counting_makes_no_array():
    before = {id(array) for array in jax.live_arrays()}
    models.parameter_count(gpt.SIZES["gpt3-175b"].config)
    assert {id(array) for array in jax.live_arrays()} <= before


# --- numbers and where they come from -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE_2_1)
@pytest.mark.parametrize("form", ["", "-alternating", "-literal"])
def test_published_fields_of_gpt3_have_the_printed_values(name, form):
    if form == "-literal" and name not in ("gpt3-xl", "gpt3-13b"):
        assert name + form not in gpt.SIZES
        return
    size = gpt.SIZES[name + form]
    for field, printed in zip(("layers", "width", "heads", "head"), TABLE_2_1[name], strict=True):
        assert (getattr(size.config, field) == printed) != (field in size.assumed), field
    assert size.config.ffn == 4 * size.config.width
    assert size.config.context == 2048


@pytest.mark.parametrize("name", gpt.SIZES)
def test_heads_fill_the_width_unless_the_row_is_taken_literally(name):
    cfg = gpt.SIZES[name].config
    assert (cfg.heads * cfg.head == cfg.width) == (not name.endswith("-literal"))


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_nobody_published_is_marked(name):
    assert UNKNOWN[name] <= set(gpt.SIZES[name].assumed)


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_gpt2_is_published_whole(name):
    assert not gpt.SIZES[name].assumed


@pytest.mark.parametrize("name", gpt.SIZES)
def test_sources_and_reasons_are_given(name):
    size = gpt.SIZES[name]
    assert size.source
    assert set(size.assumed) <= {field.name for field in dataclasses.fields(size.config)} - {"compute"}
    assert all(size.assumed.values())


@pytest.mark.parametrize("name", ["gpt3-xl", "gpt3-xl-literal", "gpt3-13b", "gpt3-13b-literal"])
def test_contradictions_are_stated(name):
    assert "contradicts itself" in gpt.SIZES[name].note


def test_every_family_has_numbers_and_arithmetic():
    assert models.families() == configs.families()


def test_names_are_unique_over_the_families():
    names = [name for family in configs.families() for name in configs.family(family).SIZES]
    assert len(names) == len(set(names))


def test_numbers_need_no_jax():
    code = "import sys; from zoo import configs; configs.find('gpt2'); print({'jax', 'flax', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- refusals -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [configs.find, catalogue.render])
def test_gpt4_is_refused(ask):
    with pytest.raises(BadInput) as refusal:
        ask("gpt-4")
    assert "the architecture of gpt-4 is unpublished" in str(refusal.value)
    assert "nearest published architecture here is gpt3-175b" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_refused_names_are_no_sizes_and_name_one():
    for name, reason in configs.REFUSED.items():
        assert name not in gpt.SIZES
        assert any(reason.endswith(size) for size in gpt.SIZES)


@pytest.mark.parametrize(("typed", "meant"), [("gpt3-175", "gpt3-175b"), ("gtp2-xl", "gpt2-xl"), ("turing", "turing-nlg")])
def test_unknown_names_get_the_nearest(typed, meant):
    with pytest.raises(BadInput, match=f"'{typed}'; the nearest is '{meant}'"):
        catalogue.render(typed)


NAN = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab": 0}, "--model.vocab 0: choose 1 to 2,097,152"),
        ({"vocab": (1 << 21) + 1}, "--model.vocab 2097153: choose 1 to 2,097,152"),
        ({"context": (1 << 20) + 1}, "--model.context 1048577: choose 1 to 1,048,576"),
        ({"layers": 513}, "--model.layers 513: choose 1 to 512"),
        ({"layers": -1}, "--model.layers -1: choose 1 to 512"),
        ({"width": 65537}, "--model.width 65537: choose 1 to 65,536"),
        ({"heads": 0}, "--model.heads 0: choose 1 to 4,096"),
        ({"head": 0}, "--model.head 0: choose 1 to 65,536"),
        ({"ffn": 0}, "--model.ffn 0: choose 1 to 1,048,576"),
        ({"dropout": 1.0}, "--model.dropout 1.0: choose a share of at least 0 and less than 1"),
        ({"dropout": NAN}, "--model.dropout nan: choose a share of at least 0 and less than 1"),
        ({"embedding_dropout": -0.1}, "--model.embedding-dropout -0.1: choose a share of at least 0 and less than 1"),
        ({"attention_dropout": NAN}, "--model.attention-dropout nan: choose a share of at least 0 and less than 1"),
        ({"eps": 0.0}, "--model.eps 0.0: choose 0 < eps <= 1"),
        ({"eps": NAN}, "--model.eps nan: choose 0 < eps <= 1"),
        ({"pattern": ()}, "--model.pattern (): name layers, each one of full, window"),
        (
            {"pattern": ("full", "full", "full")},
            "--model.pattern full full full: its length, 3, must divide --model.layers 2",
        ),
        (
            {"pattern": ("full", "window")},
            "--model.window 0: the pattern has window layers; choose 1 to 16 tokens (--model.context)",
        ),
        (
            {"pattern": ("window",), "window": 17},
            "--model.window 17: the pattern has window layers; choose 1 to 16 tokens (--model.context)",
        ),
        ({"window": 8}, "--model.window 8: no layer has a window; add one to --model.pattern or choose 0"),
    ],
    ids=str,
)
def test_bad_numbers_are_refused(change, message):
    with pytest.raises(BadInput) as refusal:
        tiny(**change)
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("activation", "swish", "--model.activation swish: choose one of gelu, gelu_tanh, relu"),
        ("pattern", ("full", "band"), "--model.pattern full band: name layers, each one of full, window"),
        ("layers", NAN, "--model.layers nan: choose 1 to 512"),
    ],
)
def test_values_of_another_type_are_refused_without_a_type_checker(field, value, message):
    """In a new process: here the type checker of the tests would refuse them first."""
    code = (
        "import dataclasses; from zoo.configs.gpt import SIZES; from zoo.errors import BadInput; nan = float('nan')\n"
        f"try: dataclasses.replace(SIZES['gpt-nano'].config, {field}={value!r})\n"
        "except BadInput as wrong: print(wrong)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == message


def test_limits_themselves_are_allowed():
    for field, largest in gpt.LARGEST.items():
        assert getattr(tiny(**{field: largest}), field) == largest
        assert getattr(tiny(**{field: 1}), field) == 1
    assert tiny(pattern=("full", "window"), window=16).window == 16


# --- models ---------------------------------------------------------------------------------------------------------------------


def test_model_binds_a_config_to_its_family():
    cfg = tiny(dropout=0.5)
    model = models.model(cfg)
    module = models.family("gpt")
    assert (model.family, model.config, model.module) == ("gpt", cfg, module)
    batch = Batch(tokens=jnp.asarray([[1, 2, 3], [4, 5, 6]]))
    seeds = jnp.asarray([[3, 4], [5, 6]], jnp.uint32)

    @jax.jit
    def run(key):
        """Once through the model and once through the module, compiled together."""
        params, same = model.init(key), module.init(cfg, key)
        hidden, dropped = model.apply(params, batch).hidden, model.apply(params, batch, seeds=seeds).hidden
        bound = params, hidden, dropped, model.unembed(params, hidden)
        hidden = module.apply(cfg, same, batch).hidden
        return bound, (same, hidden, module.apply(cfg, same, batch, seeds=seeds).hidden, module.unembed(cfg, same, hidden))

    bound, direct = run(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, bound, direct)
    assert not np.array_equal(bound[1], bound[2]), "seeds turn dropout on"
    assert model.flops(batch) == module.flops(cfg, batch)


def test_padded_leaves_exist():
    for name in models.families():
        module = models.family(name)
        for size in configs.family(name).SIZES.values():
            shapes = jax.eval_shape(lambda module=module, size=size: module.init(size.config, jax.random.key(0)))
            leaves = {sharding.path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
            # A body alone has no bias of masked words.
            there = module.PADDED.keys() & leaves.keys()
            assert "embed/tokens/embedding" in there
            for path in there:
                assert leaves[path].shape[0] == -(-getattr(size.config, module.PADDED[path]) // 128) * 128


# --- zoo models -----------------------------------------------------------------------------------------------------------------


def test_listing_names_every_size_with_its_count():
    text = catalogue.render()
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line and line.split()[0] in gpt.SIZES}
    assert set(lines) == set(gpt.SIZES)
    for name, count in COUNTS.items():
        assert lines[name][1] == f"{count:,}"
    assert lines["gpt2"][2:] == ["12x768", "12x64", "1024", "50257", "none"]
    assert lines["gpt3-13b"][2:] == ["40x5120*", "40x128", "2048", "50257", "9"]
    assert lines["turing-nlg"][2:5] == ["78x4256", "28x152", "1024*"]
    assert lines["gpt-nano"][-1] == "all"
    assert "gpt, causal language model" in text


def test_listing_is_plain_text_within_80_columns():
    text = catalogue.render()
    assert text.isascii()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_narrow_terminal_cuts_no_number(monkeypatch):
    wide = catalogue.render()
    monkeypatch.setenv("COLUMNS", "30")
    assert catalogue.render() == wide


@pytest.mark.parametrize("name", ["gpt2", "gpt3-13b", "gpt3-xl-alternating", "megatron-8.3b", "gpt-nano"])
def test_page_says_where_each_number_comes_from(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    size = gpt.SIZES[name]
    lines = {line.split()[0]: line for line in catalogue.render(name).splitlines() if line}
    for field in dataclasses.fields(gpt.Config):
        if field.name == "compute":
            assert field.name not in lines
        elif field.name in size.assumed:
            assert f"assumed: {size.assumed[field.name]}" in lines[field.name] or lines[field.name].endswith("as above")
        else:
            assert lines[field.name].endswith("  published")
    for reason in size.assumed.values():
        assert any(line.endswith(f"assumed: {reason}") for line in lines.values())
    assert size.source in lines["source"]
    assert size.note in lines.get("note", "")
    counted = "no exact count" if size.published_count is None else f"{size.published_count:,}"
    assert lines["published"].endswith(counted)
    assert lines["parameters"].endswith(f"{models.parameter_count(size.config):,}")


@pytest.mark.parametrize("name", gpt.SIZES)
def test_pages_fit_80_columns(name):
    text = catalogue.render(name)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_json_holds_the_same():
    described = {entry["name"]: entry for entry in json.loads(catalogue.render(as_json=True))}
    assert {name: described[name]["parameters"] for name in COUNTS} == COUNTS
    width = described["gpt3-13b"]["fields"]["width"]
    assert width == {"value": 5120, "status": "assumed", "why": gpt.SIZES["gpt3-13b"].assumed["width"]}
    assert described["gpt2"]["fields"]["width"] == {"value": 768, "status": "published"}
    assert described["gpt2"]["published_parameters"] == COUNTS["gpt2"]
    assert json.loads(catalogue.render("gpt2", as_json=True)) == described["gpt2"]
