"""HTML elements of a report: the page with its style sheet, sections, tables, cards, and the formatting of values."""

import datetime
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Control characters are invisible, and HTML forbids some: they are shown as replacement characters.
UNSEEN = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), 127) if chr(code) not in "\t\n"}


def page(title: str, description: str, parts: Iterable[str], *, style: str = "") -> str:
    """Return a complete page. `title` and `description` are text, `parts` are HTML; empty parts are skipped.

    Args:
        style: CSS that follows the style sheet of all pages.
    """
    body = "\n".join(filter(None, parts))
    return PAGE.format(title=escape_text(title), description=escape_text(description), style=STYLE + style, body=body)


def section(title: str, content: str) -> str:
    """Return a section of a page; `title` and `content` are HTML."""
    return f"<section><h2>{title}</h2>{content}</section>"


def card(title: str, values: Mapping[str, Any]) -> str:
    """Return names and values in a frame."""
    lines = "".join(
        f"<tr><th scope=row>{escape_text(key)}</th><td>{escape_text(format_number(value))}</td></tr>"
        for key, value in values.items()
    )
    return f"<div class=card><h3>{escape_text(title)}</h3><table>{lines}</table></div>"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, words: int = 1) -> str:
    """Return a table with a head: `words` columns of words, then right-aligned numbers; a table that is too wide scrolls."""
    kinds = ["" if column < words else " class=number" for column in range(len(head))]

    def line(cell: str, values: Iterable[Any]) -> str:
        cells = (
            f"<{cell}{kind}>{escape_text(value if value == '' else format_number(value))}</{cell[:2]}>"
            for value, kind in zip(values, kinds, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<div class=scroll><table><thead>{line('th scope=col', head)}</thead><tbody>{body}</tbody></table></div>"


def format_number(value: Any) -> str:
    """Return a value as text: thousands separated, four digits of a fraction, a list on one line."""
    if isinstance(value, tuple | list):
        return ", ".join(map(format_number, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value) if value != "" else "none"


def format_with_error(value: float | int, error: float | None) -> str:
    """Return a value with its standard error, both to two digits of the error: "0.8123 \N{PLUS-MINUS SIGN} 0.0021"."""
    if error is None or not (math.isfinite(value) and 0 < error < math.inf):
        return format_number(value)
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:,.{digits}f} \N{PLUS-MINUS SIGN} {error:,.{digits}f}"


def format_date(at: float) -> str:
    """Return a Unix time in UTC, to the minute."""
    return f"{datetime.datetime.fromtimestamp(at, datetime.UTC):%Y-%m-%d %H:%M}"


def escape_text(value: Any) -> str:
    """Return any value as escaped HTML text, with a visible character for every control character."""
    # A file name that is not UTF-8 has lone surrogates, which no file can hold.
    return html.escape(str(value).replace("\r\n", "\n").translate(UNSEEN).encode(errors="replace").decode())


# The content security policy ensures that nothing is fetched and nothing runs.
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
:root{--page:#fbfbf9;--card:#ffffff;--ink:#1b1f24;--muted:#59616b;--grid:#e2e4e8;--one:#1a5fb4;--two:#b3450b;--three:#b3261e;
--four:#1b7f5c;--five:#7a3fb0;--six:#8a6d00}
@media (prefers-color-scheme:dark){:root{--page:#12151a;--card:#1a1e25;--ink:#e7e9ec;--muted:#a3abb6;--grid:#303741;--one:#78aeff;
--two:#ffa45c;--three:#ff8a80;--four:#5fd3a4;--five:#c79bff;--six:#e3c24d}}
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
.key.dotted::before{border-top-style:dotted}
.ink{color:var(--ink)}.one{color:var(--one)}.two{color:var(--two)}.three{color:var(--three)}
.four{color:var(--four)}.five{color:var(--five)}.six{color:var(--six)}.muted{color:var(--muted)}
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
.scroll .number{font-weight:400}
.scroll td:empty{border-top-color:transparent}
thead th{white-space:nowrap}
.scroll{margin:14px 0 12px}
.scroll th,.scroll td{padding-right:24px}
.scroll td{overflow-wrap:normal}
.scroll td:first-child{min-width:9em;overflow-wrap:anywhere}
details,p.note{margin:6px 0 0;color:var(--muted)}
summary{cursor:pointer}
details table{color:var(--ink);font-size:.875rem;margin-top:6px}
.sample{margin-top:20px;padding:16px 18px;background:var(--card);border:1px solid var(--grid);border-radius:10px}
.sample p{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
.sample [dir]{white-space:pre-wrap;overflow-wrap:anywhere}
.sample h3{margin:0 0 2px;font-size:.875rem;font-weight:600}
.sample .prompt{color:var(--muted)}
.both{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:14px 28px;margin-top:14px;padding-top:12px;
border-top:1px solid var(--grid)}
.scroll{overflow-x:auto}
.cards{columns:3 280px;column-gap:20px}
.card{break-inside:avoid;margin:0 0 20px;padding:12px 18px 10px;background:var(--card);border:1px solid var(--grid);
border-radius:10px;font-size:.875rem}
.card h3{font-size:1rem;margin:0 0 4px}
.card table{width:100%}
.card th{width:44%}
.card td{padding-right:0}
.confusion{font-variant-numeric:tabular-nums}
.confusion caption{text-align:left;color:var(--muted);padding-bottom:10px}
.scroll .confusion th,.scroll .confusion td{padding:6px 10px;text-align:right;border:2px solid var(--page);min-width:3.5em}
.scroll .confusion th{border-color:transparent}
.scroll .confusion tr>:first-child{text-align:left;padding-left:0;min-width:0;max-width:12em;overflow-wrap:break-word}
.confusion thead th{vertical-align:bottom;white-space:normal;overflow-wrap:break-word;max-width:8em}
.confusion .right{background:color-mix(in srgb,var(--one) calc(.45*var(--share)),var(--card))}
.confusion .wrong{background:color-mix(in srgb,var(--two) calc(.45*var(--share)),var(--card))}
.confusion .none{background:var(--card);color:var(--muted)}
.scroll .confusion .share{color:var(--muted);min-width:0}
.worst{width:100%}
.rollout+.rollout{margin-top:28px}
.worst .texts>div+div{margin-top:6px;padding-top:6px;border-top:1px dashed var(--grid)}
.worst .texts{width:60%;white-space:pre-wrap;overflow-wrap:anywhere}
.worst .texts details{margin:0;color:inherit}
.worst td{padding-right:24px}
.worst .number{padding-right:0}.worst th.number{font-weight:400}
footer{margin-top:48px;padding-top:14px;border-top:1px solid var(--grid);color:var(--muted);font-size:.875rem}
@media (max-width:760px){main{padding:24px 14px 40px}.plots,.both{grid-template-columns:minmax(0,1fr)}.plots{gap:14px}
figure{padding:12px 10px 6px}svg.wide{display:none}svg.narrow{display:block}.tiles{gap:14px 28px}
.scroll{font-size:.875rem}.scroll th,.scroll td{padding-right:12px}.scroll td:first-child{min-width:7.5em}
.scroll .confusion th,.scroll .confusion td{padding:6px 8px;min-width:2.75em}.scroll .confusion tr>:first-child{max-width:8em}
.confusion thead .class{writing-mode:vertical-rl;transform:rotate(180deg);text-align:left;max-width:none;max-height:11em}
.worst thead{display:none}
.worst tr{display:grid;grid-template-columns:1fr 1fr auto;border-top:1px solid var(--grid);padding:8px 0}
.worst td{border:0!important;padding:2px 14px 2px 0}.worst .texts{grid-column:1/-1;width:auto}
.worst td[data-name]::before{content:attr(data-name);display:block;color:var(--muted);font-size:.8125rem;font-weight:400}
.tiles dd{font-size:1.5rem}h1{font-size:1.625rem}h2{margin-top:36px}figcaption b{width:100%}}
@media print{figure,.card,.sample{break-inside:avoid}}
"""
