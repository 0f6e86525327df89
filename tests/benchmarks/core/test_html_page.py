"""The page of benchmarks and plans: every kind of block, escaped, and nothing for what is empty."""

import pytest

from eval.pages.charts import Figure
from eval.pages.html_page import (
    Block,
    Cards,
    Cell,
    Examples,
    HeatMap,
    LinedTable,
    Plots,
    Sample,
    Table,
    Value,
    Verdict,
    Verdicts,
    render_page,
)

NASTY = "<i>'\"&\x00"
LONG = f"{NASTY}{'x' * 200} {'y' * 200}"
SHOWN = "&lt;i&gt;&#x27;&quot;&amp;\N{REPLACEMENT CHARACTER}"


def figure(label: str, across: bool = False) -> Figure:
    return Figure(NASTY, lambda axes: axes.plot([1, 2]), label, {NASTY: "one dots"}, across)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (NASTY, f"<p class=note>{SHOWN}</p>"),
        ([NASTY, "two"], f"<ul><li>{SHOWN}</li><li>two</li></ul>"),
        ({NASTY: 12345}, f"<tr><th scope=row>{SHOWN}</th><td>12,345</td></tr>"),
        (Table(("", NASTY), [(NASTY, 0.123456), ("", "")]), f"<tr><td>{SHOWN}</td><td class=number>0.1235</td></tr>"),
        (Table(("a",), [("b",)], summary=NASTY), f"<details><summary>{SHOWN}</summary><div class=scroll><table><thead>"),
        (
            HeatMap(("x",), [("y", [Cell("1", NASTY, "right", "--share:5%")])]),
            f'<td class=right style="--share:5%" title="{SHOWN}">',
        ),
        (Cards({NASTY: {"a": None}}), f"<h3>{SHOWN}</h3><table><tr><th scope=row>a</th><td>none</td></tr></table>"),
        (
            LinedTable((NASTY,), [([NASTY, NASTY, Value(NASTY)],)]),
            f"{SHOWN}<small>{SHOWN}</small><span class=value>{SHOWN}</span>",
        ),
        (HeatMap((NASTY,), [(NASTY, [Cell("", look="share")])], NASTY, dense=True), f"<th>{SHOWN}</th><th scope=col class=class"),
        (Sample(NASTY, [(NASTY, NASTY)]), f"<h3>{SHOWN}</h3><div dir=auto>{SHOWN}</div>"),
        (Sample(LONG, [("", "")], folded=True), f"{SHOWN}{'x' * 200} &hellip;</summary> {'y' * 200}</details>"),
        (Examples((NASTY, NASTY), [([NASTY], [NASTY])]), f'<td class=number data-name="{SHOWN}" dir=auto>{SHOWN}</td>'),
        (Verdicts([Verdict(NASTY, "bad", NASTY, NASTY, NASTY)]), f"<p>{SHOWN}</p><p class=why>{SHOWN}</p></li>"),
        (figure(NASTY, across=True), f'<figure class=lead-plot><figcaption><b>{SHOWN}</b><span class="key one dots">'),
        (Plots([figure("one"), figure("two")]), "<div class=plots><figure><figcaption>"),
    ],
)
def test_a_block_is_escaped(block: Block, expected: str) -> None:
    page = render_page(NASTY, NASTY, {NASTY: [block, ""], "empty": ["", [], {}]}, tiles=[(NASTY, NASTY)], footer=NASTY)
    assert expected in page and "<i>" not in page and "\x00" not in page
    frame = (f"<title>{SHOWN}</title>", f"<h2>{SHOWN}</h2>", f"<dt>{SHOWN}</dt><dd>{SHOWN}</dd>", f"<footer>{SHOWN}</footer>")
    assert all(part in page for part in frame) and "empty" not in page.partition("<main>")[2]
    assert page.count("<svg") == {Figure: 2, Plots: 2}.get(type(block), 0)
