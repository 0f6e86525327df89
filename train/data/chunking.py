"""Chunking of long texts, cut only where tokenizing the chunks gives the same tokens as tokenizing the text at once."""

import re
from collections.abc import Iterable, Iterator

from zoo.errors import BadInput

CHUNK = 1 << 15
"""Characters of a chunk: a longer text is cut at the first place after it where a cut does not change the tokens."""
GROUP = 32
"""Chunks that are tokenized at a time: enough to keep the cores busy."""
LONGEST_CHUNK = 4 << 20
"""Characters of the longest chunk: tokenizing takes about 50 bytes of memory per character."""

# GPT-2's rules never make one token of a visible character and a space after it, nor of a letter and punctuation after it.
# Letters are those of scripts written without spaces, in ranges that no version of Unicode changes.
_CUT = re.compile(r"\S(?=[ \n\r\t])|[\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5](?=[\u3001\u3002\uff01\uff0c\uff1f])")


def cut_chunks(strings: Iterable[str], where: str = "text") -> Iterator[tuple[str, bool]]:
    """Yield (chunk, is it the last) of the text that the strings form when joined, wherever the strings begin and end.

    Raises:
        BadInput: there is no place to cut within `LONGEST_CHUNK` characters; the message begins with `where`.
    """
    pending = ""
    for string in strings:
        pending += string
        start = 0
        while match := _CUT.search(pending, start + CHUNK):
            yield pending[start : match.end()], False
            start = match.end()
        pending = pending[start:]
        if len(pending) > LONGEST_CHUNK:
            raise BadInput(
                f"{where}: {LONGEST_CHUNK:,} characters without the end of a word; put spaces or line ends between words"
            )
    yield pending, True


def group_chunks(chunks: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    """Yield chunks in groups of about a million characters: `GROUP` long chunks, or more short ones."""
    group, size = [], 0
    for chunk in chunks:
        group.append(chunk)
        size += len(chunk[0]) + 1
        if size >= GROUP * CHUNK:
            yield group
            group, size = [], 0
    if group:
        yield group
