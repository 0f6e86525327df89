"""T5's table 9: less text, repeated more often, at the same number of steps."""

import itertools

from eval.experiments.catalogue._common import FRESH_ROW, SMALL_T5, TINY_T5, claim, nano, night, paper, pretraining, smoke
from eval.experiments.declaration import Experiment, Row

SOURCE = "Raffel et al. 2020, table 9"
SHARES = {"full": 1, "share_16": 16, "share_64": 64, "share_256": 256}
PAPER = {
    "full": ("the full text", {"GLUE": 83.28, "SQuAD EM": 80.88, "SuperGLUE": 71.36}),
    "share_16": ("a 16th of the text (the paper: a 256th, 256 repeats)", {"GLUE": 82.62, "SQuAD EM": 79.78, "SuperGLUE": 69.97}),
    "share_64": ("a 64th of the text (the paper: a 1,024th)", {"GLUE": 79.55, "SuperGLUE": 64.76}),
    "share_256": ("a 256th of the text (the paper: a 4,096th)", {"GLUE": 76.34, "SQuAD EM": 70.92, "SuperGLUE": 59.29}),
}


def repeats() -> Experiment:
    """Return the experiment. All rows read as many tokens; a part of the text is random pieces of it, others for each seed."""
    loss = {"metric": "pretrain/loss", "margin": 0.02, "source": SOURCE}
    small = nano(pretrain=TINY_T5)
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
            "nano": small,
            "night": night(small),
            "paper": paper("t5", seeds=1),
        },
        forecast={
            "full_below_share_16": "Equivalent in nano: a 16th of the text is read five times, which costs about as much as new "
            "text (Muennighoff et al. 2023: four passes cost nothing); reproduced in night.",
            "share_16_below_share_64": "Reproduced, by less than 0.1 nats: a 64th of the text is read about 20 times.",
            "share_64_below_share_256": "Reproduced, and the largest of the three: about 80 passes.",
        },
    )


def _words(row: str) -> str:
    return PAPER[row][0].partition(" (")[0]
