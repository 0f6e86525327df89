"""Whether the tokenizer classes of `transformers` 5.24 read a tokenizer.json as it is read here.

The classes named after models make their rules from tokenizer_config.json and take from tokenizer.json the entries alone: where
both files disagree, the same folder is two tokenizers. Such a folder is refused.
"""

import base64
import json
from typing import Any

import numpy as np
from tokenizers import pre_tokenizers

from train.tokenizers import byte_bpe, special_tokens, unigram, wordpiece, xlnet_unigram
from train.tokenizers.byte_bpe import END_OF_TEXT
from train.tokenizers.hf_settings import ADDED, AS_WRITTEN, FLAGS, Added, Settings
from train.tokenizers.tokenizer import FILE, Kind, Tokenizer

PARTS = ("normalizer", "pre_tokenizer", "model", "decoder")
OWN_TEMPLATE = ("BertTokenizer", "RobertaTokenizer", "T5Tokenizer", "XLNetTokenizer")
"""Classes that make the template of a text by themselves."""
OF_KIND: dict[Kind, str] = {
    "gpt": "GPT2Tokenizer",
    "wordpiece": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "sentencepiece": "T5Tokenizer",
    "xlnet": "XLNetTokenizer",
}
"""The class of each kind."""
WORDS = {"type": "WordPiece", "prefix": wordpiece.CONTINUES, "cleanup": True}
"""The decoder of BERT's class."""
SWITCHES = {"lowercase": "do_lower_case", "strip_accents": "strip_accents", "handle_chinese_chars": "tokenize_chinese_chars"}
"""The settings of BERT's class, by what they are called in tokenizer.json."""
ROLES: dict[Kind, dict[str, str]] = {
    "gpt": {"eos_token": END_OF_TEXT},
    "wordpiece": {f"{role}_token": name for role, name in special_tokens.BERT.items()},
    "roberta": {f"{role}_token": name for role, name in special_tokens.ROBERTA.items()},
    "sentencepiece": {
        "pad_token": special_tokens.TEXT["pad"],
        "eos_token": special_tokens.TEXT["end"],
        "unk_token": special_tokens.TEXT["unk"],
    },
    "xlnet": {f"{role}_token": name for role, name in special_tokens.XLNET.items() if role not in ("eod", "eop")},
}
"""The special tokens of a kind. They are known by these names here."""


