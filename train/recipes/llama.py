"""Recipes of the Llama family."""

import dataclasses

from train.config.data_options import CausalData
from train.config.objectives import CausalOptions
from train.config.provenance import provenance
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


SMOLLM = "huggingface/smollm a0417598, text/pretraining"
SMOLLM_NUMBERS = (
    "steps data.length data.batch optim.name optim.b1 optim.b2 optim.eps optim.lr optim.weight_decay optim.clip optim.schedule "
    "optim.warmup optim.decay_steps optim.decay_shape optim.final tokenizer.kind tokenizer.vocab"
)


@provenance("smollm2-135m", SMOLLM, published={"smollm2/config_smollm2_135M.yaml": SMOLLM_NUMBERS})
def smollm2_135m() -> Run:
    """Train SmolLM2 135M from scratch on your own text, as published: two trillion tokens, a million per step.

    Command: zoo train smollm2-135m --data.paths corpus.jsonl --tokenizer.path FOLDER_WITH_SMOLLM2_TOKENIZER_JSON
    Hardware: meant for 8 accelerators of 80 GB; with --accumulate it fits on fewer, with the same steps.
    Time: not measured (no such hardware available).
    Expect: not measured.
    """
    return _smollm("smollm2-135m", 2_000_000, 512, lr=3e-3, decay=400_000)


@provenance("smollm2-360m", SMOLLM, published={"smollm2/config_smollm2_360M.yaml": SMOLLM_NUMBERS}, is_typical=False)
def smollm2_360m() -> Run:
    """Train SmolLM2 360M from scratch on your own text, as published: four trillion tokens, 1.6 million per step.

    Command: zoo train smollm2-360m --data.paths corpus.jsonl --tokenizer.path FOLDER_WITH_SMOLLM2_TOKENIZER_JSON
    Hardware: meant for accelerators; with --accumulate it fits on fewer, with the same steps.
    Time: not measured (no such hardware available).
    Expect: not measured.
    """
    return _smollm("smollm2-360m", 2_600_000, 768, lr=3e-3, decay=520_000)


@provenance("smollm2-1.7b", SMOLLM, published={"smollm2/config_smollm2_1B.yaml": SMOLLM_NUMBERS}, is_typical=False)
def smollm2_1_7b() -> Run:
    """Train SmolLM2 1.7B from scratch on your own text, as published: eleven trillion tokens, two million per step.

    Command: zoo train smollm2-1-7b --data.paths corpus.jsonl --tokenizer.path FOLDER_WITH_SMOLLM2_TOKENIZER_JSON
    Hardware: meant for accelerators; it was trained on 256.
    Time: not measured (no such hardware available).
    Expect: not measured.
    """
    return _smollm("smollm2-1.7b", 5_240_000, 1_024, lr=5e-4, decay=524_000)


@provenance(
    "smollm3-3b",
    SMOLLM,
    published={"smollm3/stage1_8T.yaml and the README": f"{SMOLLM_NUMBERS} optim.decayed model.base model.context"},
    is_typical=False,
)
def smollm3_3b() -> Run:
    """Train SmolLM3 3B on rows of 4,096 tokens, as published: its main phase, before longer rows. For planning.

    Command: zoo train smollm3-3b --data.paths corpus.jsonl --tokenizer.path FOLDER_WITH_SMOLLM3_TOKENIZER_JSON
    Hardware: 384 accelerators of 80 GB; it was trained on 384 H100 for 24 days.
    Time: not measured (no such hardware available).
    Expect: not measured.
    """
    run = _smollm("smollm3-3b", 4_720_000, 576, lr=2e-4, decay=522_000, length=4_096)
    model = dataclasses.replace(run.model, context=4_096, base=50_000.0, compute=Compute(remat="full"))
    optim = dataclasses.replace(run.optim, weight_decay=0.1, decayed="kernels")
    return dataclasses.replace(run, model=model, optim=optim, precision="bfloat16", mesh=Mesh(fsdp=192, tensor=2), accumulate=3)


def _smollm(size: str, steps: int, batch: int, *, lr: float, decay: int, length: int = 2_048) -> Run:
    model = configs.find_size(size)[1].config
    return Run(
        recipe=size.replace(".", "-"),
        model=model,
        steps=steps,
        options=CausalOptions(loss_chunk=128),
        data=CausalData(length=length, batch=batch),
        tokenizer=Tokenizer(vocab=model.vocab),
        optim=Optim(lr=lr, warmup=2_000, schedule="wsd", decay_steps=decay, final=0.0, b2=0.95, weight_decay=0.01),
        accumulate=4,
        checkpoint=Checkpoint(every=2_000),
        log=Log(every=10, validate_every=2_000, validate_rows=1_024),
    )


@provenance(
    "llama-3.1-8b",
    "Llama Team 2024",
    published={
        "table 3": "optim.lr",
        "section 3.4.1": "optim.name optim.schedule",
        "section 3.2": "tokenizer.vocab",
    },
    assumed={
        "those of 405B, whose first batches have twice the rows of 4,096 tokens": "data.batch data.ramp data.length",
        "those of 405B": "optim.warmup optim.final",
        "15 trillion tokens": "steps",
        "as in Llama 2 (Touvron et al. 2023, section 2.2)": "optim.b1 optim.b2 optim.weight_decay optim.clip",
        "the rotations of rows of 8,192 tokens, before those of longer ones": "model.context model.scaling model.scaling_factor",
    },
)
def llama3_8b() -> Run:
    """Train Llama 3.1 8B at its rate, with the batch, rows and schedule of 405B (Llama Team 2024, section 3.4). For planning.

    Command: zoo train llama3-8b --data.paths corpus.jsonl --tokenizer.path FOLDER_WITH_LLAMA_3_TOKENIZER_JSON
    Hardware: 512 accelerators of 80 GB or more, fsdp 512.
    Time: not measured (no such hardware available). 723 ZFLOP (6 x parameters x tokens): 42 days for 512 H100 at 40 % of peak.
    Expect: not measured. The rate is that of table 3; the batches, of 4, 8 and 16 million tokens, are the paper's for 405B.
    """
    model = configs.find_size("llama-3.1-8b")[1].config
    data = CausalData(length=8_192, batch=2_048, ramp=("512@252e6", "1024@2.87e12"))
    return Run(
        recipe="llama3-8b",
        model=dataclasses.replace(model, context=8_192, scaling="none", scaling_factor=1.0, compute=Compute(remat="full")),
        steps=data.steps_of(15e12),
        precision="bfloat16",
        options=CausalOptions(loss_chunk=128),
        data=data,
        tokenizer=Tokenizer(vocab=model.vocab),
        optim=Optim(lr=3e-4, warmup=8_000, final=0.01, b2=0.95, weight_decay=0.1),
        mesh=Mesh(fsdp=512),
        accumulate=4,
        checkpoint=Checkpoint(every=1_000),
        log=Log(every=1, validate_every=1_000, validate_rows=4_096),
    )
