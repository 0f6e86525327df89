"""The page of a campaign, as HTML and as Markdown: a pure function of campaign.json."""

import statistics
from typing import Any

from eval.pages import markdown_page
from eval.pages.html_page import Block, Table, render_page

TITLE = "Fault campaign"
LEAD = (
    "Every fault of the matrix, tried for real and counted. A row passes if each of its trials has the expected outcome; its "
    "goal is the number of trials of the full campaign."
)
HEAD = ("Fault", "Expected", "Verdict", "Matrix", "Trials", "Goal", "Failed", "Seconds")


def summarize(values: list[float]) -> str:
    """Return the median and the largest of measured values."""
    return f"median {statistics.median(values):.3g}, largest {max(values):.3g} of {len(values)}"


def table(result: dict[str, Any]) -> Table:
    """Return the table of the rows of the campaign."""
    rows = [
        (
            *(row["name"], row["expected"], row["verdict"], ", ".join(map(str, row["matrix"]))),
            *(f"{row['count']:,}", f"{row['goal']:,}", row["failed"], f"{row['seconds']:.0f}"),
        )
        for row in result["rows"]
    ]
    return Table(HEAD, rows, words=4)


def details(row: dict[str, Any]) -> list[str]:
    """Return the lines about a row: why it was not run, what was measured, its trials by kind, and its failures."""
    lines = [row["reason"]] if row["reason"] else []
    lines += [f"{name}: {summarize(values)}" for name, values in row["measured"].items() if values]
    if len(row["parts"]) > 1:
        lines.append(", ".join(f"{name} {number:,}" for name, number in row["parts"].items()))
    return [*lines, *row["notes"], *(f"FAILED: {text}" for text in row["failures"])]


def totals(result: dict[str, Any]) -> str:
    """Return the result in a sentence."""
    verdicts = [row["verdict"] for row in result["rows"]]
    counts = ", ".join(f"{verdicts.count(name)} {name}" for name in dict.fromkeys(sorted(verdicts)))
    failed = sum(row["failed"] for row in result["rows"])
    return f"{len(verdicts)} rows: {counts}. {failed} trials failed."


def sections(result: dict[str, Any]) -> dict[str, list[Block]]:
    """Return the sections of both forms of the page."""
    return {
        "Rows": [totals(result), table(result)],
        **{row["name"]: [details(row)] for row in result["rows"]},
        "Machine": [result["machine"]],
    }


def render_markdown(result: dict[str, Any]) -> str:
    """Return the page as Markdown."""
    return markdown_page.render_markdown(TITLE, [LEAD], sections(result))


def render_html(result: dict[str, Any]) -> str:
    """Return the page as HTML, without network access and scripts."""
    passed = sum(row["verdict"].startswith("passed") for row in result["rows"])
    trials = sum(row["count"] for row in result["rows"])
    tiles = [(f"{passed} of {len(result['rows'])}", "rows passed"), (f"{trials:,}", "trials")]
    footer = f"python -m tests.campaign, seed {result['seed']}, {result['minutes']:g} minutes"
    return render_page(TITLE, LEAD, sections(result), tiles=tiles, footer=footer)
