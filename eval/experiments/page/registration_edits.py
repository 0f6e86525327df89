"""The registration on the page of an experiment: what was edited after it, in words, and what it registered of the code."""

import json
from collections.abc import Mapping
from typing import Any

from eval.experiments.analysis.registration_seal import seal_problem
from zoo.errors import BadInput

DIGEST = 64
"""Characters of a SHA-256, of which the first 12 are shown."""
MOST_RUNS = 3
"""Number of runs that a sentence names."""


def check_registration(result: Mapping[str, Any]) -> None:
    """Refuse an experiment.json whose registration was edited.

    Raises:
        BadInput: names the experiment and what differs. Registrations of versions that did not seal them are not checked.
    """
    registration = result["registration"]
    if "judge" in registration and (problem := seal_problem(registration)):
        raise BadInput(
            f"experiment {result['name']}: the registration in experiment.json was edited: {problem}; restore the file"
        )


def edit_lines(registration: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each edit, and for each claim of which only is known that it was changed."""
    edits = registration.get("edits") or ()
    named = {edit["claim"] for edit in edits}
    changed = [] if "" in named else [name for name in registration.get("changed") or () if name not in named]
    return [f"The claim {name} was changed after the first run." for name in changed] + [_sentence(edit) for edit in edits]


def registration_facts(registration: Mapping[str, Any]) -> dict[str, str]:
    """Return the hash of a registration and what else is sealed by it, as text."""
    if "hash" not in registration:
        return {}
    facts = {"registration": f"{registration['hash']}{'' if 'judge' in registration else ' (not sealed)'}"}
    if "judge" in registration:
        code, versions = registration["code"], registration["versions"]
        dirty = " with changes that are not committed" if code["dirty"] else ""
        packages = ", ".join(f"{name} {version}" for name, version in versions.items())
        facts["registered"] = f"{registration['date']}, commit {code['commit']}{dirty}, {packages}"
        facts["judge"] = ", ".join(f"{name} {_words(digest)}" for name, digest in registration["judge"]["files"].items())
        if registration["tasks"]:
            facts["task files"] = ", ".join(f"{name} {digest}" for name, digest in registration["tasks"].items())
    for record in registration.get("records") or ():
        for name in record:
            if name.startswith("tokenizer"):
                facts[f"registered {name}"] = f"{record[name]}, {record['date']}"
    return facts


def _sentence(edit: Mapping[str, Any]) -> str:
    """Return an edit as a sentence."""
    before, now, every = _words(edit["before"]), _words(edit["now"]), ", so that every claim is exploratory."
    if runs := edit.get("runs"):
        names = ", ".join(runs[:MOST_RUNS]) + (f" and {len(runs) - MOST_RUNS} more" if len(runs) > MOST_RUNS else "")
        return f"The registration was replaced: {names} started under {before}, and it is {now}{every}"
    subject = f"Claim {edit['claim']}: its {edit['field']}" if edit["claim"] else f"The {edit['field']}"
    return f"{subject} was {before} when it was registered, and is {now} since {edit['date']}{'.' if edit['claim'] else every}"


def _words(value: Any) -> str:
    """Return a value as text: of a digest its beginning."""
    if value is None:
        return "absent"
    if isinstance(value, str):
        return f"{value[:12]}…" if len(value) == DIGEST and " " not in value else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)
