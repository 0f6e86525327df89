"""The best learning rates of narrow and wide models, with and without width transfer: Yang and Hu 2021, Tensor Programs V."""

from typing import Any

from eval.experiments.analysis.best_rates import judge_rate_claims
from eval.experiments.analysis.family_exponents import ALL, CONTROL, REFERENCE
from eval.experiments.catalogue._common import TINY, family_control, family_recipe, smoke
from eval.experiments.declaration import TEXT, Claim, Experiment, Options, Row, Stage, Tier

SOURCE = "Yang and Hu 2021, figure 1"
NARROW, WIDE = 64, 512
FAMILIES: dict[str, Options] = {
    "gpt": {"model.context": 64, "model.embedding_dropout": 0.0},
    # Single texts, as the other families read them, without next-sentence prediction. Masked tokens are learned slowly.
    "bert": {"steps": 800, "model.context": 64, "model.task": "masked", "data.rows": "windows", "model.attention_dropout": 0.0},
    "t5": {"model.gated": False, "model.activation": "relu"},
}
"""Family -> the options of its recipe, `FAMILY-nano`."""
RATE: dict[str, float] = {"gpt": 8e-3, "bert": 4e-3, "t5": 8e-3}
"""Family -> the rate around which those of the narrow model and of the transferred one lie."""
TRIED, LOWER = (-3, -2, -1, 0, 1, 2), (-6, -5, -4, -3, -2, -1)
"""Doublings of that rate; the standard parametrization of a wide model needs lower ones."""


def width_transfer() -> Experiment:
    """Return the experiment: losses over the learning rate at two widths; the judge compares the best rates.

    Runs are short, because a wide model costs 60 times as much as a narrow one, and the best rates of short runs move too.
    """
    rows = [
        *(_row(family, "narrow", NARROW, doublings, {}) for family in FAMILIES for doublings in TRIED),
        *(
            _row(family, "transferred", WIDE, doublings, {"width_transfer": f"{NARROW}"})
            for family in FAMILIES
            for doublings in TRIED
        ),
        *(_row(family, "standard", WIDE, doublings, {}) for family in FAMILIES for doublings in LOWER),
    ]
    fresh = [family_control(family, _options(family, NARROW)) for family in FAMILIES]
    stage = {**TEXT, **TINY, "model.layers": 1, "model.dropout": 0.0, "data.batch": 8, "steps": 250, "log.validate_every": 500}
    # A part of the held-out text: a wide model would take longer to score all of it than to be trained.
    stage |= {"optim.name": "adamw", "optim.warmup": 0.1, "data.valid_paths": "{valid}/plays.txt", "checkpoint.every": 1_000}
    controls = [row.name for row in fresh]
    small: Options = {"steps": 20, "data.batch": 4, "data.valid_paths": "{valid}", "log.every": 5, "log.validate_every": 10}
    return Experiment(
        name="width_transfer",
        question="Does the best learning rate of a narrow model suit a wide one?",
        source=SOURCE,
        scale="Models of {parameters} parameters and {tokens} input tokens; the paper: Transformers of width 128 to 8,192",
        rows=(*rows, *fresh),
        control=f"{CONTROL}{REFERENCE}",
        stages=(Stage(name="train", recipe="gpt-nano", overrides=stage, seconds=5.0),),
        budget="input_tokens",
        claims=_claims(),
        tiers={
            "smoke": smoke(*(_name("gpt", model, 0) for model in ("narrow", "transferred")), *controls[:1], train=small),
            "nano": Tier(),
            "night": Tier(overrides={"train": {"model.layers": 4, "data.batch": 32}}),
        },
        forecast={
            **{
                f"{family}_transferred": "Equivalent: changes of logits and hidden states after 10 steps do not depend on the "
                "width, up to 20%."
                for family in FAMILIES
            },
            "standard_falls": "Reproduced: the best rate of Adam falls in proportion to the width of the matrices, and the "
            "tables and norms hold it up a little.",
        },
        judge=judge_rate_claims,
    )


def _claims() -> tuple[Claim, ...]:
    fields: dict[str, Any] = {"metric": "train/loss", "reference": (), "source": SOURCE, "margin": 0.5}
    transferred = [
        Claim(
            id=f"{family}_transferred",
            text=f"With width transfer the best rate of {family} is the same at widths {NARROW} and {WIDE}, up to a factor of "
            "the square root of 2.",
            kind="equivalent",
            row=family,
            **fields,
        )
        for family in FAMILIES
    ]
    standard = Claim(
        id="standard_falls",
        text=f"Without it the best rate of every family falls from width {NARROW} to {WIDE}, by more than that factor.",
        kind="less",
        row=ALL,
        **fields,
    )
    return (*transferred, standard)


def _row(family: str, model: str, width: int, doublings: int, changes: Options) -> Row:
    rate = RATE[family] * 2.0**doublings
    return Row(
        name=_name(family, model, doublings),
        label=f"{family}, width {width}, {model}, rate {rate:.3g}",
        overrides={**_options(family, width), **changes, "optim.lr": rate},
        group=f"{family} {width}",
        **family_recipe(family),
    )


def _name(family: str, model: str, doublings: int) -> str:
    return f"{family}-{model}-{'down' if doublings < 0 else 'up'}{abs(doublings)}"


def _options(family: str, width: int) -> Options:
    sizes: Options = {"model.width": width, "model.heads": width // 16, "model.ffn": 4 * width}
    # BERT derives the size of a head.
    sizes |= {"model.head": 16} if family in ("gpt", "t5") else {}
    sizes |= {"model.decoder_layers": 1} if family == "t5" else {}
    return {**sizes, **FAMILIES[family]}
