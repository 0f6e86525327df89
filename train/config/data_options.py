"""Data options of a run: a dataclass for each kind of data, with only the options that apply to it."""

import dataclasses
import math
import re
from typing import ClassVar, Literal

from train.config.batch_sizes import BatchSizes, batch_sizes
from zoo.errors import require

Kind = Literal["text", "labelled", "pairs", "dialogue", "preference", "unpaired", "prompts"]
RowPlan = Literal["windows", "packed", "full_sentences", "doc_sentences", "segment_pairs", "sentence_pairs"]
PAIRED = ("segment_pairs", "sentence_pairs")
"""Values of --data.rows whose rows are pairs of texts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Files with the data of a run, and their division into rows."""

    kind: ClassVar[Kind]
    """Kind of the data, by which `train.inputs.run_inputs` reads it."""
    paths: tuple[str, ...] = ()
    """Training files, folders of them, folders of Hugging Face `datasets`, and hub:ORGANISATION/NAME; the objective determines
    the formats."""
    valid_paths: tuple[str, ...] = ()
    """Held-out files, in the same forms as --data.paths. No files = the end of --data.paths is held out."""
    valid_fraction: float = 0.1
    """Fraction of the data that is held out, from its end; only used without --data.valid-paths."""
    split: str = ""
    """Split to read of a folder of `datasets` or of a hub data set; empty = train."""
    subset: str = ""
    """Subset (configuration) to read of a hub data set; empty = the only one or the default."""
    length: int = 256
    """Number of tokens in a row, T (encoder-decoders: in its source)."""
    batch: int = 16
    """Number of rows in a global batch, B, over all devices and micro-batches."""
    ramp: tuple[str, ...] = ()
    """Smaller batches at the beginning: ROWS@TOKENS, rows of a step until that many tokens were seen, as in 1024@252e6; then
    --data.batch. No items = none. Each size is a program of its own, compiled when it comes."""

    def __post_init__(self) -> None:
        for key, name in (("split", self.split), ("subset", self.subset)):
            valid = re.fullmatch(r"[\w.+-]*", name) is not None
            require(valid, f"data.{key}", name, "give its name only: letters, digits and _ . + -")
        require(0 < self.valid_fraction < 0.9, "data.valid_fraction", self.valid_fraction, "choose a share between 0 and 0.9")
        require(1 <= self.length <= 1 << 20, "data.length", self.length, "choose 1 to 1,048,576 tokens")
        require(1 <= self.batch <= 1 << 24, "data.batch", self.batch, "choose 1 to 16,777,216 rows")
        batch_sizes(self.batch, self.ramp, self.length)

    @property
    def sizes(self) -> BatchSizes:
        """The number of rows of each step."""
        return batch_sizes(self.batch, self.ramp, self.length)

    def steps_of(self, tokens: float) -> int:
        """Return the number of steps after which `tokens` tokens were seen, padding included, or up to a batch more."""
        examples = math.ceil(tokens / self.length)
        return self.sizes.place_of(examples - 1)[0] + 1 if examples else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextData(Data):
    """Training text and its division into rows."""

    kind = "text"
    paths: tuple[str, ...] = ()
    """Training files: .txt (one document per file), .jsonl (one per line), both also as .gz, .xz or .bz2, .parquet (one per row).
    Also folders of these, folders of Hugging Face `datasets`, and hub:ORGANISATION/NAME.
    No paths = the embedded corpus, Moby-Dick."""
    weights: tuple[float, ...] = ()
    """Weight of each of --data.paths. Each path is then a separate source, split and shuffled separately.
    Its weight is its relative share of the training rows. No weights = all paths are one source."""
    field: str = "text"
    """Field of a .jsonl line, or column, that holds the text."""
    take: float = 1.0
    """Share of the training text to train on, in pieces of 4 KiB at random places, which --seed chooses; 1 = all of it.
    The held-out text and a trained tokenizer are those of the complete text, so that runs on several shares are comparable."""

    def __post_init__(self) -> None:
        super().__post_init__()
        weights, paths = " ".join(f"{weight:g}" for weight in self.weights), len(self.paths)
        require(all(0 < weight < math.inf for weight in self.weights), "data.weights", weights, "choose finite weights above 0")
        require(len(self.weights) in (0, paths), "data.weights", weights, f"give one weight for each of the {paths} --data.paths")
        require(0 < self.take <= 1, "data.take", self.take, "choose a share above 0 and up to 1 (all of the training text)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalData(TextData):
    """Training text of a causal language model and its division into rows."""

    rows: Literal["windows", "packed"] = "windows"
    """windows: consecutive windows of one long stream. packed: whole documents, first-fit, which do not attend to each other."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderData(TextData):
    """Training text of an encoder and its division into rows."""

    rows: RowPlan = "windows"
    """windows: consecutive windows of one long stream. packed: whole documents, first-fit, which do not attend to each other.
    full_sentences may cross the ends of documents, doc_sentences may not (Liu et al. 2019, section 4.2).
    segment_pairs: BERT's pairs of several sentences, with next-sentence labels. sentence_pairs: pairs of single sentences."""
    pack: bool = False
    """Pack several sequences into a row, first-fit; they do not attend to each other."""
    short: float = 0.1
    """Fraction of the documents whose segment pairs get a shorter length, chosen at random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.short <= 1, "data.short", self.short, "choose a share of 0 to 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledData(Data):
    """Labelled examples and their division into rows."""

    kind = "labelled"
    validation_share: float = 0.0
    """Share of the training examples that is used for validations instead of training. The held-out examples are then scored only
    once, at the end, with a checkpoint that was not selected on them. 0 = validate on the held-out examples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        valid = 0 <= self.validation_share < 0.9
        require(valid, "data.validation_share", self.validation_share, "choose 0 (none) or a share below 0.9")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DialogueData(Data):
    """Instructions with responses and their division into rows."""

    kind = "dialogue"
    pack: bool = False
    """Pack several examples into a row, first-fit; they do not attend to each other."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairData(Data):
    """Pairs of texts and their division into rows."""

    kind = "pairs"
    pack: bool = False
    """Pack several pairs into a row of an encoder-decoder, first-fit; they do not attend to each other."""
    target_length: int = 0
    """Number of tokens in the target of a row; 0 = as --data.length."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_target_length(self.target_length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceData(Data):
    """Preferences between two completions and their division into rows."""

    kind = "preference"
    target_length: int = 0
    """Number of tokens in the target of a row of an encoder-decoder, the completion; 0 = as --data.length."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_target_length(self.target_length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnpairedData(PreferenceData):
    """Labelled completions and their division into rows."""

    kind = "unpaired"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptData(Data):
    """Prompts, to which the model in training responds, and their division into rows.

    The length of a row has to hold a prompt and a response (encoder-decoders: a prompt).
    """

    kind = "prompts"


def _check_target_length(length: int) -> None:
    require(0 <= length <= 1 << 20, "data.target_length", length, "choose 0 (as --data.length) to 1,048,576")
