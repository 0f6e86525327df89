"""Check that the tokenizer classes of `transformers` 5.24 interpret a tokenizer.json as this package does.

The classes named after models build their rules from tokenizer_config.json and use only the entries of tokenizer.json: if the
two files disagree, the same folder is two different tokenizers. Such a folder is rejected.
"""

import base64
import json
from typing import Any

import numpy as np
from tokenizers import pre_tokenizers

from train.tokenizers import byte_bpe, byte_tokens, special_tokens, unigram, wordpiece, xlm_unigram, xlnet_unigram
from train.tokenizers.hf_settings import ADDED, AS_WRITTEN, FLAGS, OF_T5, AddedToken, TokenizerSettings
from train.tokenizers.special_tokens import END_OF_TEXT, ENDS, TURN_ENDS
from train.tokenizers.tokenizer import FILE, Kind, Tokenizer

PARTS = ("normalizer", "pre_tokenizer", "model", "decoder")
OWN_TEMPLATE = ("BertTokenizer", "RobertaTokenizer", "T5Tokenizer", "XLNetTokenizer", "XLMRobertaTokenizer", "ByT5Tokenizer")
"""Classes that build the template of special tokens themselves."""
OF_KIND: dict[Kind, str] = {
    "gpt": "GPT2Tokenizer",
    "wordpiece": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "modernbert": AS_WRITTEN,
    "sentencepiece": "T5Tokenizer",
    "xlnet": "XLNetTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "bytes": "ByT5Tokenizer",
}
"""The class of each kind."""
WORDS = {"type": "WordPiece", "prefix": wordpiece.CONTINUES, "cleanup": True}
"""The decoder of BERT's class."""
SWITCHES = {"lowercase": "do_lower_case", "strip_accents": "strip_accents", "handle_chinese_chars": "tokenize_chinese_chars"}
"""Name in tokenizer.json -> setting of BERT's class."""
BERT_ROLES = {f"{role}_token": name for role, name in special_tokens.BERT.items()}
ROLES: dict[Kind, dict[str, str]] = {
    "gpt": {"eos_token": END_OF_TEXT},
    "wordpiece": BERT_ROLES,
    "modernbert": BERT_ROLES,
    "roberta": {f"{role}_token": name for role, name in special_tokens.ROBERTA.items()},
    "xlm-roberta": {f"{role}_token": name for role, name in special_tokens.ROBERTA.items()},
    "sentencepiece": OF_T5,
    "bytes": OF_T5,
    "xlnet": {f"{role}_token": name for role, name in special_tokens.XLNET.items() if role not in ("eod", "eop")},
}
"""The special tokens of each kind, by role; this package finds them by these names."""


