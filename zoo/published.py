"""A published config.json, read key by key: what a family does not compute is refused, and what nobody read is told."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from zoo.errors import BadInput

FILE = "config.json"
LARGEST_FILE = 1 << 20
MOST_LABELS = 100_000
"""No file of that size names more."""

T = TypeVar("T")


class Published:
    """The object in a config.json. Every method reads one key and refuses a value that is not what it must be.

    Nothing in the file is executed, imported or fetched.
    """

    task: str = ""
    """What the tensors beside the file are for, where a family has several heads; set by whoever has looked at them."""

    def __init__(self, file: Path, content: dict[str, Any]) -> None:
        self.file = file
        self._content = content
        self._read: set[str] = set()
        self._aliases: dict[str, str] = {}
        """Key of the family -> the other name under which this file has it."""

    @classmethod
    def load(cls, folder: Path) -> "Published":
        """
        Raises:
            BadInput: no such file, or no strict JSON object of at most 1 MiB.
        """
        file = folder / FILE
        return cls(file, read_json(file, LARGEST_FILE))

    def use_aliases(self, aliases: Mapping[str, str]) -> None:
        """Read a key under its other name from now on, where the file has that name.

        `transformers` sets the keys of a family first and what stands under other names (`attribute_map`) afterwards, so an alias
        wins over the key itself. What it works out between the two, a family reads before it calls this.

        Args:
            aliases: other name -> key of the family; all of them are whole numbers.

        Raises:
            BadInput: an alias is null, or the key it replaces is no whole number.
        """
        for alias, key in aliases.items():
            if alias not in self._content:
                continue
            if key in self._content:
                self.whole(key)
            if self._content[alias] is None:
                raise self.wrong(alias, None, f"it is the name that `transformers` reads as {key}; give a number or leave it out")
            self._aliases[key] = alias

    def whole(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number of at least `least`; an absent or null one takes the default."""
        value = self._take(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(key, value, f"it must be a whole number of at least {least}")
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        value = self._take(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
            raise self.wrong(key, value, "it must be a finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false; an absent or null one takes the default."""
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "it must be true or false")
        return value

    def choice(self, key: str, choices: Mapping[str, T], default: str, *, why: str = "this family computes") -> T:
        """What a name stands for; `why` introduces the `choices` where it is none of them."""
        value = self._take(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.wrong(key, value, f"{why} {', '.join(choices)}")
        return choices[value]

    def only(self, key: str, value: Any) -> None:
        """Refuse anything but the one value that this family computes; an absent key means that value."""
        if (found := self._take(key, value)) != value or type(found) is not type(value):
            raise self.wrong(key, found, f"this family computes {json.dumps(value)}")

    def never(self, key: str) -> None:
        """Refuse a key that says that the weights are not what they seem."""
        if (found := self._take(key, None)) is not None:
            raise self.wrong(key, found, "such weights are not read; take the original ones")

    def architecture(self) -> str:
        """The class of `transformers` that the weights were saved from; "" where the file does not say."""
        value = self._take("architectures", None)
        return value[0] if isinstance(value, list) and value and isinstance(value[0], str) else ""

    def labels(self) -> tuple[str, ...]:
        """The names of a classifier's rows: `id2label`, or LABEL_0, LABEL_1, ... for each of `num_labels`, or for two."""
        named = self._take("id2label", None)
        if named is None:
            if (rows := self.whole("num_labels", 2)) > MOST_LABELS:
                raise self.wrong("num_labels", rows, f"at most {MOST_LABELS:,} are read")
            return tuple(f"LABEL_{row}" for row in range(rows))
        rows = {str(row): name for row, name in named.items()} if isinstance(named, dict) else {}
        if rows.keys() != {str(row) for row in range(len(rows))} or not rows:
            raise self.wrong("id2label", named, "it must name each row of the classifier, from 0 on")
        names = tuple(rows[str(row)] for row in range(len(rows)))
        if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
            raise self.wrong("id2label", named, "each row must have a name of its own")
        return names

    def without_effect(self, *keys: str) -> None:
        """Keys that do not change what the model computes."""
        self._read.update(keys)

    def unread(self) -> list[str]:
        """Keys nobody has asked for.

        Raises:
            BadInput: one of them names a size, or changes what other keys mean.
        """
        unread = sorted(self._content.keys() - self._read)
        for key in unread:
            if SIZE.search(key):
                fix = "it is not known here and names a size, which may change what is computed; remove it if it has no effect"
                raise self.wrong(key, self._content[key], fix)
        return unread

    def wrong(self, key: str, value: Any, why: str) -> BadInput:
        """The refusal of a key's value."""
        key = self._aliases.get(key, key)
        said = f"is {json.dumps(value)[:60]}" if key in self._content else "is absent"
        return BadInput(f"{self.file}: {key} {said}; {why}")

    def _take(self, key: str, default: Any) -> Any:
        name = self._aliases.get(key, key)
        self._read.update((key, name))
        value = self._content.get(name)
        return default if value is None else value


BOOKKEEPING = (
    *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "_name_or_path", "name_or_path"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "initializer_range", "gradient_checkpointing"),
    *("task_specific_params", "finetuning_task", "id2label", "label2id", "num_labels", "problem_type", "torchscript"),
    *("return_dict", "output_attentions", "output_hidden_states", "use_bfloat16", "chunk_size_feed_forward"),
    # Settings of generation, which `transformers` 5 no longer reads from this file.
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
)
"""Keys of any family that say how a model was made or is to be called, not what it computes."""

SIZE = re.compile(
    "hidden|layer|head|dim|size|position|vocab|width|depth|embd|inner|ffn|window|expert|(^|_)n_|^num_|^attribute_map$"
)
"""What the names of sizes contain. An unknown key with such a name may change what `transformers` computes."""


def read_json(file: Path, largest: int) -> dict[str, Any]:
    """A file's JSON object, with each key once and no NaN.

    Raises:
        BadInput: it is not that, or is larger than `largest` bytes.
    """
    try:
        if (size := file.stat().st_size) > largest:
            raise BadInput(f"{file}: {size:,} bytes; at most {largest:,} are read")
        return parse_json(file.read_bytes(), file)
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from None


def parse_json(raw: bytes, file: Path) -> dict[str, Any]:
    """The same of bytes already read; `file` is what the message names."""

    try:
        content = json.loads(raw.decode(), object_pairs_hook=_each_key_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file}: not strict JSON ({' '.join(str(error).split())[:120]})") from None
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
    raise ValueError(f"{name} is no JSON")
