"""T5's table 9: less text, repeated more often, at the same number of steps."""

import itertools

from eval.experiments.catalogue._common import FRESH_ROW, SMALL_T5, claim, paper, pretraining, smoke
from eval.experiments.declaration import Experiment, Row, Tier

SOURCE = "Raffel et al. 2020, table 9"
SHARES = {"full": 1, "share_16": 16, "share_64": 64, "share_256": 256}
PAPER = {
    "full": ("the full text", {"GLUE": 83.28, "SQuAD EM": 80.88, "SuperGLUE": 71.36}),
    "share_16": ("a 16th of the text (the paper: a 256th, 256 repeats)", {"GLUE": 82.62, "SQuAD EM": 79.78, "SuperGLUE": 69.97}),
    "share_64": ("a 64th of the text (the paper: a 1,024th)", {"GLUE": 79.55, "SuperGLUE": 64.76}),
    "share_256": ("a 256th of the text (the paper: a 4,096th)", {"GLUE": 76.34, "SQuAD EM": 70.92, "SuperGLUE": 59.29}),
}


def repeats() -> Experiment:
    """Return the experiment. All rows read as many tokens; they differ in how many of those are new."""
    loss = {"metric": "pretrain/loss", "margin": 0.02, "source": SOURCE}
    rows = [
        Row(name=name, label=PAPER[name][0], paper=PAPER[name][1], overrides={} if share == 1 else {"data.take": 1 / share})
        for name, share in SHARES.items()
    ]
    claims = [
        claim(
            f"{more}_below_{less}",
            f"{more} < {less}",
            f"The held-out loss with {_words(more)} is below that with {_words(less)}.",
            round(PAPER[more][1]["GLUE"] - PAPER[less][1]["GLUE"], 2),
            **loss,
        )
        for more, less in itertools.pairwise(SHARES)
    ]
    return Experiment(
        name="repeats",
        question="What does it cost to repeat a part of the text instead of reading new text?",
        source=SOURCE,
        scale="T5 of {parameters} parameters and {tokens} tokens; the paper: 220M parameters, 34B tokens",
        rows=(*rows, FRESH_ROW),
        control="fresh",
        stages=(pretraining("t5-nano"),),
        budget="input_tokens",
        claims=tuple(claims),
        tiers={
            "smoke": smoke("full", "share_16", "fresh", pretrain=SMALL_T5),
            "nano": Tier(overrides={"pretrain": {"steps": 600, "optim.warmup": 60}}),
            "night": Tier(overrides={"pretrain": {"steps": 5_500, "optim.warmup": 550}}),
            "paper": paper("t5", seeds=1),
        },
        forecast={
            "full_below_share_16": "Not shown in nano, where a 16th of the text is read about three times; reproduced in night.",
            "share_16_below_share_64": "Reproduced: a 64th of the text is read about 13 times in nano.",
            "share_64_below_share_256": "Reproduced, and the largest of the three: about 52 passes in nano.",
        },
    )


def _words(row: str) -> str:
    return PAPER[row][0].partition(" (")[0]
