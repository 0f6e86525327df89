"""Generation by `transformers` on torch, in its usual form: its `generate`, with the cache that it chooses."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers


def build(folder: Path, request: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Callable[[], list[list[int]]]:
    """Return a function that returns the tokens after the prompts.

    Args:
        request: "architecture", "tokens" after each prompt, "precision" of the weights, and "sampling", the fields of
            `zoo.generation.decoding_settings.Sampling`, of which temperature and top_p are used.
        arrays: "prompts" [B, P], or sources.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, request["precision"])
    model = getattr(transformers, request["architecture"]).from_pretrained(folder, dtype=dtype).to(device).eval()
    # No text ends before its limit.
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    ids = torch.tensor(arrays["prompts"], device=device).long()
    temperature, count = request["sampling"]["temperature"], request["tokens"]
    options: dict[str, Any] = {"do_sample": False}
    if temperature:
        options = {"do_sample": True, "temperature": temperature, "top_p": request["sampling"]["top_p"], "top_k": 0}
    config = transformers.GenerationConfig(max_new_tokens=count, pad_token_id=0, decoder_start_token_id=0, **options)

    def generate() -> list[list[int]]:
        with torch.no_grad():
            return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[:, -count:].tolist()

    return generate
