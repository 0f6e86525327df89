"""Components mixed by weight: their shares after any number of examples, one numbering of the rows, and the paths of a run."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support import tiny
from train.checkpoints.manifest import manifest_differences
from train.config.data_options import CausalData
from train.config.run_config import Tokenizer
from train.inputs import run_inputs
from train.rows.lm_rows import Tokens, stream_windows
from train.rows.mixture import Component, Mixture
from train.run.run_dir import RunDir
from zoo.errors import BadInput

WEIGHTS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6)


def mixture(weights, counts=None):
    """Components with rows of 4 targets; the number of rows of each."""
    components = []
    for i, (weight, n) in enumerate(zip(weights, counts or [5] * len(weights), strict=True)):
        rows = stream_windows(Tokens(np.arange(4 * n, dtype=np.uint16), np.array([0, 4 * n]), np.array([n]), 0, f"{n}"), 4)
        components.append(Component(f"{i}", float(weight), (), rows))
    return Mixture(tuple(components))


@settings(deadline=None, max_examples=15)
@given(WEIGHTS)
@example([1.0, 1.0, 1.0, 1.0, 1.0, 50.0])
def test_every_component_keeps_its_share_after_any_number_of_examples(weights):
    mixed, shares = mixture(weights), np.array(weights) / sum(weights)
    given = np.zeros(len(weights), np.int64)
    for number in range(300):
        component, before = mixed.component_of(number)
        assert before == given[component]
        given[component] += 1
        assert (np.abs(given - shares * (number + 1)) < (1 + math.log(len(weights))) / 2 + 1e-9).all()


@settings(deadline=None, max_examples=25)
@given(WEIGHTS, st.integers(1, 2**40))
def test_a_late_example_is_as_exact_as_an_early_one(weights, example):
    mixed = mixture(weights)
    component, before = mixed.component_of(example)
    drawn = [share.drawn for share in mixed.shares(example)]
    assert drawn[component] == before and sum(drawn) == example


def test_blocks_are_of_one_component_and_continue_it():
    single = mixture([0.7, 0.3])
    blocks = Mixture(single.components, block=4)
    for number in range(400):
        component, before = single.component_of(number // 4)
        assert blocks.component_of(number) == (component, 4 * before + number % 4)
    assert [share.drawn for share in blocks.shares(400)] == [280, 120]
    assert blocks.fingerprint != single.fingerprint


def test_weights_are_the_decimals_that_were_written():
    """Any ten examples in a row: 7 of the one and 3 of the other."""
    mixed = mixture([0.7, 0.3])
    components = [mixed.component_of(example)[0] for example in range(2_000)]
    assert all(sum(components[at : at + 10]) == 3 for at in range(1_990))
    other = mixture([70, 30])
    assert [other.component_of(example) for example in range(50)] == [mixed.component_of(example) for example in range(50)]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_rows_are_numbered_through(counts):
    mixed = mixture([1] * len(counts), counts)
    places = [mixed.locate(number) for number in range(len(mixed))]
    assert places == [(component, row) for component, count in enumerate(counts) for row in range(count)]
    assert [mixed.number(*place) for place in places] == list(range(len(mixed)))
    assert [mixed.row(number).pieces[0].start for number in range(len(mixed))] == [4 * row for _, row in places]


def test_the_fingerprint_depends_on_rows_order_and_weights():
    several = (([1], [5]), ([1, 1], [5, 6]), ([1, 1], [6, 5]), ([1, 2], [5, 6]), ([1, 1], [5, 7]), ([2, 1], [5, 6]))
    prints = [mixture(*parts).fingerprint for parts in several]
    assert len(set(prints)) == len(prints)
    assert mixture([0.1, 0.7], [5, 6]).fingerprint == mixture([1, 7], [5, 6]).fingerprint
    assert mixture([3], [5]).fingerprint == mixture([1], [5]).components[0].rows.fingerprint


def test_shares_name_examples_epochs_and_the_share_of_filled_places():
    shares = mixture([0.75, 0.25], [5, 20]).shares(400)
    assert [(each.weight, each.tokens, each.rows, each.drawn, each.epochs, each.share) for each in shares] == [
        (0.75, 20, 5, 300, 60.0, 0.75),
        (0.25, 80, 20, 100, 5.0, 0.25),
    ]
    tokens = Tokens(np.arange(2, dtype=np.uint16), np.array([0, 2]), np.array([2]), 0, "")
    mixed = Mixture((mixture([1]).components[0], Component("short", 1.0, (), stream_windows(tokens, 4))))
    assert [share.share for share in mixed.shares(100)] == [4 / 6, 2 / 6]


@pytest.fixture
def files(tmp_path):
    """A text, and a .jsonl of 30 documents."""
    one, two = tmp_path / "one.txt", tmp_path / "two.jsonl"
    one.write_text("the cat sat on the mat.\n" * 200)
    documents = (f"document {i}: " + "and a dog ran far. " * (5 + i % 7) for i in range(30))
    two.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return str(one), str(two)


def read(tmp_path, files, weights=(), **data):
    chosen = CausalData(paths=files, weights=tuple(map(float, weights)), length=32, batch=8, **data)
    run = tiny.run(data=chosen, out=str(tmp_path / "runs"))
    return run, run_inputs.read_inputs(run, RunDir.of(run), tmp_path / "cache")


def decoded(text, tokens):
    return text.tokenizer.decode(tokens.ids).replace("<|endoftext|>", "")


def test_each_path_is_split_and_tokenized_on_its_own(tmp_path, files):
    run, text = read(tmp_path, files, (0.7, 0.3))
    lines = Path(files[1]).read_text().splitlines()
    whole = [Path(files[0]).read_text(), "".join(json.loads(line)["text"] for line in lines)]
    trained = [decoded(text, component.rows.tokens) for component in text.rows.components]
    assert [component.name for component in text.rows.components] == list(files)
    for full, part in zip(whole, trained, strict=True):
        assert full.startswith(part) and 0.85 < len(part) / len(full) < 0.95
    assert decoded(text, text.held_out) == "".join(full[len(part) :] for full, part in zip(whole, trained, strict=True))
    assert [document.name for document in text.rows.components[1].documents][:2] == ["two.jsonl:1", "two.jsonl:2"]
    # Other weights tokenize nothing again.
    cached = sorted(entry.name for entry in (tmp_path / "cache").iterdir())
    assert len(cached) == 3
    _, again = read(tmp_path, files, (1, 9))
    assert sorted(entry.name for entry in (tmp_path / "cache").iterdir()) == cached
    assert again.fingerprints().keys() == text.fingerprints().keys()
    assert text.describe(run).keys() == {"data", "data mixture", "tokens seen"}


def test_a_share_has_the_tokenizer_and_the_held_out_text_of_all(tmp_path, files):
    """Each source loses some of its pieces; only the fingerprints of the training data differ."""
    _, text = read(tmp_path, files, (0.7, 0.3))
    run, part = read(tmp_path, files, (0.7, 0.3), take=0.5)
    assert {key for key, value in part.fingerprints().items() if value != text.fingerprints()[key]} == {
        "data",
        *(f"data of {file}" for file in files),
    }
    for full, taken in zip(text.rows.components, part.rows.components, strict=True):
        before, after = decoded(text, full.rows.tokens), decoded(part, taken.rows.tokens)
        assert {*after.split()} <= {*before.split()} and 0.46 < len(after) / len(before) < 0.54
    assert ", a sample of 0.5 of the text: " in part.describe(run)["data"]
    with pytest.raises(BadInput, match=r"--data\.take 0\.0: choose a share"):
        read(tmp_path, files, take=0.0)


def test_without_weights_all_paths_are_one_component(tmp_path, files):
    run, text = read(tmp_path, files)
    (component,) = text.rows.components
    assert component.name == ", ".join(files)
    assert text.fingerprints().keys() == {"tokenizer", "data", "held_out", "held_out_text"}
    assert text.fingerprints()["data"] == component.rows.fingerprint
    assert text.describe(run).keys() == {"data", "tokens seen"}
    _, weighted = read(tmp_path, files[:1], (3,))
    assert weighted.fingerprints() == read(tmp_path, files[:1])[1].fingerprints()


def test_the_digest_of_the_held_out_text_does_not_depend_on_the_tokenizer(tmp_path, files):
    first = read(tmp_path, files)[1].fingerprints()
    run = tiny.run(data=CausalData(paths=files, length=32, batch=8), out=str(tmp_path / "runs"), tokenizer=Tokenizer(vocab=290))
    other = run_inputs.read_inputs(run, RunDir.of(run), tmp_path / "cache").fingerprints()
    assert len(first["held_out_text"]) == 64 and first["held_out_text"] == other["held_out_text"]
    assert first["held_out"] != other["held_out"]
    # Cached tokens have it too, and another text has another one.
    assert read(tmp_path, files)[1].fingerprints() == first
    assert read(tmp_path, files[:1])[1].fingerprints()["held_out_text"] != first["held_out_text"]


def test_named_held_out_text_is_held_out_once(tmp_path, files):
    other = tmp_path / "other.txt"
    other.write_text("not trained on. " * 40)
    _, text = read(tmp_path, files, (1, 1), valid_paths=(str(other),))
    assert decoded(text, text.held_out) == other.read_text()
    assert decoded(text, text.rows.components[0].rows.tokens) == Path(files[0]).read_text()


@pytest.mark.planted
def test_a_checkpoint_says_which_path_changed(tmp_path, files):
    run, text = read(tmp_path, files, (0.7, 0.3))
    saved = text.fingerprints()
    folder = RunDir.of(run)
    folder.tokenizer.mkdir(parents=True)
    text.tokenizer.save(folder.tokenizer)
    (folder.checkpoints / "00000005").mkdir(parents=True)
    (folder.checkpoints / "00000005/COMMIT.json").write_text("")
    with open(files[0], "r+") as stream:
        stream.write("THE")
    changed = manifest_differences(saved, read(tmp_path, files, (0.7, 0.3))[1].fingerprints())
    assert [line.partition(": ")[0] for line in changed] == ["data", f"data of {files[0]}"]
