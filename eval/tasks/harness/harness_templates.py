"""The Jinja environment of lm-evaluation-harness for tasks of others: a sandbox, in a child process with limits.

The sandbox keeps a template from Python's objects, and the process limits the time, memory and output of each text.
"""

import dataclasses
import functools
import re
from typing import Any

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from train.untrusted import child_process
from train.untrusted.template_program import CHARACTERS, LONGEST_REASON, MEMORY, SECONDS


class LimitedEnvironment:
    """Has the method of `jinja2.Environment` that the harness calls: `from_string(source).render(**document)`."""

    def __init__(self) -> None:
        """Describe the child process, which the first text starts."""
        self._process = child_process.LimitedProcess(__name__, seconds=SECONDS, memory=MEMORY)

    def from_string(self, source: str) -> "LimitedTemplate":
        """Return a template, which is compiled when it is rendered."""
        return LimitedTemplate(source, self._process)


@dataclasses.dataclass(frozen=True)
class LimitedTemplate:
    """A template of a task."""

    source: str
    process: child_process.LimitedProcess

    def render(self, /, **document: Any) -> str:
        """Return the text of the template for a document of the task's data.

        Raises:
            jinja2.TemplateError: the template is wrong, does what the sandbox forbids, or exceeds a limit; or the document has a
                value that JSON does not have.
        """
        try:
            answer = self.process.request({"source": self.source, "document": document})
        except child_process.LimitExceededError as error:
            raise jinja2.TemplateError(f"it {error}") from None
        except TypeError as error:
            raise jinja2.TemplateError(f"a document cannot be written as JSON: {error}") from None
        if "refused" in answer:
            raise jinja2.TemplateError(answer["refused"])
        return answer["text"]


def main() -> None:
    """Render a template for each request: the main function of the child process."""
    environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    # The only filter that the harness adds.
    environment.filters["regex_replace"] = _replace_pattern
    compiled = functools.lru_cache(maxsize=64)(environment.from_string)

    def answer(request: Any) -> Any:
        try:
            text = compiled(request["source"]).render(**request["document"])
        except (MemoryError, RecursionError):
            raise
        except Exception as error:
            # A template is a program and may raise any exception.
            return {"refused": " ".join(str(error)[:100_000].split())[:LONGEST_REASON] or type(error).__name__}
        if len(text) > CHARACTERS:
            return {"refused": f"it writes {len(text):,} characters for a document, and at most {CHARACTERS:,} are allowed"}
        return {"text": text}

    child_process.serve_requests(answer)


def _replace_pattern(string: str, pattern: str, repl: str, count: int = 0) -> str:
    return re.sub(pattern, repl, string, count=count)
