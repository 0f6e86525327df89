"""Pairs of texts: reading, rows that keep the two sides apart, and packing that changes no loss."""

import dataclasses
import functools
import gzip
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import tiny
from tests.support.small import random_params, small
from tests.support.unigram_text import spelled
from train.config.data_options import PairData
from train.config.option_groups import Pairs, PairTables
from train.data.example_types import Pair
from train.inputs import run_inputs, seq2seq_inputs
from train.objectives.text_to_text import TextToText
from train.rows.batches import in_order
from train.rows.seq2seq_rows import SourceTarget
from train.run.run_dir import RunDir
from train.tokenizers.tokenizer import Tokenizer
from zoo import configs
from zoo.errors import BadInput
from zoo.models import Model

TOKENIZER = spelled(["translate", "the", "whale"])
MARKS = TOKENIZER.text_special_tokens
T5 = configs.find_size("t5-nano")[1].config
ENGLISH, GERMAN = ["a dog.", "the whale", "two men \u00fcber"], ["ein hund.", "der wal", "zwei"]


def run(model: Any = T5, **changes: Any) -> Any:
    return tiny.run(**{"model": model, "objective": "text_to_text", "data": PairData(length=32, batch=4), **changes})


def files(folder: Path, english: list[str] = ENGLISH, german: list[str] = GERMAN, end: str = "") -> Pairs:
    for name, lines in (("en", english), ("de", german)):
        raw = "".join(f"{line}\n" for line in lines).encode()
        (folder / f"train.{name}{end}").write_bytes(gzip.compress(raw) if end else raw)
    return Pairs(source=(f"{folder}/train.en{end}",), target=(f"{folder}/train.de{end}",))


def pairs_of(sources: list[str], targets: list[str]) -> list[Pair]:
    return [Pair(origin=f"a:{n}", source=a, target=b) for n, (a, b) in enumerate(zip(sources, targets, strict=True), 1)]


def read(asked: Any, folder: Path) -> Any:
    (folder / "tokenizer").mkdir(exist_ok=True)
    TOKENIZER.save(folder / "tokenizer")
    chosen = dataclasses.replace(asked.tokenizer, path=str(folder / "tokenizer"))
    asked = dataclasses.replace(asked, tokenizer=chosen)
    return run_inputs.read_inputs(run_inputs.resolve_config(asked), RunDir(folder / "run"), folder)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_parallel_files_are_read_line_by_line(tmp_path: Path, end: str):
    asked = dataclasses.replace(files(tmp_path, end=end), prefix="translate:")
    training, held_out = seq2seq_inputs.split_pairs(run(pairs=asked, data=PairData(length=32, batch=4, valid_fraction=0.3)), [])
    assert [(each.source, each.target) for each in training + held_out] == list(zip(ENGLISH, GERMAN, strict=True))
    assert len(held_out) == 1 and training[1].origin == f"{tmp_path}/train.en{end}:2"
    (tmp_path / "valid").write_bytes(Path(asked.source[0]).read_bytes() if not end else b"a\nb\nc\n")
    with_valid = dataclasses.replace(asked, valid_source=(str(tmp_path / "valid"),), valid_target=asked.target)
    assert [len(half) for half in seq2seq_inputs.split_pairs(run(pairs=with_valid), [])] == [3, 3]


