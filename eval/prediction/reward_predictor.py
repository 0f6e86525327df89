"""Scores of texts by a reward model on a decoder or encoder-decoder, in order, for a stream of examples.

Reward models on encoders are classifiers with one label, whose numbers `eval.prediction.predictor` computes.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from eval.prediction import prediction_records
from eval.prediction.predictor import CHUNK
from eval.scoring.batch_loop import no_progress
from eval.scoring.feedback.completion_scores import PromptCompletion, reward_model_scores
from train.config.objectives import adapt_options, from_labelled
from train.config.option_groups import Labelled, LabelledTexts
from train.data.example_types import Text
from train.data.unlabelled_reader import UnlabelledExample
from train.engine.reward_scores import is_reward_model
from train.weights.load import Loaded
from zoo.errors import require


def is_supported(subject: Loaded) -> bool:
    """Return whether a model is a reward model that this module computes."""
    return is_reward_model(subject.model) and not hasattr(subject.model.config, "task")


def file_options(subject: Loaded, labelled: Labelled, *, length: int) -> LabelledTexts:
    """Return how files of texts are read: as `labelled` says, or with the encoding of the run's own files.

    Raises:
        BadInput: an option that has no effect on a reward model.
    """
    require(length == 0, "length", length, "a reward model reads texts up to its positions; remove it")
    for name in ("truncate", "regression", "multi_label", "coarse"):
        require(not getattr(labelled, name), f"labelled.{name}", True, "it has no effect on a reward model; remove it")
    if subject.run is not None and labelled == Labelled():
        return adapt_options(subject.run.options.labelled, LabelledTexts)
    return from_labelled("classification", labelled).labelled


def predict(subject: Loaded, items: Iterable[UnlabelledExample], *, batch: int, dtype: Any) -> Iterator[dict[str, Any]]:
    """Yield a prediction for each text, in order, with `number`, its score without normalization.

    A text is a completion without a prompt; of two texts, the first is the prompt and the second the completion.

    Raises:
        BadInput: a text is longer than the model's positions, or its score is not finite.
    """
    index, items = 0, iter(items)
    while chunk := list(itertools.islice(items, CHUNK)):
        completions = []
        for item in chunk:
            text = item.example
            assert isinstance(text, Text)
            prompt, completion = ("", text.text) if text.pair is None else (text.text, text.pair)
            completions.append(PromptCompletion(text.origin, prompt, completion))
        values = reward_model_scores(subject, completions, batch=batch, dtype=dtype, progress=no_progress)
        for number, (item, value) in enumerate(zip(chunk, values, strict=True), index):
            yield {
                "index": number,
                **({} if item.id is None else {"id": item.id}),
                "number": prediction_records.round_to_float32(value),
            }
        index += len(chunk)
