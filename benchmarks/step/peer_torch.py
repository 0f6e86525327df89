"""`transformers` on torch, as its users run it: its own model and loss, AdamW in its fused form, clipping, and autocast for
bfloat16."""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers

Tensors = dict[str, Any]


def build(folder: Path, asked: Mapping[str, Any], batch: Mapping[str, np.ndarray]) -> Callable[[], float]:
    """A function that takes a step of a mode and returns its loss."""
    torch.set_num_threads(os.cpu_count() or 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = {"attn_implementation": asked["attention"]} if "attention" in asked else {}
    model = getattr(transformers, asked["architecture"]).from_pretrained(folder, dtype=torch.float32, **chosen).to(device)
    tensors = {name: torch.tensor(each, device=device) for name, each in batch.items()}
    tensors = {name: each.long() if each.dtype == torch.int32 else each for name, each in tensors.items()}

    def autocast() -> Any:
        reduced = asked["precision"] == "bfloat16"
        return torch.autocast(device, dtype=torch.bfloat16) if reduced else contextlib.nullcontext()

    losses = LOSSES[asked["objective"]]

    def loss() -> Any:
        with autocast():
            return losses(model, tensors)

    if asked["mode"] == "decode":
        return _decode(model.eval(), tensors, autocast, compiled="compile" in asked)
    forward = torch.compile(loss) if "compile" in asked else loss
    if asked["mode"] == "inference":
        model.eval()

        def once() -> float:
            with torch.no_grad():
                return forward().item()

        return once
    model.train()
    rates = asked["optim"]
    # As ours: norms and biases do not decay.
    decayed = [each for each in model.parameters() if each.dim() > 1]
    others = [each for each in model.parameters() if each.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": rates["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    # `transformers`' Trainer takes the fused form too.
    optimizer = torch.optim.AdamW(groups, lr=rates["lr"], betas=(rates["b1"], rates["b2"]), eps=rates["eps"], fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        found = forward()
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), rates["clip"])
        optimizer.step()
        return found.item()

    return step


def _causal(model: Any, given: Tensors) -> Any:
    logits = model(input_ids=given["tokens"], use_cache=False).logits
    # Its own loss would leave out the last token of each row.
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), given["targets"].flatten())


def _masked(model: Any, given: Tensors) -> Any:
    labels = torch.full_like(given["tokens"], -100).scatter(1, given["predict_at"], given["targets"])
    arguments = {"input_ids": given["tokens"], "attention_mask": given["segments"], "labels": labels}
    if getattr(model.config, "type_vocab_size", 0):
        arguments["token_type_ids"] = given["types"]
    return model(**arguments).loss


def _text_to_text(model: Any, given: Tensors) -> Any:
    mask = torch.ones_like(given["source"])
    arguments = {"input_ids": given["source"], "attention_mask": mask, "decoder_input_ids": given["tokens"]}
    return model(**arguments, labels=given["targets"], use_cache=False).loss


def _permutation(model: Any, given: Tensors) -> Any:
    order, at = given["order"], given["query_at"]
    hidden = (order[:, None] >= order[..., None]) & (order[:, None] >= 0)
    places = torch.arange(order.shape[1], device=order.device)
    mapping = (at[..., None] == places).float()
    arguments = {"input_ids": given["tokens"], "token_type_ids": given["types"], "use_mems": False}
    return model(**arguments, perm_mask=hidden.float(), target_mapping=mapping, labels=given["targets"]).loss


LOSSES: dict[str, Callable[[Any, Tensors], Any]] = {
    "causal": _causal,
    "masked": _masked,
    "denoising": _text_to_text,
    "text_to_text": _text_to_text,
    "permutation": _permutation,
}

TOLD = 7
"""As in `benchmarks.step.programs`."""


def _decode(model: Any, given: Tensors, autocast: Callable[[], Any], *, compiled: bool) -> Callable[[], float]:
    """The last slot of a cache that is full but for it."""
    if compiled:
        raise NotImplementedError("a cache that grows compiles anew for each of its lengths")
    if "order" in given:
        raise NotImplementedError("transformers' XLNet keeps hidden states, not keys and values: another computation")
    tokens, last = given["tokens"], given["tokens"].shape[1] - 1
    fixed: dict[str, Any] = {}
    name = "input_ids"
    if "source" in given:
        with torch.no_grad(), autocast():
            fixed = {"encoder_outputs": model.get_encoder()(given["source"]), "attention_mask": torch.ones_like(given["source"])}
        name = "decoder_input_ids"
    with torch.no_grad(), autocast():
        past = model(**fixed, **{name: tokens[:, :last]}, use_cache=True).past_key_values

    def once() -> float:
        with torch.no_grad(), autocast():
            logits = model(**fixed, **{name: tokens[:, last:]}, past_key_values=past, use_cache=True).logits[:, -1].float()
            # Remove the token again; a positive number, the length to keep, is refused since transformers 5.24.
            past.crop(-1)
            return (logits.logsumexp(-1) - logits[:, TOLD]).mean().item()

    return once
