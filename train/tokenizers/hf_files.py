"""Reading and writing of tokenizers in the files of published models."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from train.tokenizers import (
    byte_bpe,
    byte_tokens,
    sentencepiece_proto,
    special_tokens,
    unigram,
    wordpiece,
    xlm_unigram,
    xlnet_unigram,
)
from train.tokenizers.hf_class_check import OF_KIND, SWITCHES, builds_same_rules, check_hf_class, special_entries
from train.tokenizers.hf_settings import (
    ALIASES,
    AS_WRITTEN,
    DEFAULTS,
    MOST_SENTINELS,
    TokenizerSettings,
)
from train.tokenizers.special_tokens import END_OF_TEXT, ENDS, LLAMA_BEGIN
from train.tokenizers.tokenizer import FILE, LARGEST_FILE, SETTINGS, Kind, Tokenizer, read_chat_template
from zoo.errors import BadInput
from zoo.file_access import read_regular, read_regular_text
from zoo.hf.config_json import read_json
from zoo.hf.tokenizer_files import ENTRIES, PIECES, VOCABULARY, XLM_PIECES, require_tokenizer

MERGES = "merges.txt"
LLAMA = "llama"
"""`model_type` of SmolLM2."""


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a published model.

    It is read from tokenizer.json if there is one; else from vocab.json and merges.txt (RoBERTa's if "<s>" is an entry, else
    GPT-2's), from vocab.txt (BERT's), from spiece.model (XLNet's if "<cls>" or "<sep>" is an entry, else T5's), or from
    sentencepiece.bpe.model (XLM-R's). ByT5's has no vocabulary, and is the one whose class is ByT5Tokenizer.

    A vocabulary alone does not determine all rules. They are read from tokenizer_config.json: `do_lower_case`, `strip_accents`
    and `tokenize_chinese_chars` for BERT, `add_prefix_space` for GPT-2 and RoBERTa, `extra_ids` for T5, `do_lower_case` and
    `keep_accents` for XLNet; added tokens are read from `added_tokens_decoder` or added_tokens.json. Defaults are those of
    `transformers`: BERT drops case, and accents with it, and splits Chinese; no space is added before a text; T5 has 100
    sentinels; XLNet keeps case and drops accents.

    Raises:
        BadInput: the folder has none of these files, one that defines no usable tokenizer (see `Tokenizer.load`), or one that
            `transformers` would interpret differently (see `train.tokenizers.hf_class_check.check_hf_class`).
    """
    settings = TokenizerSettings.load(folder)
    if settings.name == OF_KIND["bytes"]:
        tokenizer, name = _byte_tokens(folder, settings), settings.name
    elif (folder / FILE).exists():
        tokenizer, name = Tokenizer.load(folder), settings.name
        # SmolLM2 names GPT-2's class and was trained with the rules of its tokenizer.json, which set digits apart, as version 4
        # of `transformers` read it; version 5 replaces them with those of the class. An export names the class that keeps them.
        of_gpt = OF_KIND["gpt"]
        if settings.model_type == LLAMA and name == of_gpt and not builds_same_rules(of_gpt, settings, tokenizer.content()):
            name = AS_WRITTEN
    else:
        from_vocabulary = _read_vocabulary(folder, settings)
        kind, name = from_vocabulary.kind, settings.name or OF_KIND[from_vocabulary.kind]
        tokenizer = _with_added(from_vocabulary, settings, name)
        if name != OF_KIND[kind] or tokenizer.kind != kind:
            fix = f"its vocabulary is of the class {OF_KIND[kind]}, and {FILE} is missing; add that file or correct the class"
            raise settings.wrong(f"transformers reads it with the class {name}; {fix}")
        if kind == "gpt" and (settings.flag("add_bos_token", False) or settings.flag("add_eos_token", False)):
            raise settings.wrong(
                "add_bos_token or add_eos_token is true: no special token is added around a text here; remove it"
            )
    # XLNet's own program splits a text as this package does. The class of `transformers` does so only if there is a
    # tokenizer.json, so its rules are compared only then.
    # The class of T5 does not spell unknown characters as bytes either, which SentencePiece does for mT5.
    as_sentencepiece = tokenizer.kind == "xlnet" or tokenizer.spells_bytes
    check_hf_class(tokenizer, settings, name, rules_of_class=not as_sentencepiece or (folder / FILE).exists())
    values = settings.values
    if name and (values or name in DEFAULTS) and values.get("tokenizer_class") is None:
        # config.json may later be replaced by that of another model. The class names the special tokens that no file names.
        values = {**values, "tokenizer_class": name}
    return tokenizer.with_files(values, read_chat_template(folder))


