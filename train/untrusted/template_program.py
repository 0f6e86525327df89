"""The Jinja environment of chat templates, and the process in which templates of others are rendered.

A template is a program. Jinja's sandbox keeps it from reading anything but its input; it does not limit the time, memory and
depth of loops, powers, filters and texts, which only a process with limits does completely.
"""

import datetime
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jinja2
from jinja2 import ext, nodes, parser, sandbox

from train.untrusted import child_process

BEGIN, END = "\ufdd0", "\ufdd1"
"""Marks around the assistant's parts; they are not characters (Unicode 23.7), so that no text has them."""
SECONDS, MEMORY, CHARACTERS = 2.0, 512 << 20, 8 << 20
"""Processor time and address space for compiling a template or rendering a conversation, and the longest text of one."""
LONGEST_REASON = 200
"""Number of characters of an error message of a template."""


class TemplateError(Exception):
    """Error: a template is invalid, refuses a conversation, or exceeds a limit; the message says why."""


class Rendered(NamedTuple):
    """A conversation as text."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """(index of the first character, index after the last) of each part that `{% generation %}` encloses."""


class TemplateProgram:
    """A compiled template that is rendered in this process."""

    def __init__(self, source: str) -> None:
        """Compile a template.

        Raises:
            TemplateError: it is not a template.
        """
        environment = _environment()
        self._generation = next(tag for tag in environment.extensions.values() if isinstance(tag, _Generation))
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"line {error.lineno}: {_reason(error.message)}") from None
        except (MemoryError, RecursionError):
            raise
        except Exception as error:
            # Python compiles the result, for example with at most 20 loops in each other.
            raise TemplateError(_reason(error)) from None

    @property
    def has_generation(self) -> bool:
        """True if the template encloses the parts of the assistant in `{% generation %}`."""
        return self._generation.parsed

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the text of a template for the values of its variables.

        Raises:
            TemplateError: the template refuses the values, or fails.
        """
        try:
            text = self._template.render(values)
        except (MemoryError, RecursionError):
            raise
        except Exception as error:
            # A template is a program and may raise any exception.
            raise TemplateError(f"cannot render the conversation: {_reason(error)}") from None
        if len(text) > CHARACTERS:
            raise TemplateError(f"writes {len(text):,} characters for a conversation, and at most {CHARACTERS:,} are allowed")
        return text

    def render_spans(self, values: Mapping[str, Any]) -> Rendered | None:
        """Return the text of a template with the parts in `{% generation %}`.

        Returns:
            None if the template changes the text of the parts after it has written them.

        Raises:
            TemplateError: see `render`.
        """
        text, spans, size, start = self.render(values), [], 0, 0
        self._generation.marking = True
        try:
            marked = self.render(values)
        finally:
            self._generation.marking = False
        for part in re.split(f"([{BEGIN}{END}])", marked):
            if part == BEGIN:
                start = size
            elif part == END:
                spans.append((start, size))
            else:
                size += len(part)
        return Rendered(text, tuple(spans)) if marked.replace(BEGIN, "").replace(END, "") == text else None


class RemoteProgram:
    """A compiled template that is rendered in a child process with limits; its methods are those of `TemplateProgram`."""

    def __init__(self, source: str) -> None:
        """Start the process, and compile a template in it.

        Raises:
            TemplateError: it is not a template, or compiling it exceeds a limit.
        """
        self._process = child_process.LimitedProcess(__name__, seconds=SECONDS, memory=MEMORY)
        self._source = source
        self.has_generation: bool = self._request("has_generation", {})

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the text of a template for the values of its variables, see `TemplateProgram.render`."""
        return self._request("render", values)

    def render_spans(self, values: Mapping[str, Any]) -> Rendered | None:
        """Return the text of a template with the parts in `{% generation %}`, see `TemplateProgram.render_spans`."""
        if (rendered := self._request("render_spans", values)) is None:
            return None
        text, spans = rendered
        return Rendered(text, tuple((first, end) for first, end in spans))

    def _request(self, method: str, values: Mapping[str, Any]) -> Any:
        try:
            answer = self._process.request({"method": method, "values": values}, at_start={"source": self._source})
        except child_process.LimitExceededError as error:
            raise TemplateError(str(error)) from None
        if "refused" in answer:
            raise TemplateError(answer["refused"])
        return answer["result"]


def main() -> None:
    """Compile the template of the first request, and render it for every request: the main function of the child process."""
    compiled: list[TemplateProgram] = []

    def answer(request: Any) -> Any:
        try:
            if "source" in request:
                compiled[:] = [TemplateProgram(request["source"])]
            method = getattr(compiled[0], request["method"])
            return {"result": method(request["values"]) if callable(method) else method}
        except TemplateError as error:
            return {"refused": str(error)}

    child_process.serve_requests(answer)


def _reason(error: Any) -> str:
    """Return the message of an error in one short line."""
    return " ".join(str(error)[:100_000].split())[:LONGEST_REASON]


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


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
