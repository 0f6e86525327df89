"""Chat templates that exceed limits of time, memory, text or depth: each is refused in one line, and the next one is rendered."""

import os
import signal
import subprocess
import threading
from typing import Any

import pytest

from tests.support.chat import CHATML, turns
from tests.support.hostile_templates import DEPTH, MEMORY, ORDINARY, SANDBOX, TEMPLATES, TIME, HostileTemplate
from train.tokenizers import chat_template
from train.tokenizers.chat_template import TEMPLATE, ChatTemplate
from train.untrusted import child_process, template_program
from zoo.errors import BadInput

FEW = {"loops", "power", "compare", "repeat", "shared-string", "output-limit", "parentheses", "fors", "macro", "class"}
"""Templates of the fast tier."""


def parameters() -> list[Any]:
    return [
        pytest.param(case, id=case.name, marks=[] if case.name in FEW or not case.refused else [pytest.mark.full])
        for case in TEMPLATES
    ]


def render(source: str) -> str:
    return ChatTemplate(source, {"eos_token": "</s>"}, "model: chat_template.jinja").render(turns("a", "b"), "a.jsonl:7")


def refusal(source: str) -> str:
    with pytest.raises(BadInput) as refused:
        render(source)
    return str(refused.value)


@pytest.fixture
def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_program, "SECONDS", 0.3)


@pytest.mark.usefixtures("little_time")
@pytest.mark.parametrize("case", parameters())
def test_a_template_is_refused_in_one_line_or_rendered(case: HostileTemplate) -> None:
    if not case.refused:
        assert "__" not in render(case.content)
        return
    message = refusal(case.content)
    assert "\n" not in message and len(message) < 400 and "model: chat_template.jinja" in message
    if case in TIME:
        assert "takes more than 0.3 s of processor time" in message
    if case in MEMORY and case.name != "output-limit":
        assert "needs more than 512 MiB of memory" in message or "takes more than" in message
    assert "ends its process" not in message and "crashes" not in message


def test_the_messages_name_the_limit() -> None:
    assert refusal("{{ 'a' * 10**9 }}") == (
        "a.jsonl:7: model: chat_template.jinja needs more than 512 MiB of memory; change one of the two"
    )
    assert refusal("{{ 'a' * (2**23 + 1) }}") == (
        "a.jsonl:7: model: chat_template.jinja writes 8,388,609 characters for a conversation, and at most 8,388,608 are "
        "allowed; change one of the two"
    )
    assert refusal("{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}") == (
        "model: chat_template.jinja: is nested, or calls itself, more than 1,000 times; use the template of the model's publisher"
    )


@pytest.mark.planted(2)
@pytest.mark.parametrize(
    ("limit", "low", "high", "source"),
    [
        ("SECONDS", 0.1, 60.0, "{% for a in range(n) %}{% for b in range(n) %}{% endfor %}{% endfor %}x"),
        ("MEMORY", 128 << 20, 1 << 30, "{{ ('a' * n * n * 16) | length }}"),
    ],
)
def test_without_its_limit_a_template_is_rendered(
    limit: str, low: Any, high: Any, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusals above come from the limits, and from nothing else."""
    # Memory is filled slowly where little is free.
    monkeypatch.setattr(template_program, "SECONDS", 60.0)
    monkeypatch.setattr(template_program, limit, low)
    with pytest.raises(template_program.TemplateError, match="more than"):
        template_program.RemoteProgram(source).render({"n": 4000})
    monkeypatch.setattr(template_program, limit, high)
    assert template_program.RemoteProgram(source).render({"n": 4000}) in ("x", "256000000")


@pytest.mark.planted
def test_without_its_limit_a_long_text_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    program = template_program.TemplateProgram("{{ 'a' * (2**23 + 1) }}")
    with pytest.raises(template_program.TemplateError, match="writes 8,388,609 characters"):
        program.render({})
    monkeypatch.setattr(template_program, "CHARACTERS", 2**24)
    assert len(program.render({})) == 2**23 + 1


@pytest.mark.usefixtures("little_time")
def test_after_a_refusal_the_next_conversation_is_rendered() -> None:
    source = "{% if messages[0].content == 'slow' %}{{ 10 ** (10 ** (messages | length + 7)) }}{% endif %}{{ messages | length }}"
    template = ChatTemplate(source, {}, "it")
    for _ in range(2):
        assert template.render(turns("a", "b"), "here") == "2"
        with pytest.raises(BadInput, match=r"^here: it takes more than 0\.3 s of processor time; change one of the two$"):
            template.render(turns("slow"), "here")
    assert template.render(turns("a"), "here") == "1"


def test_a_child_that_was_killed_is_reported_and_replaced() -> None:
    program = template_program.RemoteProgram("{{ a }}")
    process = program._process._process
    assert process is not None
    process.kill()
    process.wait()
    with pytest.raises(template_program.TemplateError, match=r"^crashes \(signal 9\)$"):
        program.render({"a": 1})
    assert program.render({"a": 1}) == "1"


def test_the_child_has_no_secrets_and_its_template_is_not_this_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_TOKEN", "secret")
    program = template_program.RemoteProgram("{{ a }}")
    process = program._process._process
    assert process is not None and process.pid != os.getpid()
    with open(f"/proc/{process.pid}/environ", "rb") as file:
        assert b"secret" not in file.read()


def test_a_child_ends_with_its_template() -> None:
    program = template_program.RemoteProgram("{{ a }}")
    process = program._process._process
    assert process is not None and process.poll() is None
    del program
    assert process.poll() is not None


def test_a_fork_has_a_child_of_its_own() -> None:
    program = template_program.RemoteProgram("{{ a }}")
    process = program._process._process
    assert process is not None
    program._process._owner = 1
    assert program.render({"a": 2}) == "2"
    assert program._process._process is not process
    process.kill()
    process.wait()


def test_threads_share_a_child() -> None:
    program, texts = template_program.RemoteProgram("{{ a }}" * 100), {}
    threads = [
        threading.Thread(target=lambda number=number: texts.update({number: program.render({"a": number})}))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: str(number) * 100 for number in range(8)}


def test_an_interrupt_leaves_no_answer_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    program = template_program.RemoteProgram("{{ a }}")

    def interrupted(text: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(child_process.json, "loads", interrupted)
        with pytest.raises(KeyboardInterrupt):
            program.render({"a": 1})
    assert program.render({"a": 2}) == "2"


def test_the_template_of_this_project_needs_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any, **options: Any) -> Any:
        raise AssertionError

    chat_template._compiled.cache_clear()
    monkeypatch.setattr(subprocess, "Popen", refused)
    assert render(TEMPLATE) == "User: a\n\nAssistant: b</s>"
    with pytest.raises(AssertionError):
        render(CHATML)


def test_the_signal_of_the_time_limit_may_be_blocked_here(little_time: None) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})
    try:
        assert "takes more than 0.3 s" in refusal("{{ 10 ** 10000007 }}")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_the_list_of_templates_is_complete() -> None:
    assert len({case.name for case in TEMPLATES}) == len(TEMPLATES) >= 100
    assert all(case.refused for case in (*TIME, *DEPTH)) and not any(case.refused for case in ORDINARY)
    assert sum(case.refused for case in SANDBOX) >= 10