def write_tokenizer(folder: Path, tokenizer: Tokenizer, *, longest: int | None) -> None:
    """Write the files from which `transformers` loads the tokenizer.

    They are tokenizer.json and tokenizer_config.json, and vocab.txt for BERT's kind, or vocab.json and merges.txt for RoBERTa's
    and GPT-2's. The settings and the chat template that a tokenizer was read with are written unchanged.

    Args:
        longest: number of positions of the model; None: any number.

    Raises:
        BadInput: `transformers` would read a different tokenizer, whatever the files.
    """
    tokenizer.save(folder)
    core = tokenizers.Tokenizer.from_file(str(folder / FILE))
    entries = dict(sorted(core.get_vocab(with_added_tokens=True).items(), key=lambda entry: entry[1]))
    if tokenizer.kind == "wordpiece":
        if broken := [entry for entry in entries if "\n" in entry or "\r" in entry]:
            raise BadInput(f"{folder / ENTRIES}: the entry {json.dumps(broken[0])} is not one line; remove it from {FILE}")
        (folder / ENTRIES).write_text("".join(f"{entry}\n" for entry in entries), encoding="utf-8", newline="\n")
    elif tokenizer.kind in ("gpt", "roberta"):
        core.model.save(str(folder))
        # The model lacks the special tokens that tokenizer.json adds to the vocabulary.
        (folder / VOCABULARY).write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    content, config = json.loads(core.to_str()), dict(tokenizer.settings)
    values = _with_class(tokenizer, content)
    name = ALIASES.get(str(values["tokenizer_class"]).removesuffix("Fast"), AS_WRITTEN)
    settings = TokenizerSettings(folder / SETTINGS, values, name)
    if not builds_same_rules(name, settings, content):
        # Another class has other defaults.
        name = AS_WRITTEN
        values = {**_settings(tokenizer.kind, content), **config, "tokenizer_class": name}
    check_hf_class(tokenizer, TokenizerSettings(folder / SETTINGS, values, name), name)
    if longest is not None:
        values["model_max_length"] = longest
    (folder / SETTINGS).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def special_token_names(tokenizer: Tokenizer) -> dict[str, str]:
    """Return the special tokens that `transformers` names after it has read the files of `write_tokenizer`, by role."""
    values = _with_class(tokenizer, tokenizer.content())
    name = ALIASES.get(str(values["tokenizer_class"]).removesuffix("Fast"), AS_WRITTEN)
    return TokenizerSettings(Path(SETTINGS), values, name).roles(name)


