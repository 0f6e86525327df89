"""Options of text generation: frozen dataclasses that validate their fields. This module does not import JAX."""

import dataclasses
from typing import Annotated, Literal

import tyro

from zoo.errors import require
from zoo.generation.decoding_settings import GREEDY, UNCHANGED, Beams, Processors, Sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """Length, stop strings and sampling of continuations."""

    limit: int = 128
    """Maximum number of new tokens."""
    total: int = 0
    """Maximum number of tokens of prompt and continuation together, in place of the limit; an encoder-decoder's first token
    counts, its source does not; 0 = off."""
    stop: tuple[str, ...] = ()
    """Texts before which a continuation ends."""
    samples: int = 1
    """Number of continuations of each prompt."""
    seed: int = 0
    """Seed of sampling. A continuation depends only on the seed, its prompt, and the numbers of its prompt and sample."""
    past_end: bool = False
    """Continue after end-of-text."""
    read: Literal["left-to-right", "both-ways"] = "left-to-right"
    """Tokens that an XLNet token sees: only earlier ones, or also later ones that are read with it, as in `transformers`."""
    folder_settings: bool = True
    """Use the settings of the model's generation_config.json that are not given here. Ids that begin and end texts always are."""
    processors: Annotated[Processors, tyro.conf.arg(name="", prefix_name=False)] = UNCHANGED
    sampling: Annotated[Sampling, tyro.conf.arg(name="", prefix_name=False)] = Sampling()
    search: Annotated[Beams, tyro.conf.arg(name="", prefix_name=False)] = Beams()

    def __post_init__(self) -> None:
        require(self.limit >= 1, "limit", self.limit, "choose 1 or more new tokens")
        require(self.total >= 0, "total", self.total, "choose 1 or more tokens; 0 = off")
        require(self.samples >= 1, "samples", self.samples, "choose 1 or more continuations of each prompt")
        require(0 <= self.seed < 1 << 32, "seed", self.seed, "choose 0 to 4,294,967,295")
        require("" not in self.stop, "stop", "''", "every text contains it; name a text, or leave the option out")

    def check_search(self) -> None:
        """Refuse settings of sampling with beam search, and settings of beam search without it.

        This is no part of the constructor, because a folder may have settings that complete those of the command line.
        """
        beams = self.search.beams
        if beams > 1:
            one_way = self.read == "left-to-right"
            require(one_way, "read", self.read, "beam search reads from left to right; leave --read out, or choose --beams 1")
            require(self.samples <= beams, "samples", self.samples, f"a search gives at most as many as --beams {beams}")
            for field in dataclasses.fields(Sampling):
                value = getattr(self.sampling, field.name)
                unchanged = value == field.default or self.sampling == GREEDY
                require(unchanged, field.name, value, "beam search does not sample; remove it, or choose --beams 1")
        else:
            for field in dataclasses.fields(Beams):
                value = getattr(self.search, field.name)
                require(value == field.default, field.name, value, "it needs beam search; choose --beams 2 or more")

    def tokens_after(self, prompt: int) -> int:
        """Return the largest number of new tokens after a prompt of this many; below 1 if `total` leaves no room."""
        return self.total - prompt if self.total else self.limit

    @property
    def reread(self) -> int:
        """Cached tokens that each step reads again together with the newest one, which they then see."""
        return int(self.read == "both-ways")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompts to continue: texts, the lines of a file, or a few examples and a question."""

    prompt: tuple[str, ...] = ()
    """Texts to continue."""
    prompts_file: str = ""
    """File of texts to continue, one a line; the field "prompt" of each line in a .jsonl file."""
    examples: str = ""
    """A .jsonl file of examples for a few-shot prompt; needs --template and --query."""
    template: str = ""
    """How an example is written, fields in braces: "Q: {question}\\nA: {answer}\\n\\n"."""
    query: tuple[str, ...] = ()
    """name=value for each field of the template before the answer; the answer is the first field without a value."""
    begin: bool = False
    """Put end-of-text before every prompt, as before a document in training; the prompt may then be empty."""
    chat: bool = False
    """Render each prompt as a turn of the user with the model's chat template, and print the answer alone, up to its end mark."""
    choices: tuple[str, ...] = ()
    """Generate nothing, but score these continuations, exactly as given: most begin with a space."""

    def __post_init__(self) -> None:
        sources = [name for name in ("prompt", "prompts_file", "examples") if getattr(self, name)]
        options = "one of --prompt, --prompts-file and --examples"
        require(bool(sources), "prompt", "is not given", f"write RUN|DIR, and then {options}")
        require(len(sources) == 1, sources[0], "and others", f"give {options}")
        if self.examples:
            require(bool(self.template), "template", "''", "say how an example is written, with its fields in braces")
            require(bool(self.query), "query", "''", "give the template's fields before the answer as name=value")
        else:
            require(not self.template, "template", repr(self.template), "it needs --examples")
            require(not self.query, "query", " ".join(self.query), "it needs --examples")
        for name in ("examples", "choices", "begin") if self.chat else ():
            value = getattr(self, name)
            require(not value, name, value, "--chat takes prompts as turns of the user; leave one of the two out")
        require(self.begin or "" not in self.prompt, "prompt", "''", "write some text, or add --begin to start a document")
        require("" not in self.choices, "choices", "''", "write some text in each")
        for name in ("prompt", "template", "query", "choices"):
            for text in (self.template,) if name == "template" else getattr(self, name):
                # A byte from the shell that is not UTF-8 arrives as a lone surrogate.
                require(not any("\ud800" <= letter <= "\udfff" for letter in text), name, ascii(text), "write it in UTF-8")
