"""Stages, tiers and options that several experiments share, and short forms of rows, claims and tiers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from eval.experiments.analysis.family_exponents import CONTROL, REFERENCE
from eval.experiments.declaration import TEXT, Claim, Kind, Options, Row, Stage, Tasks, Tier

SMALL: Options = {
    "model.layers": 2,
    "model.width": 64,
    "model.heads": 2,
    "model.ffn": 128,
    "model.vocab": 1000,
    "tokenizer.vocab": 1000,
    "data.length": 64,
    "data.batch": 8,
    "steps": 20,
    "optim.warmup": 2,
    "log.every": 5,
    "log.validate_every": 10,
}
"""Options of a training run that takes seconds, for `smoke`."""
SMALL_T5: Options = {**SMALL, "model.decoder_layers": 2, "model.head": 32}

TINY: Options = {
    **{"model.layers": 2, "model.width": 64, "model.heads": 4, "model.ffn": 256, "model.vocab": 512, "tokenizer.vocab": 512},
    **{"data.length": 64, "data.batch": 16, "steps": 4_000, "optim.lr": 3e-3, "optim.warmup": 0.05},
    **{"log.every": 100, "log.validate_every": 400, "log.validate_rows": 256, "log.samples": 0, "checkpoint.every": 1_000},
}
"""Options of a pretraining run of `nano`: 0.15 million parameters, 4 million tokens, less than a minute on a core.

A vocabulary of 512 is learned so fast that the rows of an experiment are far from their control, which matters more than the size
of the model: with 4,096 entries and half a token per parameter most rows hardly beat the frequencies of words."""
TINY_T5: Options = {**TINY, "model.decoder_layers": 2, "model.head": 16, "steps": 3_000}
RATES = (0.5, 1.0, 2.0)
"""Multiples of the learning rate among which the pilot chooses for each row."""

FRESH: Options = {"steps": 1, "optim.lr": 1e-9}
"""Options of a control: after one step at this rate the parameters are those that they were initialized with."""
FRESH_ROW = Row(name="fresh", label="fresh parameters (control)", overrides=FRESH)


def multi30k_pairs(source: str, target: str) -> Options:
    """Return the options of a run that translates the descriptions of Multi30k from one language to another ("de", "en")."""
    return {
        f"pairs.{prefix}{side}": f"{{tasks}}/multi30k/{part}.{language}.gz"
        for prefix, part in (("", "train"), ("valid_", "val"))
        for side, language in (("source", source), ("target", target))
    }


TRANSLATE = Stage(
    name="translate",
    recipe="finetune-text-to-text",
    after="pretrain",
    overrides={**multi30k_pairs("de", "en"), "data.length": 96, "data.batch": 16, "labelled.truncate": True},
    seconds=10.0,
)
"""Fine-tuning on short descriptions, German to English: a model that is pretrained on English has half of the task learned. It is
judged by the loss of the targets, which all architectures have. With 512 entries of English, 0.9% of the German sources have more
than 96 tokens, and 13% more than 64."""
TRANSLATE_NANO: Options = {"data.batch": 8, "steps": 400, "log.validate_every": 100, "checkpoint.every": 200}
TRANSLATE_SMOKE: Options = {"steps": 10, "log.validate_every": 5}

COMMON = Stage(name="common", task="masked:all", after="pretrain", overrides={"files": "{valid}", "length": 64}, seconds=15.0)
"""Score of masked tokens of the held-out text, which are the same for all models of one tokenizer, and all hidden."""

# --- short forms ----------------------------------------------------------------------------------------------------------------


def pretraining(recipe: str, overrides: Options | None = None) -> Stage:
    """Return the main stage of most experiments: a recipe trained on the experiment's corpus."""
    return Stage(name="pretrain", recipe=recipe, overrides={**TEXT, **(overrides or {})}, seconds=15.0)


def table_row(name: str, label: str, overrides: Options, *numbers: float, columns: Sequence[str]) -> Row:
    """Return a row with the paper's `numbers` in the order of its `columns`; numbers of the last columns may be missing."""
    return Row(name=name, label=label, overrides=overrides, paper=dict(zip(columns, numbers, strict=False)))


