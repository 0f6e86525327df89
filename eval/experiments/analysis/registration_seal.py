"""The seal of a registration: a hash of its content, and a chain of hashes over the records that were appended to it later.

A seal shows that a registration was edited by hand. It cannot show that a registration was replaced by another one with its own
hash: for that, every run records the hash when it starts, and the hash can be published.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

UNSEALED = ("hash", "records", "changed", "edits")
"""Parts that the hash does not cover: itself, the records, which have hashes of their own, and what is derived from both."""


def content_hash(registration: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the sealed content of a registration, as JSON with sorted keys."""
    return _hash({name: value for name, value in registration.items() if name not in UNSEALED})


def append_record(registration: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a registration with one more record, whose hash also covers what is before it."""
    records = registration.get("records", [])
    return {**registration, "records": [*records, {**record, "hash": _record_hash(registration, len(records), record)}]}


def seal_problem(registration: Mapping[str, Any]) -> str:
    """Return what was edited in a registration after it was sealed; "" if nothing was."""
    if (actual := content_hash(registration)) != registration.get("hash"):
        return f"its content has the SHA-256 {actual}, and its `hash` is {registration.get('hash')}"
    for number, record in enumerate(registration.get("records", [])):
        content = {name: value for name, value in record.items() if name != "hash"}
        if record.get("hash") != _record_hash(registration, number, content):
            return f"record {number + 1} does not have the SHA-256 in its `hash`"
    return ""


def _record_hash(registration: Mapping[str, Any], number: int, record: Mapping[str, Any]) -> str:
    """Return the hash of a record and of the one before it, or of the content if it is the first."""
    before = registration["records"][number - 1]["hash"] if number else registration["hash"]
    return _hash({"before": before, **record})


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
