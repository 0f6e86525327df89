"""Rewards: the scores that a reward model gives to completions, and their normalization.

Format: .jsonl; a line is an object with `completion` and, unless it is empty, `prompt`, both texts or both messages.

With rewards:normalize, the gain and the bias that make the mean of these scores 0 and their standard deviation 1 are stored
next to the weights, in reward_scale.json. From then on the scores of this model are reported normalized, by this task and by
preferences; `zoo export` writes the file too. The texts should be samples of the model that the rewards will train (Ziegler et
al. 2019).

Metrics: reward_mean and reward_deviation of the scores, normalized if the model is; gain and bias. Examples are completions.
"""

import dataclasses
from collections.abc import Sequence

from eval import task_data_files
from eval.scoring.feedback.completion_scores import PromptCompletion, reward_model_scores
from eval.tasks import Progress, Result, Settings, first
from train.data.preference_records import parse_completions
from train.data.text_files import nonblank_lines, parse_object
from train.engine.reward_scores import is_reward_model
from train.weights.load import Loaded
from train.weights.reward_scale import RewardScale
from zoo.errors import BadInput, require

OPTIONS = ("argument", "limit")
OPTIONAL_ARGUMENT = True
NORMALIZE = "normalize"


def read(names: Sequence[str], settings: Settings) -> list[PromptCompletion]:
    """Read the completions of all files.

    Raises:
        BadInput: another argument than normalize, or a file or a line that cannot be read.
    """
    require(settings.argument in ("", NORMALIZE), "task", f"rewards:{settings.argument}", f"choose rewards:{NORMALIZE}")
    completions = []
    for file in task_data_files.files(names, (".jsonl",)):
        for where, line in nonblank_lines(file):
            content = parse_object(line, where, '{"prompt": "...", "completion": "..."}')
            prompt, (completion,) = parse_completions({"prompt": "", **content}, ("completion",), where)
            completions.append(PromptCompletion(where, prompt, completion))
    return first(completions, settings.limit)


def score(subject: Loaded, completions: Sequence[PromptCompletion], settings: Settings, progress: Progress) -> Result:
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
    metrics |= {name: value for name, value in dataclasses.asdict(scale).items() if name in ("gain", "bias")}
    return Result(metrics, len(completions), reward_scale=scale if settings.argument else None)
