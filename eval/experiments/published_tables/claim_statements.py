"""Claims about the rows of a table: statements on the command line, and JSON files with the fields of `Claim`."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.experiments.analysis.seed_values import find_seed_metric
from eval.experiments.declaration import Claim
from eval.experiments.published_tables.measurements import require_name
from zoo.errors import BadInput, no_such_file
from zoo.file_access import LARGEST_JSON, read_regular_text
from zoo.json_shapes import Number, shape_problem

SYNTAX = '"ROW < ROW on METRIC margin NUMBER better lower|higher", with <, > or =; margin and better may be left out'
STATEMENT = re.compile(
    r"\s*(?P<row>.+?)\s+(?P<sign>[<>=])\s+(?P<reference>.+?)\s+on\s+(?P<metric>.+?)"
    r"(?:\s+margin\s+(?P<margin>\S+))?(?:\s+better\s+(?P<better>lower|higher))?\s*"
)
KINDS = {"<": "less", ">": "greater", "=": "equivalent"}
STAGE = "table"
"""Stage of the metrics of a table, whose names have none."""
TEXTS = {"id?": str, "text?": str, "source?": str, "better?": str, "second_metric?": str}
NUMBERS = dict.fromkeys(("margin?", "paper_difference?", "pilot_deviation?", "second_margin?", "second_pilot_deviation?"), Number)
SHAPE = [{"kind": str, "metric": str, "row": str, "reference": (str, [str]), "paired?": bool, **TEXTS, **NUMBERS}]


def stage_metric(name: str) -> str:
    """Return the name of a metric as the judge needs it, "stage/score"; a metric of lm-eval has its task for a stage."""
    stage, _, score = name.partition("/")
    return name if stage and score else f"{STAGE}/{name}"


def parse_claim(text: str, *, paired: bool) -> Claim:
    """Return the claim of a statement such as "a < b on loss margin 0.01".

    Raises:
        BadInput: it has another form; shows the form.
    """
    parts = STATEMENT.fullmatch(text)
    if parts is None:
        raise BadInput(f"--claim {text!r}: write {SYNTAX}")
    try:
        margin = float(parts["margin"] or 0)
    except ValueError:
        raise BadInput(f"--claim {text!r}: margin {parts['margin']} is no number; write {SYNTAX}") from None
    words = {"kind": KINDS[parts["sign"]], "row": parts["row"], "reference": re.split(r"\s*,\s+", parts["reference"])}
    return _claim({**words, "metric": parts["metric"], "margin": margin, "better": parts["better"], "paired": paired})


def read_claims(file: Path, *, paired: bool) -> list[Claim]:
    """Return the claims of a JSON file: a list of objects with the fields of `Claim`.

    Raises:
        BadInput: it cannot be read, or has other content; names the place.
    """
    try:
        content = json.loads(read_regular_text(file, LARGEST_JSON))
    except FileNotFoundError:
        raise no_such_file(str(file), "--claims ") from None
    except OSError as error:
        raise BadInput(f"--claims {file}: cannot be read ({error.strerror}); name another file") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"--claims {file}: is invalid JSON ({error}); correct it") from None
    fields = [field.name for field in dataclasses.fields(Claim)]
    if problem := shape_problem(content, SHAPE):
        raise BadInput(f"--claims {file}: has unexpected content ({problem}); write a list of claims with {', '.join(fields)}")
    for number, claim in enumerate(content, 1):
        for name in claim:
            require_name(name, fields, f"--claims {file}: claim {number}, {name}", "field")
        if claim["kind"] not in KINDS.values():
            raise BadInput(f"--claims {file}: claim {number}, kind {claim['kind']}: choose less, greater or equivalent")
        if claim.get("better", "lower") not in ("lower", "higher"):
            raise BadInput(f"--claims {file}: claim {number}, better {claim['better']}: choose lower or higher")
    return [_claim({"paired": paired, **claim}) for claim in content]


def _claim(values: Mapping[str, Any]) -> Claim:
    references = values["reference"]
    references = (references,) if isinstance(references, str) else tuple(references)
    sign = next(sign for sign, kind in KINDS.items() if kind == values["kind"])
    text = f"{values['row']} {sign} {', '.join(references)} on {values['metric']}"
    second = values.get("second_metric")
    changed = {"reference": references, "metric": stage_metric(values["metric"])}
    changed |= {"second_metric": stage_metric(second)} if second else {}
    return Claim(**{"id": text, "text": f"{text}.", "source": "", "margin": 0.0, **values, **changed})


def check_claims(claims: Sequence[Claim], values: Mapping[str, set[str]]) -> None:
    """Refuse claims that a table cannot answer because of their names, references, margins or metrics.

    Args:
        values: row -> its metrics.

    Raises:
        BadInput: names the claim; of an unknown row or metric, the nearest.
    """
    if not claims:
        raise BadInput(f"--claim: state at least one claim: {SYNTAX}")
    names = [claim.id for claim in claims]
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise BadInput(f'claim "{twice[0]}": it is stated twice; leave one out, since each p value is adjusted for their number')
    for claim in claims:
        start = f'claim "{claim.id}"'
        if not claim.reference:
            raise BadInput(f"{start}: reference is empty; name at least one row to compare {claim.row} with")
        if twice := [row for place, row in enumerate(claim.reference) if row in claim.reference[:place]]:
            raise BadInput(f"{start}: reference has {twice[0]} twice; leave one out")
        for row in (claim.row, *claim.reference):
            require_name(row, [*values], f"{start}: row {row}", "row")
        if claim.row in claim.reference:
            raise BadInput(f"{start}: compares {claim.row} with itself; name two rows")
        for part in claim.by_metric:
            for row in (claim.row, *claim.reference):
                metrics = [name.removeprefix(f"{STAGE}/") for name in sorted(values[row])]
                metric = part.metric.removeprefix(f"{STAGE}/")
                require_name(metric, metrics, f"{start}: metric {metric} of {row}", "metric")
            if not 0 <= part.margin < math.inf or (part.kind == "equivalent" and part.margin == 0):
                needed = "an equivalence needs a margin above 0" if part.kind == "equivalent" else "a margin is 0 or more"
                raise BadInput(f"{start}: margin {part.margin:g}: {needed}; write margin NUMBER")
            if part.pilot_deviation is not None and not 0 < part.pilot_deviation < math.inf:
                raise BadInput(f"{start}: pilot_deviation {part.pilot_deviation:g}: must be above 0")
            if find_seed_metric(part.metric, part.better).better is None:
                name = part.metric.removeprefix(f"{STAGE}/")
                raise BadInput(
                    f"{start}: whether lower or higher {name} is better is not known; add better lower or better higher"
                )
