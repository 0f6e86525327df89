"""Generated text: the same cached, uncached, in any batch, on any mesh and in pieces; where it ends; what is refused."""

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.commands import generate
from eval.commands.model_options import ModelOptions
from eval.generation import generator
from eval.generation.generation_options import Decoding, Prompts
from eval.generation.generator import Generated, Generator, _Text
from tests.support.generation import (
    GREEDILY,
    LIMIT,
    PENALIZED,
    RANDOM,
    RANDOMLY,
    gpt,
    gpt_generator,
    gpt_tokenizer,
    ids,
    prompts,
    seq2seq,
)
from train.config import run_config
from train.engine import device_mesh
from train.tokenizers.tokenizer import Tokenizer
from train.weights.load import Loaded
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.generation import decode_loop
from zoo.generation.decoding_settings import Beams, Sampling


@functools.cache
def logits_of() -> Callable[[np.ndarray], np.ndarray]:
    """Return a function: float32 [B, 32, V] of up to 200 rows of tokens, by the forward pass."""
    net, params = gpt()
    program = jax.jit(lambda tokens: net.unembed(params, net.apply(params, Batch(tokens=tokens)).hidden))
    return lambda tokens: np.asarray(program(np.pad(tokens, ((0, 200 - len(tokens)), (0, 32 - tokens.shape[1])))))


@functools.cache
def uncached() -> list[tuple[int, ...]]:
    """Return greedy tokens by a whole forward pass for each, the prompts in front and nothing before them."""
    sizes, columns = np.array([len(prompt) for prompt in prompts()]), []
    tokens = np.zeros((len(sizes), 32), np.int32)
    for row, prompt in zip(tokens, prompts(), strict=True):
        row[: len(prompt)] = prompt
    rows = np.arange(len(sizes))
    for _ in range(LIMIT):
        last = logits_of()(tokens)[rows, sizes - 1, : gpt_tokenizer().vocab_size]
        tokens[rows, sizes] = last.argmax(-1)
        columns.append(tokens[rows, sizes])
        sizes = sizes + 1
    return [tuple(row.tolist()) for row in np.stack(columns, 1)]


@functools.cache
def sampled() -> list[Generated]:
    """Return two samples of each of 20 prompts."""
    return gpt_generator().generate(prompts()[:20], RANDOMLY)


def test_cached_tokens_are_the_uncached_ones_and_a_batch_is_its_prompts_alone() -> None:
    """Compare batches of 40 with one prompt at a time and with no cache; each batch size compiles two programs."""
    programs = decode_loop.start_decoding._cache_size() + decode_loop.sample_tokens._cache_size()
    batched = gpt_generator().generate(prompts(), GREEDILY)
    alone = gpt_generator(batch=1).generate(prompts(), GREEDILY)
    assert ids(batched) == uncached() == ids(alone)
    assert {text.ended for text in batched} == {"limit"}
    assert len(set(ids(batched))) > 150
    assert decode_loop.start_decoding._cache_size() + decode_loop.sample_tokens._cache_size() <= programs + 4


@pytest.mark.full
def test_a_sample_depends_on_its_prompt_seed_and_number_alone() -> None:
    some = prompts()[:20]
    assert [(text.prompt, text.sample) for text in sampled()] == [(n, s) for n in range(20) for s in range(2)]
    assert len(set(ids(sampled()))) == 40
    alone = [text for n in (0, 7, 19) for text in gpt_generator(batch=1).generate([some[n]], RANDOMLY, numbers=[n])]
    assert ids(alone) == [sampled()[2 * n + s].ids for n in (0, 7, 19) for s in range(2)]
    assert ids(gpt_generator().generate(some, dataclasses.replace(RANDOMLY, seed=4))) != ids(sampled())


@pytest.mark.full
def test_a_sample_is_the_same_on_a_mesh() -> None:
    assert ids(gpt_generator(data=2, fsdp=2, tensor=2).generate(prompts()[:20], RANDOMLY)) == ids(sampled())


