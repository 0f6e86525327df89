"""What differs between two runs, in words."""

import json
from typing import Any

import pytest

from train.marker import compare


def test_compare_is_empty_only_for_the_same() -> None:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    )
    trees = st.dictionaries(st.text(max_size=3), values, max_size=4)

    # A busy machine takes seconds for an example.
    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(trees, trees)
    def check(saved: dict[str, Any], asked: dict[str, Any]) -> None:
        assert compare(saved, json.loads(json.dumps(saved))) == []
        # An empty dict against none has no leaf to name.
        same, same_leaves = (
            json.dumps(saved, sort_keys=True).replace(empty, "") == json.dumps(asked, sort_keys=True).replace(empty, "")
            for empty in ("\0", "{}")
        )
        assert (compare(saved, asked) == []) == same or same_leaves
        assert compare(saved, asked, saved.keys() | asked.keys()) == []

    check()


@pytest.mark.parametrize(
    ("saved", "asked", "ignored", "lines"),
    [
        ({"a": 1, "b": 2}, {"a": 2, "b": 3}, ("a",), ["b: 2 in the checkpoint, 3 asked"]),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ("b",), ["a.b: 1 in the checkpoint, 2 asked"]),
        ({"a": 1}, {}, (), ["a: 1 in the checkpoint, nothing asked"]),
        ({"a": [1, 2]}, {"a": (1, 2)}, (), []),
        ({"a": True}, {"a": 1}, (), ["a: true in the checkpoint, 1 asked"]),
        (
            {"a": "x" * 200},
            {"a": "x" * 199 + "y"},
            (),
            ["a: " + '"' + "x" * 59 + "... (202 characters) in the checkpoint, " + '"' + "x" * 59 + "... (202 characters) asked"],
        ),
    ],
)
def test_compare_names_the_difference(saved: Any, asked: Any, ignored: Any, lines: list[str]) -> None:
    assert compare(saved, asked, ignored) == lines
