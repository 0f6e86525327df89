"""RoBERTa's table 3: larger batches at the same number of passes."""

from eval.experiments.catalogue._common import FRESH_ROW, SMALL, claim, paper, pretraining, smoke
from eval.experiments.declaration import Experiment, Row, Tier, Times

SOURCE = "Liu et al. 2019, table 3"


def batch_size() -> Experiment:
    """Return the experiment. Learning rates grow with the root of the batch; the paper tuned them for each batch."""
    sizes = {
        # (batch and steps relative to the tier's, learning rate, the paper's row)
        "small": (0.5, 7.1e-4, "256 rows, 1M steps", {"perplexity": 3.99, "MNLI-m": 84.7, "SST-2": 92.7}),
        "medium": (2.0, 1.4e-3, "2K rows, 125K steps", {"perplexity": 3.68, "MNLI-m": 85.2, "SST-2": 92.9}),
        "large": (8.0, 2.8e-3, "8K rows, 31K steps", {"perplexity": 3.77, "MNLI-m": 84.6, "SST-2": 92.8}),
    }
    rows = [
        Row(
            name=name,
            label=f"{name} batch (the paper: {paper})",
            overrides={"data.batch": Times(factor), "steps": Times(1 / factor), "optim.lr": rate},
            paper=numbers,
        )
        for name, (factor, rate, paper, numbers) in sizes.items()
    ]
    claims = [
        claim(
            f"{name}_below_small",
            f"{name} < small",
            f"The {name} batch gives a lower masked loss than the small one at the same number of tokens.",
            difference,
            **{"metric": "pretrain/masked_loss", "margin": 0.02, "source": SOURCE},
        )
        for name, difference in (("medium", -0.081), ("large", -0.057))
    ]
    return Experiment(
        name="batch_size",
        question="Do larger batches give a better model at the same number of tokens?",
        source=SOURCE,
        scale="RoBERTa of {parameters} parameters and {tokens} tokens; the paper: 125M parameters",
        rows=(*rows, FRESH_ROW),
        control="fresh",
        stages=(pretraining("roberta-nano", {"optim.warmup": 0.1}),),
        budget="input_tokens",
        claims=tuple(claims),
        tiers={
            "smoke": smoke("small", "medium", "fresh", pretrain={**SMALL, "optim.warmup": 0.1}),
            "nano": Tier(overrides={"pretrain": {"steps": 640, "data.batch": 16}}),
            "night": Tier(overrides={"pretrain": {"steps": 5_120, "data.batch": 16}}),
            "paper": paper("roberta", pretrain={"steps": 500_000, "data.batch": 512, "accumulate": 1}),
        },
        forecast={
            "medium_below_small": "Contradicted: with so few steps every update counts, far below any critical batch.",
            "large_below_small": "Contradicted, by more: 80 steps in nano do not leave the plateau of word frequencies.",
        },
    )
