"""Conversations: what is sent to the model, commands, long histories, Ctrl-C, and a session on a terminal."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import pytest

from eval.commands.chat import Chat
from eval.generation.conversation import ChatModel
from eval.generation.folder_settings import make_generator
from eval.generation.generation_options import Decoding
from tests.support import published
from tests.support.chat import turns
from tests.support.chat_models import CONTEXT, chat_loaded
from tests.support.commands import BOOK, GPT2, call, in_folder, write_gpt2
from tests.support.hard_texts import HARD
from tests.support.processes import ROOT, clean_environment
from train.data.example_types import Message
from train.tokenizers import hf_files
from train.tokenizers.chat_template import with_template
from train.tokenizers.tokenizer import Tokenizer
from zoo.cli.python_api import LoadedModel
from zoo.errors import BadInput
from zoo.generation.decoding_settings import Sampling

SEED = 4
"""With it the random model writes no special token."""
SETTINGS = Decoding(limit=12, seed=SEED, sampling=Sampling(temperature=0.9))


def chat_model() -> ChatModel:
    loaded = chat_loaded()
    return ChatModel.of(loaded, make_generator(loaded, dtype=jnp.float32, batch=1, shared=True))


def say(chat: Chat, *lines: str, interrupted: Callable[[], bool] = lambda: False) -> None:
    for line in lines:
        assert chat.take_line(line, interrupted)


def test_a_reply_is_that_of_the_python_interface(capsys: pytest.CaptureFixture[str]) -> None:
    chat = Chat(chat_model(), SETTINGS)
    say(chat, "/system Be brief.", "Who?")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    expected = LoadedModel(chat_loaded()).chat(messages, limit=12, seed=SEED, temperature=0.9)
    assert capsys.readouterr().out == expected + "\n"
    assert chat.messages == [Message("system", "Be brief."), Message("user", "Who?"), Message("assistant", expected)]
    say(chat, "/reset", "Who?")
    # Asked again, it answers something else.
    assert capsys.readouterr().out != expected + "\n"


def test_oldest_turns_are_dropped_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    chat = Chat(chat_model(), SETTINGS)
    say(chat, "/system S", *["Who is the old man of the sea?"] * 4)
    error = capsys.readouterr().err
    assert (
        len(re.findall(r"! the conversation is longer than the context: its first [24] messages are no longer read", error)) == 1
    )
    model, history = chat_model(), turns(*["abc def"] * 9, system="Be brief.")
    fitted = model.fit(history, SETTINGS, "the chat")
    assert fitted.dropped
    shorter = (history[0], *history[1 + fitted.dropped :])
    assert fitted.ids.tolist() == model.prompt_ids(shorter, "the chat").tolist()
    assert len(fitted.ids) + 12 <= CONTEXT < len(model.prompt_ids((history[0], *history[fitted.dropped - 1 :]), "")) + 12
    with pytest.raises(BadInput, match=rf"the chat: its \d+ tokens leave no room for an answer in a context of {CONTEXT}; "):
        model.fit(turns("abcdefghij" * 20), SETTINGS, "the chat")


def test_an_answer_takes_what_is_left_of_the_context(capsys: pytest.CaptureFixture[str]) -> None:
    model, messages = chat_model(), turns("Who?")
    fitted = model.fit(messages, Decoding(limit=10_000), "the chat")
    assert (fitted.dropped, len(fitted.ids) + fitted.decoding.limit) == (0, CONTEXT)
    total = model.fit(messages, Decoding(total=40), "the chat").decoding
    assert (total.limit, total.total) == (40 - len(fitted.ids), 0)
    say(Chat(model, Decoding(limit=10_000, past_end=True)), "Who?")
    assert "tokens (the context has no room for more)" in capsys.readouterr().err


def test_ctrl_c_ends_a_reply_and_keeps_its_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    chat, calls = Chat(chat_model(), Decoding(limit=90, past_end=True)), []

    def interrupted() -> bool:
        calls.append(None)
        return len(calls) == 30

    say(chat, "Who?", interrupted=interrupted)
    ended = capsys.readouterr()
    assert ended.err == "! the reply was ended by Ctrl-C\n"
    assert len(calls) == 30 and chat.messages[1].content == ended.out[:-1]


def test_a_conversation_is_saved_as_training_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with in_folder(tmp_path):
        chat = Chat(chat_model(), SETTINGS)
        with pytest.raises(BadInput, match=r"/save x\.jsonl: there is no conversation yet"):
            chat.take_line("/save x.jsonl", lambda: False)
        say(chat, "//usr is what?", "/save x.jsonl", "Who?", "/save x.jsonl")
        record = json.loads((tmp_path / "x.jsonl").read_text())
        assert record == {"messages": [message._asdict() for message in chat.messages]}
        assert record["messages"][0] == {"role": "user", "content": "/usr is what?"} and len(record["messages"]) == 4
        (tmp_path / "other").write_text("")
        before = chat.messages
        for line, problem in {
            "/save other": "/save other: the file exists; name a new one",
            "/save": "/save: has no file; write /save FILE",
            "/save no/x": "/save no/x: cannot be written",
            "/stop x": "/stop: there is no such command; /help lists them",
            "/quit now": "/quit now: the command takes no text",
            "a <|im_end|> b": "the conversation: message 5 spells the special token",
        }.items():
            with pytest.raises(BadInput, match=problem.replace("|", r"\|")):
                chat.take_line(line, lambda: False)
        assert chat.messages == before
        say(chat, "/help")
        assert not chat.take_line("/quit", lambda: False)
        assert "/system TEXT" in capsys.readouterr().out


def test_a_model_without_a_template_is_refused_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with in_folder(tmp_path):
        write_gpt2(tmp_path)
        ended = call(capsys, "chat", "gpt2")
        assert ended.code == 2 and ended.stdout == ""
        assert ended.stderr.splitlines()[-1].startswith("zoo: gpt2: no chat template; models that were trained on conversations")
        for argv, problem in {
            ("--beams", "2"): "--beams 2: a text is sent while it is sampled; choose --beams 1",
            ("--temperature", "1", "--samples", "2"): "--samples 2: a conversation has one answer; choose --samples 1",
            ("--template", "none.jinja"): "--template none.jinja: cannot be read",
            ("--processes", "2"): "--processes 2: this command runs in one process",
        }.items():
            ended = call(capsys, "chat", "gpt2", *argv)
            assert (ended.code, problem in ended.stderr.splitlines()[-1]) == (2, True), ended


def test_a_session_on_a_terminal(tmp_path: Path) -> None:
    """Streams replies, of which Ctrl-C ends one; Ctrl-D ends the program."""
    published.write(tmp_path / "model", GPT2 | dict(n_positions=2048))
    tokenizer = with_template(Tokenizer.train([BOOK, HARD], 300), "builtin")
    hf_files.write_tokenizer(tmp_path / "model", tokenizer, longest=2048)
    leader, follower = pty.openpty()
    # The terminal becomes the one that controls the command, so that it turns Ctrl-C into a signal.
    own = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    argv = [sys.executable, "-c", own, sys.executable, "-m", "zoo.cli", "chat", "model", "--limit", "1500", "--past-end"]
    streams = {"stdin": follower, "stdout": follower, "stderr": follower}
    environment = clean_environment() | {"PYTHONPATH": str(ROOT), "TERM": "dumb"}
    process = subprocess.Popen(argv, cwd=tmp_path, env=environment, start_new_session=True, **streams)
    os.close(follower)
    seen, until = "", time.monotonic() + 300

    def read() -> str:
        assert select.select([leader], [], [], max(0.0, until - time.monotonic()))[0], seen
        return os.read(leader, 1 << 16).decode(errors="replace")

    def wait_for(text: str, position: int) -> int:
        """Wait until the text appears after a position, and return that of its end; a reply may have any text before it."""
        nonlocal seen
        while text not in seen[position:]:
            seen += read()
        return seen.index(text, position) + len(text)

    try:
        place = wait_for("> ", 0)
        os.write(leader, b"Hello\n")
        place = wait_for("Hello\r\n", place)
        while len(seen) < place + 20:
            seen += read()
        os.write(leader, b"\x03")
        place = wait_for("> ", wait_for("! the reply was ended by Ctrl-C", place))
        # Python's `input` sees a signal that comes just before it waits for a key only at the next key or signal.
        while "! Ctrl-D or /quit" not in seen[place:]:
            os.write(leader, b"\x03")
            while select.select([leader], [], [], 1.0)[0]:
                seen += os.read(leader, 1 << 16).decode(errors="replace")
            assert time.monotonic() < until, seen
        place = wait_for("> ", wait_for("! Ctrl-D or /quit ends the conversation", place))
        os.write(leader, b"/frob\n")
        wait_for("> ", wait_for("! /frob: there is no such command", place))
        os.write(leader, b"\x04")
        with contextlib.suppress(OSError):  # Linux reports the end of a terminal as an error
            while more := read():
                seen += more
        assert process.wait(60) == 0, seen
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        os.close(leader)
    assert "Traceback" not in seen
