"""Tokenizers that panic, abort, or take unlimited time or memory in the library: each is refused before, in one line, or read."""

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import hostile_tokenizer_parts as parts
from tests.support.hostile_tokenizer_parts import BPE, T5, HostileTokenizer
from tests.support.hostile_tokenizers import ORDINARY, PATTERNS, TOKENIZERS
from train.tokenizers import hf_files, sentencepiece_proto
from train.tokenizers.tokenizer import Tokenizer
from train.untrusted import regex_check, tokenizer_content
from zoo.errors import BadInput

TEXTS = ("", "a aa abc the old \u2603 whale na\u00efve \u9be8 \ufdfa", "a" * 300, "\u2603" * 40)
PROBES = "".join(chr(code) for code in (*range(0x20, 0xD800, 3), *range(0xE000, 0x20000, 5)))
COSTLY = {"bpe-large", "added-many", "many-steps", "template-tokens"}
"""Tokenizers that are large, and not in the fast tier."""
BEYOND = "\u20ac"


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Give this module a cache folder in which no pattern was checked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        regex_check.check_pattern.cache_clear()
        yield
    regex_check.check_pattern.cache_clear()


def parameters() -> list[Any]:
    full = {case.name for case in PATTERNS} - {"regex-plus", "regex-cubic", "pattern-both"} | COSTLY
    return [pytest.param(case, id=case.name, marks=[pytest.mark.full] if case.name in full else []) for case in TOKENIZERS]


def write(folder: Path, case: HostileTokenizer) -> Path:
    for name, content in case.files.items():
        (folder / name).write_bytes(content)
    return folder


def use(tokenizer: Tokenizer) -> None:
    for text in (*TEXTS, PROBES):
        tokenizer.decode(tokenizer.encode(text))
        tokenizer.encode_with_template(text, text)
    tokenizer.encode_spans([*TEXTS])
    tokenizer.encode_rendered([*TEXTS])
    tokenizer.encode_words(["a", " b"])


