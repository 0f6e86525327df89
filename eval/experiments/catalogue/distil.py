"""DistilBERT's table 4: the terms of the loss, and the initial parameters."""

import dataclasses
import functools

from eval.experiments.catalogue._common import COMMON, FRESH, SMALL, TINY, claim, nano, night, paper, smoke, table_row
from eval.experiments.declaration import TEXT, Experiment, Options, Row, Stage

SOURCE = "Sanh et al. 2019, table 4"
_row = functools.partial(table_row, columns=("change of GLUE",))


def distil() -> Experiment:
    """Return the experiment. Each seed has a teacher of its own; a row is the same student without one."""
    changes = {"no_soft": -2.96, "no_cosine": -1.46, "fresh": -3.69, "no_masked": -0.31}
    # Not an option of the stage, because the run that trains the tokenizer has those, and no teacher.
    distilled: Options = {"objective": "distilled"}
    rows = (
        _row("triple", "all three losses, the teacher's weights", distilled, 0.0),
        *(
            _row(f"no_{loss}", f"without the {loss} loss", {**distilled, f"distillation.{loss}": 0.0}, changes[f"no_{loss}"])
            for loss in ("soft", "cosine", "masked")
        ),
        _row("fresh", "all three losses, fresh parameters", {**distilled, "distillation.fresh": True}, changes["fresh"]),
        Row(
            name="alone",
            label="the same student without a teacher",
            overrides={"objective": "masked"},
            without=("teacher",),
            # No claim is about it, and its budget lacks the teacher's.
            group="alone",
        ),
        Row(
            name="untrained",
            label="the student before training (control)",
            overrides={"objective": "masked", **FRESH},
            without=("teacher",),
        ),
    )
    common = {"metric": "common/loss", "margin": 0.02, "paired": True}
    claims = [
        claim(
            f"triple_below_{name}",
            f"triple < {name}",
            f"The student is better with all three losses than {words}.",
            -changes[name],
            source=SOURCE,
            **common,
        )
        for name, words in (
            ("no_soft", "without the soft loss"),
            ("no_cosine", "without the cosine loss"),
            ("fresh", "from fresh parameters"),
        )
    ]
    null = claim(
        "triple_is_no_masked",
        "triple = no_masked",
        "The masked loss is not needed.",
        -changes["no_masked"],
        source=f"{SOURCE}: a change of -0.31, less than what restarts of its tasks differ by",
        **common,
    )
    student = {**SMALL, "model.layers": 1}
    # A student is trained on masks like those of the score: the recipe's, which prefer rare tokens, reversed the order of rows.
    plain: Options = {"masking.rare": 0.0}
    # In 8,000 steps a BERT of this size learned the frequencies of words alone, 5.34 nats; with ModernBERT's layers it was at
    # 3.6 after 1,600.
    modern = {**TINY, "model.ffn": 128, "log.validate_every": 500}
    teacher = {**modern, "model.layers": 4, "steps": 6_000}
    learner = {**modern, **plain, "steps": 3_000}
    tiny = dataclasses.replace(
        nano(teacher=teacher, student=learner),
        recipes={"bert-nano": "modernbert-nano", "distilbert-nano": "modernbert-nano"},
    )
    return Experiment(
        name="distil",
        question="Which parts of the triple loss does a student need, and does it need its teacher's weights?",
        source=SOURCE,
        scale="Students of {parameters} parameters and {tokens} tokens; the paper: 66M parameters, Wikipedia and BooksCorpus",
        rows=rows,
        control="untrained",
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
            "smoke": smoke("triple", "no_soft", "untrained", teacher=SMALL, student=student),
            "nano": tiny,
            "night": night(night(tiny, stage="student"), stage="teacher"),
            "paper": paper("bert", "distilbert"),
        },
        forecast={
            "triple_below_no_soft": "Reproduced by less than 0.1: the distribution of a better teacher says more than a token.",
            "triple_below_no_cosine": "Direction only or not shown: 0.006 nats were seen with models that had learned less.",
            "triple_below_fresh": "Reproduced: in half of its teacher's steps a student does not learn what it would begin with.",
            "triple_is_no_masked": "Not equivalent: the masked loss helps by a few hundredths, as it is what is judged.",
        },
        tokenizer="bert-nano",
    )
