"""Small models with a chat template, loaded as commands load them, and the compilations of a piece of code."""

import contextlib
import functools
from collections.abc import Iterator

import jax

from tests.support.chat import chat_tokenizer
from tests.support.small import random_params, small
from train.config import run_config
from train.engine import device_mesh
from train.weights.load import Loaded
from zoo import sharding

CONTEXT = 128
_COMPILED: list[str] = []
_EVENT = "/jax/core/compile/backend_compile_duration"
jax.monitoring.register_event_duration_secs_listener(lambda event, seconds, **_: _COMPILED.append(event))


@functools.cache
def chat_loaded(name: str = "chatty") -> Loaded:
    """Return a random decoder whose tokenizer has the template of ChatML."""
    model = small("gpt", context=CONTEXT)
    mesh = device_mesh.make_mesh(run_config.Mesh(), jax.devices()[:1])
    params = random_params(model)
    params = jax.device_put(params, sharding.shardings(mesh, params, model.definition.sharding))
    return Loaded(name, model, params, chat_tokenizer(), mesh)


@contextlib.contextmanager
def compiled_programs() -> Iterator[list[str]]:
    """Yield a list that has an entry for each program that is compiled, or read from the cache of programs, in this context."""
    entries: list[str] = []
    before = len(_COMPILED)
    yield entries
    entries += [event for event in _COMPILED[before:] if event == _EVENT]
