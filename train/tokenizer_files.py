"""A tokenizer in the files that published models come with."""

import base64
import json
from pathlib import Path
from typing import Any

import tokenizers

from train import byte_bpe, marks, spiece, unigram, unigram_xlnet, wordpiece
from train.tokenizer import END_OF_TEXT, FILE, LARGEST_FILE, Tokenizer
from zoo.errors import BadInput
from zoo.published import read_json

VOCABULARY, MERGES = "vocab.json", "merges.txt"
ENTRIES = "vocab.txt"
PIECES = "spiece.model"
MOST_SENTINELS = 10_000
SETTINGS = "tokenizer_config.json"


def read(folder: Path) -> Tokenizer:
    """The tokenizer of a published model: its tokenizer.json; or its vocab.json and merges.txt, RoBERTa's if "<s>" is an entry,
    else GPT-2's; or its vocab.txt, BERT's; or its spiece.model, XLNet's if "<cls>" or "<sep>" is an entry, else T5's.

    A vocabulary alone does not say all rules. Those are read from tokenizer_config.json: `do_lower_case`, `strip_accents` and
    `tokenize_chinese_chars` for BERT, `add_prefix_space` for RoBERTa, `extra_ids` for T5, `do_lower_case` and `keep_accents` for
    XLNet. What it does not say is as in `transformers`: BERT drops case, and accents with it, and divides Chinese; RoBERTa puts
    no space before a text; T5 has 100 sentinels; XLNet keeps case and drops accents.

    Raises:
        BadInput: none of these, or one that defines no usable tokenizer; see `Tokenizer.load`.
    """
    if (folder / FILE).exists():
        return Tokenizer.load(folder)
    if not any((folder / file).exists() for file in (VOCABULARY, ENTRIES, PIECES)):
        raise BadInput(f"{folder}: holds no {FILE} and no {VOCABULARY}, {ENTRIES} or {PIECES}; put the model's tokenizer there")
    if not (folder / VOCABULARY).exists():
        return _wordpiece(folder) if (folder / ENTRIES).exists() else _pieces(folder)
    vocabulary = read_json(folder / VOCABULARY, LARGEST_FILE)
    encoder = marks.ROBERTA["cls"] in vocabulary
    prefix_space = encoder and bool(_setting(folder, "add_prefix_space", False))
    try:
        merges = _merges(folder / MERGES)
        rules = byte_bpe.roberta(vocabulary, merges, prefix_space=prefix_space) if encoder else byte_bpe.gpt(vocabulary, merges)
        return Tokenizer(rules)
    except BadInput as error:
        raise BadInput(f"{folder / VOCABULARY}: {error}") from None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # The library panics on some files, with an exception that is no `Exception`.
        why = " ".join(str(error).split())[:120]
        raise BadInput(f"{folder / VOCABULARY}: no vocabulary that fits {MERGES} ({why}); fetch both again") from None


