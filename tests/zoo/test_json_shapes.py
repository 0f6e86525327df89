"""The check of JSON files that others may have written."""

import json
from pathlib import Path
from typing import Any

import pytest

from zoo.errors import BadInput
from zoo.json_shapes import Number, is_usable_number, read_shaped_json, shape_problem

SHAPE = {"step": int, "rate?": Number, "rows": [{"name": str}], "by_name?": {str: (int, type(None))}, "free?": object}
WRONG = {
    "the whole: list instead of dict": [],
    "no rows": {"step": 1},
    "step: bool": {"step": True, "rows": []},
    "step: an integer of more than 64 bits": {"step": 1 << 63, "rows": []},
    "rate: the number nan": {"step": 1, "rows": [], "rate": float("nan")},
    "rate: NoneType": {"step": 1, "rows": [], "rate": None},
    "rows[1].name: int": {"step": 1, "rows": [{"name": ""}, {"name": 1}]},
    "no rows[0].name": {"step": 1, "rows": [{}]},
    "by_name.a: str": {"step": 1, "rows": [], "by_name": {"a": "1"}},
    "free: the number inf": {"step": 1, "rows": [], "free": {"a": [[{"b": float("inf")}]]}},
    "another: an integer of more than 64 bits": {"step": 1, "rows": [], "another": 10**400},
}


@pytest.mark.planted(len(WRONG))
def test_a_difference_is_named_with_its_place() -> None:
    for problem, value in WRONG.items():
        assert shape_problem(value, SHAPE) == problem
    good = {"step": -(1 << 63), "rate": 1.5, "rows": [{"name": "a"}], "by_name": {"b": None, "c": 1}, "free": [True, "x"]}
    assert shape_problem(good, SHAPE) == ""
    assert len(shape_problem({"x" * 5000: "1"}, {str: int})) < 200


@pytest.mark.parametrize(
    ("value", "usable"),
    [(1, True), (2.5, True), (True, False), ("1", False), (1e999, False), (10**400, False), ((1 << 63) - 1, True)],
)
def test_usable_numbers_are_finite_and_fit_into_64_bits(value: Any, usable: bool) -> None:
    assert is_usable_number(value) is usable


def test_a_file_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    assert read_shaped_json(file, SHAPE, "fix it") is None
    file.write_text(json.dumps({"step": 1, "rows": []}))
    assert read_shaped_json(file, SHAPE, "fix it") == {"step": 1, "rows": []}
    for content in ("{", "[" * 100_000, "9" * 5000, json.dumps(WRONG["no rows"]), '{"step": "' + "\\ud800" * 3 + '"}'):
        file.write_text(content)
        with pytest.raises(BadInput, match=r"a\.json (is invalid JSON|has unexpected content) \(.*\); fix it") as refused:
            read_shaped_json(file, SHAPE, "fix it")
        assert "\n" not in str(refused.value)
