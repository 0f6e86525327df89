"""XLNet in numpy, float64, one row at a time, from what each query sees: what `zoo.models.xlnet` is compared with."""

import dataclasses
from typing import Any

import numpy as np

from tests.support.small import small
from zoo.models import Model

Array = np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What the queries of a stream see, each array [queries, keys]: whether a query sees a key; its place less the key's; whether
    their types differ (None: there is no term of types). The keys of memory come first."""

    allowed: Array
    distance: Array
    different: Array | None = None


def tiny(**changes: Any) -> Model:
    return small("xlnet", **{"vocab": 90, "width": 16, "heads": 2, "ffn": 24, "memory": 0, "reuse": 0, **changes})


def forward(
    cfg: Any, params: Any, tokens: Array, content: Seen, query: Seen | None = None, memory: Array | None = None
) -> tuple[Array, Array | None, list[Array]]:
    """(hidden states [T, D], those of the query stream [P, D], inputs of each layer); `memory` is [L, M, D]."""
    outside = {name: np.float64(params["embed"][name]["embedding"]) for name in ("tokens", "mask")}
    x, inputs = outside["tokens"][tokens], []
    g = None if query is None else np.tile(outside["mask"], (len(query.allowed), 1))
    for number in range(cfg.layers):
        layer = _at(params["layers"], number)
        inputs.append(x)
        whole = x if memory is None else np.concatenate([np.float64(memory[number]), x])
        x, g = _block(cfg, layer, x, whole, content), None if query is None else _block(cfg, layer, g, whole, query)
    return x, g, inputs


def read_both_ways(cfg: Any, params: Any, prompt: Array, text: Array) -> Array:
    """[len(text), V]: log-probabilities of what follows a prompt and each part of a text. The prompt's tokens all see each other;
    after that, every step reads the last two tokens, behind what was computed of those before them."""
    tokens, memory, steps = prompt, np.zeros((cfg.layers, 0, cfg.width)), []
    for token in text:
        first, slots = memory.shape[1], memory.shape[1] + len(tokens)
        distance = np.arange(first, slots + 1)[:, None] - np.arange(slots)
        content, query = (Seen(allowed=np.ones(each.shape, bool), distance=each) for each in (distance[:-1], distance[-1:]))
        _, predicted, inputs = forward(cfg, params, tokens, content, query, memory)
        assert predicted is not None
        steps.append(log_probabilities(cfg, params, predicted)[0])
        tokens, memory = np.append(tokens, token)[-2:], np.concatenate([memory, inputs], 1)[:, :-1]
    return np.stack(steps)


def log_probabilities(cfg: Any, params: Any, hidden: Array) -> Array:
    logits = hidden @ np.float64(params["embed"]["tokens"]["embedding"])[: cfg.vocab].T
    logits = logits + np.float64(params["unembed"]["bias"])[: cfg.vocab]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _at(tree: Any, number: int) -> Any:
    return {name: _at(each, number) if isinstance(each, dict) else np.float64(each[number]) for name, each in tree.items()}


def _block(cfg: Any, layer: Any, x: Array, whole: Array, seen: Seen) -> Array:
    from scipy.special import erf

    attention = layer["attention"]
    q = np.einsum("td,dnh->tnh", x, attention["q"]["kernel"])
    k, v = np.moveaxis(np.einsum("sd,dcnh->scnh", whole, attention["kv"]["kernel"]), 1, 0)
    angles = seen.distance[..., None] / 10_000 ** (np.arange(0, cfg.width, 2) / cfg.width)
    r = np.einsum("tsd,dnh->tsnh", np.concatenate([np.sin(angles), np.cos(angles)], -1), attention["r"]["kernel"])
    scores = np.einsum("tnh,snh->nts", q + attention["content"]["embedding"], k)
    scores += np.einsum("tnh,tsnh->nts", q + attention["distance"]["embedding"], r)
    if seen.different is not None:
        both = np.einsum("tnh,cnh->ntc", q + attention["type"]["embedding"], attention["types"]["embedding"])
        scores += np.where(seen.different, both[..., 1:], both[..., :1])
    scores = np.where(seen.allowed, scores / np.sqrt(cfg.head), -np.inf)
    # The first in an order sees nothing.
    weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-1e300))
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    y = np.einsum("nts,snh,nhd->td", weights, v, attention["out"]["kernel"])
    x = _norm(cfg, layer["norm1"], x + y)
    inner = x @ layer["mlp"]["up"]["kernel"] + layer["mlp"]["up"]["bias"]
    inner = 0.5 * inner * (1 + erf(inner / np.sqrt(2)))
    return _norm(cfg, layer["norm2"], x + inner @ layer["mlp"]["down"]["kernel"] + layer["mlp"]["down"]["bias"])


def _norm(cfg: Any, norm: Any, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + cfg.eps) * norm["scale"] + norm["bias"]
