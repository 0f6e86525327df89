"""Scores of policies: the rewards of greedy responses to held-out prompts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from eval.scoring.batch_loop import ScoringInputs
from train.engine import device_mesh
from train.inputs.prompt_inputs import PromptRows
from train.rollouts.response_judges import rewards_in_all_processes
from train.rollouts.rewards import Completion, with_missing_end
from train.rollouts.sampler import Sampler
from zoo.generation.decoding_settings import GREEDY


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Sums over held-out prompts."""

    rewards: float
    tokens: int
    """Number of tokens of the responses, end marks included."""
    unended: int
    """Number of responses without an end mark."""
    prompts: int
    truncated: int | None = None
    """Responses that a reward model has read only in part; None: reward models truncate none."""

    def record(self) -> dict[str, float | int]:
        """Return the score as it is in metrics and JSON."""
        return {
            "reward": self.rewards / self.prompts,
            "response_length": self.tokens / self.prompts,
            "unended_share": self.unended / self.prompts,
            **({} if self.truncated is None else {"truncated_share": self.truncated / self.prompts}),
            "examples": self.prompts,
        }


def of_run(inputs: ScoringInputs) -> Callable[[Any], Score]:
    """Return a function of parameters that responds to every prompt of the rows, `inputs.batch` at a time over the mesh."""
    run, rows, data = inputs.run, inputs.rows, inputs.data
    assert isinstance(rows, PromptRows)
    sampler = Sampler(
        inputs.model,
        inputs.mesh,
        data.tokenizer,
        np.dtype(inputs.dtype),
        rows=device_mesh.round_up_rows(inputs.mesh, min(inputs.batch, len(rows))),
        slots=max(data.training.longest, data.held_out.longest),
        limit=run.options.rollout.tokens,
        settings=GREEDY,
        end=data.end_mark,
    )

    def score(params: Any) -> Score:
        params = sampler.decoding_params(params)
        completions, ended, tokens = [], [], 0
        batches = range(0, len(rows), sampler.rows)
        inputs.progress(0, len(batches))
        for number, first in enumerate(batches, 1):
            prompts = rows.rows[first : first + sampler.rows]
            responses = sampler.sample(params, prompts, np.zeros((2, len(prompts)), np.uint32))
            completions += [
                Completion(rows.examples[prompt.example], sampler.text(responses, row), responses.text_ids(row))
                for row, prompt in enumerate(prompts)
            ]
            tokens += int(responses.lengths.sum())
            ended += responses.ended.tolist()
            inputs.progress(number, len(batches))
        judged, rollout = rewards_in_all_processes(data.rewards, completions), run.options.rollout
        return Score(
            rewards=float(with_missing_end(judged.values, ended, rollout.missing_end).sum()),
            tokens=tokens,
            unended=ended.count(False),
            prompts=len(completions),
            truncated=int(judged.truncated.sum()) if rollout.reward_truncate else None,
        )

    return score
