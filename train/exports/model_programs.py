"""The computation of a model as functions of flat dicts of arrays, which `train.exports.stablehlo` stores as programs.

The letters of shapes are those of `zoo.batch`; R is the length of a source, and S the number of slots of a cache.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from zoo.batch import Batch
from zoo.configs import longest_row
from zoo.generation.decode_loop import unroll_layers
from zoo.models import Model
from zoo.nn.task_heads import predicting_states, sequence_summaries
from zoo.sharding import path_of

Arrays = dict[str, Any]
"""Names -> arrays, or their shapes."""
Dims = tuple[int | str, ...]
"""Sizes of a shape; a letter stands for any size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A function of a model between flat dicts of arrays: (parameters, inputs) or (parameters, inputs, cache) -> outputs."""

    compute: Callable[..., Arrays]
    inputs: Mapping[str, Dims]
    """Shapes of the inputs, all of them int32."""
    cache: Callable[[Mapping[str, Any]], Arrays] | None = None
    """Shapes of the leaves of the cache for sizes by letter; None: the program has none."""
    cache_letters: str = ""
    """Letters of the cache's shapes that those of the inputs do not have."""
    limits: tuple[str, ...] = ()
    """Conditions on the letters, such as "T <= 512"."""

    @property
    def letters(self) -> list[str]:
        """The letters of all shapes."""
        return sorted({size for dims in self.inputs.values() for size in dims if isinstance(size, str)} | {*self.cache_letters})

    def arguments(self, sizes: Mapping[str, Any]) -> tuple[Arrays, ...]:
        """Return the shapes of the arguments after the parameters, for sizes by letter."""
        inputs = {
            name: jax.ShapeDtypeStruct(tuple(sizes[size] if isinstance(size, str) else size for size in dims), jnp.int32)
            for name, dims in self.inputs.items()
        }
        return (inputs,) if self.cache is None else (inputs, self.cache(sizes))


def portable_model(model: Model) -> Model:
    """Return the model with the attention that every platform has, without recomputation."""
    compute = dataclasses.replace(model.config.compute, attention="xla", remat="none")
    return dataclasses.replace(model, config=dataclasses.replace(model.config, compute=compute))


def flat_params(params: Any) -> Arrays:
    """Return the parameters by their paths, such as `layers/mlp/up/kernel`."""
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}


def nested_params(flat: Arrays) -> Arrays:
    """Return the tree of parameters by their paths."""
    tree: Arrays = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[name] = leaf
    return tree


def model_programs(model: Model, vocabulary: int, shapes: Arrays, dtype: Any) -> dict[str, Program]:
    """Return the programs of a model by name: forward, encoder of an encoder-decoder, and prefill and step if it generates.

    Args:
        vocabulary: number of entries of the tokenizer, to which the logits of words are cut.
        shapes: of the parameters, by path.
        dtype: their dtype, and that of caches.
    """
    model = portable_model(model)
    programs = {"forward": _forward(model, vocabulary)}
    if model.is_encoder_decoder:
        limits = _limits(model, "R")
        programs["encoder"] = Program(compute=functools.partial(_encode, model), inputs=SOURCE, limits=limits)
    if model.generates:
        programs |= _generation(unroll_layers(model), vocabulary, shapes, dtype)
    return programs


ROWS: dict[str, Dims] = {"tokens": ("B", "T"), "segments": ("B", "T")}
SOURCE: dict[str, Dims] = {"source_tokens": ("B", "R"), "source_segments": ("B", "R")}
SUMMARIZED = ("pretraining", "next", "sequence", "choice")
"""Tasks whose outputs are of sequences."""
OUTPUTS = {
    **dict.fromkeys(("body", "permutation"), ("hidden",)),
    **dict.fromkeys(("causal", "text_to_text", "masked"), ("logits",)),
    "pretraining": ("logits", "sequence_logits"),
    **dict.fromkeys(("next", "sequence", "choice"), ("sequence_logits",)),
    **dict.fromkeys(("tokens", "span"), ("token_logits",)),
}
"""Task of a model -> outputs of `forward`. The tokens of an XLNet see themselves in the content stream: their logits would not be
predictions."""


def _limits(model: Model, *letters: str) -> tuple[str, ...]:
    longest = longest_row(model.config)
    return () if longest is None else tuple(f"{letter} <= {longest}" for letter in letters)


def _source(inputs: Arrays) -> Batch | None:
    if "source_tokens" not in inputs:
        return None
    return Batch(tokens=inputs["source_tokens"], segments=inputs["source_segments"])


def _forward(model: Model, vocabulary: int) -> Program:
    inputs, letters = dict(ROWS), ["T"]
    if model.is_encoder_decoder:
        inputs, letters = inputs | SOURCE, ["T", "R"]
    if getattr(model.config, "types", 0) > 1:
        inputs["types"] = ROWS["tokens"]
    if model.task in SUMMARIZED:
        inputs["summary_at"] = ("B",)
    return Program(compute=functools.partial(_outputs, model, vocabulary), inputs=inputs, limits=_limits(model, *letters))


