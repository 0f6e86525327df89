"""The documentation site, built by Zensical and by MkDocs: no warning or dead link, nothing from elsewhere, and its search."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.site import BUILDERS, WORDS, build, site_copy

SEARCH = {"zensical": "search.json", "mkdocs": "search/search_index.json"}
pytestmark = pytest.mark.docs


class Page(HTMLParser):
    """The anchors of a page, what its links lead to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {"", "__skip"}
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        self.loaded += [values[name] for name in ("src", "href") if name in values and tag in ("script", "link", "img", "iframe")]


def dead_links(site: Path) -> list[str]:
    """Return the links between the pages that have no target, and what is loaded from elsewhere or not there."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    dead = []
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                dead += [f"{path.name}: {link}"] * (link in page.loaded and url.scheme != "data")
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (target in pages and unquote(url.fragment) not in pages[target].anchors):
                dead.append(f"{path.name}: {link}")
    return dead


@pytest.mark.parametrize("builder", BUILDERS)
def test_the_site_has_no_warning_and_no_dead_link_and_is_searched(builder: str, tmp_path: Path) -> None:
    folder = site_copy(tmp_path)
    code, output = build(folder, builder)
    assert code == 0 and not re.search(r"^\W*(warning|error)\b", output, re.IGNORECASE | re.MULTILINE), output
    site = folder / "site"
    assert dead_links(site) == []
    pages = {path.relative_to(folder / "docs").with_suffix(".html") for path in (folder / "docs").rglob("*.md")}
    pages = {path.with_name("index.html") if path.stem == "README" else path for path in pages}
    assert len(pages) > 30 and all((site / path).is_file() for path in pages)
    index = json.loads((site / SEARCH[builder]).read_text(encoding="utf-8"))
    text = json.dumps(index, ensure_ascii=False).lower()
    assert [word for word in WORDS if word.lower() not in text] == []
    # Shapes in signatures are read from the sources.
    attention = re.sub("<[^>]+>", "", (site / "reference" / "attention.html").read_text(encoding="utf-8"))
    assert "Float[Array" in attention


@pytest.mark.planted(3)
def test_a_dead_link_is_caught(tmp_path: Path) -> None:
    """By MkDocs."""
    folder = site_copy(tmp_path)
    with (folder / "docs" / "install.md").open("a") as file:
        file.write("\n[a page](absent.md), [a heading](quickstart.md#absent), [a file](../absent.md)\n")
    code, output = build(folder, "mkdocs")
    assert code != 0 and all(link in output for link in ("'absent.md'", "#absent'", "'../absent.md'"))


@pytest.mark.planted
@pytest.mark.parametrize("wrong", ['<a href="absent.html">', '<a href="#absent">', '<script src="https://host.invalid/a.js">'])
def test_what_is_dead_or_from_elsewhere_in_a_page_is_caught(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<p id="here"><a href="index.html#here">')
    assert dead_links(tmp_path) == []
    (tmp_path / "index.html").write_text(wrong)
    assert len(dead_links(tmp_path)) == 1


def test_links_that_leave_the_pages_become_addresses_or_text_and_names_are_marked() -> None:
    import markdown

    text = "[a](../SECURITY.md) [b](launch) [c](data.md#x) [d](../absent.md) [e](https://host.invalid/zoo)"
    html = markdown.markdown(text, extensions=["docs.site_links"])
    assert '<span title="SECURITY.md in the repository">a</span> <span title="docs/launch in the repository">b</span>' in html
    assert 'href="data.md#x"' in html and 'href="../absent.md"' in html and 'href="https://host.invalid/zoo"' in html
    html = markdown.markdown("`--seed` `zoo train` `" + "a" * 33 + "`", extensions=["docs.site_links"])
    assert re.findall(r"<code[^>]*>", html) == ['<code class="name">', "<code>", "<code>"]
    options = {"docs.site_links": {"repository": "https://host.invalid/zoo/blob/main/"}}
    html = markdown.markdown(text, extensions=["docs.site_links"], extension_configs=options)
    assert 'href="https://host.invalid/zoo/blob/main/SECURITY.md"' in html and 'href="data.md#x"' in html
