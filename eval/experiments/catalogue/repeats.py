"""T5's table 9: less text, repeated more often, at the same number of steps."""

import itertools

from eval.experiments.catalogue._common import FRESH, SMALL
from eval.experiments.declaration import TEXT, Claim, Experiment, Row, Stage, Tier

SOURCE = "Raffel et al. 2020, table 9"
SHARES = {"full": 1, "share_16": 16, "share_64": 64, "share_256": 256}
PAPER = {
    "full": ("the full text", {"GLUE": 83.28, "SQuAD EM": 80.88, "SuperGLUE": 71.36}),
    "share_16": ("a 16th of the text (the paper: a 256th, 256 repeats)", {"GLUE": 82.62, "SQuAD EM": 79.78, "SuperGLUE": 69.97}),
    "share_64": ("a 64th of the text (the paper: a 1,024th)", {"GLUE": 79.55, "SuperGLUE": 64.76}),
    "share_256": ("a 256th of the text (the paper: a 4,096th)", {"GLUE": 76.34, "SQuAD EM": 70.92, "SuperGLUE": 59.29}),
}
SMALL_T5 = {**SMALL, "model.decoder_layers": 2, "model.head": 32}


def repeats() -> Experiment:
    """Return the experiment."""
    order = tuple(SHARES)
    rows = [
        Row(name=name, label=PAPER[name][0], paper=PAPER[name][1], overrides={} if share == 1 else {"data.take": 1 / share})
        for name, share in SHARES.items()
    ]
    claims = [
        Claim(
            id=f"{more}_below_{less}",
            text=f"The held-out loss with {_words(more)} is below that with {_words(less)}.",
            kind="less",
            metric="pretrain/loss",
            row=more,
            reference=(less,),
            margin=0.02,
            source=SOURCE,
            paper_difference=round(PAPER[more][1]["GLUE"] - PAPER[less][1]["GLUE"], 2),
        )
        for more, less in itertools.pairwise(order)
    ]
    return Experiment(
        name="repeats",
        question="What does it cost to repeat a part of the text instead of reading new text?",
        source=SOURCE,
        scale="T5 of {parameters} parameters and {tokens} tokens; the paper: 220M parameters, 34B tokens",
        rows=(*rows, Row(name="fresh", label="fresh parameters (control)", overrides=FRESH)),
        control="fresh",
        stages=(Stage(name="pretrain", recipe="t5-nano", overrides=TEXT, seconds=15.0),),
        budget="input_tokens",
        claims=tuple(claims),
        tiers={
            "smoke": Tier(corpus="embedded", seeds=1, rows=("full", "share_16", "fresh"), overrides={"pretrain": SMALL_T5}),
            "nano": Tier(overrides={"pretrain": {"steps": 600, "optim.warmup": 60}}),
            "night": Tier(overrides={"pretrain": {"steps": 5_500, "optim.warmup": 550}}),
            "paper": Tier(corpus="user", seeds=1, recipes={"t5-nano": "t5"}),
        },
        forecast={
            "full_below_share_16": "Not shown in nano, where a 16th of the text is read about three times; reproduced in night.",
            "share_16_below_share_64": "Reproduced: a 64th of the text is read about 13 times in nano.",
            "share_64_below_share_256": "Reproduced, and the largest of the three: about 52 passes in nano.",
        },
    )


def _words(row: str) -> str:
    return PAPER[row][0].partition(" (")[0]
