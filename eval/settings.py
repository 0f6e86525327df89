"""How text is generated, in numbers: frozen dataclasses, validated where they are made. Nothing here imports jax."""

import dataclasses
import math
from typing import Annotated, Literal

import tyro

from zoo.errors import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. The fields act in their order here; their defaults leave the probabilities as they are."""

    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens already in the prompt or the output, and multiplies the negative ones; 1 = off."""
    temperature: float = 1.0
    """Divides the logits; below 1 the likely tokens become likelier. 0 = always the likeliest token (greedy)."""
    top_k: int = 0
    """Only this many of the likeliest tokens are drawn from; 0 = off."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability are drawn from; 1 = off."""
    min_p: float = 0.0
    """Only tokens of at least this share of the likeliest token's probability are drawn from; 0 = off."""

    def __post_init__(self) -> None:
        penalty = self.repetition_penalty
        require(0 < penalty < math.inf, "repetition_penalty", penalty, "choose a number above 0; 1 = off")
        # float32 holds the quotient of every sane logit by 1e-6.
        warm = self.temperature == 0 or 1e-6 <= self.temperature < math.inf
        require(warm, "temperature", self.temperature, "choose 0 for the likeliest token, or a number from 0.000001 on")
        require(self.top_k >= 0, "top_k", self.top_k, "choose 1 or more tokens; 0 = off")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "choose more than 0 (which would leave no token) up to 1 (off)")
        require(0 <= self.min_p <= 1, "min_p", self.min_p, "choose 0 (off) up to 1 (more would leave no token)")


