"""Tokenizer folders that were changed: each is refused, or gives the ids of `transformers`, and so does what is written of it."""

import collections
import contextlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.train.tokenizers import folders, kinds
from tests.train.tokenizers.folders import STRINGS
from tests.train.tokenizers.kinds import KINDS, UNIGRAMS
from train.tokenizers import hf_files
from train.tokenizers.tokenizer import Kind, Tokenizer
from zoo.errors import BadInput

SPECIAL = ("<", "[")
AS = "as written"


def framed(ours: Tokenizer, *texts: str) -> list[int]:
    """Return the ids of a text or two between the special tokens that models of its kind are given."""
    ids = [ours.encode(text) for text in texts]
    if ours.special_tokens is not None:
        return (ours.special_tokens.single(*ids) if len(ids) == 1 else ours.special_tokens.pair(*ids))[0].tolist()
    end = [] if ours.text_special_tokens is None else [ours.text_special_tokens.end]
    return [number for some in ids for number in (*some.tolist(), *end)]


def difference(ours: Tokenizer, theirs: Any) -> str:
    """Return where two tokenizers differ; "" if nowhere.

    No text gives the id of a special token here, which is `split_special_tokens` there; T5's and XLNet's, whose vocabularies have
    them as entries, are not held to it.
    """
    strings = [text for text in STRINGS if ours.kind not in UNIGRAMS or not any(mark in text for mark in SPECIAL)]
    found = theirs(strings, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    for text, expected in zip(strings, found, strict=True):
        if ours.encode(text).tolist() != expected:
            return f"{text!r} is {ours.encode(text).tolist()} and not {expected}"
        # A WordPiece file without a decoder is given one here.
        with_decoder = ours.kind != "wordpiece" or theirs.backend_tokenizer.decoder is not None
        if with_decoder and ours.decode(expected) != (decoded := theirs.decode(expected)):
            return f"{expected} is {ours.decode(expected)!r} and not {decoded!r}"
    for texts in (["the whale"], ["the whale", "a ship"]):
        if framed(ours, *texts) != (expected := theirs(*texts)["input_ids"]):
            return f"{texts} are {framed(ours, *texts)} and not {expected}"
    return "" if len(theirs) == ours.vocab_size else f"{ours.vocab_size} entries and not {len(theirs)}"


def outcome(folder: Path, kind: Kind) -> str:
    """Return what becomes of a folder: equal, refused, or what is wrong."""
    try:
        ours = hf_files.read_tokenizer(folder)
    except BadInput as refusal:
        return f"refused in several lines: {refusal}" if "\n" in str(refusal) else "refused"
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            theirs = kinds.auto(folder)
    except Exception:
        return "not read by transformers"
    if found := difference(ours, theirs):
        return f"different: {found}"
    out = folder.with_name("out")
    out.mkdir()
    try:
        hf_files.write_tokenizer(out, ours, longest=None)
    except BadInput as refusal:
        return f"not written: {refusal}"
    kinds.name_family(out, kind)
    found = difference(ours, kinds.auto(out)) or difference(hf_files.read_tokenizer(out), theirs)
    return f"different when written: {found}" if found else "equal"


def counts(path: Path, kind: Kind, changes: Iterable[tuple[str, str, str]]) -> collections.Counter[str]:
    """Return how many folders are equal, refused, and so on, and print it."""
    number, wrong = collections.Counter[str](), []
    for at, change in enumerate(dict.fromkeys(changes)):
        folder = path / str(at) / "in"
        folders.make(folder, kind, *change)
        result = outcome(folder, kind)
        number[result.partition(":")[0]] += 1
        if ":" in result:
            wrong.append(f"{kind}, {change}: {result}")
    print(f"{kind}: {dict(number)} folders, {len(STRINGS)} strings each")
    assert not wrong, "\n".join(wrong)
    return number


LAST = {"gpt": ("as trained", "prefix space", "vocabulary alone"), "wordpiece": ("as trained", "cased", "vocabulary alone")}
LAST |= {"roberta": LAST["gpt"]}
FEW: dict[Kind, list[tuple[str, str, str]]] = {
    kind: [
        ("digits apart", "rules of the file", AS),
        ("digits apart", AS, AS),
        ("another word", AS, AS),
        ("end twice", "rules of the file", AS),
        ("truncation", AS, AS),
        ("padding", AS, AS),
        ("as trained", "one more", AS),
        ("as trained", AS, "added to tokenizer.json" if kind == "xlnet" else "added to a vocabulary"),
        ("NFC and lower case", "rules of the file", AS),
        LAST.get(kind, ("as trained", "another end", AS)),
    ]
    for kind in KINDS
}
"""The folders of the fast tier."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_with_one_of_a_few_changes_is_refused_or_equal(kind: Kind, tmp_path: Path) -> None:
    number = counts(tmp_path, kind, FEW[kind])
    assert number["equal"] >= 3 and number["refused"] >= 2


@pytest.mark.parametrize("part", [pytest.param("half", marks=pytest.mark.full), pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_with_one_change_is_refused_or_equal(kind: Kind, part: str, tmp_path: Path) -> None:
    """In the full tier each kind has every second change, and the next kind has the others."""
    first, step = (KINDS.index(kind) % 2, 2) if part == "half" else (0, 1)
    number = counts(tmp_path, kind, list(folders.single(kind))[first::step])
    assert number["equal"] >= 20 / step and number["refused"] >= 20 / step


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_with_several_changes_is_refused_or_equal(kind: Kind, tmp_path: Path) -> None:
    counts(tmp_path, kind, folders.several(kind, 300))


MESSAGES: list[tuple[Kind, tuple[str, str, str], str]] = [
    ("gpt", ("prefix space", AS, AS), "add_prefix_space is false, and add_prefix_space of tokenizer.json is true; "),
    ("gpt", ("digits apart", AS, "no settings"), "pre_tokenizer of tokenizer.json is not that of GPT2Tokenizer, the class "),
    ("gpt", ("one end", AS, AS), "post_processor of tokenizer.json makes a <|endoftext|> of 'a', and models "),
    ("gpt", ("as trained", "begin and end", "vocabulary alone"), "add_bos_token or add_eos_token is true: no special token "),
    ("gpt", ("random merges", "rules of the file", AS), "model.dropout of tokenizer.json is 0.5: ids would be random; "),
    ("wordpiece", ("cased", AS, AS), "do_lower_case is true, and lowercase of tokenizer.json is false; the class "),
    ("wordpiece", ("cased", AS, "no settings"), "do_lower_case is true by default, and lowercase of tokenizer.json is fal"),
    ("wordpiece", ("Chinese joined", AS, AS), "tokenize_chinese_chars is true, and handle_chinese_chars of "),
    ("wordpiece", ("as trained", "another CLS", AS), 'cls_token is "<new>" in the settings, and models of this kind have '),
    ("wordpiece", ("as trained", AS, "added to a vocabulary elsewhere"), 'the token "foobar" has the id 950 in the '),
    ("wordpiece", ("another word", "added nothing", AS), 'the added token "foobar" is not in added_tokens_decoder, '),
    ("roberta", ("as trained", "GPT-2's", "vocabulary alone"), "transformers reads it with the class GPT2Tokenizer; "),
    ("sentencepiece", ("as trained", "unknown class", AS), 'tokenizer_class is "WhaleTokenizer"; the rules of this class '),
    ("sentencepiece", ("as trained", "one more", AS), 'the special token "<new>" is among the settings, and tokenizer.'),
]


@pytest.mark.planted(len(MESSAGES))
def test_a_refusal_names_both_sides(tmp_path: Path) -> None:
    for at, (kind, change, message) in enumerate(MESSAGES):
        folders.make(folder := tmp_path / str(at), kind, *change)
        assert kinds.refused(folder).partition(": ")[2].startswith(message)


def test_the_settings_that_were_read_are_kept_in_a_run_and_in_what_it_exports(tmp_path: Path) -> None:
    folders.make(tmp_path / "in", "gpt", "pattern of GPT-4", "rules of the file", "as written")
    settings = json.loads((tmp_path / "in" / "tokenizer_config.json").read_text()) | {"chat_template": "{{ messages }}"}
    (tmp_path / "in" / "tokenizer_config.json").write_text(json.dumps(settings))
    template = b"{{ messages[0].content }}\r\n\xc3\xa9"
    (tmp_path / "in" / "chat_template.jinja").write_bytes(template)
    for name in ("run", "out"):
        (tmp_path / name).mkdir()
    hf_files.read_tokenizer(tmp_path / "in").save(tmp_path / "run")
    hf_files.write_tokenizer(tmp_path / "out", Tokenizer.load(tmp_path / "run"), longest=None)
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == settings
    rules = (tmp_path / "in" / "tokenizer.json").read_text()
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text()) == json.loads(rules)
    assert (tmp_path / "out" / "chat_template.jinja").read_bytes() == template
    # Another tokenizer that takes its place has no settings.
    kinds.trained("gpt").save(tmp_path / "run")
    other = Tokenizer.load(tmp_path / "run")
    assert (other.settings, other.chat_template) == ({}, None)
    (tmp_path / "in" / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(BadInput, match=r"chat_template.jinja: cannot be read .*; put the model's own file there"):
        hf_files.read_tokenizer(tmp_path / "in")


def test_the_bytes_of_an_added_word_are_counted(tmp_path: Path) -> None:
    folders.make(tmp_path / "in", "gpt", "another word", "as written", "as written")
    ours, text = hf_files.read_tokenizer(tmp_path / "in"), "the foobar \u00e9"
    assert kinds.VOCAB in (ids := ours.encode(text))
    assert ours.token_bytes()[ids].sum() == len(text.encode())
