"""T5's table 2: encoder-decoders, shared parameters, and decoder-only models, with denoising and language modelling."""

import dataclasses

from eval.experiments.catalogue._common import FRESH, SST2_TEXT, claim, pretraining, t5_sst2_tiers, table_row
from eval.experiments.declaration import Experiment, Options, Row

SOURCE = "Raffel et al. 2020, table 2"
COLUMNS = ("GLUE", "CNN/DM", "SQuAD EM", "SuperGLUE")
DECODER: Options = {"model.architecture": "decoder"}


def architectures() -> Experiment:
    """Return the experiment. Rows are judged by the loss of SST-2's labels, since decoder-only models are not decoded here."""
    language_model: Options = {**DECODER, "denoising.causal": True}
    suffix: Options = {**DECODER, "denoising.kind": "lm"}
    rows = (
        _row("encdec", "encoder-decoder", {}, 83.28, 19.24, 80.88, 71.36),
        _row("shared", "encoder and decoder share parameters", {"model.architecture": "shared"}, 82.81, 18.78, 80.63, 70.73),
        _row("half", "half the layers", {"model.layers": 2, "model.decoder_layers": 2}, 80.88, 18.97, 77.59, 68.42),
        _row("lm", "language model", language_model, 74.70, 17.93, 61.14, 55.02, causal=True),
        _row("prefix_lm", "prefix language model", DECODER, 81.82, 18.61, 78.94, 68.11),
        _row("encdec_lm", "encoder-decoder, language modelling", {"denoising.kind": "prefix"}, 79.56, 18.59, 76.02, 64.29),
        _row("lm_lm", "language model, language modelling", suffix, 73.78, 17.54, 53.81, 56.51, causal=True),
        Row(name="none", label="no pretraining (control)", overrides={"denoising.kind": "iid", **FRESH}),
    )
    loss = {"metric": "sst2/loss", "margin": 0.02, "source": SOURCE}
    return Experiment(
        name="architectures",
        question="Does a text-to-text model need an encoder, and parameters of its own for it?",
        source=SOURCE,
        scale="T5 of {parameters} parameters and {tokens} input tokens, SST-2 as text; the paper: 220M parameters, 34B tokens",
        rows=rows,
        control="none",
        stages=(pretraining("t5-nano"), SST2_TEXT),
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
        tiers=t5_sst2_tiers(("encdec", "lm", "none"), ("encdec", "shared", "lm", "encdec_lm", "none")),
        forecast={
            "shared_is_encdec": "Not testable in nano, where no row may beat the control; open in night.",
            "encdec_below_lm": "Not testable or not shown in nano.",
            "denoising_below_lm": "Not testable or not shown in nano.",
            "encdec_below_prefix_lm": "Open.",
        },
    )


def _row(name: str, label: str, overrides: Options, *numbers: float, causal: bool = False) -> Row:
    """Return a row; with `causal`, the attention of the fine-tuned model is causal too."""
    row = table_row(name, label, {"denoising.kind": "iid", **overrides}, *numbers, columns=COLUMNS)
    return dataclasses.replace(row, stages={"sst2": {"denoising.causal": True}}) if causal else row
