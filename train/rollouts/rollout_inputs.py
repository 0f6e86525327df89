"""The inputs that a policy needs beside its prompts, before anything of the run is written."""

import dataclasses
from typing import Any

from jax.sharding import Mesh

from train.config.run_config import Run
from train.rollouts.reward_models import Capacity, load_reward_model
from train.rollouts.rewards import ModelName, find_rewards
from train.weights.reference_log_probs import digest_of_parameters
from zoo.errors import require


def extend_inputs(run: Run, mesh: Mesh, inputs: Any, beta: float) -> Any:
    """Return inputs with the run's reward functions and models, and the digest of the reference if there is a KL divergence.

    Args:
        inputs: a `train.inputs.prompt_inputs.PromptInputs`.
        beta: coefficient of the KL divergence; 0 = there is none.

    Raises:
        BadInput: see `with_judges`; also if `run.init` does not exist.
    """
    reference = digest_of_parameters(run.init) if beta else ""
    return dataclasses.replace(with_judges(run, mesh, inputs), reference=reference)


def with_judges(run: Run, mesh: Mesh, inputs: Any) -> Any:
    """Return inputs with the run's reward functions and reward models.

    Raises:
        BadInput: see `train.rollouts.rewards.find_rewards` and `train.rollouts.reward_models.load_reward_model`; or
            `rollout.reward_truncate` without a reward model.
    """
    # Without those that --labelled.skip-bad left out.
    prompts = [rows.examples[row.example] for rows in (inputs.training, inputs.held_out) for row in rows.rows]
    capacity = Capacity.of_run(run)
    judges = tuple(
        load_reward_model(judge, capacity, mesh, prompts, inputs.tokenizer) if isinstance(judge, ModelName) else judge
        for judge in find_rewards(run.options.rollout.reward)
    )
    rollout = run.options.rollout
    has_model = any(judge.collective for judge in judges)
    fix = "it has no effect on reward functions, and no reward model is named; remove it"
    require(has_model or not rollout.reward_truncate, "rollout.reward_truncate", rollout.reward_truncate, fix)
    return dataclasses.replace(inputs, rewards=judges)
