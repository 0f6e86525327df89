"""Words for masks: which are the likeliest, how likely, and how they are shown."""

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from eval import terminal
from eval.fill_mask import Filled, fill, table
from eval.likelihood import row_length
from tests.support import encoders
from tests.support.commands import call

ASKED = ("The old [MASK] sleeps by the  <mask>, Naïve!", "The old men is seen by [MASK], Naïve")
"""Of different lengths, and yet of one shape when they are gathered."""


def ids_of(family: str, text: str) -> list[int]:
    """The ids of a text as the library makes them by itself: it knows the mask, and the template with the marks."""
    core = tokenizers.Tokenizer.from_str(encoders.tokenizer(encoders.KINDS[family])._json)
    core.encode_special_tokens = False
    mask = "<mask>" if family == "roberta" else "[MASK]"
    return core.encode(text.replace("[MASK]", mask).replace("<mask>", mask)).ids


def filled(family: str, *given: str, top: int = 5, targets: tuple[str, ...] = (), batch: int = 4, **which: Any) -> list[Filled]:
    return fill(encoders.encoder(family, batch, **which), encoders.texts(*given), top=top, targets=targets)


@functools.cache
def everything(family: str) -> list[Filled]:
    """The masks of `ASKED` with every entry as a candidate."""
    return filled(family, *ASKED, top=encoders.loaded(family).tokenizer.vocab_size)


def chances(found: Filled) -> dict[int, float]:
    return {each.id: each.probability for each in found.candidates}


@pytest.mark.parametrize("family", encoders.KINDS)
def test_probabilities_are_the_softmax_at_the_mask_of_the_text_alone(family: str) -> None:
    made, found = encoders.loaded(family), everything(family)
    assert [(each.text, each.number) for each in found] == [(ASKED[0], 1), (ASKED[0], 2), (ASKED[1], 1)]
    lengths = {len(ids_of(family, text)) for text in ASKED}
    assert len(lengths) == 2 and len({row_length(length, encoders.POSITIONS) for length in lengths}) == 1
    for each in found:
        tokens = ids_of(family, each.text)
        places = np.flatnonzero(np.array(tokens) == made.tokenizer.marks.mask)
        wanted = np.exp(encoders.logs(made, tokens, int(places[each.number - 1])))[: made.tokenizer.vocab_size]
        assert sorted(chances(each)) == list(range(made.tokenizer.vocab_size))
        np.testing.assert_allclose([chances(each)[entry] for entry in range(len(wanted))], wanted, rtol=1e-5, atol=1e-7)
        assert list(chances(each).values()) == sorted(chances(each).values(), reverse=True)


@pytest.mark.parametrize("how", [{"batch": 1}, {"shape": (2, 2, 2)}], ids=["batch", "mesh"])
def test_neither_the_batch_nor_the_mesh_matters(how: dict[str, Any]) -> None:
    for found, other in zip(filled("bert", *ASKED, top=91, **how), everything("bert"), strict=True):
        assert chances(found) == pytest.approx(chances(other), rel=1e-5, abs=1e-7)


def test_a_target_is_judged_among_the_whole_vocabulary() -> None:
    for found, other in zip(filled("bert", *ASKED, targets=("men", "Whale", "men")), everything("bert"), strict=True):
        assert {each.token for each in found.candidates} == {"men", "whale"}
        assert chances(found) == pytest.approx({entry: chances(other)[entry] for entry in chances(found)})
        assert found.candidates[0].probability > found.candidates[1].probability


def test_a_target_has_the_space_that_its_mask_took() -> None:
    found = filled("roberta", "The <mask> is seen.", "<mask>.", targets=("the",))
    assert [[each.token for each in one.candidates] for one in found] == [[" the"], ["the"]]
    assert [one.candidates[0].text for one in found] == ["The the is seen.", "the."]


def test_the_text_is_shown_as_it_was_written_with_the_word_in_its_place() -> None:
    second = everything("bert")[1]
    texts = {each.token: each.text for each in second.candidates}
    assert texts["whale"] == "The old [MASK] sleeps by the  whale, Naïve!"
    assert texts["##e"] == "The old [MASK] sleeps by thee, Naïve!"
    assert all(each.text[each.start : each.end] == each.token.removeprefix("##") for each in second.candidates)
    texts = {each.token: each.text for each in everything("roberta")[1].candidates}
    assert texts[" whale"] == "The old [MASK] sleeps by the whale, Naïve!"
    assert texts["!"] == "The old [MASK] sleeps by the!, Naïve!"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200), st.integers(0, 150), st.integers(20, 90))
def test_an_excerpt_fits_and_shows_what_it_is_for(text: str, start: int, room: int) -> None:
    start = min(start, len(text) - 1)
    shown = terminal.excerpt(text, start, start + 1, room)
    assert cell_len(shown) <= room
    assert re.sub(r"\s", " ", text[start]) in shown
    assert shown.strip("…") in re.sub(r"\s", " ", text)
    assert cell_len(shown) > room - 5 or len(shown) == len(text)


