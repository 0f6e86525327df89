"""DistilBERT's table 4: the terms of the loss, and the initial parameters."""

import dataclasses

from eval.experiments.catalogue._common import COMMON, SMALL
from eval.experiments.declaration import TEXT, Claim, Experiment, Row, Stage, Tier

SOURCE = "Sanh et al. 2019, table 4"


def distil() -> Experiment:
    """Return the experiment. Each seed has a teacher of its own; the control is the same student without a teacher."""
    changes = {"no_soft": -2.96, "no_cosine": -1.46, "fresh": -3.69, "no_masked": -0.31}
    rows = (
        Row(name="triple", label="all three losses, the teacher's weights", paper={"change of GLUE": 0.0}),
        Row(
            name="no_soft",
            label="without the soft loss",
            overrides={"distillation.soft": 0.0},
            paper={"change of GLUE": changes["no_soft"]},
        ),
        Row(
            name="no_cosine",
            label="without the cosine loss",
            overrides={"distillation.cosine": 0.0},
            paper={"change of GLUE": changes["no_cosine"]},
        ),
        Row(
            name="no_masked",
            label="without the masked loss",
            overrides={"distillation.masked": 0.0},
            paper={"change of GLUE": changes["no_masked"]},
        ),
        Row(
            name="fresh",
            label="all three losses, fresh parameters",
            overrides={"distillation.fresh": True},
            paper={"change of GLUE": changes["fresh"]},
        ),
        Row(
            name="alone",
            label="the same student without a teacher (control)",
            overrides={"objective": "masked"},
            without=("teacher",),
        ),
    )
    claims = [
        Claim(
            id=f"triple_below_{name}",
            text=f"The student is better with all three losses than {words}.",
            kind="less",
            metric="common/loss",
            row="triple",
            reference=(name,),
            margin=0.02,
            paired=True,
            source=SOURCE,
            paper_difference=changes[name],
        )
        for name, words in (
            ("no_soft", "without the soft loss"),
            ("no_cosine", "without the cosine loss"),
            ("fresh", "from fresh parameters"),
        )
    ]
    null = Claim(
        id="triple_is_no_masked",
        text="The masked loss is not needed.",
        kind="equivalent",
        metric="common/loss",
        row="triple",
        reference=("no_masked",),
        margin=0.02,
        paired=True,
        source=f"{SOURCE}: a change of -0.31, less than what restarts of its tasks differ by",
        paper_difference=changes["no_masked"],
    )
    student = {**SMALL, "model.layers": 1}
    return Experiment(
        name="distil",
        question="Which parts of the triple loss does a student need, and does it need its teacher's weights?",
        source=SOURCE,
        scale="Students of {parameters} parameters and {tokens} tokens; the paper: 66M parameters, Wikipedia and BooksCorpus",
        rows=rows,
        control="alone",
        stages=(
            Stage(name="teacher", recipe="bert-nano", overrides=TEXT, shared=True, seconds=10.0),
            Stage(
                name="student",
                recipe="distilbert-nano",
                overrides=TEXT,
                after="teacher",
                parent_option="distillation.teacher",
                seconds=10.0,
            ),
            dataclasses.replace(COMMON, after="student"),
        ),
        budget="input_tokens",
        claims=(*claims, null),
        tiers={
            "smoke": Tier(
                corpus="embedded",
                seeds=1,
                rows=("triple", "no_soft", "alone"),
                overrides={"teacher": SMALL, "student": student},
            ),
            "nano": Tier(overrides={"teacher": {"steps": 640}, "student": {"steps": 400}}),
            "night": Tier(
                seeds=5,
                overrides={"teacher": {"steps": 2_560, "optim.warmup": 256}, "student": {"steps": 1_600, "optim.warmup": 80}},
            ),
            "paper": Tier(corpus="user", recipes={"bert-nano": "bert", "distilbert-nano": "distilbert"}),
        },
        forecast={
            "triple_below_no_soft": "Open.",
            "triple_below_no_cosine": "Open.",
            "triple_below_fresh": "Reproduced, and the largest effect: students already beat teachers of the same seed.",
            "triple_is_no_masked": "Not shown: the margin is about the noise at three seeds.",
        },
        tokenizer="bert-nano",
    )
