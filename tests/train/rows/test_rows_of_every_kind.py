"""What holds for rows of every kind: equal plans, fingerprints, samples, and arrays that depend on (seed, number) alone."""

import dataclasses
import functools
import operator
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support import finetuned, tiny
from tests.support.encoder_text import stream, uncased
from tests.support.small import small
from tests.support.unigram_text import spelled, xlnet
from train.config.find_objective import find_options
from train.config.option_groups import Denoising, Disturbance, Permutation
from train.config.run_config import Run
from train.data.example_types import Pair
from train.inputs import instruction_inputs, labelled_inputs, seq2seq_inputs
from train.objectives import objective
from train.rows.batch_counts import TextCounts
from train.rows.batches import in_order
from train.rows.continued_rows import ContiguousRows, DirectedIds, Window
from train.rows.encoder_rows import PAIRED, EncoderRows
from train.rows.lm_rows import LmRow, packed_documents, stream_windows
from train.rows.mixture import Component, Mixture
from train.rows.row_source import RowSource, TextRows, are_rows_ordered
from train.rows.token_cache import Tokens
from train.run.costs import COUNTS
from train.tokenizers.tokenizer import Tokenizer
from zoo import configs

Made = tuple[Run, Tokenizer]
RANDOM = random.Random(0)
TEXTS = ["".join(" ".join(RANDOM.choices("abcdefgh", k=RANDOM.randint(3, 9))) + " ! " for _ in range(12)) for _ in range(6)]
COVERING = ("full_sentences", "doc_sentences", "windows", "packed")
NOISE: tuple[Disturbance, ...] = ("spans", "iid", "drop", "bert", "mass", "deshuffle", "prefix")


def run_of(goal: Any, model: Any, tokenizer: Tokenizer, length: int = 24, **changes: Any) -> Made:
    options = {name: changes.pop(name) for name in ("permutation", "denoising") if name in changes}
    model = dataclasses.replace(model, vocab=tokenizer.vocab_size)
    return tiny.run(
        model=model, objective=goal, data=find_options(goal).data(length=length, batch=4, **changes), **options
    ), tokenizer


def masked(rows: str, pack: bool) -> Made:
    task = "pretraining" if rows in PAIRED else "masked"
    return run_of("masked", small("bert", task=task).config, uncased(), rows=rows, pack=pack)


def permutation(memory: int = 8, **options: Any) -> Made:
    model = dataclasses.replace(configs.find_size("xlnet-nano")[1].config, memory=memory, reuse=8)
    return run_of("permutation", model, xlnet(), permutation=Permutation(predictions=4, **options))


def sequence_to_sequence(goal: str, **changes: Any) -> Made:
    return run_of(goal, configs.find_size("t5-nano")[1].config, spelled(), **changes)


def of_examples(goal: str) -> Made:
    run = finetuned.run(goal)
    return run, finetuned.tokenizer(finetuned.KINDS["bert"])


KINDS: dict[str, Callable[[], Made]] = {
    "causal": lambda: run_of("causal", tiny.run().model, uncased()),
    "causal packed": lambda: run_of("causal", tiny.run().model, uncased(), rows="packed"),
    **{f"masked {rows}": functools.partial(masked, rows, False) for rows in (*COVERING, *PAIRED)},
    **{f"masked {rows}, pack": functools.partial(masked, rows, True) for rows in ("doc_sentences", "segment_pairs")},
    "permutation": permutation,
    "permutation without memory": lambda: permutation(memory=0),
    "permutation bidirectional": lambda: permutation(bidirectional=True),
    **{
        f"denoising {kind}": functools.partial(sequence_to_sequence, "denoising", length=48, denoising=Denoising(kind=kind))
        for kind in NOISE
    },
    **{goal: functools.partial(of_examples, goal) for goal in finetuned.TASKS},
    "text_to_text": lambda: sequence_to_sequence("text_to_text", length=64),
    "text_to_text, pack": lambda: sequence_to_sequence("text_to_text", length=64, pack=True),
    "instruction": lambda: run_of("instruction", tiny.run().model, uncased()),
    "instruction, pack": lambda: run_of("instruction", tiny.run().model, uncased(), pack=True),
}
DRAWN = ("masked", "permutation", "denoising")
"""Objectives whose arrays are drawn."""
kinds = pytest.mark.parametrize("kind", KINDS)


