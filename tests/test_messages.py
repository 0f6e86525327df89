"""Options in error messages exist: a fix that names another one cannot be followed."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support.commands import call
from tests.support.processes import ROOT

COMMANDS = (
    "embed",
    "eval",
    "export",
    "fill-mask",
    "generate",
    "import",
    "predict",
    "experiment",
    "doctor",
    "compare",
    "audit",
    "sweep",
)
COMMANDS += (*(f"bench {kind}" for kind in ("attention", "step", "embed", "compare", "growth", "feedback")), "judge")
COMMANDS += ("data inspect gpt-nano", "search", "mine", "chat", "serve")
PACKAGES = ("zoo", "train", "eval", "benchmarks")
GROUPS = {"data", "labelled", "rollout"}
"""Groups of options that a message may name as a whole."""
HIDDEN = {"model.multi-label", "model.exported.positions", "model.exported.model-type", "minutes", "objective"}
HIDDEN |= {"total", "bad-words"}
"""Fields that --help does not list: internal ones, options that depend on others, settings of a folder and of Python alone."""


def named_options(tree: ast.AST) -> Iterator[str]:
    """Yield the options that calls of `require`, `BadInput` and `Advice` in a file name, without the two dashes."""
    for node in ast.walk(tree):
        name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
        if name == "require":
            assert isinstance(node, ast.Call)
            yield from (key.value.replace("_", "-") for key in node.args[1:2] if isinstance(key, ast.Constant))
        if name in ("require", "BadInput", "Advice"):
            texts = (text.value for text in ast.walk(node) if isinstance(text, ast.Constant) and isinstance(text.value, str))
            yield from (option for text in texts for option in re.findall(r"--([a-z][\w.-]*\w)", text))


def missing_options(tree: ast.AST, existing: set[str]) -> set[str]:
    return {*named_options(tree)} - existing - GROUPS - HIDDEN


@pytest.mark.full
def test_messages_name_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    listed = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    listed += "".join(
        call(capsys, *command.split(), "--help").stdout
        for command in (*COMMANDS, "plan gpt2", "plan --published FILE", "models", "train")
    )
    options = {*re.findall(r"--([\w.-]+)", listed)}
    options |= {re.sub(r"(^|\.)no-", r"\1", option) for option in options}
    options |= {re.sub(r"([\w-]+)$", r"no-\1", option) for option in options}
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    missing = {str(file.relative_to(ROOT)): missing_options(ast.parse(file.read_text()), options) for file in files}
    assert {file: names for file, names in missing.items() if names} == {}


@pytest.mark.planted(2)
def test_an_option_that_does_not_exist_is_noticed() -> None:
    wrong = 'require(bool(texts), "texts", "are not given", "write some")\nraise BadInput(f"{x}: give --file {y}, or --files")'
    assert missing_options(ast.parse(wrong), {"files"}) == {"texts", "file"}
