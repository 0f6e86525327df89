"""T5's table 2: encoder-decoders, shared parameters, and decoders alone, with denoising and language modelling."""

import dataclasses

from eval.experiments.catalogue._common import FRESH, SST2_TEXT, SST2_TEXT_NANO, SST2_TEXT_SMOKE
from eval.experiments.catalogue.repeats import SMALL_T5
from eval.experiments.declaration import TEXT, Claim, Experiment, Options, Row, Stage, Tier

SOURCE = "Raffel et al. 2020, table 2"
COLUMNS = ("GLUE", "CNN/DM", "SQuAD EM", "SuperGLUE")
DECODER: Options = {"model.architecture": "decoder"}


def architectures() -> Experiment:
    """Return the experiment. Rows are judged by the loss of the labels of SST-2, since a decoder alone is not decoded here."""
    causal = {"sst2": {"denoising.causal": True}}
    rows = (
        _row("encdec", "encoder-decoder", {}, 83.28, 19.24, 80.88, 71.36),
        _row("shared", "encoder and decoder share parameters", {"model.architecture": "shared"}, 82.81, 18.78, 80.63, 70.73),
        _row(
            "half",
            "half the layers",
            {"model.layers": 2, "model.decoder_layers": 2},
            80.88,
            18.97,
            77.59,
            68.42,
        ),
        dataclasses.replace(
            _row(
                "lm", "language model", {**DECODER, "denoising.kind": "iid", "denoising.causal": True}, 74.70, 17.93, 61.14, 55.02
            ),
            stages=causal,
        ),
        _row("prefix_lm", "prefix language model", {**DECODER, "denoising.kind": "iid"}, 81.82, 18.61, 78.94, 68.11),
        _row("encdec_lm", "encoder-decoder, language modelling", {"denoising.kind": "prefix"}, 79.56, 18.59, 76.02, 64.29),
        dataclasses.replace(
            _row("lm_lm", "language model, language modelling", {**DECODER, "denoising.kind": "lm"}, 73.78, 17.54, 53.81, 56.51),
            stages=causal,
        ),
        Row(name="none", label="no pretraining (control)", overrides={"denoising.kind": "iid", **FRESH}),
    )
    encdec = {"metric": "sst2/loss", "row": "encdec", "source": SOURCE, "margin": 0.02}
    return Experiment(
        name="architectures",
        question="Does a text-to-text model need an encoder, and parameters of its own for it?",
        source=SOURCE,
        scale="T5 of {parameters} parameters and {tokens} input tokens, SST-2 as text; the paper: 220M parameters, 34B tokens",
        rows=rows,
        control="none",
        stages=(Stage(name="pretrain", recipe="t5-nano", overrides=TEXT, seconds=15.0), SST2_TEXT),
        budget="input_tokens",
        claims=(
            Claim(
                id="shared_is_encdec",
                text="Sharing the parameters of encoder and decoder costs nothing.",
                kind="equivalent",
                reference=("shared",),
                paper_difference=0.47,
                **encdec,
            ),
            Claim(
                id="encdec_below_lm",
                text="An encoder-decoder is better than a language model.",
                kind="less",
                reference=("lm",),
                paper_difference=8.58,
                **encdec,
            ),
            Claim(
                id="denoising_below_lm",
                text="Denoising is better than language modelling for an encoder-decoder.",
                kind="less",
                reference=("encdec_lm",),
                paper_difference=3.72,
                **encdec,
            ),
            Claim(
                id="encdec_below_prefix_lm",
                text="An encoder-decoder is better than a prefix language model.",
                kind="less",
                reference=("prefix_lm",),
                paper_difference=1.46,
                **encdec,
            ),
        ),
        tiers={
            "smoke": Tier(
                corpus="embedded",
                tasks="generated",
                seeds=1,
                rows=("encdec", "lm", "none"),
                overrides={"pretrain": SMALL_T5, "sst2": SST2_TEXT_SMOKE},
            ),
            "nano": Tier(
                rows=("encdec", "shared", "lm", "encdec_lm", "none"),
                overrides={"pretrain": {"steps": 300}, "sst2": SST2_TEXT_NANO},
            ),
            "night": Tier(overrides={"pretrain": {"steps": 3_000, "optim.warmup": 300}, "sst2": SST2_TEXT_NANO}),
            "paper": Tier(corpus="user", seeds=1, recipes={"t5-nano": "t5"}, overrides={"sst2": {"steps": 32_768}}),
        },
        forecast={
            "shared_is_encdec": "Not testable in nano, where no row may beat the control; open in night.",
            "encdec_below_lm": "Not testable or not shown in nano.",
            "denoising_below_lm": "Not testable or not shown in nano.",
            "encdec_below_prefix_lm": "Open.",
        },
    )


def _row(name: str, label: str, overrides: Options, *numbers: float) -> Row:
    own = {"denoising.kind": "iid", **overrides}
    return Row(name=name, label=label, overrides=own, paper=dict(zip(COLUMNS, numbers, strict=True)))