def plan(run: Run, tokenizer: Tokenizer, backwards: bool = False) -> Any:
    """The rows of the texts, or of examples; `backwards` the last of them is the first."""
    goal, direction = objective(run.objective), -1 if backwards else 1
    if run.data.kind == "labelled":
        return labelled_inputs.rows_of_labels(finetuned.examples(run.objective)[::direction], run, tokenizer)
    if run.data.kind == "pairs":
        pairs = [Pair(origin="", source="a" * n, target="b" * (1 + n % 7)) for n in range(1, 20)]
        return seq2seq_inputs.rows_of_pairs(pairs[::direction], run, tokenizer)
    if run.data.kind == "dialogue":
        pairs = [Pair(origin="", source="a " * n, target=" b" * (1 + n % 4)) for n in range(1, 19)]
        return instruction_inputs.rows_of_instructions(pairs[::direction], run, tokenizer)
    tokens = stream(TEXTS[::direction], tokenizer)
    return goal.plan_rows(dataclasses.replace(tokens, fingerprint=f"{direction}"), run, tokenizer)


@functools.cache
def made(kind: str) -> Made:
    return KINDS[kind]()


@functools.cache
def planned(kind: str) -> Any:
    return plan(*made(kind))


def contents(rows: Any) -> list[str]:
    return [repr(rows.row(number)) for number in range(len(rows))]


