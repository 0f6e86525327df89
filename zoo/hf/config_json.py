"""Strict reader of a published config.json: values that are not implemented are refused, and unread keys are reported."""

import json
import math
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from zoo.errors import BadInput
from zoo.file_access import read_regular
from zoo.hf.config_keys import GENERATION_KEYS, KEYS_OF_FIELDS, SIZE, UNSUPPORTED

FILE = "config.json"
LARGEST_FILE = 1 << 20
MOST_LABELS = 100_000
"""Largest number of labels. A file of at most `LARGEST_FILE` bytes names fewer."""

T = TypeVar("T")


class PublishedConfig:
    """The object in a config.json. Each method reads one key and raises an error for an invalid value.

    Nothing in the file is executed, imported or fetched.
    """

    task: str = ""
    """Task of the tensors in the same folder, for a family with several heads; set by the loader after inspecting them."""

    def __init__(self, file: Path, content: dict[str, Any], parents: str = "", paths: dict[str, bool] | None = None) -> None:
        self.file = file
        self._content = content
        self._parents = parents
        """Keys of the objects that contain this one, each with a point behind it."""
        self._read: set[str] = set()
        self._paths: dict[str, bool] = {} if paths is None else paths
        """Maps a key that was read, "rope_scaling.factor" if it is in an inner object, to whether the file has it."""
        self._aliases: dict[str, str] = {}
        """Maps a key of the family to the other name under which this file has it."""

    @classmethod
    def load(cls, folder: Path) -> "PublishedConfig":
        """Read the config.json of a folder.

        Raises:
            BadInput: no such file, or no strict JSON object of at most 1 MiB.
        """
        file = folder / FILE
        if not file.exists():
            raise BadInput(f"{file}: no such file; name a folder that has one: a run, or published weights")
        return cls(file, read_json(file, LARGEST_FILE))

    def use_aliases(self, aliases: Mapping[str, str]) -> None:
        """Read keys under their other names from now on, if the file has those names.

        `transformers` sets the keys of a family first and values under other names (`attribute_map`) afterwards, so an alias
        takes precedence over the key itself. Values that `transformers` computes in between must be read before this call.

        Args:
            aliases: maps the other name to the key of the family; all values are integers.

        Raises:
            BadInput: an alias is null, or the key that it replaces is not an integer.
        """
        for alias, key in aliases.items():
            if alias not in self._content:
                continue
            if key in self._content:
                self.integer(key)
            if self._content[alias] is None:
                raise self.wrong(alias, None, f"`transformers` reads it as {key}; give a number or leave it out")
            self._aliases[key] = alias

    def integer(self, key: str, default: int | None = None, *, least: int = 1, nullable: bool = False) -> int:
        """Return an integer of at least `least`; the default if it is absent, or if it is null and `nullable`."""
        value = self._take(key, default, nullable)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(key, value, f"it must be a whole number of at least {least}")
        return value

    def number(self, key: str, default: float | None = None, *, nullable: bool = False, decimal: bool = False) -> float:
        """Return a finite number; with `decimal` it must have a point or an exponent, as in `transformers`."""
        value = self._take(key, default, nullable)
        if decimal and isinstance(value, int):
            raise self.wrong(key, value, f"it must be a decimal number, as {float(default or 0)}")
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
            raise self.wrong(key, value, "it must be a finite number")
        return float(value)

    def flag(self, key: str, default: bool, *, nullable: bool = False) -> bool:
        """Return a boolean; the default if it is absent, or if it is null and `nullable`."""
        value = self._take(key, default, nullable)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "it must be true or false")
        return value

    def choice(self, key: str, choices: Mapping[str, T], default: str, *, why: str = "this family computes") -> T:
        """Return the meaning of a name in `choices`; `why` introduces the list of choices in the error message."""
        value = self._take(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.wrong(key, value, f"{why} {', '.join(choices)}")
        return choices[value]

    def spelling(self, key: str, names: Mapping[str, Any]) -> str:
        """Return the file's name for a meaning that has several names; "" if it is the first of them, or absent."""
        name = self._content.get(key, "")
        return "" if name not in names or name == first_name(names, names[name]) else name

    def initializer(self, key: str, *, largest: float = math.inf) -> float | None:
        """Return the standard deviation of fresh weights, or None if the file has none."""
        if key not in self._content:
            return None
        if not 0 <= (value := self.number(key, 0.02, decimal=True)) <= largest:
            raise self.wrong(key, value, "it must be at least 0.0" if value < 0 else f"it must be at most {largest}")
        return value

    def strings(self, key: str) -> tuple[str, ...] | None:
        """Return a list of strings; None if it is absent or null."""
        value = self._take(key, None, nullable=True)
        if not has_type(value, list[str] | None):
            raise self.wrong(key, value, "it must be a list of strings, or null")
        return None if value is None else tuple(value)

    def integers(self, key: str) -> tuple[int, ...] | None:
        """Return a list of integers; None if it is absent or null."""
        value = self._take(key, None, nullable=True)
        if not has_type(value, list[int] | None):
            raise self.wrong(key, value, "it must be a list of whole numbers, or null")
        return None if value is None else tuple(value)

    def has(self, key: str) -> bool:
        """Return True if the file has a key, whatever its value is."""
        return self._aliases.get(key, key) in self._content

    def subsection(self, key: str) -> "PublishedConfig | None":
        """Return the object at a key; None if it is absent, null or empty.

        Raises:
            BadInput: it is no object.
        """
        value = self._take(key, None, nullable=True)
        if not isinstance(value, dict | None):
            raise self.wrong(key, value, "it must be an object, or null")
        return self._inner(key, value) if value else None

    def either_subsection(self, key: str, other: str) -> "PublishedConfig | None":
        """Return the object at one of two keys, of which files have one or the other; None if they have none.

        Raises:
            BadInput: both have one, or it is no object.
        """
        sections = [section for name in (key, other) if (section := self.subsection(name)) is not None]
        if len(sections) > 1:
            raise self.wrong(key, "an object", f"{other} has one too; remove one of them")
        return sections[0] if sections else None

    def section(self, key: str, names: Iterable[str]) -> dict[str, "PublishedConfig"]:
        """Return those of the objects `names` that the object at a key has; none if it is absent or null.

        Raises:
            BadInput: it is no object, or has another key.
        """
        value = self._take(key, {}, nullable=True)
        if not isinstance(value, dict) or not value.keys() <= set(names) or not all(isinstance(v, dict) for v in value.values()):
            raise self.wrong(key, value, f"it must be an object of the objects {', '.join(names)}")
        return {name: self._inner(f"{key}.{name}", content) for name, content in value.items()}

    def nothing_else(self) -> None:
        """Refuse keys that were not read."""
        for key in self._content.keys() - self._read:
            raise self.wrong(key, self._content[key], "this family does not compute it")

    def check_padding(self, vocab: int, default: int = 0) -> None:
        """Refuse a `pad_token_id` outside the vocabulary; null is none, and an absent key means `default`."""
        padding = self.integer("pad_token_id", 0 if "pad_token_id" in self._content else default, least=-vocab, nullable=True)
        if padding >= vocab:
            raise self.wrong("pad_token_id", padding, f"choose an id below the vocabulary size {vocab}")

    def check_causal(self) -> None:
        """Refuse a decoder that `transformers` computes without a causal mask: `is_causal` with any value but true."""
        if (value := self._take("is_causal", True)) is not True:
            raise self.wrong("is_causal", value, "this family computes true: a token sees none after it")

    def only(self, key: str, value: Any) -> None:
        """Refuse any value but the one that this family computes; an absent key means that value."""
        if (actual := self._take(key, value)) != value or type(actual) is not type(value):
            raise self.wrong(key, actual, f"this family computes {json.dumps(value)}")

    def never(self, key: str) -> None:
        """Refuse any value but null, for a key whose presence changes the form of the weights."""
        if (value := self._take(key, None, nullable=True)) is not None:
            raise self.wrong(key, value, "such weights are not supported; use the original weights")

    def not_quantized(self) -> None:
        """Refuse quantized weights; the message names their format.

        Raises:
            BadInput: the file has a `quantization_config` other than null.
        """
        key = "quantization_config"
        value = self._take(key, None, nullable=True)
        method = value.get("quant_method") if isinstance(value, dict) else None
        fix = "quantized weights are not read in this family; use the original weights"
        if isinstance(method, str):
            raise self._inner(key, value).wrong("quant_method", method, fix)
        if value is not None:
            raise self.wrong(key, value, fix)

    def architecture(self) -> str:
        """Return the class of `transformers` that the weights were saved from; "" if the file does not name it."""
        value = self._take("architectures", None, nullable=True)
        if not has_type(value, list[str] | None):
            raise self.wrong("architectures", value, "it must be a list of names, or null")
        return value[0] if value else ""

    def labels(self) -> tuple[str, ...]:
        """Return the names of a classifier's labels: `id2label`, or else LABEL_0, LABEL_1, ... for `num_labels` (default 2)."""
        named = self._take("id2label", None, nullable=True)
        count = self.integer("num_labels", len(named) if isinstance(named, dict) and named else 2)
        if named is None:
            if count > MOST_LABELS:
                raise self.wrong("num_labels", count, f"at most {MOST_LABELS:,} are read")
            return tuple(f"LABEL_{row}" for row in range(count))
        rows = {str(row): name for row, name in named.items()} if isinstance(named, dict) else {}
        if rows.keys() != {str(row) for row in range(len(rows))} or not rows:
            raise self.wrong("id2label", named, "it must name each label of the classifier, from 0 on")
        names = tuple(rows[str(row)] for row in range(len(rows)))
        if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
            raise self.wrong("id2label", named, "each label must have a different name")
        if count != len(names):
            raise self.wrong("num_labels", count, f"id2label names {len(names)}; remove one of the two keys")
        return names

    def without_effect(self, *keys: str) -> None:
        """Mark keys as read that do not change the results of the model.

        Raises:
            BadInput: a key has a value of a type that `transformers` refuses.
        """
        self._read.update(keys)
        for key in self._content.keys() & KINDS.keys() & set(keys):
            if not has_type(value := self._content[key], KINDS[key]):
                raise self.wrong(key, value, f"it must be {describe_kind(KINDS[key])}")

    def unread(self) -> list[str]:
        """Return the keys that were not read.

        Raises:
            BadInput: one of them names a size, changes the meaning of other keys, or is in `UNSUPPORTED`.
        """
        unread = sorted(self._content.keys() - self._read)
        for key in unread:
            if key in UNSUPPORTED and self._content[key] is not None:
                raise self.wrong(key, self._content[key], "this family does not compute it")
            if SIZE.search(key):
                fix = "this key is unknown and names a size, which may change the results; remove it if it has no effect"
                raise self.wrong(key, self._content[key], fix)
        return unread

    def wrong(self, key: str, value: Any, why: str) -> BadInput:
        """Return the exception to raise for a wrong value of a key."""
        key = self._aliases.get(key, key)
        state = f"is {json.dumps(value)[:60]}" if key in self._content else "is absent"
        return BadInput(f"{self.file}: {self._parents}{key} {state}; {why}")

    def with_keys(self, message: str) -> str:
        """Return a message about options of a model with the keys of this file in their place, where it has such keys."""

        def key_of(option: re.Match[str]) -> str:
            field = option[1].replace("-", "_")
            keys = [key for key in KEYS_OF_FIELDS.get(field, (field,)) if key in self._paths]
            return next((key for key in keys if self._paths[key]), keys[0] if keys else option[0])

        return re.sub(r"--model\.([a-z0-9-]+)", key_of, message)

    def _inner(self, key: str, content: dict[str, Any]) -> "PublishedConfig":
        """Return the reader of the object at a key."""
        return PublishedConfig(self.file, content, f"{self._parents}{key}.", self._paths)

    def _take(self, key: str, default: Any, nullable: bool = False) -> Any:
        name = self._aliases.get(key, key)
        self._read.update((key, name))
        self._paths[self._parents + name] = name in self._content
        value = self._content.get(name, default)
        return default if value is None and nullable else value


ACTIVATIONS: dict[str, Literal["gelu", "gelu_tanh", "relu", "relu2", "silu"]] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}
"""Maps published names of activations to those of this project; an export writes the first published name that fits."""