@pytest.mark.parametrize("case", parameters())
def test_a_tokenizer_is_refused_in_one_line_or_used(
    case: HostileTokenizer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    message = ""
    try:
        use(hf_files.read_tokenizer(write(tmp_path, case)))
    except BadInput as refusal:
        message = str(refusal)
        assert "\n" not in message and len(message) < 800 and str(tmp_path) in message
    assert case.refused in (bool(message), None)
    # The library prints a trace when it panics.
    assert capfd.readouterr().err == ""


def test_the_messages_name_the_part_and_the_limit(tmp_path: Path) -> None:
    fix = "use the tokenizer of the model's publisher"
    messages = {
        "replace-doubling": "its normalizer can make 1,099,511,627,776 characters of one, and at most 64 are allowed",
        "replace-star": "its normalizer has the regular expression 'a*', which matches an empty text",
        "charsmap-size": "its normalizer has a damaged normalization table",
        "wordpiece-long-words": "its model has max_input_chars_per_word 1000000000000000000, and at most 1000 is allowed",
    }
    for case in TOKENIZERS:
        if case.name in messages:
            with pytest.raises(BadInput) as refused:
                hf_files.read_tokenizer(write(tmp_path, case))
            assert str(refused.value) == f"{tmp_path / parts.FILE}: not a tokenizer ({messages[case.name]}); {fix}"


REMOVED = """
import json, sys
from train.untrusted import tokenizer_content
tokenizer_content.check_content = lambda content, known_patterns=(): None
from train.tokenizers.tokenizer import Tokenizer
tokenizer = Tokenizer(json.load(sys.stdin))
tokenizer.encode("aaaa")
"""


@pytest.mark.slow
@pytest.mark.planted(3)
@pytest.mark.parametrize("name", ["charsmap-size", "unigram-long", "replace-doubling"])
def test_without_the_check_the_library_ends_the_process(name: str) -> None:
    """The process has 1.5 GiB of memory; the replacements double a text forty times."""
    (case,) = (case for case in TOKENIZERS if case.name == name)
    program = f"import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29)); {REMOVED}"
    command = [sys.executable, "-c", program]
    process = subprocess.run(command, input=case.files[parts.FILE], capture_output=True, cwd=Path(__file__).parents[3])
    assert process.returncode < 0


@pytest.mark.planted
def test_a_growth_within_the_limit_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    content = BPE | {"normalizer": parts.sequence(*[parts.replace({"String": "a"}, "aa")] * 7)}
    with pytest.raises(BadInput, match="can make 128 characters of one"):
        Tokenizer(content)
    monkeypatch.setattr(tokenizer_content, "LARGEST_GROWTH", 128)
    assert len(Tokenizer(content).encode("a")) == 128


@pytest.mark.full
@pytest.mark.planted
def test_without_a_limit_of_time_a_slow_pattern_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pattern takes two or three seconds: the cube of the length of a run."""
    with pytest.raises(
        BadInput, match=r"^has the regular expression 'a\*a\*\$', which takes more than 1 s of processor time on "
    ):
        regex_check.check_pattern("a*a*$", replaces=False)
    monkeypatch.setattr(regex_check, "SECONDS", 600.0)
    regex_check.check_pattern("a*a*$", replaces=False)


def test_a_pattern_is_checked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    regex_check.check_pattern.cache_clear()
    (ordinary,) = (case for case in ORDINARY if case.name == "ordinary-pattern")
    content = json.loads(ordinary.files[parts.FILE])
    Tokenizer(content)
    (checked,) = (tmp_path / "checked-patterns").iterdir()
    assert len(checked.name) == 64

    def refused(*arguments: Any, **options: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(subprocess, "Popen", refused)
    regex_check.check_pattern.cache_clear()
    Tokenizer(content)
    checked.unlink()
    Tokenizer(content)
    regex_check.check_pattern.cache_clear()
    with pytest.raises(AssertionError):
        Tokenizer(content)


@pytest.mark.parametrize("kind", ["gpt", "roberta", "modernbert", "wordpiece", "sentencepiece", "xlnet"])
def test_a_tokenizer_that_was_trained_here_needs_no_child(kind: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(*arguments: Any, **options: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(subprocess, "Popen", refused)
    trained = Tokenizer.train(["the old white whale sails by a ship"] * 5, 400, kind)
    trained.save(tmp_path)
    use(Tokenizer.load(tmp_path))


def charsmap() -> bytes:
    """Return the normalization table of a trained model."""
    content = Tokenizer.train(["the old white whale"] * 5, 200, "sentencepiece").content()
    return base64.b64decode(content["normalizer"]["precompiled_charsmap"])


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.full)])
def test_a_damaged_table_is_refused_or_does_not_panic(count: int) -> None:
    """Every table that passes the check is used on every character of the first planes."""
    from tokenizers import normalizers

    rng, table, passed = np.random.default_rng(0), charsmap(), 0
    probes = [PROBES, *("".join(map(chr, range(first, first + 64))) for first in range(0x300, 0x3000, 640))]
    for _ in range(count):
        broken = bytearray(table)
        for place in rng.integers(0, len(broken), rng.integers(1, 4)):
            broken[place] = rng.integers(256)
        try:
            tokenizer_content.check_charsmap(bytes(broken))
        except BadInput:
            continue
        passed += 1
        normalizer = normalizers.Precompiled(bytes(broken))
        for text in probes:
            normalizer.normalize_str(text)
    assert count * 0.1 < passed < count


@pytest.mark.planted
def test_an_error_of_the_library_on_a_text_is_one_line() -> None:
    content = T5 | {"model": T5["model"] | {"unk_id": None}}
    with pytest.raises(
        BadInput, match=r"^the tokenizer fails on a text \(Encountered an unknown token but `unk_id` is missing\); use "
    ):
        Tokenizer(content).encode(BEYOND)
    with pytest.raises(KeyError), tokenizer_content.library_errors():
        raise KeyError


def test_a_damaged_table_of_a_sentencepiece_model_does_not_reach_the_library() -> None:
    with pytest.raises(BadInput, match=r"^its normalization table is damaged; download it again$"):
        sentencepiece_proto.parse_spiece_model(parts.T5_MODEL + parts.field(3, parts.field(2, b"\xff" * 64)))


def test_the_list_of_tokenizers_is_complete() -> None:
    assert len({case.name for case in TOKENIZERS}) == len(TOKENIZERS) >= 120
