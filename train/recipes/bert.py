"""Recipes of the BERT family."""

import dataclasses

from train.config.data_options import EncoderData
from train.config.objectives import MaskedOptions
from train.config.option_groups import Masking
from train.config.provenance import provenance
from train.config.run_config import Checkpoint, Log, Optim, Run, Tokenizer
from zoo import configs
from zoo.configs import Compute


def bert_nano() -> Run:
    """Train a BERT of 2.7 million parameters on masked words and next sentences of Moby-Dick, on a laptop.

    Command: zoo train bert-nano
    Hardware: 2 CPU cores, float32.
    Time: 2 minutes 13 seconds.
    Expect: 6.08 nats per held-out masked word (unigram baseline: 6.45), 12 % of them correct; next sentences stay at 50 %.
    """
    model = configs.find_size("bert-nano")[1].config
    return Run(
        recipe="bert-nano",
        model=dataclasses.replace(model, compute=Compute(unroll=4)),
        steps=640,
        data=EncoderData(length=model.context, batch=16, rows="segment_pairs"),
        tokenizer=Tokenizer(kind="wordpiece", vocab=model.vocab),
        options=MaskedOptions(masking=Masking(most=20)),
        # From 2e-3 on it never becomes better than the unigram baseline.
        optim=Optim(lr=1e-3, warmup=64, schedule="linear", final=0.0, b2=0.999, eps=1e-6, weight_decay=0.01),
        checkpoint=Checkpoint(every=100),
        log=Log(every=10, validate_every=160, samples=0),
    )


ADAM = "steps data.batch optim.name optim.lr optim.schedule optim.warmup optim.b1 optim.b2 optim.weight_decay"


@provenance(
    "bert-base-uncased",
    "Devlin et al. 2019, and google-research/bert",
    published={
        "appendix A.2": ADAM,
        "section 3.1": "masking.rate masking.masked masking.random",
        "run_pretraining.py, optimization.py": "optim.final optim.eps optim.clip optim.decayed",
        "create_pretraining_data.py and its README": "masking.static masking.most data.rows tokenizer.kind",
        "vocab.txt": "tokenizer.vocab",
    },
    assumed={"the paper trains the last tenth of the steps on rows of 512 tokens": "data.length"},
)
def bert() -> Run:
    """Train BERT base from scratch on your own text, as published (Devlin et al. 2019, appendix A.2), with rows of 128 tokens.

    Command: zoo train bert --data.paths corpus.jsonl
    Hardware: meant for 8 accelerators.
    Time: not measured (no such hardware available).
    Expect: not measured. The paper trains the last tenth of the steps with 512 tokens: --data.length 512 --init RUN.
    """
    optim = Optim(lr=1e-4, warmup=10_000, schedule="linear", final=0.0, b2=0.999, eps=1e-6, weight_decay=0.01)
    return _published("bert", "bert-base-uncased", steps=1_000_000, batch=256, length=128, predictions=20, optim=optim)


LAMB = "DeepLearningExamples 729963dd, PyTorch/LanguageModeling/BERT/scripts/configs/pretrain_config.sh"
LAMB_ASSUMED = {
    "as in BERT (Devlin et al. 2019); the file does not say": "optim.b1 optim.b2 optim.eps optim.weight_decay optim.decayed "
    "optim.clip masking.rate masking.masked masking.random masking.static masking.most data.rows tokenizer.kind tokenizer.vocab",
    "the decay of the paper, section 4; the released code takes its root": "optim.schedule optim.final",
}


@provenance(
    "bert-large-uncased",
    f"You et al. 2020 (LAMB), and NVIDIA's {LAMB}",
    published={"pretrain_config.sh, phase 1": "steps data.batch data.length optim.name optim.lr optim.warmup"},
    assumed=LAMB_ASSUMED,
    is_typical=False,
)
def bert_large_lamb() -> Run:
    """Train BERT large with LAMB (You et al. 2020) and a linear decay: the first phase, 7,038 steps of 65,536 rows of 128 tokens.

    Command: zoo train bert-large-lamb --data.paths corpus.jsonl
    Hardware: meant for 8 accelerators of 80 GB or more; with --accumulate it fits on fewer.
    Time: not measured (no such hardware available).
    Expect: not measured. The second phase: zoo train bert-large-lamb-512 --init runs/bert-large-lamb.
    """
    optim = _lamb(6e-3, 0.2843)
    return _published(
        "bert-large-lamb",
        "bert-large-uncased",
        steps=7_038,
        batch=65_536,
        length=128,
        predictions=20,
        optim=optim,
        accumulate=256,
    )


@provenance(
    "bert-large-uncased",
    f"You et al. 2020 (LAMB), and NVIDIA's {LAMB}",
    published={"pretrain_config.sh, phase 2": "steps data.batch data.length optim.name optim.lr optim.warmup"},
    assumed=LAMB_ASSUMED,
    is_typical=False,
)
def bert_large_lamb_512() -> Run:
    """Train the second phase of BERT large with LAMB, with a linear decay: 1,563 steps of 32,768 rows of 512 tokens.

    Command: zoo train bert-large-lamb-512 --init runs/bert-large-lamb --data.paths corpus.jsonl
    Hardware: meant for 8 accelerators of 80 GB or more; with --accumulate it fits on fewer.
    Time: not measured (no such hardware available).
    Expect: not measured.
    """
    optim = _lamb(4e-3, 0.128)
    return _published(
        "bert-large-lamb-512",
        "bert-large-uncased",
        steps=1_563,
        batch=32_768,
        length=512,
        predictions=80,
        optim=optim,
        accumulate=512,
    )


def _lamb(lr: float, warmup: float) -> Optim:
    return Optim(name="lamb", lr=lr, warmup=warmup, schedule="linear", final=0.0, b2=0.999, eps=1e-6, weight_decay=0.01)


def _published(
    recipe: str, size: str, *, steps: int, batch: int, length: int, predictions: int, optim: Optim, accumulate: int = 1
) -> Run:
    model = dataclasses.replace(configs.find_size(size)[1].config, task="pretraining")
    return Run(
        recipe=recipe,
        model=model,
        steps=steps,
        data=EncoderData(length=length, batch=batch, rows="segment_pairs"),
        tokenizer=Tokenizer(kind="wordpiece", vocab=model.vocab),
        # Google's code prepares ten masks of each row.
        options=MaskedOptions(masking=Masking(most=predictions, static=10)),
        optim=optim,
        accumulate=accumulate,
        checkpoint=Checkpoint(every=1_000),
        log=Log(every=10, validate_every=5_000, validate_rows=1_024, samples=0),
    )
