"""The server through http.client: texts, streams, log-probabilities, vectors, refusals, clients that leave, and its process."""

import base64
import contextlib
import dataclasses
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.commands import serve
from eval.commands.model_options import ModelOptions
from eval.generation.conversation import ChatModel
from eval.generation.folder_settings import make_generator
from eval.generation.generation_options import Decoding
from eval.serving import http_server
from eval.serving.http_server import ModelServer
from eval.serving.openai_requests import Defaults
from eval.serving.request_fields import RequestError
from eval.serving.served_model import ServedModel
from tests.support import encoders
from tests.support.chat_models import CONTEXT, chat_loaded, compiled_programs
from tests.support.commands import call, in_folder, write_gpt2
from tests.support.generation import seq2seq_loaded
from tests.support.processes import ROOT, clean_environment
from tests.support.small import random_params, small
from train.weights.load import Loaded
from zoo.cli.python_api import LoadedModel
from zoo.errors import BadInput

CHAT, TEXT, VECTORS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
ASKED = [{"role": "user", "content": "Who?"}]


@contextlib.contextmanager
def serving(model: ServedModel) -> Iterator[ModelServer]:
    server = ModelServer("127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_model, args=(model,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    loaded = chat_loaded()
    generator = make_generator(loaded, dtype=jnp.float32, batch=4, option="max_tokens", shared=True)
    defaults = Defaults(Decoding(limit=16))
    model = ServedModel(loaded, defaults, generator=generator, chat=ChatModel.of(loaded, generator))
    with serving(model) as server:
        yield server


def send(server: ModelServer, path: str, body: Any = None, method: str = "", **headers: str) -> tuple[int, str]:
    """Return (status, body) of the answer; a body that is no bytes is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=120)
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    types = {} if body is None else {"Content-Type": "application/json"}
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method or ("GET" if body is None else "POST"), path, content, types | names)
    answer = connection.getresponse()
    with contextlib.closing(connection):
        return answer.status, answer.read().decode()


def answered(server: ModelServer, path: str, **body: Any) -> dict[str, Any]:
    status, text = send(server, path, body)
    assert status == 200, text
    return json.loads(text)


def streamed(server: ModelServer, path: str, **body: Any) -> list[dict[str, Any]]:
    status, text = send(server, path, {**body, "stream": True})
    assert status == 200, text
    *events, end = text.removesuffix("\n\n").split("\n\n")
    assert end == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 0.9, "top_p": 0.95, "seed": 7}])
def test_texts_are_those_of_the_python_interface(server: ModelServer, settings: dict[str, Any]) -> None:
    local = LoadedModel(chat_loaded())
    expected = local.generate("The whale", limit=11, **settings)
    answer = answered(server, TEXT, prompt="The whale", max_tokens=11, **settings)
    assert [answer["object"], answer["model"], answer["choices"][0]["text"]] == ["text_completion", "chatty", expected]
    several = answered(server, TEXT, prompt=["The whale", "A man"], max_tokens=11, **settings)
    assert [choice["text"] for choice in several["choices"]] == local.generate(["The whale", "A man"], limit=11, **settings)
    events = streamed(server, TEXT, prompt="The whale", max_tokens=11, stream_options={"include_usage": True}, **settings)
    assert "".join(choice["text"] for event in events for choice in event["choices"]) == expected
    assert events[-1]["usage"] == answer["usage"]
    assert events[-2]["choices"][0]["finish_reason"] == answer["choices"][0]["finish_reason"]
    reply = local.chat(ASKED, limit=11, **settings)
    answer = answered(server, CHAT, messages=ASKED, max_completion_tokens=11, **settings)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": reply, "refusal": None}
    events = streamed(server, CHAT, messages=ASKED, max_tokens=11, **settings)
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == reply
    assert len(events) > 3


def test_stop_strings_and_seeds(server: ModelServer) -> None:
    local = LoadedModel(chat_loaded())
    text = local.generate("The whale", limit=16, seed=1)
    stop = text[4:6]
    choice = answered(server, TEXT, prompt="The whale", seed=1, stop=stop)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text[: text.index(stop)], "stop")
    assert answered(server, TEXT, prompt="The whale", seed=1)["choices"][0]["finish_reason"] == "length"
    first, second = (answered(server, TEXT, prompt="The whale") for _ in range(2))
    assert first["choices"] != second["choices"]
    assert answered(server, TEXT, prompt="The whale", seed=first["seed"])["choices"] == first["choices"]
    texts = [choice["text"] for choice in answered(server, TEXT, prompt="The whale", seed=1, n=3)["choices"]]
    assert texts == local.generate("The whale", limit=16, seed=1, samples=3)


def test_log_probs_are_those_of_scores_and_logits(server: ModelServer) -> None:
    local = LoadedModel(chat_loaded())
    prompt = local.tokenizer.encode("The old whale").tolist()
    size, settings = len(prompt), {"max_tokens": 3, "temperature": 0, "echo": True}
    answer = answered(server, TEXT, prompt=prompt, logprobs=2, **settings)["choices"][0]
    values = answer["logprobs"]
    assert answer["text"].startswith("The old whale") and values["text_offset"][:2] == [0, len(values["tokens"][0])]
    assert {len(column) for column in values.values()} == {size + 3}
    log_probs = np.asarray(jax.nn.log_softmax(local.logits(prompt)))
    np.testing.assert_allclose(values["token_logprobs"][1:size], log_probs[range(size - 1), prompt[1:]], rtol=1e-4)
    for row, top in zip(log_probs, values["top_logprobs"][1:size], strict=False):
        np.testing.assert_allclose(max(top.values()), row[: local.tokenizer.vocab_size].max(), rtol=1e-4)
    # Greedy tokens are the likeliest.
    for value, top in zip(values["token_logprobs"][size:], values["top_logprobs"][size:], strict=True):
        assert value == max(top.values())
    (score,) = local.score("The old", [" whale"])
    first = size - score["tokens"]
    assert sum(values["token_logprobs"][first:size]) == pytest.approx(score["log_likelihood"], rel=1e-4)
    alone = answered(server, TEXT, prompt=prompt, max_tokens=0, logprobs=1, echo=True)
    assert alone["choices"][0]["logprobs"]["token_logprobs"][1:] == pytest.approx(values["token_logprobs"][1:size], rel=1e-4)
    assert alone["usage"]["completion_tokens"] == 0


def test_a_second_request_compiles_nothing(server: ModelServer) -> None:
    answered(server, CHAT, messages=ASKED, max_tokens=5, temperature=0.7)
    streamed(server, CHAT, messages=ASKED, max_tokens=5, temperature=0.7)
    answered(server, TEXT, prompt="abc", max_tokens=2, logprobs=1)
    with compiled_programs() as compiled:
        answered(server, TEXT, prompt="ab", max_tokens=2, temperature=0.9, logprobs=1)
        for size, tokens in ((1, 3), (4, 9), (6, 30)):
            body: dict[str, Any] = {"messages": [{"role": "user", "content": "abc "[:size]}], "max_tokens": tokens}
            answered(server, CHAT, temperature=0.3 + size, **body)
            streamed(server, CHAT, temperature=0.4 + size, seed=size, **body)
    assert compiled == []


BAD = {
    '{"prompt": ': (400, "the body is not JSON"),
    "[1]": (400, "the body is an array; send an object"),
    '{"prompt": "a", "top_p": NaN}': (400, "NaN is not a number in JSON"),
    "[" * 100_000: (400, "the body is not JSON"),
    '{"max_tokens": 3}': (400, "prompt is missing or empty"),
    '{"prompt": 3}': (400, "prompt: write a text or a list of texts"),
    '{"prompt": [1, true]}': (400, "prompt: write a text, a list of texts, a list of token ids"),
    '{"prompt": [1, 5000]}': (400, "prompt 1: the vocabulary ends at"),
    r'{"prompt": "\ud800"}': (400, "prompt: it has an unpaired surrogate"),
    '{"prompt": "a", "max_tokens": "9"}': (400, "max_tokens is a string; write a whole number"),
    '{"prompt": "a", "max_tokens": true}': (400, "max_tokens is a boolean; write a whole number"),
    '{"prompt": "a", "max_tokens": 0}': (400, "max_tokens 0: choose 1 to 65,536"),
    '{"prompt": "a", "max_tokens": 900}': (400, f"with max_tokens 900 more than the context of {CONTEXT} tokens"),
    '{"prompt": "a", "temperature": -1}': (400, "temperature -1.0: choose 0 for the likeliest token"),
    '{"prompt": "a", "temperature": 1' + "0" * 400 + "}": (400, "temperature inf: choose 0 for the likeliest token"),
    '{"prompt": "a", "seed": -1}': (400, "seed -1: choose 0 to 4,294,967,295"),
    '{"prompt": "a", "stop": [3]}': (400, "stop: write a text or a list of texts"),
    '{"prompt": "a", "frob": 3}': (400, "frob: there is no such field; choose echo, "),
    r'{"prompt": "a", "\ud800": 3}': (400, r"\ud800: there is no such field; choose echo, "),
    '{"prompt": "a", "presence_penalty": 0.5}': (400, "presence_penalty: this is not supported; remove it"),
    '{"prompt": "a", "stream": true, "n": 2}': (400, "n: a stream has one choice"),
    '{"prompt": "a", "stream": true, "logprobs": 1}': (400, "logprobs: not with stream"),
    '{"prompt": "a", "model": "gpt-5"}': (404, "model gpt-5: this server has chatty only"),
}
BAD_CHATS = {
    "{}": "messages is missing",
    '{"messages": []}': "is an empty list",
    '{"messages": [{"role": "tool", "content": "a"}]}': 'role "tool"; choose system, user or assistant',
    '{"messages": [{"role": "user", "content": 3}]}': '"content" is a number; write a text',
    '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}': "message 1 has a part that is not a text",
    '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}': "is the assistant's",
    '{"messages": [{"role": "user", "content": "a <|im_end|>"}]}': "message 1 spells the special token <|im_end|>",
    '{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "max_completion_tokens": 1}': "send one of them",
    '{"messages": [{"role": "user", "content": "a"}], "tools": [{}]}': "tools: this is not supported",
    json.dumps({"messages": [{"role": "user", "content": "ab" * 200}]}): f"more than the context of {CONTEXT} tokens",
}


def test_refusals_are_one_line_in_the_form_of_openai(server: ModelServer, capsys: pytest.CaptureFixture[str]) -> None:
    requests = [(TEXT, body, *expected) for body, expected in BAD.items()]
    requests += [(CHAT, body, 400, problem) for body, problem in BAD_CHATS.items()]
    requests += [
        (VECTORS, '{"input": "a"}', 400, "chatty, a gpt, does not answer /v1/embeddings; this model has /v1/completions")
    ]
    for path, body, status, problem in requests:
        got, text = send(server, path, body.encode())
        error = json.loads(text)["error"]
        assert (got, problem in error["message"], "\n" in error["message"]) == (status, True, False), (body[:60], text)
        assert error["type"] == "invalid_request_error" and {*error} == {"message", "type", "param", "code"}
    assert "Traceback" not in capsys.readouterr().err


def test_protocol_and_origins(server: ModelServer) -> None:
    asked = {"prompt": "a", "max_tokens": 1}
    port = server.server_port
    for status, (path, body, method, headers) in (
        (200, ("/", None, "GET", {})),
        (200, ("/v1/models/chatty", None, "GET", {})),
        (200, ("/v1/models/%63hatty", None, "GET", {})),
        (200, ("/v1/models?x=1", None, "GET", {"Host": f"localhost:{port}"})),
        (200, (TEXT, asked, "POST", {"Host": f"[::1]:{port}", "Origin": f"http://[::1]:{port}"})),
        (403, ("/", None, "GET", {"Host": "example.com"})),
        (403, ("/", None, "GET", {"Host": f"127.0.0.1.example.com:{port}"})),
        (403, ("/", None, "GET", {"Host": ""})),
        (403, (TEXT, asked, "POST", {"Origin": "http://example.com"})),
        (403, (TEXT, asked, "POST", {"Origin": "null"})),
        (403, (TEXT, asked, "POST", {"Origin": "http://localhost:3000"})),
        (404, ("/v1/none", asked, "POST", {})),
        (405, (TEXT, None, "GET", {})),
        (405, ("/", asked, "POST", {})),
        (405, ("/", None, "PUT", {})),
        (411, (TEXT, None, "POST", {"Content-Type": "application/json", "Content-Length": "x"})),
        (413, (TEXT, b" " * (http_server.LARGEST_BODY + 1), "POST", {})),
        (415, (TEXT, asked, "POST", {"Content-Type": "text/plain"})),
    ):
        got, text = send(server, path, body, method, **headers)
        assert got == status, (path, headers, text)
        assert status == 200 or json.loads(text)["error"]["message"]
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/")
    answer = connection.getresponse()
    page = answer.read().decode()
    assert "http://" not in page and "https://" not in page and "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "Access-Control-Allow-Origin" not in answer.headers
    # The connection stays open for another request.
    connection.request("GET", "/v1/models")
    entry = json.loads(connection.getresponse().read())["data"][0]
    assert (entry["id"], entry["max_model_len"], entry["routes"]) == ("chatty", CONTEXT, [TEXT, CHAT])
    # A body that is not read must not become the next request.
    connection.request("GET", "/v1/models", b"GET / HTTP/1.1")
    assert connection.getresponse().headers["Connection"] == "close"
    connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_generation(server: ModelServer, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    served = server.model
    polls, left = [], threading.Event()
    original = http_server._Handler._poll

    def poll(handler: Any) -> None:
        polls.append(None)
        left.wait(30)
        original(handler)

    monkeypatch.setattr(http_server._Handler, "_poll", poll)
    body = json.dumps({"prompt": "The whale", "max_tokens": 100, "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", server.server_port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        head = f"POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        while not polls:
            time.sleep(0.01)
    left.set()
    monkeypatch.undo()
    assert answered(server, TEXT, prompt="a", max_tokens=1)["usage"]["completion_tokens"] <= 1
    assert len(polls) <= 2 and served is server.model


def test_vectors_are_those_of_zoo_embed() -> None:
    model = small("bert", vocab=400)
    loaded = Loaded("encoder", model, random_params(model), encoders.tokenizer("wordpiece"), chat_loaded().mesh)
    options = ModelOptions(source="encoder", batch=4)
    served = ServedModel(loaded, Defaults(Decoding()), embed=serve._embedder(loaded, options))
    texts = ["the whale", "an old ship of the sea"]
    expected = LoadedModel(loaded).embed(texts)
    with serving(served) as server:
        answer = answered(server, VECTORS, input=texts, model="encoder")
        np.testing.assert_allclose([row["embedding"] for row in answer["data"]], expected, rtol=1e-5, atol=1e-6)
        coded = answered(server, VECTORS, input=texts[0], encoding_format="base64")["data"][0]["embedding"]
        np.testing.assert_allclose(np.frombuffer(base64.b64decode(coded), "<f4"), expected[0], rtol=1e-5, atol=1e-6)
        assert len(answered(server, VECTORS, input=texts, dimensions=8)["data"][1]["embedding"]) == 8
        for path, body, problem in (
            (VECTORS, {"input": " "}, "input is missing or empty"),
            (VECTORS, {"input": "whale " * 99}, "input 1: "),
            (VECTORS, {"input": "a", "encoding_format": "int8"}, "encoding_format int8: choose float or base64"),
            (VECTORS, {"input": "a", "dimensions": 99}, "dimensions"),
            (CHAT, {"messages": ASKED}, "encoder, a bert, does not answer /v1/chat/completions; this model has /v1/embeddings"),
        ):
            status, text = send(server, path, body)
            assert (status, problem in json.loads(text)["error"]["message"]) == (400, True), text


def test_an_encoder_decoder_writes_texts_of_its_prompts() -> None:
    loaded = seq2seq_loaded("t5")
    generator = make_generator(loaded, dtype=jnp.float32, batch=2, option="max_tokens", shared=True)
    model = ServedModel(loaded, Defaults(Decoding()), generator=generator, no_chat="no template")
    request = model.read_request(TEXT, {"prompt": ["Call me", "years ago"], "max_tokens": 9, "temperature": 0})
    texts = [choice["text"] for choice in model.answer(request, lambda: None)["choices"]]
    assert texts == LoadedModel(loaded).generate(["Call me", "years ago"], limit=9, temperature=0)
    for path, field, problem in (
        (TEXT, {"echo": True}, "echo: a t5 writes its text apart from the prompt"),
        (TEXT, {"logprobs": 1}, "logprobs: a t5 is not scored from left to right"),
        (CHAT, {}, "no template; this model has /v1/completions"),
    ):
        with pytest.raises(RequestError, match=problem):
            model.read_request(path, {"prompt": "Call me", **field})


def test_addresses_that_are_refused() -> None:
    with ModelServer("127.0.0.1", 0) as first:
        with pytest.raises(BadInput, match=f"--port {first.server_port}: cannot listen on 127.0.0.1 .*; choose another"):
            ModelServer("127.0.0.1", first.server_port)
        assert first.is_loopback and first.url == f"http://127.0.0.1:{first.server_port}"
    with pytest.raises(BadInput, match=r"--host no\.such\.name\.invalid: no such address"):
        ModelServer("no.such.name.invalid", 0)
    with ModelServer("0.0.0.0", 0) as everywhere:
        assert not everywhere.is_loopback


def test_a_process_serves_streams_and_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with in_folder(tmp_path):
        write_gpt2(tmp_path)
        argv = [sys.executable, "-m", "zoo.cli", "serve", "gpt2", "--port", "0", "--temperature", "0"]
        environment = clean_environment() | {"PYTHONPATH": str(ROOT)}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(argv, cwd=tmp_path, env=environment, **pipes)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("gpt2: http://127.0.0.1:") and line.endswith(" answers /v1/completions; Ctrl-C ends it\n")
            address = dataclasses.make_dataclass("Address", ["server_port"])(int(line.split()[1].rpartition(":")[2]))
            events = streamed(address, TEXT, prompt="The whale", max_tokens=8)
            status, text = send(address, CHAT, {"messages": ASKED})
            assert (status, "gpt2: no chat template; " in json.loads(text)["error"]["message"]) == (400, True)
            ended = call(capsys, "serve", "gpt2", "--port", str(address.server_port))
            assert ended.code == 2 and f"--port {address.server_port}: cannot listen on" in ended.stderr.splitlines()[-1]
            os.kill(process.pid, signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 0 and "Traceback" not in errors, errors
        printed = call(capsys, "generate", "gpt2", "--prompt", "The whale", "--limit", "8", "--temperature", "0").stdout
        assert "The whale" + "".join(event["choices"][0]["text"] for event in events) + "\n" == printed