def test_tables_are_read_by_column(tmp_path: Path):
    rows = [("source", "target"), *zip(ENGLISH, GERMAN, strict=True)]
    (tmp_path / "a.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in rows))
    data = PairData(paths=(str(tmp_path / "a.tsv"),), length=32, batch=4)
    training, held_out = seq2seq_inputs.split_pairs(run(data=data), [])
    assert [(each.source, each.target) for each in training + held_out] == rows[1:]
    training, _ = seq2seq_inputs.split_pairs(run(data=data, labelled=PairTables(text="target", label="source")), [])
    assert (training[0].source, training[0].target) == (GERMAN[0], ENGLISH[0])


def test_a_run_without_a_tokenizer_trains_one_on_both_sides(tmp_path: Path):
    english = [f"{line} the dog and the whale" for line in ENGLISH] * 20
    several = files(tmp_path, english, [f"{line} der hund" for line in GERMAN] * 20)
    tokenizer = dataclasses.replace(run().tokenizer, kind="sentencepiece", vocab=257)
    found = run_inputs.read_inputs(run(pairs=several, tokenizer=tokenizer), RunDir(tmp_path / "run"), tmp_path)
    assert found.tokenizer.kind == "sentencepiece"
    unknown = found.tokenizer.text_special_tokens.unk
    assert unknown not in found.tokenizer.encode("two dog der hund.")
    assert found.counts()[unknown] == 0
    assert found.counts().sum() == found.training.text_size
    facts = found.describe(run(pairs=several))
    assert f"{tmp_path}/train.en, {tmp_path}/train.de: 54 pairs, " in facts["data"] and facts["held out"] == "6 pairs"


def test_a_pair_is_a_source_and_a_target_with_their_ends(tmp_path: Path):
    asked = run(
        pairs=dataclasses.replace(files(tmp_path), prefix="translate"), data=PairData(length=32, target_length=24, batch=4)
    )
    rows = seq2seq_inputs.rows_of_pairs(pairs_of(ENGLISH[:2], GERMAN[:2]), asked, TOKENIZER)
    row = TextToText.builder(asked, TOKENIZER, dict)(np.random.default_rng(0), rows.row(1), rows.length)
    assert row["source"].tokens.shape == (32,) and row["tokens"].shape == row["targets"].shape == (24,)
    source, target = rows.row(1)[0].sides
    assert [TOKENIZER.decode(side) for side in (source, target)] == ["translate the whale</s>", "der wal</s>"]
    assert row["source"].tokens[: len(source)].tolist() == source.tolist() and not row["source"].tokens[len(source) :].any()
    assert row["weights"].tolist() == (row["segments"] > 0).tolist() == [True] * len(target) + [False] * (24 - len(target))


PACKED = PairData(length=24, target_length=16, batch=4, pack=True)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 22), st.integers(1, 14)), min_size=1, max_size=40))
def test_packing_overflows_neither_side_and_loses_nothing(sizes: list[tuple[int, int]]):
    examples = pairs_of(["a" * source for source, _ in sizes], ["b" * target for _, target in sizes])
    rows = seq2seq_inputs.rows_of_pairs(examples, run(data=PACKED), TOKENIZER)
    build, seen = TextToText.builder(run(data=PACKED), TOKENIZER, dict), []
    for number in range(len(rows)):
        placed = rows.row(number)
        seen += [each.example for each in placed]
        row = build(np.random.default_rng(0), placed, 24)
        for n, each in enumerate(placed, 1):
            assert row["source"].tokens[row["source"].segments == n].tolist() == each.sides.source.tolist()
            assert row["targets"][row["segments"] == n].tolist() == each.sides.target.tolist()
            assert row["tokens"][row["segments"] == n].tolist() == [MARKS.pad, *each.sides.target[:-1]]
            for side in (row, vars(row["source"])):
                assert side["positions"][side["segments"] == n].tolist() == [*range((side["segments"] == n).sum())]
        assert row["segments"].max() == row["source"].segments.max() == len(placed)
    assert sorted(seen) == [*range(len(sizes))]
    assert (
        rows.content_digest
        == seq2seq_inputs.rows_of_pairs(examples, run(data=dataclasses.replace(PACKED, pack=False)), TOKENIZER).content_digest
    )
    # First-fit: each pair is in the first row with room on both sides, the pairs before it being placed.
    room: list[list[int]] = []
    for example, each in enumerate(rows.sides):
        size = (len(each.source), len(each.target))
        at = next((n for n, left in enumerate(room) if left[0] >= size[0] and left[1] >= size[1]), len(room))
        room[at:] = room[at:] or [[24, 16]]
        room[at] = [room[at][0] - size[0], room[at][1] - size[1]]
        assert example in [placed.example for placed in rows.row(at)]
    assert len(room) == len(rows)


