"""Recipes of the gpt-oss family."""

import dataclasses

from train.config.data_options import CausalData
from train.config.objectives import CausalOptions
from train.config.run_config import Checkpoint, Log, Mesh, Optim, Run, Tokenizer
from zoo import configs
from zoo.configs import Compute


def gpt_oss_nano() -> Run:
    """Train a gpt-oss of 5.5 million parameters, of which 2.1 million are active, on Moby-Dick, in minutes on a laptop.

    Command: zoo train gpt-oss-nano
    Hardware: 2 CPU cores, float32.
    Time: 100 seconds at 488 GFLOP/s of float32 matrix products.
    Expect: 2.21 bits per byte on the held-out chapters.
    """
    model = configs.find_size("gpt-oss-nano")[1].config
    return Run(
        recipe="gpt-oss-nano",
        # With four unrolled layers, the residuals of the backward pass need not be stacked.
        model=dataclasses.replace(model, compute=Compute(unroll=2)),
        steps=120,
        options=CausalOptions(),
        data=CausalData(length=model.context, batch=16),
        tokenizer=Tokenizer(vocab=model.vocab),
        optim=Optim(name="muon", lr=3e-3, warmup=20, final=0.05, b2=0.99),
        checkpoint=Checkpoint(every=50),
        log=Log(every=10, validate_every=50),
    )


def gpt_oss_20b() -> Run:
    """Train gpt-oss-20b from scratch on your own text. For planning: how it was trained is not published.

    Command: zoo train gpt-oss-20b --data.paths corpus.jsonl --tokenizer.path FOLDER_WITH_TOKENIZER_JSON
    Hardware: 64 accelerators of 80 GB or more, fsdp 16 x expert 4.
    Time: not measured (no such hardware available).
    Expect: not measured. No loss on a public corpus is published.
    """
    return _released("gpt-oss-20b", Mesh(fsdp=16, expert=4), accumulate=8)


def gpt_oss_120b() -> Run:
    """Train gpt-oss-120b from scratch on your own text. For planning: how it was trained is not published.

    Command: zoo train gpt-oss-120b --data.paths corpus.jsonl --tokenizer.path FOLDER_WITH_TOKENIZER_JSON
    Hardware: 256 accelerators of 80 GB or more, fsdp 32 x expert 8.
    Time: not measured (no such hardware available).
    Expect: not measured. No loss on a public corpus is published.
    """
    return _released("gpt-oss-120b", Mesh(fsdp=32, expert=8), accumulate=2)


def _released(name: str, mesh: Mesh, accumulate: int) -> Run:
    """Return a run of a released size with rows of 4,096 tokens, the context before its rotations are scaled.

    Args:
        accumulate: number of micro-batches, such that a device has one row at a time.
    """
    model = configs.find_size(name)[1].config
    return Run(
        recipe=name,
        # Before the context was extended, rotations were not scaled; the factor of the router's loss is that of `transformers`.
        model=dataclasses.replace(model, scaling_factor=1.0, context=4096, router_loss=0.001, compute=Compute(remat="full")),
        steps=500_000,
        precision="bfloat16",
        options=CausalOptions(loss_chunk=128),
        data=CausalData(length=4096, batch=512),
        tokenizer=Tokenizer(vocab=model.vocab),
        optim=Optim(lr=2e-4, warmup=2_000, final=0.1, b2=0.95, weight_decay=0.1),
        mesh=mesh,
        accumulate=accumulate,
        checkpoint=Checkpoint(every=1_000),
        log=Log(every=10, validate_every=1_000, validate_rows=1_024),
    )