def _with_class(tokenizer: Tokenizer, content: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a tokenizer, with those of its kind if they name no class."""
    config = dict(tokenizer.settings)
    return config if "tokenizer_class" in config else {**_settings(tokenizer.kind, content), **config}


def _settings(kind: Kind, content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of tokenizer_config.json for a tokenizer.json that was read without one."""
    if kind == "gpt":
        entries = {*content["model"]["vocab"], *(token["content"] for token in content["added_tokens"])}
        if END_OF_TEXT not in entries:
            begin = {"bos_token": LLAMA_BEGIN} if LLAMA_BEGIN in entries else {}
            return {"tokenizer_class": AS_WRITTEN, **begin, "eos_token": next(name for name in ENDS if name in entries)}
        names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
        return {"tokenizer_class": OF_KIND[kind], "add_prefix_space": _prefix_space(content), **names}
    names = {
        "wordpiece": special_tokens.BERT,
        "roberta": special_tokens.ROBERTA,
        "modernbert": special_tokens.BERT,
        "xlm-roberta": special_tokens.ROBERTA,
        "sentencepiece": special_tokens.TEXT,
        "bytes": special_tokens.TEXT,
        "xlnet": special_tokens.XLNET,
    }[kind]
    settings: dict[str, Any] = {f"{role}_token": name for role, name in names.items()} | {"tokenizer_class": OF_KIND[kind]}
    normalizer = content["normalizer"] or {}
    if kind == "wordpiece":
        defaults = {"lowercase": False, "strip_accents": None, "handle_chinese_chars": False}
        settings |= {key: normalizer.get(rule, defaults[rule]) for rule, key in SWITCHES.items()}
    elif kind in ("sentencepiece", "bytes"):
        entries = content["model"]["vocab"]
        entries = [entry for entry, _ in entries] if kind == "sentencepiece" else entries
        settings["eos_token"] = settings.pop("end_token")
        settings["extra_ids"] = sum(map(unigram.is_sentinel, entries))
    elif kind == "xlnet":
        steps = [step["type"] for step in normalizer.get("normalizers", [])]
        settings = {name: value for name, value in settings.items() if name not in ("eod_token", "eop_token")}
        settings |= {"mask_token": _mask(names), "padding_side": "left"}
        settings |= {"do_lower_case": "Lowercase" in steps, "keep_accents": "StripAccents" not in steps}
        # By default the class omits token types, also the one of CLS.
        settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    elif kind == "modernbert":
        settings |= {"mask_token": _mask(names), "model_input_names": ["input_ids", "attention_mask"]}
    else:
        settings |= {"bos_token": names["cls"], "eos_token": names["sep"], "mask_token": _mask(names)}
        if kind == "roberta":
            settings["add_prefix_space"] = _prefix_space(content)
    return settings


def _mask(names: Mapping[str, str]) -> dict[str, Any]:
    """Return the mask as an object, because a bare name would not have `lstrip`, by which it absorbs the space before it."""
    flags = {"lstrip": True, "rstrip": False, "single_word": False, "normalized": False}
    return {"__type": "AddedToken", "content": names["mask"], **flags}


def _prefix_space(content: dict[str, Any]) -> bool:
    return bool((content["pre_tokenizer"] or {}).get("add_prefix_space", False))


def _with_added(tokenizer: Tokenizer, settings: TokenizerSettings, name: str) -> Tokenizer:
    """Return a tokenizer with the tokens that the settings add to its vocabulary, in the order of `transformers`."""
    tokens, _ = settings.additions(name, [])
    core = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.content()))
    present = {token.content for token in core.get_added_tokens_decoder().values()}
    if not (new := [token for token in tokens.values() if token.content not in present]):
        return tokenizer
    spellable = tokenizer.ids().keys() - special_entries(tokenizer)
    if spelled := [token.content for token in new if token.special and token.content in spellable]:
        why = "is special in the settings, but an ordinary entry of the vocabulary, which texts can contain"
        raise settings.wrong(f"the token {json.dumps(spelled[0])} {why}; correct the setting")
    core.add_tokens([tokenizers.AddedToken(**dataclasses.asdict(token)) for token in new])
    try:
        return Tokenizer(json.loads(core.to_str()))
    except BadInput as error:
        raise settings.wrong(f"with the tokens that the settings add, {error}") from None


def _read_vocabulary(folder: Path, settings: TokenizerSettings) -> Tokenizer:
    """Return the tokenizer of a folder without tokenizer.json."""
    require_tokenizer(folder)
    if not (folder / VOCABULARY).exists():
        return _wordpiece(folder, settings) if (folder / ENTRIES).exists() else _sentencepiece(folder, settings)
    vocabulary = read_json(folder / VOCABULARY, LARGEST_FILE)
    prefix_space = bool(settings.flag("add_prefix_space", False))
    try:
        rules = byte_bpe.roberta_tokenizer if special_tokens.ROBERTA["cls"] in vocabulary else byte_bpe.gpt_tokenizer
        return Tokenizer(rules(vocabulary, _read_merges(folder / MERGES), prefix_space=prefix_space))
    except BadInput as error:
        raise BadInput(f"{folder / VOCABULARY}: {error}") from None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # The library panics on some files, with an exception that is not an `Exception`.
        why = " ".join(str(error).split())[:120]
        raise BadInput(f"{folder / VOCABULARY}: not a vocabulary that matches {MERGES} ({why}); download both again") from None


