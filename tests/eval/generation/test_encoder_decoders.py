"""Text of encoder-decoders: cached as uncached, in any batch and on any mesh, searched, and as `transformers` writes it."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval import complete
from eval.generate import Generator
from eval.settings import GREEDY, Beams, Decoding, Prompts, Sampling
from tests.eval.generation.test_generator import ids, quickly_compiled, tokenizer
from tests.support.small import jit, random_params, small
from train import config
from train import mesh as meshes
from train.load import Loaded
from train.tokenizer import Tokenizer
from zoo import pretrained, sharding
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.models import Model

__all__ = ["quickly_compiled"]

FAMILIES = ("t5", "transformer")
LIMIT = 12
GREEDILY = Decoding(limit=LIMIT, past_end=True, sampling=GREEDY)
SEARCHED = Decoding(limit=LIMIT, samples=2, search=Beams(beams=3))
DRAWN = Decoding(limit=LIMIT, samples=2, seed=3, sampling=Sampling(temperature=2.0, top_k=50, repetition_penalty=1.2))


@functools.cache
def words() -> Tokenizer:
    text = ["Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse."]
    return Tokenizer.train(text * 8, 200, "sentencepiece")


@functools.cache
def model(family: str) -> tuple[Model, Any]:
    net = small(family, vocab=words().vocab_size)
    return net, random_params(net)


@functools.cache
def generator(family: str, batch: int = 40, data: int = 1, fsdp: int = 1, tensor: int = 1) -> Generator:
    net, params = model(family)
    mesh = meshes.make(config.Mesh(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])
    placed = jax.device_put(params, sharding.shardings(mesh, params, net.module.SHARDING))
    return Generator(net, placed, mesh, words(), dtype=jnp.float32, batch=batch)


@functools.cache
def sources() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, words().vocab_size, rng.integers(1, 13)).astype(np.int32) for _ in range(24)]


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_text_is_that_of_whole_forward_passes(family: str) -> None:
    """Of each source alone and unpadded."""
    net, params = model(family)
    program = jit(
        lambda source, target: net.unembed(params, net.apply(params, Batch(tokens=target, source=Batch(tokens=source))).hidden)
    )
    expected = []
    for source in sources()[:6]:
        target = np.zeros((1, LIMIT + 1), np.int32)
        for place in range(LIMIT):
            logits = np.asarray(program(source[None], target))[0, place, : words().vocab_size]
            target[0, place + 1] = logits.argmax()
        expected.append(tuple(target[0, 1:].tolist()))
    assert ids(generator(family).generate(sources(), GREEDILY))[:6] == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("family", ["t5", pytest.param("transformer", marks=pytest.mark.slow)])
@pytest.mark.parametrize("decoding", [GREEDILY, SEARCHED, DRAWN], ids=["greedy", "searched", "drawn"])
def test_a_text_is_its_sources_whatever_is_written_beside_it(family: str, decoding: Decoding) -> None:
    together = generator(family).generate(sources(), decoding)
    apart = generator(family, batch=4).generate(sources()[:5], decoding)
    assert ids(together)[: len(apart)] == ids(apart)
    spread = generator(family, data=2, fsdp=2, tensor=2).generate(sources(), decoding)
    assert ids(spread) == ids(together)


def test_a_text_is_shown_without_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    net, params = model("t5")
    loaded = Loaded("t5", net, params, words(), meshes.make(config.Mesh()))
    for decoding in (GREEDILY, SEARCHED):
        lines = list(complete._generate(loaded, ["Call me"], Prompts(prompt=("Call me",)), decoding, 8, jnp.float32, False))
        assert lines and not "".join(lines).startswith("Call me")


def test_a_tokenizer_without_marks_is_refused() -> None:
    net, params = model("t5")
    with pytest.raises(BadInput, match="begins what it writes with a mark"):
        Generator(net, params, meshes.make(config.Mesh()), tokenizer(), dtype=jnp.float32)


@pytest.mark.parity
@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("gated", [False, True])
def test_text_is_that_of_transformers(beams: int, gated: bool, tmp_path: Path) -> None:
    """50 random sources, padded: token for token, the scores of a search too."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    net = small(
        "t5", vocab=words().vocab_size, decoder_layers=2, gated=gated, tied=not gated, activation="gelu_tanh" if gated else "relu"
    )
    params = random_params(net)
    if not gated:
        # Where the output's table is the input's, a large one has every word say itself again.
        params["embed"]["tokens"]["embedding"] *= 0.2
    pretrained.save(tmp_path, net.config, params, extra={"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0})
    theirs: Any = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path)
    rng = np.random.default_rng(1)
    given = [[*rng.integers(3, net.config.vocab, rng.integers(1, 20)).tolist(), 1] for _ in range(50)]
    longest = max(map(len, given))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in given])
    with torch.no_grad():
        said = theirs.generate(
            tokens,
            attention_mask=(tokens != 0).long(),
            max_new_tokens=LIMIT,
            num_beams=beams,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
    decoding = Decoding(limit=LIMIT, sampling=GREEDY) if beams == 1 else Decoding(limit=LIMIT, search=Beams(beams=beams))
    ours = Generator(net, params, meshes.make(config.Mesh()), words(), dtype=jnp.float32).generate(given, decoding)

    def text(row: list[int]) -> tuple[int, ...]:
        return tuple(row[1 : row.index(1) if 1 in row else LIMIT + 1])

    assert ids(ours) == [text(row) for row in said.sequences.tolist()]
    assert len(set(ids(ours))) > 10
    if beams > 1:
        scores: list[Any] = [each.score for each in ours]
        np.testing.assert_allclose(scores, said.sequences_scores.numpy(), rtol=1e-4, atol=1e-5)
