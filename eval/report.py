"""The report a run leaves behind: one HTML file that needs nothing else, neither network nor scripts."""

import datetime
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval import plots
from train.config import Run
from train.console import clock, short
from train.folder import Folder, flat, read_config, write_text
from train.metrics import read
from zoo.errors import BadInput

SCORES = {
    "bits_per_byte": ("Bits per byte", "loss in bits over the bytes of the text; comparable between tokenizers"),
    "perplexity": ("Perplexity", "e to the loss; comparable only with the same tokenizer"),
    "loss": ("Loss", "mean negative log likelihood of a token, in nats"),
    "tokens": ("Tokens", "predicted, each once"),
    "bytes": ("Bytes", "of held-out text"),
    "stride": ("Stride", "tokens from one window to the next"),
}


def write(folder: str | Path) -> Path:
    """Write RUN/report.html from the run's config.json and, as far as they exist, metrics.jsonl, starts.jsonl and scores.json.

    Works at any moment of a run: before its first row, while it goes, after it was killed. Returns the path of the report.

    Raises:
        BadInput: the folder is no run, or one of these files is damaged.
    """
    files, run = Folder(folder), read_config(folder)
    rows = read(files.metrics) if files.metrics.exists() else []
    starts = read(files.starts) if files.starts.exists() else []
    name = files.path.resolve().name
    write_text(files.report, _page(name, run, rows, starts, _scores(files.scores)))
    return files.report


def _scores(path: Path) -> dict[str, float]:
    try:
        scores = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise BadInput(f"{path} is not valid JSON: {error}; score the run again") from None
    if not isinstance(scores, dict):
        raise BadInput(f"{path} is not an object of scores; score the run again")
    return scores


def _page(name: str, run: Run, rows: Sequence[Any], starts: Sequence[Any], scores: Mapping[str, Any]) -> str:
    train = [row for row in rows if row["kind"] == "train"]
    valid = [row for row in rows if row["kind"] == "valid"]
    resumed = [start["step"] for start in starts[1:]]
    sentence = _sentence(name, run, train, valid, scores)
    body = [
        f"<header><h1>{_text(name)}</h1><p class=lead>{_text(sentence)}</p>{_tiles(train, valid, scores)}</header>",
        _section("Curves", plots.curves(train, valid, resumed)) if train or valid else "",
        _section("Held-out score", _score_table(scores)) if scores else "",
        _section("Interruptions", _skipped(train) + _starts(starts)) if len(starts) > 1 or _total_skipped(train) else "",
        _section("Configuration", f"<div class=cards>{_configuration(run)}</div>"),
        _section("Environment", f"<div class=cards>{_environment(starts[-1])}</div>") if starts else "",
        f"<footer>{_text(_provenance(rows, starts))}</footer>",
    ]
    return PAGE.format(title=_text(name), description=_text(sentence), style=STYLE, body="\n".join(filter(None, body)))


def _sentence(name: str, run: Run, train: Sequence[Any], valid: Sequence[Any], scores: Mapping[str, Any]) -> str:
    if not train:
        return f"No step of {name} has been recorded yet, of {run.steps:,} planned."
    last = train[-1]
    amount = f"{short(last['tokens'])} tokens"
    if {"bits_per_byte", "perplexity"} <= scores.keys():
        return (
            f"After {last['step']:,} steps on {amount}, {name} needs {scores['bits_per_byte']:.3f} bits per byte of held-out "
            f"text (perplexity {_number(scores['perplexity'])})."
        )
    reached = f"{name} has taken {last['step']:,} of {run.steps:,} steps, on {amount}"
    if not valid:
        return f"{reached}; no validation yet, and no final score."
    return (
        f"{reached}; at step {valid[-1]['step']:,} it needed {valid[-1]['bits_per_byte']:.3f} bits per byte of the validation "
        "sample. There is no final score."
    )


