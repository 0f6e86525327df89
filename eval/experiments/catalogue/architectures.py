"""T5's table 2: encoder-decoders, shared parameters, and decoder-only models, with denoising and language modelling."""

import dataclasses

from eval.experiments.catalogue._common import FRESH, TRANSLATE, claim, pretraining, table_row, translation_tiers
from eval.experiments.declaration import Experiment, Options, Row, Times

SOURCE = "Raffel et al. 2020, table 2"
COLUMNS = ("GLUE", "CNN/DM", "SQuAD EM", "SuperGLUE")
DECODER: Options = {"model.architecture": "decoder"}


def architectures() -> Experiment:
    """Return the experiment. Rows are judged by the loss of translations, which all architectures have."""
    language_model: Options = {**DECODER, "denoising.causal": True}
    suffix: Options = {**DECODER, "denoising.kind": "lm"}
    rows = (
        _row("encdec", "encoder-decoder", {}, 83.28, 19.24, 80.88, 71.36),
        _row("shared", "encoder and decoder share parameters", {"model.architecture": "shared"}, 82.81, 18.78, 80.63, 70.73),
        _row(
            "half",
            "half the layers",
            {"model.layers": Times(0.5), "model.decoder_layers": Times(0.5)},
            80.88,
            18.97,
            77.59,
            68.42,
        ),
        _row("lm", "language model", language_model, 74.70, 17.93, 61.14, 55.02, causal=True),
        _row("prefix_lm", "prefix language model", DECODER, 81.82, 18.61, 78.94, 68.11),
        _row("encdec_lm", "encoder-decoder, language modelling", {"denoising.kind": "prefix"}, 79.56, 18.59, 76.02, 64.29),
        _row("lm_lm", "language model, language modelling", suffix, 73.78, 17.54, 53.81, 56.51, causal=True),
        Row(name="none", label="no pretraining (control)", overrides={"denoising.kind": "iid", **FRESH}),
    )
    loss = {"metric": "translate/loss", "margin": 0.02, "source": SOURCE}
    return Experiment(
        name="architectures",
        question="Does a text-to-text model need an encoder, and parameters of its own for it?",
        source=SOURCE,
        scale="T5 of {parameters} parameters and {tokens} input tokens, then translation; the paper: 220M parameters, 34B tokens",
        rows=rows,
        control="none",
        stages=(pretraining("t5-nano"), TRANSLATE),
        budget="input_tokens",
        claims=(
            claim(
                "shared_is_encdec",
                "encdec = shared",
                "Sharing the parameters of encoder and decoder costs nothing.",
                0.47,
                **loss,
            ),
            claim("encdec_below_lm", "encdec < lm", "An encoder-decoder is better than a language model.", 8.58, **loss),
            claim(
                "denoising_below_lm",
                "encdec < encdec_lm",
                "Denoising is better than language modelling for an encoder-decoder.",
                3.72,
                **loss,
            ),
            claim(
                "encdec_below_prefix_lm",
                "encdec < prefix_lm",
                "An encoder-decoder is better than a prefix language model.",
                1.46,
                **loss,
            ),
        ),
        tiers=translation_tiers(("encdec", "lm", "none"), ("encdec", "shared", "lm", "prefix_lm", "encdec_lm", "none")),
        forecast={
            "shared_is_encdec": "Not equivalent: half the parameters cost more than 0.02 nats at this size.",
            "encdec_below_lm": "Reproduced: the source is not read in both directions by a language model.",
            "denoising_below_lm": "Contradicted: predicting the second part of a text trains the decoder on whole sentences.",
            "encdec_below_prefix_lm": "Reproduced: twice the parameters for as many FLOPs.",
        },
    )


def _row(name: str, label: str, overrides: Options, *numbers: float, causal: bool = False) -> Row:
    """Return a row; with `causal`, the attention of the fine-tuned model is causal too."""
    row = table_row(name, label, {"denoising.kind": "iid", **overrides}, *numbers, columns=COLUMNS)
    return dataclasses.replace(row, stages={"translate": {"denoising.causal": True}}) if causal else row
