"""Labelled examples before tokenization: one frozen dataclass for each kind of task."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

IOB_TAG = re.compile(r"(?:([BI])(?:-(.+))?|O)", re.DOTALL)
"""A tag of the scheme that marks entities: O, B-TYPE or I-TYPE, or B and I alone where there is one type."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """Fields that all examples have."""

    origin: str
    """Place that the example was read from, for error messages: file:line, or another position within the file."""
    document: str = ""
    """Name of its document. Examples of one document are held out together; "" = the example is its own document."""
    path_number: int = dataclasses.field(default=0, repr=False, compare=False)
    """Number of the path, among those that are read together, that it was read from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Example):
    """A text or a pair of texts, with a class, a list of labels or a number as its label."""

    text: str
    pair: str | None = None
    label: str | float | tuple[str, ...]
    """The name of a class, a number in regression, or names if a text may have any number of labels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tagged(Example):
    """A sentence with a tag for each word."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


class Answer(NamedTuple):
    """An answer: a substring of the context."""

    text: str
    start: int
    """Index of its first character in the context."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question(Example):
    """A question about a context."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]
    """Accepted answers; the first one is the training target. Empty: the context does not answer the question."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice(Example):
    """A question about an article, with several options, one of which is right."""

    article: str
    question: str
    options: tuple[str, ...]
    answer: int
    """Index of the right option."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranked(Example):
    """A query, the text that belongs to it, and texts that do not."""

    query: str
    positive: str = ""
    """"" if the query is its own positive."""
    negatives: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaughtRanked(Ranked):
    """The same with a teacher's scores."""

    scores: tuple[float, ...] = ()
    """Scores of the positive and each negative; () = there are none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredPair(Example):
    """Two texts and the score of their similarity."""

    first: str
    second: str
    score: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair(Example):
    """A source text and its target text."""

    source: str
    target: str
    rendered: bool = False
    """True if a chat template has written the texts: names of special tokens in them are those tokens."""


ASSISTANT, ROLES = "assistant", ("system", "user", "assistant")


class Message(NamedTuple):
    """A turn of a conversation."""

    role: str
    """One of `ROLES`."""
    content: str


Content = str | tuple[Message, ...]
"""A prompt or a completion: a text, or messages that a chat template renders."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialogue(Example):
    """A conversation: a system message or none, then turns of the user and the assistant, which has the last one."""

    messages: tuple[Message, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preference(Example):
    """Two completions of a prompt: one was chosen, the other rejected. All three are texts, or all three are messages."""

    prompt: Content
    """The text before both completions; "" if there is none. Messages end with a turn of the user."""
    chosen: Content
    """Messages begin and end with a turn of the assistant, and usually are one."""
    rejected: Content
    margin: float = 0.0
    """Least difference of the scores of the chosen and the rejected completion (Touvron et al. 2023, equation 2)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnpairedPreference(Example):
    """A completion of a prompt, labelled as desired or undesired. Both are texts, or both are messages."""

    prompt: Content
    """The same as in `Preference`."""
    completion: Content
    desired: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt(Example):
    """A text to respond to, with what reward functions need to judge a response."""

    prompt: str
    """The text; "" = the response begins a document. For a conversation, its rendering by the chat template, once it exists."""
    columns: dict[str, Any]
    """Values of the other columns by name."""
    messages: tuple[Message, ...] = ()
    """The conversation, which ends with a turn of the user; () if the prompt is a text."""

    @property
    def content(self) -> str | list[dict[str, str]]:
        """The prompt as it is in files: a text, or the messages of a conversation."""
        return [message._asdict() for message in self.messages] or self.prompt


def is_iob(tags: Iterable[str]) -> bool:
    """Return whether all of the tags are O, B-TYPE or I-TYPE."""
    return all(IOB_TAG.fullmatch(tag) for tag in tags)


def has_messages(example: Any) -> bool:
    """Return whether an example is a conversation, which a chat template renders."""
    return bool(getattr(example, "messages", ())) or isinstance(getattr(example, "prompt", ""), tuple)
