"""A pytest plugin: which tests run. See tests/README.md.

Without options the fast tier runs. `--full` adds the tests marked `full`, and each marker of OPT_IN has an option of its own.
What is left out is counted in the last lines of the output, as are the planted mistakes among the tests that were collected.
"""

from typing import Any

import pytest

FULL = "full"
OPT_IN = ("slow", "parity", "aot", "store", "weights", "ray", "onnx", "trackers", "docs", "browser")
SUMMARY = pytest.StashKey[dict[str, int]]()
FIRST = "integration"
"""The folder whose tests run first. They take longest, and a long file at the end would leave the other processes idle."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(f"--{FULL}", action="store_true", help="also run the tests that are not in the fast tier")
    for marker in OPT_IN:
        parser.addoption(f"--{marker}", action="store_true", help=f"also run the tests marked {marker}")


def planted(item: pytest.Item) -> int:
    """Return how many planted mistakes a test contains."""
    marker = item.get_closest_marker("planted")
    return 0 if marker is None else marker.args[0] if marker.args else 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of other tiers, and put the longest first."""
    summary = config.stash.setdefault(SUMMARY, {})
    selected, deselected = [], []
    for item in items:
        missing = [marker for marker in (*OPT_IN, FULL) if item.get_closest_marker(marker) and not config.getoption(marker)]
        for marker in missing:
            summary[marker] = summary.get(marker, 0) + 1
        (deselected if missing else selected).append(item)
    if deselected:
        config.hook.pytest_deselected(items=deselected)
    items[:] = sorted(selected, key=lambda item: FIRST not in item.path.parts)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash.setdefault(SUMMARY, {})["planted"] = sum(map(planted, session.items))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the counts from a worker of pytest-xdist to the process that prints them."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["summary"] = session.config.stash.get(SUMMARY, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[SUMMARY] = getattr(node, "workeroutput", {}).get("summary", {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    summary = dict(config.stash.get(SUMMARY, {}))
    terminalreporter.write_line(f"planted mistakes in the tests collected: {summary.pop('planted', 0)}")
    if summary:
        counts = ", ".join(f"{count} {marker} (run with --{marker})" for marker, count in summary.items())
        terminalreporter.write_line(f"left out: {counts}")
