"""Pages in headless Chromium: the system's, driven by Playwright, with the faults of a page that one can see, as lines."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHECKS = Path(__file__).with_name("page_checks.js").read_text(encoding="utf-8")
WIDTHS, SCHEMES = (1280, 400), ("light", "dark")
TALLEST = 5000
"""Pixels of a page that a screenshot has."""


class NoBrowser(Exception):
    """There is no Chromium, or no Playwright to drive it."""


@dataclasses.dataclass(frozen=True)
class View:
    """A window; `faults` grows by what the console and the network say while pages are opened."""

    page: Any
    """Of Playwright."""
    faults: list[str]
    host: str = ""
    """The host and port that requests may go to; "" = none."""

    def open(self, address: str) -> None:
        """Open a page with all that can be unfolded on it."""
        self.page.goto(address)
        self.page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        self.page.evaluate("document.fonts.ready.then(() => null)")

    def layout_faults(self) -> list[str]:
        """Return what leaves its box or the window, what is cut, and pale text in drawings."""
        return self.page.evaluate(CHECKS)

    def contrast_faults(self) -> list[str]:
        """Return the text whose contrast is below WCAG's level AA, by axe-core, which leaves out drawings."""
        from axe_core_python.sync_playwright import Axe

        found = Axe().run(self.page, options={"runOnly": ["color-contrast"], "resultTypes": ["violations"]})["violations"]
        nodes = [node for rule in found for node in rule["nodes"]]
        return [f"contrast {node['any'][0]['data']['contrastRatio']}: {' '.join(node['html'].split())[:100]}" for node in nodes]

    def screenshot(self, file: Path) -> None:
        """Write a screenshot of the page, down to `TALLEST`."""
        width, height = self.page.evaluate("[innerWidth, document.scrollingElement.scrollHeight]")
        area = {"x": 0, "y": 0, "width": width, "height": min(height, TALLEST)}
        self.page.screenshot(path=file, full_page=True, clip=area, animations="disabled")

    def take_faults(self) -> list[str]:
        """Return the faults of the console and the network so far, and forget them."""
        taken, self.faults[:] = self.faults[:], []
        return taken


def executable() -> str:
    """Return the path of Chromium.

    Raises:
        NoBrowser: there is none.
    """
    named = os.environ.get("CHROMIUM", "")
    names = (named,) if named else ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        raise NoBrowser(f"--browser: there is no {' or '.join(names)}; install Chromium, or name its program by CHROMIUM=FILE")
    return path


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Start Chromium, and end it.

    Raises:
        NoBrowser: it is not there, or Playwright is not.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise NoBrowser("--browser: there is no playwright; install the dependency group docs") from None
    path = executable()
    with sync_playwright() as playwright:
        # The sandbox cannot be had by root, as whom tests run in containers; only pages of this repository are opened.
        browser = playwright.chromium.launch(executable_path=path, chromium_sandbox=False)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def view(browser: Any, width: int = 1280, scheme: str = "light", host: str = "") -> Iterator[View]:
    """Open a window of a width in pixels, for people who prefer light or dark pages."""
    size = {"width": width, "height": 900}
    context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
    view = View(context.new_page(), [], host)
    say = view.faults.append

    def sent(request: Any) -> None:
        url = urlsplit(request.url)
        if url.scheme in ("http", "https", "ws", "wss") and url.netloc != host:
            say(f"elsewhere: {request.url}")

    def failed(request: Any) -> None:
        # A page that is left ends its own requests.
        if request.failure != "net::ERR_ABORTED":
            say(f"no answer: {request.url}: {request.failure}")

    def answered(response: Any) -> None:
        if response.status >= 400:
            say(f"answer {response.status}: {response.url}")

    view.page.on("console", lambda line: line.type in ("warning", "error") and say(f"console: {line.type}: {line.text}"))
    view.page.on("pageerror", lambda error: say(f"console: {error}"))
    view.page.on("requestfailed", failed)
    view.page.on("request", sent)
    view.page.on("response", answered)
    try:
        yield view
    finally:
        context.close()
