"""Recipes of the ModernBERT family."""

import dataclasses

from train.config.batch_sizes import linear_ramp
from train.config.data_options import EncoderData
from train.config.objectives import MaskedOptions
from train.config.option_groups import Masking
from train.config.provenance import provenance
from train.config.run_config import Checkpoint, Log, Optim, Run, Tokenizer
from zoo import configs

THIRD = Masking(rate=0.3)
"""ModernBERT and Ettin predict 30 % of the tokens (Warner et al. 2024, section 2.2.1)."""


def modernbert_nano() -> Run:
    """Train a ModernBERT of 2.3 million parameters on masked words of Moby-Dick, on a laptop.

    Command: zoo train modernbert-nano
    Hardware: 2 CPU cores, float32.
    Time: 2 minutes 20 seconds on a busy machine.
    Expect: 4.99 nats per held-out masked token (unigram baseline: 6.56), 25 % of them correct.
    """
    model = configs.find_size("modernbert-nano")[1].config
    return Run(
        recipe="modernbert-nano",
        model=model,
        options=MaskedOptions(masking=THIRD),
        steps=440,
        data=EncoderData(length=model.context, batch=16, rows="full_sentences"),
        tokenizer=Tokenizer(kind="modernbert", vocab=model.vocab),
        optim=Optim(lr=3e-3, warmup=64, schedule="linear", final=0.0, b2=0.98, eps=1e-6, weight_decay=0.01),
        checkpoint=Checkpoint(every=100),
        log=Log(every=10, validate_every=160, samples=0),
    )


SOURCE = "Warner et al. 2024, and AnswerDotAI/ModernBERT 0e9dbe6d, yamls/modernbert"
NUMBERS = (
    "steps data.length data.batch data.rows optim.name optim.b1 optim.b2 optim.eps optim.lr optim.weight_decay "
    "optim.independent_decay optim.decayed optim.schedule optim.warmup masking.rate model.global_base"
)
DECAY = f"{NUMBERS} optim.final optim.decay_steps optim.decay_shape"
TOKENIZER = {"section 2.1": "tokenizer.kind tokenizer.vocab"}
RAMP = "as in the file, which begins with the rows of a micro-batch, here on {} GPUs, and grows by them"
MASKS = {
    "as in BERT; the files do not say": "masking.masked masking.random",
    "no clipping beside that of the optimizer": "optim.clip",
    "the files drop 0.1 of the outputs of attention; attention_dropout would also drop its weights": "model.attention_dropout",
}


@provenance(
    "modernbert-base",
    SOURCE,
    published={"modernbert-base-pretrain.yaml": NUMBERS, **TOKENIZER},
    assumed={RAMP.format(8): "data.ramp", **MASKS},
)
def modernbert_base() -> Run:
    """Train ModernBERT base from scratch on your own text: the first phase, 1.7 trillion tokens in rows of 1,024.

    Command: zoo train modernbert-base --data.paths corpus.jsonl --tokenizer.path FOLDER_WITH_MODERNBERT_TOKENIZER_JSON
    Hardware: meant for many accelerators: a step is 4.7 million tokens; with --accumulate it fits on fewer.
    Time: not measured (no such hardware available).
    Expect: not measured. The next phases: --phases modernbert-base-context modernbert-base-decay.
    """
    return _first_phase("modernbert-base", "modernbert-base", 1_719e9, 4_608, lr=8e-4, warmup=3e9, ramp=50 * 10**9, unit=768)


@provenance(
    "modernbert-base",
    SOURCE,
    published={"modernbert-base-context-extension.yaml": NUMBERS, **TOKENIZER},
    assumed=MASKS,
    is_typical=False,
)
def modernbert_base_context(init: str = "") -> Run:
    """Train the second phase of ModernBERT base: 250 billion tokens in rows of 8,192, from a run of the first.

    Command: zoo train modernbert-base-context --init runs/modernbert-base --data.paths corpus.jsonl
    Hardware: meant for many accelerators: a step is 4.7 million tokens; with --accumulate it fits on fewer.
    Time: not measured (no such hardware available).
    Expect: not measured. The paper's text has the rate of the first phase, 8e-4; the file has 3e-4.
    """
    run = _published("modernbert-base-context", "modernbert-base", 52_982, 576, lr=3e-4, context=8_192)
    return _with_longer_rotations(run, init)


@provenance(
    "modernbert-base",
    SOURCE,
    published={"modernbert-base-learning-rate-decay.yaml": DECAY, **TOKENIZER},
    assumed=MASKS,
    is_typical=False,
)
def modernbert_base_decay() -> Run:
    """Train the third phase of ModernBERT base: 50 billion tokens with a decaying rate, from a run of the second.

    Command: zoo train modernbert-base-decay --init runs/modernbert-base-context --data.paths corpus.jsonl
    Hardware: meant for many accelerators: a step is 4.7 million tokens; with --accumulate it fits on fewer.
    Time: not measured (no such hardware available).
    Expect: not measured.
    """
    return _published("modernbert-base-decay", "modernbert-base", 10_596, 576, lr=3e-4, context=8_192, decay=(10_596, 0.001))