def write(folder: Path, tokenizer: Tokenizer, *, longest: int | None) -> None:
    """Write what `transformers` loads the tokenizer from: tokenizer.json, tokenizer_config.json, and vocab.txt for BERT's kind,
    vocab.json and merges.txt for RoBERTa's and GPT-2's.

    Args:
        longest: tokens the model has positions for; None: any number.
    """
    tokenizer.save(folder)
    core = tokenizers.Tokenizer.from_file(str(folder / FILE))
    entries = dict(sorted(core.get_vocab(with_added_tokens=True).items(), key=lambda entry: entry[1]))
    if tokenizer.kind == "wordpiece":
        if broken := [entry for entry in entries if "\n" in entry or "\r" in entry]:
            raise BadInput(f"{folder / ENTRIES}: the entry {json.dumps(broken[0])} is not one line; take it out of the {FILE}")
        (folder / ENTRIES).write_text("".join(f"{entry}\n" for entry in entries), encoding="utf-8", newline="\n")
    elif tokenizer.kind not in ("sentencepiece", "xlnet"):
        core.model.save(str(folder))
        # Marks that tokenizer.json adds to the vocabulary are unknown to the model.
        (folder / VOCABULARY).write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    settings = _settings(tokenizer.kind, json.loads(core.to_str()))
    if longest is not None:
        settings["model_max_length"] = longest
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _settings(kind: str, content: dict[str, Any]) -> dict[str, Any]:
    """What tokenizer_config.json says of a tokenizer.json.

    The classes named after models make their rules from these settings and take from tokenizer.json the vocabulary. A tokenizer
    whose rules none of them makes is given to the class that takes them from there too.
    """
    if kind == "gpt":
        names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
        return {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, **names}
    names = {"wordpiece": marks.BERT, "roberta": marks.ROBERTA, "sentencepiece": marks.TEXT, "xlnet": marks.XLNET}[kind]
    given: dict[str, Any] = {f"{role}_token": name for role, name in names.items()}
    model, normalizer, rules = content["model"], content["normalizer"] or {}, content["pre_tokenizer"] or {}
    if kind == "wordpiece":
        flags = dict(
            lowercase=normalizer.get("lowercase", False),
            strip_accents=normalizer.get("strip_accents"),
            split_chinese=normalizer.get("handle_chinese_chars", False),
        )
        made = wordpiece.content(model["vocab"], **flags)
        switches = dict(zip(("do_lower_case", "strip_accents", "tokenize_chinese_chars"), flags.values(), strict=True))
        given |= {"tokenizer_class": "BertTokenizer", **switches}
    elif kind == "sentencepiece":
        entries = [(entry, score) for entry, score in model["vocab"]]
        made = unigram.content(entries, base64.b64decode(normalizer.get("precompiled_charsmap", "")))
        given["eos_token"] = given.pop("end_token")
        given |= {"tokenizer_class": "T5Tokenizer", "extra_ids": sum(unigram.is_sentinel(entry) for entry, _ in entries)}
    elif kind == "xlnet":
        steps = normalizer.get("normalizers", [])
        kinds = [step["type"] for step in steps]
        charsmap = next((step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled"), "")
        lowercase = "Lowercase" in kinds
        # The class drops accents whatever it is told.
        made = unigram_xlnet.content(
            [(entry, score) for entry, score in model["vocab"]], base64.b64decode(charsmap), lowercase=lowercase
        )
        content = {
            **content,
            "normalizer": {**normalizer, "normalizers": [step for step in steps if step != unigram_xlnet.SPACES]},
        }
        given = {name: value for name, value in given.items() if name not in ("eod_token", "eop_token")}
        mask = {"__type": "AddedToken", "content": names["mask"], "lstrip": True, "rstrip": False, "single_word": False}
        given |= {"mask_token": {**mask, "normalized": False}, "padding_side": "left", "tokenizer_class": "XLNetTokenizer"}
        given |= {"do_lower_case": lowercase, "keep_accents": "StripAccents" not in kinds}
        # Without being told, the class leaves out the types, and so that of CLS.
        given["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    else:
        prefix_space = rules.get("add_prefix_space", False)
        made = byte_bpe.roberta(model["vocab"], [(first, second) for first, second in model["merges"]], prefix_space=prefix_space)
        # The mask takes the space before it: a bare name would not say so.
        mask = {"__type": "AddedToken", "content": names["mask"], "lstrip": True, "rstrip": False, "single_word": False}
        given |= {"bos_token": names["cls"], "eos_token": names["sep"], "mask_token": {**mask, "normalized": False}}
        given |= {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": prefix_space}
    if any(_plain(made[part]) != _plain(content[part]) for part in ("normalizer", "pre_tokenizer", "model")):
        given["tokenizer_class"] = "PreTrainedTokenizerFast"
    return given


def _plain(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """Without what says the same in another way: an empty affix is none."""
    return part and {key: value for key, value in part.items() if value not in (None, "")}


def _wordpiece(folder: Path) -> Tokenizer:
    """BERT's tokenizer of a vocab.txt: an entry a line, the first has id 0."""
    file = folder / ENTRIES
    rules: dict[str, Any] = dict(
        lowercase=_setting(folder, "do_lower_case", True),
        strip_accents=_setting(folder, "strip_accents", None),
        split_chinese=_setting(folder, "tokenize_chinese_chars", True),
    )
    try:
        vocab: dict[str, int] = {}
        # Some entries are characters that `splitlines` takes for the end of a line.
        for number, entry in enumerate(_text(file).removesuffix("\n").split("\n")):
            if (first := vocab.setdefault(entry, number)) != number:
                raise BadInput(f"line {number + 1} is the same entry as line {first + 1}, {json.dumps(entry)}; fetch it again")
        if marks.named(vocab) is None:
            raise BadInput(f"it has none of {', '.join(marks.BERT.values())}; fetch a vocabulary of BERT's")
        return Tokenizer(wordpiece.content(vocab, **rules))
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from None


def _pieces(folder: Path) -> Tokenizer:
    """T5's tokenizer of a spiece.model, or XLNet's."""
    file = folder / PIECES
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise BadInput(f"larger than {LARGEST_FILE >> 20} MiB; that is no tokenizer")
        found = spiece.parse(file.read_bytes())
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror}); fetch it again") from None
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from None
    xlnet = unigram_xlnet.owns(entry.name for entry in found.entries)
    switches = {"lowercase": "do_lower_case", "keep_accents": "keep_accents"}
    flags = {name: bool(_setting(folder, key, False)) for name, key in switches.items()} if xlnet else {}
    sentinels = 0 if xlnet else _sentinels(folder)
    try:
        return Tokenizer(unigram_xlnet.read(found, **flags) if xlnet else unigram.read(found, sentinels))
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from None


def _sentinels(folder: Path) -> int:
    """How many T5's tokenizer has."""
    count = read_json(folder / SETTINGS, LARGEST_FILE).get("extra_ids") if (folder / SETTINGS).exists() else None
    count = marks.SENTINELS if count is None else count
    if not isinstance(count, int) or not 0 <= count <= MOST_SENTINELS:
        raise BadInput(f"{folder / SETTINGS}: extra_ids is {json.dumps(count)[:60]}; it must be 0 to {MOST_SENTINELS}")
    return count


def _setting(folder: Path, key: str, default: bool | None) -> bool | None:
    """A switch of tokenizer_config.json; one that is absent or null has its default."""
    file = folder / SETTINGS
    if not file.exists():
        return default
    value = read_json(file, LARGEST_FILE).get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadInput(f"{file}: {key} is {json.dumps(value)[:60]}; it must be true or false")
    return value


def _merges(file: Path) -> list[tuple[str, str]]:
    """The pairs of a merges.txt, most frequent first."""
    try:
        lines = _text(file).splitlines()
    except BadInput as error:
        raise BadInput(f"{file.name}: {error}") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        first, _, second = line.partition(" ")
        if not second or " " in second:
            raise BadInput(f"{file.name}:{number}: not two pieces with a space between; fetch it again")
        pairs.append((first, second))
    return pairs


def _text(file: Path) -> str:
    """A file's text; every end of a line is a line feed."""
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise BadInput(f"larger than {LARGEST_FILE >> 20} MiB; that is no tokenizer")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"not UTF-8 (byte {error.start})") from None
