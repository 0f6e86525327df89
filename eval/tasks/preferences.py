"""Scores of completions: their rewards, and the agreement of a reward or language model with preferences between two of them.

preferences. Format: the files that reward models are trained on (see `train.data.preference_records`): .jsonl, .json, .parquet or
folders of `datasets` with prompt, chosen, rejected and perhaps margin, which is not used. Without the column of prompts, the
prompt is the common beginning of the two. Messages are rendered by the chat template of the model. A reward model (of any family)
prefers the completion with the higher score. GPT, T5 and the Transformer with an LM head prefer the completion whose tokens and
end mark have the higher log-probability after the prompt, summed and not normalized by length.

Metrics:
- accuracy: the share of pairs whose chosen completion is preferred; a tie is wrong;
- accuracy_stderr: its standard error over independent pairs;
- reward_margin: the mean difference of the two scores, normalized if the model is; or log_prob_margin, the mean difference of the
  two log-probabilities in nats;
- ties.
Examples are pairs. Outcomes: whether each pair is right; of a reward model -log sigmoid of its difference of scores, of a
language model -log p of the chosen completion.

rewards. Format: .jsonl; a line is an object with `completion` and, unless it is empty, `prompt`, both texts or both messages.
With rewards:normalize, the gain and the bias that make the mean of these scores 0 and their standard deviation 1 are stored next
to the weights, in reward_scale.json. From then on the scores of this model are reported normalized, by both tasks; `zoo export`
writes the file too. The texts should be samples of the model that the rewards will train (Ziegler et al. 2019).

Metrics: reward_mean and reward_deviation of the scores, normalized if the model is; gain and bias. Examples are completions.
"""

from collections.abc import Sequence

import numpy as np

from eval import task_data_files
from eval.inference.batch_loop import Progress
from eval.inference.completion_scores import PromptCompletion, log_probabilities, reward_model_scores
from eval.metrics.standard_error import with_error
from eval.tasks.task import Result, Settings, Task, first
from train.config.data_options import Data
from train.config.find_objective import from_labelled
from train.data import labelled_reader
from train.data.example_types import Preference
from train.data.preference_records import parse_completions
from train.data.text_files import parse_object
from train.engine.reward_scores import is_reward_model
from train.run.item_outcomes import Outcomes
from train.weights.load import Loaded
from train.weights.reward_scale import RewardScale
from zoo.errors import BadInput, require

NORMALIZE = "normalize"
"""The argument of rewards that stores a normalization."""


def read_preference_pairs(names: Sequence[str], settings: Settings) -> list[Preference]:
    """Read the preferences of all files.

    Raises:
        BadInput: a file or a line that cannot be read; see `train.data.preference_records`.
    """
    options = from_labelled("preference", settings.labelled).labelled
    require(not options.truncate, "labelled.truncate", True, "this task does not truncate prompts; leave the option out")
    examples, _ = labelled_reader.read_labelled_examples("preference", tuple(names), Data(), options)
    return first([item for item in examples if isinstance(item, Preference)], settings.limit)


def score_preferences(subject: Loaded, examples: Sequence[Preference], settings: Settings, progress: Progress) -> Result:
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
    metrics = with_error("accuracy", right.astype(np.float64).tolist())
    metrics |= {name: float(difference.mean()), "ties": int((difference == 0).sum())}
    return Result(metrics, len(examples), outcomes=Outcomes.of((item.origin for item in examples), right, nats))


def read_completions(names: Sequence[str], settings: Settings) -> list[PromptCompletion]:
    """Read the completions of all files.

    Raises:
        BadInput: another argument than normalize, or a file or a line that cannot be read.
    """
    require(settings.argument in ("", NORMALIZE), "task", f"rewards:{settings.argument}", f"choose rewards:{NORMALIZE}")
    completions = []
    for _, where, line in task_data_files.lines(names, (".jsonl",)):
        content = parse_object(line, where, '{"prompt": "...", "completion": "..."}')
        prompt, (completion,) = parse_completions({"prompt": "", **content}, ("completion",), where)
        completions.append(PromptCompletion(where, prompt, completion))
    return first(completions, settings.limit)


def score_rewards(subject: Loaded, completions: Sequence[PromptCompletion], settings: Settings, progress: Progress) -> Result:
    """Score the completions.

    Raises:
        BadInput: the model is not a reward model, a completion is too long, or all scores are equal and cannot be normalized.
    """
    if not is_reward_model(subject.model):
        raise BadInput(f"--task rewards: {subject.where} is not a reward model; use one that `zoo train reward-model` trained")
    values = reward_model_scores(subject, completions, batch=settings.batch, dtype=settings.dtype, progress=progress)
    scale = subject.reward_scale
    if settings.argument:
        if not values.std() > 0:
            raise BadInput(f"--task rewards:{NORMALIZE}: all {len(values):,} scores are equal; use two or more different texts")
        scale = RewardScale.of(float(values.mean()), float(values.std()), subject.step)
    normalized = scale.gain * values + scale.bias
    metrics = {"reward_mean": float(normalized.mean()), "reward_deviation": float(normalized.std())}
    metrics |= {"gain": scale.gain, "bias": scale.bias}
    return Result(metrics, len(completions), reward_scale=scale if settings.argument else None)


PREFERENCES = Task(
    read=read_preference_pairs,
    score=score_preferences,
    metrics=("accuracy", "accuracy_stderr", "reward_margin", "log_prob_margin", "ties"),
    options=("limit", "labelled"),
)
REWARDS = Task(
    read=read_completions,
    score=score_rewards,
    metrics=("reward_mean", "reward_deviation", "gain", "bias"),
    options=("limit",),
    argument="optional",
)
