"""Numbers of published recipes, against a table that was written from the sources alone, and `zoo recipes`."""

import json
from typing import Any

import pytest

from tests.support.commands import call
from train import recipes
from train.config.provenance import PROVENANCE, recipe_numbers
from train.config.run_config import Run

ADAM = {"optim.name": "adamw", "optim.schedule": "linear", "optim.b1": 0.9}
GPT_TOKENS = {"tokenizer.kind": "gpt"}
WORDPIECE = {"tokenizer.kind": "wordpiece", "tokenizer.vocab": 30_522}
MODERNBERT = {"tokenizer.kind": "modernbert", "tokenizer.vocab": 50_368, "data.rows": "packed"}
FULLY_DECOUPLED = {"optim.decayed": "matrices", "optim.independent_decay": True}
STABLE = {"optim.name": "stable_adamw", "optim.b1": 0.9, "optim.b2": 0.98, "optim.eps": 1e-6, **FULLY_DECOUPLED}
PHASE = {**STABLE, **MODERNBERT, "optim.schedule": "constant", "masking.rate": 0.3}
DECAY = {**PHASE, "optim.schedule": "wsd", "optim.decay_shape": "sqrt", "optim.final": 0.001}
SHORT, LONG = {"data.length": 1024, "model.global_base": 1e4}, {"data.length": 8192, "model.global_base": 1.6e5}
ETTIN = {**STABLE, "optim.weight_decay": 3e-4, "data.batch": 4608}
ETTIN_DECAY = {**ETTIN, "optim.schedule": "wsd", "optim.decay_shape": "sqrt", "data.length": 7999, "model.global_base": 1.6e5}
ETTIN_TOKENS = {"tokenizer.kind": "modernbert", "tokenizer.vocab": 50_368}
WSD = {"optim.name": "adamw", "optim.b1": 0.9, "optim.b2": 0.95, "optim.eps": 1e-8, "optim.clip": 1.0, "optim.schedule": "wsd"}
WSD |= {"optim.warmup": 2000, "optim.decay_shape": "linear", "optim.final": 0.0}
SMOLLM2 = {**WSD, **GPT_TOKENS, "tokenizer.vocab": 49_152, "data.length": 2048, "optim.weight_decay": 0.01}
PERMUTATION = {"data.length": 512, "permutation.predictions": 85, "permutation.window": 256, "permutation.bidirectional": True}
PERMUTATION |= {"permutation.spans": True, "permutation.longest": 5, "permutation.context": 6.0}
PERMUTATION |= {"tokenizer.kind": "xlnet", "tokenizer.vocab": 32_000}
T5 = {"optim.name": "adafactor", "optim.schedule": "inverse_sqrt_flat", "optim.warmup": 10_000, "optim.lr": 0.01}
T5 |= {"data.length": 512, "denoising.kind": "spans", "denoising.density": 0.15, "denoising.mean_span": 3.0}
GPT3 = {
    "optim.name": "adamw",
    "optim.b1": 0.9,
    "optim.b2": 0.95,
    "optim.eps": 1e-8,
    "optim.clip": 1.0,
    "optim.schedule": "cosine",
}
GPT3 |= {**GPT_TOKENS, "tokenizer.vocab": 50_257, "optim.weight_decay": 0.1, "optim.final": 0.1, "data.length": 2048}
PUBLISHED: dict[str, dict[str, Any]] = {
    "bert": {
        **ADAM,
        **{"steps": 1_000_000, "data.batch": 256, "optim.lr": 1e-4, "optim.warmup": 10_000, "optim.b2": 0.999},
        **{"optim.weight_decay": 0.01, "masking.rate": 0.15, "masking.masked": 0.8, "masking.random": 0.1, "masking.static": 10},
        **{**WORDPIECE, "masking.most": 20, "data.rows": "segment_pairs", "optim.final": 0.0, "optim.eps": 1e-6},
        **{"optim.clip": 1.0, "optim.decayed": "matrices"},
    },
    "bert-large-lamb": {
        "optim.name": "lamb",
        "steps": 7038,
        "data.batch": 65_536,
        "data.length": 128,
        "optim.lr": 6e-3,
        "optim.warmup": 0.2843,
    },
    "bert-large-lamb-512": {
        "optim.name": "lamb",
        "steps": 1563,
        "data.batch": 32_768,
        "data.length": 512,
        "optim.lr": 4e-3,
        "optim.warmup": 0.128,
    },
    "roberta": {
        **ADAM,
        **{"data.rows": "full_sentences", "tokenizer.kind": "roberta", "tokenizer.vocab": 50_265, "masking.rate": 0.15},
        **{"masking.masked": 0.8, "masking.random": 0.1},
        **{"steps": 500_000, "optim.lr": 6e-4, "optim.warmup": 24_000, "optim.b2": 0.98, "optim.eps": 1e-6},
        **{"optim.weight_decay": 0.01, "optim.clip": 0.0, "data.length": 512, "masking.static": 0},
    },
    "distilbert": {
        **{**ADAM, "data.batch": 4000, "optim.lr": 5e-4, "optim.warmup": 300, "optim.b2": 0.98, "optim.eps": 1e-6},
        **{"optim.weight_decay": 0.0, "optim.clip": 5.0, "distillation.temperature": 2.0, "distillation.soft": 5.0},
        **{"distillation.masked": 2.0, "distillation.cosine": 1.0, "distillation.divergence": "forward_kl"},
        **{"masking.rare": 0.7, "masking.rate": 0.15, "masking.masked": 0.8, "masking.random": 0.1, "masking.static": 0},
    },
    "xlnet": PERMUTATION,
    "xlnet-large": {
        **PERMUTATION,
        **{"steps": 500_000, "data.batch": 8192, "optim.lr": 4e-4, "optim.warmup": 40_000, "optim.schedule": "linear"},
        **{"optim.name": "adamw", "optim.weight_decay": 0.01, "optim.eps": 1e-6},
    },
    "t5": {**T5, "tokenizer.kind": "sentencepiece", "tokenizer.vocab": 32_100, "steps": 524_288, "data.batch": 128},
    "t5-v1-1": {**T5, "steps": 100_000, "data.batch": 256, "model.dropout": 0.0, "z_loss": 1e-4},
    "transformer-base": {
        **{"steps": 100_000, "label_smoothing": 0.1, "optim.b1": 0.9, "optim.b2": 0.98, "optim.eps": 1e-9, "optim.warmup": 4000},
        **{"optim.schedule": "inverse_sqrt", "tokenizer.vocab": 37_000, "optim.name": "adamw"},
        **{"optim.lr": 512**-0.5 * 4000**-0.5},
    },
    "modernbert-base": {**PHASE, **SHORT, "data.batch": 4608, "optim.lr": 8e-4, "optim.weight_decay": 1e-5},
    "modernbert-base-context": {**PHASE, **LONG, "data.batch": 576, "optim.lr": 3e-4, "optim.weight_decay": 1e-5},
    "modernbert-base-decay": {
        **{**DECAY, **LONG, "data.batch": 576, "optim.lr": 3e-4, "optim.weight_decay": 1e-5},
    },
    "modernbert-large": {**PHASE, **SHORT, "data.batch": 4928, "optim.lr": 5e-4, "optim.weight_decay": 1e-5},
    "modernbert-large-context": {**PHASE, **LONG, "data.batch": 616, "optim.lr": 5e-5, "optim.weight_decay": 1e-6},
    "modernbert-large-decay": {
        **{**DECAY, **LONG, "data.batch": 624, "optim.lr": 5e-5, "optim.weight_decay": 1e-6},
    },
    "ettin-17m": {**ETTIN, **SHORT, "masking.rate": 0.3, "optim.schedule": "constant", "optim.lr": 3e-3, "model.local_base": 1e4},
    "ettin-17m-context": {**ETTIN_DECAY, "masking.rate": 0.3, "optim.lr": 3e-3, "optim.final": 0.5, "model.local_base": 1e4},
    "ettin-17m-decay": {**ETTIN_DECAY, "masking.rate": 0.15, "optim.lr": 1.5e-3, "optim.final": 0.04, "model.local_base": 1.6e5},
    "ettin-decoder-17m": {**ETTIN, **SHORT, **ETTIN_TOKENS, "optim.schedule": "constant", "optim.lr": 3e-3},
    "ettin-decoder-17m-context": {**ETTIN_DECAY, **ETTIN_TOKENS, "optim.lr": 3e-3, "optim.final": 0.5},
    "ettin-decoder-17m-decay": {**ETTIN_DECAY, **ETTIN_TOKENS, "optim.lr": 1.5e-3, "optim.final": 0.04},
    "gpt2": {
        **{
            "optim.lr": 6e-4,
            "steps": 600_000,
            "optim.warmup": 2000,
            "optim.b1": 0.9,
            "optim.b2": 0.95,
            "optim.weight_decay": 0.1,
        },
        **{"optim.name": "adamw", "optim.schedule": "cosine", "optim.final": 0.1, "optim.clip": 1.0, "data.length": 1024},
        **{**GPT_TOKENS, "tokenizer.vocab": 50_257},
        **{"model.dropout": 0.0, "model.embedding_dropout": 0.0, "model.attention_dropout": 0.0},
    },
    "gpt3-small": {**GPT3, "optim.lr": 6e-4},
    "gpt3-175b": {**GPT3, "optim.lr": 6e-5},
    "llama3-8b": {"optim.lr": 3e-4, "optim.schedule": "cosine", "optim.name": "adamw", "tokenizer.vocab": 128_256},
    "nanochat-d20": {
        **{"optim.name": "muon", "optim.muon_scale": "released", "optim.lr": 0.02, "optim.b1": 0.8, "optim.b2": 0.95},
        **{"optim.eps": 1e-10, "optim.weight_decay": 0.0, "optim.clip": 1.0, "optim.schedule": "wsd", "optim.warmup": 0},
        **{"optim.decay_steps": 0.2, "optim.decay_shape": "linear", "optim.final": 0.0, "steps": 21_400, "data.length": 2048},
        **{"data.batch": 256, "tokenizer.vocab": 65_536},
        # 0.2 and 0.004 times the root of 768 / 1280, over the rate of the matrices.
        "optim.rates": ("^embed/=7.745966692", "^unembed/=0.154919334"),
    },
    "smollm2-135m": {**SMOLLM2, "optim.lr": 3e-3, "data.batch": 512, "steps": 2_000_000, "optim.decay_steps": 400_000},
    "smollm2-360m": {**SMOLLM2, "optim.lr": 3e-3, "data.batch": 768, "steps": 2_600_000, "optim.decay_steps": 520_000},
    "smollm2-1-7b": {**SMOLLM2, "optim.lr": 5e-4, "data.batch": 1024, "steps": 5_240_000, "optim.decay_steps": 524_000},
    "smollm3-3b": {
        **{**WSD, "data.length": 4096, "data.batch": 576, "optim.lr": 2e-4, "optim.weight_decay": 0.1, "steps": 4_720_000},
        **{"optim.decay_steps": 522_000, "optim.decayed": "kernels", "model.base": 5e4, "model.context": 4096},
        **{**GPT_TOKENS, "tokenizer.vocab": 128_256},
    },
}
TOKENS = {
    # Recipe -> (tokens in all, tokens of the warm-up) in billions.
    **{"modernbert-base": (1719, 3), "modernbert-base-context": (250, 0), "modernbert-base-decay": (50, 0)},
    **{"modernbert-large": (900, 2), "modernbert-large-context": (250, 0), "modernbert-large-decay": (50, 0)},
    **{"ettin-17m": (1700, 4), "ettin-17m-context": (250, 0), "ettin-17m-decay": (50, 0)},
    **{"ettin-decoder-17m": (1700, 4), "ettin-decoder-17m-context": (250, 0), "ettin-decoder-17m-decay": (50, 0)},
    **{"gpt3-175b": (300, 0.375), "gpt3-small": (300, 0.375)},
}

