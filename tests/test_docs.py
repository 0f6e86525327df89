"""The documentation: generated pages are current, commands have options that exist, and links have targets."""

import dataclasses
import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro

from tests.support.example_plugin import installed, write_example
from tests.support.processes import ROOT
from train import recipes
from zoo.cli import main

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("tutorials/*.md"))]

HIDDEN = ("recipe", "exported", "sequence", "extended_from")
"""Fields of a run that are no options."""


class Parsed(Exception):
    """Raised instead of running a command whose options are valid."""


def option_names(config: Any) -> Iterator[str]:
    """Yield the last part of the name of each option of a run, from its dataclasses."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in HIDDEN:
            continue
        if dataclasses.is_dataclass(value):
            yield from option_names(value)
        else:
            yield field.name.replace("_", "-")


def commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each `zoo` command in the code blocks of a page, except those with `...` or a name like RECIPE.

    Shell variables are numbers. Files of options, which are not there, and files for the output are left out.
    """
    for block in re.findall(r"^```(?:bash)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            line = re.sub(r"\s# .*| --config \w+\.toml| > \S+", "", re.sub(r"\$\w+", "0", line))
            for part in re.split(r"&&| \|\|? ", line):
                match = re.match(r"(?:ZOO_FAULT=\S+ )?(?:zoo|python3 run\.py) (?!test)([a-z].*)", part.strip())
                if match and "..." not in part:
                    args = shlex.split(match[1])
                    # Recipes for fine-tuning read the folder of --init; the options of others depend on whether they have one.
                    recipe = args[1] if args[0] == "train" and args[1:] else ""
                    if recipe not in recipes.recipes() or recipes.takes_weights(recipe):
                        args = shlex.split(re.sub(r"--init \S+( --fork \S+)?", "", match[1]))
                    if not (args[0] in ("train", "plan") and args[1:] and args[1].isupper()):
                        yield args


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_generated_pages_are_current() -> None:
    pages = runpy.run_path(str(DOCS / "generate.py"))["pages"]()
    for name, text in pages.items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, "run python docs/generate.py"
    listed = {*re.findall(r"^\| `--(?:[\w.-]+\.)?([\w-]+)`", pages["options.md"], re.MULTILINE)}
    for name in recipes.recipes():
        names = set(option_names(recipes.recipe_run(name, "")))
        assert len(names) > 40 and names <= listed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_documentation_have_options_that_exist(
    page: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parse = tyro.cli

    def cli(*args: Any, **options: Any) -> None:
        parse(*args, **options)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", cli)
    # docs/extending.md also has commands on its example of a plug-in.
    site = write_example(tmp_path)
    for args in commands(page.read_text(encoding="utf-8")):
        with installed(site), pytest.raises(Parsed):
            pytest.fail(f"zoo {shlex.join(args)} ended with {main.main(args)}")


def installations(text: str) -> list[str]:
    """Return what each `pip install` and `run.py --extra` in a text names: extras, groups, constraints, and this project."""
    lines = re.findall(r"pip install ([^`\n]*)|run\.py (--extra \S+)", text)
    name = re.compile(r"--group \S+|--extra [^`\s]+|-c \S+|'?\.?\[[^\]]+\]'?|'?transformer-zoo\S*")
    return [word for line in lines for word in name.findall(" ".join(line))]


@pytest.mark.planted(3)
def test_what_the_documentation_installs_exists() -> None:
    """The package is on no index, so only a folder can be installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = [*project["project"]["optional-dependencies"], "none"]
    valid = {f"'.[{name}]'" for name in extras} | {f"--extra {name}" for name in extras} | {f".[{name}]" for name in extras}
    valid |= {f"--group {name}" for name in project["dependency-groups"]} | {"-c constraints.txt"}
    for page in PAGES:
        assert set(installations(page.read_text(encoding="utf-8"))) <= valid, page.name
    for wrong in ("pip install 'transformer-zoo[s3]'", "pip install -e '.[experiment]'", "python3 run.py --extra cuda11 test"):
        assert not set(installations(wrong)) <= valid


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_in_the_documentation_have_targets(page: Any) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        if "://" not in link:
            target = page.parent / file if file else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def missing_tests(text: str) -> list[str]:
    """Return the tests in a page, `tests/FILE.py` or `tests/FILE.py::NAME`, that do not exist."""
    named = [(name, *name.partition("::")[::2]) for name in re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", text)]
    assert named
    return [
        name
        for name, file, test in named
        if not (ROOT / file).is_file() or (test and f"def {test}(" not in (ROOT / file).read_text(encoding="utf-8"))
    ]


@pytest.mark.planted(2)
@pytest.mark.parametrize("page", [ROOT / "SECURITY.md", DOCS / "evidence.md"], ids=lambda page: page.name)
def test_every_promise_names_tests_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?!promise|statement|---)(.*?) \| (.*?) \|$", text, re.MULTILINE)
    assert len(rows) > 8 and all("`tests/" in tests or "SECURITY.md" in tests for _, tests in rows)
    assert missing_tests(text) == []
    for name in ("`tests/hostile/absent.py`", "`tests/test_docs.py::test_absent`"):
        assert missing_tests(name) == [name.strip("`")]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in ("options.md", "models.md")], ids=lambda page: page.name
)
def test_pages_that_are_not_tables_for_looking_up_are_short(page: Any) -> None:
    assert len(page.read_text(encoding="utf-8").splitlines()) <= 250


def test_the_index_lists_every_page_once() -> None:
    links = re.findall(r"\]\(((?:tutorials/)?[^)/#]+\.md)\)", (DOCS / "README.md").read_text(encoding="utf-8"))
    pages = [page.relative_to(DOCS).as_posix() for page in PAGES if page.is_relative_to(DOCS) and page.name != "README.md"]
    assert sorted(links) == sorted(pages)
