"""Options of the objective `sentence_denoising`, which trains the vectors of texts without labels, and of the files it reads."""

import dataclasses
from typing import Any

from train.config.data_options import LabelledData
from train.config.declaration import TokenOptions
from train.config.embedding_options import EmbeddingOptions
from train.config.option_groups import Choices, Tables
from zoo.configs._pooling import Pool
from zoo.errors import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainTexts(Choices, Tables):
    """Reading of files of texts without labels."""

    text: str = ""
    """Column of the text; empty = "text", or the first column if columns are numbered."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentenceDenoising:
    """Reconstruction of a text from the vector of what is left of it (Wang et al. 2021, "TSDAE")."""

    pool: Pool = "mean"
    """The vector of a text, as in `--contrastive.pool`; the paper's is cls."""
    deletion: float = 0.6
    """Share of the words that are deleted, each by chance; at least one is left. The paper's is the default."""
    decoder_layers: int = 1
    """Layers of the decoder, which are new and belong to training alone. The paper's decoder has those of the encoder."""

    def __post_init__(self) -> None:
        fix = "choose a share of at least 0 and less than 1, such as 0.6"
        require(0 <= self.deletion < 1, "sentence_denoising.deletion", self.deletion, fix)
        require(1 <= self.decoder_layers <= 64, "sentence_denoising.decoder_layers", self.decoder_layers, "choose 1 to 64")

    @property
    def compares_rows(self) -> bool:
        """False: the loss of a text depends on no other."""
        return False

    def check_model(self, model: Any) -> None:
        """Refuse an odd width, which the sinusoids of the decoder's positions cannot have."""
        fix = "the decoder's positions are pairs of a sine and a cosine; choose an even number"
        require(model.width % 2 == 0, "model.width", model.width, fix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentenceDenoisingOptions(EmbeddingOptions, TokenOptions):
    """Options of reconstructing texts from their vectors."""

    objective, scorer = "sentence_denoising", "sentence_denoising"
    data = LabelledData
    metrics = ("loss", "perplexity")
    sentence_denoising: SentenceDenoising = SentenceDenoising()
    labelled: PlainTexts = PlainTexts()
