"""Tables on the page of an experiment, as text: results next to the paper's, claims, costs, differences and provenance."""

import dataclasses
import json
import statistics as means
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from eval.experiments.analysis.seed_values import SeedValues, find_seed_metric, row_seeds, seed_values
from eval.experiments.analysis.significance_tests import mean_and_half_width
from eval.experiments.analysis.verdicts import claim_references
from eval.experiments.page.registration_edits import edit_lines, registration_facts
from eval.pages.html_page import LinedTable, Value
from eval.pages.value_text import format_with_error
from train.run.metric_definitions import Metric
from train.run.progress_display import format_duration, short_number

Result = Mapping[str, Any]
"""The content of experiment.json."""
NOT_JUDGED = "not judged"
"""Verdict of a claim that has no entry yet."""
ARROWS = {"lower": "\N{DOWNWARDS ARROW}", "higher": "\N{UPWARDS ARROW}", None: ""}
SIGNS = {"less": "<", "greater": ">", "equivalent": "\N{IDENTICAL TO}"}
TESTS = {"paired": "paired t", "welch": "Welch", "tost": "two one-sided", "fisher": "Fisher's exact", "rates": "t of the shifts"}
"""Name of a test in an entry -> its title; other names are their own."""
COSTS = {
    "input_tokens": "input tokens",
    "text_tokens": "text tokens",
    "predictions": "predictions",
    "bytes": "bytes of text",
    "flops": "FLOPs",
    "seconds": "time",
    "peak_bytes": "peak memory",
}
"""Key of a cost -> its title."""


def row_names(result: Result) -> dict[str, str]:
    """Return the names of rows as they are written; cells that all rows share have the name ""."""
    return {"": "all rows"} | {row["name"]: row["name"] for row in result["registration"]["rows"]}


def joined_claims(result: Result) -> list[dict[str, Any]]:
    """Return each registered or later claim with the fields of its entry, edits included; a claim without one is not judged."""
    entries = {entry["id"]: entry for entry in result.get("claims") or ()}
    missing = dict.fromkeys(("estimate", "bound", "interval", "p", "p_holm", "rho", "mde", "power", "outcome", "shares", "floor"))
    missing |= {"verdict": NOT_JUDGED, "reason": "no run has been judged yet", "n": 0, "metrics": ()}
    registration = result["registration"]
    registered = {claim["id"] for claim in registration["claims"]}
    # The entry of a claim that was added later has its declaration.
    added = [entry for name, entry in entries.items() if name not in registered and "text" in entry]
    changed, forecast = set(registration.get("changed") or ()), registration.get("forecast") or {}
    return [
        {
            **missing,
            **claim,
            **{key: value for key, value in entries.get(claim["id"], {}).items() if key != "reference"},
            "compared": entries.get(claim["id"], {}).get("reference") or next(iter(claim_references(claim)), ""),
            "exploratory": claim["id"] in changed or bool(entries.get(claim["id"], {}).get("exploratory")),
            "forecast": forecast.get(claim["id"], ""),
        }
        for claim in [*registration["claims"], *added]
    ]


def metric_title(metric: str, better: str | None = None) -> str:
    """Return the label of a metric with its stage, and an arrow towards better values."""
    definition = find_seed_metric(metric, better)
    return f"{definition.title}, {metric.partition('/')[0]} {ARROWS[definition.better]}".rstrip()


def claim_statement(claim: Mapping[str, Any]) -> str:
    """Return what a claim says about the rows, as "dynamic < static"; its text if it names no references."""
    others = ", ".join(claim_references(claim))
    return f"{claim['row']} {SIGNS[claim['kind']]} {others}" if others else str(claim["text"])


def measured_claims(result: Result) -> list[dict[str, Any]]:
    """Return the claims of `joined_claims` once for each of their metrics, with the numbers and the verdict in that metric."""
    measured = []
    for claim in joined_claims(result):
        of_metric = {item["metric"]: item for item in claim["metrics"] or ()}
        measured.append(claim | of_metric.pop(claim["metric"], {}))
        measured += [claim | {"margin": claim.get("second_margin"), "bound": None} | item for item in of_metric.values()]
    return measured


def judged_metrics(result: Result) -> dict[str, Metric]:
    """Return the metrics that claims are judged by, with their definitions."""
    metrics = {claim["metric"]: find_seed_metric(claim["metric"], claim.get("better")) for claim in measured_claims(result)}
    # The accuracies of a published table are shares or percentages, so that they are not drawn in points.
    return {name: dataclasses.replace(item, format=".5g") for name, item in metrics.items()} if "table" in result else metrics


