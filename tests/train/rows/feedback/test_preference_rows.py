"""Rows of preferences: their counted targets are the completions with their end marks, whatever the family and the padding."""

from typing import Any

import jax
import numpy as np
import pytest

from tests.support import preferences
from tests.support.encoder_text import roberta, uncased
from tests.support.small import small
from tests.support.unigram_text import spelled, xlnet
from train.config.option_groups import Preferences
from train.data.example_types import Preference
from train.rows.feedback.preference_rows import Limits, builder, encode_rows, encode_sides
from train.tokenizers.chat_token_ids import CompletionText
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput

BYTES, T5 = Tokenizer.train([], 257), spelled(["the", "whale"])
PAIRS = [
    Preference(origin="a:1", prompt="the whale ", chosen="is big", rejected="a", margin=0.5),
    Preference(origin="a:2", prompt="", chosen="is", rejected="a whale"),
]


def rows(family: str, tokenizer: Tokenizer, length: int = 40, pairs: Any = PAIRS, target: int = 0, **options: Any) -> list[Any]:
    cfg = small(family).config
    made, _ = encode_rows(pairs, tokenizer, cfg, Preferences(**options), Limits(length, target))
    build = builder(cfg, tokenizer, target)
    return [build(np.random.default_rng(0), row, length) for row in made]


def counted(tokenizer: Tokenizer, row: Any) -> list[str]:
    return [tokenizer.decode(targets[weights > 0]) for targets, weights in zip(row["targets"], row["weights"], strict=True)]


def read_texts(tokenizer: Tokenizer, fields: Any) -> list[str]:
    return [tokenizer.decode(ids[segments > 0]) for ids, segments in zip(fields["tokens"], fields["segments"], strict=True)]


@pytest.mark.parametrize("family", ["gpt", "bert", "roberta", "xlnet", "t5"])
def test_a_long_completion_loses_its_end_and_keeps_the_special_tokens_after_it(family: str):
    tokenizer, cfg = preferences.tokenizer(family), preferences.net(family).config
    long, short = (CompletionText("the whale", text) for text in (" is old seen", " is old"))
    longer, shorter = encode_sides([long, short], tokenizer, cfg)
    (cut,) = encode_sides([long], tokenizer, cfg, longest=len(shorter.ids))
    np.testing.assert_array_equal(cut.ids, shorter.ids)
    assert len(shorter.ids) < len(longer.ids) and cut.first == shorter.first
    (same,) = encode_sides([long], tokenizer, cfg, longest=len(longer.ids))
    np.testing.assert_array_equal(same.ids, longer.ids)


@pytest.mark.parametrize("length", [18, 40])
def test_a_decoder_predicts_the_completion_and_its_end(length: int):
    first, second = rows("gpt", BYTES, length)
    end = "<|endoftext|>"
    # White space at the end of the prompt belongs to the completion.
    assert counted(BYTES, first) == [f" is big{end}", f" a{end}"]
    assert counted(BYTES, second) == [f"is{end}", f"a whale{end}"]
    assert read_texts(BYTES, first) == [f"the whale is big{end}", f"the whale a{end}"]
    assert read_texts(BYTES, second) == [f"{end}is{end}", f"{end}a whale{end}"]
    assert first["summary_at"].tolist() == [[16], [11]] and first["tokens"].shape == (2, length)
    assert first["extra"]["margin"] == np.float32(0.5) and first["extra"]["margin"].dtype == np.float32
    for row in (first, second):
        assert (row["targets"][:, :-1] == row["tokens"][:, 1:])[row["segments"][:, 1:] > 0].all()
        assert row["positions"][0, : row["summary_at"][0, 0] + 1].tolist() == [*range(row["summary_at"][0, 0] + 1)]


def test_an_encoder_decoder_reads_the_prompt_and_predicts_the_completion():
    first, second = rows("t5", T5, target=12)
    assert counted(T5, first) == ["is big</s>", "a</s>"] and counted(T5, second)[1] == "a whale</s>"
    source = vars(first["source"])
    assert read_texts(T5, source) == ["the whale</s>"] * 2 and source["tokens"].shape == (2, 40)
    assert read_texts(T5, vars(second["source"])) == ["</s>"] * 2
    ends = [(first["targets"][side] == T5.end_of_text).nonzero()[0].tolist() for side in (0, 1)]
    assert first["summary_at"].tolist() == ends and first["tokens"].shape == (2, 12)