@provenance(
    "modernbert-large",
    SOURCE,
    published={"modernbert-large-pretrain.yaml": NUMBERS, **TOKENIZER},
    assumed={RAMP.format(8): "data.ramp", **MASKS},
    is_typical=False,
)
def modernbert_large() -> Run:
    """Train ModernBERT large from scratch on your own text: 900 billion tokens of the first phase.

    Command: zoo train modernbert-large --data.paths corpus.jsonl --tokenizer.path FOLDER_WITH_MODERNBERT_TOKENIZER_JSON
    Hardware: meant for many accelerators: a step is 5 million tokens; with --accumulate it fits on fewer.
    Time: not measured (no such hardware available).
    Expect: not measured. Its last 800 billion tokens: --init RUN --optim.lr 5e-5 --optim.warmup 0 --data.ramp --steps 158530.
    """
    return _first_phase("modernbert-large", "modernbert-large", 900e9, 4_928, lr=5e-4, warmup=2e9, ramp=10**10, unit=448)


@provenance(
    "modernbert-large",
    SOURCE,
    published={"modernbert-large-context-extension.yaml": NUMBERS, **TOKENIZER},
    assumed=MASKS,
    is_typical=False,
)
def modernbert_large_context(init: str = "") -> Run:
    """Train the second phase of ModernBERT large: 250 billion tokens in rows of 8,192, from a run of the first.

    Command: zoo train modernbert-large-context --init runs/modernbert-large --data.paths corpus.jsonl
    Hardware: meant for many accelerators: a step is 5 million tokens; with --accumulate it fits on fewer.
    Time: not measured (no such hardware available).
    Expect: not measured.
    """
    run = _published("modernbert-large-context", "modernbert-large", 49_541, 616, lr=5e-5, context=8_192, weight_decay=1e-6)
    return _with_longer_rotations(run, init)


@provenance(
    "modernbert-large",
    SOURCE,
    published={"modernbert-large-learning-rate-decay.yaml": DECAY, **TOKENIZER},
    assumed=MASKS,
    is_typical=False,
)
def modernbert_large_decay() -> Run:
    """Train the third phase of ModernBERT large: 50 billion tokens with a decaying rate, from a run of the second.

    Command: zoo train modernbert-large-decay --init runs/modernbert-large-context --data.paths corpus.jsonl
    Hardware: meant for many accelerators: a step is 5 million tokens; with --accumulate it fits on fewer.
    Time: not measured (no such hardware available).
    Expect: not measured.
    """
    return _published(
        "modernbert-large-decay", "modernbert-large", 9_781, 624, lr=5e-5, context=8_192, weight_decay=1e-6, decay=(9_781, 0.001)
    )


ETTIN = "Weller et al. 2025, and JHU-CLSP/ettin-encoder-vs-decoder 6cbf954a, pretraining/configs/standard/very_tiny"
ETTIN_MASKS = {"that of ModernBERT": "tokenizer.kind tokenizer.vocab", **MASKS}
UNPACKED = "the file does not pack documents into rows"


@provenance(
    "ettin-encoder-17m",
    ETTIN,
    published={"encoder_very_tiny.yaml": f"{NUMBERS} model.local_base"},
    assumed={
        RAMP.format(4): "data.ramp",
        UNPACKED: "data.rows",
        **ETTIN_MASKS,
    },
)
def ettin_17m() -> Run:
    """Train the smallest Ettin encoder from scratch on your own text: its first phase, in packed rows.

    Command: zoo train ettin-17m --data.paths corpus.jsonl --tokenizer.path FOLDER_WITH_MODERNBERT_TOKENIZER_JSON
    Hardware: meant for accelerators; all three phases took 141 hours on four H100 (pretraining/README.md).
    Time: not measured (no such hardware available).
    Expect: not measured. The next phases: --phases ettin-17m-context ettin-17m-decay.
    """
    size, ramp = "ettin-encoder-17m", 125 * 10**9
    run = _first_phase("ettin-17m", size, 1_700e9, 4_608, lr=3e-3, warmup=4e9, ramp=ramp, unit=576, weight_decay=3e-4)
    return _with_local_base(run, 10_000.0)


@provenance(
    "ettin-encoder-17m",
    ETTIN,
    published={"de_decay/encoder_very_tiny.yaml": f"{DECAY} model.local_base"},
    assumed={UNPACKED: "data.rows", **ETTIN_MASKS},
    is_typical=False,
)
def ettin_17m_context(init: str = "") -> Run:
    """Train the second phase of the smallest Ettin encoder: 250 billion tokens in rows of 7,999, from a run of the first.

    Command: zoo train ettin-17m-context --init runs/ettin-17m --data.paths corpus.jsonl
    Hardware: meant for accelerators: a step is 37 million tokens; with --accumulate it fits on fewer.
    Time: not measured (no such hardware available).
    Expect: not measured. The source continues the moments of the first phase, and --init begins with new ones.
    """
    run = _ettin("ettin-17m-context", 6_783, lr=3e-3, local_base=10_000.0, final=0.5)
    return _with_longer_rotations(run, init)


