"""Options of the objective `late_interaction`, which trains a vector for each token of a text."""

import dataclasses
import math
from typing import Any

from train.config.data_options import LabelledData
from train.config.embedding_options import EmbeddingOptions, RankedTexts
from zoo.errors import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class LateInteraction:
    """Loss of queries whose document is to be found among those of the batch by the vectors of their tokens.

    Sources: Khattab and Zaharia 2020, "ColBERT", section 3; Santhanam et al. 2022, "ColBERTv2".
    """

    compares_rows = True
    """See `train.config.embedding_options.Embedding`."""

    dimensions: int = 128
    """Dimensions of the vector of a token, to which a linear layer without bias reduces its hidden state."""
    temperature: float = 1.0
    """Divisor of the scores in the loss. A score is a sum over the tokens of a query, so it is not that of cosines."""
    negatives: int = 0
    """Number of negatives that each query brings along, the first ones of its row. Positives and negatives of all rows of the
    batch are candidates of each query."""
    mask_duplicates: bool = True
    """Leave out candidates that are the same text as the positive, which are no negatives."""
    query_length: int = 32
    """Tokens of a query, special tokens included; a document has at most --data.length."""
    query_expansion: bool = True
    """Fill queries up to that length with the mask token, whose vectors count in the score (section 3.2 of ColBERT)."""
    attend_to_expansion_tokens: bool = False
    """Let the tokens of a query see those mask tokens, which otherwise only see them."""
    skip_punctuation: bool = True
    """Leave out the vectors of documents' tokens that are a punctuation character (section 3.2 of ColBERT)."""
    query_prompt: str = ""
    """Text put before each query. If it is an entry of the vocabulary or begins with one and a space, such as "[unused0] ", that
    is one token, as ColBERT's marker [Q]."""
    document_prompt: str = ""
    """Text put before each positive and negative, read in the same way: "[unused1] "."""

    def __post_init__(self) -> None:
        valid = 0 < self.temperature < math.inf
        require(valid, "late_interaction.temperature", self.temperature, "choose a number above 0, such as 1")
        require(
            1 <= self.dimensions <= 1 << 16, "late_interaction.dimensions", self.dimensions, "choose 1 to 65,536, such as 128"
        )
        fix = "choose 0 (only those of other rows) to 64"
        require(0 <= self.negatives <= 64, "late_interaction.negatives", self.negatives, fix)
        fix = "choose 3 or more (two special tokens and one of the text), such as 32"
        require(self.query_length >= 3, "late_interaction.query_length", self.query_length, fix)
        fix = "there are none with --late-interaction.no-query-expansion; remove it"
        has_effect = self.query_expansion or not self.attend_to_expansion_tokens
        require(has_effect, "late_interaction.attend_to_expansion_tokens", self.attend_to_expansion_tokens, fix)

    def check_model(self, model: Any) -> None:
        """Accept every model: its width does not limit the dimensions of the projection."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LateInteractionOptions(EmbeddingOptions):
    """Options of late interaction."""

    objective, scorer = "late_interaction", "late_interaction"
    data = LabelledData
    metrics = ("loss", "accuracy", "mrr")
    late_interaction: LateInteraction = LateInteraction()
    labelled: RankedTexts = RankedTexts()

    def check_run(self, run: Any) -> None:
        """Refuse queries without a negative, and queries that are longer than a row."""
        super().check_run(run)
        self.check_negatives(run, "late-interaction.negatives", self.late_interaction.negatives)
        length, longest = self.late_interaction.query_length, run.data.length
        fix = f"a row has --data.length {longest} tokens; choose at most {longest}, or longer rows"
        require(length <= longest, "late_interaction.query_length", length, fix)