def family_recipe(family: str) -> dict[str, Any]:
    """Return the fields of a row of a family in an experiment of gpt-nano: its recipe, and the tokenizer of its family."""
    return {} if family == REFERENCE else {"recipes": {"train": f"{family}-nano"}, "tokenizer": f"{family}-nano"}


def family_control(family: str, overrides: Options) -> Row:
    """Return the control row of a family, with its options; its name is the one that judges of families look for."""
    name = f"{CONTROL}{family}"
    label = f"{family}, fresh parameters (control)"
    return Row(name=name, label=label, overrides={**overrides, **FRESH}, group=name, **family_recipe(family))


def claim(
    name: str,
    comparison: str,
    text: str,
    difference: float | None = None,
    *,
    metric: str,
    margin: float,
    source: str,
    paired: bool = False,
) -> Claim:
    """Return a claim that compares two rows.

    Args:
        comparison: "a < b" (less), "a > b" (greater) or "a = b" (equivalent), where a and b are names of rows.
        difference: the published one; None if there is none.
    """
    row, sign, reference = comparison.split()
    kinds: dict[str, Kind] = {"<": "less", ">": "greater", "=": "equivalent"}
    fields: dict[str, Any] = {"metric": metric, "margin": margin, "source": source, "paired": paired}
    return Claim(id=name, text=text, kind=kinds[sign], row=row, reference=(reference,), paper_difference=difference, **fields)


def smoke(*rows: str, tasks: Tasks = "files", **overrides: Options) -> Tier:
    """Return the tier `smoke`: some rows on the embedded corpus with one seed, and options by name of the stage."""
    return Tier(corpus="embedded", tasks=tasks, seeds=1, rows=rows, overrides=overrides)


def paper(*recipes: str, seeds: int = 3, **overrides: Options) -> Tier:
    """Return the tier `paper`: all rows on the user's corpus, by recipes of the published sizes in place of the nano ones."""
    return Tier(corpus="user", seeds=seeds, recipes={f"{name}-nano": name for name in recipes}, overrides=overrides)


def nano(*rows: str, seeds: int = 5, rates: tuple[float, ...] = RATES, **overrides: Options) -> Tier:
    """Return the tier `nano`: some rows (none = all), with a learning rate that a pilot chooses for each of them."""
    return Tier(rows=rows, seeds=seeds, rates=rates, overrides=overrides)


def night(tier: Tier, changes: Options | None = None, stage: str = "pretrain") -> Tier:
    """Return the tier `night`: all rows, with ten times the steps of a stage of the tier `nano`, and other changes of it."""
    options = tier.overrides[stage]
    steps: Any = options["steps"]
    longer = {**options, "steps": 10 * steps, "log.validate_every": 2_000, "checkpoint.every": 2_000, **(changes or {})}
    return dataclasses.replace(tier, rows=(), overrides={**tier.overrides, stage: longer})


def translation_tiers(smoke_rows: Sequence[str], nano_rows: tuple[str, ...]) -> Mapping[str, Tier]:
    """Return the tiers of experiments that pretrain a T5 and fine-tune it on translation."""
    # In `repeats` twice the rate of TINY_T5 was the best of a pilot in every row, and the highest that it tried. With all of its
    # steps and four times the pairs, the first rows of a pilot of `objectives` were 0.5 nats and more apart, and the experiment
    # would have taken three hours.
    small = nano(*nano_rows, pretrain={**TINY_T5, "optim.lr": 6e-3, "steps": 1_500}, translate=TRANSLATE_NANO)
    return {
        "smoke": smoke(*smoke_rows, tasks="generated", pretrain=SMALL_T5, translate=TRANSLATE_SMOKE),
        "nano": small,
        "night": night(small),
        "paper": paper("t5", seeds=1, pretrain={"model.layers": 12, "model.decoder_layers": 12}, translate={"steps": 32_768}),
    }