def _outputs(model: Model, vocabulary: int, weights: Arrays, inputs: Arrays) -> Arrays:
    """Return what the head of a model computes of rows, or the hidden states of a body."""
    params, at = nested_params(weights), inputs.get("summary_at")
    batch = Batch(
        tokens=inputs["tokens"],
        segments=inputs["segments"],
        types=inputs.get("types"),
        summary_at=None if at is None else at[:, None],
        source=_source(inputs),
    )
    out = model.apply(params, batch)
    outputs: dict[str, Callable[[], jax.Array]] = {
        "hidden": lambda: out.hidden,
        "logits": lambda: model.unembed(params, out.hidden)[..., :vocabulary],
        "sequence_logits": lambda: model.sequence_logits(params, sequence_summaries(out, batch))[:, 0],
        "token_logits": lambda: model.token_logits(params, out.hidden),
    }
    return {name: outputs[name]() for name in OUTPUTS[model.task]}


def _encode(model: Model, weights: Arrays, inputs: Arrays) -> Arrays:
    """Return the hidden states of a source; nothing depends on the one target token, so its computation is left out."""
    source = _source(inputs)
    first = {name: inputs[f"source_{name}"][:, :1] for name in ("tokens", "segments")}
    batch = Batch(**first, source=source)
    return {"hidden": model.apply(nested_params(weights), batch).source_hidden}


def _generation(model: Model, vocabulary: int, shapes: Arrays, dtype: Any) -> dict[str, Program]:
    """Return the programs that read prompts into an empty cache, and one more token of each row into that of prompts."""
    source = SOURCE if model.is_encoder_decoder else {}
    places: dict[str, Dims] = {**ROWS, "positions": ROWS["tokens"]}
    more = "R" if model.is_encoder_decoder else ""
    limits = _limits(model, "S", *more)

    def empty(sizes: Mapping[str, Any]) -> Any:
        return jax.eval_shape(lambda: model.init_cache(sizes["B"], sizes["S"], dtype))

    form = CacheForm.of(empty({"B": 1, "S": 1}))
    prefill = Program(
        compute=functools.partial(_append, model, vocabulary, form),
        inputs=places | source,
        cache=lambda sizes: form.split(empty(sizes)),
        cache_letters="S",
        limits=(*limits, "S >= T"),
    )

    def filled(sizes: Mapping[str, Any]) -> Any:
        arguments = prefill.arguments({"T": 1, **sizes})
        return jax.eval_shape(functools.partial(_read, model, form), shapes, *arguments)[1]

    later = CacheForm.of(filled({"B": 1, "S": 1, "R": 1}))
    step = Program(
        compute=functools.partial(_append, model, vocabulary, later),
        inputs=dict.fromkeys(places, ("B", 1)),
        cache=lambda sizes: later.split(filled(sizes)),
        cache_letters="S" + more,
        limits=limits,
    )
    return {"prefill": prefill, "step": step}


@dataclasses.dataclass(frozen=True)
class CacheForm:
    """The names of the leaves of a cache, and the tree that they form."""

    names: tuple[str, ...]
    tree: Any

    @classmethod
    def of(cls, cache: Any) -> "CacheForm":
        """Return the form of a cache, or of its shapes."""
        return cls(tuple(path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(cache)), jax.tree.structure(cache))

    def split(self, cache: Any) -> Arrays:
        """Return the leaves of a cache of this form by name."""
        return dict(zip(self.names, jax.tree.leaves(cache), strict=True))

    def join(self, leaves: Arrays) -> Any:
        """Return the cache with these leaves."""
        return jax.tree.unflatten(self.tree, [leaves[name] for name in self.names])


def _read(model: Model, form: CacheForm, weights: Arrays, inputs: Arrays, leaves: Arrays) -> tuple[jax.Array, Any]:
    """Return the hidden states that predict the token after each row, [B, D], and the cache with the rows."""
    batch = Batch(tokens=inputs["tokens"], segments=inputs["segments"], positions=inputs["positions"], source=_source(inputs))
    out = model.apply(nested_params(weights), batch, cache=form.join(leaves))
    return predicting_states(out, batch)[:, -1], out.cache


def _append(model: Model, vocabulary: int, form: CacheForm, weights: Arrays, inputs: Arrays, leaves: Arrays) -> Arrays:
    """Return the logits of the token after each row, [B, V], and the leaves of the cache with the rows."""
    hidden, cache = _read(model, form, weights, inputs, leaves)
    logits = model.unembed(nested_params(weights), hidden)[:, :vocabulary]
    return {"logits": logits, "cache": CacheForm.of(cache).split(cache)}
