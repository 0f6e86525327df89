"""Long texts in pieces, cut only where tokenizing the pieces gives the tokens of the whole."""

import re
from collections.abc import Iterable, Iterator

from zoo.errors import BadInput

PIECE = 1 << 15
"""Characters from which on a text is cut at the first place that allows it."""
GROUP = 32
"""Pieces that are tokenized at a time: enough to keep the cores busy."""
LONGEST_PIECE = 4 << 20
"""Characters of the longest piece: tokenizing takes about 50 bytes for each while it lasts."""

# GPT-2's rules never make one token of a visible character and a space after it, nor of a letter and punctuation after it.
# Letters are those of scripts written without spaces, in ranges that no version of Unicode changes.
_CUT = re.compile(r"\S(?=[ \n\r\t])|[\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5](?=[\u3001\u3002\uff01\uff0c\uff1f])")


def cut(chunks: Iterable[str], where: str = "text") -> Iterator[tuple[str, bool]]:
    """(piece, is it the last) of the text that the chunks are when joined. Where the chunks end makes no difference.

    Raises:
        BadInput: no place to cut within `LONGEST_PIECE` characters; it names `where`.
    """
    rest = ""
    for chunk in chunks:
        rest += chunk
        start = 0
        while found := _CUT.search(rest, start + PIECE):
            yield rest[start : found.end()], False
            start = found.end()
        rest = rest[start:]
        if len(rest) > LONGEST_PIECE:
            raise BadInput(
                f"{where}: {LONGEST_PIECE:,} characters without the end of a word; put spaces or line ends between words"
            )
    yield rest, True


def groups(pieces: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    """Pieces in groups of about a million characters: `GROUP` long pieces, or more short ones."""
    group, size = [], 0
    for piece in pieces:
        group.append(piece)
        size += len(piece[0]) + 1
        if size >= GROUP * PIECE:
            yield group
            group, size = [], 0
    if group:
        yield group
