"""Recipes of the ModernBERT family."""

import dataclasses

from train.config.data_options import EncoderData
from train.config.objectives import MaskedOptions
from train.config.option_groups import Masking
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


def modernbert_base() -> Run:
    """Train ModernBERT base from scratch on your own text, with the first phase's rows of 1,024 tokens (Warner et al. 2024).

    Command: zoo train modernbert-base --data.paths corpus.jsonl --tokenizer.path FOLDER_WITH_MODERNBERT_TOKENIZER_JSON
    Hardware: meant for many accelerators: a step is 4.7 million tokens; with --accumulate it fits on fewer.
    Time: not measured (no such hardware available).
    Expect: not measured. The paper's first phase has rotations of base 10,000 in all layers: --model.global-base 1e4.
    """
    return _published("modernbert-base", "modernbert-base", steps=364_000, batch=4_608, warmup=640)


def ettin_17m() -> Run:
    """Train the smallest Ettin encoder from scratch on your own text, with rows of 1,024 tokens (Weller et al. 2025).

    Command: zoo train ettin-17m --data.paths corpus.jsonl --tokenizer.path FOLDER_WITH_MODERNBERT_TOKENIZER_JSON
    Hardware: meant for an accelerator; a batch of 512 rows is chosen here, the rate is that of ModernBERT base.
    Time: not measured (no such hardware available).
    Expect: not measured. The other sizes: --model.layers 10 --model.width 384 --model.heads 6 --model.ffn 576, and so on.
    """
    return _published("ettin-17m", "ettin-encoder-17m", steps=100_000, batch=512, warmup=2_000)


def _published(recipe: str, size: str, *, steps: int, batch: int, warmup: int) -> Run:
    """Return a run of packed documents at a constant rate, from which the last phase of a trapezoid can be continued."""
    model = dataclasses.replace(configs.find_size(size)[1].config, task="masked")
    return Run(
        recipe=recipe,
        model=model,
        options=MaskedOptions(masking=THIRD),
        steps=steps,
        data=EncoderData(length=1024, batch=batch, rows="packed"),
        tokenizer=Tokenizer(kind="modernbert", vocab=model.vocab),
        optim=Optim(lr=8e-4, warmup=warmup, schedule="constant", b2=0.98, eps=1e-6, weight_decay=1e-5),
        accumulate=16,
        checkpoint=Checkpoint(every=1_000),
        log=Log(every=10, validate_every=5_000, validate_rows=1_024, samples=0),
    )
