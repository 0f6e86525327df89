"""Recipes of learning from preferences without a reward model, for a model that already generates text."""

from train.config.data_options import PreferenceData
from train.config.objectives import DpoOptions, KtoOptions, TokenOptions
from train.config.run_config import Checkpoint, Log, Optim, Run
from train.weights import pretrained_config
from zoo import configs
from zoo.configs import longest_row


def dpo(init: str = "") -> Run:
    """Learn which of two answers was preferred (Rafailov et al. 2023). The model of --init is also the reference.

    Command: zoo train dpo --init DIR --data.paths pairs.jsonl
    Hardware: 2 CPU cores, float32.
    Time: 5 minutes for 300 steps of 32 pairs of 32 tokens, on one core of a busy machine.
    Expect: 77.5, 75.7, 77.5 % of held-out pairs of BLiMP (50 % before), gpt-nano, --optim.lr 2e-4, those steps, three seeds.
    """
    return _run("dpo", init, DpoOptions())


def kto(init: str = "") -> Run:
    """Learn from single answers that were labelled as desired or not (Ethayarajh et al. 2024). --init is also the reference.

    Command: zoo train kto --init DIR --data.paths answers.jsonl
    Hardware: 2 CPU cores, float32.
    Time: not measured.
    Expect: not measured. A small model needs a larger rate, such as --optim.lr 1e-4.
    """
    return _run("kto", init, KtoOptions())


def _run(recipe: str, init: str, options: TokenOptions) -> Run:
    model = pretrained_config.read_model_config(init) if init else configs.find_size("gpt2")[1].config
    return Run(
        recipe=recipe,
        model=model,
        options=options,
        init=init,
        steps=1_000,
        data=PreferenceData(length=min(256, longest_row(model) or 256), batch=16),
        # The rate is that of TRL 1.16.
        optim=Optim(lr=1e-6, warmup=0.1, schedule="linear", final=0.0, b2=0.999, weight_decay=0.0),
        checkpoint=Checkpoint(every=200),
        log=Log(every=10, validate_every=100, validate_rows=256, samples=0),
    )