def stuck_seeds(result: Result, metric: str, seeds: SeedValues) -> set[int]:
    """Return the seeds of a row that did not learn, by their status, or by the floor and the margin of a claim about it."""
    stuck = set(seeds.stuck)
    for claim in joined_claims(result):
        if claim["metric"] == metric and claim["floor"] and seeds.row in (claim["row"], *claim_references(claim)):
            sign = 1 if find_seed_metric(metric, claim.get("better")).better == "higher" else -1
            limit = claim["floor"]["value"] + sign * (claim.get("margin") or 0)
            stuck |= {seed for seed, value in seeds.values.items() if not sign * (value - limit) > 0}
    return stuck


def results_table(result: Result) -> LinedTable:
    """Return the table of the rows: means over seeds, differences of the claims, and the paper's numbers."""
    registration, claims = result["registration"], measured_claims(result)
    metrics = judged_metrics(result)
    published = {(item["row"], item["metric"]): item["value"] for item in result.get("paper") or ()}
    paper = list(dict.fromkeys(metric for _, metric in published))
    head, groups = ["Row"], [("", 1)]
    for metric, definition in metrics.items():
        head.append(metric_title(metric, definition.better))
    groups += [("Here", len(metrics))] if metrics else []
    groups += [("Paper, as published", len(paper))] if paper else []
    rows = []
    for row in registration["rows"]:
        name, label = row["name"], row.get("label") or row["name"]
        notes = [name] if name != label else []
        line: list[Sequence[str]] = [[label, *notes, *(["control"] if name == registration["control"] else [])]]
        for metric, definition in metrics.items():
            deltas = [text for claim in claims if (claim["row"], claim["metric"]) == (name, metric) for text in _delta(claim)]
            line.append([*_mean(result, name, metric, definition), *deltas])
        line += [[f"{published[name, metric]:g}"] if (name, metric) in published else [] for metric in paper]
        rows.append(line)
    for floor in result.get("floors") or ():
        line = [[floor["name"], "floor"]]
        for metric, definition in metrics.items():
            line.append([definition.show(floor["value"])] if floor["metric"] == metric else [])
        rows += [line + [[] for _ in paper]] if floor["metric"] in metrics else []
    names = [*head, *(f"{metric}, paper" for metric in paper)]
    return LinedTable(head=[*head, *paper], rows=rows, groups=groups, names=names)


def _mean(result: Result, row: str, metric: str, definition: Metric) -> list[str]:
    """Return a mean with its interval, and how many seeds it has and how many learned."""
    registration = result["registration"]
    seeds = seed_values(registration, result["cells"], row, metric)
    planned, count = len(row_seeds(registration, row)), len(seeds.values)
    if not count:
        return ["-", f"0 of {planned} seeds"]
    mean, half = mean_and_half_width(list(seeds.values.values()))
    notes = [f"{count} of {planned} seeds" if count < planned else f"{count} seed{'s' * (count != 1)}"]
    learned = len(seeds.values.keys() - stuck_seeds(result, metric, seeds))
    notes += [f"{learned} of {seeds.ended} learned"] if learned < seeds.ended else []
    return [format_with_error(mean, half) if half else definition.show(mean), *notes]


def _delta(claim: Mapping[str, Any]) -> list[str]:
    if claim["estimate"] is None:
        return []
    line = Value(f"{difference_text(claim, 'estimate')} to {claim['compared']}")
    if claim["interval"]:
        return [line, interval_text(claim)]
    return [line] if claim["bound"] is None else [line, f"bound {difference_text(claim, 'bound')}"]


def interval_text(claim: Mapping[str, Any]) -> str:
    """Return the two-sided 95% interval of a claim's difference, "" if there is none."""
    show = find_seed_metric(claim["metric"], claim.get("better")).show
    return " to ".join(show(end, "+") for end in claim["interval"] or ())


def share_lines(claim: Mapping[str, Any]) -> list[str]:
    """Return how many seeds learned on each side of a claim, with the 95% interval of their share (Clopper-Pearson)."""
    sides = claim["shares"] or {}
    return [
        f"{name} {share['learned']} of {share['seeds']} ({share['low']:.0%} to {share['high']:.0%})"
        for name, share in ((claim["row" if side == "row" else "compared"], share) for side, share in sides.items())
    ]


def difference_text(claim: Mapping[str, Any], key: str) -> str:
    """Return an estimate or a bound of a claim as text, "" if there is none; the bound of an equivalence has no sign."""
    value, signed = claim[key], key == "estimate" or claim["kind"] != "equivalent"
    return "" if value is None else find_seed_metric(claim["metric"], claim.get("better")).show(value, "+" if signed else "")


def claims_table(result: Result) -> LinedTable:
    """Return the table of the claims: what was registered, and the numbers behind each verdict."""
    head = ["Claim", "Test", "Margin", "n", "Difference", "95% bound", "Adjusted p", "\N{GREEK SMALL LETTER RHO}"]
    return LinedTable(head=[*head, "Detectable", "Paper"], rows=[_claim_row(claim) for claim in joined_claims(result)], words=2)


