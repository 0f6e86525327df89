"""The report of a run: one self-contained HTML file, without network access and scripts."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.pages.html_page import Block, Cards, Plots, Sample, Table, render_page
from eval.pages.value_text import format_date, format_number, format_with_error
from eval.report import error_analysis, rollout_texts, run_charts
from train.config.run_config import Run
from train.run import metric_definitions
from train.run.metric_definitions import METRICS
from train.run.metrics_file import read_metrics, read_starts
from train.run.progress_display import format_duration, short_number
from train.run.result_files import REWRITE, read_result
from train.run.run_dir import RunDir, read_config, write_text
from train.run.run_identity import flat_options
from train.run.time_account import TITLES, goodput, run_seconds
from zoo.errors import BadInput
from zoo.json_shapes import Number

COUNTED = {
    "tokens": "predicted, each once",
    "bytes": "of held-out text",
    "predictions": "of masked tokens",
    "pairs": "of segments or of answers, which are scored",
    "examples": "held out",
    "desired": "of them labelled as desired",
    "words": "held out",
    "entities": "held out",
    "questions": "held out",
    "stride": "tokens from one window of the text to the next",
    "step": "of the parameters that were scored",
}
"""Keys of scores.json other than metrics -> a note; most are counts of the scored data."""

ERROR = "_stderr"


def write_report(folder: str | Path) -> Path:
    """Write RUN/report.html from the run's config.json and whatever else the run has written so far.

    Each file may be missing, so this works at any time: before the first row of a run, while it trains, after it was killed. The
    files are metrics.jsonl, starts.jsonl, scores.json; predictions.json, see `eval.report.error_analysis`; evaluations.json, the
    newest result of each task, in which the metric "x_stderr" is the standard error of "x"; samples.json, see
    `eval.report.samples`; data.json, the share of each source in the whole run; rollouts/*.jsonl, see
    `eval.report.rollout_texts`.

    Returns:
        The path of the report.

    Raises:
        BadInput: the folder is not a run, or one of these files is damaged.
    """
    files, run = RunDir(folder), read_config(folder)
    rows = read_metrics(files)
    starts = read_starts(files)
    write_text(files.report, _page(files.path, run, rows, starts))
    return files.report


def _page(path: Path, run: Run, rows: Sequence[Any], starts: Sequence[Any]) -> str:
    name = path.resolve().name
    train = [row for row in rows if row["kind"] == "train"]
    valid = [row for row in rows if row["kind"] == "valid"]
    resumed = [start["step"] for start in starts[1:]]
    files = RunDir(path)
    scores, tasks = read_result(files.scores) or {}, read_result(files.evaluations)
    samples, sources, errors = _read_samples(files.samples), read_result(files.data), _read_predictions(files.predictions)
    scored = scores.get("step")
    best = scored if train and isinstance(scored, int) and scored != train[-1]["step"] else None
    judged = {name: scores[name] for name in METRICS if isinstance(scores.get(name), Number)}
    sentence = _sentence(name, run, train, valid, judged, best)
    marked = run_charts.MarkedSteps(resumed, best)
    sections = {
        "Curves": _curves(path, run, train, valid, marked),
        "Held-out score": _score_table(scores) if scores else [],
        **(error_analysis.error_sections(errors) if errors else {}),
        "Tasks": _tasks(tasks) if tasks else [],
        "Rollouts": _rollout_texts(path, run),
        "Samples": _samples(samples) if samples and samples["samples"] else [],
        "Origin": _origin(run, train, sources),
        "Where time went": _time_table(starts),
        "Interruptions": [_skipped(train), *_starts(starts)] if len(starts) > 1 or _total_skipped(train) else [],
        "Configuration": [_configuration(run)],
        "Environment": [_environment(starts[-1])] if starts else [],
    }
    return render_page(name, sentence, sections, tiles=_tiles(run, train, valid, judged), footer=_provenance(rows, starts))


def _read_predictions(path: Path) -> Any:
    """Return the content of predictions.json; None if it does not exist.

    Raises:
        BadInput: it is damaged.
    """
    content = read_result(path)
    if content is not None and (wrong := error_analysis.size_mismatch(content)):
        raise BadInput(f"{path} has unexpected content ({wrong}); {REWRITE}")
    return content


def _read_samples(path: Path) -> Any:
    """Return the content of samples.json; None if it does not exist.

    Raises:
        BadInput: it is damaged.
    """
    content = read_result(path)
    if content is not None and (attention := content.get("alignment")) is not None:
        lengths, columns = [len(row) for row in attention["weights"]], len(attention["source"])
        if not columns or not lengths or lengths != [columns] * len(attention["text"]):
            raise BadInput(f"{path} has unexpected content (alignment: weights of other lengths than its texts); {REWRITE}")
    return content


def _sentence(
    name: str, run: Run, train: Sequence[Any], valid: Sequence[Any], judged: Mapping[str, Number], best: int | None
) -> str:
    if not train:
        return f"No step of {name} has been recorded yet, of {run.steps:,} planned."
    last, planned = train[-1]["step"], f" of {run.steps:,}"
    amount = f"on {short_number(train[-1]['tokens'])} tokens"
    if judged:
        steps = f"{last:,}{planned if last < run.steps else ''} steps {amount}"
        whose = name if best is None else f"{name}, as it was at step {best:,}, its best validation,"
        summary = metric_definitions.score_summary(judged, selected=run.selection.metric)
        return f"After {steps}, {whose} reaches {summary} on its held-out data."
    reached = f"{name} has taken {last:,}{planned} steps, {amount}"
    if not valid:
        return f"{reached}; no validation yet, and no final score."
    summary = metric_definitions.score_summary(valid[-1], selected=run.selection.metric)
    return f"{reached}; its validation at step {valid[-1]['step']:,} gave {summary}. There is no final score."


def _curves(path: Path, run: Run, train: Sequence[Any], valid: Sequence[Any], marked: run_charts.MarkedSteps) -> list[Block]:
    """Return the curves of a run; those of a policy have the best of n responses of its first rollout."""
    if not (train or valid):
        return []
    rollout = getattr(run.options, "rollout", None)
    best_of_n = rollout_texts.best_of_n(RunDir(path).rollouts, rollout.samples) if rollout else []
    return [Plots(run_charts.run_curves(train, valid, marked, best_of_n, run.selection.metric))]


def _tiles(run: Run, train: Sequence[Any], valid: Sequence[Any], judged: Mapping[str, Number]) -> list[tuple[str, str]]:
    """Return (value, label) of the numbers at the top."""
    numbers, where = (judged, "held out") if judged else (valid[-1], "validation") if valid else ({}, "")
    leading = metric_definitions.leading_metrics(numbers, run.selection.metric)[:2]
    tiles = [(METRICS[name].show(numbers[name]), f"{METRICS[name].label}, {where}") for name in leading]
    if train:
        # The first row includes the start-up, and a row whose only step was compiled has no rate.
        timed = [row["time"] for row in train[1:] or train if math.isfinite(row["time"]["tokens_per_s"])]
        shares = [time["mfu"] for time in timed if time["mfu"] is not None]
        tiles.append((f"{train[-1]['step']:,}", "steps"))
        tiles += _learning(train[-1])
        if timed:
            tiles.append((short_number(float(np.median([time["tokens_per_s"] for time in timed]))), "tokens a second, median"))
        tiles += [(f"{np.median(shares):.1%}", "MFU, median")] if shares else []
        steps = np.diff([0, *(row["step"] for row in train)])
        spent = np.array([row["time"]["seconds"] for row in train]) * steps
        tiles.append((format_duration(float(spent[np.isfinite(spent)].sum())), "training time"))
    return tiles


def _learning(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return tiles (number, label) of how training stands: the loss, or of a policy, whose loss says little, the rewards."""
    if "reward" not in row.get("rollout", {}):
        return [(f"{row['loss']:.3f}", "training loss, last row")]
    names = [name for name in ("reward", "kl") if name in row["rollout"]]
    return [(METRICS[name].show(row["rollout"][name]), f"{METRICS[name].label}, last rollout") for name in names]


def _score_table(scores: Mapping[str, Any]) -> list[Block]:
    """Return a table of metrics, counts of the scored data, and other values of the scorer, and what to doubt in them."""
    # Only scores per byte are computed in overlapping windows.
    keys = [*METRICS, *(key for key in COUNTED if key != "stride" or "bytes" in scores)]
    scores = {key: value for key, value in scores.items() if key in keys or key != "stride"}
    rows = []
    for key in [*(key for key in keys if key in scores), *(key for key in scores if key not in keys)]:
        value, metric = scores[key], METRICS.get(key)
        content = metric.show(value) if metric and isinstance(value, Number) else format_number(value)
        title = metric.title if metric else key[:1].upper() + key[1:].replace("_", " ")
        note = metric.note if metric else COUNTED.get(key, "")
        rows.append((title, content, note))
    doubts = [f"{line[0].upper()}{line[1:]}." for line in metric_definitions.score_notices(scores)]
    return [Table((), rows, notes=1), *doubts]


def _tasks(tasks: Mapping[str, Any]) -> list[Block]:
    """Return the metrics of every task, followed by folded details."""
    rows: list[Any] = []
    details: list[Block] = []
    for task, result in tasks.items():
        metrics = result["metrics"]
        names = [name for name in metrics if name.removesuffix(ERROR) == name or name.removesuffix(ERROR) not in metrics]
        first = (task, result["examples"], "" if result["step"] is None else result["step"])
        for name, (title, examples, step) in zip(names, [first, *[("", "", "")] * len(names)], strict=False):
            rows.append(
                (title, name.replace("_", " "), format_with_error(metrics[name], metrics.get(name + ERROR)), examples, step)
            )
        details += _details(task, result.get("details", {}))
    return [Table(("Task", "Metric", "Value", "Examples", "Step"), rows, words=2), *details]


def _details(task: str, facts_by_name: Mapping[str, Any]) -> list[Block]:
    """Return a folded table for each dict of dicts, with named rows, and a line with everything else."""
    tables = {name: value for name, value in facts_by_name.items() if _is_table(value)}
    facts = [f"{name.replace('_', ' ')} {format_number(value)}" for name, value in facts_by_name.items() if name not in tables]
    blocks: list[Block] = [f"{task}: {'; '.join(facts)}"] if facts else []
    for name, rows in tables.items():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        lines = [(title, *(row.get(column, "") for column in columns)) for title, row in rows.items()]
        blocks.append(Table(("", *columns), lines, summary=f"{task}: {name.replace('_', ' ')} ({len(lines):,})"))
    return blocks


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(row, dict) for row in value.values())


def _samples(samples: Mapping[str, Any]) -> list[Block]:
    """Return beginnings of held-out text, continued by the model and by the text; or held-out sources, with generated texts."""
    how = f", temperature {format_number(samples['temperature'])}" if "temperature" in samples else ""
    step = f"the model after step {samples['step']:,}"
    lead = f"Beginnings of held-out text, continued by {step}{how}, and the true continuations."
    if "pairs" in samples:
        lead = f"Held-out sources, the greedy output of {step}, and the reference texts."
    blocks: list[Block] = [lead]
    for sample in samples["samples"]:
        blocks.append(Sample(sample["prompt"], [("The model", sample["text"]), ("The text", sample["truth"])]))
    if "alignment" in samples:
        lead = (
            "How much attention each token of the first of these texts, a row, pays to each token of its source, a column; the "
            "mean over layers and heads."
        )
        blocks += [lead, run_charts.attention_chart(samples["alignment"])]
    return blocks


def _rollout_texts(path: Path, run: Run) -> list[Block]:
    """Return sampled responses of the first and the last rollout of a policy; nothing for other runs."""
    rollout = getattr(run.options, "rollout", None)
    return rollout_texts.rollout_blocks(RunDir(path).rollouts, rollout.samples, rollout.steps) if rollout else []


def _origin(run: Run, train: Sequence[Any], sources: Sequence[Any] | None) -> list[Block]:
    """Return the origin of the parameters, and the amount and sources of the text they were trained on."""
    done = train[-1]["step"] if train else 0
    # A row of several options has more tokens than its length.
    examples = run.data.sizes.examples
    planned = train[-1]["tokens"] * examples(run.steps) // examples(done) if train else examples(run.steps) * run.data.length
    start = f"as {run.init} left them" if run.init else f"initialized at random, seed {run.seed}"
    seen = f"{short_number(train[-1]['tokens'] if train else 0)}" + (
        f" of {short_number(planned)} planned" if done < run.steps else ""
    )
    facts = {"Parameters at the start": start, "Tokens trained on": seen}
    if not sources:
        return [facts]
    epochs = ("Epochs",) if done == run.steps else ("Epochs so far", "Epochs planned")
    rows = []
    for source in sources:
        seen = [source["epochs"] * share for share in (examples(done) / examples(run.steps), 1.0)]
        shares = (f"{source['weight']:.1%}", f"{source['share']:.1%}")
        rows.append((source["name"], *shares, source["tokens"], source["rows"], *seen[-len(epochs) :]))
    return [facts, Table(("Source", "Weight", "Share of tokens", "Tokens", "Rows", *epochs), rows)]


def _total_skipped(train: Sequence[Any]) -> int:
    return sum(row["skipped"] for row in train)


def _skipped(train: Sequence[Any]) -> str:
    total = _total_skipped(train)
    if not total:
        return "No step was skipped."
    spans = [
        f"{before['step'] + 1:,} to {row['step']:,} ({row['skipped']})"
        for before, row in zip([{"step": 0}, *train], train, strict=False)
        if row["skipped"]
    ]
    more = f" and {len(spans) - 20} more" if len(spans) > 20 else ""
    where = ", ".join(spans[:20]) + more
    spikes = sum(row.get("spikes", 0) for row in train)
    reasons = [f"for a gradient that was not finite: {total - spikes:,}"] * (total > spikes)
    reasons += [f"for a spike of the loss: {spikes:,}"] * (spikes > 0)
    return f"Skipped {' and '.join(reasons)}, in steps {where}."


def _time_table(starts: Sequence[Any]) -> list[Block]:
    """Return the seconds of a run in each category, and the goodput; nothing if they are not recorded."""
    seconds = run_seconds(starts)
    if not (total := sum(seconds.values())):
        return []
    rows = [(TITLES[name], f"{value:,.1f}", f"{value / total:.1%}") for name, value in seconds.items()]
    lead = f"Goodput {goodput(seconds):.1%}: the share of {format_duration(total)} that was spent in steps that counted."
    return [lead, Table(("", "Seconds", "Share"), rows)]


def _starts(starts: Sequence[Any]) -> list[Block]:
    if len(starts) < 2:
        return []
    facts = [start["facts"] | start["versions"] for start in starts]
    differing = [key for key in facts[-1] if len({start_facts.get(key) for start_facts in facts}) > 1]
    head = ("Started (UTC)", "At step", *differing)
    rows = [
        (format_date(start["at"]), start["step"], *map(fact.get, differing)) for start, fact in zip(starts, facts, strict=True)
    ]
    return [f"Started {len(starts)} times.", Table(head, rows, words=len(head))]


def _configuration(run: Run) -> Cards:
    """Return a card for the fields of the run itself and one for each dataclass in it."""
    cards: dict[str, dict[str, Any]] = {}
    for key, value in flat_options(run).items():
        title, _, name = key.partition(".")
        cards.setdefault(title if name else "run", {})[name or title] = value
    return Cards(cards)


def _environment(start: Any) -> Cards:
    provenance = {"provenance": start["provenance"]} if "provenance" in start else {}
    return Cards({"set-up": start["facts"], **provenance, "versions": start["versions"]})


def _provenance(rows: Sequence[Any], starts: Sequence[Any]) -> str:
    times = [row["time"]["at"] for row in rows] + [start["at"] for start in starts]
    latest = f" The latest entry is of {format_date(max(times))} UTC." if times else ""
    return f"Made by zoo from the run's own files alone.{latest}"
