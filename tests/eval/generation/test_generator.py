"""Generated text: the same cached, uncached, in any batch, on any mesh and in pieces; where it ends; what is refused."""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval import complete, generate
from eval.generate import Generator, _Text
from eval.settings import GREEDY, Decoding, Prompts, Sampling
from tests.support.small import jit, random_params, small
from train import config
from train import mesh as meshes
from train.load import Loaded
from train.tokenizer import Tokenizer
from zoo import sharding
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.models import Model

# Together all positions; the last dispatch draws tokens beyond the limit, which have none.
LIMIT, LONGEST = 20, 12
# All filters on, and so hot that every token is drawn somewhere.
RANDOM = Sampling(temperature=20.0, top_k=280, top_p=0.995, min_p=0.001, repetition_penalty=1.2)
GREEDILY = Decoding(limit=LIMIT, past_end=True, sampling=GREEDY)
RANDOMLY = Decoding(limit=LIMIT, past_end=True, samples=2, seed=3, sampling=RANDOM)
RANDOMLY_ONCE = dataclasses.replace(RANDOMLY, samples=1)


@pytest.fixture(autouse=True)
def quickly_compiled() -> Iterator[None]:
    """Many programs that run once: their code need not be good. What they compute is as without this."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["Call me Ishmael. Some years ago, never mind how long: ≈ 3 µm of 鯨 fat. "] * 4, 290)


@functools.cache
def model() -> tuple[Model, Any]:
    net = small("gpt", pattern=("full", "window"), window=5)
    return net, random_params(net)


@functools.cache
def generator(batch: int = 40, data: int = 1, fsdp: int = 1, tensor: int = 1) -> Generator:
    net, params = model()
    mesh = meshes.make(config.Mesh(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])
    placed = jax.device_put(params, sharding.shardings(mesh, params, net.module.SHARDING))
    return Generator(net, placed, mesh, tokenizer(), dtype=jnp.float32, batch=batch)


@functools.cache
def prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, tokenizer().vocab_size, rng.integers(1, LONGEST + 1)).astype(np.int32) for _ in range(200)]


def ids(found: Sequence[Any]) -> list[tuple[int, ...]]:
    return [each.ids for each in found]


# --- one text, however it is made -----------------------------------------------------------------------------------------------


@functools.cache
def logits_of() -> Callable[[np.ndarray], np.ndarray]:
    """float32 [B, 32, V] of 200 rows of tokens, by the forward pass."""
    net, params = model()
    program = jit(lambda tokens: net.unembed(params, net.apply(params, Batch(tokens=tokens)).hidden))
    return lambda tokens: np.asarray(program(np.pad(tokens, ((0, 200 - len(tokens)), (0, 32 - tokens.shape[1])))))


@functools.cache
def uncached() -> list[tuple[int, ...]]:
    """Greedy tokens by a whole forward pass for each, the prompts in front and nothing before them."""
    sizes, made = np.array([len(prompt) for prompt in prompts()]), []
    tokens = np.zeros((len(sizes), 32), np.int32)
    for row, prompt in zip(tokens, prompts(), strict=True):
        row[: len(prompt)] = prompt
    rows = np.arange(len(sizes))
    for _ in range(LIMIT):
        last = logits_of()(tokens)[rows, sizes - 1, : tokenizer().vocab_size]
        tokens[rows, sizes] = last.argmax(-1)
        made.append(tokens[rows, sizes])
        sizes = sizes + 1
    return [tuple(row.tolist()) for row in np.stack(made, 1)]


def test_cached_tokens_are_the_uncached_ones_and_a_batch_is_its_prompts_alone() -> None:
    """200 prompts of 1 to 12 tokens: in batches of 40, one at a time, and without a cache; two programs for each batch size."""
    many, before = generator(), programs()
    batched, alone = many.generate(prompts(), GREEDILY), [many.generate([prompt], GREEDILY)[0] for prompt in prompts()]
    assert ids(batched) == uncached() == ids(alone)
    assert {each.ended for each in batched} == {"limit"}
    assert len(set(ids(batched))) > 150
    assert programs() == [before[0] + 2, before[1] + 2]


def programs() -> list[int]:
    return [generate._start._cache_size(), generate._go_on._cache_size()]


def test_a_sample_is_the_same_in_any_batch_and_on_any_mesh() -> None:
    some, many = prompts()[:20], generator()
    found = many.generate(some, RANDOMLY)
    assert [(each.prompt, each.sample) for each in found] == [(n, s) for n in range(20) for s in range(2)]
    assert len(set(ids(found))) == 40
    one = [each for n in (0, 7, 19) for each in many.generate([some[n]], RANDOMLY, numbers=[n])]
    assert ids(one) == [found[2 * n + s].ids for n in (0, 7, 19) for s in range(2)]
    assert ids(generator(data=2, fsdp=2, tensor=2).generate(some, RANDOMLY)) == ids(found)
    assert ids(many.generate(some, dataclasses.replace(RANDOMLY, seed=4))) != ids(found)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (2, 2, 2)], ids=str)
def test_every_prompt_is_the_same_on_any_mesh(mesh: tuple[int, int, int]) -> None:
    spread = generator(40, *mesh)
    assert ids(spread.generate(prompts(), GREEDILY)) == uncached()
    assert ids(spread.generate(prompts(), RANDOMLY)) == ids(generator().generate(prompts(), RANDOMLY))


def test_long_and_short_prompts_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two lengths, hence in two batches, the longer first."""
    monkeypatch.setattr(generate, "SHORTEST", 8)
    first, second = (next(n for n, prompt in enumerate(prompts()) if len(prompt) == size) for size in (3, 12))
    seen: list[tuple[int, int]] = []
    found = generator().generate(
        [prompts()[first], prompts()[second]], GREEDILY, progress=lambda done, count: seen.append((done, count))
    )
    assert seen == [(1, 2), (2, 2)]
    assert [each.prompt for each in found] == [0, 1]
    assert ids(found) == [uncached()[first], uncached()[second]]


