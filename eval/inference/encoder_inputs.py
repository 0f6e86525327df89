"""Inputs of encoders on the command line: texts, or examples without labels. Frozen dataclasses, validated, without jax."""

import dataclasses
import math
from typing import Literal

import tyro

from zoo.configs._pooling import Pool
from zoo.errors import BadInput, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts for an encoder, or files with one text per line."""

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
        """Texts of all --text options."""
        return tuple(text for several in self.text for text in several)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vectors:
    """Options of the vectors of texts."""

    pool: Literal["auto", Pool] = "auto"
    """auto: as the folder of the model says (1_Pooling), mean for a plain encoder.
    mean: over all tokens, special tokens included, as in sentence-transformers; cls: the vector of the [CLS] token; last: that of
    the last token; max: the largest value of each dimension; weighted_mean: a mean with the weights 1, 2, ... in order;
    mean_sqrt: the sum divided by the square root of the number of tokens."""
    normalize: bool | None = None
    """Divide each vector by its length. None: if the folder of the model has a module for it."""
    prompt: str = ""
    """Name of the model's prompt that is put before each text, such as query; empty = its default prompt, if it has one."""
    prompt_text: str | None = None
    """Text that is put before each text, in place of a prompt of the model; "" = none."""
    dimensions: int = 0
    """Number of first dimensions to keep, before normalization; 0 = all."""

    def __post_init__(self) -> None:
        require(self.dimensions >= 0, "dimensions", self.dimensions, "choose 0 (all), or the number of first dimensions")
        both = bool(self.prompt) and self.prompt_text is not None
        require(not both, "prompt", self.prompt, "there is --prompt-text too; give only one of the two")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskVectors:
    """Options of the vectors that a task compares."""

    pool: Literal["auto", Pool] = "auto"
    """Pooling of a text, one of those of `zoo embed`. auto: as the folder of the model says, mean for a plain encoder."""
    dimensions: int = 0
    """Number of first dimensions to compare; 0 = all."""
    query_prompt: str | None = None
    """Text put before each query (retrieval, rerank). None: the model's prompt `query`, else its default prompt."""
    document_prompt: str | None = None
    """Text put before each document (retrieval, rerank). None: the model's prompt `document`, `passage` or `corpus`,
    else its default prompt."""

    def __post_init__(self) -> None:
        fix = "choose 0 (all), or the number of first dimensions"
        require(self.dimensions >= 0, "vectors.dimensions", self.dimensions, fix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mining:
    """Choice of the negatives of a query among the texts that are most similar to it."""

    negatives: int = 1
    """Number of negatives for each query. Queries with fewer are left out, and counted."""
    depth: int = 100
    """Number of most similar texts that are examined for each query, without its positives."""
    skip: int = 0
    """Number of most similar texts that are not used, of those that all thresholds admit: they may belong to the query."""
    margin: float | None = None
    """Admit texts whose similarity is below that of the positive minus this number. None: no such threshold."""
    relative_margin: float | None = None
    """Admit texts whose similarity is below that of the positive by more than this share of its absolute value, such as 0.05
    (Moreira et al. 2024, "TopK-PercPos"). None: no such threshold."""
    max_similarity: float | None = None
    """Admit texts whose similarity is at most this number (Moreira et al. 2024, "TopK-Abs"). None: no such threshold."""
    sample: bool = False
    """Sample the negatives uniformly from the texts that are admitted and not skipped; otherwise the most similar are taken."""
    seed: int = 0
    """Seed of --sample."""

    def __post_init__(self) -> None:
        require(self.negatives >= 1, "negatives", self.negatives, "choose 1 or more")
        require(self.skip >= 0, "skip", self.skip, "choose 0 (none) or more")
        fewest = self.skip + self.negatives
        require(self.depth >= fewest, "depth", self.depth, f"choose {fewest} (--skip and --negatives together) or more")
        for name in ("margin", "relative_margin"):
            value = getattr(self, name)
            require(value is None or 0 <= value < math.inf, name, value, "choose 0 or a number above, such as 0.05")
        valid = self.max_similarity is None or math.isfinite(self.max_similarity)
        require(valid, "max_similarity", self.max_similarity, "choose a number, such as 0.8")
        require(0 <= self.seed < 1 << 32, "seed", self.seed, "choose 0 to 4294967295")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unlabelled:
    """Inputs to predict labels for: files of examples, or texts."""

    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts, each in quotes: of tagging sentences whose words stand between spaces, of span and choice questions."""
    files: tuple[str, ...] = ()
    """Files of examples, or their folders, in the formats of fine-tuning; labels in them are not read. A .txt holds a text a
    line; blank lines are passed over. - is standard input, lines as in a .txt (span and choice: as in a .jsonl) unless
    --labelled.format names another format; a pipe is read as its name ends, or as -."""
    line: Literal["auto", "text", "labelled"] = "auto"
    """A line of a .txt (classification): a text, or a label, a space and a text. auto: a text; lines that all begin with
    a label of the model are refused."""
    pair: str | None = None
    """Second text of a pair, for each of the texts (classification)."""
    context: str | None = None
    """Text that the questions are about (span, choice)."""
    options: tuple[str, ...] = ()
    """Options to choose from (choice)."""

    def __post_init__(self) -> None:
        if not self.texts and not self.files:
            raise BadInput("no input: write texts in quotes after the model, or --files FILE; --files - is standard input")
        both = bool(self.texts and self.files)
        require(not both, "files", " ".join(self.files), "there are texts too; give either texts or --files")
        if "-" in self.texts:
            raise BadInput("the text -: write --files - to read standard input")
        for name in ("pair", "context", "options"):
            value = getattr(self, name)
            needed = bool(self.texts) or not value
            require(needed, name, " ".join(value or ()) if name == "options" else value, "it goes with texts; files have columns")
        for text in (*self.texts, *self.options, self.pair or "", self.context or ""):
            # A byte of the shell that is no UTF-8 arrives as a lone surrogate.
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise BadInput(f"the text {text!a}: write it in UTF-8")
        if not all(text.strip() for text in self.texts):
            raise BadInput("the text '': write some text in each")