def _tiles(train: Sequence[Any], valid: Sequence[Any], scores: Mapping[str, Any]) -> str:
    tiles: list[tuple[str, str]] = []
    if "bits_per_byte" in scores:
        tiles.append((f"{scores['bits_per_byte']:.3f}", "bits per byte, held out"))
    elif valid:
        tiles.append((f"{valid[-1]['bits_per_byte']:.3f}", "bits per byte, validation"))
    if train:
        # The first row still holds the start-up, and a row whose only step compiled has no rate.
        timed = [row["time"] for row in train[1:] or train if math.isfinite(row["time"]["tokens_per_s"])]
        shares = [time["mfu"] for time in timed if time["mfu"] is not None]
        tiles.append((f"{train[-1]['step']:,}", "steps"))
        tiles.append((f"{train[-1]['loss']:.3f}", "training loss, last row"))
        if timed:
            tiles.append((short(float(np.median([time["tokens_per_s"] for time in timed]))), "tokens a second, median"))
        tiles += [(f"{np.median(shares):.1%}", "MFU, median")] if shares else []
        steps = np.diff([0, *(row["step"] for row in train)])
        spent = np.array([row["time"]["seconds"] for row in train]) * steps
        tiles.append((clock(float(spent[np.isfinite(spent)].sum())), "training time"))
    shown = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for value, name in tiles)
    return f"<dl class=tiles>{shown}</dl>" if tiles else ""


def _score_table(scores: Mapping[str, Any]) -> str:
    named = [(*SCORES[key], scores[key]) for key in SCORES if key in scores]
    named += [(key, "", value) for key, value in scores.items() if key not in SCORES]
    lines = "".join(
        f"<tr><th scope=row>{_text(title)}</th><td class=number>{_text(_number(value))}</td><td class=note>{note}</td></tr>"
        for title, note, value in named
    )
    return f"<table class=scores>{lines}</table>"


def _total_skipped(train: Sequence[Any]) -> int:
    return sum(row["skipped"] for row in train)


def _skipped(train: Sequence[Any]) -> str:
    total = _total_skipped(train)
    if not total:
        return "<p>No step was skipped.</p>"
    spans = [
        f"{before['step'] + 1:,} to {row['step']:,} ({row['skipped']})"
        for before, row in zip([{"step": 0}, *train], train, strict=False)
        if row["skipped"]
    ]
    more = f" and {len(spans) - 20} more" if len(spans) > 20 else ""
    where = _text(", ".join(spans[:20]) + more)
    return f"<p>Skipped for a gradient that was not finite: {total:,}, in steps {where}.</p>"


def _starts(starts: Sequence[Any]) -> str:
    if len(starts) < 2:
        return ""
    told = [start["facts"] | start["versions"] for start in starts]
    differing = [key for key in told[-1] if len({each.get(key) for each in told}) > 1]
    head = "".join(f"<th scope=col>{_text(each)}</th>" for each in ["Started (UTC)", "At step", *differing])
    lines = ""
    for start, fact in zip(starts, told, strict=True):
        cells = [_date(start["at"]), f"{start['step']:,}", *map(fact.get, differing)]
        lines += f"<tr>{''.join(f'<td>{_text(each)}</td>' for each in cells)}</tr>"
    return f"<p>Started {len(starts)} times.</p><div class=scroll><table><thead><tr>{head}</tr></thead>{lines}</table></div>"


def _configuration(run: Run) -> str:
    """A card for the fields of the run itself and one for each dataclass in it."""
    cards: dict[str, dict[str, Any]] = {}
    for key, value in flat(run).items():
        title, _, name = key.partition(".")
        cards.setdefault(title if name else "run", {})[name or title] = value
    return "".join(_card(title, values) for title, values in cards.items())


def _environment(start: Any) -> str:
    return _card("set-up", start["facts"]) + _card("versions", start["versions"])


def _card(title: str, values: Mapping[str, Any]) -> str:
    lines = "".join(f"<tr><th scope=row>{_text(key)}</th><td>{_text(_number(value))}</td></tr>" for key, value in values.items())
    return f"<div class=card><h3>{_text(title)}</h3><table>{lines}</table></div>"


def _provenance(rows: Sequence[Any], starts: Sequence[Any]) -> str:
    times = [row["time"]["at"] for row in rows] + [start["at"] for start in starts]
    latest = f" The latest entry is of {_date(max(times))} UTC." if times else ""
    return f"Made by zoo from the run's own files: config.json, metrics.jsonl, starts.jsonl, scores.json.{latest}"


def _date(at: float) -> str:
    return f"{datetime.datetime.fromtimestamp(at, datetime.UTC):%Y-%m-%d %H:%M}"