GREEDY = Sampling(temperature=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beams:
    """Beam search, which draws nothing: it keeps the best texts of every length."""

    beams: int = 1
    """Texts that are kept; 1 = no beam search. --samples says how many of them are given, the best first."""
    length_penalty: float = 1.0
    """A text's score is its log probability over its length to this power: 0 favours short texts, more than 1 long ones."""
    search_until: Literal["full", "unlikely", "impossible"] = "unlikely"
    """When a search ends: as many texts are finished as there are beams; none that is still going would be among the best at its
    present length; or none could be at any length."""

    def __post_init__(self) -> None:
        require(1 <= self.beams <= 1024, "beams", self.beams, "choose 1 (no beam search) to 1,024")
        finite = abs(self.length_penalty) <= 100
        require(finite, "length_penalty", self.length_penalty, "choose 0 (off) or a power of -100 to 100")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """How far prompts are continued and by which draws."""

    limit: int = 128
    """New tokens at most."""
    stop: tuple[str, ...] = ()
    """Texts before which a continuation ends."""
    samples: int = 1
    """Continuations of each prompt."""
    seed: int = 0
    """Of the draws: a continuation depends on it, its prompt, the numbers of prompt and sample, and nothing else."""
    past_end: bool = False
    """Go on after the end-of-text mark."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="", prefix_name=False)] = Sampling()
    search: Annotated[Beams, tyro.conf.arg(name="", prefix_name=False)] = Beams()

    def __post_init__(self) -> None:
        beams = self.search.beams
        if beams > 1:
            require(self.samples <= beams, "samples", self.samples, f"a search gives at most as many as --beams {beams}")
            for field in dataclasses.fields(Sampling):
                value = getattr(self.sampling, field.name)
                unchanged = value == field.default or self.sampling == GREEDY
                require(unchanged, field.name, value, "beam search draws nothing; leave it out, or choose --beams 1")
        else:
            for field in dataclasses.fields(Beams):
                value = getattr(self.search, field.name)
                require(value == field.default, field.name, value, "it needs beam search; choose --beams 2 or more")
        require(self.limit >= 1, "limit", self.limit, "choose 1 or more new tokens")
        require(self.samples >= 1, "samples", self.samples, "choose 1 or more continuations of each prompt")
        require(0 <= self.seed < 1 << 32, "seed", self.seed, "choose 0 to 4,294,967,295")
        require("" not in self.stop, "stop", "''", "every text contains it; name a text, or leave the option out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """What is to be continued: texts, the lines of a file, or a few examples and a question."""

    prompt: tuple[str, ...] = ()
    """Texts to continue."""
    prompts_file: str = ""
    """File of texts to continue, one a line; the field "prompt" of each line in a .jsonl file."""
    examples: str = ""
    """A .jsonl file of examples for a few-shot prompt; needs --template and --query."""
    template: str = ""
    """How an example is written, fields in braces: "Q: {question}\\nA: {answer}\\n\\n"."""
    query: tuple[str, ...] = ()
    """name=value for the template's fields before the answer, which is the first field not named."""
    begin: bool = False
    """Put the end-of-text mark before every prompt, as it stands before a document; the prompt may then be empty."""
    choices: tuple[str, ...] = ()
    """Generate nothing, but score these continuations, exactly as given: most begin with a space."""

    def __post_init__(self) -> None:
        given = [name for name in ("prompt", "prompts_file", "examples") if getattr(self, name)]
        which = "give one of --prompt, --prompts-file and --examples"
        require(len(given) == 1, given[0] if given else "prompt", "and others" if given else "is not given", which)
        if self.examples:
            require(bool(self.template), "template", "''", "say how an example is written, with its fields in braces")
            require(bool(self.query), "query", "''", "give the template's fields before the answer as name=value")
        else:
            require(not self.template, "template", repr(self.template), "it needs --examples")
            require(not self.query, "query", " ".join(self.query), "it needs --examples")
        require(self.begin or "" not in self.prompt, "prompt", "''", "write some text, or add --begin to start a document")
        require("" not in self.choices, "choices", "''", "write some text in each")
        for name in ("prompt", "template", "query", "choices"):
            for text in (self.template,) if name == "template" else getattr(self, name):
                # A byte of the shell that is no UTF-8 arrives as a lone surrogate.
                require(not any("\ud800" <= letter <= "\udfff" for letter in text), name, ascii(text), "write it in UTF-8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """What an encoder reads: texts, or the lines of files."""

    text: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Texts, each in quotes."""
    files: tuple[str, ...] = ()
    """Files of texts (.txt), one a line, blank lines passed over; - is standard input."""
    truncate: bool = False
    """Cut the end off a text that is longer than the model's positions; else it is refused."""

    def __post_init__(self) -> None:
        require(
            bool(self.texts) != bool(self.files),
            "text",
            "and --files" if self.files else "is not given",
            "give either --text or --files",
        )
        for text in self.texts:
            require(bool(text.strip()), "text", repr(text), "write some text")
            # A byte of the shell that is no UTF-8 arrives as a lone surrogate.
            require(not any("\ud800" <= letter <= "\udfff" for letter in text), "text", ascii(text), "write it in UTF-8")

    @property
    def texts(self) -> tuple[str, ...]:
        """Those of all --text."""
        return tuple(text for several in self.text for text in several)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unlabelled:
    """Inputs to predict labels for: files of examples, or texts."""

    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts, each in quotes: of tagging sentences whose words stand between spaces, of span and choice questions."""
    files: tuple[str, ...] = ()
    """Files of examples, or their folders, in the formats of fine-tuning; labels in them are not read. A .txt holds a text a
    line."""
    line: Literal["auto", "text", "labelled"] = "auto"
    """What a line of a .txt is (classification): a text, or a label, a space and a text. auto: a text; lines that all begin with
    a label of the model are refused."""
    pair: str | None = None
    """Second text of a pair, for each of the texts (classification)."""
    context: str | None = None
    """What the questions are about (span, choice)."""
    options: tuple[str, ...] = ()
    """What is chosen from (choice)."""

    def __post_init__(self) -> None:
        given = "and --files" if self.files else "are not given"
        require(bool(self.texts) != bool(self.files), "texts", given, "give either texts or --files")
        for name in ("pair", "context", "options"):
            value = getattr(self, name)
            needed = bool(self.texts) or not value
            require(needed, name, " ".join(value or ()) if name == "options" else value, "it goes with texts; files have columns")
        for text in (*self.texts, *self.options, self.pair or "", self.context or ""):
            # A byte of the shell that is no UTF-8 arrives as a lone surrogate.
            require(not any("\ud800" <= letter <= "\udfff" for letter in text), "texts", ascii(text), "write them in UTF-8")
        require(all(text.strip() for text in self.texts), "texts", "''", "write some text in each")
