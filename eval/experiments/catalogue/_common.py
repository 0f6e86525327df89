"""Stages, tiers and options that several experiments share, and short forms of rows, claims and tiers."""

from collections.abc import Mapping, Sequence
from typing import Any

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

FRESH: Options = {"steps": 1, "optim.lr": 1e-9}
"""Options of a control: after one step at this rate the parameters are those that they were initialized with."""
FRESH_ROW = Row(name="fresh", label="fresh parameters (control)", overrides=FRESH)

_SST2_DATA: Options = {
    "data.paths": "{tasks}/sst2/train.tsv",
    "data.valid_paths": "{tasks}/sst2/dev.tsv",
    "labelled.header": False,
    "labelled.truncate": True,
    "data.length": 64,
}
_SST2_TEST_DATA: Options = {"files": "{tasks}/sst2/test.tsv"}


def _sst2(recipe: str, overrides: Options) -> Stage:
    return Stage(name="sst2", recipe=recipe, after="pretrain", overrides={**_SST2_DATA, **overrides}, seconds=10.0)


SST2 = _sst2("finetune-classification", {"data.batch": 16})
"""Fine-tuning on the sentiment of sentences; the best of the checkpoints on the dev set is used."""
SST2_TEST = Stage(name="sst2_test", task="labelled", after="sst2", overrides=_SST2_TEST_DATA, seconds=5.0)
"""Score on the test set, on which nothing was selected."""
SST2_NANO: Options = {"steps": 432, "optim.lr": 3e-4, "optim.warmup": 43, "log.validate_every": 144, "checkpoint.every": 144}
"""One epoch of the 6,920 sentences at the scale of the nano recipes."""
SST2_SMOKE: Options = {"steps": 10, "optim.lr": 3e-4, "optim.warmup": 2, "log.validate_every": 5}

SST2_TEXT = _sst2("finetune-text-to-text", {"data.target_length": 16, "data.batch": 16})
"""Fine-tuning on the same data as text to text: the target is the label as a digit. The last checkpoint is used."""
SST2_TEXT_TEST = Stage(
    name="sst2_test",
    task="text_to_text:exact",
    after="sst2",
    overrides={**_SST2_TEST_DATA, "labelled.header": False, "tokens": 4},
    seconds=20.0,
)
SST2_TEXT_NANO: Options = {"steps": 300, "log.validate_every": 100, "checkpoint.every": 100}
SST2_TEXT_SMOKE: Options = {"steps": 10, "log.validate_every": 5}

COMMON = Stage(name="common", task="masked:all", after="pretrain", overrides={"files": "{valid}", "length": 128}, seconds=15.0)
"""Score of masked tokens of the held-out text, which are the same for all models of one tokenizer, and all hidden."""

SST2_FLOORS = (("majority class", "sst2_test/accuracy", 0.501, "share of the larger class of the test set"),)
SST2_BASELINES = (("naive Bayes", "sst2_test/accuracy", 0.815, "naive Bayes of words on the same files"),)


# --- short forms ----------------------------------------------------------------------------------------------------------------


def pretraining(recipe: str, overrides: Options | None = None) -> Stage:
    """Return the main stage of most experiments: a recipe trained on the experiment's corpus."""
    return Stage(name="pretrain", recipe=recipe, overrides={**TEXT, **(overrides or {})}, seconds=15.0)


def table_row(name: str, label: str, overrides: Options, *numbers: float, columns: Sequence[str]) -> Row:
    """Return a row with the paper's `numbers` in the order of its `columns`; numbers of the last columns may be missing."""
    return Row(name=name, label=label, overrides=overrides, paper=dict(zip(columns, numbers, strict=False)))


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


def t5_sst2_tiers(smoke_rows: Sequence[str], nano_rows: tuple[str, ...]) -> Mapping[str, Tier]:
    """Return the tiers of experiments that pretrain a T5 and fine-tune it on SST-2 as text."""
    night: Options = {"steps": 3_000, "optim.warmup": 300}
    return {
        "smoke": smoke(*smoke_rows, tasks="generated", pretrain=SMALL_T5, sst2=SST2_TEXT_SMOKE),
        "nano": Tier(rows=nano_rows, overrides={"pretrain": {"steps": 300}, "sst2": SST2_TEXT_NANO}),
        "night": Tier(overrides={"pretrain": night, "sst2": SST2_TEXT_NANO}),
        "paper": paper("t5", seeds=1, sst2={"steps": 32_768}),
    }
