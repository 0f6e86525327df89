"""Samples of a run: where held-out text is cut, and what is written."""

import functools
import json
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from eval.report import samples
from tests.support.small import random_params, small
from train.config.run_config import Mesh
from train.engine import device_mesh
from train.rows.token_cache import Tokens
from train.run.result_files import read_result
from train.tokenizers.tokenizer import Tokenizer

WORDS = "the ship was steering towards the north and all the men were on deck\n"
CHINESE = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏"


@functools.cache
def tokenizer(text: str = WORDS, vocab: int = 290) -> Tokenizer:
    """Train one of whole words, or of pieces where the vocabulary is small."""
    return Tokenizer.train([text] * 3, vocab)


def tokens(texts: list[str], using: Tokenizer) -> Tokens:
    documents = [np.append(using.encode(text), using.end_of_text) for text in texts]
    offsets, text_bytes = np.cumsum([0, *map(len, documents)]), np.array([len(text.encode()) for text in texts])
    return Tokens(np.concatenate(documents).astype(np.uint16), offsets, text_bytes, using.end_of_text, "")


def shown(found: samples.Beginning, using: Tokenizer) -> tuple[str, str]:
    return using.decode(found.prompt).removeprefix("<|endoftext|>"), using.decode(found.truth)


def test_prompts_are_the_beginnings_of_evenly_spaced_documents() -> None:
    texts, using = [f"{number} {WORDS * 20}" for number in range(10)], tokenizer(WORDS, 262)
    found = samples.held_out_beginnings(tokens(texts, using), using, 256)
    assert [shown(each, using)[0].split()[0] for each in found] == ["0", "3", "6", "9"]
    for each in found:
        prompt, truth = shown(each, using)
        assert each.prompt[0] == using.end_of_text
        assert samples.PROMPT // 2 < each.prompt.size <= samples.PROMPT and each.truth.size == samples.CONTINUATION
        assert truth[0].isspace()
        assert prompt + truth in "".join(texts)


def test_prompts_of_one_document_begin_at_evenly_spaced_words() -> None:
    text = "".join(f"{number} and " for number in range(3000))
    found = samples.held_out_beginnings(tokens([text], tokenizer()), tokenizer(), 256)
    prompts = [shown(each, tokenizer())[0] for each in found]
    assert [each[:1] for each in prompts] == ["0", " ", " ", " "]
    numbers = [int("".join(filter(str.isdigit, each.split(" and")[1]))) for each in prompts]
    assert np.allclose(np.diff(numbers), 1000, rtol=0.1)
    assert [each.prompt[0] == tokenizer().end_of_text for each in found] == [True, False, False, False]


def test_prompt_of_a_script_without_spaces_ends_with_a_whole_character() -> None:
    using = tokenizer(CHINESE, 257)
    for length in range(20, 40):
        for each in samples.held_out_beginnings(tokens([CHINESE * 4] * 4, using), using, length):
            prompt, truth = shown(each, using)
            assert "\ufffd" not in prompt
            assert truth[0] in CHINESE


def test_prompt_and_truth_are_a_piece_of_one_document_and_fit_into_a_row() -> None:
    rng = np.random.default_rng(0)
    for length in range(1, 200, 2):
        sizes = rng.integers(0, 61, rng.integers(1, 13))
        held_out = tokens([WORDS[:size] for size in sizes], tokenizer())
        found = samples.held_out_beginnings(held_out, tokenizer(), length)
        assert len(found) <= 4
        tokens_of = np.diff(held_out.offsets)
        if length >= 3 and max(tokens_of) > 2 * np.median(tokens_of) > 4:
            assert found
        documents = [part.tolist() for part in np.split(held_out.ids, held_out.offsets[1:-1])]
        for prompt, truth in found:
            ids = [*prompt[prompt != held_out.end_of_text].tolist(), *truth.tolist()]
            assert 0 < len(truth) < len(ids) and held_out.end_of_text not in truth
            assert len(prompt) + max(len(truth), samples._continuation(length)) <= length
            assert any(ids == part[at : at + len(ids)] for part in documents for at in range(len(part)))
    assert samples.held_out_beginnings(tokens(["", "a", ""], tokenizer()), tokenizer(), 64) == []
    assert samples.held_out_beginnings(tokens([WORDS], tokenizer()), tokenizer(), 2) == []


def test_a_preview_continues_a_held_out_text_on_one_line_and_never_ends_the_training() -> None:
    net, mesh = small("gpt"), device_mesh.make_mesh(Mesh())
    data = types.SimpleNamespace(tokenizer=tokenizer(), held_out=tokens([WORDS * 3], tokenizer()))
    how, params = {"length": 24, "dtype": np.float32}, random_params(net)
    beginning, _, text = samples.preview_continuation(net, params, mesh, data, **how).partition(" | ")
    assert WORDS.startswith(beginning) and beginning and text and "\n" not in text
    assert samples.preview_continuation(small("bert"), {}, mesh, data, **how) == ""
    broken = jax.tree.map(lambda leaf: leaf * np.nan, params)
    assert samples.preview_continuation(net, broken, mesh, data, **how).startswith("no sample: ")


@pytest.mark.full
def test_samples_are_written_as_the_report_reads_them_and_only_by_models_that_generate(tmp_path: Path) -> None:
    net, mesh, texts = small("gpt"), device_mesh.make_mesh(Mesh()), [f"{number} {WORDS * 3}" for number in range(10)]
    data = types.SimpleNamespace(tokenizer=tokenizer(), held_out=tokens(texts, tokenizer()))
    file, how = tmp_path / "samples.json", {"length": 24, "step": 7, "dtype": np.float32}
    samples.write_run_samples(file, small("bert"), {}, mesh, data, **how)
    assert not file.exists()
    samples.write_run_samples(file, net, random_params(net), mesh, data, **how)
    found = read_result(file)
    assert found == json.loads(file.read_text())
    assert (found["step"], found["temperature"], found["seed"]) == (7, 0.8, 0)
    assert len(found["samples"]) == 4
    for sample in found["samples"]:
        assert any(text.startswith(sample["prompt"] + sample["truth"]) for text in texts)
        assert sample["text"] and sample["text"] != sample["truth"]
    before = file.read_bytes()
    samples.write_run_samples(file, net, random_params(net), mesh, data, **how)
    assert file.read_bytes() == before
