"""Rows of labelled completions: the mismatched completion of each, both sides as they are read, and samples of both labels."""

import io
import itertools
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.support import tiny
from tests.support.small import small
from tests.support.unigram_text import spelled
from train.config.data_options import UnpairedData
from train.config.kto_options import Kto
from train.config.option_groups import Preferences
from train.data.example_types import UnpairedPreference
from train.data.text_files import Document
from train.inputs import example_inputs, inspect_rows, kto_inputs, run_inputs
from train.rows.feedback.kto_rows import builder, encode_rows, mismatched_examples
from train.rows.feedback.preference_rows import Limits
from train.run.run_dir import RunDir
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.errors import BadInput

BYTES, END = Tokenizer.train([], 257), "<|endoftext|>"


def of(*texts: tuple[str, str], desired: Any = ()) -> list[UnpairedPreference]:
    labels = zip(texts, desired or itertools.cycle([True, False]), strict=False)
    return [UnpairedPreference(origin=f"a:{n}", prompt=p, completion=c, desired=d) for n, ((p, c), d) in enumerate(labels)]


def test_a_mismatched_completion_is_that_of_the_next_example_that_differs_in_both_texts():
    """Against a plain search, in all orders of a few texts, many of them equal, and in runs of equal ones."""
    orders = list(itertools.product("ab", "xy", "ab", "xyz", "a", "xy", "abc", "z"))[::7]
    for texts in [*orders, "a" * 9 + "bx", "ax" * 5 + "by" * 9]:
        examples = of(*zip(texts[::2], texts[1::2], strict=False))

        def fits(one: int, other: int, examples: Any = examples) -> bool:
            return examples[one].prompt != examples[other].prompt and examples[one].completion != examples[other].completion

        size = len(examples)
        following = [[other % size for other in range(n + 1, n + size) if fits(n, other % size)] for n in range(size)]
        assert mismatched_examples(examples) == [others[0] if others else None for others in following]
    assert mismatched_examples(of(("a", "b"))) == [None]


@pytest.mark.parametrize("family", ["gpt", "t5"])
def test_a_row_is_the_prompt_with_both_completions(family: str):
    tokenizer = BYTES if family == "gpt" else spelled(["the", "whale"])
    cfg, end = small(family).config, END if family == "gpt" else "</s>"
    rows, _ = encode_rows(of(("the ", "whale"), ("the ", "the"), ("a", " big")), tokenizer, cfg, Preferences(), Limits(40, 20))
    built = [builder(cfg, tokenizer, 20)(np.random.default_rng(0), row, 40) for row in rows]
    texts = [
        [tokenizer.decode(ids[weights > 0]).strip() for ids, weights in zip(row["targets"], row["weights"], strict=True)]
        for row in built
    ]
    assert texts == [[f"whale{end}", f"big{end}"], [f"the{end}", f"big{end}"], [f"big{end}", f"whale{end}"]]
    assert [float(row["extra"]["desired"]) for row in built] == [1, 0, 1] and built[0]["extra"]["desired"].dtype == np.float32
    inputs = [row["tokens"] if family == "gpt" else vars(row["source"])["tokens"] for row in built]
    assert all(tokenizer.decode(side).startswith("the") for side in inputs[0])


def test_what_is_too_long_names_both_completions():
    examples, cfg = of(("prom", " b"), ("a", " bcdef")), small("gpt").config
    with pytest.raises(BadInput, match="a:0: 7 tokens with the labelled completion and 11 with the mismatched, and a row has 9"):
        encode_rows(examples, BYTES, cfg, Preferences(), Limits(9))


