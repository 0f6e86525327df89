"""RoBERTa's table 1: new masks in every epoch against fixed ones."""

from eval.experiments.catalogue._common import FRESH_ROW, SMALL, TINY, claim, nano, night, paper, pretraining, smoke
from eval.experiments.declaration import Experiment, Row

SOURCE = "Liu et al. 2019, table 1"


def masks() -> Experiment:
    """Return the experiment. A hundredth of the text is read 40 times, as in the paper: each of ten masks is used four times."""
    loss = {"metric": "pretrain/masked_loss", "margin": 0.02, "paired": True}
    small = nano(pretrain={**TINY, "data.take": 0.01})
    return Experiment(
        name="masks",
        question="Is it better to mask other words in every epoch than to fix the masks beforehand?",
        source=SOURCE,
        scale="RoBERTa of {parameters} parameters and {tokens} tokens; the paper: 125M parameters, 40 epochs of 16 GB of text",
        rows=(
            Row(name="dynamic", label="dynamic masks", paper={"SQuAD 2.0 F1": 78.7, "MNLI-m": 84.0, "SST-2": 92.9}),
            Row(
                name="static_10",
                label="ten fixed masks of each row, the paper's static masks",
                overrides={"masking.static": 10},
                paper={"SQuAD 2.0 F1": 78.3, "MNLI-m": 84.3, "SST-2": 92.5},
            ),
            Row(name="static_1", label="one fixed mask of each row", overrides={"masking.static": 1}),
            FRESH_ROW,
        ),
        control="fresh",
        stages=(pretraining("roberta-nano"),),
        budget="input_tokens",
        claims=(
            claim(
                "dynamic_below_static_1",
                "dynamic < static_1",
                "Dynamic masks give a lower masked loss than one fixed mask of each row.",
                source="not in the paper: the extreme case of its static masks",
                **loss,
            ),
            claim(
                "static_10_below_static_1",
                "static_10 < static_1",
                "Ten fixed masks of each row give a lower masked loss than one.",
                source="not in the paper: the extreme case of its static masks",
                **loss,
            ),
            claim(
                "dynamic_is_static_10",
                "dynamic = static_10",
                "Dynamic masks and ten fixed masks of each row are equivalent.",
                0.4,
                source=f"{SOURCE}: comparable or slightly better; the signs of the three tasks differ",
                **loss,
            ),
        ),
        tiers={
            "smoke": smoke("dynamic", "static_1", "fresh", pretrain=SMALL),
            "nano": small,
            "night": night(small, {"data.take": 0.1}),
            "paper": paper("roberta", pretrain={"steps": 1_000_000, "data.batch": 256}),
        },
        forecast={
            "dynamic_below_static_1": "Reproduced, by more than 0.1 nats: with 40 epochs a fixed mask is learned by heart.",
            "static_10_below_static_1": "Reproduced: nine tenths of the difference between new masks and one.",
            "dynamic_is_static_10": "Equivalent: each of ten masks is seen four times, which costs less than 0.02 nats.",
        },
    )
