"""`zoo serve`: loads a model and answers HTTP requests until Ctrl-C or SIGTERM."""

import contextlib
import signal
import sys
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from jaxtyping import Float32
from numpy import ndarray

from eval.commands import terminal_output
from eval.commands.embed import vector_settings
from eval.commands.generate import resolve_decoding, with_typed_stops
from eval.commands.model_options import ModelOptions
from eval.generation.conversation import ChatModel, check_streams
from eval.generation.folder_settings import make_generator
from eval.generation.generation_options import Decoding
from eval.inference.encoder_inputs import Vectors
from eval.inference.encoder_runner import Encoder, Text
from eval.inference.text_vectors import embed_texts
from eval.serving.http_server import ModelServer
from eval.serving.openai_requests import Defaults
from eval.serving.served_model import Embed, ServedModel
from train.weights.load import Loaded
from zoo.errors import BadInput


def run_serve(
    model: ModelOptions, decoding: Decoding, *, server: ModelServer, template: str = "", explicit: Collection[str] = ()
) -> int:
    """Answer the requests that a server gets; return the exit code after Ctrl-C or SIGTERM.

    Args:
        decoding: the settings of requests that name none.
        server: listens already, so that an address in use is refused before a model is loaded.
        template: a chat template, "builtin", or "" for the model's own.
        explicit: names of the settings that were given; the model's folder may set the others.

    Raises:
        BadInput: see `train.weights.load.load_model` and `make_generator`; a template that the model cannot use.
    """
    decoding = with_typed_stops(decoding)
    names = {*explicit, *(("stop",) if decoding.stop else ())}
    loaded = model.load()
    defaults = Defaults(decoding, frozenset(names), loaded.generation)
    if loaded.model.generates:
        check_streams(resolve_decoding(model, decoding, names))
        served = _text_model(loaded, model, defaults, template)
    else:
        served = ServedModel(loaded, defaults, embed=_embedder(loaded, model))
    terminal_output.write_output(f"{loaded.name}: {server.url} answers {', '.join(served.routes)}; Ctrl-C ends it\n")
    if served.no_chat:
        print(f"! {served.no_chat}", file=sys.stderr)
    if not server.is_loopback:
        print("! everyone who reaches this address can use the model: there is no password", file=sys.stderr)
    signal.signal(signal.SIGTERM, _end)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_model(served)
    return 0


def _end(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _text_model(loaded: Loaded, model: ModelOptions, defaults: Defaults, template: str) -> ServedModel:
    generator = make_generator(loaded, dtype=model.dtype(), batch=model.batch, option="max_tokens", shared=True)
    chat, no_chat = None, ""
    try:
        chat = ChatModel.of(loaded, generator, template)
    except BadInput as error:
        if template:
            raise
        no_chat = str(error)
    return ServedModel(loaded, defaults, generator=generator, chat=chat, no_chat=no_chat)


def _embedder(loaded: Loaded, model: ModelOptions) -> Embed:
    """Return the function that computes vectors as `zoo embed` does without options."""
    encoder = Encoder.of(loaded, batch=model.batch, dtype=model.dtype())
    modules, prompt = vector_settings(encoder, Vectors())

    def embed(texts: Sequence[str], dimensions: int) -> Float32[ndarray, "N D"]:
        named = [Text(f"input {number}", text) for number, text in enumerate(texts, 1)]
        return embed_texts(encoder, named, modules, prompt=prompt, dimensions=dimensions)

    return embed
