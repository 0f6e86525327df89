"""Losses of preferences that TRL on torch computes. `python -m tests.support.trl_losses` writes them to `tests/golden`."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden import make
from tests.support import published

FILE = make.FOLDER / "preferences.json"
ANSWERS = ((5, 3), (2, 6), (4, 4))
"""Tokens of the chosen and the rejected answer of each pair, the end mark included."""
LENGTH = 9
REFERENCE_FACTOR = 0.5
"""The reference has the policy's weights times this."""
KINDS: dict[str, dict[str, Any]] = {
    "sigmoid": {"beta": 0.3},
    "robust": {"beta": 0.3, "smoothing": 0.2},
    "hinge": {"beta": 0.05},
    "ipo": {"beta": 0.3},
    "length_normalised": {"beta": 0.3},
    "sigmoid + sft": {"beta": 0.3, "sft": 0.7},
    "simpo": {"beta": 2.0, "gamma": 0.4},
    "orpo": {"beta": 0.1, "sft": 1.0},
}
"""The options of `train.config.dpo_options.Dpo` that are compared; the name begins with the kind."""
NAMES = {"length_normalised": "sigmoid_norm"}


def pairs(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (ids, which are real, which belong to an answer), each [pairs, 2, LENGTH]."""
    # TRL counts the prompt in ORPO's first term, except for its first token, which nothing predicts.
    prompt = 1 if name == "orpo" else 3
    ids = np.random.Generator(np.random.PCG64(5)).integers(1, 61, (len(ANSWERS), 2, LENGTH))
    ids[:, 1, :prompt] = ids[:, 0, :prompt]
    at, sizes = np.arange(LENGTH), prompt + np.array(ANSWERS)[..., None]
    return np.where(at < sizes, ids, 0).astype(np.int32), at < sizes, (at >= prompt) & (at < sizes)


def losses() -> dict[str, Any]:
    """Return the loss of each of `KINDS` and its gradients, those as `tests.golden.make.probe` has them."""
    return {name: _loss(name.split()[0], options) for name, options in KINDS.items()}


def write_models(folder: Path) -> tuple[Path, Path]:
    """Write the published folders of the policy and of its reference."""
    for name, factor in (("policy", 1.0), ("reference", REFERENCE_FACTOR)):
        published.write(folder / name, published.config("gpt", "causal"), factors=dict.fromkeys(("weight", "bias"), factor))
    return folder / "policy", folder / "reference"


def _loss(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as scratch:
        policy, reference = (
            transformers.GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()
            for folder in write_models(Path(scratch))
        )
        arguments = dict(
            output_dir=scratch, use_cpu=True, report_to="none", bf16=False, gradient_checkpointing=False, beta=options["beta"]
        )
        ids, real, answer = (torch.tensor(array) for array in pairs(kind))
        compute = _reference_free if kind in ("simpo", "orpo") else _dpo
        loss = compute(kind, options, arguments, policy, reference, ids.long(), real.long(), answer)
    loss.backward()
    return {"loss": loss.item(), "gradients": probes(policy)}


def probes(policy: Any) -> dict[str, list[float]]:
    """Return the `tests.golden.make.probe` of each gradient of a model of torch."""
    of_tensors = {name: make.probe(name, value.grad.numpy()) for name, value in policy.named_parameters()}
    return {name: [float(f"{number:.6g}") for number in probe] for name, probe in of_tensors.items()}


def _dpo(
    kind: str, options: dict[str, Any], arguments: Any, policy: Any, reference: Any, ids: Any, real: Any, answer: Any
) -> Any:
    import torch
    import trl

    types, weights = [NAMES.get(kind, kind)], [1.0]
    if "sft" in options:
        types, weights = [*types, "sft"], [1.0, options["sft"]]
    config = trl.DPOConfig(
        loss_type=types, loss_weights=weights, label_smoothing=options.get("smoothing", 0.0), disable_dropout=True, **arguments
    )
    trainer = trl.DPOTrainer(policy, reference, args=config, train_dataset=_texts(), processing_class=tokenizer())
    both = [torch.cat([array[:, 0], array[:, 1]]) for array in (ids, real, answer.long())]
    inputs = dict(zip(("input_ids", "attention_mask", "completion_mask"), both, strict=True))
    return trainer._compute_loss(trainer.model, inputs, return_outputs=False)


def _reference_free(
    kind: str, options: dict[str, Any], arguments: Any, policy: Any, reference: Any, ids: Any, real: Any, answer: Any
) -> Any:
    import torch
    from trl.experimental import cpo, orpo

    if kind == "simpo":
        config = cpo.CPOConfig(loss_type="simpo", simpo_gamma=options["gamma"], cpo_alpha=0.0, disable_dropout=True, **arguments)
        trainer: Any = cpo.CPOTrainer(policy, config, train_dataset=_texts(), processing_class=tokenizer())
    else:
        config = orpo.ORPOConfig(disable_dropout=True, **arguments)
        trainer = orpo.ORPOTrainer(policy, config, train_dataset=_texts(), processing_class=tokenizer())
    labels = torch.where(answer, ids, -100)
    batch = {
        f"{side}_{name}": array[:, number]
        for number, side in enumerate(("chosen", "rejected"))
        for name, array in (("input_ids", ids), ("attention_mask", real), ("labels", labels))
    }
    return trainer.get_batch_loss_metrics(policy, batch)[0]


def tokenizer() -> Any:
    import tokenizers
    import transformers

    vocabulary = {f"w{number}": number for number in range(61)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w1"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="w0", eos_token="w2", bos_token="w3", unk_token="w1"
    )


def _texts() -> Any:
    import datasets

    return datasets.Dataset.from_list([{"prompt": "w4 w5", "chosen": " w6", "rejected": " w7"}] * 2)


if __name__ == "__main__":
    import trl

    FILE.write_text(json.dumps({"trl": trl.__version__, **make.versions(), "losses": losses()}, separators=(",", ":")) + "\n")
