"""Words for masks: which are the likeliest, how likely, and how they are shown."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from rich.cells import cell_len

from eval.commands import terminal_output
from eval.commands.fill_mask import FilledMask, fill_masks
from eval.inference.likelihood import row_length
from tests.support import encoders
from tests.support.commands import assert_refused, call

TEXTS = ("The old [MASK] sleeps by the  <mask>, Naïve!", "The old men is seen by [MASK], Naïve")
"""Of different lengths, but rounded up to one."""


def ids_of(family: str, text: str) -> list[int]:
    """Return the ids of a text as the tokenizers library makes them by itself, with its mask and its template."""
    core = tokenizers.Tokenizer.from_str(encoders.tokenizer(encoders.KINDS[family])._json)
    core.encode_special_tokens = False
    mask = "<mask>" if family == "roberta" else "[MASK]"
    return core.encode(text.replace("[MASK]", mask).replace("<mask>", mask)).ids


def filled(
    family: str, *texts: str, top: int = 5, targets: tuple[str, ...] = (), batch: int = 4, **which: Any
) -> list[FilledMask]:
    return fill_masks(encoders.encoder(family, batch, **which), encoders.texts(*texts), top=top, targets=targets)


@functools.cache
def everything(family: str, **machine: Any) -> list[FilledMask]:
    """Return the masks of `TEXTS` with every entry as a candidate."""
    return filled(family, *TEXTS, top=encoders.loaded(family).tokenizer.vocab_size, **machine)


@pytest.mark.parametrize(
    ("family", "machine"),
    [
        ("bert", {}),
        ("roberta", {}),
        pytest.param("modernbert", {}, marks=pytest.mark.full),
        pytest.param("distilbert", {"batch": 1}, marks=pytest.mark.full),
        pytest.param("bert", {"shape": (2, 2, 2)}, marks=pytest.mark.full),
    ],
    ids=str,
)
def test_probabilities_are_the_softmax_at_the_mask_of_the_text_alone(family: str, machine: dict[str, Any]) -> None:
    made, found = encoders.loaded(family), everything(family, **machine)
    assert [(each.text, each.number) for each in found] == [(TEXTS[0], 1), (TEXTS[0], 2), (TEXTS[1], 1)]
    lengths = {len(ids_of(family, text)) for text in TEXTS}
    assert len(lengths) == 2 and len({row_length(length, encoders.POSITIONS) for length in lengths}) == 1
    for each in found:
        tokens = ids_of(family, each.text)
        places = np.flatnonzero(np.array(tokens) == made.tokenizer.special_tokens.mask)
        expected = np.exp(encoders.logs(made, tokens, int(places[each.number - 1])))[: made.tokenizer.vocab_size]
        ids = [candidate.id for candidate in each.candidates]
        values = [candidate.probability for candidate in each.candidates]
        assert sorted(ids) == list(range(made.tokenizer.vocab_size))
        np.testing.assert_allclose(values, expected[ids], rtol=1e-5, atol=1e-7)
        assert values == sorted(values, reverse=True)


@pytest.mark.full
def test_target_is_compared_with_the_whole_vocabulary() -> None:
    for found, other in zip(filled("bert", *TEXTS, targets=("men", "Whale", "men")), everything("bert"), strict=True):
        every = {each.id: each.probability for each in other.candidates}
        assert {each.token for each in found.candidates} == {"men", "whale"}
        assert all(each.probability == pytest.approx(every[each.id]) for each in found.candidates)
        assert found.candidates[0].probability > found.candidates[1].probability


def test_target_has_the_space_that_its_mask_replaces() -> None:
    found = filled("roberta", "The <mask> is seen.", "<mask>.", targets=("the",))
    assert [[each.token for each in one.candidates] for one in found] == [[" the"], ["the"]]
    assert [one.candidates[0].text for one in found] == ["The the is seen.", "the."]


def test_text_is_shown_as_written_with_the_word_in_its_place() -> None:
    second = everything("bert")[1]
    texts = {each.token: each.text for each in second.candidates}
    assert texts["whale"] == "The old [MASK] sleeps by the  whale, Naïve!"
    assert texts["##e"] == "The old [MASK] sleeps by thee, Naïve!"
    assert all(each.text[each.start : each.end] == each.token.removeprefix("##") for each in second.candidates)
    texts = {each.token: each.text for each in everything("roberta")[1].candidates}
    assert texts[" whale"] == "The old [MASK] sleeps by the whale, Naïve!"
    assert texts["!"] == "The old [MASK] sleeps by the!, Naïve!"


@pytest.mark.parametrize("unit", ["a", "鯨", "e\u0301", " \t"])
def test_excerpt_contains_the_character_it_is_for(unit: str) -> None:
    for start in (0, 50, 99):
        text = f"{unit * start}X{unit * (99 - start)}"
        shown = terminal_output.text_excerpt(text, unit_start := len(unit) * start, unit_start + 1, 20)
        assert "X" in shown and cell_len(shown) <= 20
        assert shown.strip("…") in re.sub(r"\s", " ", text)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    encoders.folder(made / "roberta", "roberta")
    encoders.folder(made / "body", "bert", "body")
    return made


@pytest.mark.full
def test_command_prints_the_candidates_as_tables_or_objects(
    place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines, where = tmp_path / "lines.txt", str(place / "roberta")
    lines.write_text(f"{TEXTS[0]}\n\n{TEXTS[1]}\n")
    tables = call(capsys, "fill-mask", where, "--files", str(lines))
    assert (tables.code, tables.stderr) == (0, "")
    objects = call(capsys, "fill-mask", where, "--text", TEXTS[0], "--text", TEXTS[1], "--json").stdout.splitlines()
    for line, table, mask in zip(objects, tables.stdout.split("--- mask ")[1:], everything("roberta"), strict=True):
        record = json.loads(line)
        assert (record["text"], record["mask"]) == (mask.text, mask.number)
        values = {each["id"]: each["probability"] for each in record["candidates"]}
        assert values == pytest.approx({each.id: each.probability for each in mask.candidates[:5]}, rel=1e-5)
        for each in record["candidates"]:
            assert re.sub(r"\s", " ", each["text"]) in table and f"{each['probability']:.4f}" in table


WRONG = [
    (("--text", "The [MASK]", "The whale"), "--text 2: has no mask; write [MASK]"),
    (("--text", " "), "--text ' ': write some text"),
    (("--text", "\udcff"), r"--text '\udcff': write it in UTF-8"),
    (("--text", "[MASK]", "--top", "0"), "--top 0: choose 1 or more"),
    (("--text", "[MASK]", "--top", "400"), "--top 400: the tokenizer has 319 entries"),
    (("--text", "[MASK]", "--targets", ""), "--targets '': write a word"),
    (("--text", "[MASK]", "--targets", "xy"), """--targets 'xy': the tokenizer splits it into "x" + "y"; choose"""),
    (("--text", "x" * 40 + "[MASK]"), "--text: 43 tokens with special tokens, and this model reads at most 40; shorten it, or"),
    (("--text", "[MASK]" + "x" * 40 + "[MASK]", "--truncate"), "--text: mask 2 is beyond the model's 40 positions"),
    (("--files", "-", "--processes", "2"), "--processes 2: only one process can read standard input"),
]


def test_wrong_options_and_texts_are_refused_in_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {said: (("fill-mask", str(place / "roberta"), *options), re.escape(said)) for options, said in WRONG}
    assert_refused(capsys, place, cases)
    ended = call(capsys, "fill-mask", str(place / "body"), "--text", "[MASK]")
    assert ended.code == 2 and "body: a bert for the task body has no head for masked words" in ended.stderr


def test_truncation_cuts_the_end_of_a_text() -> None:
    made, ids = encoders.encoder("roberta"), np.arange(10, 10 + encoders.POSITIONS)
    marks = made.special_tokens
    assert made.with_special_tokens(ids, "", truncate=True).tolist() == [marks.cls, *ids[: encoders.POSITIONS - 2], marks.sep]
    assert made.with_special_tokens(ids[:-2], "").tolist() == [marks.cls, *ids[:-2], marks.sep]


@pytest.mark.parity
@pytest.mark.parametrize("family", encoders.KINDS)
def test_ids_and_probabilities_are_those_of_the_pipeline_of_transformers(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pipeline = transformers.pipeline("fill-mask", str(encoders.folder(tmp_path / "model", family)), device="cpu", top_k=20)
    mask = pipeline.tokenizer.mask_token
    found = filled(family, *TEXTS, top=20)
    for text in TEXTS:
        given = pipeline(text.replace("[MASK]", mask).replace("<mask>", mask))
        masks = [each for each in found if each.text == text]
        for entries, mask_found in zip(given if isinstance(given[0], list) else [given], masks, strict=True):
            # The vocabulary has a few rows that the tokenizer has no entry for; those are not listed here.
            listed = [each for each in entries if each["token"] < encoders.loaded(family).tokenizer.vocab_size]
            candidates = mask_found.candidates[: len(listed)]
            assert [each["token"] for each in listed] == [each.id for each in candidates]
            values = [each.probability for each in candidates]
            np.testing.assert_allclose(values, [each["score"] for each in listed], atol=1e-5)
            assert len(listed) >= 15