@provenance(
    "ettin-encoder-17m",
    ETTIN,
    published={"prolong_decay/encoder_very_tiny.yaml": f"{DECAY} model.local_base"},
    assumed={UNPACKED: "data.rows", **ETTIN_MASKS},
    is_typical=False,
)
def ettin_17m_decay(init: str = "") -> Run:
    """Train the third phase of the smallest Ettin encoder: 50 billion tokens, 15 % of them masked, from a run of the second.

    Command: zoo train ettin-17m-decay --init runs/ettin-17m-context --data.paths corpus.jsonl
    Hardware: meant for accelerators: a step is 37 million tokens; with --accumulate it fits on fewer.
    Time: not measured (no such hardware available).
    Expect: not measured. The source continues the moments of the second phase, and --init begins with new ones.
    """
    run = _ettin("ettin-17m-decay", 1_357, lr=1.5e-3, local_base=160_000.0, final=0.04)
    options = dataclasses.replace(run.options, masking=dataclasses.replace(THIRD, rate=0.15))
    return _with_longer_rotations(dataclasses.replace(run, options=options), init)


def _ettin(recipe: str, steps: int, *, lr: float, local_base: float, final: float) -> Run:
    """Return a later phase of the smallest Ettin encoder.

    Args:
        local_base: base of the rotations of local layers.
        final: the rate at the end of a decay over all steps, relative to the first.
    """
    options = {"lr": lr, "context": 7_999, "weight_decay": 3e-4, "decay": (steps, final)}
    return _with_local_base(_published(recipe, "ettin-encoder-17m", steps, 4_608, **options), local_base)


def _with_local_base(run: Run, base: float) -> Run:
    return dataclasses.replace(run, model=dataclasses.replace(run.model, local_base=base))


def _with_longer_rotations(run: Run, init: str) -> Run:
    """Return a run that begins with the parameters of `init`, whose global layers have shorter rotations."""
    return dataclasses.replace(run, init=init, init_positions="recompute") if init else run


def _first_phase(
    recipe: str,
    size: str,
    tokens: float,
    batch: int,
    *,
    lr: float,
    warmup: float,
    ramp: int,
    unit: int,
    weight_decay: float = 1e-5,
) -> Run:
    """Return a run in rows of 1,024 tokens whose batch grows by `unit` rows, those of a micro-batch, over `ramp` tokens.

    Args:
        tokens: number of tokens of the run; the first `warmup` of them are the warm-up, in steps.
    """
    data = EncoderData(length=1_024, batch=batch, ramp=linear_ramp(unit, batch, ramp, unit), rows="packed")
    steps = (data.steps_of(tokens), data.steps_of(warmup))
    run = _published(recipe, size, steps[0], batch, lr=lr, warmup=steps[1], weight_decay=weight_decay)
    return dataclasses.replace(run, data=data, accumulate=batch // unit)


def _published(
    recipe: str,
    size: str,
    steps: int,
    batch: int,
    *,
    lr: float,
    warmup: int = 0,
    context: int = 0,
    weight_decay: float = 1e-5,
    decay: tuple[int, float] | None = None,
) -> Run:
    """Return a run of packed documents with StableAdamW, whose weight decay is multiplied by the schedule alone.

    Args:
        context: length of the rows of a later phase; 0 = the first, with rows of 1,024 tokens and shorter rotations.
        decay: steps and end of the decay of the rate; None = the rate is constant.
    """
    model = dataclasses.replace(configs.find_size(size)[1].config, task="masked")
    optim = Optim(
        name="stable_adamw",
        lr=lr,
        warmup=warmup,
        schedule="constant",
        b2=0.98,
        eps=1e-6,
        weight_decay=weight_decay,
        independent_decay=True,
        clip=0.0,
    )
    if decay is not None:
        optim = dataclasses.replace(optim, schedule="wsd", decay_shape="sqrt", decay_steps=decay[0], final=decay[1])
    return Run(
        recipe=recipe,
        model=model if context else dataclasses.replace(model, global_base=10_000.0),
        options=MaskedOptions(masking=THIRD),
        steps=steps,
        data=EncoderData(length=context or 1_024, batch=batch, rows="packed"),
        tokenizer=Tokenizer(kind="modernbert", vocab=model.vocab),
        optim=optim,
        accumulate=8,
        checkpoint=Checkpoint(every=1_000),
        log=Log(every=10, validate_every=5_000, validate_rows=1_024, samples=0),
    )
