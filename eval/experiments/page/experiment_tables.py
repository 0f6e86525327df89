"""Tables on the page of an experiment, as text: results next to the paper's, claims, costs, differences and provenance."""

import json
import statistics as means
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from eval.experiments.analysis.seed_values import find_seed_metric, seed_values
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
    missing = dict.fromkeys(("estimate", "bound", "p", "p_holm", "rho", "mde"))
    missing |= {"verdict": NOT_JUDGED, "reason": "no run has been judged yet", "n": 0}
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
            "exploratory": claim["id"] in changed,
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


def results_table(result: Result) -> LinedTable:
    """Return the table of the rows: means over seeds, differences of the claims, and the paper's numbers."""
    registration, cells, claims = result["registration"], result["cells"], joined_claims(result)
    metrics = {claim["metric"]: find_seed_metric(claim["metric"], claim.get("better")) for claim in claims}
    published = {(item["row"], item["metric"]): item["value"] for item in result.get("paper") or ()}
    paper = list(dict.fromkeys(metric for _, metric in published))
    head, groups = ["Row"], [("", 1)]
    for metric, definition in metrics.items():
        head += [metric_title(metric, definition.better), "Difference"]
    groups += [("Here: mean and 95% interval over seeds", 2 * len(metrics))] if metrics else []
    groups += [("Paper, as published", len(paper))] if paper else []
    rows = []
    for row in registration["rows"]:
        name, label = row["name"], row.get("label") or row["name"]
        notes = [name] if name != label else []
        line: list[Sequence[str]] = [[label, *notes, *(["control"] if name == registration["control"] else [])]]
        for metric, definition in metrics.items():
            line.append(_mean(registration, cells, name, metric, definition))
            line.append([text for claim in claims if (claim["row"], claim["metric"]) == (name, metric) for text in _delta(claim)])
        line += [[f"{published[name, metric]:g}"] if (name, metric) in published else [] for metric in paper]
        rows.append(line)
    for floor in result.get("floors") or ():
        line = [[floor["name"], "floor"]]
        for metric, definition in metrics.items():
            line += [[definition.show(floor["value"])] if floor["metric"] == metric else [], []]
        rows += [line + [[] for _ in paper]] if floor["metric"] in metrics else []
    return LinedTable(head=[*head, *paper], rows=rows, groups=groups)


def _mean(registration: Result, cells: Sequence[Result], row: str, metric: str, definition: Metric) -> list[str]:
    """Return a mean with its interval, and how many seeds it has and how many learned."""
    seeds = seed_values(registration, cells, row, metric)
    planned, count = len(registration["seeds"]), len(seeds.values)
    if not count:
        return ["-", f"0 of {planned} seeds"]
    mean, half = mean_and_half_width(list(seeds.values.values()))
    notes = [f"{count} of {planned} seeds" if count < planned else f"{count} seed{'s' * (count != 1)}"]
    notes += [f"{seeds.learned} of {seeds.ended} learned"] if seeds.learned < seeds.ended else []
    return [format_with_error(mean, half) if half else definition.show(mean), *notes]


def _delta(claim: Mapping[str, Any]) -> list[str]:
    if claim["estimate"] is None:
        return []
    lines = [Value(difference_text(claim, "estimate")), f"to {claim['compared']}"]
    return lines if claim["bound"] is None else [*lines, f"bound {difference_text(claim, 'bound')}"]


def difference_text(claim: Mapping[str, Any], key: str) -> str:
    """Return an estimate or a bound of a claim as text, "" if there is none; the bound of an equivalence has no sign."""
    value, signed = claim[key], key == "estimate" or claim["kind"] != "equivalent"
    return "" if value is None else find_seed_metric(claim["metric"], claim.get("better")).show(value, "+" if signed else "")


def claims_table(result: Result) -> LinedTable:
    """Return the table of the claims: what was registered, and the numbers behind each verdict."""
    head = ["Claim", "Test", "Margin", "n", "Difference", "95% bound", "Adjusted p", "\N{GREEK SMALL LETTER RHO}"]
    head += ["Detectable", "Paper"]
    rows = []
    for claim in joined_claims(result):
        show, margin, paper = (
            find_seed_metric(claim["metric"], claim.get("better")).show,
            claim.get("margin"),
            claim.get("paper_difference"),
        )
        number = lambda key, form: "-" if claim[key] is None else format(claim[key], form)  # noqa: B023, E731
        test = claim.get("test") or ("tost" if claim["kind"] == "equivalent" else "welch")
        title = {"paired": "paired t", "welch": "Welch", "tost": "two one-sided"}.get(test, test)
        rows.append(
            [
                [
                    claim_statement(claim),
                    metric_title(claim["metric"], claim.get("better")),
                    f"{claim['verdict']}{', exploratory' if claim['exploratory'] else ''}",
                ],
                [title, "paired" if claim.get("paired") and test == "tost" else ""],
                [show(margin) if margin else "-"],
                [str(claim["n"])],
                [difference_text(claim, "estimate") or "-", *_parts(claim, show)],
                [difference_text(claim, "bound") or "-"],
                [number("p_holm", ".2g")]
                if claim["verdict"] != "contradicted" or claim.get("p_opposite_holm") is None
                else [number("p_opposite_holm", ".2g"), "of the opposite"],
                [number("rho", ".2f")],
                [show(claim["mde"]) if claim["mde"] is not None else "-"],
                [f"{paper:+g}" if paper is not None else "-"],
            ]
        )
    return LinedTable(head=head, rows=rows, words=2)


def _parts(claim: Mapping[str, Any], show: Callable[..., str]) -> list[str]:
    """Return the standard errors of a difference by what was sampled, if the outcomes of the items are known."""
    parts = claim.get("items")
    if not parts:
        return []
    return [
        f"error {show(parts['seed_error'])} over seeds",
        f"error {show(parts['item_error'])} over {parts['items']:,} items",
    ]


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
            rows.append(
                [[label if stage == next(iter(values)) else ""], [stage], *([_cost_text(key, of_stage[key])] for key in used)]
            )
        if len(values) > 1:
            sums = {key: _sum(key, [of_stage[key] for of_stage in values.values()]) for key in used}
            rows.append([[""], ["all stages"], *([_cost_text(key, sums[key])] for key in used)])
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
    return {name: "; ".join(values) for name, values in facts.items()}


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
    ]
    summary = "The command of each run; CORPUS and TASKS are the folders of --corpus and --tasks"
    return LinedTable(head=["Row", "Seed", "Stage", "Status", "Command"], rows=rows, words=5, summary=summary)
