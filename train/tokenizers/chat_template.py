"""Chat templates: conversations as one text, rendered as `transformers` 5.24 renders them.

A template is a program that came with somebody's weights, so it runs in Jinja's immutable sandbox. It gets `messages`, `tools`
and `documents` (none), `add_generation_prompt`, and the names of the tokenizer's special tokens (`eos_token`, ...).
"""

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from jinja2 import ext, nodes, parser, sandbox

from train.config.option_groups import BUILT_IN
from train.data.example_types import Message
from train.tokenizers import hf_files
from train.tokenizers.tokenizer import CHAT, LARGEST_FILE, SETTINGS, Tokenizer
from zoo.errors import BadInput

TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
Assistant:{% generation %} {{ message.content.strip() }}{{ eos_token }}{% endgeneration %}
{%- elif message.role == 'user' -%}
User: {{ message.content.strip() }}{{ '\\n\\n' }}
{%- else -%}
{{ message.content.strip() }}{{ '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
Assistant:
{%- endif -%}
"""
"""The template for models without one: "User: ...\\n\\nAssistant: ...<end>", after the text of a system message.

The space after the colon belongs to the answer, so that the prompt of a generation ends with a complete token.
"""
BEGIN, END = "\ufdd0", "\ufdd1"
"""Marks around the assistant's parts; they are not characters (Unicode 23.7), so that no text has them."""


class Rendered(NamedTuple):
    """A conversation as text."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """(index of the first character, index after the last) of each part that `{% generation %}` encloses."""


class ChatTemplate:
    """A compiled chat template, with the names of the special tokens that it may write."""

    def __init__(self, source: str, names: Mapping[str, str], where: str) -> None:
        """Compile a template.

        Args:
            names: the tokenizer's special tokens by role: "eos_token", ...
            where: its file, for error messages.

        Raises:
            BadInput: it is not a template.
        """
        self.where, self._names = where, dict(names)
        self._environment = _environment()
        try:
            self._template = self._environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise BadInput(f"{where}: line {error.lineno}: {error.message}; use the template of the model's publisher") from None

    @functools.cached_property
    def has_generation(self) -> bool:
        """True if the template encloses the parts of the assistant in `{% generation %}`."""
        return _tracker(self._environment).parsed

    def render(self, messages: Sequence[Message], origin: str, *, generation_prompt: bool = False) -> str:
        """Return a conversation as text; `generation_prompt`: with the beginning of an answer after it.

        Args:
            origin: the place of the conversation, for error messages.

        Raises:
            BadInput: the template refuses the conversation, or fails.
        """
        values = [{"role": message.role, "content": message.content} for message in messages]
        options: dict[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": generation_prompt, **self._names}
        try:
            return self._template.render(messages=values, **options)
        except Exception as error:
            # A template is a program and may raise any exception.
            why = " ".join(str(error).split())[:200]
            raise BadInput(f"{origin}: {self.where} cannot render the conversation: {why}; change one of the two") from None

    def render_spans(self, messages: Sequence[Message], origin: str) -> Rendered:
        """Return a conversation as text, with the parts of the assistant.

        Raises:
            BadInput: see `render`; also if the template changes the text of the parts after it has written them.
        """
        text, tracker = self.render(messages, origin), _tracker(self._environment)
        tracker.marking = True
        try:
            marked = self.render(messages, origin)
        finally:
            tracker.marking = False
        spans, size, start = [], 0, 0
        for part in re.split(f"([{BEGIN}{END}])", marked):
            if part == BEGIN:
                start = size
            elif part == END:
                spans.append((start, size))
            else:
                size += len(part)
        if marked.replace(BEGIN, "").replace(END, "") != text:
            raise BadInput(
                f"{origin}: {self.where} writes a text that depends on the length or the ends of what {{% generation %}} "
                "encloses, so the assistant's parts are not known; put the tag around what is written at once"
            )
        return Rendered(text, tuple(spans))


def has_template(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer has a chat template."""
    return tokenizer.chat_template is not None or tokenizer.settings.get("chat_template") is not None


def chat_template(tokenizer: Tokenizer, where: str) -> ChatTemplate:
    """Return the chat template of a tokenizer, from chat_template.jinja or else from tokenizer_config.json.

    Args:
        where: the model, for error messages.

    Raises:
        BadInput: the tokenizer has no template, or an invalid one.
    """
    source, file = tokenizer.chat_template, f"{where}: {CHAT}"
    if source is None:
        source, file = tokenizer.settings.get("chat_template"), f"{where}: chat_template in {SETTINGS}"
    if isinstance(source, list):
        # A list of several templates, each an object with a name.
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default", source)
    if source is None:
        raise BadInput(
            f"{where}: no chat template; put the model's {CHAT} beside its tokenizer.json, or train with --chat.template "
            f"{BUILT_IN}, which also stores it with the tokenizer"
        )
    if not isinstance(source, str):
        raise BadInput(f'{file}: neither a text nor a list with the template "default"; write one text')
    return ChatTemplate(source, hf_files.special_token_names(tokenizer), file)


def with_template(tokenizer: Tokenizer, choice: str) -> Tokenizer:
    """Return a tokenizer with the chat template that --chat.template names; "" leaves its own.

    Raises:
        BadInput: the file cannot be read.
    """
    if not choice:
        return tokenizer
    settings = {key: value for key, value in tokenizer.settings.items() if key != "chat_template"}
    return tokenizer.with_files(settings, TEMPLATE if choice == BUILT_IN else _read(Path(choice)))


def _read(file: Path) -> str:
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise BadInput(f"--chat.template {file}: larger than {LARGEST_FILE >> 20} MiB; name a file with a template")
        return file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--chat.template {file}: cannot be read ({error}); name a {CHAT}, or write {BUILT_IN}") from None


# --- The environment of templates ---


class _Generation(ext.Extension):
    """The tag `{% generation %}` ... `{% endgeneration %}`: writes its content, between marker characters if `marking`."""

    tags = {"generation"}  # noqa: RUF012
    marking = False
    parsed = False

    def parse(self, parser: parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        self.parsed = True
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Any) -> str:
        return f"{BEGIN}{caller()}{END}" if self.marking else caller()


class _Namespace(jinja2.utils.Namespace):
    """A namespace of a template without names that begin with an underscore, which could lead out of the sandbox."""

    def __init__(*args: Any, **values: Any) -> None:
        # Without named parameters, since every name may be one of the template's.
        for name in dict(*args[1:], **values):
            _check_name(name)
        jinja2.utils.Namespace.__init__(*args, **values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace has no name {name!r}, which begins with an underscore")


def _dict(*args: Any, **values: Any) -> dict[Any, Any]:
    """Return a dict; a function, so that a template does not get the type."""
    return dict(*args, **values)


def _environment() -> sandbox.ImmutableSandboxedEnvironment:
    """Return an environment with the tags, filters and functions that chat templates expect."""
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.LoopControlExtension]
    )
    # Jinja's own filter escapes for HTML.
    environment.filters["tojson"] = _to_json
    functions = {"raise_exception": _raise, "strftime_now": _now, "dict": _dict, "namespace": _Namespace}
    environment.globals |= functions
    return environment


def _tracker(environment: jinja2.Environment) -> _Generation:
    return next(extension for extension in environment.extensions.values() if isinstance(extension, _Generation))


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