def test_an_id_without_text_is_never_drawn() -> None:
    """The model has 300 entries, the tokenizer fewer; such an id would have no text."""
    entries = tokenizer().vocab_size
    assert entries < model()[0].config.vocab
    drawn = np.concatenate(ids(generator().generate(prompts()[:20], RANDOMLY)))
    assert drawn.max() < entries
    assert len(set(drawn.tolist())) > 200


def test_what_is_kept_between_two_dispatches() -> None:
    """Tokens seen are those of prompt and output, padding not among them; the cache is given up, not copied."""
    many = generator()
    given = [_Text(tokenizer(), RANDOMLY, 0, 0, prompt, 0) for prompt in prompts()[:40]]
    batch, numbers = generate._padded(given, 16, 40), np.zeros((2, 40), np.uint32)
    with jax.set_mesh(many.mesh):
        placed = meshes.place(batch, many.mesh, 40)
        rows, (tokens, _) = generate._start(many._model, RANDOM, 48, many._params, placed, np.uint32(0), numbers)
        for mark, text, token in zip(np.asarray(rows.seen), given, tokens[0].tolist(), strict=True):
            assert set(np.flatnonzero(mark).tolist()) == {*text.given.tolist(), token}
        generate._go_on(many._model, RANDOM, 16, many._params, rows)
    assert rows.cache["k"].is_deleted() and rows.cache["v"].is_deleted()


# --- where a text ends ----------------------------------------------------------------------------------------------------------


class Words(Tokenizer):
    """Each id is some bytes, decoded as a byte-level tokenizer does."""

    def __init__(self, *words: bytes) -> None:
        self.words, self.vocab_size, self.end_of_text = words, len(words), len(words) - 1

    def decode(self, ids: Any) -> str:
        return b"".join(self.words[number] for number in ids).decode(errors="replace")


def read(words: Sequence[bytes], stop: tuple[str, ...], *, chunk: int, limit: int = 99) -> tuple[list[str], _Text]:
    """What is shown of a text after each dispatch, its tokens being these words; an empty word is end-of-text."""
    text = _Text(Words(*words, b"<end>"), Decoding(limit=limit, stop=stop), 0, 0, np.zeros(1, np.int32), 0)
    shown, numbers = [], [len(words) if not word else number for number, word in enumerate(words)]
    for first in range(0, len(words), chunk):
        if not text.ended:
            text.take(numbers[first : first + chunk], [True] * len(numbers[first : first + chunk]))
            shown.append(text.final())
    return shown, text