SKIPPED = {
    "a long one is no other's mismatched completion": ([("a", " b"), ("c", " long answer"), ("d", " e")], [(0, 2), (2, 0)], 1),
    "no mismatched completion": ([("a", " b"), ("a", " c"), ("a", " c"), ("d", " c")], [(0, 3), (3, 0)], 2),
    "none fits": ([("a", " long answer")] * 2, [], 2),
    "a mismatched one that is too long": ([("prom", " b"), ("a", " bcdef"), ("d", " e")], [(1, 2), (2, 0)], 1),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_examples_that_cannot_be_used_are_left_out_and_are_not_mismatched(name: str):
    """`expected` has the number of the example and of the one whose completion is its mismatched one."""
    texts, expected, skipped = SKIPPED[name]
    examples, cfg = of(*texts), small("gpt").config
    rows, messages = encode_rows(examples, BYTES, cfg, Preferences(skip_bad=True), Limits(9))
    ends = [[BYTES.decode(side.ids[side.first : -1]) for side in row.sides] for row in rows]
    assert ends == [[examples[own].completion, examples[other].completion] for own, other in expected]
    assert [row.example for row in rows] == [own for own, _ in expected] and len(messages) == skipped
    with pytest.raises(BadInput, match=r"^a:\d: .*--labelled\.skip-bad"):
        encode_rows(examples, BYTES, cfg, Preferences(), Limits(9))


def test_without_a_reference_an_example_needs_no_other_one():
    run = tiny.run("kto", model=small("gpt").config, data=UnpairedData(length=12, batch=4), kto=Kto(reference="none"))
    rows = kto_inputs.rows_of_completions(of(("a", " b"), ("a", " c")), run, BYTES)
    assert [len(row.sides) for row in rows.rows] == [1, 1]
    with pytest.raises(BadInput, match="a:0: 16 tokens with the labelled completion, and a row has 12"):
        kto_inputs.rows_of_completions(of(("a", " long completion"[:14])), run, BYTES)


def rows_of(examples: list[UnpairedPreference]) -> kto_inputs.UnpairedRows:
    run = tiny.run("kto", model=small("gpt").config, data=UnpairedData(length=32, batch=4))
    return kto_inputs.rows_of_completions(examples, run, BYTES)


def test_samples_have_both_labels_and_halves_of_one_label_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    rows = rows_of(of(*((f"p{n}", f" c{n}") for n in range(40)), desired=[n == 7 for n in range(40)]))
    for count in (2, 8, 40, 99):
        labels = [row.desired for row in rows.subsample(count).rows]
        assert sum(labels) == 1 and len(labels) == min(count, 40)
    halves = [of(*((f"p{n}", f" c{n}") for n in range(4)), desired=labels) for labels in ([True, False] * 2, [False] * 4)]
    monkeypatch.setattr(example_inputs.labelled_reader, "split_examples", lambda *options: tuple(halves))
    monkeypatch.setattr(example_inputs, "existing_tokenizer", lambda run, folder: BYTES)
    run = tiny.run("kto", model=small("gpt").config, data=UnpairedData(length=32, batch=4, paths=("a.jsonl",)))
    with pytest.raises(BadInput, match=r"--data.paths a.jsonl: all 4 held-out completions are undesired, and kto needs both"):
        run_inputs.read_inputs(run, RunDir(str(tmp_path)), tmp_path)
    halves[1] = halves[0]
    data = run_inputs.read_inputs(run, RunDir(str(tmp_path)), tmp_path)
    assert data.describe(run)["labels"] == "2 desired, 2 undesired; ratio with their weights 1"
    assert data.fingerprints()["held_out"] == data.held_out.content_digest and data.counts().sum() == data.training.text_size
    assert isinstance(data.rows.components[0].documents[0], Document)  # pyright: ignore[reportIndexIssue]
    with pytest.raises(BadInput, match=r"--kto.reference init: the reference is the model of --init, which is not set"):
        run.options.check_start(run)


def test_both_sides_are_shown():
    rows = rows_of(of(("a", " b"), ("c", " d")))
    fields = builder(small("gpt").config, BYTES)(np.random.default_rng(0), rows.row(0), 8)
    stream = io.StringIO()
    console = Console(file=stream, width=80, highlight=False, markup=False, emoji=False)
    inspect_rows._show(console, BYTES, Batch(**fields), rows.row(0), {0: "a:0"})
    shown = [stream.getvalue().find(part) for part in ("labelled", "a:0", "│b│", "mismatched", "│d│", "desired: 1.0")]
    assert -1 not in shown and shown == sorted(shown)