@pytest.mark.parametrize(
    ("family", "tokenizer"),
    [("bert", uncased(["the", "whale"])), ("roberta", roberta()), ("distilbert", uncased()), ("xlnet", xlnet(["whale"]))],
)
def test_an_encoder_reads_the_template_of_two_texts(family: str, tokenizer: Tokenizer):
    special = tokenizer.special_tokens
    assert special is not None
    for row, pair in zip(rows(family, tokenizer), PAIRS, strict=True):
        assert row.keys() == {"tokens", "segments", "positions", "types", "summary_at", "extra"}
        for side, completion in enumerate((pair.chosen, pair.rejected)):
            prompt, answer = (tokenizer.encode(str(text)) for text in (pair.prompt, completion))
            ids, types = special.pair(prompt, answer) if pair.prompt else special.single(answer)
            assert row["tokens"][side, : len(ids)].tolist() == ids.tolist() and row["segments"][side].sum() == len(ids)
            assert row["tokens"][side, row["summary_at"][side, 0]] == special.cls
            assert family in ("roberta", "distilbert") or row["types"][side, : len(ids)].tolist() == types.tolist()


def test_only_the_beginning_of_a_prompt_is_cut_the_same_for_both():
    (row,) = rows("gpt", BYTES, 12, PAIRS[:1], truncate=True)
    assert read_texts(BYTES, row) == ["hale is big<|endoftext|>", "hale a<|endoftext|>"]
    (encoder,) = rows("distilbert", uncased(), 12, PAIRS[:1], truncate=True)
    assert encoder["segments"].sum(1).tolist() == [12, 8]


@pytest.mark.parametrize(
    ("family", "tokenizer", "limits", "options", "message"),
    [
        (
            "gpt",
            BYTES,
            (16, 0),
            {},
            "a:1: 17 tokens with the chosen completion and 12 with .* a row has 16; .*--data.length, cut",
        ),
        ("gpt", BYTES, (6, 0), {"truncate": True}, r"a:1: 17 tokens .* and 12 .*\(the longest of 2 that are"),
        ("t5", T5, (2, 40), {}, "a:1: a prompt of 3 tokens, and a source has 2; choose a longer --data.length"),
        (
            "t5",
            T5,
            (40, 3),
            {"truncate": True},
            "a:1: completions of 8 .chosen. and 3 .rejected. .* has 3; .*target-length",
        ),
        ("bert", BYTES, (40, 0), {}, "--tokenizer.path: this tokenizer has no special tokens"),
    ],
)
def test_a_pair_that_does_not_fit_is_refused(family: str, tokenizer: Any, limits: Any, options: Any, message: str):
    with pytest.raises(BadInput, match=message):
        rows(family, tokenizer, limits[0], target=limits[1], **options)


def test_long_pairs_are_left_out_on_request_and_a_prefix_decoder_is_refused():
    made, messages = encode_rows(PAIRS, BYTES, small("gpt").config, Preferences(skip_bad=True), Limits(10))
    assert [row.example for row in made] == [1] and len(messages) == 1 and messages[0].startswith("a:1: 17 tokens")
    with pytest.raises(BadInput, match=r"model\.architecture decoder: "):
        encode_rows(PAIRS, T5, small("t5", architecture="decoder").config, Preferences(), Limits(40))


def test_padding_changes_no_field():
    for family, tokenizer in (("gpt", BYTES), ("t5", T5), ("bert", uncased())):
        short, long = rows(family, tokenizer, 30)[0], rows(family, tokenizer, 80)[0]
        for a, b in zip(*map(jax.tree.leaves, (short, long)), strict=True):
            width = a.shape[-1] if a.ndim == 2 else 1
            assert (a == b[..., :width]).all() if a.ndim else a == b
