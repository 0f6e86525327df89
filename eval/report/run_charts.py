"""Charts of a run: its curves, and the attention of a text over its source."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from eval.pages.charts import INK, MUTED, ONE, THREE, TWO, Figure, format_thousands, tick_locator
from eval.pages.html_page import Cell, HeatMap
from train.run import metric_definitions
from train.run.metric_definitions import METRICS

FAINT = 0.35
"""Opacity of single values behind their average; the page's legend has the same."""

BUCKETS = 400
"""Number of intervals of a longer curve; each is drawn by its minimum and maximum, so that no spike is lost."""


@dataclasses.dataclass(frozen=True)
class MarkedSteps:
    """Steps that are marked in every curve."""

    resumed: Sequence[int] = ()
    best: int | None = None
    """The step of the best checkpoint, if that is not the last one."""


def run_curves(
    train: Sequence[Any],
    valid: Sequence[Any],
    marked: MarkedSteps,
    best_of_n: Sequence[tuple[float, float]] = (),
    selected: str = "",
) -> list[Figure]:
    """Return figures of the loss, other validation metrics, throughput, learning rate and gradient norm.

    Those of a policy begin with the rewards and other numbers of its rollouts, because its loss says little. Those of a student
    that samples responses end with numbers about them.

    Args:
        best_of_n: divergence and reward of choosing the best of 1, 2, 4, ... responses, to compare a policy with.
        selected: the metric that the run selects its best checkpoint by, which has a figure; "" = none.
    """
    rollouts = [{"step": row["step"], **row["rollout"]} for row in train if "rollout" in row]
    if rollouts and "reward" in rollouts[0]:
        figures = [_lead(rollouts, valid, "reward", marked), *_rollouts(rollouts, marked, best_of_n)]
        figures.append(_simple(train, "loss", "Loss", marked))
    else:
        figures = [_lead(train, valid, "loss", marked), *(_measured(valid, name, marked) for name in _names(valid, selected))]
        figures += _rollouts(rollouts, marked, best_of_n) if rollouts else []
    if train:
        figures += [_throughput(train, marked), _simple(train, "lr", "Learning rate", marked)]
        figures.append(_simple(train, "grad_norm", "Gradient norm, before clipping", marked))
    return figures


def attention_chart(attention: Mapping[str, Any]) -> HeatMap:
    """Return the attention of a text over its source, as in Bahdanau et al. 2015, figure 3.

    The weights are those of `eval.generation.cross_attention_weights`. There is a row for each token of the text and a column for
    each token of its source, darker for a greater weight.
    """
    source = attention["source"]

    def cell(token: str, name: str, weight: float) -> Cell:
        return Cell("", f"{token}, {name}: {weight:.2f}", "right", f"--share:{min(1.0, weight):.1%}")

    texts = zip(attention["text"], attention["weights"], strict=True)
    rows = [(token, [cell(token, *pair) for pair in zip(source, weights, strict=True)]) for token, weights in texts]
    return HeatMap(source, rows, dense=True)


DRAWN = ("loss", "perplexity")
"""Metrics that the loss curve already shows: perplexity is e to the loss."""
MOST = 3
"""Maximum number of validation metrics with a separate figure."""


def _names(valid: Sequence[Any], selected: str) -> list[str]:
    """Return the validation metrics with a separate figure: the selected one, those with a reference, then the leading ones."""
    if not valid:
        return []
    compared = [name for name in _compared(valid) if not _is_loss(valid, name)]
    names = metric_definitions.leading_metrics(valid[-1], selected)
    leading = [name for name in names if name not in DRAWN and not _is_loss(valid, name)]
    return list(dict.fromkeys([*(name for name in leading if name == selected), *compared, *leading]))[:MOST]


def _compared(valid: Sequence[Any]) -> list[str]:
    """Return the metrics that the last validation reports together with their reference, such as the majority's share."""
    return [name for name, metric in METRICS.items() if valid and name in valid[-1] and metric.reference in valid[-1]]


def _is_loss(valid: Sequence[Any], name: str) -> bool:
    """Return whether a metric equals the loss in all rows, so that the loss curve shows it."""
    return all(row.get(name) == row.get("loss") for row in valid)


