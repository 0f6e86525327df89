"""The page of an experiment, as self-contained HTML and as Markdown: a pure function of experiment.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.experiments.page import experiment_charts, experiment_tables
from eval.experiments.page.experiment_tables import Result
from eval.pages.html_page import Block, LinedTable, Plots, Value, Verdict, Verdicts, render_page
from train.run.progress_display import short_number

LOOKS = {
    "reproduced": "good",
    "equivalent": "good",
    "contradicted": "bad",
    "not shown": "open",
}
"""Verdict -> its class in the style sheet; that of others is none."""
RULE = (
    "A claim is judged by a rule that was fixed before the first run: it holds if its p value, adjusted for all claims of the "
    "experiment (Holm), is at most 4%, and is contradicted if that of its opposite is at most 1%. Bounds are one-sided, at 95%, "
    "of a claim alone, on the side that decides. Detectable is the smallest difference (of an equivalence: the smallest margin) "
    "that this number of seeds finds in 80% of the cases. Rows that are no better than the control row are not compared."
)

FIT_RULE = (
    "A claim about the fit holds if at most 5% of 1,000 draws of the seeds speak against it, after Holm's correction, and is "
    "contradicted if 95% do. No budget may lack an inner minimum for the first claim to hold; the others, which are about the "
    "optima, are not testable if one does."
)
FORECAST = "Forecast before the first run:"
CURVES = "Thin lines are seeds, thick lines their mean, at the validations of each run."


def render_html(result: Result) -> str:
    """Return the page: one HTML file without network access and scripts, light and dark, for any state of the grid."""
    view = _view(result)
    paper, floors, figures = view["paper"], view["floors"], experiment_charts.curves(result)
    incidents = view["incidents"] or "No run failed, and nothing deviates from the registration."
    published = f"Paper: {paper}. Its numbers are of other sizes, data and metrics, and share no axis with those here."
    forest, forecasts = experiment_charts.forest(result), [_forecast(claim) for claim in view["claims"]]
    sections: dict[str, list[Block]] = {
        "Results": [
            view["budget"],
            view["results"],
            published if paper else "",
            f"Floors: {floors}." if floors else "",
            Plots(forest) if forest else "",
        ],
        "Curves": [CURVES, Plots(figures)] if figures else [],
        "Claims": [view["rule"], view["claims_table"], [*filter(None, forecasts)]],
        "Costs of a seed": [view["costs"]] if view["costs"].rows else [],
        "What differs": [view["options"], incidents],
        "Provenance": [view["provenance"], *([view["commands"]] if view["commands"].rows else [])],
    }
    footer = f"Made by zoo experiment {view['name']} from experiment.json."
    header = [view["source"], view["scale"], Verdicts([_verdict(claim) for claim in view["claims"]])]
    return render_page(view["title"], view["question"], sections, header=header, tiles=view["tiles"], footer=footer)


def _verdict(claim: Mapping[str, Any]) -> Verdict:
    reasons = f"{claim['numbers']} {claim['reason']}.".strip() + (f" {claim['notes']}." if claim["notes"] else "")
    remark = "exploratory: changed after the first run" if claim["exploratory"] else ""
    return Verdict(claim["verdict"], LOOKS.get(claim["verdict"], "none"), remark, claim["text"], reasons)


def _forecast(claim: Mapping[str, Any]) -> str:
    """Return a claim with its source and what was expected of it; "" if neither is registered."""
    source = f" ({claim['source']})" if claim.get("source") else ""
    forecast = f" {FORECAST} {claim['forecast']}" if claim["forecast"] else ""
    return f"{claim['statement'].rstrip('.')}{source}.{forecast}" if source or forecast else ""


def render_markdown(result: Result) -> str:
    """Return the page as Markdown, without drawings."""
    view = _view(result)
    parts = [f"# {view['title']}", view["question"], view["source"], view["scale"], "## Verdicts"]
    parts.append(
        "\n".join(
            f"- **{claim['mark']}**: {' '.join(filter(None, (claim['text'], claim['numbers'], claim['reason'])))}."
            for claim in view["claims"]
        )
    )
    parts += [
        "## Results",
        view["budget"],
        _markdown(view["results"]),
        "## Claims",
        view["rule"],
        _markdown(view["claims_table"]),
    ]
    parts += ["\n".join(f"- {c['statement'].rstrip('.')}. {FORECAST} {c['forecast']}" for c in view["claims"] if c["forecast"])]
    parts += ["## Costs", _markdown(view["costs"]), "## What differs", _markdown(view["options"])]
    parts += ["\n".join(f"- {line}" for line in view["incidents"]) or "No run failed and nothing deviates from the registration."]
    parts += ["## Provenance", "\n".join(f"- {name}: {value}" for name, value in view["provenance"].items())]
    parts += [_markdown(view["commands"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _view(result: Result) -> dict[str, Any]:
    """Return the text of all parts of the page."""
    registration, cells = result["registration"], result["cells"]
    done = sum(cell["status"] in ("done", "did not learn") for cell in cells)
    seeds = len(registration["seeds"])
    return {
        "name": result["name"],
        "title": f"Experiment {result['name']}",
        "question": result["question"],
        "source": f"Source: {result['source']}",
        "scale": result["scale"],
        "tiles": [
            (str(result.get("tier") or "-"), "tier"),
            (str(len(registration["rows"])), "rows"),
            (str(seeds), "seed" if seeds == 1 else "seeds"),
            (f"{done} of {len(cells)}", "runs done"),
            (str(result.get("date") or "-"), "date"),
        ],
        "claims": [_claim(claim) for claim in experiment_tables.joined_claims(result)],
        "results": experiment_tables.results(result),
        "claims_table": experiment_tables.claims_table(result),
        "costs": experiment_tables.costs(result),
        "options": experiment_tables.options(result),
        "incidents": experiment_tables.incidents(result),
        "provenance": experiment_tables.provenance(result),
        "commands": experiment_tables.commands(result),
        "budget": _budget(result),
        "paper": _sources(result.get("paper") or ()),
        "floors": _sources(result.get("floors") or ()),
        "rule": FIT_RULE if any(claim.get("test") == "bootstrap" for claim in result.get("claims") or ()) else RULE,
    }


def _claim(claim: Mapping[str, Any]) -> dict[str, Any]:
    """Return a claim with its verdict as text."""
    numbers = ""
    if claim["estimate"] is not None:
        numbers = f"Difference {experiment_tables.difference(claim, 'estimate')}"
        numbers += f", bound {experiment_tables.difference(claim, 'bound')}" if claim["bound"] is not None else ""
        numbers += f", n = {claim['n']};"
    mark = f"{claim['verdict']} (exploratory)" if claim["exploratory"] else claim["verdict"]
    notes = "; ".join(claim.get("notes") or ())
    return {
        **claim,
        "numbers": numbers,
        "mark": mark,
        "notes": notes,
        "statement": experiment_tables.statement(claim),
    }


def _budget(result: Result) -> str:
    """Return the rule of equal budgets and the budget of each row, as far as it is known."""
    budget = result.get("budget") or {}
    rule = str(budget.get("rule") or result["registration"].get("budget") or "").replace("_", " ").replace("flops", "FLOPs")
    amounts = {
        row: f"{value:.3g}".replace("e+", "e") if rule == "FLOPs" else short_number(value)
        for row, value in (budget.get("values") or {}).items()
        if value is not None
    }
    text = f"Budget: equal {rule}" if rule else ""
    if amounts:
        distinct = set(amounts.values())
        text += f"; {distinct.pop() if len(distinct) == 1 else ', '.join(f'{row} {amount}' for row, amount in amounts.items())}"
    return " ".join(filter(None, [f"{text}." if text else "", str(budget.get("note") or "")]))


def _sources(items: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(dict.fromkeys(str(item["source"]) for item in items if item.get("source")))


def _markdown(table: LinedTable) -> str:
    """Return a table as Markdown, with explanations of a value in parentheses after it."""
    if not table.rows:
        return ""

    def cell(lines: Sequence[str]) -> str:
        values: list[list[str]] = []
        for line in filter(None, lines):
            if not values or isinstance(line, Value):
                values.append([])
            values[-1].append(line)
        texts = [f"{first} ({'; '.join(more)})" if more else first for first, *more in values]
        return ", ".join(texts).replace("|", "\\|").replace("\n", " ")

    rows = [[cell([title]) for title in table.head], ["---" if i < table.words else "---:" for i in range(len(table.head))]]
    rows += [[cell(lines) for lines in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
