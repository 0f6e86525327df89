"""T5's tables 4 to 7: what a sequence-to-sequence model is pretrained to predict."""

from eval.experiments.catalogue._common import FRESH, SST2_FLOORS, SST2_TEXT, SST2_TEXT_NANO, SST2_TEXT_SMOKE, SST2_TEXT_TEST
from eval.experiments.catalogue.repeats import SMALL_T5
from eval.experiments.declaration import TEXT, Claim, Experiment, Options, Row, Stage, Tier

SOURCE = "Raffel et al. 2020, tables 4 to 7"
COLUMNS = ("GLUE", "CNN/DM", "SQuAD EM", "SuperGLUE", "WMT EnDe", "WMT EnFr", "WMT EnRo")


def objectives() -> Experiment:
    """Return the experiment. Rows read as many input tokens, as in the paper; their FLOPs differ and are shown."""
    rows = (
        _row("iid", "replace single tokens (baseline)", {"denoising.kind": "iid"}, 83.28, 19.24, 80.88, 71.36, 26.98),
        _row("spans", "replace spans of 3 tokens on average", {"denoising.kind": "spans"}, 83.49, 19.62, 81.84, 72.53, 26.86),
        _row("prefix", "predict the second part of the text", {"denoising.kind": "prefix"}, 80.69, 18.94, 77.99, 65.27, 26.86),
        _row("deshuffle", "put the tokens in order", {"denoising.kind": "deshuffle"}, 73.17, 18.59, 67.61, 58.47, 26.11),
        _row("bert", "predict the text from a masked one", {"denoising.kind": "bert"}, 82.96, 19.17, 80.65, 69.85, 26.78),
        _row("mass", "the same without random tokens", {"denoising.kind": "mass"}, 82.32, 19.16, 80.10, 69.28, 26.79),
        _row("drop", "drop tokens and predict them", {"denoising.kind": "drop"}, 84.44, 19.31, 80.52, 68.67, 27.07),
        _row(
            "rate_50",
            "replace half of the tokens",
            {"denoising.kind": "iid", "denoising.density": 0.5},
            *(81.27, 19.32, 79.80, 70.33, 27.01),
        ),
        Row(name="none", label="no pretraining (control)", overrides=FRESH, paper={"GLUE": 66.22, "SQuAD EM": 50.31}),
    )
    iid = {"metric": "sst2_test/exact", "row": "iid", "source": SOURCE, "margin": 0.01}
    return Experiment(
        name="objectives",
        question="Which pretraining objective gives the best text-to-text model?",
        source=SOURCE,
        scale="T5 of {parameters} parameters and {tokens} input tokens, SST-2 as text; the paper: 220M parameters, 34B tokens",
        rows=rows,
        control="none",
        stages=(
            Stage(name="pretrain", recipe="t5-nano", overrides=TEXT, seconds=15.0),
            SST2_TEXT,
            SST2_TEXT_TEST,
        ),
        budget="input_tokens",
        claims=(
            Claim(
                id="iid_above_deshuffle",
                text="Replacing tokens is better than putting tokens in order.",
                kind="greater",
                reference=("deshuffle",),
                paper_difference=10.11,
                **iid,
            ),
            Claim(
                id="iid_above_prefix",
                text="Replacing tokens is better than predicting the second part of the text.",
                kind="greater",
                reference=("prefix",),
                paper_difference=2.59,
                **iid,
            ),
            Claim(
                id="iid_is_spans",
                text="Replacing single tokens and replacing spans are equivalent.",
                kind="equivalent",
                reference=("spans",),
                paper_difference=-0.21,
                **iid,
            ),
            Claim(
                id="iid_is_mass",
                text="Predicting only what was removed is as good as predicting the text from a masked one.",
                kind="equivalent",
                reference=("mass",),
                paper_difference=0.96,
                **iid,
            ),
        ),
        tiers={
            "smoke": Tier(
                corpus="embedded",
                tasks="generated",
                seeds=1,
                rows=("iid", "prefix", "none"),
                overrides={"pretrain": SMALL_T5, "sst2": SST2_TEXT_SMOKE},
            ),
            "nano": Tier(
                rows=("iid", "spans", "prefix", "deshuffle", "none"),
                overrides={"pretrain": {"steps": 300}, "sst2": SST2_TEXT_NANO},
            ),
            "night": Tier(overrides={"pretrain": {"steps": 3_000, "optim.warmup": 300}, "sst2": SST2_TEXT_NANO}),
            "paper": Tier(corpus="user", seeds=1, recipes={"t5-nano": "t5"}, overrides={"sst2": {"steps": 32_768}}),
        },
        forecast={
            "iid_above_deshuffle": "Not testable in nano, where no row may beat the control; reproduced in night.",
            "iid_above_prefix": "Not testable or not shown in nano; open in night.",
            "iid_is_spans": "Not testable or not shown in nano.",
            "iid_is_mass": "Open.",
        },
        floors=tuple((name, "sst2_test/exact", value, source) for name, _, value, source in SST2_FLOORS),
    )


def _row(name: str, label: str, overrides: Options, *numbers: float) -> Row:
    return Row(name=name, label=label, overrides=overrides, paper=dict(zip(COLUMNS, numbers, strict=False)))
