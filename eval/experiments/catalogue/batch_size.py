"""RoBERTa's table 3: larger batches at the same number of passes."""

from eval.experiments.catalogue._common import FRESH_ROW, SMALL, TINY, claim, nano, night, paper, pretraining, smoke
from eval.experiments.declaration import Experiment, Row, Times

SOURCE = "Liu et al. 2019, table 3"


def batch_size() -> Experiment:
    """Return the experiment. The pilot tunes the learning rate of each batch, as the paper did."""
    sizes = {
        # (batch relative to the tier's, the paper's row)
        "small": (0.25, "256 rows, 1M steps", {"perplexity": 3.99, "MNLI-m": 84.7, "SST-2": 92.7}),
        "medium": (1.0, "2K rows, 125K steps", {"perplexity": 3.68, "MNLI-m": 85.2, "SST-2": 92.9}),
        "large": (4.0, "8K rows, 31K steps", {"perplexity": 3.77, "MNLI-m": 84.6, "SST-2": 92.8}),
    }
    rows = [
        Row(
            name=name,
            label=f"{name} batch (the paper: {paper})",
            overrides={"data.batch": Times(factor), "steps": Times(1 / factor)},
            paper=numbers,
        )
        for name, (factor, paper, numbers) in sizes.items()
    ]
    small = nano(pretrain=TINY, rates=(0.25, 0.5, 1.0, 2.0))
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
        stages=(pretraining("roberta-nano"),),
        budget="input_tokens",
        claims=tuple(claims),
        tiers={
            "smoke": smoke("small", "medium", "fresh", pretrain={**SMALL, "optim.warmup": 0.1}),
            "nano": small,
            "night": night(small),
            "paper": paper("roberta", pretrain={"steps": 500_000, "data.batch": 512, "accumulate": 1}),
        },
        forecast={
            "medium_below_small": "Contradicted: with few tokens every update counts, far below the critical batch.",
            "large_below_small": "Contradicted, by more: a quarter of the updates of the medium batch.",
        },
    )