@pytest.mark.full
def test_long_and_short_prompts_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generate from prompts of two padded lengths, which are two batches, the longer first."""
    monkeypatch.setattr(generator, "SHORTEST", 8)
    long = sum(len(prompt) > 8 for prompt in prompts()[:40])
    seen: list[tuple[int, int]] = []
    texts = gpt_generator().generate(prompts()[:40], GREEDILY, progress=lambda done, count: seen.append((done, count)))
    assert 0 < long < 40 and seen == [(long, 40), (40, 40)]
    assert [text.prompt for text in texts] == list(range(40))
    assert ids(texts) == uncached()[:40]


def test_repetition_penalty_counts_prompt_and_output_and_the_cache_is_donated() -> None:
    texts = [_Text(gpt_tokenizer(), RANDOMLY, 0, 0, prompt, 0) for prompt in prompts()[:40]]
    batch, numbers, many = generator._padded(texts, 16, 40), np.zeros((2, 40), np.uint32), gpt_generator()
    with jax.set_mesh(many.mesh):
        placed = device_mesh.shard_batch(batch, many.mesh, 40)
        decoder = many._decoder._replace(processors=PENALIZED)
        rows, (tokens, *_) = decode_loop.start_decoding(decoder, RANDOM, 32, many._params, placed, np.uint32(0), numbers)
        for seen, text, token in zip(np.asarray(rows.context.text), texts, tokens[0].tolist(), strict=True):
            assert seen[seen >= 0].tolist() == [*text.prompt_ids.tolist(), token]
        decode_loop.sample_tokens(decoder, RANDOM, 16, many._params, rows)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((rows.cache.k, rows.cache.v)))


class Words(Tokenizer):
    """A tokenizer each id of which is some bytes, decoded as a byte-level tokenizer does."""

    def __init__(self, *words: bytes) -> None:
        self.words, self.vocab_size, self.end_of_text, self.settings = words, len(words), len(words) - 1, {}

    def decode(self, ids: Any) -> str:
        return b"".join(self.words[number] for number in ids).decode(errors="replace")


def read(words: Sequence[bytes], stop: tuple[str, ...], *, chunk: int, limit: int) -> tuple[list[str], _Text]:
    """Return what is shown of a text after each dispatch, its tokens being these words; an empty word is end-of-text."""
    text = _Text(Words(*words, b"<end>"), Decoding(limit=limit, stop=stop), 0, 0, np.zeros(1, np.int32), 0)
    shown, numbers = [], [len(words) if not word else number for number, word in enumerate(words)]
    for first in range(0, len(words), chunk):
        if not text.ended:
            text.take(numbers[first : first + chunk], [True] * len(numbers[first : first + chunk]))
            shown.append(text.final())
    return shown, text


WHALE = "鯨".encode()
ENDS = {
    "a stop in one token": ([b"a", b"b.\n\nc", b"d"], ("\n\n",), 9, "ab.", "stop", 2),
    "a stop over tokens": ([b"a", b"b\n", b"\nc", b"d"], ("\n\n",), 9, "ab", "stop", 3),
    "the first of several": ([b"a", b"xyzb"], ("b", "y", "yz"), 9, "ax", "stop", 2),
    "a longer one begun, a shorter one met": ([b"x", b"y"], ("xyz", "y"), 9, "x", "stop", 2),
    "a stop before the limit": ([b"S", b"b", b"c"], ("S",), 2, "", "stop", 1),
    "a stop before the end": ([b"S", b"b", b""], ("S",), 9, "", "stop", 1),
    "a stop begun only": ([b"ab\n", b"c", b""], ("\n\n",), 9, "ab\nc", "end of text", 2),
    "a stop begun at the end": ([b"ab\n", b""], ("\n\n",), 9, "ab\n", "end of text", 1),
    "a character over tokens": ([b"a", WHALE[:1], WHALE[1:2], WHALE[2:], b""], (), 9, "a鯨", "end of text", 4),
    "a stop of such characters": ([b"a", WHALE[:1], WHALE[1:], b"b"], ("鯨",), 9, "a", "stop", 3),
    "a character without its end": ([b"a", WHALE[:2]], (), 2, "a\ufffd", "limit", 2),
    "bytes that are no character": ([b"a", b"\xff", b"\xff", b"b", b""], (), 9, "a\ufffd\ufffdb", "end of text", 4),
}


@pytest.mark.parametrize(("words", "stop", "limit", "text", "ended", "tokens"), ENDS.values(), ids=ENDS)
def test_a_text_ends_at_the_same_place_for_any_chunk(
    words: list[bytes], stop: tuple[str, ...], limit: int, text: str, ended: str, tokens: int
) -> None:
    """The end is the same whether tokens come singly or many at a time. What was shown never changes and begins no stop."""
    for chunk in (1, 2, 16):
        shown, result = read(words, stop, chunk=chunk, limit=limit)
        assert (result.generated().text, result.ended, len(result.ids)) == (text, ended, tokens)
        assert (result.generated().end is None) == (ended != "end of text")
        assert all(text.startswith(part) for part in shown)
        assert shown[-1] == text
        assert not any("\ufffd" in part for part in shown) or "\ufffd" in text


@pytest.mark.full
def test_streamed_parts_join_to_the_generated_text() -> None:
    """The pieces joined are the text generated at once; a stop string taken from its middle never shows."""
    many, once = gpt_generator(batch=1), dataclasses.replace(RANDOMLY, samples=1)
    text = many.generate(prompts()[4:5], once)[0].text
    pieces = list(many.stream(prompts()[4], once))
    assert "".join(pieces) == text
    assert len(pieces) > 3
    assert "".join(many.stream(prompts()[4], once, chunk=16)) == text
    stopped = dataclasses.replace(once, stop=(text[4:7],))
    cut = text[: text.index(text[4:7])]
    assert "".join(many.stream(prompts()[4], stopped)) == cut == many.generate(prompts()[4:5], stopped)[0].text


def test_the_end_of_text_token_ends_a_text() -> None:
    end = gpt_tokenizer().end_of_text
    texts = gpt_generator().generate(prompts()[:20], dataclasses.replace(RANDOMLY, past_end=False))
    assert [text.ended for text in texts] == ["end of text" if end in text.ids else "limit" for text in sampled()]
    assert ids(texts) == [text.ids[: text.ids.index(end)] if end in text.ids else text.ids for text in sampled()]
    assert {text.ended for text in texts} == {"end of text", "limit"}


@pytest.mark.planted
def test_a_model_with_a_nan_is_refused_in_one_line() -> None:
    """It must not write token 0 for ever. Logits that break after a row has ended do not count."""
    net, params = gpt()
    broken = {**params, "norm": {**params["norm"], "bias": params["norm"]["bias"].at[0].set(np.nan)}}
    sick = Generator(net, broken, gpt_generator().mesh, gpt_tokenizer(), dtype=jnp.float32, batch=1)
    with pytest.raises(BadInput, match=r"^prompt 1, token 1: the model's logits are not finite[^\n]*$"):
        sick.generate([[5]], GREEDILY)
    text = _Text(gpt_tokenizer(), Decoding(limit=1), 0, 0, np.zeros(1, np.int32), 0)
    text.take([5, 0], [True, False])
    assert text.ended == "limit"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """`command(decoding, prompt=...)` returns what `zoo generate` prints with the small model."""
    loaded = Loaded("small", *gpt(), gpt_tokenizer(), gpt_generator().mesh)
    monkeypatch.setattr(ModelOptions, "load", lambda _: loaded)
    monkeypatch.setattr(generate, "read_generation", lambda _: None)

    def run(decoding: Decoding = GREEDILY, as_json: bool = False, **asked: Any) -> str:
        model = ModelOptions(source=str(tmp_path), batch=1, precision="float32")
        assert generate.run_generate(model, Prompts(**asked), decoding, as_json=as_json) == 0
        return capsys.readouterr().out

    return run


def greedy_text(prompt: str, *stop: str) -> str:
    tokens = gpt_tokenizer().encode(prompt) if prompt else [gpt_tokenizer().end_of_text]
    return gpt_generator(batch=1).generate([tokens], dataclasses.replace(GREEDILY, stop=stop))[0].text


def test_the_command_prints_text_or_json(command: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = greedy_text("Call me")
    assert command(prompt=("Call me",)) == f"Call me{text}\n"
    rows = [json.loads(line) for line in command(as_json=True, prompt=("Call me", "Some")).splitlines()]
    assert [(row["prompt"], row["tokens"], row["ended"]) for row in rows] == [(p, LIMIT, "limit") for p in ("Call me", "Some")]
    assert rows[0]["text"] == text
    several = command(prompt=("Call me", "Some"))
    assert f"Call me{text}\n" in several and f"Some{greedy_text('Some')}\n" in several
    assert command(prompt=("",), begin=True) == f"{greedy_text('')}\n"
    # On a terminal, what a model writes is text and no command to it.
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "\\x1b[2J\tµ\n" in command(prompt=("\x1b[2J\tµ\n", "Some"))


def test_a_few_shot_answer_ends_where_the_template_continues(command: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text('{"q": "ago", "a": "fat"}\n')
    shot = dict(examples=str(tmp_path / "e.jsonl"), template=r"{q}: {a}\n", query=("q=me",))
    assert command(**shot) == greedy_text("ago: fat\nme:", "\n") + "\n"


def test_choices_are_sorted_by_likelihood(command: Callable[..., str]) -> None:
    """Their likelihood, sum and per token, is that of the tokens under the model."""
    asked = dict(prompt=("Call me",), choices=(" Ishmael", " long", "."))
    (row,) = [json.loads(line) for line in command(as_json=True, **asked).splitlines()]
    sums = [choice["log_likelihood"] for choice in row["choices"]]
    assert sums == sorted(sums, reverse=True)
    context = gpt_tokenizer().encode("Call me")
    for choice in row["choices"]:
        tokens = np.concatenate([context, gpt_tokenizer().encode(choice["text"])])
        logits = logits_of()(tokens[None].astype(np.int32))[0]
        nats = jax.nn.log_softmax(logits)[np.arange(len(context) - 1, len(tokens) - 1), tokens[len(context) :]].sum()
        assert choice["log_likelihood"] == pytest.approx(float(nats), abs=1e-4)
        assert choice["per_token"] == pytest.approx(choice["log_likelihood"] / choice["tokens"])
    table = command(**asked).splitlines()
    assert [line.split("  ")[0] for line in table[1:]] == [json.dumps(choice["text"]) for choice in row["choices"]]


WRONG: dict[str, Callable[[], Any]] = {
    "--seed 4294967296: ": lambda: Decoding(seed=1 << 32),
    "--stop '': ": lambda: Decoding(stop=("a", "")),
    "--prompt and others: give one of": lambda: Prompts(prompt=("a",), prompts_file="b"),
    "--prompt '': write some text, or add --begin": lambda: Prompts(prompt=("a", "")),
    r"--prompt 'a\udcff': write it in UTF-8": lambda: Prompts(prompt=("a\udcff",)),
    "--template '{q}': it needs --examples": lambda: Prompts(prompt=("a",), template="{q}"),
    "--template '': say how an example is written": lambda: Prompts(examples="e.jsonl", query=("q=a",)),
    "--mesh.tensor 8: it does not divide the 4 heads": lambda: Generator(
        *gpt(), device_mesh.make_mesh(run_config.Mesh(data=1, tensor=8)), gpt_tokenizer(), dtype=jnp.float32
    ),
    "t5 begins its output": lambda: Generator(
        *seq2seq("t5"), device_mesh.make_mesh(run_config.Mesh()), gpt_tokenizer(), dtype=jnp.float32
    ),
    "prompt 2 of 2 is empty": lambda: gpt_generator().generate([[1], []], Decoding(limit=4)),
    "prompt 2 of 2 has ids from 3 to 300": lambda: gpt_generator().generate([[1], [3, 300]], Decoding(limit=4)),
    "prompt 2 of 2 has ids from -1 to -1": lambda: gpt_generator().generate([[1], [-1]], Decoding(limit=4)),
    "prompt 1 of 1: its 1 tokens and --tokens 99 are more than the model's": lambda: Generator(
        *gpt(), gpt_generator().mesh, gpt_tokenizer(), dtype=jnp.float32, option="--tokens"
    ).generate([[1]], Decoding(limit=99)),
    "--beams 300: the vocabulary has": lambda: gpt_generator().generate([[1]], Decoding(limit=2, search=Beams(beams=300))),
    "--samples 5: a search gives at most as many as --beams 4": lambda: Decoding(samples=5, search=Beams(beams=4)).check_search(),
    "--top-k 3: beam search does not sample": lambda: Decoding(search=Beams(beams=4), sampling=Sampling(top_k=3)).check_search(),
    "--length-penalty 2.0: it needs beam search": lambda: Decoding(search=Beams(length_penalty=2.0)).check_search(),
    "--read both-ways: gpt generates from left to": lambda: gpt_generator().generate([[1]], Decoding(read="both-ways")),
    "--read both-ways: beam search reads from left": lambda: Decoding(read="both-ways", search=Beams(beams=2)).check_search(),
    "--read both-ways: --choices are scored from left": lambda: generate.run_generate(
        ModelOptions(source=""), Prompts(prompt=("a",), choices=("b",)), Decoding(read="both-ways"), as_json=False
    ),
}


def test_wrong_options_and_prompts_are_refused() -> None:
    for message, wrong in WRONG.items():
        with pytest.raises(BadInput, match=rf"\A{re.escape(message)}[^\n]*\Z"):
            wrong()