def rules(name: str, settings: Settings, content: dict[str, Any]) -> dict[str, Any]:
    """Return the `PARTS` that a class named after a model makes for the entries of a tokenizer.json, which are left out.

    Raises:
        BadInput: a setting of the wrong type.
    """
    normalizer = content["normalizer"] or {}
    steps = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
    charsmap = base64.b64decode(next((step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled"), ""))
    if name == "BertTokenizer":
        made = wordpiece.content(
            {},
            lowercase=bool(settings.flag("do_lower_case", True)),
            strip_accents=settings.flag("strip_accents", None),
            split_chinese=bool(settings.flag("tokenize_chinese_chars", True)),
        )
    elif name == "T5Tokenizer":
        made = unigram.content([(entry, 0.0) for entry in special_tokens.TEXT.values()], charsmap)
    elif name == "XLNetTokenizer":
        lowercase = bool(settings.flag("do_lower_case", False))
        # The class drops accents whatever the settings say.
        made = xlnet_unigram.content([(entry, 0.0) for entry in special_tokens.XLNET.values()], charsmap, lowercase=lowercase)
        made["model"]["unk_id"] = settings.count("unk_id", 0, len(content["model"].get("vocab", ())))
    else:
        made = byte_bpe.gpt({}, [], prefix_space=bool(settings.flag("add_prefix_space", False)))
    return {part: _plain(part, made, content) for part in PARTS}


def follows(name: str, settings: Settings, content: dict[str, Any]) -> bool:
    """Return whether a class makes the rules of a tokenizer.json."""
    return name == AS_WRITTEN or rules(name, settings, content) == {part: _plain(part, content, content) for part in PARTS}


def check(tokenizer: Tokenizer, settings: Settings, name: str | None, *, rules_of_class: bool = True) -> None:
    """Refuse a tokenizer that a class of `transformers` would read differently.

    Args:
        name: the class; None: `transformers` could not read the folder by itself.
        rules_of_class: False: what divides a text is not compared.

    Raises:
        BadInput: the rules, the added tokens, the special tokens or the template of a text differ.
    """
    content = tokenizer.content()
    if content["model"].get("dropout"):
        raise settings.wrong(f"model.dropout of {FILE} is {content['model']['dropout']}: ids would be random; set it to null")
    if rules_of_class and name is not None and not follows(name, settings, content):
        raise settings.wrong(_differing(name, settings, content))
    for role, token in settings.named().items():
        if (known := ROLES[tokenizer.kind].get(role, token)) != token:
            fix = f"models of this kind are given {known} in this role here; correct the setting"
            raise settings.wrong(f"{role} is {json.dumps(token)} in the settings, and {fix}")
    _check_added(tokenizer, settings, name, content)
    _check_template(tokenizer, settings, name, content)


def _check_added(tokenizer: Tokenizer, settings: Settings, name: str | None, content: dict[str, Any]) -> None:
    ours = {token["content"]: Added(**{key: token[key] for key in ("content", *FLAGS)}) for token in content["added_tokens"]}
    ids = tokenizer.ids()
    theirs, declared = settings.additions(name, content["added_tokens"])
    if name in (None, AS_WRITTEN):
        # What is there already is not changed by the settings.
        theirs = {**theirs, **ours}
    if missing := [token for token in theirs if token not in ids]:
        why = f"{FILE} has no such entry, so it would get an id that no model knows; add it there or remove it from the settings"
        raise settings.wrong(f"the special token {json.dumps(missing[0])} is among the settings, and {why}")
    for token, number in declared:
        if ids[token] != number:
            where = f"has the id {number} in the settings or {ADDED}, and by its place after the vocabulary {ids[token]}"
            raise settings.wrong(f"the token {json.dumps(token)} {where}; correct the id, or the order of the tokens")
    entries = content["model"]["vocab"]
    entries = {entry for entry, _ in entries} if isinstance(entries, list) else entries
    for token, own in ours.items():
        other = theirs.get(token)
        if other is None and own.special and token in entries:
            continue
        if other is None:
            fix = f"so the class {name} of transformers leaves it out; add it there"
            raise settings.wrong(f"the added token {json.dumps(token)} is not in added_tokens_decoder, {fix}")
        if own.special != other.special or (not own.special and own != other):
            why = f"has other flags in {FILE} than in the settings"
            raise settings.wrong(f"the added token {json.dumps(token)} {why}; write the same in both files")
    if others := theirs.keys() - ours.keys() - special_entries(tokenizer):
        raise settings.wrong(f"the token {json.dumps(min(others))} is added by the settings, and not by {FILE}; add it there")


def special_entries(tokenizer: Tokenizer) -> set[str]:
    """Return the special tokens of a tokenizer's kind."""
    own = tokenizer.marks or tokenizer.text_marks
    return {*tokenizer.entries(own.special if own else [tokenizer.end_of_text])}


def _check_template(tokenizer: Tokenizer, settings: Settings, name: str | None, content: dict[str, Any]) -> None:
    """Compare what stands around a text, or two, with what is put there here."""
    if content["post_processor"] is None and (name is None or name in OWN_TEMPLATE or tokenizer.kind == "gpt"):
        return
    first, second = tokenizer.encode("a"), tokenizer.encode("b a")
    for texts, ids in ((["a"], [first]), (["a", "b a"], [first, second])):
        expected, types = _framed(tokenizer, ids)
        found, found_types = tokenizer.by_template(*texts)
        if found != expected or (types is not None and found_types != types):
            before, after = (" ".join(tokenizer.entries(some)) for some in (found, expected))
            rest = "" if found != expected else ", with other token types"
            raise settings.wrong(
                f"post_processor of {FILE} makes {before} of {' and '.join(map(repr, texts))}, and models of this kind are "
                f"given {after}{rest} here; write that template there"
            )


def _framed(tokenizer: Tokenizer, ids: list[np.ndarray]) -> tuple[list[int], list[int] | None]:
    """Return the ids of a text or two with special tokens, and the token types of kinds that have several."""
    if tokenizer.text_marks is not None:
        return [number for some in ids for number in (*some.tolist(), tokenizer.text_marks.end)], None
    if tokenizer.marks is None:
        return np.concatenate(ids).tolist(), None
    arrays = tokenizer.marks.single(ids[0]) if len(ids) == 1 else tokenizer.marks.pair(ids[0], ids[1])
    return arrays[0].tolist(), arrays[1].tolist() if tokenizer.marks.types > 1 else None


def _plain(part: str, content: dict[str, Any], entries: dict[str, Any]) -> dict[str, Any] | None:
    """Return a part without its entries, and without what has no effect or says the same in another way.

    Args:
        entries: the content whose vocabulary decides what has an effect.
    """
    value: dict[str, Any] | None = content[part]
    if part == "decoder":
        # Words are put together with or without one; the other flags are of rules that divide a text.
        value = value or (WORDS if entries["model"].get("type") == "WordPiece" else {"type": None})
        return {key: value[key] for key in ("type", "prefix", "cleanup", "replacement", "prepend_scheme") if key in value}
    if value is None:
        return None
    if part == "normalizer":
        steps = value["normalizers"] if value["type"] == "Sequence" else [value]
        steps = [_bert(step) for step in steps if step != xlnet_unigram.SPACES]
        return {"steps": steps} if steps else None
    idle = {"vocab", "merges", "trim_offsets"}
    vocabulary = entries["model"].get("vocab")
    if value.get("type") == "BPE" and all(letter in vocabulary for letter in pre_tokenizers.ByteLevel.alphabet()):
        # No byte is unknown.
        idle |= {"unk_token", "fuse_unk", "byte_fallback"}
    # An empty affix is none.
    return {key: item for key, item in value.items() if item not in (None, "") and key not in idle}


def _bert(step: dict[str, Any]) -> dict[str, Any]:
    """Return a step of normalization; accents go with case where BERT's does not say."""
    if step["type"] != "BertNormalizer" or step["strip_accents"] is not None:
        return step
    return {**step, "strip_accents": step["lowercase"]}


def _differing(name: str, settings: Settings, content: dict[str, Any]) -> str:
    """Return the message that names what differs between the rules of a class and those of a tokenizer.json."""
    fix = f"the class {name} of transformers uses the former; change one, or write tokenizer_class {AS_WRITTEN}"
    made = rules(name, settings, content)
    written = {part: _plain(part, content, content) for part in PARTS}
    part = next(part for part in PARTS if made[part] != written[part])
    ours, theirs = made[part] or {}, written[part] or {}
    pairs = {"add_prefix_space": "add_prefix_space"} if part == "pre_tokenizer" else {}
    if part == "normalizer" and len(theirs.get("steps", ())) == len(ours.get("steps", ())) == 1:
        ours, theirs, pairs = ours["steps"][0], theirs["steps"][0], SWITCHES
    differ = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if differ and set(differ) <= pairs.keys():
        rule = next(rule for rule in pairs if rule in differ)
        says = f"is {json.dumps(ours[rule])}" + ("" if settings.values.get(pairs[rule]) is not None else " by default")
        return f"{pairs[rule]} {says}, and {rule} of {FILE} is {json.dumps(theirs[rule])}; {fix}"
    return (
        f"{part} of {FILE} is not that of {name}, the class that transformers chooses, which replaces it with its own; if {FILE} "
        f"is right, write tokenizer_class {AS_WRITTEN}"
    )
