"""`transformers` on torch, in its usual form: its own model and loss, fused AdamW, clipping, and autocast for bfloat16."""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers

Tensors = dict[str, Any]


def build(folder: Path, request: Mapping[str, Any], batch: Mapping[str, np.ndarray]) -> Callable[[], float]:
    """Return a function that takes a step of a mode and returns its loss."""
    torch.set_num_threads(os.cpu_count() or 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = {"attn_implementation": request["attention"]} if "attention" in request else {}
    model = getattr(transformers, request["architecture"]).from_pretrained(folder, dtype=torch.float32, **chosen).to(device)
    tensors = {name: torch.tensor(array, device=device) for name, array in batch.items()}
    tensors = {name: tensor.long() if tensor.dtype == torch.int32 else tensor for name, tensor in tensors.items()}

    def autocast() -> Any:
        reduced = request["precision"] == "bfloat16"
        return torch.autocast(device, dtype=torch.bfloat16) if reduced else contextlib.nullcontext()

    losses = LOSSES[request["objective"]]

    def loss() -> Any:
        with autocast():
            return losses(model, tensors)

    if request["mode"] == "decode":
        return _decode(model.eval(), tensors, autocast, compiled="compile" in request)
    forward = torch.compile(loss) if "compile" in request else loss
    if request["mode"] == "inference":
        model.eval()

        def once() -> float:
            with torch.no_grad():
                return forward().item()

        return once
    model.train()
    rates = request["optim"]
    # As in our optimizer, norms and biases do not decay.
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": rates["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    # The Trainer of `transformers` uses the fused form too.
    optimizer = torch.optim.AdamW(groups, lr=rates["lr"], betas=(rates["b1"], rates["b2"]), eps=rates["eps"], fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        value = forward()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), rates["clip"])
        optimizer.step()
        return value.item()

    return step


def _causal(model: Any, batch: Tensors) -> Any:
    logits = model(input_ids=batch["tokens"], use_cache=False).logits
    # The model's own loss would leave out the last token of each row.
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch["targets"].flatten())


def _masked(model: Any, batch: Tensors) -> Any:
    labels = torch.full_like(batch["tokens"], -100).scatter(1, batch["predict_at"], batch["targets"])
    arguments = {"input_ids": batch["tokens"], "attention_mask": batch["segments"], "labels": labels}
    if getattr(model.config, "type_vocab_size", 0):
        arguments["token_type_ids"] = batch["types"]
    return model(**arguments).loss


def _text_to_text(model: Any, batch: Tensors) -> Any:
    mask = torch.ones_like(batch["source"])
    arguments = {"input_ids": batch["source"], "attention_mask": mask, "decoder_input_ids": batch["tokens"]}
    return model(**arguments, labels=batch["targets"], use_cache=False).loss


def _permutation(model: Any, batch: Tensors) -> Any:
    order, at = batch["order"], batch["query_at"]
    hidden = (order[:, None] >= order[..., None]) & (order[:, None] >= 0)  # [B, T, T]
    places = torch.arange(order.shape[1], device=order.device)
    mapping = (at[..., None] == places).float()
    arguments = {"input_ids": batch["tokens"], "token_type_ids": batch["types"], "use_mems": False}
    return model(**arguments, perm_mask=hidden.float(), target_mapping=mapping, labels=batch["targets"]).loss


LOSSES: dict[str, Callable[[Any, Tensors], Any]] = {
    "causal": _causal,
    "masked": _masked,
    "denoising": _text_to_text,
    "text_to_text": _text_to_text,
    "permutation": _permutation,
}

TARGET_TOKEN = 7
"""Id of the token whose loss a decoding step returns, the same as in `benchmarks.step.programs`."""


def _decode(model: Any, batch: Tensors, autocast: Callable[[], Any], *, compiled: bool) -> Callable[[], float]:
    """Return a step that fills the last slot of a cache that is full except for it."""
    if compiled:
        raise NotImplementedError("a cache that grows compiles anew for each of its lengths")
    if "order" in batch:
        raise NotImplementedError("transformers' XLNet keeps hidden states, not keys and values: another computation")
    tokens, last = batch["tokens"], batch["tokens"].shape[1] - 1
    fixed: dict[str, Any] = {}
    name = "input_ids"
    if "source" in batch:
        with torch.no_grad(), autocast():
            fixed = {"encoder_outputs": model.get_encoder()(batch["source"]), "attention_mask": torch.ones_like(batch["source"])}
        name = "decoder_input_ids"
    with torch.no_grad(), autocast():
        past = model(**fixed, **{name: tokens[:, :last]}, use_cache=True).past_key_values

    def once() -> float:
        with torch.no_grad(), autocast():
            logits = model(**fixed, **{name: tokens[:, last:]}, past_key_values=past, use_cache=True).logits[:, -1].float()
            # Remove the token again; a positive number, the length to keep, is refused since transformers 5.24.
            past.crop(-1)
            return (logits.logsumexp(-1) - logits[:, TARGET_TOKEN]).mean().item()

    return once
