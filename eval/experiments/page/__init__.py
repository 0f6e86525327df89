"""The page of an experiment, as self-contained HTML and as Markdown: a pure function of experiment.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.experiments.page import experiment_charts, experiment_tables
from eval.experiments.page.experiment_tables import Result
from eval.experiments.page.registration_edits import check_registration
from eval.pages import markdown_page
from eval.pages.html_page import Block, Plots, Verdict, Verdicts, render_page
from train.run.progress_display import short_number

LOOKS = {"reproduced": "good", "equivalent": "good", "contradicted": "bad", "not shown": "open"}
"""Verdict -> its class in the style sheet; that of others is none."""
RULE = (
    "A claim is judged by a rule that was fixed before the first run. Statements that a difference is above a limit have a level "
    "of 2.5% over all claims of the experiment (Holm), and so have statements that it is below one: a page with any false "
    "verdict has a chance of at most 5%. If seeds did not learn, diverged or failed, the shares of seeds that learned are "
    "compared and not the means. Bounds are the ends of two-sided 95% intervals, of a claim alone. Detectable is the smallest "
    "difference (of an equivalence: the smallest margin) that this number of seeds finds in 80% of the cases."
)

FIT_RULE = (
    "A claim about the fit holds if at most 5% of 1,000 draws of the seeds speak against it, after Holm's correction, and is "
    "contradicted if 95% do. No budget may lack an inner minimum for the first claim to hold; the others, which are about the "
    "optima, are not testable if one does."
)
CURVES = "Thin lines are seeds, thick lines their mean, at the validations of each run."


def render_html(result: Result) -> str:
    """Return the page: one HTML file without network access and scripts, light and dark, for any state of the grid.

    Raises:
        BadInput: the registration in experiment.json was edited.
    """
    check_registration(result)
    footer = f"Made by zoo experiment {result['name']} from experiment.json."
    header = [f"Source: {result['source']}", result["scale"], _verdicts(result)]
    return render_page(_title(result), result["question"], _sections(result), header=header, tiles=_tiles(result), footer=footer)


def render_markdown(result: Result) -> str:
    """Return the page as Markdown, without drawings; see `render_html`."""
    check_registration(result)
    paragraphs = [result["question"], f"Source: {result['source']}", result["scale"]]
    return markdown_page.render_markdown(_title(result), paragraphs, {"Verdicts": [_verdicts(result)], **_sections(result)})


def _title(result: Result) -> str:
    return f"Experiment {result['name']}"


def _tiles(result: Result) -> list[tuple[str, str]]:
    registration, cells = result["registration"], result["cells"]
    done = sum(cell["status"] == "done" for cell in cells)
    seeds = len(registration["seeds"])
    return [
        (str(result.get("tier") or "-"), "tier"),
        (str(len(registration["rows"])), "rows"),
        (str(seeds), "seed" if seeds == 1 else "seeds"),
        (f"{done} of {len(cells)}", "runs done"),
        (str(result.get("date") or "-"), "date"),
    ]


def _verdicts(result: Result) -> Verdicts:
    """Return each claim with its verdict and the numbers behind it."""
    items = []
    for claim in experiment_tables.joined_claims(result):
        numbers = ""
        if claim["estimate"] is not None:
            bound = f", bound {experiment_tables.difference_text(claim, 'bound')}" if claim["bound"] is not None else ""
            numbers = f"Difference {experiment_tables.difference_text(claim, 'estimate')}{bound}, n = {claim['n']}; "
        notes = f" {'; '.join(claim['notes'])}." if claim.get("notes") else ""
        remark = "exploratory" if claim["exploratory"] else ""
        reason = f"{numbers}{claim['reason']}.{notes}"
        items.append(Verdict(claim["verdict"], LOOKS.get(claim["verdict"], "none"), remark, claim["text"], reason))
    return Verdicts(items)


def _sections(result: Result) -> dict[str, list[Block]]:
    """Return the sections of both forms of the page."""
    bootstrap = any(claim.get("test") == "bootstrap" for claim in result.get("claims") or ())
    paper, floors = (_sources(result.get(name) or ()) for name in ("paper", "floors"))
    published = f"Paper: {paper}. Its numbers are of other sizes, data and metrics, and share no axis with those here."
    return {
        "Results": [
            _budget(result),
            experiment_tables.results_table(result),
            published if paper else "",
            f"Floors: {floors}." if floors else "",
            Plots(experiment_charts.forest_plot(result)),
        ],
        "Curves": [Plots(experiment_charts.validation_curves(result), CURVES)],
        "Claims": [FIT_RULE if bootstrap else RULE, experiment_tables.claims_table(result), _forecasts(result)],
        "Costs of a seed": [experiment_tables.costs_table(result)],
        "What differs": [
            experiment_tables.options_table(result),
            experiment_tables.incident_lines(result) or "No run failed, and nothing deviates from the registration.",
        ],
        "Provenance": [experiment_tables.provenance_table(result), experiment_tables.command_lines(result)],
    }


def _forecasts(result: Result) -> list[str]:
    """Return the claims with their sources and what was expected of them, if that is registered."""
    lines = []
    for claim in experiment_tables.joined_claims(result):
        source = f" ({claim['source']})" if claim.get("source") else ""
        forecast = f" Forecast before the first run: {claim['forecast']}" if claim["forecast"] else ""
        if source or forecast:
            lines.append(f"{experiment_tables.claim_statement(claim).rstrip('.')}{source}.{forecast}")
    return lines


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
