"""XLNet writes text as every generator does: each word predicted by the query stream from all that is before it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval import beam
from eval.generate import Generator
from eval.settings import GREEDY, Beams, Decoding
from tests.eval.generation.test_generator import ids, quickly_compiled, tokenizer
from tests.support.small import following, jit, random_params
from tests.zoo.models.test_xlnet import tiny
from train import config
from train import mesh as meshes
from zoo import sharding
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.models import Model

__all__ = ["quickly_compiled"]

LIMIT = 6
PROMPTS = [np.arange(3, 3 + size, dtype=np.int32) for size in (1, 4, 9)]


@functools.cache
def model() -> tuple[Model, Any]:
    net = tiny(vocab=tokenizer().vocab_size + 3)
    return net, random_params(net)


def generator(*, data: int = 1, fsdp: int = 1, tensor: int = 1) -> Generator:
    net, params = model()
    mesh = meshes.make(config.Mesh(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])
    placed = jax.device_put(params, sharding.shardings(mesh, params, net.module.SHARDING))
    return Generator(net, placed, mesh, tokenizer(), dtype=jnp.float32, batch=4)


def logs(tokens: list[int]) -> np.ndarray:
    """float64 [V]: log-probabilities of what follows, in a forward pass over the whole text."""
    _, params = model()
    row = jnp.asarray([tokens + [0] * (16 - len(tokens))], jnp.int32)
    found = np.float64(_whole()(params, row)[0, len(tokens) - 1, : tokenizer().vocab_size])
    return found - np.log(np.exp(found - found.max()).sum()) - found.max()


@functools.cache
def _whole() -> Any:
    net, _ = model()
    return jit(lambda params, tokens: net.unembed(params, following(net, params, Batch(tokens=tokens))))


@pytest.mark.parametrize("shape", [{}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["alone", "mesh"])
def test_greedy_text_is_the_likeliest_word_after_word(shape: dict[str, int]) -> None:
    found = generator(**shape).generate(PROMPTS, Decoding(limit=LIMIT, past_end=True, sampling=GREEDY))
    for prompt, text in zip(PROMPTS, ids(found), strict=True):
        read = prompt.tolist()
        assert len(text) == LIMIT
        for token in text:
            likely = logs(read)
            assert likely[token] > likely.max() - 1e-4
            read.append(token)


def test_a_search_ranks_its_texts_by_their_probability() -> None:
    """Distances are of no row and not chosen along; what is found has the score that a forward pass gives it."""
    net, params = model()
    prompts = Batch(**dict.fromkeys(("tokens", "segments", "positions"), jnp.ones((3, 4), jnp.int32)))
    axes = beam.batch_axes(net, params, prompts, net.init_cache(3, 8, jnp.float32))
    assert axes == {"k": 1, "v": 1, "segments": 0, "positions": 0, "at": None, "r": None}
    search = Beams(beams=3, length_penalty=0.0)
    found = generator().generate(PROMPTS, Decoding(limit=LIMIT, samples=2, search=search))
    end = tokenizer().end_of_text
    for each in found:
        assert each.score is not None
        text = [*each.ids, end] if each.ended == "end of text" else list(each.ids)
        read, total = PROMPTS[each.prompt].tolist(), 0.0
        for token in text:
            total += logs(read)[token]
            read.append(token)
        assert each.score == pytest.approx(total, abs=1e-3)


def test_who_generates() -> None:
    """A model of words; a classifier of the same family says that it does not."""
    assert tiny().generates
    net = tiny(task="sequence", labels=("a", "b"))
    assert not net.generates
    with pytest.raises(BadInput, match=r"^model.task sequence: a xlnet with this head does not generate text$"):
        net.init_cache(1, 4, jnp.float32)
