"""Text of encoder-decoders: cached as uncached, in any batch and on any mesh, searched, and as `transformers` writes it."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.commands import generate
from eval.generation.generation_options import Decoding, Prompts
from eval.generation.generator import Generator
from tests.support.generation import PENALIZED, ids, make_generator, seq2seq, seq2seq_generator, seq2seq_loaded, seq2seq_tokenizer
from tests.support.small import random_params, small
from train.config import run_config
from train.engine import device_mesh
from zoo import published_weights
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.generation.decoding_settings import GREEDY, Beams, Sampling

LIMIT = 12
GREEDILY = Decoding(limit=LIMIT, past_end=True, sampling=GREEDY)
SEARCHED = Decoding(limit=LIMIT, samples=2, search=Beams(beams=3))
SAMPLED = Decoding(limit=LIMIT, samples=2, seed=3, sampling=Sampling(temperature=2.0, top_k=50), processors=PENALIZED)


@functools.cache
def sources() -> list[np.ndarray]:
    """24 sources of two lengths, each of which compiles a program."""
    rng = np.random.default_rng(0)
    return [rng.integers(3, seq2seq_tokenizer().vocab_size, (3, 12)[n % 2]).astype(np.int32) for n in range(24)]


@pytest.mark.full
@pytest.mark.parametrize("family", ["t5", pytest.param("transformer", marks=pytest.mark.full)])
def test_cached_text_is_that_of_whole_forward_passes(family: str) -> None:
    """Compare a padded batch with the forward pass of each source alone and unpadded."""
    net, params = seq2seq(family)
    program = jax.jit(
        lambda source, target: net.unembed(params, net.apply(params, Batch(tokens=target, source=Batch(tokens=source))).hidden)
    )
    expected = []
    for source in sources()[:6]:
        target = np.zeros((1, LIMIT + 1), np.int32)
        for place in range(LIMIT):
            logits = np.asarray(program(source[None], target))[0, place, : seq2seq_tokenizer().vocab_size]
            target[0, place + 1] = logits.argmax()
        expected.append(tuple(target[0, 1:].tolist()))
    assert ids(seq2seq_generator(family).generate(sources(), GREEDILY))[:6] == expected
    assert len(set(expected)) > 1


def test_learned_positions_limit_source_and_target_each() -> None:
    """A source of 20 tokens is padded to 32, more than there are positions."""
    net = small("transformer", vocab=seq2seq_tokenizer().vocab_size, positions="learned", max_positions=20)
    generator, source = make_generator((net, random_params(net)), seq2seq_tokenizer()), np.full(20, 7, np.int32)
    (text,) = generator.generate([source], Decoding(limit=20, past_end=True, sampling=GREEDY))
    assert len(text.ids) == 20
    for prompt, limit in ((np.append(source, 7), 1), (source, 21)):
        with pytest.raises(BadInput, match="are more than the model's 20 positions"):
            generator.generate([prompt], Decoding(limit=limit))


@pytest.mark.parametrize(
    "decoding",
    [
        pytest.param(SEARCHED, marks=pytest.mark.full, id="searched"),
        pytest.param(SAMPLED, marks=pytest.mark.slow, id="sampled"),
    ],
)
def test_a_text_depends_on_its_source_alone(decoding: Decoding) -> None:
    together = seq2seq_generator("t5").generate(sources(), decoding)
    apart = seq2seq_generator("t5", batch=4).generate(sources()[:5], decoding)
    assert ids(together)[: len(apart)] == ids(apart)
    spread = seq2seq_generator("t5", data=2, fsdp=2, tensor=2).generate(sources(), decoding)
    assert ids(spread) == ids(together)


@pytest.mark.full
def test_a_text_is_shown_without_its_source() -> None:
    lines = generate._generate(seq2seq_loaded("t5"), ["Call me"], Prompts(prompt=("Call me",)), GREEDILY, 8, jnp.float32, False)
    text = "".join(lines)
    assert text.strip() and not text.startswith("Call me")


@pytest.mark.parity
@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("gated", [False, True])
def test_text_is_that_of_transformers(beams: int, gated: bool, tmp_path: Path) -> None:
    """50 random sources, padded: token for token, the scores of a search too."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    activation = "gelu_tanh" if gated else "relu"
    net = small("t5", vocab=seq2seq_tokenizer().vocab_size, gated=gated, tied=not gated, activation=activation)
    params = random_params(net)
    if not gated:
        # Where the output's table is the input's, a large one has every word say itself again.
        params["embed"]["tokens"]["embedding"] *= 0.2
    published_weights.save_published(
        tmp_path, net.config, params, extra={"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    )
    theirs: Any = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path)
    rng = np.random.default_rng(1)
    given = [[*rng.integers(3, net.config.vocab, rng.integers(1, 20)).tolist(), 1] for _ in range(50)]
    longest = max(map(len, given))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in given])
    wanted: dict[str, Any] = dict(do_sample=False, return_dict_in_generate=True, output_scores=True)
    with torch.no_grad():
        mask = (tokens != 0).long()
        said = theirs.generate(tokens, attention_mask=mask, max_new_tokens=LIMIT, num_beams=beams, **wanted)
    decoding = Decoding(limit=LIMIT, sampling=GREEDY) if beams == 1 else Decoding(limit=LIMIT, search=Beams(beams=beams))
    ours = Generator(net, params, device_mesh.make_mesh(run_config.Mesh()), seq2seq_tokenizer(), dtype=jnp.float32).generate(
        given, decoding
    )
    assert ids(ours) == [tuple(row[1 : row.index(1) if 1 in row else LIMIT + 1]) for row in said.sequences.tolist()]
    assert len(set(ids(ours))) > 10
    if beams > 1:
        scores: list[Any] = [each.score for each in ours]
        np.testing.assert_allclose(scores, said.sequences_scores.numpy(), rtol=1e-4, atol=1e-5)
