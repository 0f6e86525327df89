"""Chat templates: conversations as one text, rendered as `transformers` 5.24 renders them.

A template is a program that came with somebody's weights, so it runs in Jinja's immutable sandbox, and in a process with limits
(`train.untrusted.template_program`). It gets `messages`, `tools` and `documents` (none), `add_generation_prompt`, and the names
of the tokenizer's special tokens (`eos_token`, ...).
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.config.option_groups import BUILT_IN
from train.data.example_types import Message
from train.tokenizers import hf_files
from train.tokenizers.tokenizer import CHAT, LARGEST_FILE, SETTINGS, Tokenizer
from train.untrusted.template_program import RemoteProgram, Rendered, TemplateError, TemplateProgram
from zoo.errors import BadInput
from zoo.file_access import read_regular_text

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


class ChatTemplate:
    """A compiled chat template, with the names of the special tokens that it may write.

    `TEMPLATE` is rendered in this process, any other template in a child process with limits.
    """

    def __init__(self, source: str, names: Mapping[str, str], where: str) -> None:
        """Compile a template.

        Args:
            names: the tokenizer's special tokens by role: "eos_token", ...
            where: its file, for error messages.

        Raises:
            BadInput: it is not a template, or compiling it exceeds a limit.
        """
        self.where, self._names = where, dict(names)
        try:
            self._program = _compiled(source)
        except TemplateError as error:
            raise BadInput(f"{where}: {error}; use the template of the model's publisher") from None

    @property
    def has_generation(self) -> bool:
        """True if the template encloses the parts of the assistant in `{% generation %}`."""
        return self._program.has_generation

    def render(self, messages: Sequence[Message], origin: str, *, generation_prompt: bool = False) -> str:
        """Return a conversation as text; `generation_prompt`: with the beginning of an answer after it.

        Args:
            origin: the place of the conversation, for error messages.

        Raises:
            BadInput: the template refuses the conversation, fails, or exceeds a limit.
        """
        with self._refusals(origin):
            return self._program.render(self._values(messages, generation_prompt))

    def render_spans(self, messages: Sequence[Message], origin: str) -> Rendered:
        """Return a conversation as text, with the parts of the assistant.

        Raises:
            BadInput: see `render`; also if the template changes the text of the parts after it has written them.
        """
        with self._refusals(origin):
            rendered = self._program.render_spans(self._values(messages, generation_prompt=False))
        if rendered is None:
            raise BadInput(
                f"{origin}: {self.where} writes a text that depends on the length or the ends of what {{% generation %}} "
                "encloses, so the assistant's parts are not known; put the tag around what is written at once"
            )
        return rendered

    def _values(self, messages: Sequence[Message], generation_prompt: bool) -> dict[str, Any]:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        flags = {"tools": None, "documents": None, "add_generation_prompt": generation_prompt}
        return {**flags, **self._names, "messages": turns}

    @contextlib.contextmanager
    def _refusals(self, origin: str) -> Iterator[None]:
        try:
            yield
        except TemplateError as error:
            raise BadInput(f"{origin}: {self.where} {error}; change one of the two") from None


@functools.lru_cache(maxsize=4)
def _compiled(source: str) -> TemplateProgram | RemoteProgram:
    return TemplateProgram(source) if source == TEMPLATE else RemoteProgram(source)


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


def with_template(tokenizer: Tokenizer, choice: str, option: str = "--chat.template") -> Tokenizer:
    """Return a tokenizer with the chat template that an option names; "" leaves its own.

    Raises:
        BadInput: the file cannot be read.
    """
    if not choice:
        return tokenizer
    settings = {key: value for key, value in tokenizer.settings.items() if key != "chat_template"}
    return tokenizer.with_files(settings, TEMPLATE if choice == BUILT_IN else _read(Path(choice), option))


def _read(file: Path, option: str) -> str:
    try:
        return read_regular_text(file, LARGEST_FILE)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{option} {file}: cannot be read ({error}); name a {CHAT}, or write {BUILT_IN}") from None