BOOKKEEPING = (
    *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "_name_or_path", "name_or_path"),
    # The class of the tokenizer, which is read with the tokenizer's files.
    "tokenizer_class",
    *("bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "gradient_checkpointing"),
    *("task_specific_params", "finetuning_task", "id2label", "label2id", "num_labels", "problem_type", "torchscript"),
    *("return_dict", "output_attentions", "output_hidden_states", "use_bfloat16", "chunk_size_feed_forward"),
    # The activation of a cross-encoder is read by `zoo.cross_encoder_files`.
    *("sentence_transformers", "sbert_ce_default_activation_function"),
    # Settings of generation are read by `train.weights.generation_settings`.
    *sorted(GENERATION_KEYS - {"pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "use_cache"}),
)
"""Keys of any family that describe how a model was made or is called, and not what it computes."""

DTYPE = Literal["float32", "float16", "bfloat16", "float64"] | None
KINDS: dict[str, Any] = {
    **{"transformers_version": str | None, "dtype": DTYPE, "torch_dtype": DTYPE, "use_cache": bool, "num_labels": int},
    **{"bos_token_id": int | None, "eos_token_id": int | list[int] | None, "pad_token_id": int | None},
    **{"id2label": dict[str, str] | None, "label2id": dict[str, int] | dict[str, str] | None},
    **{"initializer_range": float, "initializer_factor": float, "init_std": float, "classifier_dropout": float | int},
    **{"initializer_cutoff_factor": float, "cls_token_id": int | None, "sep_token_id": int | None},
    **{"deterministic_flash_attn": bool, "sparse_prediction": bool, "sparse_pred_ignore_index": int},
    **{"return_dict": bool | None, "output_attentions": bool | None, "output_hidden_states": bool | None},
    **{"chunk_size_feed_forward": int, "is_encoder_decoder": bool, "forced_eos_token_id": int | list[int] | None},
    **{"summary_type": str, "summary_use_proj": bool, "summary_activation": str | None, "summary_proj_to_labels": bool},
    **{"summary_first_dropout": float | int, "reorder_and_upcast_attn": bool},
    **{"output_router_logits": bool, "router_aux_loss_coef": float},
    **{"pretraining_tp": int | None, "sliding_window": int | None, "max_window_layers": int},
    **{"use_mems_eval": bool, "use_mems_train": bool, "start_n_top": int, "end_n_top": int},
}
"""Types of keys without effect, as the configurations of `transformers` declare them."""


def has_type(value: Any, kind: Any) -> bool:
    """Return True if a JSON value has a type. True is not a number, and 1 is not a float."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(has_type(value, member) for member in arguments)
    if origin is Literal:
        return value in arguments
    if origin is list:
        return isinstance(value, list) and all(has_type(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(has_type(item, arguments[1]) for item in value.values())
    return type(value) is kind


def describe_kind(kind: Any) -> str:
    """Return a type of `KINDS` in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(describe_kind, arguments))
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin in (list, dict):
        return f"{'a list' if origin is list else 'an object'} whose values are each {describe_kind(arguments[-1])}"
    return {int: "a whole number", float: "a decimal number", bool: "true or false", str: "a string"}.get(kind, "null")


def first_name(names: Mapping[str, Any], meaning: Any) -> str:
    """Return the name that an export writes: the first name in `names` with this meaning."""
    return next(name for name, other in names.items() if other == meaning)


def read_json(file: Path, largest: int) -> dict[str, Any]:
    """Return the JSON object in a file, which must have no key twice and no NaN.

    Raises:
        BadInput: it is not such an object, or is larger than `largest` bytes.
    """
    try:
        return parse_json(read_regular(file, largest), file)
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from None


def parse_json(raw: bytes, file: Path) -> dict[str, Any]:
    """Return the JSON object in bytes, as `read_json`; `file` appears in the error message."""
    try:
        content = json.loads(raw.decode(), object_pairs_hook=_each_key_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:120]
        raise BadInput(f"{file}: not strict JSON ({why}); correct it, or download it again") from None
    if not isinstance(content, dict):
        raise BadInput(f"{file}: not a JSON object")
    return content


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {json.dumps(key)[:80]} comes twice")
        content[key] = value
    return content


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not valid JSON")
