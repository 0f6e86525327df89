"""RoBERTa's table 2 and BERT's table 5: the format of the rows, and next-sentence prediction."""

from eval.experiments.catalogue import _common as common
from eval.experiments.declaration import Experiment, Row, Times

SOURCE = "Liu et al. 2019, table 2"


def inputs() -> Experiment:
    """Return the experiment.

    Rows are packed. Still they have unequal shares of text: 94.9% of the positions in pairs of segments, 91.4% in pairs of
    sentences, 86.7% in full sentences and 86.5% in those of one document (`public`, rows of 128, a vocabulary of 512), which the
    steps make up for.
    """
    nsp = {"model.task": "pretraining"}
    rows = (
        Row(
            name="segment_nsp",
            label="pairs of segments, next-sentence loss",
            overrides={**nsp, "data.rows": "segment_pairs"},
            paper={"SQuAD 1.1 F1": 90.4, "SQuAD 2.0 F1": 78.7, "MNLI-m": 84.0, "SST-2": 92.9, "RACE": 64.2},
        ),
        Row(
            name="sentence_nsp",
            label="pairs of sentences, next-sentence loss",
            overrides={**nsp, "data.rows": "sentence_pairs", "steps": Times(1.039)},
            paper={"SQuAD 1.1 F1": 88.7, "SQuAD 2.0 F1": 76.2, "MNLI-m": 82.9, "SST-2": 92.1, "RACE": 63.0},
        ),
        Row(name="segment", label="pairs of segments, no next-sentence loss", overrides={"data.rows": "segment_pairs"}),
        Row(
            name="full",
            label="full sentences",
            overrides={"data.rows": "full_sentences", "steps": Times(1.095)},
            paper={"SQuAD 1.1 F1": 90.4, "SQuAD 2.0 F1": 79.1, "MNLI-m": 84.7, "SST-2": 92.5, "RACE": 64.8},
        ),
        Row(
            name="doc",
            label="sentences of one document",
            overrides={"data.rows": "doc_sentences", "steps": Times(1.098)},
            paper={"SQuAD 1.1 F1": 90.6, "SQuAD 2.0 F1": 79.7, "MNLI-m": 84.7, "SST-2": 92.7, "RACE": 65.6},
        ),
        Row(name="fresh", label="no pretraining (control)", overrides={"data.rows": "full_sentences", **common.FRESH}),
    )
    loss = {"metric": "common/loss", "margin": 0.02}
    small = common.nano(
        "segment_nsp",
        "sentence_nsp",
        "segment",
        "full",
        "doc",
        "fresh",
        pretrain={**common.TINY, "data.length": 128, "data.batch": 8},
    )
    return Experiment(
        name="inputs",
        question="Which rows should a masked model be pretrained on, and does it need next-sentence prediction?",
        source=f"{SOURCE}; Devlin et al. 2019, table 5",
        scale="RoBERTa of {parameters} parameters and {tokens} tokens; the paper: 125M parameters, 131B tokens",
        rows=rows,
        control="fresh",
        stages=(common.pretraining("roberta-nano", {"data.pack": True}), common.COMMON),
        budget="text_tokens",
        claims=(
            common.claim(
                "sentence_above_segment",
                "sentence_nsp > segment_nsp",
                "Pairs of single sentences are worse than pairs of segments.",
                -0.8,
                source=SOURCE,
                **loss,
            ),
            common.claim(
                "nsp_not_needed",
                "segment = segment_nsp",
                "Pairs of segments are as good without the next-sentence loss.",
                -0.1,
                source=f"{SOURCE} against Devlin et al. 2019, table 5, where SST-2 falls by 0.1 and QNLI by 3.5",
                **loss,
            ),
            common.claim(
                "full_is_segment_nsp",
                "full = segment_nsp",
                "Full sentences without pairs are as good as pairs of segments with the next-sentence loss.",
                -0.4,
                source=SOURCE,
                **loss,
            ),
            common.claim(
                "full_is_doc",
                "full = doc",
                "It does not matter whether rows cross the ends of documents.",
                -0.2,
                source=SOURCE,
                **loss,
            ),
        ),
        tiers={
            "smoke": common.smoke("segment_nsp", "sentence_nsp", "fresh", pretrain=common.SMALL),
            "nano": small,
            "night": common.night(small),
            "paper": common.paper("roberta", pretrain={"steps": 1_000_000, "data.batch": 256}),
        },
        forecast={
            "sentence_above_segment": "Reproduced: words have less context in single sentences.",
            "nsp_not_needed": "Equivalent: the head stays near chance at this size, and takes nothing from the masked loss.",
            "full_is_segment_nsp": "Contradicted or not shown: full sentences have twice the context of a segment of a pair.",
            "full_is_doc": "Equivalent.",
        },
    )
