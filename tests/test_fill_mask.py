"""Words for masks: which are the likeliest, how likely, and how they are shown."""

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
from tests import encoders
from tests.commands import call

ASKED = (
    "The [MASK] whale sleeps.",
    "The capital of <mask> is [MASK].",
    "[MASK]",
    "The whale is seen by the old [MASK] of the ship, and the white whale",
)
FAMILIES = tuple(encoders.KINDS)


def ids_of(family: str, text: str) -> list[int]:
    """The ids of a text as the library makes them by itself: it knows the mask, and the template with the marks."""
    core = tokenizers.Tokenizer.from_str(encoders.tokenizer(encoders.KINDS[family])._json)
    core.encode_special_tokens = False
    mask = "<mask>" if family == "roberta" else "[MASK]"
    return core.encode(text.replace("[MASK]", mask).replace("<mask>", mask)).ids


def filled(family: str, *given: str, top: int = 5, targets: tuple[str, ...] = (), batch: int = 4, **which: Any) -> list[Filled]:
    return fill(encoders.encoder(family, batch, **which), encoders.texts(*given), top=top, targets=targets)


@pytest.mark.parametrize("family", FAMILIES)
def test_probabilities_are_the_softmax_at_the_mask_of_the_text_alone(family: str) -> None:
    made = encoders.loaded(family)
    masks = [(text, number) for text in ASKED for number in range(len(re.findall(r"\[MASK\]|<mask>", text)))]
    found = filled(family, *ASKED)
    assert [(each.text, each.number - 1) for each in found] == masks
    for each in found:
        tokens = ids_of(family, each.text)
        places = np.flatnonzero(np.array(tokens) == made.tokenizer.marks.mask)
        wanted = np.exp(encoders.logs(made, tokens, int(places[each.number - 1])))[: made.tokenizer.vocab_size]
        assert [candidate.id for candidate in each.candidates] == np.argsort(-wanted)[:5].tolist()
        np.testing.assert_allclose([one.probability for one in each.candidates], np.sort(wanted)[: -5 - 1 : -1], atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_neither_the_batch_nor_the_mesh_nor_other_texts_matter(family: str) -> None:
    def facts(found: list[Filled]) -> tuple[list[int], list[float]]:
        candidates = [candidate for each in found for candidate in each.candidates]
        return [each.id for each in candidates], [each.probability for each in candidates]

    ids, chances = facts(filled(family, *ASKED))
    alone = facts([each for text in ASKED for each in filled(family, text)])
    for others in (alone, facts(filled(family, *ASKED, batch=1)), facts(filled(family, *ASKED, shape=(2, 2, 2)))):
        assert others[0] == ids
        np.testing.assert_allclose(others[1], chances, rtol=1e-5)


def test_a_target_is_judged_among_the_whole_vocabulary_and_has_the_space_its_mask_took() -> None:
    everything = {each.id: each.probability for each in filled("bert", ASKED[0], top=91)[0].candidates}
    (found,) = filled("bert", ASKED[0], targets=("men", "whale", "men"))
    assert {each.token for each in found.candidates} == {"men", "whale"}
    assert found.candidates[0].probability > found.candidates[1].probability
    for each in found.candidates:
        assert each.probability == pytest.approx(everything[each.id])
    inside, first = filled("roberta", "The <mask> sleeps.", "<mask> sleeps.", targets=("the",))
    assert [each.candidates[0].token for each in (inside, first)] == [" the", "the"]
    assert (inside.candidates[0].text, first.candidates[0].text) == ("The the sleeps.", "the sleeps.")


def test_the_text_is_shown_as_it_was_written_with_the_word_in_its_place() -> None:
    texts = {
        each.token: each.text for each in filled("bert", "A  Naïve [MASK] sleeps, [MASK]!", top=91)[0].candidates
    }
    assert texts["whale"] == "A  Naïve whale sleeps, [MASK]!"
    piece = next(token for token in texts if token.startswith("##"))
    assert texts[piece] == f"A  Naïve{piece[2:]} sleeps, [MASK]!"
    bytes_too = filled("roberta", "A whale <mask>!", top=319)[0].candidates
    assert {each.text for each in bytes_too if each.token in (" of", "ing", "!")} >= {"A whale of!", "A whale!!"}


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200), st.integers(0, 150), st.integers(20, 90))
def test_an_excerpt_fits_and_shows_what_it_is_for(text: str, start: int, room: int) -> None:
    start = min(start, len(text) - 1)
    shown = terminal.excerpt(text, start, start + 1, room)
    assert cell_len(shown) <= room
    assert re.sub(r"\s", " ", text[start]) in shown
    assert shown.strip("…") in re.sub(r"\s", " ", text)
    assert cell_len(shown) > room - 5 or len(shown) == len(text)


def test_a_table_fits_its_terminal() -> None:
    long = "The whale is seen. " * 5
    (found,) = filled("bert", "The capital of [MASK] is seen by the old men of the ship, and sleeps.")
    lines = table(found, 60).splitlines()
    assert lines[1].split() == ["probability", "token", "text"]
    assert max(map(cell_len, lines)) <= 60
    for line, each in zip(lines[2:], found.candidates, strict=True):
        assert line.split()[0] == f"{each.probability:.4f}"
        assert each.token.removeprefix("##") in line.split("  ")[-1]
    assert long


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of published models: one with a masked head, and one without."""
    made = tmp_path_factory.mktemp("models")
    encoders.folder(made / "roberta", "roberta")
    encoders.folder(made / "body", "bert", "body")
    return made


def test_the_command_prints_tables_or_objects(place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("The capital of <mask> is <mask>.\n\nThe [MASK]\n")
    shown = call(capsys, "fill-mask", str(place / "roberta"), "--files", str(lines), "--top", "2")
    assert (shown.code, shown.stderr) == (0, "")
    assert [line for line in shown.stdout.splitlines() if line.startswith("---")] == [f"--- mask {n} of 3" for n in (1, 2, 3)]
    said = call(capsys, "fill-mask", str(place / "roberta"), "--text", "The capital of <mask> is <mask>.", "--text", "The [MASK]", "--json")
    objects = [json.loads(line) for line in said.stdout.splitlines()]
    wanted = filled("roberta", "The capital of <mask> is <mask>.", "The [MASK]")
    assert [(each["text"], each["mask"]) for each in objects] == [(each.text, each.number) for each in wanted]
    for one, other in zip(objects, wanted, strict=True):
        assert [each["id"] for each in one["candidates"]] == [each.id for each in other.candidates]
        assert [each["probability"] for each in one["candidates"]] == pytest.approx([each.probability for each in other.candidates])


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
    "an unknown target": (("--text", "[MASK]", "--targets", "xy"), """--targets 'xy': to the vocabulary it is "x" + "y"; a mask"""),
    "too long": (("--text", "x" * 40 + "[MASK]"), "--text: 43 tokens with its marks, but the model has 40 positions; shorten it, or"),
    "a mask cut off": (("--text", "[MASK]" + "x" * 40 + "[MASK]", "--truncate"), "--text: mask 2 is beyond the model's 40 positions"),
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
    cut, short = (fill(encoders.encoder("roberta"), encoders.texts(text), top=3, truncate=True)[0] for text in ("<mask>" + "x" * 60, "<mask>" + "x" * 37))
    assert [each.probability for each in cut.candidates] == pytest.approx([each.probability for each in short.candidates])
