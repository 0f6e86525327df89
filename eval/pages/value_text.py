"""Values as the text of a page: numbers, dates, escaped text, and long texts that are folded."""

import datetime
import html
import math
from typing import Any

# Control characters are invisible, and HTML forbids some: they are shown as replacement characters.
UNSEEN = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), 127) if chr(code) not in "\t\n"}
SHORT = 280
"""Number of characters of a folded text that are always visible."""


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


def cell_text(value: Any) -> str:
    """Return a value in a table as text; "" stays empty."""
    return "" if value == "" else format_number(value)


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


def fold_text(text: str) -> tuple[str, str]:
    """Return the visible part of a text and the part to fold, "" if it is short; the cut is before a word, if possible."""
    if len(text) <= 1.2 * SHORT:
        return text, ""
    end = text.rfind(" ", SHORT // 2, SHORT)
    end = SHORT if end < 0 else end
    return text[:end], text[end:]