FISH = "鯨".encode()
ENDS = {
    "limit": ([b"a", b"b", b"c"], (), 2, "ab", "limit", 2),
    "end of text": ([b"a", b"", b"c"], (), 9, "a", "end of text", 1),
    "a stop in one token": ([b"a", b"b.\n\nc", b"d"], ("\n\n",), 9, "ab.", "stop", 2),
    "a stop over tokens": ([b"a", b"b\n", b"\nc", b"d"], ("\n\n",), 9, "ab", "stop", 3),
    "the first of several": ([b"a", b"xyzb"], ("b", "y", "yz"), 9, "ax", "stop", 2),
    "a longer one begun, a shorter one met": ([b"x", b"y"], ("xyz", "y"), 9, "x", "stop", 2),
    "a stop before the end of text": ([b"a", b"S", b""], ("S",), 9, "a", "stop", 2),
    "a stop before the limit": ([b"S", b"b", b"c"], ("S",), 2, "", "stop", 1),
    "a stop begun only": ([b"ab\n", b"c", b""], ("\n\n",), 9, "ab\nc", "end of text", 2),
    "a stop begun at the end": ([b"ab\n", b""], ("\n\n",), 9, "ab\n", "end of text", 1),
    "a character over tokens": ([b"a", FISH[:1], FISH[1:2], FISH[2:], b""], (), 9, "a鯨", "end of text", 4),
    "a stop of such characters": ([b"a", FISH[:1], FISH[1:], b"b"], ("鯨",), 9, "a", "stop", 3),
    "a character without its end": ([b"a", FISH[:2]], (), 2, "a\ufffd", "limit", 2),
    "bytes that are no character": ([b"a", b"\xff", b"\xff", b"b", b""], (), 9, "a\ufffd\ufffdb", "end of text", 4),
}