def test_a_row_stays_open_as_long_as_there_are_not_too_many(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seq2seq_inputs, "OPEN", 2)
    for sizes, rows in ((4, 5, 6, 5, 4), [0, 0, 1, 2, 1]), ((7, 8, 9, 3, 2), [0, 1, 2, 3, 3]):
        sides = [SourceTarget(np.zeros(size, np.int32), np.zeros(1, np.int32)) for size in sizes]
        assert seq2seq_inputs._packed(sides, (10, 10)).tolist() == rows


PACKINGS = ["none", *(pytest.param(f"{side} in one segment", marks=pytest.mark.planted) for side in ("sources", "targets"))]


@pytest.mark.parametrize("family", ["t5", pytest.param("transformer", marks=pytest.mark.full)])
@pytest.mark.parametrize("mutant", PACKINGS)
def test_a_packed_row_has_the_losses_of_its_pairs(family: str, mutant: str):
    depth = {"layers": 1} | ({"decoder_layers": 1} if family == "t5" else {})
    net = small(family, vocab=TOKENIZER.vocab_size, **depth)
    (alone, count), (packed, same) = (losses(net, data, mutant) for data in (APART, dataclasses.replace(APART, pack=True)))
    assert count == same > 10
    # A sum of 20 nats or so of float32, about 1e-7 each.
    assert (abs(alone - packed) < 1e-5 * alone) == (mutant == "none")


APART = PairData(length=64, batch=4)


def losses(net: Model, data: PairData, mutant: str) -> tuple[float, float]:
    """The summed loss of three pairs and their number of targets."""
    examples = pairs_of(["the whale", "abc def", "x"], ["ab", "the whale cd", "yz ab"])
    asked = run(net.config, data=data)
    rows, build = seq2seq_inputs.rows_of_pairs(examples, asked, TOKENIZER), TextToText.builder(asked, TOKENIZER, dict)
    batch = jax.tree.map(jnp.asarray, next(in_order(rows, build, len(rows), np.arange(len(rows)))))
    if data.pack and "sources" in mutant:
        source = dataclasses.replace(batch.source, segments=jnp.minimum(batch.source.segments, 1))
        batch = dataclasses.replace(batch, source=source)
    elif data.pack and "targets" in mutant:
        batch = dataclasses.replace(batch, segments=jnp.minimum(batch.segments, 1))
    return float(loss_of(net)(random_params(net), batch)), float(TextToText().weights(batch)["text_to_text"])


@functools.cache
def loss_of(net: Model) -> Any:
    """The compiled loss, which packings of one shape share."""
    loss = functools.partial(TextToText().loss, net, frozen={}, seeds=None, carry={}, smoothing=0.1, chunk=0)
    return jax.jit(lambda params, batch: loss(params, batch)[0]["text_to_text"])


def test_a_decoder_only_model_reads_the_source_first():
    alone = dataclasses.replace(T5, architecture="decoder")
    rows = seq2seq_inputs.rows_of_pairs(pairs_of(ENGLISH[:1], GERMAN[:1]), run(alone), TOKENIZER)
    row = TextToText.builder(run(alone), TOKENIZER, dict)(np.random.default_rng(0), rows.row(0), 32)
    source, target = rows.row(0)[0].sides
    assert "source" not in row and row["tokens"].shape == (64,)
    assert row["targets"][row["weights"] > 0].tolist() == target.tolist()
    assert row["targets"][: len(source)].tolist() == source.tolist()
    assert row["order"][: len(source) + 1].max() == 0