def _claim_row(claim: Mapping[str, Any]) -> list[list[str]]:
    show, paper = find_seed_metric(claim["metric"], claim.get("better")).show, claim.get("paper_difference")
    test = claim.get("test") or ("tost" if claim["kind"] == "equivalent" else "welch")
    adjusted, of_opposite = claim["p_holm"], claim["verdict"] == "contradicted" and claim.get("p_opposite_holm") is not None
    if of_opposite:
        adjusted = claim["p_opposite_holm"]
    title = metric_title(claim["metric"], claim.get("better"))
    verdict = f"{claim['verdict']}{', exploratory' if claim['exploratory'] else ''}"
    return [
        [claim_statement(claim), title, verdict],
        [TESTS.get(test, test), "paired" if claim.get("paired") and test == "tost" else ""],
        [show(claim["margin"]) if claim.get("margin") else "-"],
        [str(claim["n"]), *_learned(claim)],
        [difference_text(claim, "estimate") or "-", interval_text(claim), *_errors(claim, show)],
        [difference_text(claim, "bound") or "-"],
        ["-" if adjusted is None else f"{adjusted:.2g}", "of the opposite" if of_opposite else ""],
        ["-" if claim["rho"] is None else f"{claim['rho']:.2f}"],
        [
            "-" if claim["mde"] is None else show(claim["mde"]),
            "" if claim["power"] is None else f"power {claim['power']:.0%}",
        ],
        [f"{paper:+g}" if paper is not None else "-"],
    ]


def _learned(claim: Mapping[str, Any]) -> list[str]:
    """Return how many seeds of row and reference learned, unless all did."""
    shares = [(claim["shares"] or {}).get(side) for side in ("row", "reference")]
    if all(share is None or share["learned"] == share["seeds"] for share in shares):
        return []
    row, reference = (f"{share['learned']} of {share['seeds']}" if share else "-" for share in shares)
    return [f"{row} learned", f"reference {reference}"]


def _errors(claim: Mapping[str, Any], show: Callable[..., str]) -> list[str]:
    """Return the standard errors of a difference by what was sampled, if the outcomes of the items are recorded."""
    items = claim.get("items") or {}
    of_seeds, of_items = (items.get(name, claim.get(name)) for name in ("seed_error", "item_error"))
    lines = [] if of_seeds is None else [f"error {show(of_seeds)} over seeds"]
    if of_items is not None:
        lines.append(f"error {show(of_items)} over {items['items']:,} items" if items else f"error {show(of_items)} over items")
    return [*lines, f"{items['different']} of {items['seeds']} seeds differ (McNemar)"] if "different" in items else lines


def domains_table(result: Result) -> LinedTable:
    """Return the difference of each claim in each domain of its held-out items; without rows if no claim has domains."""
    items = {(item["row"], item["reference"], item["metric"]): item.get("domains") or () for item in result.get("items") or ()}
    claims = [(claim, items.get((claim["row"], claim["compared"], claim["metric"]), ())) for claim in measured_claims(result)]
    names = sorted({entry["domain"] for _, domains in claims for entry in domains})
    rows = []
    for claim, domains in claims:
        of_domain = {
            entry["domain"]: [*_delta({**claim, **entry, "bound": None}), f"{entry['items']:,} items"] for entry in domains
        }
        if of_domain:
            title = metric_title(claim["metric"], claim.get("better"))
            rows.append([[claim_statement(claim), title], *(of_domain.get(name, ["-"]) for name in names)])
    return LinedTable(head=["Claim", *names], rows=rows)


def pilot_table(result: Result) -> LinedTable:
    """Return what the pilot found: the values of each row at each learning rate, the chosen one, and the deviation over seeds."""
    pilot, rows = result["registration"].get("pilot") or {}, []
    for name, facts in (pilot.get("rows") or {}).items():
        show, chosen = find_seed_metric(facts["metric"]).show, f"{facts['factor']:g}"
        values = [
            f"{', '.join(map(show, of_factor))} at {factor}{' (chosen)' * (factor == chosen and len(facts['values']) > 1)}"
            for factor, of_factor in facts["values"].items()
        ]
        deviations = [f"{sd:.3g} in {metric}" for metric, sd in facts["sd"].items() if sd is not None]
        rows.append([[name], [facts["metric"]], ["; ".join(values)], ["; ".join(deviations)]])
    head = ["Row", "Metric", "Values of the pilot's seeds, by the factor of the rate", "Standard deviation"]
    return LinedTable(head=head, rows=rows)


