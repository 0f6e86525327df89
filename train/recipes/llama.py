"""Recipes of the Llama family."""

import dataclasses

from train.config.data_options import CausalData
from train.config.objectives import CausalOptions
from train.config.run_config import Checkpoint, Log, Mesh, Optim, Run, Tokenizer
from zoo import configs
from zoo.configs import Compute


def llama_nano() -> Run:
    """Train a Llama of 2.4 million parameters on Moby-Dick, in minutes on a laptop.

    Command: zoo train llama-nano
    Hardware: 2 CPU cores, float32.
    Time: 58 seconds at 488 GFLOP/s of float32 matrix products.
    Expect: 2.27 bits per byte on the held-out chapters; 2.10 with --steps 200, in 88 seconds.
    """
    model = configs.find_size("llama-nano")[1].config
    return Run(
        recipe="llama-nano",
        # With four unrolled layers, the residuals of the backward pass need not be stacked.
        model=dataclasses.replace(model, compute=Compute(unroll=4)),
        steps=120,
        options=CausalOptions(),
        data=CausalData(length=model.context, batch=16),
        tokenizer=Tokenizer(vocab=model.vocab),
        optim=Optim(name="muon", lr=3e-3, warmup=20, final=0.05, b2=0.99),
        checkpoint=Checkpoint(every=50),
        log=Log(every=10, validate_every=50),
    )


def smollm2_135m() -> Run:
    """Train SmolLM2 135M from scratch on your own text, with the rate and the million tokens per step of SmolLM1 of this shape.

    Command: zoo train smollm2-135m --data.paths corpus.jsonl --tokenizer.path FOLDER_WITH_SMOLLM2_TOKENIZER_JSON
    Hardware: meant for 8 accelerators of 80 GB; with --accumulate it fits on fewer, with the same steps.
    Time: not measured (no such hardware available).
    Expect: not measured. As in huggingface/smollm, config_smollm1_135M.yaml, without the linear decay of its last fifth.
    """
    model = configs.find_size("smollm2-135m")[1].config
    return Run(
        recipe="smollm2-135m",
        model=model,
        steps=2_000_000,
        options=CausalOptions(loss_chunk=128),
        data=CausalData(length=2_048, batch=512),
        tokenizer=Tokenizer(vocab=model.vocab),
        optim=Optim(lr=3e-3, warmup=2_000, schedule="constant", b2=0.95, weight_decay=0.01),
        accumulate=4,
        checkpoint=Checkpoint(every=2_000),
        log=Log(every=10, validate_every=2_000, validate_rows=1_024),
    )


def llama3_8b() -> Run:
    """Train Llama 3.1 8B on rows of 8,192 tokens, as before its longer rows (Llama Team 2024, section 3.4). For planning.

    Command: zoo train llama3-8b --data.paths corpus.jsonl --tokenizer.path FOLDER_WITH_LLAMA_3_TOKENIZER_JSON
    Hardware: 512 accelerators of 80 GB or more, fsdp 512.
    Time: not measured (no such hardware available). 723 ZFLOP (6 x parameters x tokens): 42 days for 512 H100 at 40 % of peak.
    Expect: not measured. The rate is that of table 3; the batch is the paper's for 405B, whose smaller first ones are left out.
    """
    model = configs.find_size("llama-3.1-8b")[1].config
    return Run(
        recipe="llama3-8b",
        model=dataclasses.replace(model, context=8_192, scaling="none", scaling_factor=1.0, compute=Compute(remat="full")),
        # 15 trillion tokens, 8.4 million per step.
        steps=1_788_000,
        precision="bfloat16",
        options=CausalOptions(loss_chunk=128),
        data=CausalData(length=8_192, batch=1_024),
        tokenizer=Tokenizer(vocab=model.vocab),
        optim=Optim(lr=3e-4, warmup=8_000, final=0.01, b2=0.95, weight_decay=0.1),
        mesh=Mesh(fsdp=512),
        accumulate=2,
        checkpoint=Checkpoint(every=1_000),
        log=Log(every=1, validate_every=1_000, validate_rows=4_096),
    )
