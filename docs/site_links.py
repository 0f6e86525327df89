"""A Markdown extension for the documentation site: links to files of the repository, and names in code.

Links to files that are not pages of docs/ are relative, so that they work in a clone and on its host. On the site they lead to
the address of the repository, or, without one, become text that names the file. Short code without spaces, such as the name of
an option, gets the class "name", so that site.css can hold it on one line. Zensical and MkDocs both read the extension from
mkdocs.yml.
"""

import logging
import xml.etree.ElementTree as etree
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

DOCS = Path(__file__).parent
PRIORITY = 5
"""After the inline patterns (20), which make the links, and before MkDocs checks them (0)."""
LONGEST_NAME = 32
"""Characters that fit into a line of a narrow window."""


def repository_path(link: str) -> str | None:
    """Return the path in the repository of what a link of a page leads to, or None for a page, a part of docs/ or an address."""
    url = urlsplit(link)
    name = url.path
    while name.startswith("../"):
        name = name.removeprefix("../")
    if url.scheme or url.netloc or not name or (DOCS / name).is_file():
        return None
    if (DOCS / name).is_dir():
        return f"docs/{name}"
    return name if url.path.startswith("../") and (DOCS.parent / name).exists() else None


class RepositoryLinks(Treeprocessor):
    """Replaces the links of a page that `repository_path` gives a path for."""

    def __init__(self, md: Markdown, repository: str) -> None:
        """Take the address that paths are appended to, or an empty one."""
        super().__init__(md)
        self._repository = repository.rstrip("/")

    def run(self, root: etree.Element) -> None:
        for link in root.iter("a"):
            path = repository_path(link.get("href", ""))
            if path is not None and self._repository:
                link.set("href", f"{self._repository}/{path}")
            elif path is not None:
                link.tag = "span"
                link.attrib.clear()
                link.set("title", f"{path} in the repository")


class Names(Treeprocessor):
    """Gives code that is one short word the class "name"."""

    def run(self, root: etree.Element) -> None:
        for code in root.iter("code"):
            text = code.text or ""
            if len(text) <= LONGEST_NAME and not any(map(str.isspace, text)):
                code.set("class", "name")


class RepositoryLinksExtension(Extension):
    """The extension, with one option, `repository`."""

    def __init__(self, **options: Any) -> None:
        """Declare the option."""
        self.config = {"repository": ["", "address of the folder of all files, as https://HOST/ORG/NAME/blob/main"]}
        super().__init__(**options)

    def extendMarkdown(self, md: Markdown) -> None:
        """Add the processors."""
        md.treeprocessors.register(RepositoryLinks(md, self.getConfig("repository")), "repository_links", PRIORITY)
        md.treeprocessors.register(Names(md), "names", PRIORITY)


def makeExtension(**options: Any) -> RepositoryLinksExtension:
    """Return the extension; Markdown calls this function by its name."""
    return RepositoryLinksExtension(**options)


def on_config(config: "MkDocsConfig") -> None:
    """Let MkDocs warn of links without a target, which it calls as a hook."""
    config.validation.links.not_found = logging.WARNING