def test_a_table_fits_its_terminal() -> None:
    found = dataclasses.replace(everything("bert")[1], candidates=everything("bert")[1].candidates[:5])
    lines = table(found, 50).splitlines()
    assert lines[1].split() == ["probability", "token", "text"]
    assert max(map(cell_len, lines)) <= 50
    for line, each in zip(lines[2:], found.candidates, strict=True):
        assert line.split()[0] == f"{each.probability:.4f}"
        assert each.token.removeprefix("##") in line.split("  ")[-1]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of published models: one with a masked head, and one without."""
    made = tmp_path_factory.mktemp("models")
    encoders.folder(made / "roberta", "roberta")
    encoders.folder(made / "body", "bert", "body")
    return made


def test_the_command_prints_tables_or_objects(place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines, where = tmp_path / "lines.txt", str(place / "roberta")
    lines.write_text(f"{ASKED[0]}\n\n{ASKED[1]}\n")
    shown = call(capsys, "fill-mask", where, "--files", str(lines))
    assert (shown.code, shown.stderr) == (0, "")
    said = call(capsys, "fill-mask", where, "--text", ASKED[0], "--text", ASKED[1], "--json")
    objects, tables = [json.loads(line) for line in said.stdout.splitlines()], shown.stdout.split("--- mask ")[1:]
    for number, (one, shown, other) in enumerate(zip(objects, tables, everything("roberta"), strict=True), 1):
        assert (one["text"], one["mask"]) == (other.text, other.number)
        assert {each["id"]: each["probability"] for each in one["candidates"]} == pytest.approx(
            {each.id: each.probability for each in other.candidates[:5]}, rel=1e-5
        )
        title, text, head, *rows = shown.splitlines()
        assert (title, text, head.split()) == (f"{number} of 3", other.text, ["probability", "token", "text"])
        for row, each in zip(rows, one["candidates"], strict=True):
            assert row.endswith("  " + re.sub(r"\s", " ", each["text"]))


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "no mask": (("--text", "The [MASK]", "The whale"), "--text 2: holds no mask; write [MASK] where"),
    "no text": ((), "--text is not given: give either --text or --files"),
    "both": (("--text", "[MASK]", "--files", "a.txt"), "--text and --files: give either"),
    "a blank": (("--text", " "), "--text ' ': write some text"),
    "no UTF-8": (("--text", "\udcff"), r"--text '\udcff': write it in UTF-8"),
    "no file": (("--files", "gone.txt"), "--files gone.txt: no such file"),
    "none": (("--text", "[MASK]", "--top", "0"), "--top 0: choose 1 or more"),
    "too many": (("--text", "[MASK]", "--top", "400"), "--top 400: the tokenizer has 319 entries"),
    "a blank target": (("--text", "[MASK]", "--targets", ""), "--targets '': write a word"),
    "an unknown target": (
        ("--text", "[MASK]", "--targets", "xy"),
        """--targets 'xy': to the vocabulary it is "x" + "y"; a mask""",
    ),
    "too long": (
        ("--text", "x" * 40 + "[MASK]"),
        "--text: 43 tokens with its marks, but the model has 40 positions; shorten it, or",
    ),
    "a mask cut off": (
        ("--text", "[MASK]" + "x" * 40 + "[MASK]", "--truncate"),
        "--text: mask 2 is beyond the model's 40 positions",
    ),
    "two readers": (("--files", "-", "--processes", "2"), "--processes 2: only one process can read standard input"),
}


@pytest.mark.parametrize(("options", "said"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_one_line(options: tuple[str, ...], said: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = call(capsys, "fill-mask", str(place / "roberta"), *options)
    assert (ended.code, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"zoo: {said}") and ended.stderr.count("\n") == 1


def test_a_model_that_predicts_no_words_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = call(capsys, "fill-mask", str(place / "body"), "--text", "[MASK]")
    assert ended.code == 2 and "body: a bert for the task body has no head for masked words" in ended.stderr


def test_a_text_that_is_truncated_loses_its_end() -> None:
    made, ids = encoders.encoder("roberta"), np.arange(10, 10 + encoders.POSITIONS)
    marks = made.marks
    assert made.framed(ids, "", truncate=True).tolist() == [marks.cls, *ids[: encoders.POSITIONS - 2], marks.sep]
    assert made.framed(ids[:-2], "").tolist() == [marks.cls, *ids[:-2], marks.sep]


@pytest.mark.parity
@pytest.mark.parametrize("family", encoders.KINDS)
def test_ids_and_probabilities_are_those_of_the_pipeline_of_transformers(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pipeline = transformers.pipeline("fill-mask", str(encoders.folder(tmp_path / "model", family)), device="cpu", top_k=20)
    mask = pipeline.tokenizer.mask_token
    found = filled(family, *ASKED, top=20)
    for text in ASKED:
        said = pipeline(text.replace("[MASK]", mask).replace("<mask>", mask))
        mine = [each for each in found if each.text == text]
        for theirs, ours in zip(said if isinstance(said[0], list) else [said], mine, strict=True):
            # The vocabulary has a few rows that the tokenizer has no entry for; those are not listed here.
            listed = [each for each in theirs if each["token"] < encoders.loaded(family).tokenizer.vocab_size]
            assert [each["token"] for each in listed] == [each.id for each in ours.candidates][: len(listed)]
            chances = [each.probability for each in ours.candidates][: len(listed)]
            np.testing.assert_allclose(chances, [each["score"] for each in listed], atol=1e-5)
            assert len(listed) >= 15