def build(kind: str, numbers: Any, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Arrays of the rows with these numbers, those of a source among them."""
    run, tokenizer = made(kind)
    builder, rows = objective(run.objective).builder(run, tokenizer, lambda: np.ones(tokenizer.vocab_size)), planned(kind)
    built = [builder(np.random.default_rng([seed, number]), rows.row(number), rows.length) for number in numbers]
    sources = [vars(row.pop("source")) if "source" in row else {} for row in built]
    for row, source in zip(built, sources, strict=True):
        row.update({f"source {name}": array for name, array in source.items() if array is not None})
    return built


@kinds
def test_equal_plans_have_equal_rows_and_others_another_fingerprint(kind: str):
    run, tokenizer = made(kind)
    rows, again = planned(kind), plan(run, tokenizer)
    assert isinstance(rows, RowSource) and len(rows) > 3
    assert contents(rows) == contents(again) and rows.fingerprint == again.fingerprint
    longer = dataclasses.replace(run, data=dataclasses.replace(run.data, length=run.data.length + 1))
    others = [plan(longer, tokenizer), plan(run, tokenizer, backwards=True)]
    assert len({rows.fingerprint, *(other.fingerprint for other in others)}) == 3
    assert are_rows_ordered(rows) == (kind in ("permutation", "permutation bidirectional"))


def document_of_first_target(row: Any) -> int:
    """The document of the first id that a row counts, from the row itself."""
    if isinstance(row, LmRow):
        owners = [piece.document for piece in row.pieces for _ in piece.ids]
        return owners[row.context]
    return row.origin[0] if isinstance(row, Window) else row[0].parts[0].document


@kinds
def test_rows_of_text_begin_in_a_document(kind: str):
    rows = planned(kind)
    if not isinstance(rows, TextRows):
        return
    expected = [document_of_first_target(rows.row(number)) for number in range(len(rows))]
    assert rows.first_documents.tolist() == expected and len({*expected}) > 1
    sample = rows.subsample(3)
    assert isinstance(sample, TextRows)
    assert sample.first_documents.tolist() == [document_of_first_target(sample.row(number)) for number in range(len(sample))]


@pytest.mark.planted
def test_context_does_not_decide_the_document_of_a_row():
    run, tokenizer = made("causal")
    rows = stream_windows(stream(TEXTS, tokenizer), run.data.length, 5)
    expected = [document_of_first_target(rows.row(number)) for number in range(len(rows))]
    assert rows.first_documents.tolist() == expected != rows.document[rows.first[:-1]].tolist()


def test_fingerprints_are_equal_only_where_all_rows_are():
    rows: dict[str, set[Any]] = {}
    for each in map(planned, KINDS):
        rows.setdefault(each.fingerprint, set()).add((*contents(each), each.length, are_rows_ordered(each)))
    assert {len(same) for same in rows.values()} == {1}
    assert len(rows) == len(set().union(*rows.values())) > 15


def test_fingerprints_are_those_of_earlier_checkpoints():
    """Checkpoints contain them: rows that are the same must not get others."""
    ids, offsets = np.arange(14, dtype=np.uint16), np.array([0, 6, 14])
    tokens = Tokens(ids, offsets, np.array([5, 7]), 0, "text")
    arrays = map(np.array, ([0, 1, 3], [0, 2, 3, 4], [-1, -1, -1], [0, 1, 1, 1], [0, 0, 2, 5], [5, 2, 3, 2]))
    streams = ContiguousRows(tokens, (DirectedIds(ids, np.array([4, 9]), offsets, False),), 8, 2, 2, 3, True, 1)
    rows = [stream_windows(tokens, 4), packed_documents(tokens, 4), EncoderRows(tokens, 8, *arrays), streams]
    mixture = Mixture(tuple(Component("", weight, (), source) for weight, source in zip((1.0, 2.0), rows, strict=False)))
    assert [source.fingerprint[:8] for source in (*rows, mixture)] == RECORDED


RECORDED = ["421b7547", "24b324a7", "e164b4ef", "b7a5c066", "c5c01543"]


@kinds
@pytest.mark.parametrize("count", [4, *(pytest.param(count, marks=pytest.mark.full) for count in (1, 10**6))])
def test_a_sample_is_evenly_spaced_rows(kind: str, count: int):
    """Of labelled examples, all rows of evenly spaced examples; of streams, the first rows of each."""
    rows = planned(kind)
    sample, size = rows.subsample(count), len(getattr(rows, "examples", rows)) if kind in finetuned.TASKS else len(rows)
    spaced = np.unique(np.linspace(0, size - 1, min(count, size)).round().astype(int)).tolist()
    if kind.startswith("permutation"):
        spaced = list(range(min(size, max(4, count))))
    if kind in finetuned.TASKS:
        spaced = [number for number, row in enumerate(rows.rows) if row.example in spaced]
    assert contents(sample) == list(operator.itemgetter(*spaced, 0)(contents(rows)))[:-1]
    if not hasattr(rows, "examples"):
        assert (sample.fingerprint == rows.fingerprint) == (len(sample) == len(rows))
    else:
        assert sample.examples is rows.examples and sample.content_digest == rows.content_digest


@kinds
def test_arrays_are_a_function_of_seed_and_number_and_have_one_shape(kind: str):
    numbers = range(len(planned(kind)))
    rows, backwards, other = build(kind, numbers), build(kind, reversed(numbers))[::-1], build(kind, numbers, seed=1)
    assert len({tuple((name, np.shape(array), array.dtype) for name, array in row.items()) for row in rows}) == 1
    assert not any((row[name] != same[name]).any() for row, same in zip(rows, backwards, strict=True) for name in row)
    differ = [any((row[name] != drawn[name]).any() for name in row) for row, drawn in zip(rows, other, strict=True)]
    assert np.mean(differ) > 0.7 if kind.startswith(DRAWN) else not any(differ)


@kinds
def test_counts_of_a_batch_are_those_of_the_text_of_its_rows(kind: str):
    """Masked and removed tokens count as what they stand for, each once; padding and special tokens do not count as text."""
    (run, tokenizer), rows = made(kind), planned(kind)
    goal, numbers = objective(run.objective), np.arange(len(rows))
    batch = next(in_order(rows, goal.builder(run, tokenizer, lambda: np.ones(tokenizer.vocab_size)), len(rows), numbers))
    own = tokenizer.special_tokens or tokenizer.text_special_tokens
    special = {*own.special} - {own.unk}
    ids = [number for part in goal.text_ids(run, batch) for number in part.tolist() if number not in special]
    expected = [number for row in map(rows.row, range(len(rows))) for number in text_of(kind, row) if number not in special]
    if kind.startswith("permutation"):
        # The second text of a row is sampled by the builder; nothing is masked in this kind.
        expected = [number for number in batch.tokens.ravel().tolist() if number not in special]
    assert sorted(ids) == sorted(expected) and ids
    counts, twice = (TextCounts(tokenizer, {len(rows): owned}, dict.fromkeys(COUNTS, 5)) for owned in (numbers, numbers[:2]))
    counts.add(batch, goal.text_ids(run, batch))
    source = batch if batch.source is None else batch.source
    assert counts.total() == {
        "input_tokens": 5 + (source.tokens.size if source.segments is None else np.count_nonzero(source.segments)),
        "text_tokens": 5 + len(expected),
        "predictions": 5 + np.count_nonzero(batch.weights),
        "bytes": 5 + int(tokenizer.token_bytes()[expected].sum()),
    }
    assert len(twice.owned_part(batch).tokens) == 2


def text_of(kind: str, row: Any) -> list[int]:
    match kind.split()[0].rstrip(","):
        case "masked":
            parts = [part.ids for sequence in row for part in sequence.parts]
        case "denoising" | "causal":
            parts = [piece.ids for piece in row.pieces]
        case "text_to_text":
            parts = [side for pair in row for side in pair.sides]
        case "instruction":
            parts = [packed.text.ids for packed in row]
        case goal if goal in finetuned.TASKS:
            parts = [inputs.ids for inputs in row.inputs]
        case _:
            parts = []
    return [number for part in parts for number in part.tolist()]


@kinds
def test_targets_are_what_the_rows_learn_from(kind: str):
    rows, arrays = planned(kind), build(kind, range(len(planned(kind))))
    match kind.split()[0]:
        case "masked":
            counted = sum(len(part.ids) for number in range(len(rows)) for each in rows.row(number) for part in each.parts)
        case "denoising":
            counted = sum(len(piece.ids) for number in range(len(rows)) for piece in rows.row(number).pieces)
        case goal if goal in finetuned.TASKS:
            counted = sum((row["segments"] > 0).sum() for row in arrays)
            assert rows.text_size == counted
        case _:
            counted = sum(row["weights"].sum() for row in arrays)
    assert rows.targets == counted > 0