def _number(value: Any) -> str:
    """A value as a person reads it: thousands separated, four digits of a fraction, a list on one line."""
    if isinstance(value, tuple | list):
        return ", ".join(map(_number, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value) if value != "" else "none"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _text(value: Any) -> str:
    return html.escape(str(value))


# The policy is the proof that nothing is fetched and nothing runs.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="description" content="{description}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

STYLE = """
:root{--page:#fbfbf9;--card:#ffffff;--ink:#1b1f24;--muted:#59616b;--grid:#e2e4e8;--one:#1a5fb4;--two:#b3450b;--three:#b3261e}
@media (prefers-color-scheme:dark){:root{--page:#12151a;--card:#1a1e25;--ink:#e7e9ec;--muted:#a3abb6;--grid:#303741;--one:#78aeff;
--two:#ffa45c;--three:#ff8a80}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1120px;margin:0 auto;padding:40px 24px 56px}
h1{font-size:2rem;line-height:1.2;margin:0 0 8px;letter-spacing:-.02em;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:48px 0 16px;letter-spacing:-.01em}
.lead{font-size:1.125rem;color:var(--muted);margin:0;max-width:46em;text-wrap:pretty}
.tiles{display:flex;flex-wrap:wrap;gap:16px 40px;margin:28px 0 0}
.tiles div{display:flex;flex-direction:column-reverse}
.tiles dt{color:var(--muted);font-size:.875rem}
.tiles dd{margin:0;font-size:1.75rem;font-weight:600;line-height:1.2;letter-spacing:-.02em}
.plots{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:20px}
figure{margin:0;padding:16px 18px 10px;background:var(--card);border:1px solid var(--grid);border-radius:10px;min-width:0}
figure.lead-plot{grid-column:1/-1}
figcaption{display:flex;flex-wrap:wrap;align-items:baseline;gap:2px 18px;font-size:.875rem;color:var(--muted);margin-bottom:6px}
figcaption b{color:var(--ink);font-size:1rem;margin-right:auto}
.key::before{content:"";display:inline-block;width:16px;height:0;border-top:3px solid;margin-right:6px;vertical-align:middle}
.key.dots::before{width:8px;height:8px;border:0;border-radius:50%;background:currentColor;vertical-align:baseline}
.key.dashed::before{border-top:2px dashed}
.key.cross::before{content:"\\00d7";border:0;width:auto;height:auto;vertical-align:baseline;font-weight:700}
.key.faint::before{opacity:.35}
.one{color:var(--one)}.two{color:var(--two)}.three{color:var(--three)}
.key span{color:var(--muted)}
svg{display:block;width:100%;height:auto}
svg text{font-family:inherit!important}
svg.narrow{display:none}
.remark{font-size:.875rem;color:var(--muted);margin:4px 0 6px}
table{border-collapse:collapse;text-align:left}
th,td{padding:5px 14px 5px 0;vertical-align:top;border-top:1px solid var(--grid)}
tr:first-child>*{border-top:0}
tbody tr:first-child>*{border-top:1px solid var(--grid)}
th{font-weight:400;color:var(--muted)}
td{overflow-wrap:anywhere}
.number{text-align:right;font-weight:600;white-space:nowrap}
.note{color:var(--muted)}
.scores th{color:var(--ink)}
.scroll{overflow-x:auto}
.cards{columns:3 280px;column-gap:20px}
.card{break-inside:avoid;margin:0 0 20px;padding:12px 18px 10px;background:var(--card);border:1px solid var(--grid);
border-radius:10px;font-size:.875rem}
.card h3{font-size:1rem;margin:0 0 4px}
.card table{width:100%}
.card th{width:44%}
.card td{padding-right:0}
footer{margin-top:48px;padding-top:14px;border-top:1px solid var(--grid);color:var(--muted);font-size:.875rem}
@media (max-width:760px){main{padding:24px 14px 40px}.plots{grid-template-columns:minmax(0,1fr);gap:14px}
figure{padding:12px 10px 6px}svg.wide{display:none}svg.narrow{display:block}.tiles{gap:14px 28px}.tiles dd{font-size:1.5rem}
h1{font-size:1.625rem}h2{margin-top:36px}figcaption b{width:100%}}
@media print{figure,.card{break-inside:avoid}}
"""