def class_rules(name: str, settings: TokenizerSettings, content: dict[str, Any]) -> dict[str, Any]:
    """Return the `PARTS` that a class named after a model builds for a tokenizer.json, without the entries.

    Raises:
        BadInput: a setting has the wrong type.
    """
    normalizer = content["normalizer"] or {}
    steps = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
    charsmap = base64.b64decode(next((step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled"), ""))
    if name == "BertTokenizer":
        generated = wordpiece.bert_tokenizer_json(
            {},
            lowercase=bool(settings.flag("do_lower_case", True)),
            strip_accents=settings.flag("strip_accents", None),
            split_chinese=bool(settings.flag("tokenize_chinese_chars", True)),
        )
    elif name == "ByT5Tokenizer":
        generated = byte_tokens.byt5_tokenizer_json(0)
    elif name == "T5Tokenizer":
        generated = unigram.t5_tokenizer_json([(entry, 0.0) for entry in special_tokens.TEXT.values()], charsmap)
    elif name == "XLMRobertaTokenizer":
        generated = xlm_unigram.xlmr_tokenizer_json([(entry, 0.0) for entry in special_tokens.ROBERTA.values()], charsmap)
        if not settings.flag("add_prefix_space", True):
            for part in ("pre_tokenizer", "decoder"):
                rule = generated[part]["pretokenizers"][-1] if part == "pre_tokenizer" else generated[part]
                rule["prepend_scheme"] = "never"
    elif name == "XLNetTokenizer":
        lowercase = bool(settings.flag("do_lower_case", False))
        # The class drops accents whatever the settings are.
        entries = [(entry, 0.0) for entry in special_tokens.XLNET.values()]
        generated = xlnet_unigram.xlnet_tokenizer_json(entries, charsmap, lowercase=lowercase)
        generated["model"]["unk_id"] = settings.count("unk_id", 0, len(content["model"].get("vocab", ())))
    elif name == "Qwen2Tokenizer":
        generated = byte_bpe.qwen_tokenizer({}, [], prefix_space=bool(settings.flag("add_prefix_space", False)))
    else:
        generated = byte_bpe.gpt_tokenizer({}, [], prefix_space=bool(settings.flag("add_prefix_space", False)))
    return {part: _normalized_part(part, generated, content) for part in PARTS}


def builds_same_rules(name: str, settings: TokenizerSettings, content: dict[str, Any]) -> bool:
    """Return whether a class builds the same rules as a tokenizer.json has."""
    if name == AS_WRITTEN:
        return True
    return class_rules(name, settings, content) == {part: _normalized_part(part, content, content) for part in PARTS}


def check_hf_class(tokenizer: Tokenizer, settings: TokenizerSettings, name: str | None, *, rules_of_class: bool = True) -> None:
    """Check that a class of `transformers` would interpret a tokenizer in the same way.

    Args:
        name: the class; None: `transformers` could not read the folder by itself.
        rules_of_class: whether to compare the rules that split a text.

    Raises:
        BadInput: the rules, the added tokens, the special tokens or the template of a text differ.
    """
    content = tokenizer.content()
    if content["model"].get("dropout"):
        raise settings.wrong(f"model.dropout of {FILE} is {content['model']['dropout']}: ids would be random; set it to null")
    if rules_of_class and name is not None and not builds_same_rules(name, settings, content):
        raise settings.wrong(_difference_message(name, settings, content))
    for role, token in settings.named().items():
        is_end = tokenizer.kind == "gpt" and token in (*ENDS, *TURN_ENDS)
        if (expected := ROLES[tokenizer.kind].get(role, token)) != token and not is_end:
            fix = f"models of this kind have {expected} in this role here; correct the setting"
            raise settings.wrong(f"{role} is {json.dumps(token)} in the settings, and {fix}")
    _check_added(tokenizer, settings, name, content)
    _check_template(tokenizer, settings, name, content)


def _check_added(tokenizer: Tokenizer, settings: TokenizerSettings, name: str | None, content: dict[str, Any]) -> None:
    added = [AddedToken(**{key: token[key] for key in ("content", *FLAGS)}) for token in content["added_tokens"]]
    file_tokens = {token.content: token for token in added}
    ids = tokenizer.ids()
    class_tokens, declared = settings.additions(name, content["added_tokens"])
    if name in (None, AS_WRITTEN):
        # Tokens that are in the file already are not changed by the settings.
        class_tokens = {**class_tokens, **file_tokens}
    if missing := [token for token in class_tokens if token not in ids]:
        why = f"{FILE} has no such entry, so its id would be outside the vocabulary; add it there or remove it from the settings"
        raise settings.wrong(f"the special token {json.dumps(missing[0])} is among the settings, and {why}")
    for token, number in declared:
        if ids[token] != number:
            where = f"has the id {number} in the settings or {ADDED}, and by its place after the vocabulary {ids[token]}"
            raise settings.wrong(f"the token {json.dumps(token)} {where}; correct the id, or the order of the tokens")
    entries = content["model"]["vocab"]
    entries = {entry for entry, _ in entries} if isinstance(entries, list) else entries
    for token, file_token in file_tokens.items():
        class_token = class_tokens.get(token)
        if class_token is None and file_token.special and token in entries:
            continue
        if class_token is None:
            fix = f"so the class {name} of transformers leaves it out; add it there"
            raise settings.wrong(f"the added token {json.dumps(token)} is not in added_tokens_decoder, {fix}")
        if file_token.special != class_token.special or (not file_token.special and file_token != class_token):
            why = f"has other flags in {FILE} than in the settings"
            raise settings.wrong(f"the added token {json.dumps(token)} {why}; write the same in both files")
    if extra := class_tokens.keys() - file_tokens.keys() - special_entries(tokenizer):
        raise settings.wrong(f"the token {json.dumps(min(extra))} is added by the settings, and not by {FILE}; add it there")


def special_entries(tokenizer: Tokenizer) -> set[str]:
    """Return the special tokens of a tokenizer's kind."""
    special = tokenizer.special_tokens or tokenizer.text_special_tokens
    return {*tokenizer.entries(special.special if special else [tokenizer.end_of_text])}


def _check_template(tokenizer: Tokenizer, settings: TokenizerSettings, name: str | None, content: dict[str, Any]) -> None:
    """Check that a text, and a pair of texts, get the same special tokens and token types as in this package.

    Raises:
        BadInput: names the template that adds others, and both results.
    """
    if content["post_processor"] is None and (name is None or name in OWN_TEMPLATE or tokenizer.kind == "gpt"):
        return
    first, second = tokenizer.encode("a"), tokenizer.encode("b a")
    for texts, ids in ((["a"], [first]), (["a", "b a"], [first, second])):
        expected, types = _with_special_tokens(tokenizer, ids)
        actual, actual_types = tokenizer.encode_with_template(*texts)
        if actual != expected or (types is not None and actual_types != types):
            actual_text, expected_text = (" ".join(tokenizer.entries(some_ids)) for some_ids in (actual, expected))
            suffix = "" if actual != expected else ", with other token types"
            raise settings.wrong(
                f"post_processor of {FILE} makes {actual_text} of {' and '.join(map(repr, texts))}, and models of this kind "
                f"get {expected_text}{suffix} here; write that template there"
            )


def _with_special_tokens(tokenizer: Tokenizer, ids: list[np.ndarray]) -> tuple[list[int], list[int] | None]:
    """Return the ids of a text or two with special tokens, and the token types of kinds that have several."""
    if tokenizer.text_special_tokens is not None:
        return [number for text_ids in ids for number in (*text_ids.tolist(), tokenizer.text_special_tokens.end)], None
    if tokenizer.special_tokens is None:
        begin = [] if tokenizer.begin_of_text == tokenizer.end_of_text else [tokenizer.begin_of_text]
        return [number for text_ids in ids for number in (*begin, *text_ids.tolist())], None
    arrays = tokenizer.special_tokens.single(ids[0]) if len(ids) == 1 else tokenizer.special_tokens.pair(ids[0], ids[1])
    return arrays[0].tolist(), arrays[1].tolist() if tokenizer.special_tokens.types > 1 else None


def _normalized_part(part: str, content: dict[str, Any], entries: dict[str, Any]) -> dict[str, Any] | None:
    """Return a part in a normal form: without entries, without fields that have no effect, and with equivalent spellings unified.

    Args:
        entries: the content whose vocabulary determines which fields have an effect.
    """
    value: dict[str, Any] | None = content[part]
    if part == "decoder":
        # Only these keys matter when words are joined; the other flags belong to rules that split a text.
        value = value or (WORDS if entries["model"].get("type") == "WordPiece" else {"type": None})
        return {key: value[key] for key in ("type", "prefix", "cleanup", "replacement", "prepend_scheme") if key in value}
    if value is None:
        return None
    if part == "normalizer":
        steps = value["normalizers"] if value["type"] == "Sequence" else [value]
        steps = [_normalized_step(step) for step in steps if step != xlnet_unigram.SPACES]
        return {"steps": steps} if steps else None
    if value.get("type") == "Sequence" and part == "pre_tokenizer":
        steps = [{key: item for key, item in step.items() if key != "trim_offsets"} for step in value["pretokenizers"]]
        return {**value, "pretokenizers": steps}
    idle = {"vocab", "merges", "trim_offsets"}
    vocabulary = entries["model"].get("vocab")
    if value.get("type") == "BPE" and all(letter in vocabulary for letter in pre_tokenizers.ByteLevel.alphabet()):
        # With all 256 bytes in the vocabulary no text is unknown.
        idle |= {"unk_token", "fuse_unk", "byte_fallback"}
    # An empty affix equals no affix.
    return {key: item for key, item in value.items() if item not in (None, "") and key not in idle}


def _normalized_step(step: dict[str, Any]) -> dict[str, Any]:
    """Return a normalization step; where BERT's does not set `strip_accents`, it is set to `lowercase`."""
    if step["type"] != "BertNormalizer" or step["strip_accents"] is not None:
        return step
    return {**step, "strip_accents": step["lowercase"]}


def _difference_message(name: str, settings: TokenizerSettings, content: dict[str, Any]) -> str:
    """Return a message about the difference between the rules of a class and those of a tokenizer.json."""
    fix = f"the class {name} of transformers uses the former; change one, or write tokenizer_class {AS_WRITTEN}"
    generated = class_rules(name, settings, content)
    written = {part: _normalized_part(part, content, content) for part in PARTS}
    part = next(part for part in PARTS if generated[part] != written[part])
    class_part, file_part = generated[part] or {}, written[part] or {}
    pairs = {"add_prefix_space": "add_prefix_space"} if part == "pre_tokenizer" else {}
    if part == "normalizer" and len(file_part.get("steps", ())) == len(class_part.get("steps", ())) == 1:
        class_part, file_part, pairs = class_part["steps"][0], file_part["steps"][0], SWITCHES
    different_keys = [key for key in {**class_part, **file_part} if class_part.get(key) != file_part.get(key)]
    if different_keys and set(different_keys) <= pairs.keys():
        rule = next(rule for rule in pairs if rule in different_keys)
        setting = f"is {json.dumps(class_part[rule])}" + ("" if settings.values.get(pairs[rule]) is not None else " by default")
        return f"{pairs[rule]} {setting}, and {rule} of {FILE} is {json.dumps(file_part[rule])}; {fix}"
    return (
        f"{part} of {FILE} is not that of {name}, the class that transformers chooses, which replaces it with its own; if {FILE} "
        f"is right, write tokenizer_class {AS_WRITTEN}"
    )