def refused(asked: Any, folder: Path) -> str:
    with pytest.raises(BadInput) as refusal:
        read(asked, folder)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "an empty source": ({"english": ["a", " ", "b"]}, {}, "{0}/train.en:2: the source is empty; write some text"),
    "an empty target": ({"german": ["a", "b", ""]}, {}, "{0}/train.de:3: the target is empty; write some text"),
    "nothing": ({"english": [], "german": []}, {}, "--pairs.source {0}/train.en: holds no pairs; write some"),
    "a long source": ({"english": ["a", "b" * 40, "c"]}, {}, "{0}/train.en:2: a source of 42 tokens, and a row has 32; choose"),
    "a long target": (
        {"german": ["a", "b" * 40, "c"]},
        {"data": PairData(length=64, target_length=16, batch=4)},
        "{0}/train.en:2: a target of 42 tokens, and a row has 16; choose a longer --data.target-length",
    ),
    "fewer targets": (
        {"english": ["a", "b", "c"], "german": ["a", "b"]},
        {},
        "--pairs.source {0}/train.en: it has 3 lines, and its target {0}/train.de has 2; a pair is the same line of both; add or",
    ),
    "a table too": (
        {},
        {"data": PairData(paths=("a.tsv",), length=32)},
        "--data.paths a.tsv: pairs are read from --pairs.source",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_pairs_that_make_no_rows_are_refused(tmp_path: Path, name: str):
    texts, changes, message = BAD[name]
    assert refused(run(pairs=files(tmp_path, **texts), **changes), tmp_path).startswith(message.format(tmp_path))


def test_a_text_without_ids_is_refused():
    tokenizer = Tokenizer.train(["a zero-width space is a space"] * 5, 257, "sentencepiece")
    with pytest.raises(BadInput, match=r"^a:2: the tokenizer returns no ids for the target; fix it or remove the pair$"):
        seq2seq_inputs.rows_of_pairs(pairs_of(["a", "b"], ["a", "\u200b"]), run(), tokenizer)


def test_long_pairs_are_cut_on_request(tmp_path: Path):
    asked = run(pairs=files(tmp_path, ["a" * 40, "b", "c"], ["d", "e" * 50, "f"]), labelled=PairTables(truncate=True))
    found = read(asked, tmp_path)
    source, target = found.training.sides[0].source, found.training.sides[1].target
    assert len(source) == len(target) == 32 and source[-1] == target[-1] == MARKS.end


def test_files_that_do_not_go_together_are_refused(tmp_path: Path):
    with pytest.raises(BadInput, match=r"^--pairs\.valid-source a: it needs --pairs\.source"):
        Pairs(valid_source=("a",), valid_target=("c",))
    sides = {
        r"^--pairs\.source a: a pair has two sides; name the files of the other one with --pairs\.target$": {"source": ("a",)},
        r"^--pairs\.target a: a pair has two sides; .* with --pairs\.source$": {"target": ("a",)},
        r"^--pairs\.valid-target a: .* with --pairs\.valid-source$": {"valid_target": ("a",)},
        r"^--pairs\.target c: 1 file for the 2 of --pairs\.source; name one for each": {"source": ("a", "b"), "target": ("c",)},
    }
    for message, names in sides.items():
        with pytest.raises(BadInput, match=message):
            Pairs(**names)
    pairs, decoder = files(tmp_path), dataclasses.replace(T5, architecture="decoder")
    both = dataclasses.replace(pairs, valid_source=pairs.source, valid_target=pairs.target)
    assert refused(run(pairs=both), tmp_path).startswith(f"--pairs.valid-source {tmp_path}/train.en: it is also in")
    assert refused(run(), tmp_path).startswith("--pairs.source: there is no embedded data for text_to_text; name parallel files")
    assert refused(run(decoder, pairs=pairs, data=PACKED), tmp_path).startswith(
        "--data.pack True: a decoder-only model has one pair per row"
    )


def test_a_tokenizer_of_another_kind_is_refused():
    with pytest.raises(BadInput, match=r"--tokenizer.kind gpt: .*; choose sentencepiece"):
        seq2seq_inputs.rows_of_pairs(pairs_of(["a"], ["b"]), run(), Tokenizer.train(["ab"], 300))
