"""Settings of published tokenizers, combined from their files as `transformers` 5.24 does.

The files are tokenizer_config.json, special_tokens_map.json, added_tokens.json, and config.json for the class of the tokenizer.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from train.tokenizers import byte_tokens, special_tokens
from train.tokenizers.special_tokens import END_OF_TEXT
from train.tokenizers.tokenizer import FILE, LARGEST_FILE, SETTINGS
from zoo.errors import BadInput
from zoo.hf.config_json import FILE as CONFIG
from zoo.hf.config_json import read_json

NAMES, ADDED = "special_tokens_map.json", "added_tokens.json"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Roles of special tokens, in the order in which `transformers` adds missing ones."""
AS_WRITTEN = "PreTrainedTokenizerFast"
"""The class that takes all rules from tokenizer.json. The classes named after models take only its entries."""
ALIASES = {
    **dict.fromkeys(("TokenizersBackend", "PreTrainedTokenizer", AS_WRITTEN), AS_WRITTEN),
    **dict.fromkeys(("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"), "BertTokenizer"),
    **{name: name for name in ("GPT2Tokenizer", "RobertaTokenizer", "T5Tokenizer", "XLNetTokenizer")},
    **{name: name for name in ("XLMRobertaTokenizer", "ByT5Tokenizer")},
    **{"MT5Tokenizer": "T5Tokenizer", "Qwen2Tokenizer": "Qwen2Tokenizer"},
}
BY_FAMILY = {
    **{"gpt2": "GPT2Tokenizer", "bert": "BertTokenizer", "distilbert": "BertTokenizer", "roberta": "RobertaTokenizer"},
    **{"t5": "T5Tokenizer", "xlnet": "XLNetTokenizer", "modernbert": AS_WRITTEN, "xlm-roberta": "XLMRobertaTokenizer"},
    "modernbert-decoder": AS_WRITTEN,
    **{"mt5": "T5Tokenizer", "umt5": AS_WRITTEN, "llama": AS_WRITTEN, "smollm3": AS_WRITTEN, "qwen3": "Qwen2Tokenizer"},
    **{"gpt_oss": AS_WRITTEN, "nanochat": AS_WRITTEN, "qwen2": "Qwen2Tokenizer"},
}
"""`model_type` -> the tokenizer class that is used if no file names a class."""
OF_ROBERTA = {
    **{f"{role}_token": name for role, name in special_tokens.ROBERTA.items()},
    **{"bos_token": special_tokens.ROBERTA["cls"], "eos_token": special_tokens.ROBERTA["sep"]},
}
OF_T5 = {
    "eos_token": special_tokens.TEXT["end"],
    "unk_token": special_tokens.TEXT["unk"],
    "pad_token": special_tokens.TEXT["pad"],
}
DEFAULTS: dict[str, dict[str, str]] = {
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), END_OF_TEXT),
    "BertTokenizer": {f"{role}_token": name for role, name in special_tokens.BERT.items()},
    "RobertaTokenizer": OF_ROBERTA,
    "XLMRobertaTokenizer": OF_ROBERTA,
    "T5Tokenizer": OF_T5,
    "ByT5Tokenizer": OF_T5,
    "XLNetTokenizer": {f"{role}_token": name for role, name in special_tokens.XLNET.items() if f"{role}_token" in ROLES},
}
"""Default special tokens of each class."""
CODE = ("auto_map", "fast_tokenizer_files", "init_inputs")
"""Settings that select other code or other files, or that pass unnamed arguments."""


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that is added to a vocabulary. A text with the name of a special token is not encoded as its id."""

    content: str
    special: bool
    normalized: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False

    @classmethod
    def parse(cls, value: Any, where: Path, key: str) -> "AddedToken":
        """Return the token that is written as a name, or as an object with `content` and flags.

        Raises:
            BadInput: `value` is neither a string nor such an object.
        """
        if isinstance(value, str):
            return cls(value, special=True, normalized=False)
        flags = {name: value.get(name, False) for name in FLAGS} if isinstance(value, dict) else {}
        content = value.get("content") if flags else None
        if not isinstance(content, str) or not all(isinstance(flag, bool) for flag in flags.values()):
            raise BadInput(
                f"{where}: {key} is {json.dumps(value)[:60]}; it must be a token's name, or an object with its content"
            )
        return cls(content, **{**flags, "normalized": value.get("normalized", not flags["special"])})


FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """The settings of the tokenizer in a folder."""

    file: Path
    """The tokenizer_config.json, which may not exist."""
    values: dict[str, Any]
    """Content of tokenizer_config.json, and of special_tokens_map.json where `transformers` reads that file."""
    name: str | None = None
    """The class of `transformers` that reads the folder, one of the values of `ALIASES`; None: no file names one."""
    added: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """The content of added_tokens.json, where `transformers` reads it."""
    special: Any = None
    """Special tokens without a role of their own; an added token with one of these names is special."""
    model_type: Any = None
    """`model_type` of config.json, if there is one."""

    @classmethod
    def load(cls, folder: Path) -> "TokenizerSettings":
        """Read the files of a folder.

        Raises:
            BadInput: a file cannot be read, names a class whose rules are not implemented here, or names other code or files.
        """
        file = folder / SETTINGS
        values = read_json(file, LARGEST_FILE) if file.exists() else {}
        for key in CODE:
            if values.get(key):
                raise BadInput(
                    f"{file}: {key} is {json.dumps(values[key])[:60]}; such code or files are not supported; remove it"
                )
        config = read_json(folder / CONFIG, LARGEST_FILE) if (folder / CONFIG).exists() else {}
        name = _class_name(folder, file, values, config)
        added: dict[str, Any] = {}
        special = values.get("extra_special_tokens") or values.get("additional_special_tokens")
        # With this key, `transformers` ignores both older files.
        if "added_tokens_decoder" not in values:
            if (folder / NAMES).exists():
                values = _with_special_tokens_map(values, read_json(folder / NAMES, LARGEST_FILE))
                # It applies `additional_special_tokens` of this file too late to make added tokens special.
                special = values.get("extra_special_tokens")
            if (folder / ADDED).exists():
                added = read_json(folder / ADDED, LARGEST_FILE)
        if wrong := [token for token, number in added.items() if type(number) is not int]:
            raise BadInput(f"{folder / ADDED}: {wrong[0]} is {json.dumps(added[wrong[0]])[:60]}; it must be the token's id")
        return cls(file, values, name, added, special, config.get("model_type"))

    def flag(self, key: str, default: bool | None) -> bool | None:
        """Return a boolean setting, or its default if it is absent or null.

        Raises:
            BadInput: the value is not a boolean.
        """
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise BadInput(f"{self.file}: {key} is {json.dumps(value)[:60]}; it must be true or false")
        return value

    def count(self, key: str, default: int, largest: int) -> int:
        """Return a setting that is a number from 0 to `largest`, or its default if it is absent or null.

        Raises:
            BadInput: the value is not such a number.
        """
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) is not int or not 0 <= value <= largest:
            raise BadInput(f"{self.file}: {key} is {json.dumps(value)[:60]}; it must be 0 to {largest}")
        return value

    def wrong(self, why: str) -> BadInput:
        """Return the error for this folder."""
        return BadInput(f"{self.file.parent}: {why}")

    def named(self) -> dict[str, str]:
        """Return the special tokens that the files name, by role."""
        values = self.values
        return {role: AddedToken.parse(values[role], self.file, role).content for role in ROLES if values.get(role) is not None}

    def roles(self, name: str | None) -> dict[str, str]:
        """Return the special tokens of a tokenizer of a class, by role: its defaults where the files name none and no null."""
        defaults = DEFAULTS.get(name or "", {})
        return {role: token for role, token in defaults.items() if role not in self.values} | self.named()

    def additions(
        self, name: str | None, content: Iterable[Mapping[str, Any]]
    ) -> tuple[dict[str, AddedToken], list[tuple[str, int]]]:
        """Return the tokens that a class adds to a vocabulary, in its order, and the (token, id) pairs in the files.

        Args:
            name: the class.
            content: `added_tokens` of the tokenizer.json, if there is one.
        """
        decoder: dict[int, AddedToken] = {}
        if "added_tokens_decoder" in self.values:
            by_id = self.values["added_tokens_decoder"]
            if not isinstance(by_id, dict) or not all(number.isdecimal() for number in by_id):
                raise BadInput(f"{self.file}: added_tokens_decoder must be an object from ids to tokens")
            decoder = {int(number): AddedToken.parse(token, self.file, "added_tokens_decoder") for number, token in by_id.items()}
        else:
            explicit = {*self.named().values(), *(token.content for token in self._tokens(self.special or [], "special tokens"))}
            for token, number in self.added.items():
                decoder[number] = AddedToken(token, special=token in explicit, normalized=token not in explicit)
            decoder |= {token["id"]: AddedToken.parse(token, self.file.with_name(FILE), "added_tokens") for token in content}
        roles = self.roles(name)
        # Any other key of this form is a special token too.
        other_keys = [
            key for key, value in self.values.items() if key.endswith("_token") and key not in ROLES and _is_token(value)
        ]
        named_values = [*(roles[role] for role in ROLES if role in roles), *(self.values[key] for key in other_keys)]
        named_tokens = [AddedToken.parse(value, self.file, "a special token") for value in named_values]
        special = {token.content for token in named_tokens}
        tokens = [
            dataclasses.replace(token, special=token.special or token.content in special)
            for _, token in sorted(decoder.items(), key=lambda entry: entry[0])
        ]
        tokens += [dataclasses.replace(token, special=True) for token in named_tokens]
        tokens += self.extra(name)
        by_content: dict[str, AddedToken] = {}
        for token in tokens:
            by_content.setdefault(token.content, token)
        return by_content, [(token.content, number) for number, token in decoder.items()]

    def extra(self, name: str | None) -> list[AddedToken]:
        """Return the additional special tokens: those that are not bos, eos, unk, sep, pad, cls or mask."""
        values, default = self.values, []
        if name == "XLNetTokenizer":
            default = [special_tokens.XLNET["eop"], special_tokens.XLNET["eod"]]
        elif name in ("T5Tokenizer", "ByT5Tokenizer"):
            usual = special_tokens.SENTINELS if name == "T5Tokenizer" else byte_tokens.SENTINELS
            default = [special_tokens.sentinel_name(number) for number in range(self.count("extra_ids", usual, MOST_SENTINELS))]
        key = "extra_special_tokens" if values.get("extra_special_tokens") else "additional_special_tokens"
        extra = values.get(key)
        return self._tokens(default if extra is None else extra, key)

    def _tokens(self, value: Any, key: str) -> list[AddedToken]:
        tokens = _as_list(value)
        if not isinstance(tokens, list):
            raise BadInput(f"{self.file}: {key} is {json.dumps(value)[:60]}; it must be a list of tokens")
        return [AddedToken.parse(token, self.file, key) for token in tokens]


MOST_SENTINELS = 10_000


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and value.get("__type") == "AddedToken")


def _as_list(tokens: Any) -> list[Any]:
    return [*tokens.values()] if isinstance(tokens, dict) else tokens


def _with_special_tokens_map(values: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings updated by special_tokens_map.json; lists of tokens without a role are concatenated."""
    merged, key = dict(values), "extra_special_tokens"
    if merged.get("additional_special_tokens") and not merged.get(key):
        merged[key] = merged.pop("additional_special_tokens")
    for role, value in names.items():
        if role == key and isinstance(value, list | dict) and isinstance(merged.get(key), list | dict):
            earlier = _as_list(merged[key])
            value = [*earlier, *(token for token in _as_list(value) if token not in earlier)]
        elif isinstance(value, dict) and role != key:
            value = {**value, "__type": "AddedToken", "special": True}
        merged[role] = value
    return merged


def _class_name(folder: Path, file: Path, values: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """Return the class that `transformers.AutoTokenizer` chooses; `config` is the content of config.json."""
    for where, value in ((file, values.get("tokenizer_class")), (folder / CONFIG, config.get("tokenizer_class"))):
        if value is None:
            continue
        class_name = ALIASES.get(value, ALIASES.get(value.removesuffix("Fast"))) if isinstance(value, str) else None
        if class_name is None:
            fix = f"the rules of this class are not implemented here; if those of tokenizer.json are right, write {AS_WRITTEN}"
            raise BadInput(f"{where}: tokenizer_class is {json.dumps(value)[:60]}; {fix}")
        return class_name
    if (family := config.get("model_type")) is None:
        return None
    if not isinstance(family, str) or family not in BY_FAMILY:
        fix = f"the rules of its tokenizers are not implemented here; if those of tokenizer.json are right, write {AS_WRITTEN}"
        raise BadInput(f"{file}: no tokenizer_class, and model_type of {CONFIG} is {json.dumps(family)[:60]}; {fix}")
    return BY_FAMILY[family]
