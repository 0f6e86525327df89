"""Groups of options that several objectives share: masking, denoising, text pairs, labels, checkpoint selection and others."""

import dataclasses
import math
from typing import Annotated, Literal

import tyro

from zoo.errors import require

ClassWeights = Literal["none", "balanced"]
Encoding = Literal["utf-8", "latin-1"]
Format = Literal["auto", "tsv", "csv", "jsonl", "json", "conll", "label_first", "squad", "race"]
Disturbance = Literal["spans", "iid", "drop", "bert", "mass", "deshuffle", "prefix", "lm"]
MEAN_SPAN = 1000
"""Largest mean number of tokens of a removed span."""
Factorization = Literal["permutation", "denoising"]
Turns = Literal["all", "last"]
NUM_SPECIAL_TOKENS = 3
"""Number of special tokens in a row of a permutation language model: two separators and the token of the row."""
BUILT_IN = "builtin"
"""Value of --chat.template for the template in `train.tokenizers.chat_template`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replacement:
    """Replacement of the tokens that a masked model predicts (Devlin et al. 2019, section 3.1)."""

    masked: float = 0.8
    """Fraction of the predicted tokens that are replaced by the mask token."""
    random: float = 0.1
    """Fraction of the predicted tokens that are replaced by a random token; the rest stay unchanged."""
    static: int = 0
    """Number of fixed masks per row, used in turn (BERT's dupe_factor); 0 = a new mask each time (Liu et al. 2019, 4.1)."""

    def __post_init__(self) -> None:
        for name in ("masked", "random"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"masking.{name}", value, "choose a share of 0 to 1")
        valid = self.masked + self.random <= 1 + 1e-9
        require(valid, "masking.random", self.random, f"with --masking.masked {self.masked} the sum is above 1; choose less")
        require(self.static >= 0, "masking.static", self.static, "choose 0 (dynamic) or a number of masks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masking(Replacement):
    """Choice of the tokens that a masked model predicts, and of their replacements (Devlin et al. 2019, section 3.1)."""

    rate: float = 0.15
    """Fraction of the tokens that are predicted."""
    most: int = 0
    """Largest number of predictions in a sequence; 0 = as many as --masking.rate gives."""
    whole_words: bool = False
    """Predict all tokens of a word together."""
    rare: float = 0.0
    """Preference for rare tokens: sampling weights are max(count, 1) ** -rare (DistilBERT: 0.7); 0 = none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.rate < 1, "masking.rate", self.rate, "choose a share between 0 and 1")
        require(self.most >= 0, "masking.most", self.most, "choose 0 (as many as the rate gives) or more")
        require(0 <= self.rare <= 10, "masking.rare", self.rare, "choose 0 (all tokens alike) to 10")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceMask:
    """Attention to the source of a decoder without an encoder."""

    causal: bool = False
    """Mask the source causally, as in a language model, instead of bidirectionally; only for a decoder without an encoder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising(SourceMask):
    """Corruption of a text into a source for the encoder and a target for the decoder (Raffel et al. 2020, 3.2 and 3.3)."""

    kind: Disturbance = "spans"
    """spans: the source has a sentinel for each removed span, the target is the spans.
    iid: as spans, for single tokens; neighbours share a sentinel.
    drop: the source lacks some tokens, without a sentinel in their place, and the target is those tokens.
    bert: the source has sentinels and random tokens for some tokens, the target is the text.
    mass: as bert, without random tokens.
    deshuffle: the source is the tokens in random order, the target is the text.
    prefix: the source is the beginning of the text, the target is the rest.
    lm: the target is the text; only for a decoder without an encoder."""
    density: float = 0.15
    """Fraction of the tokens that are removed or replaced (spans, iid, drop, bert, mass)."""
    mean_span: float = 3.0
    """Average number of tokens in a span (spans)."""

    def __post_init__(self) -> None:
        require(0 < self.density <= 0.9, "denoising.density", self.density, "choose a share above 0 and up to 0.9")
        require(1 <= self.mean_span <= MEAN_SPAN, "denoising.mean_span", self.mean_span, f"choose 1 to {MEAN_SPAN:,} tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Permutation:
    """Choice of the targets of a permutation language model, and of their order (Yang et al. 2019, sections 2.2 to 2.5)."""

    kind: Factorization = "permutation"
    """permutation: each target is predicted from the tokens before it in a random order.
    denoising: all targets are predicted from the rest of the row, and are replaced as --masking.masked and --masking.random say
    (BERT's objective on the same rows; the paper's Table 6)."""
    predictions: int = 0
    """Exact number of targets in a row; 0 = a sixth of its tokens."""
    spans: bool = True
    """Predict spans that begin at the beginning of a word; otherwise single tokens anywhere."""
    longest: int = 5
    """Number of tokens in the longest span."""
    context: float = 6.0
    """Context tokens around a span per token of the span (the authors' `mask_alpha` / `mask_beta`)."""
    window: int = 0
    """Number of tokens in a window within which the order is random (the authors' `perm_size`); the windows follow in order.
    It must divide both parts of a row, the reused part and the rest; 0 = each part is one window."""
    bidirectional: bool = False
    """Read half of the rows from right to left (the authors' `bi_data`)."""
    ordered: bool = False
    """Train a model without a memory on its rows in the order of the text, which a model with a memory always uses.
    Otherwise they are shuffled, and a comparison of the two models also compares the two orders."""

    def __post_init__(self) -> None:
        require(self.predictions >= 0, "permutation.predictions", self.predictions, "choose 0 (a sixth of a row) or more")
        require(1 <= self.longest <= 1000, "permutation.longest", self.longest, "choose 1 to 1,000 tokens")
        require(0 <= self.context <= 1000, "permutation.context", self.context, "choose 0 to 1,000 tokens")
        require(self.window >= 0, "permutation.window", self.window, "choose 0 (each part is one window) or a number of tokens")

    def num_targets(self, length: int, reuse: int) -> tuple[int, int]:
        """Return the number of targets in the reused part of a row of `length` tokens, and in the rest."""
        total = self.predictions or max(1, length // 6)
        rest = total * (length - reuse) // length
        return total - rest, rest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """Parallel files for text to text: line n of a target belongs to line n of its source. They may be .gz, .xz or .bz2.

    For pairs in the columns of a table, use --data.paths, and --labelled.text and --labelled.label for the columns.
    """

    source: tuple[str, ...] = ()
    """Files of source texts."""
    target: tuple[str, ...] = ()
    """Files of target texts, one for each --pairs.source."""
    valid_source: tuple[str, ...] = ()
    """Files of held-out source texts; none = the end of all pairs is held out."""
    valid_target: tuple[str, ...] = ()
    """Files of held-out target texts, one for each --pairs.valid-source."""
    prefix: str = ""
    """Text put before every source, with a space between, to name the task: "translate English to German:"."""

    def __post_init__(self) -> None:
        for source, target in (("source", "target"), ("valid_source", "valid_target")):
            sources, targets = getattr(self, source), getattr(self, target)
            missing = target if sources else source
            fix = f"a pair has two sides; name the files of the other one with --pairs.{missing.replace('_', '-')}"
            require(bool(sources) == bool(targets), f"pairs.{source if sources else target}", " ".join(sources or targets), fix)
            count = f"{len(targets)} file{'s' * (len(targets) > 1)} for the {len(sources)} of --pairs.{source.replace('_', '-')}"
            fix = f"{count}; name one for each, in the same order"
            require(len(sources) == len(targets), f"pairs.{target}", " ".join(targets), fix)
        needed = bool(self.source) or not self.valid_source
        require(needed, "pairs.valid_source", " ".join(self.valid_source), "it needs --pairs.source; give both options")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardLoss:
    """Loss of a reward model (Ouyang et al. 2022, equation 1)."""

    centering: float = 0.01
    """Weight of the squared sum of the scores of both completions, which keeps their mean near 0 (Eisenstein et al. 2023,
    equation 2); 0 = none."""

    def __post_init__(self) -> None:
        valid = 0 <= self.centering < math.inf
        require(valid, "preference.centering", self.centering, "choose 0 (none) or a weight")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleFileOptions:
    """Reading of files of labelled examples or of pairs, and their conversion to rows."""

    encoding: Encoding = "utf-8"
    """Character encoding of text files."""
    format: Format = "auto"
    """Format of every file. auto: from its name. tsv, csv: a table. jsonl: one object per line. json: one array of objects.
    label_first: one label, a space and the text per line.
    conll: one word, a tab and its tag per line, and an empty line after a sentence. squad, race: JSON."""
    truncate: bool = False
    """Truncate texts that do not fit into a row: the longer text of a pair first, and the beginning of the prompt in preferences
    and prompts. Otherwise a text that does not fit is an error."""

    def __post_init__(self) -> None:
        """Check the values; subclasses extend this."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatRendering:
    """Rendering of conversations."""

    template: str = ""
    """Chat template: a file (chat_template.jinja), or builtin for "User: ...", "Assistant: ..."; it is stored with the tokenizer.
    Empty = the tokenizer's own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat(ChatRendering):
    """Rendering of conversations, and the turns that count."""

    turns: Turns = "all"
    """Turns of the assistant that count in the loss: all of them, or the last one of each conversation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns(ExampleFileOptions):
    """Reading of the columns of tables."""

    text: str = ""
    """Column of the text; empty = "text" (tagging: "tokens", pairs: "source"), or the first column if columns are numbered."""
    label: str = ""
    """Column of the label; empty = "label" (--labelled.multi-label: "labels", tagging: "tags", pairs: "target"), or the last
    column if columns are numbered."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tables(ExampleFileOptions):
    """Reading of tables of texts."""

    header: bool = True
    """Take column names from the first line of a .tsv or .csv; otherwise columns are numbered 1, 2, ..., as in .conll."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairTables(Columns, Tables):
    """Reading of tables of texts (classification, text to text)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices(ExampleFileOptions):
    """Reading of files of multiple-choice questions."""

    skip_bad: bool = False
    """Skip examples that are empty, malformed or longer than a row, and report how many; otherwise the first one is an error."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions(Choices):
    """Reading of files of questions about texts."""

    stride: int = 128
    """Number of tokens between the beginnings of consecutive windows of a context (span); a window must have at least as many."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.stride >= 1, "labelled.stride", self.stride, "choose 1 or more tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preferences(Choices):
    """Reading of files of preferences, and their conversion to rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts(Choices):
    """Reading of files of prompts, and their conversion to rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaggedWords(Choices, Columns):
    """Reading of files of sentences with a tag for each word."""

    class_weights: ClassWeights = "none"
    """balanced: weight an example by n / (classes * n of its class) in the training loss, so that all classes count equally."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledTexts(TaggedWords, PairTables):
    """Reading of files of labelled texts or pairs of texts."""

    pair: str = ""
    """Column of the second text of a pair; empty = no second text."""
    coarse: bool = False
    """Keep only the part of a label before the colon, as LOC of LOC:city."""
    regression: bool = False
    """Treat labels as numbers, which the model learns to predict."""
    multi_label: bool = False
    """Read a list of any number of names (column "labels") for each text; the model learns to predict each label separately."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unlabelled = not self.pair or self.pair not in (self.text, self.label)
        fix = "it is also the column of --labelled.text or --labelled.label; name another"
        require(unlabelled, "labelled.pair", self.pair, fix)
        one_class = self.class_weights == "none" and not self.coarse
        fix = "numbers have no classes and no coarse part; leave out --labelled.class-weights and --labelled.coarse"
        require(not self.regression or one_class, "labelled.regression", self.regression, fix)
        valid = not self.multi_label or (one_class and not self.regression)
        fix = "leave out --labelled.regression, --labelled.class-weights and --labelled.coarse, which are for one label per text"
        require(valid, "labelled.multi_label", self.multi_label, fix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled(LabelledTexts, Questions):
    """Reading of labelled files when the model's objective is not known yet."""

    named: Annotated[tuple[str, ...], tyro.conf.Suppress] = dataclasses.field(default=(), compare=False)
    """Options that the command line names, also those with the default value: they replace a run's own ones, others do not."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spikes:
    """Skipping of steps whose loss is far above those before it. --max-skipped of them in a row end the run."""

    sigmas: float = 0.0
    """Skip a step whose loss is more than this many standard deviations above the mean of the last --spikes.window steps that
    were not skipped; 0 = never."""
    window: int = 128
    """Number of steps whose losses are compared; none is skipped before as many were taken."""

    def __post_init__(self) -> None:
        require(0 <= self.sigmas <= 1e6, "spikes.sigmas", self.sigmas, "choose 0 (never) or a number of standard deviations")
        require(2 <= self.window <= 1 << 20, "spikes.window", self.window, "choose 2 to 1,048,576 steps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Selection of the run's final checkpoint by validation."""

    best: bool = False
    """Keep the checkpoint with the best validation and score the run with it; otherwise use the last checkpoint."""
    metric: str = ""
    """Validation metric that decides: loss, accuracy, f1, f1_micro, f1_macro, matthews, pearson, spearman, entity_f1, ...
    Lower or higher is better, depending on the metric. Empty = the first metric that the console shows."""
    patience: int = 0
    """Stop after this many consecutive validations without an improvement; 0 = run to the last step."""

    def __post_init__(self) -> None:
        require(self.patience >= 0, "selection.patience", self.patience, "choose 0 (never) or a number of validations")
        needed = self.best or (self.patience == 0 and not self.metric)
        require(needed, "selection.best", self.best, "--selection.metric and --selection.patience need it; add --selection.best")
