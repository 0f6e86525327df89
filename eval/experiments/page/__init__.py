"""The page of an experiment, as self-contained HTML and as Markdown: a pure function of experiment.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.experiments.analysis.verdicts import claim_references
from eval.experiments.page import experiment_charts, experiment_tables, rate_charts, scaling_charts, seed_charts
from eval.experiments.page.experiment_tables import Result
from eval.experiments.page.registration_edits import check_registration
from eval.pages import markdown_page
from eval.pages.html_page import Block, Plots, Prose, Verdict, Verdicts, render_page
from train.run.progress_display import short_number

RULE = (
    "Reproduced: the difference has the direction of the "
    "claim and is beyond its margin. Direction only: it has the direction, and the margin is not shown. Equivalent: it is "
    "within the margin. Contradicted: it has the opposite direction, or of an equivalence is beyond the margin. Not shown: "
    "none of these. Depends on the metric: the verdicts by the two metrics of the claim disagree. If a seed did not learn, "
    "diverged or failed, the shares of seeds that learned are compared by Fisher's exact test, and not the means. Not "
    "testable: no seed of either side learned, or the runs cannot answer the question. All statements that a difference is "
    "above a limit have a level of 2.5% over all claims of the experiment (Holm), and so have those that it is below one: a "
    "page with any false verdict has a chance of at most 5%. Intervals are two-sided, at 95%, of a claim alone; the bound is "
    "the end on the side that decides. Detectable is the smallest difference (of an equivalence: the smallest margin) that "
    "this number of seeds finds in 80% of the cases, and power the chance that it finds a difference as large as the margin."
)

REGISTERED = "A claim is judged by rules that were fixed before the first run."
UNREGISTERED = "A claim is judged by the rules of experiments, but it was written after the data were published."
FIT_RULE = (
    "Claims about a fit are judged by the same rules and levels as claims about rows. Errors are those of Student's t, from the "
    "noise of the seeds (of a cell the larger of its own and the pooled variance) and the lack of fit of the parabolas, carried "
    "to the exponent by its derivatives. A budget has an inner minimum if its parabola falls at the smallest size and rises at "
    "the largest, both at 2.5%."
)
RATE_RULE = (
    "Claims about best learning rates are judged by the same rules and levels as claims about rows. The best rate of a seed is "
    "the minimum of the parabola through the best registered rate and its neighbours, and its shift between two widths, in "
    "doublings, is tested by Student's t over the seeds."
)
NUMBERS = "Numbers here are means over seeds with 95% intervals, and the differences that claims are about."
SEEDS = (
    "Every dot is a run; seeds are in the same order from top to bottom in all rows. What is far outside is named at the edge."
)
DIFFERENCES = (
    "A difference is the mean of the row minus that of its reference: left of 0 the row is lower, whatever the claim says. A "
    "verdict also depends on the other claims (Holm), and so need not agree with an interval."
)
DOMAINS = (
    "The same differences by domain: the first word of the name of an item's file. Intervals are of the domain alone, and no "
    "verdict depends on them."
)
CURVES = "Thin lines are seeds, thick lines their mean, at the validations of each run."
OTHER_CURVES = "No claim is judged by these losses: they show whether the runs learned, and not which row is better."
INTERPRETATION = "Interpretation, written after the runs"


def render_html(result: Result) -> str:
    """Return the page: one HTML file without network access and scripts, light and dark, for any state of the grid.

    Raises:
        BadInput: the registration in experiment.json was edited.
    """
    check_registration(result)
    command = result.get("command") or f"zoo experiment {result['name']}"
    footer = f"Made from experiment.json, which this command writes: {command}"
    header = [f"Source: {result['source']}", result["scale"], _verdicts(result)]
    return render_page(_title(result), result["question"], _sections(result), header=header, tiles=_tiles(result), footer=footer)


def render_markdown(result: Result) -> str:
    """Return the page as Markdown, without drawings; see `render_html`."""
    check_registration(result)
    paragraphs = [result["question"], f"Source: {result['source']}", result["scale"]]
    return markdown_page.render_markdown(_title(result), paragraphs, {"Verdicts": [_verdicts(result)], **_sections(result)})


def _title(result: Result) -> str:
    return str(result.get("title") or f"Experiment {result['name']}")


def _tiles(result: Result) -> list[tuple[str, str]]:
    registration, cells = result["registration"], result["cells"]
    done = sum(cell["status"] == "done" for cell in cells)
    seeds = len(registration["seeds"])
    # A published table has no tier.
    return [
        *([] if "table" in result else [(str(result.get("tier") or "-"), "tier")]),
        (str(len(registration["rows"])), "rows"),
        (str(seeds), "seed" if seeds == 1 else "seeds"),
        (f"{done} of {len(cells)}", "runs done"),
        (str(result.get("date") or "-"), "date"),
    ]


def _verdicts(result: Result) -> Verdicts:
    """Return each claim with its verdict and the numbers behind it."""
    items = []
    for claim in experiment_tables.joined_claims(result):
        notes = f" {'; '.join(claim['notes'])}." if claim.get("notes") else ""
        remark = "exploratory" if claim["exploratory"] else ""
        reason = f"{' '.join((*_numbers(claim), claim['reason']))}.{notes}"
        look = seed_charts.LOOKS.get(claim["verdict"], "none")
        items.append(Verdict(claim["verdict"], look, remark, claim["text"], reason))
    return Verdicts(items)


def _numbers(claim: Mapping[str, Any]) -> list[str]:
    """Return what was measured for a claim: sentences on the difference, the shares of seeds that learned, and other metrics."""
    lines = []
    if claim["estimate"] is not None:
        name = "Difference" if claim_references(claim) else "Estimate"
        parts = [f"{name} {experiment_tables.difference_text(claim, 'estimate')}"]
        if claim["interval"]:
            parts.append(f"95% interval {experiment_tables.interval_text(claim)}")
        elif claim["bound"] is not None:
            parts.append(f"bound {experiment_tables.difference_text(claim, 'bound')}")
        lines.append(f"{', '.join(parts)}, n = {claim['n']};")
    if claim["outcome"] == "shares":
        lines.append(f"shares of seeds that learned: {', '.join(experiment_tables.share_lines(claim))};")
    for item in claim["metrics"] if len(claim["metrics"] or ()) > 1 else ():
        measured = {**claim, **item}
        interval = f" ({experiment_tables.interval_text(measured)})" if item.get("interval") else ""
        difference = experiment_tables.difference_text(measured, "estimate")
        lines.append(
            f"{experiment_tables.metric_title(item['metric'], claim.get('better'))}: {difference}{interval}, {item['verdict']};"
        )
    return lines


def _sections(result: Result) -> dict[str, list[Block]]:
    """Return the sections of both forms of the page."""
    tests = {claim.get("test") for claim in result.get("claims") or ()}
    paper, floors = (_sources(result.get(name) or ()) for name in ("paper", "floors"))
    published = f"Paper: {paper}. Its numbers are of other sizes, data and metrics, and share no axis with those here."
    domains = experiment_tables.domains_table(result)
    measured_once = [] if "table" in result else experiment_charts.metrics_without_curves(result)
    return {
        INTERPRETATION: [Prose(str(result.get("interpretation") or ""))],
        "Results": [
            _budget(result),
            NUMBERS,
            experiment_tables.results_table(result),
            published if paper else "",
            f"Floors: {floors}." if floors else "",
            Plots(seed_charts.seed_strips(result), SEEDS),
            Plots(seed_charts.difference_plots(result), DIFFERENCES),
            DOMAINS if domains.rows else "",
            domains,
        ],
        "Optimal sizes": scaling_charts.scaling_blocks(result),
        "Best learning rates": rate_charts.rate_blocks(result),
        "Curves": [
            Plots(experiment_charts.judged_curves(result), CURVES),
            f"Measured at the end of the runs alone: {'; '.join(measured_once)}." if measured_once else "",
        ],
        "Curves of other losses": [Plots(experiment_charts.other_curves(result), f"{OTHER_CURVES} {CURVES}")],
        "Claims": [
            FIT_RULE if "fit" in tests else RATE_RULE if "rates" in tests else f"{_start_of_rule(result)} {RULE}",
            experiment_tables.claims_table(result),
            _forecasts(result),
        ],
        "Pilot": [experiment_tables.pilot_table(result)],
        "Costs of a seed": [experiment_tables.costs_table(result)],
        "What differs": [
            experiment_tables.options_table(result),
            experiment_tables.incident_lines(result) or "No run failed, and nothing deviates from the registration.",
        ],
        "Provenance": [experiment_tables.provenance_table(result), experiment_tables.command_lines(result)],
    }


def _start_of_rule(result: Result) -> str:
    return UNREGISTERED if "table" in result and "hash" not in result["registration"] else REGISTERED


def _forecasts(result: Result) -> list[str]:
    """Return the claims with their sources and what was expected of them, if that is registered, before and after edits."""
    lines, edits = [], result["registration"].get("edits") or ()
    for claim in experiment_tables.joined_claims(result):
        source = f" ({claim['source']})" if claim.get("source") else ""
        edited = [edit for edit in edits if (edit["claim"], edit["field"]) == (claim["id"], "forecast")]
        first = edited[0]["before"] if edited else claim["forecast"]
        sentences = [f"{experiment_tables.claim_statement(claim)}{source}"]
        sentences += [f"Forecast before the first run: {first}"] if first else []
        sentences += [f"Forecast as edited on {edit['date']}, after the first run: {edit['now']}" for edit in edited]
        if source or len(sentences) > 1:
            lines.append(" ".join(f"{str(sentence).rstrip('.')}." for sentence in sentences))
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