RAMPS: dict[str, dict[float, int] | tuple[int, int, float]] = {
    # Recipe -> (rows at first, unit of the rows, tokens of the ramp), or tokens -> rows of a step from there on.
    **{"gpt3-small": (16, 16, 4e9), "gpt3-175b": (16, 128, 12e9), "modernbert-base": (768, 768, 50e9)},
    **{"modernbert-large": (448, 448, 10e9), "ettin-17m": (576, 576, 125e9), "ettin-decoder-17m": (576, 576, 125e9)},
    "llama3-8b": {0: 2**9, 257e6: 2**10, 2.86e12: 2**10, 2.88e12: 2**11},
}


def numbers_of(name: str) -> dict[str, Any]:
    return recipe_numbers(recipe(name), PROVENANCE[name])


def recipe(name: str) -> Run:
    return recipes.find_recipe(name)()


def test_every_published_recipe_is_in_the_table() -> None:
    recipes.recipes()
    assert PROVENANCE.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_are_those_of_the_sources(name: str) -> None:
    numbers, sources = numbers_of(name), PROVENANCE[name]
    for option, value in PUBLISHED[name].items():
        assert numbers[option] == (value if isinstance(value, tuple) else pytest.approx(value)), option
    named = [option for table in (sources.published, sources.assumed) for options in table.values() for option in options.split()]
    # Each named option is a number of the recipe, and has one place and one reason at most.
    assert set(named) <= numbers.keys()
    published = {option for option in numbers if sources.status_of(option)[0] == "published"}
    # Numbers of steps that follow from numbers of tokens are in `TOKENS`.
    counted = {"steps", "optim.warmup", "optim.decay_steps"} if name in TOKENS else set()
    assert published - counted <= PUBLISHED[name].keys()
    for table in (sources.published, sources.assumed):
        options = [option for text in table.values() for option in text.split()]
        assert len(options) == len(set(options)), name
    run = recipe(name)
    assert run.recipe == name


