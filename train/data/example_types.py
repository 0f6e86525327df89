"""Labelled examples as they are read, before a tokenizer sees them: one frozen type for each kind of task."""

import dataclasses
import re
from collections.abc import Iterable
from typing import NamedTuple

IOB_TAG = re.compile(r"(?:([BI])(?:-(.+))?|O)", re.DOTALL)
"""A tag of the scheme that marks entities: O, B-TYPE or I-TYPE, or B and I alone where there is one type."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """What all have."""

    origin: str
    """Where it was read, as an error message names it: file:line, or what stands for a line there."""
    document: str = ""
    """Examples of one document are held out together; "" = it stands alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Example):
    """A text or a pair of texts with a class or a number."""

    text: str
    pair: str | None = None
    label: str | float
    """A number in regression."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tagged(Example):
    """A sentence with a tag for each word."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


class Answer(NamedTuple):
    """An answer, as it stands in the context."""

    text: str
    start: int
    """Its first character in the context."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question(Example):
    """A question about a context."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]
    """What is accepted; the first one is learned. None: the context does not answer the question."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice(Example):
    """A question about an article, of whose options one is right."""

    article: str
    question: str
    options: tuple[str, ...]
    answer: int
    """Number of the right one, from 0."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair(Example):
    """A text that is read and the text that is written for it."""

    source: str
    target: str


def is_iob(tags: Iterable[str]) -> bool:
    """Whether all of the tags are O, B-TYPE or I-TYPE."""
    return all(IOB_TAG.fullmatch(tag) for tag in tags)
