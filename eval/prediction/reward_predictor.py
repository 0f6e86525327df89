"""Scores of texts by a reward model on a decoder or encoder-decoder, in order, for a stream of examples.

Reward models on encoders are classifiers with one label, whose numbers `eval.prediction.predictor` computes.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from eval.inference.batch_loop import no_progress
from eval.inference.completion_scores import PromptCompletion, reward_model_scores
from eval.prediction import prediction_records
from eval.prediction.predictor import CHUNK
from train.config.find_objective import with_labelled
from train.config.option_groups import Labelled, LabelledTexts
from train.data.example_types import Text
from train.data.unlabelled_reader import UnlabelledExample
from train.engine.reward_scores import is_reward_model
from train.weights.load import Loaded
from zoo.errors import BadInput, require


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
    return with_labelled(None if subject.run is None else subject.run.options, "classification", labelled).labelled


def predict_rewards(
    subject: Loaded,
    items: Iterable[UnlabelledExample],
    *,
    batch: int,
    dtype: Any,
    skip_bad: bool = False,
    with_text: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield a prediction for each text, in order, with `number`, its score without normalization.

    A text is a completion without a prompt; of two texts, the first is the prompt and the second the completion.

    Args:
        skip_bad, with_text: see `eval.prediction.predictor.Predictor`.

    Raises:
        BadInput: a text is longer than the model's positions, or its score is not finite.
    """

    def scores(examples: Sequence[Any]) -> list[Any]:
        completions = [_completion(example) for example in examples]
        values = reward_model_scores(subject, completions, batch=batch, dtype=dtype, progress=no_progress)
        return [{"number": prediction_records.round_to_float32(value)} for value in values]

    index, items = 0, iter(items)
    while chunk := list(itertools.islice(items, CHUNK)):
        try:
            results = scores([item.example for item in chunk])
        except BadInput:
            if not skip_bad:
                raise
            results = [_score_or_error(scores, item.example) for item in chunk]
        for number, (item, result) in enumerate(zip(chunk, results, strict=True), index):
            yield prediction_records.prediction_record(number, item, result, with_text=with_text)
        index += len(chunk)


def _completion(text: Any) -> PromptCompletion:
    if isinstance(text, BadInput):
        raise text
    assert isinstance(text, Text)
    prompt, completion = ("", text.text) if text.pair is None else (text.text, text.pair)
    return PromptCompletion(text.origin, prompt, completion)


def _score_or_error(scores: Callable[[Sequence[Any]], list[Any]], example: Any) -> Any:
    try:
        return scores([example])[0]
    except BadInput as error:
        return error
