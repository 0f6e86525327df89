"""XLNet's table 6: permutations against denoising, and each part of XLNet removed."""

import dataclasses

from eval.experiments.catalogue import _common as common
from eval.experiments.declaration import Experiment, Options, Row, Tier

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
        _row("k7", "XLNet, K = 7", {"permutation.predictions": 18, "permutation.context": 7.0}, 66.05, 81.33, 85.84, 92.66),
        _row("no_memory", "without memory", {"model.memory": 0, "permutation.ordered": True}, 65.55, 80.15, 85.32, 92.78),
        _row("no_spans", "without span-based prediction", {"permutation.spans": False}, 65.95, 80.61, 85.49, 93.12),
        _row("one_way", "without bidirectional data", {"permutation.bidirectional": False}, 66.34, 80.65, 85.31, 92.66),
        Row(name="fresh", label="no pretraining (control)", overrides={**BASE, **common.FRESH}),
    )
    nano = ("xlnet", "dae", "bert", "no_memory", "fresh")
    small = {**common.SMALL, "model.memory": 32, "model.reuse": 24}
    accuracy = {"metric": "sst2_test/accuracy", "margin": 0.01, "source": SOURCE}
    return Experiment(
        name="permutation",
        question="Is predicting in random orders better than denoising, and what does each part of XLNet add?",
        source=SOURCE,
        scale="XLNet of {parameters} parameters and {tokens} tokens; the paper: 110M parameters, Wikipedia and BooksCorpus",
        rows=rows,
        control="fresh",
        stages=(common.pretraining("xlnet-nano"), common.COMMON, common.SST2, common.SST2_TEST),
        budget="input_tokens",
        claims=(
            common.claim(
                "xlnet_above_dae",
                "xlnet > dae",
                "Permutations give a better model than denoising with the same body.",
                0.75,
                **accuracy,
            ),
            common.claim(
                "dae_below_bert",
                "dae < bert",
                "The body of Transformer-XL predicts masked words better than BERT.",
                metric="common/loss",
                margin=0.02,
                source=f"{SOURCE}: SQuAD +3.26, MNLI +0.54, SST-2 -0.18",
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
                "Predicting spans instead of single tokens makes no difference on sentences.",
                0.23,
                **accuracy,
            ),
        ),
        tiers={
            "smoke": common.smoke("xlnet", "bert", "fresh", tasks="generated", pretrain=small, sst2=common.SST2_SMOKE),
            "nano": Tier(
                rows=nano, overrides={"pretrain": {"steps": 600, "data.batch": 8, "optim.warmup": 120}, "sst2": common.SST2_NANO}
            ),
            "night": Tier(
                seeds=5, overrides={"pretrain": {"steps": 3_000, "data.batch": 8, "optim.warmup": 600}, "sst2": common.SST2_NANO}
            ),
            "paper": common.paper(
                "xlnet", "bert", pretrain={"steps": 1_000_000, "data.batch": 256, "data.length": 512}, sst2={"steps": 1_300}
            ),
        },
        forecast={
            "xlnet_above_dae": "Not shown: the difference is below a point in the paper, and below the noise here.",
            "dae_below_bert": "Open.",
            "memory_helps": "Reproduced or not shown: 0.002 to 0.034 nats were measured.",
            "spans_are_no_spans": "Not shown: the interval is wider than a point.",
        },
        floors=common.SST2_FLOORS,
        baselines=common.SST2_BASELINES,
    )


def _row(name: str, label: str, overrides: Options, *numbers: float) -> Row:
    return common.table_row(name, label, {**BASE, **overrides}, *numbers, columns=COLUMNS)