@pytest.mark.parametrize(("words", "stop", "limit", "text", "ended", "tokens"), ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("chunk", [1, 2, 16])
def test_where_a_text_ends(
    words: list[bytes], stop: tuple[str, ...], limit: int, text: str, ended: str, tokens: int, chunk: int
) -> None:
    """The same whether the tokens come singly or many at a time. What was shown never changes, and is no beginning of a stop."""
    shown, found = read(words, stop, chunk=chunk, limit=limit)
    assert (found.generated().text, found.ended, len(found.ids)) == (text, ended, tokens)
    assert all(text.startswith(each) for each in shown)
    assert shown[-1] == text
    assert not any("\ufffd" in each for each in shown) or "\ufffd" in text


def test_a_stream_is_the_text_in_pieces() -> None:
    """Joined the same as at once; a stop string taken from its midst never shows."""
    many, decoding = generator(), RANDOMLY_ONCE
    whole = many.generate(prompts()[4:5], decoding)[0]
    pieces = list(many.stream(prompts()[4], decoding))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 3
    assert "".join(many.stream(prompts()[4], decoding, chunk=16)) == whole.text
    stopped = dataclasses.replace(decoding, stop=(whole.text[4:7],))
    cut = whole.text[: whole.text.index(whole.text[4:7])]
    assert "".join(many.stream(prompts()[4], stopped)) == cut == many.generate(prompts()[4:5], stopped)[0].text


def test_the_end_of_text_mark_ends_a_text() -> None:
    mark, many = tokenizer().end_of_text, generator()
    whole = many.generate(prompts()[:20], RANDOMLY)
    found = many.generate(prompts()[:20], dataclasses.replace(RANDOMLY, past_end=False))
    assert [each.ended for each in found] == ["end of text" if mark in each.ids else "limit" for each in whole]
    assert ids(found) == [each.ids[: each.ids.index(mark)] if mark in each.ids else each.ids for each in whole]
    assert {each.ended for each in found} == {"end of text", "limit"}


# --- what is refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "limit", "says"),
    [
        ([], 4, "prompt 2 of 2 is empty; begin it with the end-of-text mark"),
        ([3, 300], 4, "prompt 2 of 2 has ids from 3 to 300; the vocabulary ends at 289"),
        ([-1], 4, "prompt 2 of 2 has ids from -1 to -1"),
        ([1] * 29, 4, "prompt 2 of 2: its 29 tokens and --limit 4 are more than the model's 32 positions; shorten"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused(prompt: list[int], limit: int, says: str) -> None:
    with pytest.raises(BadInput) as refused:
        generator().generate([[1], prompt], Decoding(limit=limit))
    assert str(refused.value).startswith(says)


@pytest.mark.parametrize("changes", [{"limit": 0}, {"samples": 0}, {"seed": -1}, {"seed": 1 << 32}, {"stop": ("a", "")}])
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=rf"^--{next(iter(changes))} [^\n]*$"):
        Decoding(**changes)


@pytest.mark.planted
def test_a_broken_model_is_told_in_one_line() -> None:
    """Not token 0, for ever. A row that ended before its logits broke is none of it."""
    net, params = model()
    broken = {**params, "norm": {**params["norm"], "bias": params["norm"]["bias"].at[0].set(np.nan)}}
    sick = Generator(net, broken, generator().mesh, tokenizer(), dtype=jnp.float32, batch=1)
    with pytest.raises(BadInput, match=r"^prompt 1, token 1: the model's logits are not finite[^\n]*$"):
        sick.generate([[5]], GREEDILY)
    text = _Text(tokenizer(), Decoding(limit=1), 0, 0, np.zeros(1, np.int32), 0)
    text.take([5, 0], [True, False])
    assert text.ended == "limit"


def test_a_mesh_that_does_not_divide_the_heads_is_refused() -> None:
    with pytest.raises(BadInput, match=r"^--mesh.tensor 8: it does not divide the 4 heads$"):
        Generator(*model(), meshes.make(config.Mesh(data=1, tensor=8)), tokenizer(), dtype=jnp.float32)


# --- the command ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`command(decoding, prompt=...)` is what `zoo generate` prints with the small model."""
    loaded = Loaded("small", *model(), tokenizer(), generator().mesh)
    monkeypatch.setattr(complete.load, "load", lambda where, mesh, step: loaded)

    def run(decoding: Decoding = GREEDILY, as_json: bool = False, **asked: Any) -> str:
        options: dict[str, Any] = dict(step=None, batch=4, precision="float32", mesh=config.Mesh(), as_json=as_json)
        assert complete.main("small", Prompts(**asked), decoding, **options) == 0
        return capsys.readouterr().out

    return run


def test_what_the_command_prints(command: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = generator().generate([tokenizer().encode("Call me")], GREEDILY)[0].text
    assert command(prompt=("Call me",)) == f"Call me{text}\n"
    found = [json.loads(line) for line in command(as_json=True, prompt=("Call me", "Some")).splitlines()]
    assert [(each["prompt"], each["tokens"], each["ended"]) for each in found] == [
        (p, LIMIT, "limit") for p in ("Call me", "Some")
    ]
    assert found[0]["text"] == text
    several = command(prompt=("Call me", "Some"))
    assert several.startswith(f"--- prompt 1 of 2, sample 1 of 1, ended by limit\nCall me{text}\n--- prompt 2 of 2, ")
    begun = generator().generate([[tokenizer().end_of_text]], GREEDILY)[0].text
    assert command(prompt=("",), begin=True) == f"{begun}\n"
    # On a terminal, what a model writes is text and no command to it.
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert command(RANDOMLY_ONCE, prompt=("\x1b[2J\tµ\n",)).startswith("\\x1b[2J\tµ\n")


def test_a_few_shot_prompt_ends_where_its_template_goes_on(command: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text('{"q": "ago", "a": "fat"}\n')
    shot = dict(examples=str(tmp_path / "e.jsonl"), template=r"{q}: {a}\n", query=("q=me",))
    whole = generator().generate([tokenizer().encode("ago: fat\nme:")], dataclasses.replace(GREEDILY, stop=("\n",)))[0].text
    assert command(**shot) == f"{whole}\n"


def test_choices_come_with_the_likelier_first(command: Callable[..., str]) -> None:
    """Their likelihood, sum and per token, is that of the tokens under the model."""
    asked = dict(prompt=("Call me",), choices=(" Ishmael", " long", "."))
    (found,) = [json.loads(line) for line in command(as_json=True, **asked).splitlines()]
    sums = [each["log_likelihood"] for each in found["choices"]]
    assert sums == sorted(sums, reverse=True)
    context = tokenizer().encode("Call me")
    for each in found["choices"]:
        tokens = np.concatenate([context, tokenizer().encode(each["text"])])
        logits = logits_of()(tokens[None].astype(np.int32))[0]
        wanted = jax.nn.log_softmax(logits)[np.arange(len(context) - 1, len(tokens) - 1), tokens[len(context) :]].sum()
        assert each["log_likelihood"] == pytest.approx(float(wanted), abs=1e-4)
        assert each["per_token"] == pytest.approx(each["log_likelihood"] / each["tokens"])
    table = command(**asked).splitlines()
    assert [line.split("  ")[0] for line in table[1:]] == [json.dumps(each["text"]) for each in found["choices"]]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "--prompt is not given: give one of --prompt, --prompts-file and --examples"),
        ({"prompt": ("a",), "prompts_file": "b"}, "--prompt and others: give one of"),
        ({"prompt": ("a", "")}, "--prompt '': write some text, or add --begin"),
        ({"prompt": ("a\udcff",)}, r"--prompt 'a\udcff': write it in UTF-8"),
        ({"prompt": ("a",), "choices": ("b", "")}, "--choices '': write some text"),
        ({"prompt": ("a",), "template": "{q}"}, "--template '{q}': it needs --examples"),
        ({"prompt": ("a",), "query": ("q=a",)}, "--query q=a: it needs --examples"),
        ({"examples": "e.jsonl", "query": ("q=a",)}, "--template '': say how an example is written"),
        ({"examples": "e.jsonl", "template": "{q}"}, "--query '': give the template's fields"),
    ],
)
def test_prompts_that_mean_nothing_are_refused(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput) as refused:
        Prompts(**asked)
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)
