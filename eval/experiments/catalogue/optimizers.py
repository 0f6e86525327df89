"""Optimizers of a decoder at equal tokens: Wen et al. 2025 and Zhao et al. 2024."""

from typing import Any

from eval.experiments.catalogue._common import FRESH_ROW, SMALL, TINY, claim, nano, night, pretraining, smoke
from eval.experiments.declaration import Experiment, Options, Row, Times

WEN, ZHAO = "Wen et al. 2025, Fantastic pretraining optimizers", "Zhao et al. 2024, Deconstructing what makes a good optimizer"
DECODER: Options = {**TINY, "model.head": 16}
RATES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Multiples of each row's own rate: those of the rows are further from the best than that of one optimizer would be."""


def optimizers() -> Experiment:
    """Return the experiment. All rows read the same tokens; a pilot chooses the learning rate of each.

    There is no weight decay: it is multiplied by the rates, which differ by up to 300 times. All other numbers are the defaults.
    """
    rows = (
        _row("adamw", "AdamW"),
        _row("stable_adamw", "StableAdamW"),
        # Chen et al. 2023: a rate that is 3 to 10 times smaller than AdamW's.
        _row("lion", "Lion", 0.1),
        # Updates of unit root mean square, times that of the parameter; T5's rate is 0.01.
        _row("adafactor", "Adafactor", 3.0),
        # Updates of the root mean square of Adam's (Liu et al. 2025).
        _row("muon", "Muon, AdamW for the embeddings"),
        # The default rate of the released code of Vyas et al. 2024 is 3e-3.
        _row("soap", "SOAP"),
        # You et al. 2020 train BERT with 6e-3 and clip no gradients; updates are in proportion to the parameters.
        _row("lamb", "LAMB", 3.0),
        # A gradient of norm 1 moves all parameters together by the rate, times 20 with the momentum of 0.95.
        _row("sgd", "SGD with momentum", 30.0),
    )
    common: dict[str, Any] = {"metric": "pretrain/loss", "margin": 0.02, "paired": True}
    claims = (
        claim(
            "muon_below_adamw",
            "muon < adamw",
            "Muon gives a lower loss than AdamW.",
            source=f"{WEN}: the matrix-based optimizers are the fastest, 1.4 times AdamW with 0.1B parameters",
            **common,
        ),
        claim(
            "soap_below_adamw",
            "soap < adamw",
            "SOAP gives a lower loss than AdamW.",
            source=f"{WEN}; Vyas et al. 2024: 40% fewer steps than AdamW",
            **common,
        ),
        claim(
            "sgd_above_adamw",
            "sgd > adamw",
            "SGD gives a higher loss than AdamW.",
            source=f"{ZHAO}: all perform comparably except SGD",
            **common,
        ),
        claim(
            "lion_is_adamw",
            "lion = adamw",
            "Lion gives the same loss as AdamW.",
            source=f"{ZHAO}: all perform comparably except SGD",
            **common,
        ),
    )
    tiny = nano(pretrain=DECODER, rates=RATES)
    return Experiment(
        name="optimizers",
        question="Which optimizer gives a decoder the lowest loss at the same number of tokens?",
        source=f"{WEN}; {ZHAO}",
        scale="GPT of {parameters} parameters and {tokens} tokens; the papers: 0.1B to 1.2B parameters",
        rows=(*rows, FRESH_ROW),
        control="fresh",
        stages=(pretraining("gpt-nano", {"optim.lr": 3e-3, "optim.weight_decay": 0.0}),),
        budget="input_tokens",
        claims=claims,
        tiers={
            "smoke": smoke("adamw", "muon", "soap", "sgd", "fresh", pretrain=SMALL),
            "nano": tiny,
            "night": night(tiny),
        },
        forecast={
            "muon_below_adamw": "Reproduced: its gain is largest in small models, and the loss still falls fast.",
            "soap_below_adamw": "Reproduced, by about as much as Muon's.",
            "sgd_above_adamw": "Reproduced, and the largest: SGD does not scale the small gradients of rare tokens.",
            "lion_is_adamw": "Not equivalent: at this size, rates that differ by a factor of 2 differ by over 0.02.",
        },
    )


def _row(name: str, label: str, rate: float = 1.0) -> Row:
    """Return the row of an optimizer, whose rate in the pilot is around `rate` times AdamW's."""
    own: Options = {} if rate == 1 else {"optim.lr": Times(rate)}
    return Row(name=name, label=label, overrides={"optim.name": name, **own})
