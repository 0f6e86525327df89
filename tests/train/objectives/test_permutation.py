"""Rows of a permutation language model: the template, the targets, and that nothing shows what is predicted."""

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

from tests.support import tiny
from tests.support.encoder_text import stream
from tests.support.unigram_text import spelled
from train.config.data_options import TextData
from train.config.option_groups import Permutation, Replacement
from train.objectives.permutation import Permuted
from train.rows import continued_rows
from train.tokenizers.tokenizer import Tokenizer
from zoo import configs
from zoo.errors import BadInput

NANO = configs.find_size("xlnet-nano")[1].config
WORDS = "the old men see the white whale. it sleeps, and the ship goes on. "


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train([WORDS] * 9, 300, "xlnet")


def run(memory: int = 16, reuse: int = 16, options: dict[str, Any] | None = None, **data: Any) -> Any:
    model = dataclasses.replace(NANO, vocab=tokenizer().vocab_size, memory=memory, reuse=reuse)
    lengths, chosen = TextData(**({"length": 48, "batch": 4} | data)), Permutation(**(options or {}))
    return tiny.run(model=model, objective="permutation", data=lengths, permutation=chosen)


def text() -> Any:
    return stream([WORDS * 40, WORDS * 30], tokenizer())


def rows(asked: Any) -> list[tuple[Any, dict[str, Any]]]:
    planned, build = Permuted.plan_rows(text(), asked, tokenizer()), Permuted.builder(asked, tokenizer(), pytest.fail)
    return [(planned.row(n), build(np.random.default_rng(n), planned.row(n), planned.length)) for n in range(len(planned))]


def test_a_row_is_the_reused_part_and_two_texts_with_special_tokens():
    for window, row in rows(run()):
        tokens, types = row["tokens"], row["types"]
        np.testing.assert_array_equal(tokens[:16], window.reading.ids[window.begin : window.begin + 16])
        assert tokens[-2:].tolist() == [tokenizer().special_tokens.sep, tokenizer().special_tokens.cls]
        between = int(np.flatnonzero(types == 1)[0]) - 1
        assert tokens[between] == tokenizer().special_tokens.sep
        assert types.tolist() == [0] * (between + 1) + [1] * (46 - between) + [2]
        assert row.keys() == {"tokens", "types", "order", "query_at", "targets", "weights"}
        assert all(array.dtype == (np.float32 if name == "weights" else np.int32) for name, array in row.items())


@pytest.mark.parametrize(("length", "asked", "first"), [(49, 0, 3), (48, 17, 6), (48, 1, 1)])
def test_targets_are_exact_and_shared_by_length(length: int, asked: int, first: int):
    wanted = asked or length // 6
    for _, row in rows(run(length=length, options={"predictions": asked})):
        at = row["query_at"]
        assert len(at) == wanted == row["weights"].sum()
        assert (at < 16).sum() == first
        np.testing.assert_array_equal(row["targets"], row["tokens"][at])
        assert not {tokenizer().special_tokens.sep, tokenizer().special_tokens.cls} & set(row["targets"].tolist())


def test_the_reused_part_never_sees_the_rest_and_nothing_sees_targets_or_separators_before_it_may():
    for _, row in rows(run()):
        order, at = row["order"], row["query_at"]
        assert order[:16].max() < order[16:].min()
        assert (order[np.setdiff1d(np.arange(16), at)] == -1).all()
        assert len(np.unique(order[at])) == len(at)
        separators = np.flatnonzero(np.isin(row["tokens"], [tokenizer().special_tokens.sep, tokenizer().special_tokens.cls]))
        last = np.arange(16, 48)
        hidden = np.intersect1d(np.union1d(at, separators), last)
        assert order[np.setdiff1d(last, hidden)].max() < order[hidden].min()


def test_denoising_shows_no_target_and_asks_no_query_stream():
    asked = tiny.with_options(run(options={"kind": "denoising"}), masking=Replacement(masked=1.0, random=0.0))
    plain = rows(run())
    for (_, shown), (_, row) in zip(plain, rows(asked), strict=True):
        assert "query_at" not in row
        assert (row["tokens"][row["predict_at"]] == tokenizer().special_tokens.mask).all()
        assert set(row["order"][:16]) == {-1} and set(row["order"][16:]) == {16}
        np.testing.assert_array_equal(np.delete(row["tokens"], row["predict_at"]), np.delete(shown["tokens"], row["predict_at"]))


def test_a_next_sentence_head_gets_its_labels():
    asked = run()
    asked = dataclasses.replace(asked, model=dataclasses.replace(asked.model, task="pretraining"))
    said = []
    for number, (window, row) in enumerate(rows(asked)):
        *_, follows = continued_rows.sample_texts(np.random.default_rng(number), window, 29)
        assert row["summary_at"].tolist() == [47] and row["tokens"][47] == tokenizer().special_tokens.cls
        assert row["labels"].tolist() == [0 if follows else 1]
        said += row["labels"].tolist()
    assert 0.3 < np.mean(said) < 0.8


def test_rows_read_backward_are_flagged():
    said = [bool(row["backward"]) for _, row in rows(run(options={"bidirectional": True}))]
    assert said[:8] == [False, False, True, True] * 2


def test_rows_in_order_without_a_memory_are_those_with_one():
    """Otherwise they are shuffled; the arrays of each row are the same in all three."""
    runs = run(), run(memory=0, options={"ordered": True}), run(memory=0)
    remembered, in_order, shuffled = (Permuted.plan_rows(text(), each, tokenizer()) for each in runs)
    assert (remembered.ordered, in_order.ordered, shuffled.ordered) == (True, True, False)
    assert remembered.fingerprint == in_order.fingerprint != shuffled.fingerprint
    for (_, one), (_, other) in zip(rows(runs[0]), rows(runs[1]), strict=True):
        assert all((one[name] == other[name]).all() for name in one)
    sources = {"paths": ("a", "b"), "weights": (1.0, 2.0)}
    with pytest.raises(BadInput, match=r"rows in order continue each other, .*; choose --permutation\.no-ordered"):
        (wrong := run(memory=0, options={"ordered": True}, **sources)).options.check_run(wrong)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"options": {"predictions": 46}}, "permutation.predictions 46: a row of 48 has 16 reused tokens and 29 others"),
        ({"options": {"window": 7}}, "permutation.window 7: it does not divide the parts of a row, 16 reused tokens and 32"),
        ({"reuse": 60}, "model.reuse 60: a row of 48 needs 5 tokens for two texts and special tokens; choose at most 43"),
        ({"batch": 3, "options": {"bidirectional": True}}, "data.batch 3: half of the rows are read from right to left"),
        ({"paths": ("a", "b"), "weights": (1.0, 2.0)}, "data.weights 1.0 2.0: rows of a model with a memory continue each other"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], error: str):
    with pytest.raises(BadInput, match=error.replace("(", r"\(")):
        (wrong := run(**changes)).options.check_run(wrong)


def test_a_tokenizer_of_another_kind_is_refused():
    with pytest.raises(BadInput, match="its <cls> does not end a text; choose xlnet"):
        Permuted.plan_rows(text(), run(), spelled())
