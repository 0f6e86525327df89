"""Losses of labelled completions that TRL on torch computes. `python -m tests.support.trl_kto` writes them to `tests/golden`."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden import make
from tests.support import trl_losses

FILE = make.FOLDER / "kto.json"
PROMPTS, ANSWERS = (3, 2, 3, 1, 2), (5, 3, 6, 2, 4)
"""Tokens of the prompt and of the completion of each example, its end mark included."""
DESIRED = (True, False, True, True, False)
LENGTH = max(PROMPTS) + max(ANSWERS)
OPTIONS = {"beta": 0.3, "desired_weight": 1.3, "undesired_weight": 0.8}
CASES = {"above 0": True, "clamped": False}
"""Reference point -> whether policy and reference are exchanged: the smaller weights give random texts higher probabilities."""


def texts() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (ids, which are real, which belong to a completion), [5, 2, LENGTH]: each with its own and the next completion."""
    rng = np.random.Generator(np.random.PCG64(6))
    prompts, answers = ([rng.integers(1, 61, size) for size in sizes] for sizes in (PROMPTS, ANSWERS))
    ids, real, answer = (np.zeros((len(ANSWERS), 2, LENGTH), kind) for kind in (np.int32, bool, bool))
    for number, prompt in enumerate(prompts):
        for side in (0, 1):
            row = np.concatenate([prompt, answers[(number + side) % len(answers)]])
            ids[number, side, : len(row)], real[number, side, : len(row)] = row, True
            answer[number, side, len(prompt) : len(row)] = True
    return ids, real, answer


def models(folder: Path, case: str) -> list[Path]:
    """Write and return the published folders of the policy and of its reference."""
    return list(trl_losses.write_models(folder))[:: -1 if CASES[case] else 1]


def loss(case: str) -> dict[str, Any]:
    """Return TRL's loss, reference point and gradients, those as `tests.golden.make.probe` has them."""
    import datasets
    import torch
    import transformers
    import trl

    rows = datasets.Dataset.from_list([{"prompt": "w4 w5", "completion": " w6", "label": label} for label in (True, False)])
    with tempfile.TemporaryDirectory() as scratch:
        policy, reference = (
            transformers.GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()
            for folder in models(Path(scratch), case)
        )
        config = trl.KTOConfig(
            **dict(output_dir=scratch, use_cpu=True, report_to="none", bf16=False, gradient_checkpointing=False),
            beta=OPTIONS["beta"],
            desirable_weight=OPTIONS["desired_weight"],
            undesirable_weight=OPTIONS["undesired_weight"],
            per_device_train_batch_size=2,
        )
        tokenizer = trl_losses.tokenizer()
        trainer = trl.KTOTrainer(policy, reference, args=config, train_dataset=rows, processing_class=tokenizer)
        arrays = dict(zip(("input_ids", "attention_mask", "completion_mask"), texts(), strict=True))
        inputs = {
            f"{prefix}{name}": torch.tensor(array[:, side]).long()
            for side, prefix in enumerate(("", "KL_"))
            for name, array in arrays.items()
        }
        value = trainer._compute_loss(trainer.model, inputs | {"label": torch.tensor(DESIRED)}, return_outputs=False)
        (metrics,) = (numbers for numbers in trainer._metrics.values() if numbers)
    value.backward()
    return {"loss": value.item(), "z": metrics["kl"][-1], "gradients": trl_losses.probes(policy)}


if __name__ == "__main__":
    import trl

    content = {"trl": trl.__version__, **make.versions(), "losses": {case: loss(case) for case in CASES}}
    FILE.write_text(json.dumps(content, separators=(",", ":")) + "\n")
