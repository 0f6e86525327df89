"""The documentation: generated pages are current."""

import dataclasses
import re
import runpy
from collections.abc import Iterator
from typing import Any

from tests.support.processes import ROOT
from train import recipes

DOCS = ROOT / "docs"


def option_names(config: Any, prefix: str = "--") -> Iterator[str]:
    """Yield the options of a run from its dataclasses."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from option_names(value, prefix if field.name == "machine" else f"{prefix}{field.name}.".replace("_", "-"))
        elif field.name != "recipe":
            yield prefix + field.name.replace("_", "-")


def test_generated_pages_are_current() -> None:
    pages = runpy.run_path(str(DOCS / "generate.py"))["pages"]()
    for name, text in pages.items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, "run python docs/generate.py"
    for name in recipes.recipes():
        names = set(option_names(recipes.recipe_run(name, "")))
        assert len(names) > 80 and names <= {*re.findall(r"^\| `(--\S+)`", pages["options.md"], re.MULTILINE)}
