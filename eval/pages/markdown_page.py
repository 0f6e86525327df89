"""A page as Markdown, from the same blocks as its HTML."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.pages.html_page import Block, LinedTable, Prose, Sections, Table, Value, Verdicts
from eval.pages.value_text import cell_text


def render_markdown(title: str, paragraphs: Sequence[str], sections: Sections) -> str:
    """Return a page as Markdown. Blocks without a textual form, such as drawings, and empty sections are left out."""
    parts = [f"# {title}", *paragraphs]
    for heading, blocks in sections.items():
        if texts := [text for block in blocks if block and (text := block_markdown(block))]:
            parts += [f"## {heading}", *texts]
    return "\n\n".join(filter(None, parts)) + "\n"


def block_markdown(block: Block) -> str:
    """Return a block as Markdown; "" if it has no textual form."""
    if isinstance(block, str):
        return block
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Prose):
        return block.text.strip()
    if isinstance(block, Verdicts):
        lines = []
        for item in block.items:
            mark = f"{item.verdict} ({item.remark})" if item.remark else item.verdict
            lines.append(f"**{mark}**: {item.text} {item.reason}")
        return _list(lines)
    if isinstance(block, Mapping):
        return _list([f"{name}: {value}" for name, value in block.items()])
    return _list(block) if isinstance(block, Sequence) else ""


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(table: Table) -> str:
    """Return a table, with columns of numbers aligned to the right; "" if it has no rows."""
    text = _lines_text if isinstance(table, LinedTable) else cell_text
    rows = [[text(value) for value in row] for row in table.rows]
    if not rows:
        return ""
    rule = [*["---"] * table.words, *["---:"] * (len(table.head) - table.words)]
    lines = [table.head, rule, *rows]
    return "\n".join(f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split()) for cell in line)} |" for line in lines)


def _lines_text(lines: Sequence[Any]) -> str:
    """Return the lines of a cell, with explanations of a value in parentheses after it."""
    values: list[list[str]] = []
    for line in filter(None, lines):
        if not values or isinstance(line, Value):
            values.append([])
        values[-1].append(line)
    return ", ".join(f"{first} ({'; '.join(more)})" if more else first for first, *more in values)
