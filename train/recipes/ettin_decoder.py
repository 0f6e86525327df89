"""Recipes of Ettin's decoders."""

import dataclasses

from train.config.batch_sizes import linear_ramp
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


SOURCE = "Weller et al. 2025, and JHU-CLSP/ettin-encoder-vs-decoder 6cbf954a, pretraining/configs/standard/very_tiny"
NUMBERS = (
    "steps data.length data.batch optim.name optim.b1 optim.b2 optim.eps optim.lr optim.weight_decay optim.independent_decay "
    "optim.decayed optim.schedule optim.warmup model.global_base"
)
DECAY = f"{NUMBERS} optim.final optim.decay_steps optim.decay_shape"
TOKENIZER = {"section 3": "tokenizer.kind tokenizer.vocab"}
ASSUMED = {
    "the file does not pack documents into rows": "data.rows",
    "no clipping beside that of the optimizer": "optim.clip",
    "the file drops 0.1 of the outputs of attention, attention_dropout also its weights": "model.attention_dropout",
}


@provenance(
    "ettin-decoder-17m",
    SOURCE,
    published={"decoder_very_tiny.yaml": NUMBERS, **TOKENIZER},
    assumed={
        "as in the file, which begins with the rows of a micro-batch, here on 4 GPUs, and grows by them": "data.ramp",
        **ASSUMED,
    },
)
def ettin_decoder_17m() -> Run:
    """Train the smallest Ettin decoder from scratch on your own text: its first phase, in packed rows.

    Command: zoo train ettin-decoder-17m --data.paths corpus.jsonl --tokenizer.path FOLDER_WITH_ETTIN_TOKENIZER_JSON
    Hardware: meant for accelerators; it was trained on four H100 for 6 days (pretraining/README.md).
    Time: not measured (no such hardware available).
    Expect: not measured. The next phases: --phases ettin-decoder-17m-context ettin-decoder-17m-decay.
    """
    data = CausalData(length=1_024, batch=4_608, ramp=linear_ramp(576, 4_608, 125 * 10**9, unit=576), rows="packed")
    run = _published("ettin-decoder-17m", data, data.steps_of(1_700e9), lr=3e-3)
    # All rotations have the base 10,000, and the first 4 billion tokens warm up.
    model = dataclasses.replace(run.model, global_base=10_000.0)
    return dataclasses.replace(run, model=model, optim=dataclasses.replace(run.optim, warmup=data.steps_of(4e9)))


@provenance(
    "ettin-decoder-17m",
    SOURCE,
    published={"de_decay/decoder_very_tiny.yaml": DECAY, **TOKENIZER},
    assumed=ASSUMED,
    is_typical=False,
)
def ettin_decoder_17m_context(init: str = "") -> Run:
    """Train the second phase of the smallest Ettin decoder: 250 billion tokens in rows of 7,999, from a run of the first.

    Command: zoo train ettin-decoder-17m-context --init runs/ettin-decoder-17m --data.paths corpus.jsonl
    Hardware: meant for accelerators: a step is 37 million tokens; with --accumulate it fits on fewer.
    Time: not measured (no such hardware available).
    Expect: not measured. The source continues the moments of the first phase, and --init begins with new ones.
    """
    run = _published("ettin-decoder-17m-context", LONG, 6_783, lr=3e-3, final=0.5)
    return dataclasses.replace(run, init=init, init_positions="recompute") if init else run


@provenance(
    "ettin-decoder-17m",
    SOURCE,
    published={"prolong_decay/decoder_very_tiny.yaml": DECAY, **TOKENIZER},
    assumed=ASSUMED,
    is_typical=False,
)
def ettin_decoder_17m_decay() -> Run:
    """Train the third phase of the smallest Ettin decoder: 50 billion tokens with a decaying rate, from a run of the second.

    Command: zoo train ettin-decoder-17m-decay --init runs/ettin-decoder-17m-context --data.paths corpus.jsonl
    Hardware: meant for accelerators: a step is 37 million tokens; with --accumulate it fits on fewer.
    Time: not measured (no such hardware available).
    Expect: not measured. The source continues the moments of the second phase, and --init begins with new ones.
    """
    return _published("ettin-decoder-17m-decay", LONG, 1_357, lr=1.5e-3, final=0.04)


LONG = CausalData(length=7_999, batch=4_608, rows="packed")


def _published(recipe: str, data: CausalData, steps: int, *, lr: float, final: float = 0.0) -> Run:
    """Return a phase of the smallest decoder.

    Args:
        final: the rate at the end of a decay over all steps, relative to the first; 0 = the rate is constant.
    """
    model = configs.find_size("ettin-decoder-17m")[1].config
    optim = Optim(
        name="stable_adamw",
        lr=lr,
        warmup=0,
        schedule="constant",
        b2=0.98,
        eps=1e-6,
        weight_decay=3e-4,
        independent_decay=True,
        clip=0.0,
    )
    if final:
        optim = dataclasses.replace(optim, schedule="wsd", decay_shape="sqrt", decay_steps=steps, final=final)
    return Run(
        recipe=recipe,
        model=model,
        steps=steps,
        # A chunk divides the rows.
        options=CausalOptions(loss_chunk=421 if data.length % 128 else 128),
        data=data,
        tokenizer=Tokenizer(kind="modernbert", vocab=model.vocab),
        optim=optim,
        accumulate=8,
        checkpoint=Checkpoint(every=2_000),
        log=Log(every=10, validate_every=5_000, validate_rows=1_024),
    )
