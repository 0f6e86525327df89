"""Scores of policies: the rewards of greedy responses to held-out prompts."""

from collections.abc import Callable
from typing import Any

import numpy as np

from eval.inference.sampled_responses import sample_responses
from eval.tasks.held_out.scoring_inputs import Score, ScoringInputs
from train.inputs.prompt_inputs import PromptRows
from train.rollouts.response_judges import rewards_in_all_processes
from train.rollouts.rewards import with_missing_end
from train.rollouts.sampler import Sampler
from zoo.generation.decoding_settings import GREEDY


def score_policy(inputs: ScoringInputs) -> Callable[[Any], Score]:
    """Return a function of parameters that responds to every prompt of the rows, `inputs.batch` at a time over the mesh."""
    run, rows, data = inputs.run, inputs.rows, inputs.data
    assert isinstance(rows, PromptRows)
    sampler = Sampler(
        inputs.model,
        inputs.mesh,
        data.tokenizer,
        np.dtype(inputs.dtype),
        rows=inputs.size,
        slots=max(data.training.longest, data.held_out.longest),
        limit=run.options.rollout.tokens,
        settings=GREEDY,
        end=data.end_mark,
    )

    def score(params: Any) -> Score:
        numbers = np.zeros((2, len(rows)), np.uint32)
        sampled = sample_responses(sampler, params, rows.examples, rows.rows, numbers, inputs.progress)
        judged = rewards_in_all_processes(data.rewards, [response.completion for response in sampled])
        rollout, ended = run.options.rollout, [response.ended for response in sampled]
        rewards = float(with_missing_end(judged.values, ended, rollout.missing_end).sum())
        truncated = int(judged.truncated.sum()) if rollout.reward_truncate else None
        tokens = sum(len(response.ids) for response in sampled)
        return policy_metrics(rewards, tokens, ended.count(False), len(sampled), truncated)

    return score


def policy_metrics(rewards: float, tokens: int, unended: int, prompts: int, truncated: int | None = None) -> Score:
    """Return the metrics of sums over prompts.

    Args:
        tokens: number of tokens of the responses, end marks included.
        unended: number of responses without an end mark.
        truncated: responses that a reward model has read only in part; None: reward models truncate none.
    """
    numbers = {"reward": rewards / prompts, "response_length": tokens / prompts, "unended_share": unended / prompts}
    numbers |= {} if truncated is None else {"truncated_share": truncated / prompts}
    return Score(numbers={**numbers, "examples": prompts})
