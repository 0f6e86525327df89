"""The recipe of reward models, for every family: the body is that of `--init`, and the reward head is new."""

import dataclasses

from train.config.data_options import PreferenceData
from train.config.objectives import PreferenceOptions
from train.config.run_config import Checkpoint, Log, Optim, Run
from train.weights import pretrained_config
from zoo import configs


def reward_model(init: str = "") -> Run:
    """Score texts so that the chosen completion of a prompt scores higher than the rejected one; dropout is off.

    Command: zoo train reward-model --init DIR --data.paths pairs.jsonl
    Hardware: 2 CPU cores, float32.
    Time: 4 minutes for 300 steps of 32 pairs of 32 tokens, on one core of a busy machine.
    Expect: 76.8, 76.0, 75.6 % of held-out pairs of BLiMP, gpt-nano, --optim.lr 3e-4, those steps, three seeds.
    """
    size = configs.find_size("gpt2")[1].config
    model = pretrained_config.with_score(init) if init else pretrained_config.as_score(size)
    # A family without learned positions has no `context`.
    length = min(256, getattr(model, "context", 256))
    return Run(
        recipe="reward-model",
        model=dataclasses.replace(model, compute=size.compute),
        options=PreferenceOptions(),
        init=init,
        steps=1_000,
        data=PreferenceData(length=length, batch=16),
        optim=Optim(lr=1e-4, warmup=100, schedule="linear", final=0.0, b2=0.999, weight_decay=0.0),
        checkpoint=Checkpoint(every=200),
        log=Log(every=10, validate_every=100, validate_rows=1_000, samples=0),
    )
