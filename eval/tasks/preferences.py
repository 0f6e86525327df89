"""Agreement of a reward model, or of a language model, with preferences between two completions of a prompt.

Format: the files that reward models are trained on (see `train.data.preference_records`): .jsonl, .json, .parquet or folders of
`datasets` with prompt, chosen, rejected and perhaps margin, which is not used. Without the column of prompts, the prompt is the
common beginning of the two. Messages are rendered by the chat template of the model.

A reward model (of any family) prefers the completion with the higher score. GPT, T5 and the Transformer with a language-model
head prefer the completion whose tokens and end mark have the higher log-probability after the prompt, summed and not normalized
by length.

Metrics:
- accuracy: the share of pairs whose chosen completion is preferred; a tie is wrong;
- accuracy_stderr: its standard error over independent pairs;
- reward_margin: the mean difference of the two scores, normalized if the model is (see the task rewards); or log_prob_margin, the
  mean difference of the two log-probabilities in nats;
- ties.
Examples are pairs. Outcomes: whether each pair is right; of a reward model -log sigmoid of its difference of scores, of a
language model -log p of the chosen completion.
"""

from collections.abc import Sequence

import numpy as np

from eval.metrics.standard_error import mean_and_error
from eval.scoring.feedback.completion_scores import PromptCompletion, log_probabilities, reward_model_scores
from eval.tasks import Progress, Result, Settings, first
from train.config.data_options import Data
from train.config.find_objective import from_labelled
from train.data import labelled_reader
from train.data.example_types import Preference
from train.engine.reward_scores import is_reward_model
from train.run.item_outcomes import Outcomes
from train.weights.load import Loaded
from zoo.errors import BadInput, require

OPTIONS = ("limit", "labelled")


def read(names: Sequence[str], settings: Settings) -> list[Preference]:
    """Read the preferences of all files.

    Raises:
        BadInput: a file or a line that cannot be read; see `train.data.preference_records`.
    """
    options = from_labelled("preference", settings.labelled).labelled
    require(not options.truncate, "labelled.truncate", True, "this task does not truncate prompts; leave the option out")
    examples, _ = labelled_reader.read_examples("preference", tuple(names), Data(), options)
    return first([item for item in examples if isinstance(item, Preference)], settings.limit)


def score(subject: Loaded, examples: Sequence[Preference], settings: Settings, progress: Progress) -> Result:
    """Compare the two completions of each pair.

    Raises:
        BadInput: a model that is neither a reward model nor a left-to-right language model, or a completion that is too long.
    """
    completions = [PromptCompletion(item.origin, item.prompt, text) for item in examples for text in (item.chosen, item.rejected)]
    options = {"batch": settings.batch, "dtype": settings.dtype, "progress": progress}
    if is_reward_model(subject.model):
        values = subject.reward_scale.gain * reward_model_scores(subject, completions, **options).reshape(-1, 2)
        name, nats = "reward_margin", np.logaddexp(0, values[:, 1] - values[:, 0])
    elif subject.model.task in ("causal", "text_to_text"):
        values = log_probabilities(subject, completions, **options).reshape(-1, 2)
        name, nats = "log_prob_margin", -values[:, 0]
    else:
        name = f"a {subject.model.family} for the task {subject.model.task}"
        what = f"{name} is neither a reward model nor a left-to-right language model"
        fix = f"make it a reward model with `zoo train reward-model --init {subject.where} --data.paths ...`"
        raise BadInput(f"--task preferences: {what}; {fix}")
    difference = values[:, 0] - values[:, 1]
    right = difference > 0
    accuracy, error = mean_and_error(right.astype(np.float64).tolist())
    metrics = {
        "accuracy": accuracy,
        **({} if error is None else {"accuracy_stderr": error}),
        name: float(difference.mean()),
        "ties": int((difference == 0).sum()),
    }
    return Result(metrics, len(examples), outcomes=Outcomes.of((item.origin for item in examples), right, nats))