@pytest.mark.parametrize("name", TOKENS)
def test_numbers_of_tokens_are_published(name: str) -> None:
    run, (total, warmup) = recipe(name), TOKENS[name]
    step = run.data.batch * run.data.length / 1e9

    def billions(steps: float) -> float:
        return run.data.sizes.examples(int(steps)) * run.data.length / 1e9

    assert billions(run.steps) == pytest.approx(total, abs=step)
    assert billions(run.optim.warmup_steps(run.steps)) == pytest.approx(warmup, abs=step)
    if name.startswith("gpt3"):
        assert billions(run.optim.warmup_steps(run.steps) + run.optim.decay_steps) == pytest.approx(260, abs=2 * step)


@pytest.mark.parametrize("name", RAMPS)
def test_batches_grow_as_published(name: str) -> None:
    """The sizes are those of a line over the tokens, rounded down to their unit, or those of the text."""
    run, ramp = recipe(name), RAMPS[name]
    sizes, length = run.data.sizes, run.data.length
    if isinstance(ramp, dict):
        for tokens, rows in ramp.items():
            assert sizes.rows(sizes.place_of(int(tokens / length))[0]) == rows
        return
    first, unit, tokens = ramp
    for share in (0.0, 0.013, 0.21, 0.5, 0.77, 0.995, 1.01):
        step, place = sizes.place_of(int(share * tokens / length))
        begun = (share * tokens / length - place) * length / tokens
        line = first + (run.data.batch - first) * min(begun, 1)
        rows = max(unit, int(line // unit) * unit) if line < run.data.batch else run.data.batch
        assert sizes.rows(step) == rows, share


def test_zoo_recipes_prints_every_number_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    ended = call(capsys, "recipes", "modernbert-base-decay")
    assert ended.code == 0
    lines = ended.stdout.splitlines()
    assert any(line.split()[:3] == ["optim.decay-shape", "sqrt", "published"] for line in lines)
    assert any(line.split()[:3] == ["optim.clip", "0.0", "assumed"] for line in lines)
    described = json.loads(call(capsys, "recipes", "gpt2", "--json").stdout)
    assert described["numbers"]["optim.eps"]["status"] == "unknown" and described["numbers"]["optim.lr"]["value"] == 6e-4
    listing = call(capsys, "recipes").stdout
    assert all(name in listing for name in PUBLISHED)


def test_a_recipe_without_sources_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    ended = call(capsys, "recipes", "gpt-nano")
    assert (
        ended.code == 2
        and "gpt-nano: its numbers are this project's, so they have no source; these have one: bert" in ended.stderr
    )
    assert "the nearest is" in call(capsys, "recipes", "bart").stderr
