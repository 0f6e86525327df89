"""What differs between two runs, in words."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.marker import compare

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
DICT = st.dictionaries(st.text(max_size=3), JSON, max_size=4)


@given(DICT, DICT)
def test_compare_is_empty_only_for_the_same(saved: dict[str, Any], asked: dict[str, Any]) -> None:
    assert compare(saved, json.loads(json.dumps(saved))) == []
    same = json.dumps(saved, sort_keys=True) == json.dumps(asked, sort_keys=True)
    # An empty dict against none has no leaf to name.
    leaves = lambda tree: json.dumps(tree, sort_keys=True).replace("{}", "")  # noqa: E731
    assert (compare(saved, asked) == []) == same or leaves(saved) == leaves(asked)
    assert compare(saved, asked, saved.keys() | asked.keys()) == []


@pytest.mark.parametrize(
    ("saved", "asked", "ignored", "lines"),
    [
        ({"model": {"layers": 4}}, {"model": {"layers": 6}}, (), ["model.layers: 4 in the checkpoint, 6 asked"]),
        ({"a": 1, "b": 2}, {"a": 2, "b": 3}, ("a",), ["b: 2 in the checkpoint, 3 asked"]),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ("b",), ["a.b: 1 in the checkpoint, 2 asked"]),
        ({"a": 1}, {}, (), ["a: 1 in the checkpoint, nothing asked"]),
        ({}, {"a": "nothing"}, (), ['a: nothing in the checkpoint, "nothing" asked']),
        ({"a": {}}, {"a": 1}, (), ["a: {} in the checkpoint, 1 asked"]),
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
