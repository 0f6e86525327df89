"""Distillation of a decoder from a larger one, at equal tokens of the student, and the divergence from its teacher."""

from typing import Any

from eval.experiments.catalogue._common import FRESH, SMALL, TINY, claim, nano, night, smoke
from eval.experiments.declaration import TEXT, Experiment, Options, Row, Stage

HINTON, AGARWAL, WU = "Hinton et al. 2015", "Agarwal et al. 2024", "Wu et al. 2024, Rethinking KL divergence in distillation"
DECODER: Options = {**TINY, "model.head": 16}
TEACHER: Options = {**DECODER, "model.layers": 4, "model.width": 128, "model.heads": 8, "model.ffn": 512, "optim.lr": 2e-3}


def student() -> Experiment:
    """Return the experiment. Each seed has a teacher of its own; a row is the same student without one."""
    rows = (
        Row(name="forward", label="with a teacher, KL(teacher || student)", overrides={"distillation.divergence": "forward_kl"}),
        Row(name="reverse", label="with a teacher, KL(student || teacher)", overrides={"distillation.divergence": "reverse_kl"}),
        Row(
            name="soft",
            label="with a teacher, whose probabilities are the only targets",
            overrides={"distillation.targets": 0.0},
        ),
        Row(
            name="alone",
            label="without a teacher",
            without=("teacher",),
            # It reads as many tokens as the other students. The budget counts the teacher's too, which it lacks.
            group="alone",
        ),
        Row(name="fresh", label="fresh parameters (control)", overrides=FRESH, without=("teacher",)),
    )
    common: dict[str, Any] = {"metric": "student/loss", "margin": 0.02, "paired": True}
    claims = (
        claim(
            "distilled_below_alone",
            "forward < alone",
            "A student of a larger teacher has a lower loss than the same model alone, at as many tokens of the student.",
            source=f"{HINTON}; Sanh et al. 2019, table 4, for encoders",
            **common,
        ),
        claim(
            "reverse_is_forward",
            "reverse = forward",
            "Both divergences give the same loss.",
            source=f"{WU}: both converge to the same optimum after enough epochs; {AGARWAL}: the best depends on the task",
            **common,
        ),
        claim(
            "targets_help",
            "forward < soft",
            "The tokens of the text as targets beside the teacher's probabilities lower the loss.",
            source=f"{HINTON}, section 2: a weighted average of both objectives is better",
            **common,
        ),
    )
    tiny = nano(teacher={**TEACHER, "steps": 8_000}, student=DECODER)
    return Experiment(
        name="student",
        question="Does a decoder learn more from the same text with a larger teacher, and by which divergence?",
        source=f"{HINTON}; {AGARWAL}; {WU}",
        scale="Students of {parameters} parameters and {tokens} tokens, a teacher of six times the size; the papers: 77M to 7B "
        "parameters, fine-tuned",
        rows=rows,
        control="fresh",
        stages=(
            Stage(name="teacher", recipe="gpt-nano", overrides=TEXT, shared=True, seconds=10.0),
            Stage(
                name="student",
                recipe="gpt-nano",
                overrides={**TEXT, "optim.lr": 3e-3},
                after="teacher",
                parent_option="distillation.teacher",
                seconds=15.0,
            ),
        ),
        budget="input_tokens",
        claims=claims,
        tiers={
            "smoke": smoke("forward", "reverse", "alone", "fresh", teacher=SMALL, student={**SMALL, "model.layers": 1}),
            "nano": tiny,
            "night": night(night(tiny, stage="student"), stage="teacher"),
        },
        forecast={
            "distilled_below_alone": "Reproduced: on Moby-Dick a student of 0.64M parameters gained 0.07 bits per byte.",
            "reverse_is_forward": "Not equivalent: forward is lower, since the score is itself a forward divergence, from the "
            "text, and a reverse one gives improbable tokens too little probability.",
            "targets_help": "Direction only: the teacher has read the text twice, and what it missed is in the targets alone.",
        },
    )
