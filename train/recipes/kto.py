"""Recipe of Kahneman-Tversky optimization (Ethayarajh et al. 2024), of a model that already writes."""

from train.config.data_options import PreferenceData
from train.config.objectives import KtoOptions
from train.config.run_config import Checkpoint, Log, Optim, Run
from train.weights import pretrained_config
from zoo import configs
from zoo.configs import longest_row


def kto(init: str = "") -> Run:
    """Learn from single answers that were labelled as desired or not, from the model of --init, which is also the reference.

    Command: zoo train kto --init DIR --data.paths answers.jsonl
    Hardware: 2 CPU cores, float32.
    Time: not measured.
    Expect: not measured. A small model needs a larger rate, such as --optim.lr 1e-4.
    """
    model = pretrained_config.read_model_config(init) if init else configs.find_size("gpt2")[1].config
    return Run(
        recipe="kto",
        model=model,
        options=KtoOptions(),
        init=init,
        steps=1_000,
        data=PreferenceData(length=min(256, longest_row(model) or 256), batch=16),
        # The rate is that of TRL 1.16.
        optim=Optim(lr=1e-6, warmup=0.1, schedule="linear", final=0.0, b2=0.999, weight_decay=0.0),
        checkpoint=Checkpoint(every=200),
        log=Log(every=10, validate_every=100, validate_rows=256, samples=0),
    )
