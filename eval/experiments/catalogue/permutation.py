"""XLNet's table 6: permutations against denoising, and each part of XLNet removed."""

import dataclasses

from eval.experiments.catalogue import _common as common
from eval.experiments.declaration import Experiment, Options, Row

SOURCE = "Yang et al. 2019, table 6"
BASE: Options = {"permutation.bidirectional": True}
COLUMNS = ("RACE", "SQuAD 2.0 F1", "MNLI-m", "SST-2")


def permutation() -> Experiment:
    """Return the experiment. BERT is trained with XLNet's tokenizer, on as many tokens; memory is removed with the order kept."""
    rows = (
        _row("xlnet", "XLNet, K = 6", {}, 66.66, 80.98, 85.63, 93.35),
        _row("dae", "denoising with Transformer-XL", {"permutation.kind": "denoising"}, 65.03, 79.56, 84.88, 92.60),
        dataclasses.replace(
            _row("bert", "BERT", {}, 64.3, 76.30, 84.34, 92.78),
            recipes={"pretrain": "bert-nano"},
            overrides={"model.types": 3, "model.memory": None, "model.reuse": None},
        ),
        _row("no_memory", "without memory", {"model.memory": 0, "permutation.ordered": True}, 65.55, 80.15, 85.32, 92.78),
        _row("no_spans", "without span-based prediction", {"permutation.spans": False}, 65.95, 80.61, 85.49, 93.12),
        _row("one_way", "without bidirectional data", {"permutation.bidirectional": False}, 66.34, 80.65, 85.31, 92.66),
        Row(name="fresh", label="no pretraining (control)", overrides={**BASE, **common.FRESH}),
    )
    tiny = {**common.TINY, "data.length": 64, "steps": 2_000}
    nano = common.nano("xlnet", "dae", "bert", "no_memory", "no_spans", "fresh", pretrain=tiny)
    small = {**common.SMALL, "model.memory": 32, "model.reuse": 24}
    loss = {"metric": "common/loss", "margin": 0.02}
    return Experiment(
        name="permutation",
        question="Is predicting in random orders better than denoising, and what does each part of XLNet add?",
        source=SOURCE,
        scale="XLNet of {parameters} parameters and {tokens} tokens; the paper: 110M parameters, Wikipedia and BooksCorpus",
        rows=rows,
        control="fresh",
        stages=(common.pretraining("xlnet-nano"), common.COMMON),
        budget="input_tokens",
        claims=(
            common.claim(
                "xlnet_below_dae",
                "xlnet < dae",
                "Permutations give a better model than denoising with the same body.",
                0.75,
                source=SOURCE,
                **loss,
            ),
            common.claim(
                "dae_below_bert",
                "dae < bert",
                "The body of Transformer-XL predicts masked words better than BERT.",
                source=f"{SOURCE}: SQuAD +3.26, MNLI +0.54, SST-2 -0.18",
                **loss,
            ),
            common.claim(
                "memory_helps",
                "xlnet < no_memory",
                "Memory lowers the loss of the targets when the order of the rows is the same.",
                metric="pretrain/masked_loss",
                margin=0.02,
                source=f"{SOURCE}: RACE -1.11 without memory",
            ),
            common.claim(
                "spans_are_no_spans",
                "xlnet = no_spans",
                "Predicting spans instead of single tokens makes no difference.",
                0.23,
                source=SOURCE,
                **loss,
            ),
        ),
        tiers={
            "smoke": common.smoke("xlnet", "bert", "fresh", pretrain=small),
            "nano": nano,
            "night": common.night(nano),
            "paper": common.paper("xlnet", "bert", pretrain={"steps": 1_000_000, "data.batch": 256, "data.length": 512}),
        },
        forecast={
            "xlnet_below_dae": "Reproduced: 0.4 nats were seen with one seed of larger models, 5.76 against 6.16.",
            "dae_below_bert": "Reproduced: 0.38 nats were seen with three seeds of larger models, one of which had not learned.",
            "memory_helps": "Direction only or reproduced: rows of 64 tokens gain more from memory than the 0.002 to 0.034 nats "
            "that were seen with 128.",
            "spans_are_no_spans": "Not equivalent: the common score hides single tokens, as the row without spans does.",
        },
    )


def _row(name: str, label: str, overrides: Options, *numbers: float) -> Row:
    return common.table_row(name, label, {**BASE, **overrides}, *numbers, columns=COLUMNS)
