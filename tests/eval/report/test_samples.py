"""Samples: where held-out text is cut, and what is written."""

import dataclasses
import functools
import json
import types
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import report, samples
from tests.support.small import random_params, small
from train import mesh as meshes
from train.config import Mesh
from train.prepare import Tokens
from train.tokenizer import Tokenizer

WORDS = "the ship was steering towards the north and all the men were on deck\n"
CHINESE = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏"


@functools.cache
def tokenizer(text: str = WORDS, vocab: int = 290) -> Tokenizer:
    """Of whole words, unless the vocabulary is smaller."""
    return Tokenizer.train([text] * 3, vocab)


def tokens(texts: list[str], using: Tokenizer) -> Tokens:
    documents = [np.append(using.encode(text), using.end_of_text) for text in texts]
    sizes = np.array([len(document) for document in documents], np.int64)
    return Tokens(
        ids=np.concatenate(documents).astype(np.uint16),
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        text_bytes=np.array([len(text.encode()) for text in texts], np.int64),
        end_of_text=using.end_of_text,
        fingerprint="",
    )


def shown(found: samples.Beginning, using: Tokenizer) -> tuple[str, str]:
    return using.decode(found.prompt).removeprefix("<|endoftext|>"), using.decode(found.truth)


def test_of_many_documents_evenly_spaced_ones_begin() -> None:
    texts, using = [f"{number} {WORDS * 20}" for number in range(10)], tokenizer(WORDS, 262)
    found = samples.beginnings(tokens(texts, using), using, 256)
    assert [shown(each, using)[0].split()[0] for each in found] == ["0", "3", "6", "9"]
    for each in found:
        prompt, truth = shown(each, using)
        assert each.prompt[0] == using.end_of_text
        assert samples.PROMPT // 2 < each.prompt.size <= samples.PROMPT and each.truth.size == samples.CONTINUATION
        assert truth[0].isspace()
        assert prompt + truth in "".join(texts)


def test_of_one_document_words_evenly_spaced_in_it_begin() -> None:
    text = "".join(f"{number} and " for number in range(3000))
    found = samples.beginnings(tokens([text], tokenizer()), tokenizer(), 256)
    begun = [shown(each, tokenizer())[0] for each in found]
    assert [each[:1] for each in begun] == ["0", " ", " ", " "]
    numbers = [int("".join(filter(str.isdigit, each.split(" and")[1]))) for each in begun]
    assert np.allclose(np.diff(numbers), 1000, rtol=0.1)
    assert [each.prompt[0] == tokenizer().end_of_text for each in found] == [True, False, False, False]


def test_a_prompt_of_a_script_without_spaces_ends_with_a_whole_character() -> None:
    using = tokenizer(CHINESE, 257)
    for length in range(20, 40):
        for each in samples.beginnings(tokens([CHINESE * 4] * 4, using), using, length):
            prompt, truth = shown(each, using)
            assert "\ufffd" not in prompt
            assert truth[0] in CHINESE


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=12), st.integers(1, 200))
def test_a_beginning_is_a_piece_of_one_document_and_fits_into_a_row(sizes: list[int], length: int) -> None:
    held_out = tokens([WORDS[:size] for size in sizes], tokenizer())
    found = samples.beginnings(held_out, tokenizer(), length)
    assert len(found) <= 4
    if length >= 3 and max(np.diff(held_out.offsets)) > 2 * np.median(np.diff(held_out.offsets)) > 4:
        assert found
    for prompt, truth in found:
        given_ids = prompt[prompt != held_out.end_of_text]
        assert len(given_ids) and len(truth)
        assert held_out.end_of_text not in truth
        assert len(prompt) + max(len(truth), samples._continuation(length)) <= length
        assert any(
            (piece == np.concatenate([given_ids, truth])).all()
            for piece in np.lib.stride_tricks.sliding_window_view(held_out.ids, len(given_ids) + len(truth))
        )


def test_samples_are_written_as_the_report_reads_them(tmp_path: Path) -> None:
    net, mesh = small("gpt"), meshes.make(Mesh())
    texts = [f"{number} {WORDS * 3}" for number in range(10)]
    held_out = tokens(texts, tokenizer())
    file, dtype = tmp_path / "samples.json", np.float32
    write = functools.partial(samples.write, file, net, random_params(net), mesh, tokenizer(), held_out, length=24, dtype=dtype)
    write(step=7)
    found = json.loads(file.read_text())
    assert report._json(file) == found
    assert (found["step"], found["temperature"], found["seed"]) == (7, 0.8, 0)
    assert len(found["samples"]) == 4
    for sample in found["samples"]:
        assert any(text.startswith(sample["prompt"] + sample["truth"]) for text in texts)
        assert sample["text"] and sample["text"] != sample["truth"]
    before = file.read_bytes()
    write(step=7)
    assert file.read_bytes() == before


def test_a_model_that_does_not_generate_writes_nothing(tmp_path: Path) -> None:
    net = dataclasses.replace(small("gpt"), module=types.ModuleType("encoder"))
    mesh = meshes.make(Mesh())
    held_out = types.SimpleNamespace(tokenizer=tokenizer(), held_out=tokens([WORDS * 3], tokenizer()))
    how = {"length": 24, "step": 1, "dtype": np.float32}
    samples.of_run(tmp_path / "samples.json", net, {}, mesh, held_out, **how)
    assert list(tmp_path.iterdir()) == []
    samples.of_run(tmp_path / "samples.json", small("gpt"), random_params(small("gpt")), mesh, held_out, **how)
    assert len(json.loads((tmp_path / "samples.json").read_text())["samples"]) == 4


def test_text_too_short_to_be_cut_gives_no_sample() -> None:
    assert samples.beginnings(tokens(["", "a", ""], tokenizer()), tokenizer(), 64) == []
    assert samples.beginnings(tokens([WORDS], tokenizer()), tokenizer(), 2) == []
