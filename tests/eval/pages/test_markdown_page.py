"""Pages as Markdown: each block with a textual form, and nothing for drawings and for what is empty."""

import pytest

from eval.pages.charts import Figure
from eval.pages.html_page import Block, LinedTable, Plots, Table, Value, Verdict, Verdicts
from eval.pages.markdown_page import block_markdown, render_markdown


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("a paragraph", "a paragraph"),
        (["one", "two"], "- one\n- two"),
        ({"commit": "1a2b"}, "- commit: 1a2b"),
        (Table(("name", "value"), [("a|b\nc", 12345), ("", 0.123456)]), "| --- | ---: |\n| a\\|b c | 12,345 |\n|  | 0.1235 |"),
        (LinedTable(("x",), [[["1", "mean", "5 seeds", Value("2"), ""]]]), "| 1 (mean; 5 seeds), 2 |"),
        (
            Verdicts([Verdict("shown", "good", "exploratory", "It is so.", "n = 3.")]),
            "- **shown (exploratory)**: It is so. n = 3.",
        ),
    ],
)
def test_a_block_has_a_textual_form(block: Block, expected: str) -> None:
    assert block_markdown(block).endswith(expected)


def test_drawings_empty_blocks_and_empty_sections_are_left_out() -> None:
    plots = Plots([Figure("title", lambda axes: None, "label")], note="drawn")
    page = render_markdown("Title", ["lead", ""], {"Drawn": [plots], "Empty": [Table((), []), ""], "Left": ["text"]})
    assert page == "# Title\n\nlead\n\n## Left\n\ntext\n"
