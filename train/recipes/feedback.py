"""Recipes of learning from preferences without a reward model, and from rewards; the model already generates text."""

import dataclasses
from typing import Any

from train.config.declaration import TokenOptions
from train.config.objectives import DpoOptions, KtoOptions, PolicyGradientOptions, PpoOptions, RolloutOptions
from train.config.option_groups import Prompts
from train.config.policy_gradient_options import PolicyGradientLoss, Ppo
from train.config.rollout_options import Rollout
from train.config.run_config import Checkpoint, Log, Optim, Run
from train.weights import pretrained_config
from zoo import configs


def dpo(init: str = "") -> Run:
    """Learn which of two answers was preferred (Rafailov et al. 2023). The model of --init is also the reference.

    Command: zoo train dpo --init DIR --data.paths pairs.jsonl
    Hardware: 2 CPU cores, float32.
    Time: 5 minutes for 300 steps of 32 pairs of 32 tokens, on one core of a busy machine.
    Expect: 77.5, 75.7, 77.5 % of held-out pairs of BLiMP (50 % before), gpt-nano, --optim.lr 2e-4, those steps, three seeds.
    """
    return _preferences("dpo", init, DpoOptions())


def kto(init: str = "") -> Run:
    """Learn from single answers that were labelled as desired or not (Ethayarajh et al. 2024). --init is also the reference.

    Command: zoo train kto --init DIR --data.paths answers.jsonl
    Hardware: 2 CPU cores, float32.
    Time: not measured.
    Expect: not measured. A small model needs a larger rate, such as --optim.lr 1e-4.
    """
    return _preferences("kto", init, KtoOptions())


def grpo(init: str = "") -> Run:
    """Learn from the rewards of responses that the model samples, relative to those of the same prompt (Shao et al. 2024).

    Command: zoo train grpo --init DIR --data.paths prompts.jsonl --rollout.reward rewards:score
    Hardware: 2 CPU cores, float32.
    Time: not measured.
    Expect: not measured. A small model needs a larger rate, such as --optim.lr 2e-4.
    """
    # Without the KL divergence of the paper, which TRL 1.16 leaves out too.
    return _rewards(
        "grpo", init, PolicyGradientOptions(policy_gradient=PolicyGradientLoss(advantage="group_std", aggregation="sequences"))
    )


def rloo(init: str = "") -> Run:
    """Learn from the rewards of responses, relative to the mean of the others of the same prompt (Ahmadian et al. 2024).

    Command: zoo train rloo --init DIR --data.paths prompts.jsonl --rollout.reward rewards:score
    Hardware: 2 CPU cores, float32.
    Time: 2 minutes for 800 steps of 192 responses of 4 tokens (docs/feedback-sums.md), on a busy machine.
    Expect: 99.8, 99.0, 99.2 % of the held-out sums right, three seeds, with --optim.lr 3e-4: small models need larger rates.
    """
    # The KL coefficient is that of TRL 1.16; the paper's section 4 compares 2 and 4 responses.
    policy = PolicyGradientLoss(advantage="leave_one_out", ratio="product", aggregation="sequences", beta=0.05)
    return _rewards("rloo", init, PolicyGradientOptions(policy_gradient=policy, rollout=Rollout(samples=4)))


def ppo(init: str = "") -> Run:
    """Learn from the rewards of responses, relative to the values that the model predicts (Ziegler et al. 2019).

    Command: zoo train ppo --init DIR --data.paths prompts.jsonl --rollout.reward rewards:score
    Hardware: 2 CPU cores, float32.
    Time: 2 to 3 minutes for 1,600 steps, four on each rollout of 192 responses (docs/feedback-sums.md), on a busy machine.
    Expect: 99.9, 99.9, 100.0 % of the held-out sums right, three seeds, with --optim.lr 3e-4: small models need larger rates.
    """
    # The options, the epochs and the rate are those of TRL 1.10, the last version with PPO, but for its temperature of 0.7; the
    # epsilon is that of Ziegler et al. 2019.
    options = PpoOptions(ppo=Ppo(), rollout=Rollout(samples=1, steps=4, epochs=4))
    run = _rewards("ppo", init, options)
    return dataclasses.replace(
        run,
        steps=1000,
        optim=dataclasses.replace(run.optim, lr=3e-6, eps=1e-5),
        checkpoint=Checkpoint(every=100),
        log=dataclasses.replace(run.log, every=4, validate_every=100),
    )


def translation_rl(init: str = "") -> Run:
    """Raise the expected GLEU and chrF of sampled translations (minimum risk training; Shen et al. 2016).

    Command: zoo train translation-rl --init runs/transformer-nano --data.paths train.jsonl --data.valid-paths valid.jsonl
    Hardware: 2 CPU cores, float32.
    Time: 2 to 3 minutes for a model of 1.5 million parameters, on a busy machine.
    Expect: greedy chrF2 50.1, 49.9, 49.8 from 48.8, BLEU 25.8, 25.2, 25.7 from 25.4 (Multi30k, three seeds).
    """
    # The paper minimizes the expected risk over a few samples of each source, with their probabilities renormalized; the
    # advantages of Dr. GRPO give the gradient of the expected reward without a bias. chrF2 counts recall more than precision:
    # with it alone, translations get longer and BLEU falls (docs/feedback-examples.md). GLEU has no such preference. At a
    # temperature of 0.5 samples are nearer to greedy translations, which have few of the unlikely words that 1 samples.
    functions = "train.rollouts.reward_functions"
    rewards = (f"{functions}:sentence_gleu", f"{functions}:sentence_chrf")
    options = PolicyGradientOptions(
        policy_gradient=PolicyGradientLoss(advantage="group", aggregation="limit"),
        # The sampler dispatches one token and then 16 at a time. A text without an end gets no reward.
        rollout=Rollout(reward=rewards, samples=8, tokens=33, missing_end=0.0, temperature=0.5),
        labelled=Prompts(skip_bad=True),
    )
    run = _rewards("translation-rl", init, options, size="transformer-nano")
    return dataclasses.replace(
        run,
        steps=200,
        data=dataclasses.replace(run.data, length=40),
        optim=dataclasses.replace(run.optim, lr=1e-4, b2=0.98),
    )


def _preferences(recipe: str, init: str, options: TokenOptions) -> Run:
    return _run(
        recipe,
        init,
        options,
        batch=16,
        steps=1_000,
        checkpoint=Checkpoint(every=200),
        log=Log(every=10, validate_every=100, validate_rows=256, samples=0),
    )


def _rewards(recipe: str, init: str, options: RolloutOptions, *, size: str = "gpt2") -> Run:
    return _run(
        recipe,
        init,
        options,
        size=size,
        batch=64,
        steps=500,
        checkpoint=Checkpoint(every=50),
        log=Log(every=5, validate_every=50, validate_rows=128, samples=0),
    )


def _run(recipe: str, init: str, options: TokenOptions, *, batch: int, size: str = "gpt2", **changes: Any) -> Run:
    """Return a run with the optimizer of TRL 1.16, whose rate is for models of GPT-2's sizes and above.

    Args:
        size: name of the model's size without `init`.
    """
    model = pretrained_config.read_generator_config(init) if init else configs.find_size(size)[1].config
    return Run(
        recipe=recipe,
        model=model,
        options=options,
        init=init,
        data=options.data(length=min(256, configs.longest_row(model) or 256), batch=batch),
        optim=Optim(lr=1e-6, warmup=0.1, schedule="linear", final=0.0, b2=0.999, weight_decay=0.0),
        **changes,
    )
