"""Options of the objectives that train embedding models: `contrastive` and `similarity`, and of the files that they read."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

from train.config.data_options import LabelledData
from train.config.declaration import ObjectiveOptions, TokenOptions
from train.config.option_groups import Choices, Tables
from zoo.configs._pooling import Pool
from zoo.errors import require

PairLoss = Literal["cosent", "angle", "cosine"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankedTexts(Choices, Tables):
    """Reading of files of queries with their positives and negatives."""

    query: str = ""
    """Column of the query; empty = "query", or the first column if columns are numbered."""
    positive: str = ""
    """Column of the text that belongs to the query; empty = "positive", or the second column. No
    such column is needed with --contrastive.unsupervised."""
    negatives: str = ""
    """Column of the texts that do not belong to the query, a list or one text; empty = "negatives", or the third column.
    The option `negatives` of the objective, such as --contrastive.negatives, says how many are used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredPairs(Choices, Tables):
    """Reading of files of pairs of texts with a score."""

    sentence1: str = ""
    """Column of the first text; empty = "sentence1", or the first column if columns are numbered."""
    sentence2: str = ""
    """Column of the second text; empty = "sentence2", or the second column."""
    score: str = ""
    """Column of the score, a number; empty = "score", or the third column."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedding:
    """The vectors of texts and their comparison."""

    GROUP: ClassVar[str]
    """Name of the group on the command line."""

    pool: Pool = "mean"
    """The vector of a text: the mean of all tokens, special tokens included; cls: the hidden state of that token; last: of the
    last token; max: the largest value of each dimension; weighted_mean: the mean with weights 1, 2, ...; mean_sqrt: the sum
    divided by the square root of the number of tokens."""
    dimensions: tuple[int, ...] = ()
    """Sizes to which the vectors are cut at their end; the loss is the mean over them (Kusupati et al. 2022, "Matryoshka").
    Include the width of the model to train it too. No sizes = the full width only."""
    temperature: float = 0.05
    """Divisor of the similarities in the loss."""

    @property
    def compares_rows(self) -> bool:
        """True if the loss of a row depends on the other rows of the batch."""
        return True

    def __post_init__(self) -> None:
        valid = 0 < self.temperature < math.inf
        require(valid, f"{self.GROUP}.temperature", self.temperature, "choose a number above 0, such as 0.05")

    def check_model(self, model: Any) -> None:
        """Refuse sizes that vectors of the model do not have.

        Raises:
            BadInput: a size that is not 1 to the width, or is named twice.
        """
        written, fix = " ".join(map(str, self.dimensions)), f"vectors have {model.width} dimensions; choose 1 to {model.width}"
        require(all(1 <= size <= model.width for size in self.dimensions), f"{self.GROUP}.dimensions", written, fix)
        unique = len(set(self.dimensions)) == len(self.dimensions)
        require(unique, f"{self.GROUP}.dimensions", written, "choose each size once")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive(Embedding):
    """Loss of queries whose text is to be found among those of the batch (van den Oord et al. 2018, equation 4)."""

    GROUP = "contrastive"

    normalize: bool = True
    """Compare by the cosine; otherwise by the dot product, for which --contrastive.temperature 1 is usual."""
    learned_temperature: bool = False
    """Train the temperature, from --contrastive.temperature on and at least 0.01 (Radford et al. 2021, section 2.5). Held-out
    losses have --contrastive.temperature."""
    symmetric: bool = False
    """Also find the query of each positive among the queries of the batch; the loss is the mean of both directions."""
    negatives: int = 0
    """Number of negatives that each query brings along, the first ones of its row. Positives and negatives of all rows of the
    batch are candidates of each query."""
    mask_duplicates: bool = True
    """Leave out candidates that are the same text as the positive, which are no negatives."""
    query_prompt: str = ""
    """Text put before each query, as it is: "query: "."""
    document_prompt: str = ""
    """Text put before each positive and negative: "passage: "."""
    one_source: bool = False
    """Take all rows of a batch from one of --data.paths, so that the negatives of a query are of its own source. Each path has as
    many batches as its rows are worth."""
    unsupervised: bool = False
    """Take the query itself as its positive, with other dropout (Gao et al. 2021, "SimCSE", section 3)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fix = "choose 0 (only those of other rows) to 64"
        require(0 <= self.negatives <= 64, "contrastive.negatives", self.negatives, fix)
        fix = "the scale of a learned temperature is at most 100; choose 0.01 or more"
        learnable = not self.learned_temperature or self.temperature >= 0.01
        require(learnable, "contrastive.temperature", self.temperature, fix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Similarity(Embedding):
    """Loss of pairs of texts, whose similarity is to follow a score."""

    GROUP = "similarity"

    loss: PairLoss = "cosent"
    """cosent: of any two pairs of the batch, that with the greater score is to have the greater cosine (Su 2022). angle: the same
    of the angle of the vectors as complex numbers (Li and Li 2023, "AnglE"). cosine: the squared difference of cosine
    and score (Reimers and Gurevych 2019, section 3), which does not use --similarity.temperature."""

    def check_model(self, model: Any) -> None:
        """Refuse sizes that vectors of the model do not have, and for `angle` odd ones, which have no complex form."""
        super().check_model(model)
        odd = [size for size in self.dimensions or (model.width,) if size % 2]
        fix = "its complex numbers take two dimensions each, and a vector has an odd number; choose another loss or even sizes"
        require(self.loss != "angle" or not odd, "similarity.loss", self.loss, fix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingOptions(ObjectiveOptions):
    """Options of an objective that trains the vectors of texts; the field of the objective's name says how."""

    data = LabelledData
    # The vectors are pooled from the body, without a head.
    unused = ("model.labels", "model.head_dropout")

    def check_run(self, run: Any) -> None:
        """Refuse a model with a head or that sees one side only, and batches or engines in which texts are not compared."""
        group, model = getattr(self, self.objective), run.model
        require(model.task == "body", "model.task", model.task, f"{self.objective} trains the body without a head; choose body")
        fix = "the vector of a text is pooled from tokens that see both sides; choose --model.no-causal"
        require(not getattr(model, "causal", False), "model.causal", True, fix)
        smooth = run.label_smoothing == 0 or isinstance(self, TokenOptions)
        require(smooth, "label_smoothing", run.label_smoothing, "it has no effect on vectors; remove it")
        fix = "the loss compares all rows of the batch, and with pmap a device has only its own; choose jit"
        require(run.engine == "jit" or not group.compares_rows, "engine", run.engine, fix)
        group.check_model(model)

    def check_negatives(self, run: Any, option: str, negatives: int) -> None:
        """Refuse batches of one row whose query has no negative; `option` says how many of its own it has."""
        fewest = min(stage.rows for stage in run.data.sizes.stages)
        fix = f"the negatives of a query are the texts of other rows; choose 2 or more, or --{option} 1"
        require(fewest > 1 or negatives > 0, "data.batch", fewest, fix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveOptions(EmbeddingOptions):
    """Options of contrastive learning."""

    objective, scorer = "contrastive", "contrastive"
    metrics = ("loss", "accuracy", "mrr")
    contrastive: Contrastive = Contrastive()
    labelled: RankedTexts = RankedTexts()

    def check_run(self, run: Any) -> None:
        """Refuse queries without a negative, and unsupervised learning without dropout."""
        super().check_run(run)
        self.check_negatives(run, "contrastive.negatives", self.contrastive.negatives)
        one_source, data = self.contrastive.one_source, run.data
        fix = "it divides batches by --data.paths; name two or more files or folders"
        require(not one_source or len(data.paths) > 1, "contrastive.one_source", True, fix)
        fix = "with --contrastive.one-source all batches have one size; remove it"
        require(not (one_source and data.ramp), "data.ramp", " ".join(data.ramp), fix)
        fix = "a query and its positive would be the same vector; choose a share above 0, such as 0.1"
        unsupervised, selection = self.contrastive.unsupervised, run.selection
        require(run.model.dropout > 0 or not unsupervised, "model.dropout", run.model.dropout, fix)
        fix = "each query is its own document and finds it; choose loss, or leave out --selection.best"
        decides = selection.best and unsupervised and selection.metric != "loss"
        require(not decides, "selection.metric", selection.metric or "(accuracy)", fix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimilarityOptions(EmbeddingOptions):
    """Options of learning scores of pairs."""

    objective, scorer = "similarity", "similarity"
    metrics = ("loss", "pearson", "spearman")
    similarity: Similarity = Similarity()
    labelled: ScoredPairs = ScoredPairs()

    def check_run(self, run: Any) -> None:
        """Refuse batches without two pairs that are compared."""
        super().check_run(run)
        fewest = min(stage.rows for stage in run.data.sizes.stages)
        fix = f"{self.similarity.loss} compares pairs with each other; choose 2 or more, or --similarity.loss cosine"
        require(fewest > 1 or self.similarity.loss == "cosine", "data.batch", fewest, fix)
