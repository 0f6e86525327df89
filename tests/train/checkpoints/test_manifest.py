"""What differs between two runs, in words."""

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from train.marker import compare

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
TREES = st.dictionaries(st.text(max_size=3), VALUES, max_size=4)


# A busy machine takes seconds for an example.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TREES, TREES)
def test_compare_is_empty_only_for_the_same(saved: dict[str, Any], asked: dict[str, Any]) -> None:
    assert compare(saved, json.loads(json.dumps(saved))) == []
    # An empty dict against none has no leaf to name.
    same, same_leaves = (
        json.dumps(saved, sort_keys=True).replace(empty, "") == json.dumps(asked, sort_keys=True).replace(empty, "")
        for empty in ("\0", "{}")
    )
    assert (compare(saved, asked) == []) == same or same_leaves
    assert compare(saved, asked, saved.keys() | asked.keys()) == []


def test_compare_names_the_difference() -> None:
    saved = {"a": 1, "b": 2, "c": {"a": 1}, "d": 1, "e": [1, 2], "f": True}
    asked = {"a": 2, "b": 3, "c": {"a": 2}, "e": (1, 2), "f": 1, "g": "x"}
    assert compare(saved, asked, ("a",)) == [
        "b: 2 in the checkpoint, 3 asked",
        "c.a: 1 in the checkpoint, 2 asked",
        "d: 1 in the checkpoint, nothing asked",
        "f: true in the checkpoint, 1 asked",
        'g: nothing in the checkpoint, "x" asked',
    ]
