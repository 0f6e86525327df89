"""Policy gradients that TRL on torch computes. `python -m tests.support.trl_policy` writes them to `tests/golden`."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden import make
from tests.support import published, trl_losses
from train.config.policy_gradient_options import PolicyGradientLoss
from train.config.rollout_options import Rollout

FILE = make.FOLDER / "policies.json"
FACTORS = {"policy": 1.0, "old": 0.95, "reference": 0.5}
"""Weights of the model in training, of the one that sampled, and of the reference: the published ones times this."""
SAMPLES, LIMIT, PROMPT = 4, 8, 3
LENGTHS = (5, 3, 6, 1, 4, 4, 2, 6)
"""Tokens of the responses, four to each of two prompts."""
REWARDS = [0.3, 1.0, -0.5, 0.25, 2.0, 0.0, 0.5, 1.5]
KL_IN_LOSS: Any = {"beta": 0.04, "kl": "loss"}
CASES: dict[str, tuple[PolicyGradientLoss, float]] = {
    "grpo": (PolicyGradientLoss(advantage="group_std", aggregation="sequences", **KL_IN_LOSS), 1.0),
    "dapo": (PolicyGradientLoss(advantage="group_std", clip_low=0.05, clip_high=0.3, **KL_IN_LOSS), 1.0),
    "dr_grpo": (PolicyGradientLoss(aggregation="limit", clip_low=0.05, clip_high=0.1), 1.0),
    "grpo, sequence": (
        PolicyGradientLoss(
            advantage="group_std", ratio="sequence", aggregation="sequences", clip_low=0.02, clip_high=0.04, **KL_IN_LOSS
        ),
        1.0,
    ),
    "dapo, temperature": (PolicyGradientLoss(advantage="group_std", **KL_IN_LOSS), 0.7),
    "rloo": (PolicyGradientLoss(advantage="leave_one_out", ratio="product", aggregation="sequences", beta=0.05), 1.0),
}
"""Options and temperature; the name begins with TRL's loss."""


def rollout(name: str) -> Rollout:
    return Rollout(samples=SAMPLES, tokens=LIMIT, temperature=CASES[name][1])


def texts() -> tuple[list[list[int]], list[list[int]]]:
    """Return the prompt and the response of each row."""
    rng = np.random.Generator(np.random.PCG64(9))
    prompts = np.repeat(rng.integers(4, 61, (len(LENGTHS) // SAMPLES, PROMPT)), SAMPLES, axis=0).tolist()
    return prompts, [rng.integers(4, 61, length).tolist() for length in LENGTHS]


def write_models(folder: Path) -> list[Path]:
    """Write the published folders of the models of `FACTORS`, in this order."""
    for name, factor in FACTORS.items():
        published.write(folder / name, published.config("gpt", "causal"), factors=dict.fromkeys(("weight", "bias"), factor))
    return [folder / name for name in FACTORS]


def losses() -> dict[str, Any]:
    """Return the loss, the advantages and the gradients of each of `CASES`, those as `tests.golden.make.probe` has them."""
    return {name: _loss(name) for name in CASES}


def _loss(name: str) -> dict[str, Any]:
    import transformers
    import trl
    from trl.trainer.utils import add_fused_lm_head

    options, temperature = CASES[name]
    prompts, answers = texts()
    with tempfile.TemporaryDirectory() as scratch:
        policy, old, reference = (
            transformers.GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()
            for folder in write_models(Path(scratch))
        )
        arguments: dict[str, Any] = dict(
            **dict(output_dir=scratch, use_cpu=True, report_to="none", bf16=False, gradient_checkpointing=False, beta=0.0),
            **dict(num_generations=SAMPLES, per_device_train_batch_size=len(prompts), per_device_eval_batch_size=len(prompts)),
            **dict(max_completion_length=LIMIT, temperature=temperature, num_iterations=2),
            **dict(epsilon=options.clip_low, epsilon_high=options.clip_high, disable_dropout=True),
        )
        if name == "rloo":
            trainer_class, config = trl.RLOOTrainer, trl.RLOOConfig(**arguments)
        else:
            scale = "group" if options.advantage == "group_std" else "none"
            arguments |= {"loss_type": name.split(",")[0], "importance_sampling_level": options.ratio, "scale_rewards": scale}
            trainer_class, config = trl.GRPOTrainer, trl.GRPOConfig(**arguments)
        trainer: Any = trainer_class(
            old,
            reward_funcs=lambda completions, **_: REWARDS,
            args=config,
            train_dataset=trl_losses._texts(),
            processing_class=trl_losses.tokenizer(),
        )
        trainer.beta, trainer.ref_model = options.beta, reference
        for model in (policy, reference):
            add_fused_lm_head(model, temperature=temperature, outputs=("log_probs", "entropy"))
        trainer.model.eval()
        generated: Any = (prompts, answers, ["w4"] * len(prompts))
        if name != "rloo":
            # No masks of tools; neither log-probabilities of another sampler, nor further columns, nor images.
            generated = (prompts, answers, None, generated[2], None, {}, None, None)
        trainer._generate = lambda _: generated
        inputs = trainer._generate_and_score_completions([{"prompt": "w4"}] * len(prompts))
        loss = trainer._compute_loss(policy, inputs)
    loss.backward()
    probes = {name: make.probe(name, value.grad.numpy()) for name, value in policy.named_parameters()}
    gradients = {name: [float(f"{number:.6g}") for number in probe] for name, probe in probes.items()}
    return {"loss": loss.item(), "advantages": inputs["advantages"].tolist(), "gradients": gradients}


if __name__ == "__main__":
    import trl

    FILE.write_text(json.dumps({"trl": trl.__version__, **make.versions(), "losses": losses()}, separators=(",", ":")) + "\n")
