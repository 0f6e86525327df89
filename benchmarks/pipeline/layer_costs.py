"""Work of the layers of a transformer: FLOPs, parameters, and the values that a forward pass stores, by part of a layer."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

from zoo.models import parameter_count

SAVED: Mapping[str, frozenset[str]] = {
    "full": frozenset(),
    "attention": frozenset({"attention"}),
    "save_out": frozenset({"attention", "out"}),
    "save_qkv": frozenset({"attention", "out", "qkv"}),
    "save_mlp": frozenset({"attention", "out", "mlp"}),
    "save_dots": frozenset({"attention", "out", "qkv", "mlp"}),
}
"""Remat policy -> parts of a layer whose result is stored; see `zoo.nn.layer_stack.SAVED`.

`down`, the last product, is stored by no policy and computed once: no gradient of a layer with norms before its sub-layers reads
its result.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stack:
    """Layers of one kind."""

    layers: int
    length: int
    """Positions of a row."""
    width: int
    """Size of the residual stream, D."""
    inner: int
    """Heads x size of a head."""
    keys: int
    """Heads of keys and values x size of a head."""
    ffn: int
    up: int = 1
    """Number of first projections of a feed-forward layer: 2 if it is gated."""
    causal: bool = True
    source: int = 0
    """Positions of the encoder that each layer attends to; 0 = no cross-attention."""

    @property
    def parameters(self) -> int:
        """Parameters of a layer that multiply activations."""
        attention = 2 * self.width * (self.inner + self.keys)
        return attention * (2 if self.source else 1) + (self.up + 1) * self.width * self.ffn

    def flops(self, *, skip_masked: bool) -> dict[str, float]:
        """Return the FLOPs of the forward pass of a layer for one row, by part.

        Args:
            skip_masked: whether attention computes only half of the pairs of a causal mask, as fused kernels do.
        """
        tokens, pairs = self.length, self.length**2 / (2 if self.causal and skip_masked else 1)
        parts = {
            "qkv": 2.0 * tokens * self.width * (self.inner + 2 * self.keys),
            "attention": 4.0 * pairs * self.inner,
            "out": 2.0 * tokens * self.width * self.inner,
            "mlp": 2.0 * tokens * self.width * self.ffn * self.up,
            "down": 2.0 * tokens * self.width * self.ffn,
        }
        if self.source:
            parts["qkv"] += 2.0 * self.width * (tokens * self.inner + self.source * 2 * self.keys)
            parts["attention"] += 4.0 * tokens * self.source * self.inner
            parts["out"] += 2.0 * tokens * self.width * self.inner
        return parts

    def recomputed(self, remat: str, *, skip_masked: bool) -> float:
        """Return the FLOPs of a layer for one row that the backward pass computes again."""
        parts = self.flops(skip_masked=skip_masked)
        return math.fsum(parts[name] for name in {"qkv", "attention", "out", "mlp"} - SAVED[remat])

    def stored(self, remat: str) -> tuple[float, float]:
        """Return the values that a layer stores for one row: of the size of the residual stream, and of heads or feed-forward.

        The first are copied along the axis `tensor`, and the second are divided over it.
        """
        sub_layers = 2 if self.source else 1
        keys = 2 * self.keys * (self.length + self.source)
        divided = {
            "attention": sub_layers * self.length * self.inner,
            "qkv": sub_layers * self.length * self.inner + keys,
            "mlp": self.up * self.length * self.ffn,
        }
        saved = SAVED[remat]
        copied = self.length * self.width * (1 + ("out" in saved) * sub_layers)
        return float(copied), float(sum(divided[name] for name in saved if name in divided))

    @property
    def values(self) -> tuple[float, float]:
        """Values that operations other than products write in a layer for one row, as `stored`.

        Each sub-layer has its input and its normalized input, 2 D in both. Beside them are queries, keys and values, the output
        of attention, and the feed-forward layer before and after its activation. Korthikanti et al. 2022 ("Reducing activation
        recomputation in large transformer models", arXiv 2205.05198, section 4) list them.
        """
        sub_layers = 3 if self.source else 2
        copied = 2.0 * sub_layers * self.length * self.width
        heads = 2 * self.length * self.inner + 2 * self.keys * self.length
        cross = 2 * self.length * self.inner + 2 * self.keys * self.source if self.source else 0
        return copied, float(heads + cross + (self.up + 1) * self.length * self.ffn)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A model and its rows."""

    name: str
    stacks: tuple[Stack, ...]
    """Encoder and decoder, or the only stack."""
    vocab: int
    predicted: int
    """Positions of a row whose logits are computed."""
    parameters: float
    """Number of all parameters."""
    fused: bool = True
    """True if attention is a fused kernel, which writes no scores and skips pairs that a causal mask excludes."""
    heads: int = 0
    """Number of heads; needed only if attention is not fused."""

    @property
    def width(self) -> int:
        return self.stacks[-1].width

    @property
    def layers(self) -> int:
        return sum(stack.layers for stack in self.stacks)

    @property
    def table(self) -> float:
        """Parameters outside of the layers; a stage at an end has at most all of them."""
        return self.parameters - sum(stack.layers * stack.parameters for stack in self.stacks)

    @property
    def sent(self) -> int:
        """Values of a row that a stage sends to the next: the residual stream, and that of an encoder, which passes through."""
        return sum(stack.length * stack.width for stack in self.stacks)

    @functools.cached_property
    def forward(self) -> tuple[tuple[float, ...], float]:
        """FLOPs of the forward pass of a row without what attention skips: of each layer in order, and of the logits."""
        layers = tuple(sum(stack.flops(skip_masked=self.fused).values()) for stack in self.stacks for _ in range(stack.layers))
        return layers, 2.0 * self.predicted * self.width * self.vocab

    @property
    def needed(self) -> float:
        """FLOPs of a training step for one row: three times those of a forward pass, without pairs that attention skips."""
        layers, logits = self.forward
        return 3 * (sum(layers) + logits)


def shape_of_model(model: Any, name: str, *, length: int, target_length: int = 0) -> Shape:
    """Return the shape of a GPT, Llama or T5.

    Args:
        model: its configuration.
        length: positions of a row; of a T5 those of the encoder.
        target_length: positions of the decoder of a T5.
    """
    keys = getattr(model, "kv_heads", model.heads) * model.head
    gated = getattr(model, "gated", hasattr(model, "kv_heads"))
    common = {"width": model.width, "inner": model.heads * model.head, "keys": keys, "ffn": model.ffn, "up": 2 if gated else 1}
    if model.is_encoder_decoder:
        encoder = Stack(layers=model.layers, length=length, causal=False, **common)
        decoder = Stack(layers=model.decoder_layers, length=target_length, source=length, **common)
        stacks: tuple[Stack, ...] = (encoder, decoder)
    else:
        stacks = (Stack(layers=model.layers, length=length, **common),)
    predicted = stacks[-1].length
    parameters = float(parameter_count(model))
    return Shape(name=name, stacks=stacks, vocab=model.vocab, predicted=predicted, parameters=parameters, heads=model.heads)
