"""Stages, tiers and options that several experiments share."""

from eval.experiments.declaration import Options, Stage

SMALL: Options = {
    "model.layers": 2,
    "model.width": 64,
    "model.heads": 2,
    "model.ffn": 128,
    "model.vocab": 1000,
    "tokenizer.vocab": 1000,
    "data.length": 64,
    "data.batch": 8,
    "steps": 20,
    "optim.warmup": 2,
    "log.every": 5,
    "log.validate_every": 10,
}
"""Options of a training run that takes seconds, for `smoke`."""

FRESH: Options = {"steps": 1, "optim.lr": 1e-9}
"""Options of a control: after one step at this rate the parameters are those that they were initialized with."""

SST2 = Stage(
    name="sst2",
    recipe="finetune-classification",
    after="pretrain",
    overrides={
        "data.paths": "{tasks}/sst2/train.tsv",
        "data.valid_paths": "{tasks}/sst2/dev.tsv",
        "labelled.header": False,
        "data.length": 64,
        "data.batch": 16,
    },
    seconds=10.0,
)
"""Fine-tuning on the sentiment of sentences; the best of the checkpoints on the dev set is used."""
SST2_TEST = Stage(name="sst2_test", task="labelled", after="sst2", overrides={"files": "{tasks}/sst2/test.tsv"}, seconds=5.0)
"""Score on the test set, on which nothing was selected."""
SST2_NANO: Options = {"steps": 432, "optim.lr": 3e-4, "optim.warmup": 43, "log.validate_every": 144, "checkpoint.every": 144}
"""One epoch of the 6,920 sentences at the scale of the nano recipes."""
SST2_SMOKE: Options = {"steps": 10, "optim.lr": 3e-4, "optim.warmup": 2, "log.validate_every": 5}

SST2_TEXT = Stage(
    name="sst2",
    recipe="finetune-text-to-text",
    after="pretrain",
    overrides={
        "data.paths": "{tasks}/sst2/train.tsv",
        "data.valid_paths": "{tasks}/sst2/dev.tsv",
        "labelled.header": False,
        "data.length": 64,
        "data.target_length": 16,
        "data.batch": 16,
    },
    seconds=10.0,
)
"""Fine-tuning on the same data as text to text: the target is the label as a digit. The last checkpoint is used."""
SST2_TEXT_TEST = Stage(
    name="sst2_test",
    task="text_to_text:exact",
    after="sst2",
    overrides={"files": "{tasks}/sst2/test.tsv", "tokens": 4},
    seconds=20.0,
)
SST2_TEXT_NANO: Options = {"steps": 300, "log.validate_every": 100, "checkpoint.every": 100}
SST2_TEXT_SMOKE: Options = {"steps": 10, "log.validate_every": 5}

COMMON = Stage(name="common", task="masked:all", after="pretrain", overrides={"files": "{valid}", "length": 128}, seconds=15.0)
"""Score of the same masked tokens of the held-out text for all models of one tokenizer, all of them hidden."""

BAYES = "naive Bayes of words on the same files"
SST2_FLOORS = (
    ("majority class", "sst2_test/accuracy", 0.501, "share of the larger class of the test set"),
    ("naive Bayes", "sst2_test/accuracy", 0.815, BAYES),
)
