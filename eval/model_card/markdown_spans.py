"""Text of others within Markdown."""

import re
from typing import Any

from zoo.errors import printable


def code(value: Any) -> str:
    """Return a value as a code span: names in files of others must not become links, pictures or HTML."""
    text = " ".join(printable(str(value)).split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    padding = " " if text[:1] in ("", "`") or text.endswith("`") else ""
    return f"{fence}{padding}{text}{padding}{fence}"


def plain(text: str) -> str:
    """Return a text with escapes before the characters that have a meaning in Markdown."""
    # An underscore within a word has no meaning.
    special = r"([\\`*{}\[\]()<>#|!&~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))"
    return re.sub(special, r"\\\1", " ".join(printable(text).split()))
