"""Recipes of Ettin's decoders."""

import dataclasses

from train.config.data_options import CausalData
from train.config.objectives import CausalOptions
from train.config.provenance import provenance
from train.config.run_config import Checkpoint, Log, Optim, Run, Tokenizer
from zoo import configs


def ettin_decoder_nano() -> Run:
    """Train an Ettin decoder of 2.3 million parameters on Moby-Dick, in minutes on a laptop.

    Command: zoo train ettin-decoder-nano
    Hardware: 2 CPU cores, float32.
    Time: 76 seconds at 488 GFLOP/s of float32 matrix products.
    Expect: 2.28 bits per byte on the held-out chapters.
    """
    model = configs.find_size("ettin-decoder-nano")[1].config
    return Run(
        recipe="ettin-decoder-nano",
        model=model,
        steps=120,
        options=CausalOptions(),
        data=CausalData(length=model.context, batch=16),
        tokenizer=Tokenizer(kind="modernbert", vocab=model.vocab),
        optim=Optim(name="muon", lr=3e-3, warmup=20, final=0.05, b2=0.99),
        checkpoint=Checkpoint(every=50),
        log=Log(every=10, validate_every=50),
    )


@provenance(
    "ettin-decoder-17m",
    "Weller et al. 2025, and JHU-CLSP/ettin-encoder-vs-decoder 6cbf954a, pretraining/configs/standard",
    published={
        "very_tiny/decoder_very_tiny.yaml": "steps data.length data.batch optim.name optim.b1 optim.b2 optim.eps "
        "optim.lr optim.weight_decay optim.independent_decay optim.decayed optim.schedule optim.warmup model.global_base",
        "section 3": "tokenizer.kind tokenizer.vocab",
    },
    assumed={
        "the file begins with smaller batches, up to 125 billion tokens, which are not built": "data.batch",
        "the file does not pack documents into rows": "data.rows",
        "no clipping beside that of the optimizer": "optim.clip",
        "the file drops 0.1 of the outputs of attention, attention_dropout also its weights": "model.attention_dropout",
    },
)
def ettin_decoder_17m() -> Run:
    """Train the smallest Ettin decoder from scratch on your own text: its first phase, with the full batch, in packed rows.

    Command: zoo train ettin-decoder-17m --data.paths corpus.jsonl --tokenizer.path FOLDER_WITH_ETTIN_TOKENIZER_JSON
    Hardware: meant for accelerators; it was trained on four H100 for 6 days (pretraining/README.md).
    Time: not measured (no such hardware available).
    Expect: not measured. Numbers: configs/standard/very_tiny/decoder_very_tiny.yaml; all rotations there have the base 10,000.
    """
    model = configs.find_size("ettin-decoder-17m")[1].config
    return Run(
        recipe="ettin-decoder-17m",
        model=dataclasses.replace(model, global_base=10_000.0),
        # 1.7 trillion tokens, 4.7 million per step; the first 4 billion warm up.
        steps=360_277,
        options=CausalOptions(loss_chunk=128),
        data=CausalData(length=1_024, batch=4_608, rows="packed"),
        tokenizer=Tokenizer(kind="modernbert", vocab=model.vocab),
        optim=Optim(
            name="stable_adamw",
            lr=3e-3,
            warmup=848,
            schedule="constant",
            b2=0.98,
            eps=1e-6,
            weight_decay=3e-4,
            independent_decay=True,
            clip=0.0,
        ),
        accumulate=16,
        checkpoint=Checkpoint(every=2_000),
        log=Log(every=10, validate_every=5_000, validate_rows=1_024),
    )
