"""Recipes of XLNet (Yang et al. 2019)."""

import dataclasses

from train.config.data_options import TextData
from train.config.objectives import PermutationOptions
from train.config.option_groups import Permutation
from train.config.provenance import provenance
from train.config.run_config import Checkpoint, Log, Optim, Run, Tokenizer
from zoo import configs
from zoo.configs import Compute


def xlnet_nano() -> Run:
    """Train an XLNet on permutations of Moby-Dick, with a memory of the previous row, on a laptop.

    Command: zoo train xlnet-nano
    Hardware: 2 CPU cores, float32.
    Time: 2 minutes 19 seconds.
    Expect: 5.83 nats per held-out target (unigram baseline: 6.41), 12 % correct; --model.memory 0, which shuffles rows: 5.59.
    """
    model = configs.find_size("xlnet-nano")[1].config
    return Run(
        recipe="xlnet-nano",
        model=dataclasses.replace(model, compute=Compute(unroll=4)),
        options=PermutationOptions(),
        steps=600,
        data=TextData(length=128, batch=8),
        tokenizer=Tokenizer(kind="xlnet", vocab=model.vocab),
        # At 2e-3 it does not become better than the unigram baseline.
        optim=Optim(lr=1e-3, warmup=64, schedule="linear", final=0.0, b2=0.999, weight_decay=0.01),
        checkpoint=Checkpoint(every=100),
        log=Log(every=10, validate_every=150, validate_rows=128, samples=0),
    )


@provenance(
    "xlnet-base-cased",
    "Yang et al. 2019, and zihangdai/xlnet",
    published={
        "sections 2.3 and 3.1, and the README": "data.length permutation.predictions permutation.window "
        "permutation.bidirectional permutation.spans permutation.longest permutation.context tokenizer.kind tokenizer.vocab",
    },
    assumed={
        "BERT base's, since table 6 compares with it and prints no numbers of its training": "steps data.batch optim.name "
        "optim.lr optim.b1 optim.decayed optim.warmup optim.schedule optim.final optim.b2 optim.eps optim.weight_decay",
    },
)
def xlnet() -> Run:
    """Train XLNet base from scratch on your own text as in the authors' code, with BERT base's schedule (sections 3.1, A.4).

    Command: zoo train xlnet --data.paths corpus.jsonl
    Hardware: meant for 8 accelerators.
    Time: not measured (no such hardware available).
    Expect: not measured. Table 6: --permutation.kind denoising, --permutation.no-spans, --permutation.ordered --model.memory 0.
    """
    model = dataclasses.replace(configs.find_size("xlnet-base-cased")[1].config, task="permutation")
    return Run(
        recipe="xlnet",
        model=model,
        options=PermutationOptions(permutation=Permutation(predictions=85, window=256, bidirectional=True)),
        steps=1_000_000,
        data=TextData(length=512, batch=256),
        tokenizer=Tokenizer(kind="xlnet", vocab=model.vocab),
        optim=Optim(lr=1e-4, warmup=10_000, schedule="linear", final=0.0, b2=0.999, eps=1e-6, weight_decay=0.01),
        checkpoint=Checkpoint(every=1_000),
        log=Log(every=10, validate_every=5_000, validate_rows=1_024, samples=0),
    )


@provenance(
    "xlnet-large-cased",
    "Yang et al. 2019, and zihangdai/xlnet",
    published={
        "appendix A.4, table 8": "steps data.batch data.length optim.name optim.lr optim.warmup optim.schedule optim.eps "
        "optim.weight_decay",
        "README": "permutation.predictions permutation.window permutation.bidirectional permutation.spans permutation.longest "
        "permutation.context tokenizer.kind tokenizer.vocab",
    },
    assumed={"the decay of the code ends at 0": "optim.final", "Adam's own": "optim.b1 optim.b2"},
    is_typical=False,
)
def xlnet_large() -> Run:
    """Train XLNet large from scratch on your own text, as published (Yang et al. 2019, section 3.1 and appendix A.4).

    Command: zoo train xlnet-large --data.paths corpus.jsonl
    Hardware: the authors used 512 TPU v3 chips.
    Time: not measured (no such hardware available); the authors' training took about 5.5 days.
    Expect: not measured.
    """
    model = dataclasses.replace(configs.find_size("xlnet-large-cased")[1].config, task="permutation")
    return Run(
        recipe="xlnet-large",
        model=model,
        options=PermutationOptions(permutation=Permutation(predictions=85, window=256, bidirectional=True)),
        steps=500_000,
        data=TextData(length=512, batch=8_192),
        tokenizer=Tokenizer(kind="xlnet", vocab=model.vocab),
        optim=Optim(lr=4e-4, warmup=40_000, schedule="linear", final=0.0, b2=0.999, eps=1e-6, weight_decay=0.01),
        accumulate=16,
        checkpoint=Checkpoint(every=1_000),
        log=Log(every=10, validate_every=5_000, validate_rows=1_024, samples=0),
    )
