"""Options of the objective `rerank`, which trains cross-encoders."""

import dataclasses
import math
from typing import Any, Literal

from train.config.data_options import LabelledData
from train.config.declaration import ObjectiveOptions
from train.config.embedding_options import RankedTexts
from zoo.errors import require

RerankLoss = Literal["listwise", "pairwise", "pointwise"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rerank:
    """Loss of a query's candidates, each of which has a score together with the query."""

    loss: RerankLoss = "listwise"
    """listwise: the cross-entropy of the positive among the candidates of its query (ListNet, Cao et al. 2007, with one relevant
    text). pairwise: log(1 + exp(negative - positive)), the mean over the negatives (RankNet, Burges et al. 2005). pointwise: the
    binary cross-entropy of each candidate, 1 for the positive and 0 for the others, the mean over the candidates."""
    negatives: int = 1
    """Number of negatives of each query, the first ones of its row."""
    positive_weight: float = 1.0
    """Weight of the positive in the pointwise loss; with as many as there are negatives, both count alike."""

    def __post_init__(self) -> None:
        require(1 <= self.negatives <= 64, "rerank.negatives", self.negatives, "choose 1 to 64")
        valid = 0 < self.positive_weight < math.inf
        require(valid, "rerank.positive_weight", self.positive_weight, "choose a number above 0, such as 1")
        has_effect = self.loss == "pointwise" or self.positive_weight == 1
        fix = f"it has no effect on --rerank.loss {self.loss}; remove it, or choose --rerank.loss pointwise"
        require(has_effect, "rerank.positive_weight", self.positive_weight, fix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RerankOptions(ObjectiveOptions):
    """Options of training a cross-encoder."""

    objective, data, scorer = "rerank", LabelledData, "rerank"
    metrics = ("loss", "accuracy", "mrr")
    rerank: Rerank = Rerank()
    labelled: RankedTexts = RankedTexts()

    def check_run(self, run: Any) -> None:
        """Refuse a model without a head of one score, one whose tokens see one side only, and smoothed labels."""
        labels = getattr(run.model, "labels", ())
        fix = "the score of a pair is that of a sequence; choose sequence"
        require(run.model.task == "sequence", "model.task", run.model.task, fix)
        require(len(labels) <= 1, "model.labels", " ".join(labels), "a cross-encoder has one score; name one label")
        require(not run.model.multi_label, "model.multi_label", True, "a cross-encoder has one score; leave it out")
        fix = "the score of a pair is computed from tokens that see both texts; choose --model.no-causal"
        require(not getattr(run.model, "causal", False), "model.causal", True, fix)
        require(run.label_smoothing == 0, "label_smoothing", run.label_smoothing, "it has no effect on scores; remove it")
