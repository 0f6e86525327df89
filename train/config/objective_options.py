"""What a run predicts, in numbers: masking, denoising, permutations, pairs of texts, distillation, labels; and what is kept."""

import dataclasses
import math
from typing import Literal

from zoo.errors import require

ClassWeights = Literal["none", "balanced"]
Encoding = Literal["utf-8", "latin-1"]
Format = Literal["auto", "tsv", "csv", "jsonl", "conll", "label_first", "squad", "race"]
Disturbance = Literal["spans", "iid", "bert", "deshuffle", "prefix", "lm"]
Factorization = Literal["permutation", "denoising"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masking:
    """Which tokens a masked model predicts and what it sees in their place (Devlin et al. 2019, section 3.1)."""

    rate: float = 0.15
    """Share of the tokens that are predicted."""
    masked: float = 0.8
    """Share of them that the model sees as the mask."""
    random: float = 0.1
    """Share of them that it sees as some other token; the rest it sees as they are."""
    most: int = 0
    """Most predictions of a sequence; 0 = as many as `rate` asks for."""
    whole_words: bool = False
    """Whether the pieces of a word are predicted together."""
    static: int = 0
    """Masks of each row, used in turn (BERT's dupe_factor); 0 = dynamic, a mask drawn anew each time (Liu et al. 2019, 4.1)."""
    rare: float = 0.0
    """How much rarer tokens are preferred: drawn with weights max(count, 1) to the power of minus this (DistilBERT: 0.7)."""

    def __post_init__(self) -> None:
        require(0 < self.rate < 1, "masking.rate", self.rate, "choose a share between 0 and 1")
        for name in ("masked", "random"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"masking.{name}", value, "choose a share of 0 to 1")
        whole = self.masked + self.random <= 1 + 1e-9
        require(whole, "masking.random", self.random, f"with --masking.masked {self.masked} it makes more than 1; choose less")
        require(self.most >= 0, "masking.most", self.most, "choose 0 (as many as the rate asks for) or more")
        require(self.static >= 0, "masking.static", self.static, "choose 0 (dynamic) or a number of masks")
        require(0 <= self.rare <= 10, "masking.rare", self.rare, "choose 0 (all tokens alike) to 10")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising:
    """What an encoder reads of a text and what a decoder writes of it (Raffel et al. 2020, sections 3.2 and 3.3)."""

    kind: Disturbance = "spans"
    """spans: read the text with a sentinel for each span that is left out, write the spans. iid: the same of single tokens, those
    that are neighbours as one. bert: read sentinels and random tokens for some, write the whole text. deshuffle: read the tokens
    in random order, write the text. prefix: read its beginning, write the rest. lm: write it; for a decoder alone."""
    density: float = 0.15
    """Share of the tokens that are left out or replaced (spans, iid, bert)."""
    mean_span: float = 3.0
    """Tokens of a span on average (spans)."""
    causal: bool = False
    """Of a decoder alone: whether what it reads sees only what is before it, as a language model's, rather than all of it."""

    def __post_init__(self) -> None:
        require(0 < self.density <= 0.9, "denoising.density", self.density, "choose a share above 0 and up to 0.9")
        require(1 <= self.mean_span <= 1000, "denoising.mean_span", self.mean_span, "choose 1 to 1,000 tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Permutation:
    """What a permutation language model predicts, and in which order (Yang et al. 2019, sections 2.2 to 2.5)."""

    kind: Factorization = "permutation"
    """permutation: each target from what comes before it in a random order. denoising: all at once from the rest of the row, with
    marks in their place as --masking.masked and --masking.random say (BERT's objective on the same rows; the paper's Table 6)."""
    predictions: int = 0
    """Targets of a row, exactly; 0 = a sixth of its tokens."""
    spans: bool = True
    """Whether targets are spans of whole words' beginnings, or single tokens anywhere."""
    longest: int = 5
    """Tokens of the longest span."""
    context: float = 6.0
    """Tokens of context around a span for each token of its own (the authors' `mask_alpha` / `mask_beta`)."""
    window: int = 0
    """Tokens within which the order is random (the authors' `perm_size`); windows come one after the other. It divides both parts
    of a row, the reused one and the rest; 0 = each part is one window."""
    bidirectional: bool = False
    """Whether half of the rows are read from right to left (the authors' `bi_data`)."""

    def __post_init__(self) -> None:
        require(self.predictions >= 0, "permutation.predictions", self.predictions, "choose 0 (a sixth of a row) or more")
        require(1 <= self.longest <= 1000, "permutation.longest", self.longest, "choose 1 to 1,000 tokens")
        require(0 <= self.context <= 1000, "permutation.context", self.context, "choose 0 to 1,000 tokens")
        require(self.window >= 0, "permutation.window", self.window, "choose 0 (each part is one window) or a number of tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """Parallel files for text to text: line n of a target is written for line n of its source. They may be .gz, .xz or .bz2.

    Pairs in the columns of a table are given as --data.paths, with --labelled.text and --labelled.label for the columns."""

    source: tuple[str, ...] = ()
    """Files of what is read."""
    target: tuple[str, ...] = ()
    """Files of what is written, one for each of `source`."""
    valid_source: tuple[str, ...] = ()
    """What is held out, as `source`. None: the end of all pairs is."""
    valid_target: tuple[str, ...] = ()
    prefix: str = ""
    """Stands before every source with a space between, to say what is asked: "translate English to German:"."""

    def __post_init__(self) -> None:
        for source, target in (("source", "target"), ("valid_source", "valid_target")):
            one, other = getattr(self, source), getattr(self, target)
            option = f"--pairs.{source.replace('_', '-')}"
            fix = f"there are {len(one)} files of {option}; give one for each"
            require(len(one) == len(other), f"pairs.{target}", " ".join(other), fix)
        needed = bool(self.source) or not self.valid_source
        require(needed, "pairs.valid_source", " ".join(self.valid_source), "it goes with --pairs.source; give both")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """What a student learns from its teacher (Sanh et al. 2019, section 2; weights of the released models)."""

    teacher: str = ""
    """Run, folder of published weights or hub id of the teacher."""
    temperature: float = 2.0
    """Of both softmaxes in the soft loss, which is scaled by its square."""
    soft: float = 5.0
    """Weight of the teacher's probabilities."""
    masked: float = 2.0
    """Weight of the masked tokens themselves."""
    cosine: float = 1.0
    """Weight of the angle between both models' last hidden states."""
    masked_only: bool = False
    """Whether soft and cosine losses are taken at masked tokens only, rather than at all."""

    def __post_init__(self) -> None:
        finite = 0 < self.temperature < math.inf
        require(finite, "distillation.temperature", self.temperature, "choose a temperature above 0")
        for name in ("soft", "masked", "cosine"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"distillation.{name}", value, "choose 0 (off) or a weight")
        require(self.soft + self.masked + self.cosine > 0, "distillation.soft", self.soft, "one of the weights must be above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
    """How labelled files are read and become rows (classification, tagging, span, choice)."""

    text: str = ""
    """Column of the text. None: text (tagging: tokens), or the first one of a file whose columns are numbered."""
    pair: str = ""
    """Column of a second text, for pairs. None: there is none."""
    label: str = ""
    """Column of the label. None: label (tagging: tags), or the last one of a file whose columns are numbered."""
    header: bool = True
    """Whether the first line of a .tsv or .csv names its columns. Otherwise they are numbered: 1, 2, ..., as those of .conll."""
    encoding: Encoding = "utf-8"
    """Of the files of text."""
    format: Format = "auto"
    """How every file is written. auto: as its name says. tsv, csv: a table; jsonl: an object a line; label_first: a label, a
    space and the text a line; conll: a word, a tab and its tag a line, an empty line after a sentence; squad, race: JSON."""
    skip_bad: bool = False
    """Leave out examples that are empty, malformed or longer than a row, and state how many. Otherwise the first is refused."""
    coarse: bool = False
    """Of a label like LOC:city keep what is before the colon."""
    regression: bool = False
    """Labels are numbers, and the model learns to give them."""
    class_weights: ClassWeights = "none"
    """balanced: an example counts n / (classes * n of its class) in the training loss, so that every class counts alike."""
    truncate: bool = False
    """Cut what does not fit into a row, the longer text of a pair first. Otherwise it is refused."""
    stride: int = 128
    """Tokens of a context by which each of its windows begins after the one before (span); it must have room for as many."""

    def __post_init__(self) -> None:
        require(self.stride >= 1, "labelled.stride", self.stride, "choose 1 or more tokens")
        require(
            not self.pair or self.pair not in (self.text, self.label),
            "labelled.pair",
            self.pair,
            "it is the column of --labelled.text or --labelled.label; name another",
        )
        require(
            not self.regression or (self.class_weights == "none" and not self.coarse),
            "labelled.regression",
            self.regression,
            "numbers have neither classes to weigh nor a coarse part; leave out --labelled.class-weights and --labelled.coarse",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Which checkpoint a run ends with, by validation."""

    best: bool = False
    """Keep the checkpoint with the best validation; the run is scored with it. None: the last one is the run's."""
    metric: str = ""
    """Which number of a validation decides: loss, accuracy, f1, f1_macro, matthews, pearson, spearman, entity_f1, exact, ...; the
    lower or the higher is better, as it is for that number. None: the first that the console shows."""
    patience: int = 0
    """Validations without a better one that end the run; 0 = it goes on to its last step."""

    def __post_init__(self) -> None:
        require(self.patience >= 0, "selection.patience", self.patience, "choose 0 (never) or a number of validations")
        needed = self.best or (self.patience == 0 and not self.metric)
        require(needed, "selection.best", self.best, "--selection.metric and --selection.patience go with --selection.best")