def _reference(valid: Sequence[Any], name: str) -> tuple[str, float]:
    """Return (label, value) of the reference of a metric; all validations have the same rows, and so the same value."""
    reference = METRICS[name].reference
    return METRICS[reference].label, float(valid[-1][reference])


def _lead(train: Sequence[Any], valid: Sequence[Any], name: str, marked: MarkedSteps) -> Figure:
    """Draw a metric of training and of validations, across the page."""
    steps, values = _column(train, name)
    valid_steps, valid_values = _column([row for row in valid if name in row], name)
    lines = [_reference(valid, other) for other in _compared(valid) if name == "loss" and _is_loss(valid, other)]
    spikes = METRICS[name].better == "lower"
    bottom, top, outside = _limits(np.array([*values, *valid_values, *(value for _, value in lines)]), spikes=spikes)
    smooth = _smooth(values, top)

    def draw(axes: Any) -> None:
        _noisy(axes, steps, values, smooth)
        _dotted(axes, valid_steps, valid_values)
        _dashed(axes, lines)
        lost = steps[~np.isfinite(values)][:: 1 + len(steps) // BUCKETS]
        axes.plot(lost, np.full(len(lost), 0.03), "x", color=THREE, markersize=5, transform=axes.get_xaxis_transform())
        axes.set_ylim(bottom, top)

    keys = {"training, smoothed": "one", "each row": "one faint"} if len(smooth) else {"training": "one"}
    keys |= {"validation": "two dots"} if len(valid_steps) else {}
    keys |= {"not finite": "three cross"} if not np.isfinite(values).all() else {}
    keys |= {label: "ink dashed" for label, _ in lines}
    descriptions = [
        _describe(f"Training {METRICS[name].label}", steps, smooth if len(smooth) else values),
        _describe(f"validation {METRICS[name].label}", valid_steps, valid_values),
    ]
    return _figure(METRICS[name].title, descriptions, draw, marked, keys=keys, lines=lines, outside=outside, lead=True)


ROLLOUTS = {
    "kl": "KL divergence from the reference, nats",
    "entropy": "Entropy of a token, nats",
    "response_length": "Response length, tokens",
    "unended_share": "Share of responses that are cut off",
    "truncated_share": "Share of responses that a reward model reads in part",
    "equal_groups": "Share of prompts with equal rewards",
    "explained_variance": "Variance of the returns that the values explain",
    "ratio_error": "Relative error of sampled probabilities",
}
"""Number of a rollout -> title of its figure."""


def _rollouts(rollouts: Sequence[Any], marked: MarkedSteps, best_of_n: Sequence[tuple[float, float]]) -> list[Figure]:
    """Draw the numbers of rollouts, and the rewards over the divergence if there is a reference."""
    names = [name for name in ROLLOUTS if all(name in row for row in rollouts)]
    figures = [_simple(rollouts, name, ROLLOUTS[name], marked) for name in names]
    return [_frontier(rollouts, best_of_n), *figures] if "kl" in names else figures


def _frontier(rollouts: Sequence[Any], best_of_n: Sequence[tuple[float, float]]) -> Figure:
    """Draw the reward over the square root of the KL divergence (Gao et al. 2023, figure 1); estimates below 0 count as 0.

    Beside it are the rewards of the best of n responses at the start, over the bounds of their divergence.
    """
    _, rewards = _column(rollouts, "reward")
    _, divergences = _column(rollouts, "kl")
    smooth = [_smooth(values, np.inf) for values in (divergences, rewards)]
    distances = np.sqrt(np.maximum(divergences, 0))

    def draw(axes: Any) -> None:
        axes.plot(distances, rewards, "o", color=ONE, markersize=3, alpha=FAINT)
        x, y = (np.sqrt(np.maximum(smooth[0], 0)), smooth[1]) if len(smooth[0]) else (distances, rewards)
        axes.plot(x, y, color=ONE)
        if best_of_n:
            bounds, best = zip(*best_of_n, strict=True)
            axes.plot(np.sqrt(bounds), best, "o", color=TWO, markersize=4)
        axes.xaxis.set_major_locator(tick_locator(5))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")

    words = f"from {rewards[0]:.4g} at {distances[0]:.4g} to {rewards[-1]:.4g} at {distances[-1]:.4g}"
    keys: dict[str, str] = {}
    if best_of_n:
        label = f"best of 1 to {1 << len(best_of_n) - 1}, at the start"
        keys = {"training": "one", label: "two dots"}
        words += f"; {label}, from {best_of_n[0][1]:.4g} to {best_of_n[-1][1]:.4g}"
    title = "Reward over the square root of the KL divergence"
    return _figure(title, [words], draw, MarkedSteps(), keys=keys, x_label="square root of nats")


def _measured(valid: Sequence[Any], name: str, marked: MarkedSteps) -> Figure:
    """Draw one metric of the validations, with its reference."""
    metric = METRICS[name]
    steps, values = _column([row for row in valid if name in row], name)
    lines = [_reference(valid, name)] if name in _compared(valid) else []
    # If higher is better, a value far above the rest is the best one, not a spike.
    bottom, top, outside = _limits(np.array([*values, *(value for _, value in lines)]), spikes=metric.better == "lower")

    def draw(axes: Any) -> None:
        _dotted(axes, steps, values)
        _dashed(axes, lines)
        axes.set_ylim(bottom, top)

    keys = {metric.label: "two dots"} | {label: "ink dashed" for label, _ in lines} if lines else {}
    descriptions = [_describe(metric.title, steps, values)]
    return _figure(f"{metric.title}, validation", descriptions, draw, marked, keys=keys, lines=lines, outside=outside)


def _throughput(train: Sequence[Any], marked: MarkedSteps) -> Figure:
    steps = np.array([row["step"] for row in train])
    rate = np.array([row["time"]["tokens_per_s"] for row in train], float)
    share = np.array([np.nan if row["time"]["mfu"] is None else row["time"]["mfu"] for row in train])
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = share / rate
    # Tokens/s and MFU share one scale only if their ratio is constant, which resuming on another machine changes.
    one_scale = np.isfinite(ratio).all() and np.ptp(ratio) <= 0.01 * ratio.max() and ratio.min() > 0
    _, top, outside = _limits(rate)

    def draw(axes: Any) -> None:
        _noisy(axes, steps, rate, _smooth(rate, top))
        axes.set_ylim(0, top)
        axes.yaxis.set_major_formatter(format_thousands)
        if one_scale:
            percent = 100 * float(np.median(ratio))
            right = axes.secondary_yaxis("right", functions=(lambda y: y * percent, lambda y: y / percent))
            right.yaxis.set_major_formatter(lambda value, _: f"{value:g}%" if value else "")
            right.spines["right"].set_visible(False)
            right.tick_params(length=0)
            right.yaxis.set_major_locator(tick_locator(4))

    title = "Tokens a second" + ("; right: MFU" if one_scale else "")
    return _figure(title, [_describe("Tokens a second", steps, rate)], draw, marked, outside=outside)


def _simple(train: Sequence[Any], name: str, title: str, marked: MarkedSteps) -> Figure:
    steps, values = _column(train, name)
    bottom, top, outside = _limits(values)
    # Estimates of a divergence, and losses of policies, may be negative.
    bottom = bottom if np.any(values < 0) else 0

    def draw(axes: Any) -> None:
        # A schedule has no noise to smooth.
        _noisy(axes, steps, values, values[:0] if name == "lr" else _smooth(values, top))
        axes.set_ylim(bottom, top)

    return _figure(title, [_describe(title, steps, values)], draw, marked, outside=outside)


def _figure(
    title: str,
    descriptions: Sequence[str],
    draw: Callable[[Any], None],
    marked: MarkedSteps,
    *,
    keys: Mapping[str, str] | None = None,
    lines: Sequence[tuple[str, float]] = (),
    outside: int = 0,
    lead: bool = False,
    x_label: str = "step",
) -> Figure:
    """Return a drawing with the marked steps, under its title and the keys of its curves.

    Args:
        descriptions: words for screen readers.
        lines: (label, value) of the dashed lines.
        outside: number of values above the frame.
        lead: whether the figure is as wide as the page, and has the keys of the marked steps.
    """
    words = [*descriptions, *(f"{name} {value:.4g}" for name, value in lines)]
    words += [f"the best validation at step {marked.best:,}"] if marked.best is not None else []

    def draw_marked(axes: Any) -> None:
        for step in marked.resumed:
            axes.axvline(step, color=MUTED, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
        if marked.best is not None:
            axes.axvline(marked.best, color=TWO, linewidth=1.6, linestyle=(0, (1, 1.5)), zorder=1)
        draw(axes)
        axes.set_xlabel(x_label)

    keys = dict(keys or {})
    if lead:
        keys |= {"resumed": "dashed"} if marked.resumed else {}
        keys |= {f"the run's choice, step {marked.best:,}": "two dotted"} if marked.best is not None else {}
    remark = f"Values above the frame: {outside:,}" if outside else ""
    return Figure(title, draw_marked, f"{title}. {'; '.join(filter(None, words))}", keys, across=lead, remark=remark)


def _column(rows: Sequence[Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row["step"] for row in rows], int), np.array([row[name] for row in rows], float)


def _curve(axes: Any, steps: np.ndarray, values: np.ndarray, colour: str, **style: Any) -> None:
    """Draw a line, or a dot if there is only one value."""
    keep = _thin(values)
    axes.plot(steps[keep], values[keep], color=colour, **{"marker": "o" if len(values) == 1 else ""} | style)


def _noisy(axes: Any, steps: np.ndarray, values: np.ndarray, smooth: np.ndarray) -> None:
    """Draw the values, faint behind their average if there is one."""
    if not len(smooth):
        _curve(axes, steps, values, ONE)
        return
    _curve(axes, steps, values, ONE, alpha=FAINT)
    _curve(axes, steps, smooth, ONE, linewidth=1.8)


def _dotted(axes: Any, steps: np.ndarray, values: np.ndarray) -> None:
    """Draw a line with its values as dots, if these can be distinguished."""
    _curve(axes, steps, values, TWO, **({"marker": "o", "markersize": 4} if len(values) <= 60 else {}))


def _dashed(axes: Any, lines: Sequence[tuple[str, float]]) -> None:
    for _, value in lines:
        axes.axhline(value, color=INK, linewidth=1.2, linestyle=(0, (6, 3)))


def _thin(values: np.ndarray) -> np.ndarray:
    """Return positions of the values to draw: all of a short curve, else the minimum and the maximum of each interval."""
    if len(values) <= 2 * BUCKETS:
        return np.arange(len(values))
    finite = np.flatnonzero(np.isfinite(values))
    keep = [part[[np.argmin(values[part]), np.argmax(values[part])]] for part in np.array_split(finite, BUCKETS) if len(part)]
    return np.unique(np.concatenate([*keep, [0]]))


def _smooth(values: np.ndarray, top: float) -> np.ndarray:
    """Return the moving average of the values up to `top`, over a fortieth of the curve to either side.

    The window is smaller near the ends, to avoid bias there. A curve that is too short gives an empty array.
    """
    count = len(values)
    if count < 40:
        return np.zeros(0)
    used, at = values <= top, np.arange(count)
    reach = np.minimum(count // 40, np.minimum(at, count - 1 - at))
    before, after = np.maximum(reach, np.minimum(count // 400, at)), np.maximum(reach, np.minimum(count // 400, count - 1 - at))
    sums = np.concatenate([[0], np.cumsum(np.where(used, values, 0))])
    counts = np.concatenate([[0], np.cumsum(used)])
    with np.errstate(invalid="ignore"):
        return (sums[at + after + 1] - sums[at - before]) / (counts[at + after + 1] - counts[at - before])


def _limits(values: np.ndarray, *, spikes: bool = True) -> tuple[float, float, int]:
    """Return bottom and top of a frame around the finite values, and the number of values above it.

    With `spikes`, a few huge values do not flatten the rest.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0, 0
    bottom, usual, top = float(finite.min()), float(np.quantile(finite, 0.98, method="lower")), float(finite.max())
    usual = max(usual, float(finite[0]))
    if spikes and top - bottom > 4 * (usual - bottom) > 0:
        top = usual
    margin = 0.06 * (top - bottom) or 0.1 * abs(top) or 1.0
    return bottom - margin, top + margin, int((finite > top).sum())


def _describe(name: str, steps: np.ndarray, values: np.ndarray) -> str:
    """Return a description of the curve in words, for screen readers."""
    seen = np.flatnonzero(np.isfinite(values))
    if not len(seen):
        return ""
    first, last = seen[0], seen[-1]
    return f"{name} from {values[first]:.4g} at step {steps[first]:,} to {values[last]:.4g} at step {steps[last]:,}"
