"""Synthetic grids of scaling experiments, whose exponent and noise are known."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.experiments import catalogue
from eval.experiments.analysis.isoflop_fit import Curve, Estimate, estimate_noise, fit_exponent, fit_parabola
from eval.experiments.analysis.parametric_fit import ParametricLoss
from eval.experiments.analysis.scaling_runs import LAYER_WIDTHS

Array = Any
BUDGETS = (2e11, 5e11, 1.5e12, 5e12)
SIZE, BUDGET = 2.9e4, 5e11
"""The optimal size at a budget, as measured for a GPT with a vocabulary of 512."""


def loss_with_optimum(alpha: float, beta: float, *, curvature: float = 0.35, floor: float = 1.2) -> ParametricLoss:
    """Return a loss whose optimum is `SIZE` at `BUDGET`, where its second derivative for log N is curvature (alpha + beta)."""
    tokens = BUDGET / 6 / SIZE
    return ParametricLoss(E=floor, A=curvature / alpha * SIZE**alpha, B=curvature / beta * tokens**beta, alpha=alpha, beta=beta)


def log_sizes_around(exponent: float, *, sizes: int = 5, step: float = float(np.log(2)), shifts: Sequence[float] = ()) -> Array:
    """Return log N, [budgets, sizes], around the optima; `shifts` moves the grids of the budgets away from them."""
    centers = np.log(SIZE) + exponent * np.log(np.array(BUDGETS) / BUDGET)
    centers = centers + np.array(shifts or [0.0] * len(BUDGETS))
    return centers[:, None] + step * (np.arange(sizes) - (sizes - 1) / 2)


def parabolic_losses(log_sizes: Array, exponent: float) -> Array:
    """Return losses that are parabolas over log N, without model error."""
    optimum = np.log(SIZE) + exponent * np.log(np.array(BUDGETS) / BUDGET)
    return 2.7 + 0.1 * (log_sizes - optimum[:, None]) ** 2


def exponents_of_grids(
    log_sizes: Array, losses: Array, deviations: Array, *, seeds: int, grids: int = 4_000, pooled: bool = False, draw: int = 1
) -> Estimate:
    """Return the exponents of random grids, [grids].

    Args:
        losses, deviations: [budgets, sizes], expected loss and standard deviation of a run.
        pooled: compute the errors from the pooled variance alone, which is a mistake if the variances differ.
    """
    rng = np.random.default_rng(draw)
    runs = losses[..., None] + deviations[..., None] * rng.normal(size=(grids, *losses.shape, seeds))
    means = runs.mean(-1)
    parabolas = [fit_parabola(Curve(log_sizes=x, means=means[:, i])) for i, x in enumerate(log_sizes)]
    variances = runs.var(-1, ddof=1).reshape(grids, -1) if seeds > 1 else np.zeros((grids, losses.size))
    if pooled:
        variances = np.repeat(variances.mean(-1, keepdims=True), losses.size, -1)
    noise = estimate_noise(variances, np.full(losses.size, seeds), parabolas)
    return noise.of(*fit_exponent(np.log(BUDGETS), parabolas, [True] * len(BUDGETS)))


def scaling_result(
    loss: ParametricLoss,
    *,
    noise: float = 0.01,
    seeds: int = 3,
    exponent: float | None = None,
    held_out_factor: float = 1.0,
    budgets: Sequence[float] = BUDGETS,
    draw: int = 0,
    family: str = "",
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a registration and the cells of a grid around the optima of C = 6 N D with embeddings of a tenth of the parameters.

    Args:
        held_out_factor: multiplies the losses of the largest budget, as if another law held there.
        family: named in the rows; "" = gpt, which is not named.
    """
    control, infix = (f"fresh-{family}", f"{family}-") if family else ("fresh", "")
    recipe, (squares, decoder_squares) = f"{family or 'gpt'}-nano", LAYER_WIDTHS[family or "gpt"]
    rng = np.random.default_rng(draw)
    rows: list[dict[str, Any]] = [{"name": control, "label": "", "stages": {"train": {"recipe": recipe}}}]
    cells: list[dict[str, Any]] = [
        {"row": control, "seed": seed, "stage": "train", "status": "done", "scores": {"loss": 6.2}, "costs": {"flops": 1.0}}
        for seed in range(seeds)
    ]
    for budget, log_sizes in zip(budgets, log_sizes_around(loss.exponent if exponent is None else exponent), strict=False):
        for size in np.exp(log_sizes):
            name = f"c{budget:g}-{infix}n{size:.0f}"
            # One layer (and one of a decoder) of a real-valued width without a feed-forward layer has this many parameters.
            width = float(np.sqrt(0.9 * size / (squares + decoder_squares)))
            options = {"model.layers": 1, "model.width": width, "model.ffn": 0, "model.vocab": 0.1 * size / width}
            options |= {"model.decoder_layers": 1} if decoder_squares else {}
            rows.append({"name": name, "label": name, "stages": {"train": {"recipe": recipe, "options": options}}})
            tokens = budget / 6 / size
            expected = float(loss(size, tokens)) * (held_out_factor if budget == max(budgets) else 1.0)
            costs = {"flops": budget, "input_tokens": tokens, "predictions": tokens}
            for seed in range(seeds):
                scores = {"loss": expected + noise * float(rng.normal())}
                cells.append({"row": name, "seed": seed, "stage": "train", "status": "done", "scores": scores, "costs": costs})
    claims = [vars(claim) for claim in catalogue.find_experiment("scaling").claims]
    return {"rows": rows, "control": control, "claims": claims, "seeds": list(range(seeds)), "changed": []}, cells


def families_result(
    losses: Mapping[str, ParametricLoss], *, draw: int = 0, **settings: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a registration and the cells of a grid of several families, each with a loss of its own; see `scaling_result`."""
    parts = [
        scaling_result(loss, family=family, draw=len(losses) * draw + i, **settings)
        for i, (family, loss) in enumerate(losses.items())
    ]
    claims = [vars(claim) for claim in catalogue.find_experiment("scaling_families").claims]
    rows = [row for registration, _ in parts for row in registration["rows"]]
    return {**parts[0][0], "rows": rows, "claims": claims}, [cell for _, cells in parts for cell in cells]
