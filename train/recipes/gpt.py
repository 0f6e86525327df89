"""Recipes of the GPT family."""

import dataclasses

from train.config.batch_sizes import linear_ramp
from train.config.data_options import CausalData
from train.config.objectives import CausalOptions
from train.config.provenance import provenance
from train.config.run_config import Checkpoint, Log, Mesh, Optim, Run, Tokenizer
from zoo import configs
from zoo.configs import Compute


def gpt_nano() -> Run:
    """Train a GPT of 2.6 million parameters on Moby-Dick, in minutes on a laptop.

    Command: zoo train gpt-nano
    Hardware: 2 CPU cores, float32.
    Time: 4 minutes, of which 2 to 2.30 bits per byte.
    Expect: 2.19 bits per byte on the held-out chapters (xz -9 needs 2.54 for the last tenth of the book after the rest).
    """
    model = configs.find_size("gpt-nano")[1].config
    return Run(
        recipe="gpt-nano",
        # With four unrolled layers, the residuals of the backward pass need not be stacked.
        model=dataclasses.replace(model, compute=Compute(unroll=4)),
        steps=200,
        options=CausalOptions(),
        data=CausalData(length=model.context, batch=16),
        tokenizer=Tokenizer(vocab=model.vocab),
        optim=Optim(name="muon", lr=3e-3, warmup=20, final=0.05, b2=0.99),
        checkpoint=Checkpoint(every=50),
        log=Log(every=10, validate_every=50),
    )


@provenance(
    "gpt2",
    "karpathy/nanoGPT, config/train_gpt2.py",
    published={
        "train_gpt2.py and train.py": "steps data.length optim.name optim.lr optim.schedule optim.warmup optim.b1 "
        "optim.b2 optim.weight_decay optim.clip optim.final model.dropout model.embedding_dropout model.attention_dropout",
        "Radford et al. 2019, section 2.2": "tokenizer.kind tokenizer.vocab",
    },
    assumed={
        "half a million tokens; the file has 480 rows, which fewer meshes divide": "data.batch",
        "the decay of the code applies to all arrays of two dimensions": "optim.decayed",
    },
)
def gpt2() -> Run:
    """Train GPT-2 small (124M) from scratch on your own text with nanoGPT's numbers: GPT-2's own are not published.

    Command: zoo train gpt2 --data.paths corpus.jsonl --tokenizer.path FOLDER_WITH_GPT2_TOKENIZER_JSON
    Hardware: meant for 8 accelerators of 80 GB; with --accumulate it fits on fewer, with the same steps.
    Time: not measured (no such hardware available). 315 billion tokens of 855 MFLOP: about a day for 8 H100 at 40 % of peak.
    Expect: not measured. nanoGPT's README gives 2.85 nats held out for this shape and budget on OpenWebText.
    """
    model = configs.find_size("gpt2")[1].config
    return Run(
        recipe="gpt2",
        # For text that is seen less than twice, dropout harms more than it helps (nanoGPT trains without it).
        model=dataclasses.replace(model, dropout=0.0, embedding_dropout=0.0, attention_dropout=0.0),
        steps=600_000,
        options=CausalOptions(loss_chunk=128),
        data=CausalData(length=model.context, batch=512),
        tokenizer=Tokenizer(vocab=model.vocab),
        optim=Optim(lr=6e-4, warmup=2_000, final=0.1, b2=0.95),
        accumulate=4,
        checkpoint=Checkpoint(every=1_000),
        log=Log(every=10, validate_every=1_000, validate_rows=1_024),
    )


GPT3 = "Brown et al. 2020"
GPT3_NUMBERS = {
    "appendix B": "optim.name optim.b1 optim.b2 optim.eps optim.clip optim.schedule optim.warmup optim.final optim.decay_steps "
    "optim.weight_decay steps",
    "table 2.1": "optim.lr data.length tokenizer.vocab",
    "section 2.1": "tokenizer.kind",
}
GPT3_ASSUMED = {"about the batch of table 2.1": "data.batch"}


@provenance(
    "gpt3-small",
    GPT3,
    published=GPT3_NUMBERS,
    assumed={**GPT3_ASSUMED, "as published, over the least of 4 to 12 billion tokens, in steps of 16 rows": "data.ramp"},
    is_typical=False,
)
def gpt3_small() -> Run:
    """Train GPT-3 small (125M) as published (Brown et al. 2020, table 2.1 and appendix B), with its ramp of the batch.

    Command: zoo train gpt3-small --data.paths corpus.jsonl --tokenizer.path FOLDER_WITH_GPT2_TOKENIZER_JSON
    Hardware: meant for 8 accelerators of 80 GB; with --accumulate it fits on fewer, with the same steps.
    Time: not measured (no such hardware available).
    Expect: not measured. The paper prints no loss on a public corpus.
    """
    model = configs.find_size("gpt3-small")[1].config
    # From 32,768 to 524,288 tokens.
    data = CausalData(length=model.context, batch=256, ramp=linear_ramp(16, 256, 4 * 10**9, unit=16))
    return Run(
        recipe="gpt3-small",
        model=model,
        steps=data.steps_of(300e9),
        options=CausalOptions(loss_chunk=128),
        data=data,
        tokenizer=Tokenizer(vocab=model.vocab),
        optim=_gpt3_optim(data, 6e-4),
        accumulate=2,
        checkpoint=Checkpoint(every=1_000),
        log=Log(every=10, validate_every=1_000, validate_rows=1_024),
    )


@provenance(
    "gpt3-175b",
    GPT3,
    published=GPT3_NUMBERS,
    assumed={
        **GPT3_ASSUMED,
        "as published, over the most of 4 to 12 billion tokens, in steps of 128 rows; the mesh does not divide the first 16": (
            "data.ramp"
        ),
    },
)
def gpt3_175b() -> Run:
    """Train GPT-3 175B as published (Brown et al. 2020, appendix B), from a batch of 128 rows and not of 16. For planning.

    Command: zoo train gpt3-175b --data.paths corpus.jsonl
    Hardware: 512 accelerators of 80 GB or more, fsdp 64 x tensor 8.
    Time: not measured (no such hardware available). 314 ZFLOP (6 x parameters x tokens): 18 days for 512 H100 at 40 % of peak.
    Expect: not measured. The paper prints no loss on a public corpus.
    """
    model = configs.find_size("gpt3-175b")[1].config
    # Up to 3.1 million tokens.
    data = CausalData(length=model.context, batch=1_536, ramp=linear_ramp(16, 1_536, 12 * 10**9, unit=128))
    return Run(
        recipe="gpt3-175b",
        model=dataclasses.replace(model, compute=Compute(remat="full")),
        steps=data.steps_of(300e9),
        precision="bfloat16",
        options=CausalOptions(loss_chunk=128),
        data=data,
        tokenizer=Tokenizer(vocab=model.vocab),
        optim=_gpt3_optim(data, 6e-5),
        mesh=Mesh(fsdp=64, tensor=8),
        accumulate=12,
        checkpoint=Checkpoint(every=500),
        log=Log(every=1, validate_every=500, validate_rows=4_096),
    )


def _gpt3_optim(data: CausalData, lr: float) -> Optim:
    """Return the optimizer of GPT-3: 375 million tokens of warm-up, and a decay that ends at 260 billion, both in steps."""
    warmup = data.steps_of(375e6)
    decay = data.steps_of(260e9) - warmup
    return Optim(lr=lr, warmup=warmup, decay_steps=decay, final=0.1, b2=0.95, weight_decay=0.1)
