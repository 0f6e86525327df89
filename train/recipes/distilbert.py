"""Recipes of the DistilBERT family."""

import dataclasses

from train.config.data_options import EncoderData
from train.config.distillation_options import TripleLoss
from train.config.objectives import DistilledOptions
from train.config.option_groups import Masking
from train.config.provenance import provenance
from train.config.run_config import Checkpoint, Log, Optim, Run, Tokenizer
from zoo import configs
from zoo.configs import Compute


def distilbert_nano() -> Run:
    """Distill bert-nano on Moby-Dick into a DistilBERT with half its layers, on a laptop.

    Command: zoo train distilbert-nano --distillation.teacher runs/bert-nano
    Hardware: 2 CPU cores, float32.
    Time: 2 minutes 16 seconds.
    Expect: 11.5, 12.6 and 11.8 % of masked words correct with three seeds; their teachers have 11.2, 11.0 and 11.1 %.
    """
    model = configs.find_size("distilbert-nano")[1].config
    return Run(
        recipe="distilbert-nano",
        model=dataclasses.replace(model, compute=Compute(unroll=2)),
        steps=400,
        data=EncoderData(length=model.context, batch=16, rows="full_sentences"),
        tokenizer=Tokenizer(kind="wordpiece", vocab=model.vocab),
        options=DistilledOptions(masking=Masking(rare=0.7), distillation=TripleLoss(teacher="runs/bert-nano")),
        optim=Optim(lr=5e-4, warmup=20, schedule="linear", final=0.0, b2=0.98, eps=1e-6, weight_decay=0.0, clip=5.0),
        checkpoint=Checkpoint(every=100),
        log=Log(every=10, validate_every=100, samples=0),
    )


@provenance(
    "distilbert-base-uncased",
    "Sanh et al. 2019, and huggingface/transformers, examples/research_projects/distillation",
    published={
        "section 3": "data.batch masking.static distillation.temperature",
        "README of the code, command of the released student": "distillation.soft distillation.masked distillation.cosine",
        "train.py and distiller.py": "masking.rate masking.masked masking.random masking.rare distillation.divergence optim.name "
        "optim.lr optim.clip optim.eps optim.b1 optim.b2 optim.weight_decay optim.warmup optim.schedule",
    },
    assumed={
        "three epochs of 3.3 billion words": "steps",
        "the released student has this tokenizer": "tokenizer.kind tokenizer.vocab",
    },
)
def distilbert() -> Run:
    """Distill a BERT base into DistilBERT on your own text, as released (Sanh et al. 2019), but with trained positions.

    Command: zoo train distilbert --distillation.teacher models/bert-base-uncased --data.paths corpus.jsonl
    Hardware: the authors used 8 V100 of 16 GB.
    Time: not measured (no such hardware available); the authors' training took about 90 hours.
    Expect: not measured. The authors' student has 97 % of its teacher's GLUE score.
    """
    model = dataclasses.replace(configs.find_size("distilbert-base-uncased")[1].config, task="masked")
    return Run(
        recipe="distilbert",
        model=model,
        # Three epochs of 3.3 billion words, in batches of about 4,000 rows.
        steps=6_000,
        data=EncoderData(length=model.context, batch=4_000, rows="full_sentences"),
        tokenizer=Tokenizer(kind="wordpiece", vocab=model.vocab),
        options=DistilledOptions(
            masking=Masking(rare=0.7), distillation=TripleLoss(teacher="models/bert-base-uncased"), loss_chunk=64
        ),
        optim=Optim(lr=5e-4, warmup=300, schedule="linear", final=0.0, b2=0.98, eps=1e-6, weight_decay=0.0, clip=5.0),
        accumulate=50,
        checkpoint=Checkpoint(every=200),
        log=Log(every=10, validate_every=1_000, validate_rows=1_024, samples=0),
    )
