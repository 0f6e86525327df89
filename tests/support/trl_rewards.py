"""Losses of reward models that TRL on torch computes. `python -m tests.support.trl_rewards` writes them to `tests/golden`."""

import json
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from tests.golden import make
from tests.support import published
from tests.support import transformers_outputs as theirs
from zoo import models
from zoo.batch import Batch

FILE = make.FOLDER / "reward_models.json"
MODELS = {"gpt": published.GPT2, "bert": published.BERT, "t5": published.T5 | published.FORMS["t5-1.0"][1]}
SIZES = ((9, 6), (4, 8), (7, 7))
"""Tokens of the chosen and of the rejected text of each pair, the end mark (id 1) included."""
MARGINS = (0.0, 0.5, 1.5)
CENTERING = 0.05


def config(family: str) -> dict[str, Any]:
    """Return the config.json of a tiny reward model."""
    one = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}, "problem_type": "regression"}
    return published.config(family, "sequence", MODELS[family]) | one


def texts() -> tuple[np.ndarray, np.ndarray]:
    """Return (ids, which are real), each [pairs, 2, T]."""
    ids, sizes = np.random.Generator(np.random.PCG64(5)).integers(2, 61, (3, 2, 9)), np.array(SIZES)[..., None]
    at = np.arange(9)
    return np.where(at < sizes, np.where(at == sizes - 1, 1, ids), 0).astype(np.int32), at < sizes


def batch(family: str) -> Batch:
    """Return the texts as a reward model of this project reads them; T5 reads a text on both sides, as its class there."""
    ids, real = texts()
    segments, last = real.astype(np.int32), np.array(SIZES, np.int32)[..., None] - 1
    fields = {"tokens": ids, "segments": segments, "summary_at": np.zeros_like(last) if family == "bert" else last}
    if family == "t5":
        source = Batch(tokens=jnp.asarray(ids), segments=jnp.asarray(segments))
        fields |= {"tokens": np.pad(ids, ((0, 0), (0, 0), (1, 0)))[..., :-1], "source": source}
    extra = {"margin": jnp.asarray(MARGINS, jnp.float32)}
    return Batch(**{name: jnp.asarray(x) if name != "source" else x for name, x in fields.items()}, extra=extra)


def loss(family: str) -> dict[str, Any]:
    """Return the loss that TRL computes, and the probe of each gradient as `tests.golden.make` has it."""
    import datasets
    import tokenizers
    import torch
    import transformers
    import trl

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{number}": number for number in range(61)}, unk_token="w2"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", unk_token="w2")
    rows = datasets.Dataset.from_list([{"chosen": "w3", "rejected": "w4"}] * 2)
    with tempfile.TemporaryDirectory() as scratch:
        published.write(Path(scratch, "model"), config(family))
        net = theirs.load(Path(scratch, "model"), models.family(family).names["sequence"].architecture)
        options = trl.RewardConfig(
            **dict(output_dir=scratch, use_cpu=True, report_to="none", bf16=False, gradient_checkpointing=False),
            center_rewards_coefficient=CENTERING,
        )
        trainer = trl.RewardTrainer(net, args=options, train_dataset=rows, processing_class=tokenizer)
        ids, real = (torch.tensor(np.concatenate([array[:, 0], array[:, 1]])).long() for array in texts())
        inputs = {"input_ids": ids, "attention_mask": real, "margin": torch.tensor(MARGINS)}

        def scored(margin: Any = None, use_cache: Any = None, **inputs: Any) -> Any:
            return net.eval()(**inputs)

        value = trainer.compute_loss(scored, inputs)
        value.backward()
    gradients = {name: make.probe(name, x.grad.numpy()) for name, x in net.named_parameters() if x.grad is not None}
    return {"loss": value.item(), "gradients": {n: [float(f"{x:.6g}") for x in probe] for n, probe in gradients.items()}}


if __name__ == "__main__":
    import trl

    versions = {"trl": trl.__version__, **make.versions()}
    FILE.write_text(json.dumps(versions | {family: loss(family) for family in MODELS}, separators=(",", ":")) + "\n")
