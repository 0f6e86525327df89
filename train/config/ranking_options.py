"""Options of the objective `ranking`: triplets and distillation of scores, by the vectors of texts, and of the files it reads."""

import dataclasses
import math
from typing import Literal

from train.config.embedding_options import Embedding, EmbeddingOptions, RankedTexts
from zoo.configs._pooling import Similarity
from zoo.errors import require

GroupLoss = Literal["triplet", "margin_mse", "kl"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredTexts(RankedTexts):
    """Reading of files of queries with their positives, their negatives and a teacher's scores of both."""

    scores: str = ""
    """Column of the teacher's scores, a list: that of the positive, then those of the negatives; empty = "scores". The loss
    triplet uses none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking(Embedding):
    """Loss of the similarities of a query with its own positive and negatives; other rows have no part in it."""

    GROUP = "ranking"

    loss: GroupLoss = "triplet"
    """triplet: the positive is to be more similar than a negative by --ranking.margin (Schroff et al. 2015, equation 2; Reimers
    and Gurevych 2019, section 3). margin_mse: the difference of their similarities is to be that of the teacher's scores
    (Hofstätter et al. 2020, equation 8). kl: the probabilities of the texts are to be the teacher's (Lin et al. 2020; Ren et al.
    2021, "RocketQAv2", equation 4). All are means over negatives or rows."""
    similarity: Similarity = "cosine"
    """Similarity of two vectors: the cosine, the dot product, or minus the Euclidean or Manhattan distance."""
    margin: float = 0.2
    """Margin of the loss triplet. With `euclidean` 1 to 5 are usual."""
    temperature: float = 1.0
    """Divisor of the similarities and of the teacher's scores in the loss kl, which is multiplied by its square (Hinton et al.
    2015, section 2.1)."""
    negatives: int = 1
    """Number of negatives of a query, the first ones of its row."""
    query_prompt: str = ""
    """Text put before each query, as it is: "query: "."""
    document_prompt: str = ""
    """Text put before each positive and negative: "passage: "."""

    @property
    def compares_rows(self) -> bool:
        """False: a query is compared with its own texts."""
        return False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.negatives <= 64, "ranking.negatives", self.negatives, "choose 1 to 64")
        require(0 <= self.margin < math.inf, "ranking.margin", self.margin, "choose 0 or a number above, such as 0.2")
        reachable = self.loss != "triplet" or self.similarity != "cosine" or self.margin <= 2
        fix = "cosines differ by at most 2; choose up to 2, or --ranking.similarity euclidean"
        require(reachable, "ranking.margin", self.margin, fix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankingOptions(EmbeddingOptions):
    """Options of learning the similarities of a query with its own texts."""

    objective, scorer = "ranking", "ranking"
    metrics = ("loss", "accuracy", "mrr")
    ranking: Ranking = Ranking()
    labelled: ScoredTexts = ScoredTexts()
