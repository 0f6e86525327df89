"""Compute-optimal sizes: the exponents of Kaplan et al. 2020 and Hoffmann et al. 2022, from curves of equal FLOPs."""

from typing import Any

from eval.experiments.analysis import scaling_fit
from eval.experiments.catalogue._common import FRESH, smoke
from eval.experiments.declaration import TEXT, Claim, Experiment, Flops, Kind, Options, Row, Stage, Tier

KAPLAN, CHINCHILLA = "Kaplan et al. 2020", "Hoffmann et al. 2022, approach 2"
SIZES = ((2, 64), (2, 96), (3, 128), (4, 192), (6, 256), (8, 320), (10, 384))
"""(number of layers, width) of each model."""
BUDGETS = {
    "1e11": (0, 1, 2),
    "1e12": (0, 1, 2, 3),
    "3e12": (1, 2, 3, 4),
    "1e13": (2, 3, 4, 5),
    "3e13": (2, 3, 4, 5),
    "1e14": (3, 4, 5, 6),
}
"""FLOPs of a run -> the sizes that are trained at that budget, by their place."""


def scaling() -> Experiment:
    """Return the experiment: for each budget in FLOPs, models of several sizes; the judge fits the optimal size."""
    rows = [
        Row(name=_name(budget, place), label=f"{budget} FLOPs, {_words(place)}", overrides=_options(budget, place), group=budget)
        for budget, places in BUDGETS.items()
        for place in places
    ]
    return Experiment(
        name="scaling",
        question="How large should a model be for a given number of FLOPs?",
        source=f"{KAPLAN} and {CHINCHILLA}",
        scale="GPT of {parameters} parameters and up to {tokens} tokens; the papers: up to 16B parameters and 500B tokens",
        rows=(*rows, Row(name="fresh", label="fresh parameters (control)", overrides=FRESH, group="control")),
        control="fresh",
        stages=(
            Stage(name="train", recipe="gpt-nano", overrides={**TEXT, "optim.name": "adamw", "optim.warmup": 0.1}, seconds=15.0),
        ),
        budget="flops",
        claims=(
            _claim(
                "inner_minimum",
                "At every budget the best size is neither the smallest nor the largest.",
                "less",
                0.01,
                CHINCHILLA,
            ),
            _claim(
                "below_kaplan",
                "The optimal number of parameters grows more slowly than C to the power of 0.73.",
                "less",
                0.73,
                f"{KAPLAN}: 0.73, against which {CHINCHILLA} argues",
                -0.24,
            ),
            _claim(
                "chinchilla",
                "The exponent of the optimal number of parameters is 0.5, within 0.1.",
                "equivalent",
                0.1,
                f"{CHINCHILLA}: 0.49",
                -0.01,
            ),
            _claim(
                "prediction",
                "The smaller budgets predict the loss of the largest one, within 0.03 nats.",
                "equivalent",
                0.03,
                "the use that both papers make of their fits",
            ),
        ),
        tiers={
            "smoke": smoke(
                *_rows_of("1e11"),
                "fresh",
                train={"data.length": 64, "data.batch": 4, "model.vocab": 1000, "tokenizer.vocab": 1000, "log.samples": 0},
            ),
            "nano": Tier(rows=(*_rows_of("1e12", "3e12", "1e13"), "fresh"), overrides={"train": _data()}),
            "night": Tier(rows=(*_rows_of("3e12", "1e13", "3e13", "1e14"), "fresh"), overrides={"train": _data()}),
        },
        forecast={
            "inner_minimum": "Clear minima: the loss has a standard deviation of 0.01 to 0.02 nats.",
            "below_kaplan": "Not shown in nano, where the interval of the exponent is wide; open in night.",
            "chinchilla": "Not shown: the interval is wider than 0.1.",
            "prediction": "Open.",
        },
        judge=scaling_fit.judge_scaling_claims,
    )


def _claim(name: str, text: str, kind: Kind, margin: float, source: str, difference: float | None = None) -> Claim:
    """Return a claim about the fit, which the judge of this experiment makes."""
    fields: dict[str, Any] = {"metric": "train/loss", "row": "fit", "reference": (), "paper_difference": difference}
    return Claim(id=name, text=text, kind=kind, margin=margin, source=source, **fields)


def _name(budget: str, place: int) -> str:
    return f"c{budget}-l{SIZES[place][0]}w{SIZES[place][1]}"


def _words(place: int) -> str:
    return f"{SIZES[place][0]} layers of width {SIZES[place][1]}"


def _rows_of(*budgets: str) -> tuple[str, ...]:
    return tuple(_name(budget, place) for budget in budgets for place in BUDGETS[budget])


def _options(budget: str, place: int) -> Options:
    layers, width = SIZES[place]
    # The rate falls with the width, as for AdamW with fixed initialization (Yang et al. 2021).
    sizes = {"model.layers": layers, "model.width": width, "model.heads": width // 32, "model.ffn": 4 * width}
    return {**sizes, "optim.lr": round(1e-3 * 192 / width, 6), "steps": Flops(float(budget))}


def _data() -> Options:
    """Return the options of rows short enough for a smooth choice of steps: 1,024 tokens a step."""
    return {"data.length": 128, "data.batch": 8, "model.vocab": 2048, "tokenizer.vocab": 2048, "log.samples": 0}
