"""Recipes of nanochat."""

from train.config.data_options import CausalData
from train.config.objectives import CausalOptions
from train.config.provenance import provenance
from train.config.run_config import Checkpoint, Log, Optim, Run, Tokenizer
from zoo import configs


def nanochat_nano() -> Run:
    """Train a nanochat model of 3.3 million parameters on Moby-Dick, in minutes on a laptop.

    Command: zoo train nanochat-nano
    Hardware: 2 CPU cores, float32.
    Time: 80 seconds at 311 GFLOP/s of float32 matrix products.
    Expect: 2.23 bits per byte on the held-out chapters.
    """
    model = configs.find_size("nanochat-nano")[1].config
    return Run(
        recipe="nanochat-nano",
        model=model,
        steps=120,
        options=CausalOptions(),
        data=CausalData(length=model.context, batch=16),
        tokenizer=Tokenizer(vocab=model.vocab),
        optim=Optim(name="muon", lr=3e-3, warmup=20, final=0.05, b2=0.99),
        checkpoint=Checkpoint(every=50),
        log=Log(every=10, validate_every=50),
    )


@provenance(
    "nanochat-d20",
    "karpathy/nanochat b8076dd, speedrun.sh, scripts/base_train.py and nanochat/gpt.py",
    published={
        "scripts/base_train.py": "steps data.length data.batch optim.name optim.lr optim.schedule optim.warmup optim.decay_steps "
        "optim.decay_shape optim.final optim.clip optim.weight_decay",
        "nanochat/gpt.py": "optim.b1 optim.b2 optim.eps optim.rates",
        "nanochat/muon.py": "optim.muon_scale",
        "speedrun.sh": "tokenizer.vocab",
    },
    assumed={
        "the code goes from 0.85 to it in the first 300 steps": "optim.momentum",
        "byte-level pairs as in the code, whose pattern cuts numbers after two digits": "tokenizer.kind",
        "the code cuts a stream of documents into windows of random shards": "data.rows",
    },
)
def nanochat_d20() -> Run:
    """Train nanochat's d20 (561M) from scratch on your own text, with Muon's momentum at its final value from the first step.

    Command: zoo train nanochat-d20 --data.paths corpus.jsonl --tokenizer.path FOLDER_WITH_NANOCHAT_TOKENIZER_JSON
    Hardware: 8 accelerators of 80 GB; with --accumulate it fits on fewer, with the same steps.
    Time: not measured (no such hardware available). The source trains it on eight H100 in about three hours.
    Expect: not measured.
    """
    model = configs.find_size("nanochat-d20")[1].config
    # AdamW's rates are 0.2 and 0.004 times (width / 768)^(-1/2); those of the matrices are 0.02.
    adam = (model.width / 768) ** -0.5 / 0.02
    return Run(
        recipe="nanochat-d20",
        model=model,
        # 20 tokens for each parameter.
        steps=21_400,
        precision="bfloat16",
        options=CausalOptions(loss_chunk=128),
        data=CausalData(length=2_048, batch=256),
        tokenizer=Tokenizer(vocab=model.vocab),
        optim=Optim(
            name="muon",
            muon_scale="released",
            lr=0.02,
            rates=(f"^embed/={0.2 * adam:.9f}", f"^unembed/={0.004 * adam:.9f}"),
            schedule="wsd",
            warmup=0,
            decay_steps=0.2,
            final=0.0,
            b1=0.8,
            b2=0.95,
            eps=1e-10,
            weight_decay=0.0,
        ),
        checkpoint=Checkpoint(every=1_000),
        log=Log(every=10, validate_every=250, validate_rows=1_024),
    )
