"""T5's tables 4 to 7: what a sequence-to-sequence model is pretrained to predict."""

import functools

from eval.experiments.catalogue._common import (
    FRESH,
    TRANSLATE,
    claim,
    pretraining,
    table_row,
    translation_tiers,
)
from eval.experiments.declaration import Experiment, Row

SOURCE = "Raffel et al. 2020, tables 4 to 7"
COLUMNS = ("GLUE", "CNN/DM", "SQuAD EM", "SuperGLUE", "WMT EnDe", "WMT EnFr", "WMT EnRo")


_row = functools.partial(table_row, columns=COLUMNS)


def objectives() -> Experiment:
    """Return the experiment. Rows read as many input tokens, as in the paper; their FLOPs differ and are shown."""
    rows = (
        _row("iid", "replace single tokens (baseline)", {"denoising.kind": "iid"}, 83.28, 19.24, 80.88, 71.36, 26.98),
        _row("spans", "replace spans of 3 tokens on average", {"denoising.kind": "spans"}, 83.49, 19.62, 81.84, 72.53, 26.86),
        _row("prefix", "predict the second part of the text", {"denoising.kind": "prefix"}, 80.69, 18.94, 77.99, 65.27, 26.86),
        _row("deshuffle", "put the tokens in order", {"denoising.kind": "deshuffle"}, 73.17, 18.59, 67.61, 58.47, 26.11),
        _row("bert", "predict the text from a masked one", {"denoising.kind": "bert"}, 82.96, 19.17, 80.65, 69.85, 26.78),
        _row(
            "mass",
            "predict the text from a masked one, without random tokens",
            {"denoising.kind": "mass"},
            *(82.32, 19.16, 80.10, 69.28, 26.79),
        ),
        _row("drop", "drop tokens and predict them", {"denoising.kind": "drop"}, 84.44, 19.31, 80.52, 68.67, 27.07),
        _row(
            "rate_50",
            "replace half of the tokens",
            {"denoising.kind": "iid", "denoising.density": 0.5},
            *(81.27, 19.32, 79.80, 70.33, 27.01),
        ),
        Row(name="none", label="no pretraining (control)", overrides=FRESH, paper={"GLUE": 66.22, "SQuAD EM": 50.31}),
    )
    loss = {"metric": "translate/loss", "margin": 0.02, "source": SOURCE}
    return Experiment(
        name="objectives",
        question="Which pretraining objective gives the best text-to-text model?",
        source=SOURCE,
        scale="T5 of {parameters} parameters and {tokens} input tokens, then translation; the paper: 220M parameters, 34B tokens",
        rows=rows,
        control="none",
        stages=(pretraining("t5-nano"), TRANSLATE),
        budget="input_tokens",
        claims=(
            claim(
                "iid_below_deshuffle",
                "iid < deshuffle",
                "Replacing tokens is better than putting tokens in order.",
                10.11,
                **loss,
            ),
            claim(
                "iid_below_prefix",
                "iid < prefix",
                "Replacing tokens is better than predicting the second part of the text.",
                2.59,
                **loss,
            ),
            claim("iid_is_spans", "iid = spans", "Replacing single tokens and replacing spans are equivalent.", -0.21, **loss),
            claim(
                "iid_is_mass",
                "iid = mass",
                "Predicting only what was removed is as good as predicting the text from a masked one.",
                0.96,
                **loss,
            ),
        ),
        tiers=translation_tiers(("iid", "prefix", "none"), ("iid", "spans", "prefix", "deshuffle", "mass", "none")),
        forecast={
            "iid_below_deshuffle": "Contradicted or not shown: deshuffling trains the decoder on whole sentences, which "
            "translation needs; T5's tasks have short targets.",
            "iid_below_prefix": "Contradicted, for the same reason.",
            "iid_is_spans": "Equivalent.",
            "iid_is_mass": "Not equivalent: MASS trains the decoder on whole sentences.",
        },
    )