def _byte_tokens(folder: Path, settings: TokenizerSettings) -> Tokenizer:
    """Return ByT5's tokenizer, which its settings alone define.

    Raises:
        BadInput: the folder has a tokenizer.json of another tokenizer, which the class of `transformers` does not read; or
            special tokens other than numbered sentinels.
    """
    names = [token.content for token in settings.extra(OF_KIND["bytes"])]
    if names != [special_tokens.sentinel_name(number) for number in range(len(names))]:
        raise settings.wrong(
            "its special tokens are not <extra_id_0>, <extra_id_1>, ... in this order, as ByT5's are; correct them"
        )
    tokenizer = Tokenizer(byte_tokens.byt5_tokenizer_json(len(names)))
    if (folder / FILE).exists() and Tokenizer.load(folder).content() != tokenizer.content():
        fix = f"remove it, or write tokenizer_class {AS_WRITTEN}"
        raise settings.wrong(f"{FILE} has other tokens than the class {OF_KIND['bytes']}, which does not read it; {fix}")
    return tokenizer


def _wordpiece(folder: Path, settings: TokenizerSettings) -> Tokenizer:
    """Return BERT's tokenizer from a vocab.txt, which has one entry per line, from id 0 on."""
    file = folder / ENTRIES
    rules: dict[str, Any] = dict(
        lowercase=settings.flag("do_lower_case", True),
        strip_accents=settings.flag("strip_accents", None),
        split_chinese=settings.flag("tokenize_chinese_chars", True),
    )
    try:
        vocab: dict[str, int] = {}
        # Not `splitlines`, because some entries are characters that it treats as line ends.
        for number, entry in enumerate(_read_text(file).removesuffix("\n").split("\n")):
            if entry.strip() and entry != entry.rstrip():
                raise BadInput(
                    f"line {number + 1} is {json.dumps(entry)}, which transformers reads without its last space; remove it"
                )
            if (first := vocab.setdefault(entry, number)) != number:
                raise BadInput(f"line {number + 1} is the same entry as line {first + 1}, {json.dumps(entry)}; download it again")
        if special_tokens.encoder_special_tokens(vocab) is None:
            raise BadInput(f"it has none of {', '.join(special_tokens.BERT.values())}; download a vocabulary of BERT's")
        return Tokenizer(wordpiece.bert_tokenizer_json(vocab, **rules))
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from None


def _sentencepiece(folder: Path, settings: TokenizerSettings) -> Tokenizer:
    """Return T5's or XLNet's tokenizer of a spiece.model, or XLM-R's of a sentencepiece.bpe.model."""
    xlm = not (folder / PIECES).exists()
    file = folder / (XLM_PIECES if xlm else PIECES)
    try:
        proto = sentencepiece_proto.parse_spiece_model(read_regular(file, LARGEST_FILE))
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror}); download it again") from None
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from None
    xlnet = xlnet_unigram.has_xlnet_names(entry.name for entry in proto.entries)
    switches = {"lowercase": "do_lower_case", "keep_accents": "keep_accents"}
    flags = {name: bool(settings.flag(key, False)) for name, key in switches.items()} if xlnet else {}
    sentinels = 0 if xlnet else settings.count("extra_ids", special_tokens.SENTINELS, MOST_SENTINELS)
    try:
        if xlm:
            return Tokenizer(xlm_unigram.convert_xlm_unigram(proto))
        return Tokenizer(
            xlnet_unigram.convert_xlnet_unigram(proto, **flags) if xlnet else unigram.convert_unigram(proto, sentinels)
        )
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from None


def _read_merges(file: Path) -> list[tuple[str, str]]:
    """Return the pairs of a merges.txt, most frequent first."""
    try:
        lines = _read_text(file).splitlines()
    except BadInput as error:
        raise BadInput(f"{file.name}: {error}") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        first, _, second = line.partition(" ")
        if not second or " " in second:
            raise BadInput(f"{file.name}:{number}: not two pieces with a space between; download the file again")
        pairs.append((first, second))
    return pairs


def _read_text(file: Path) -> str:
    """Return the text of a file with line feeds as line ends."""
    try:
        text = read_regular_text(file, LARGEST_FILE).replace("\r\n", "\n")
    except OSError as error:
        raise BadInput(f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"not UTF-8 (byte {error.start})") from None
    if "\r" in text:
        raise BadInput(f"line {text[: text.index(chr(13))].count(chr(10)) + 1} has a carriage return within it; remove it")
    return text