def costs_table(result: Result) -> LinedTable:
    """Return the mean costs of a seed in each stage and in sum, for the costs that are recorded."""
    cells, names = result["cells"], row_names(result)
    used = [key for key in COSTS if any((cell.get("costs") or {}).get(key) is not None for cell in cells)]
    rows = []
    for name, label in names.items():
        stages: dict[str, list[Result]] = {}
        for cell in cells:
            if cell["row"] == name and cell.get("costs"):
                stages.setdefault(cell["stage"], []).append(cell["costs"])
        values = {stage: {key: _cost(items, key) for key in used} for stage, items in stages.items()}
        for stage, of_stage in values.items():
            rows.append([[label], [stage], *([_cost_text(key, of_stage[key])] for key in used)])
        if len(values) > 1:
            sums = {key: _sum(key, [of_stage[key] for of_stage in values.values()]) for key in used}
            rows.append([[label], ["all stages"], *([_cost_text(key, sums[key])] for key in used)])
    return LinedTable(head=["Row", "Stage", *(COSTS[key] for key in used)], rows=rows, words=2) if used else LinedTable([], [])


def _cost(items: Sequence[Result], key: str) -> float | None:
    values = [item[key] for item in items if item.get(key) is not None]
    return means.fmean(values) if values else None


def _sum(key: str, values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return (max if key == "peak_bytes" else sum)(present) if present else None


def _cost_text(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key == "seconds":
        return format_duration(value)
    if key == "peak_bytes":
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:.2e}".replace("e+", "e") if key == "flops" else short_number(value)


def options_table(result: Result) -> LinedTable:
    """Return the options of each row that are not the same in all rows."""
    rows = result["registration"]["rows"]
    of_rows = [_flat_options(row) for row in rows]
    keys = dict.fromkeys(key for flat in of_rows for key in flat)
    differing = [key for key in keys if len({json.dumps(flat.get(key), sort_keys=True) for flat in of_rows}) > 1]
    lines = [[Value(f"{key} {_value(flat[key])}".strip()) for key in differing if key in flat] for flat in of_rows]
    if not any(of_rows):
        return LinedTable([], [])  # the options of a published table are not known
    return LinedTable(
        head=["Row", "Options that are not the same in all rows"],
        rows=[[[row["name"]], line or ["none"]] for row, line in zip(rows, lines, strict=True)],
        words=2,
    )


def _flat_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return "stage: option" -> value; a stage has a recipe or a task, and its options."""
    flat: dict[str, Any] = {}
    for stage, entry in (row.get("stages") or {}).items():
        entry = entry if isinstance(entry, Mapping) else {}
        flat |= {f"{stage}: {key}": entry[key] for key in ("recipe", "task") if key in entry} or {f"{stage}:": "own stage"}
        flat |= {f"{stage}: {key}": value for key, value in (entry.get("options") or {}).items()}
    return flat


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def incident_lines(result: Result) -> list[str]:
    """Return lines for the runs of a row that are not done, unless a deviation names them, changed claims, and deviations."""
    names, groups = row_names(result), {}
    for cell in result["cells"]:
        if cell["status"] != "done" and not any(cell["run"] in line for line in result.get("deviations") or ()):
            groups.setdefault((cell["row"], cell["stage"], cell["status"]), []).append(cell["seed"])
    lines = [
        f"{names.get(row, row)}, {stage}: seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))} {status}."
        for (row, stage, status), seeds in groups.items()
    ]
    return [*lines, *edit_lines(result["registration"]), *(result.get("deviations") or ())]


def provenance_table(result: Result) -> dict[str, str]:
    """Return the facts about code, machines and data, each with all its values."""
    registered = registration_facts(result["registration"])
    facts: dict[str, dict[str, None]] = {name: {text: None} for name, text in registered.items()}
    for cell in result["cells"]:
        origin = {key: value for key, value in (cell.get("provenance") or {}).items() if value not in (None, "", {}, [])}
        dirty = origin.pop("dirty", False)
        for name, value in origin.items():
            text = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, Mapping) else str(value)
            text += " with changes that are not committed" if name == "commit" and dirty else ""
            facts.setdefault(name, {})[text] = None
        for name, digest in (cell.get("fingerprints") or {}).items():
            facts.setdefault(f"{name} of {cell['stage']}", {})[str(digest)] = None
    command = {"command": result["command"]} if result.get("command") else {}
    return command | {name: "; ".join(values) for name, values in facts.items()}


def command_lines(result: Result) -> LinedTable:
    """Return the command of each run and evaluation."""
    names = row_names(result)
    rows = [
        [
            [names.get(cell["row"], cell["row"])],
            [str(cell["seed"])],
            [cell["stage"]],
            [cell["status"]],
            [cell.get("command") or "-"],
        ]
        for cell in result["cells"]
        if "table" not in result
    ]
    summary = "The command of each run; CORPUS and TASKS are the folders of --corpus and --tasks"
    return LinedTable(head=["Row", "Seed", "Stage", "Status", "Command"], rows=rows, words=5, summary=summary)
