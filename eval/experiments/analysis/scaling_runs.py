"""The runs of a scaling experiment by budget and size, and the ways of counting their parameters and FLOPs.

Kaplan et al. 2020 count parameters without embeddings and FLOPs without the last layer, Hoffmann et al. 2022 count all of both.
For small models the difference decides the exponent (Porian et al. 2024).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.experiments.analysis.isoflop_fit import Curve
from eval.experiments.analysis.parametric_fit import ParametricLoss

LAYER_WIDTHS = {"gpt": (4, 0), "bert": (4, 0), "roberta": (4, 0), "xlnet": (5, 0), "t5": (4, 8)}
"""Family -> number of D x D matrices of the attention of a layer (of an encoder), and of a decoder's layer beside an encoder.
Every layer also has two matrices of width x ffn."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizeRuns:
    """The runs of one size at one budget."""

    row: str
    layer_parameters: float
    """Number of parameters of the matrices of all layers."""
    embedding_parameters: float
    flops: float
    """Training FLOPs of a run, as recorded."""
    head_flops: float
    """The part of them in the last layer, which computes the logits."""
    tokens: float
    """Positions that a run read."""
    losses: tuple[float, ...]
    """Final loss of the run of each seed."""

    @property
    def parameters(self) -> float:
        """Return the number of all parameters."""
        return self.layer_parameters + self.embedding_parameters


Budgets = dict[float, list[SizeRuns]]
"""Nominal FLOPs, increasing -> the sizes, increasing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counting:
    """A way of counting."""

    embeddings: bool
    """True if N includes embeddings."""
    last_layer: bool
    """True if C includes the FLOPs of the last layer."""

    @property
    def label(self) -> str:
        """Return the counting in words."""
        return f"N {'with' if self.embeddings else 'without'} embeddings, C {'with' if self.last_layer else 'without'} last layer"

    def curve(self, sizes: Sequence[SizeRuns], loss: ParametricLoss) -> tuple[float, Curve, Any]:
        """Return the log of a budget's FLOPs, its curve, and the factors by which the mean losses were multiplied.

        Runs of equal FLOPs with the last layer differ in their FLOPs without it. Their losses are moved to the geometric mean of
        the budget, by the ratio of the fitted losses at both numbers of tokens; the ratio is near 1.

        Args:
            loss: fit to the runs, for that ratio.
        """
        means = np.array([np.mean(size.losses) for size in sizes])
        flops = np.array([size.flops - (0.0 if self.last_layer else size.head_flops) for size in sizes])
        common, factors = math.exp(float(np.log(flops).mean())), np.ones(len(sizes))
        if not self.last_layer:
            parameters, tokens = (np.array([getattr(size, name) for size in sizes]) for name in ("parameters", "tokens"))
            factors = loss(parameters, tokens * common / flops) / loss(parameters, tokens)
        counted = [size.parameters if self.embeddings else size.layer_parameters for size in sizes]
        return math.log(common), Curve(log_sizes=np.log(counted), means=means * factors), factors


KAPLAN = Counting(embeddings=False, last_layer=False)
HOFFMANN = Counting(embeddings=True, last_layer=True)
COUNTINGS = (HOFFMANN, Counting(embeddings=True, last_layer=False), Counting(embeddings=False, last_layer=True), KAPLAN)


def row_budget(name: str) -> float:
    """Return the nominal FLOPs of a row, with which its name begins: 5e12 for c5e12-l2w48."""
    return float(name.partition("-")[0].removeprefix("c"))


def read_scaling_runs(registration: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> Budgets:
    """Return the runs that have a loss and its costs; sizes without such a run are left out.

    A run that ended counts whatever it learned; one that diverged has no loss.
    """
    metric = registration["claims"][0]["metric"] if registration["claims"] else "train/loss"
    stage, score = metric.split("/")
    budgets: Budgets = {}
    for row in registration["rows"]:
        if row["name"] == registration["control"]:
            continue
        runs = [
            cell
            for cell in cells
            if (cell["row"], cell["stage"]) == (row["name"], stage) and cell["status"] in ("done", "did not learn")
            if all(cell["costs"].get(cost) for cost in ("flops", "input_tokens", "predictions")) and score in cell["scores"]
        ]
        if runs:
            layers, embeddings = count_parameters(row["stages"][stage])
            width, vocab = (row["stages"][stage]["options"][f"model.{name}"] for name in ("width", "vocab"))
            flops, tokens, predictions = (
                float(np.mean([run["costs"][cost] for run in runs])) for cost in ("flops", "input_tokens", "predictions")
            )
            size = SizeRuns(
                row=row["name"],
                layer_parameters=layers,
                embedding_parameters=embeddings,
                flops=flops,
                # A product with a matrix takes 2 FLOPs a parameter, and twice as many in the backward pass.
                head_flops=6.0 * width * vocab * predictions,
                tokens=tokens,
                losses=tuple(float(run["scores"][score]) for run in runs),
            )
            budgets.setdefault(row_budget(row["name"]), []).append(size)
    return {budget: sorted(budgets[budget], key=lambda size: size.parameters) for budget in sorted(budgets)}


def count_parameters(stage: Mapping[str, Any]) -> tuple[float, float]:
    """Return the number of parameters of the layers' matrices and of the embeddings, from the registered options of a stage."""
    options = stage["options"]
    width, ffn, vocab = (options[f"model.{name}"] for name in ("width", "ffn", "vocab"))
    layers, decoder = options["model.layers"], options.get("model.decoder_layers", 0)
    squares = LAYER_WIDTHS[stage["recipe"].partition("-")[0]]
    matrices = sum(
        count * (square * width**2 + 2 * width * ffn) for count, square in zip((layers, decoder), squares, strict=True)
    )
    return float(matrices), float((vocab + options.get("model.context", 0)) * width)
