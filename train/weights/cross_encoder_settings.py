"""The settings of a cross-encoder beside its weights: the activation of its scores, and the length of a pair."""

from typing import NamedTuple

from train.config.rerank_options import RerankOptions
from train.engine.reward_scores import is_reward_model
from train.weights.load import Loaded
from zoo.configs import longest_row
from zoo.configs._encoder import BodyConfig
from zoo.cross_encoder_files import ScoreActivation, read_activation

NO_LIMIT = 1 << 31
"""Tokenizers without a limit name a larger number, such as 1e30."""


class CrossEncoderSettings(NamedTuple):
    """The settings of a cross-encoder."""

    activation: ScoreActivation | None
    """None = not named, which is the sigmoid, as in sentence-transformers."""
    longest: int | None
    """Most tokens of a pair, special tokens included; None = any number."""


def is_cross_encoder(loaded: Loaded) -> bool:
    """Return whether a model is an encoder with a head of one score."""
    return isinstance(loaded.model.config, BodyConfig) and is_reward_model(loaded.model)


def cross_encoder_settings(loaded: Loaded) -> CrossEncoderSettings:
    """Return the settings of a model: of a run, those that it was trained with; of published weights, those of its folder.

    A pointwise loss trains the sigmoid of the logits, the others their differences.

    Raises:
        BadInput: see `zoo.cross_encoder_files.read_activation`.
    """
    positions, run = longest_row(loaded.model.config), loaded.run
    if run is not None:
        if not isinstance(run.options, RerankOptions):
            return CrossEncoderSettings(None, positions)
        return CrossEncoderSettings("sigmoid" if run.options.rerank.loss == "pointwise" else "identity", run.data.length)
    activation = None if loaded.modules_folder is None else read_activation(loaded.modules_folder)
    longest = loaded.tokenizer.settings.get("model_max_length")
    limits = [size for size in (longest, positions) if isinstance(size, int) and 0 < size < NO_LIMIT]
    return CrossEncoderSettings(activation, min(limits, default=None))
