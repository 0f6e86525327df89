"""Verdicts on published tables: against scipy, on tables without differences, and with the rules of experiments."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from eval.experiments.analysis import significance_tests
from eval.experiments.analysis.registration_seal import content_hash
from eval.experiments.analysis.verdicts import judge
from eval.experiments.preregistration import register_grid
from eval.experiments.published_tables import table_judge
from eval.experiments.published_tables.claim_statements import parse_claim
from eval.experiments.published_tables.measurements import Measurement
from tests.support.commands import assert_refused, call, in_folder
from tests.support.small_experiment import small_grid

TABLES = pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
METRIC = "val_loss"


@pytest.fixture
def no_detectable_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the search for the detectable difference, which decides no verdict and takes 0.5 s for values of items."""
    monkeypatch.setattr(significance_tests, "smallest_effect", lambda *_, **__: 1.0)


def measured(values: Mapping[str, Any], metric: str = METRIC) -> list[Measurement]:
    """Return values by row and seed, or by row, seed and item."""
    return [
        Measurement(where=row, row=row, seed=str(seed), metric=metric, value=float(value), item=name)
        for row, of_row in values.items()
        for seed, of_seed in enumerate(of_row)
        for name, value in ([("", of_seed)] if np.ndim(of_seed) == 0 else [(str(i), item) for i, item in enumerate(of_seed)])
    ]


def judged(values: Mapping[str, Any], *claims: str, paired: bool = False, control: str = "") -> list[dict[str, Any]]:
    parsed = [parse_claim(claim, paired=paired) for claim in claims]
    return table_judge.judge_measurements(measured(values), parsed, control)[3]


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values by the definition: the least is compared with level / n, the next with level / (n - 1)."""
    adjusted, running = [0.0] * len(p), 0.0
    for step, place in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        running = max(running, min(1.0, p[place] * (len(p) - step)))
        adjusted[place] = running
    return adjusted


def larger_variance_p(row: Any, reference: Any, margin: float) -> float:
    """The p value of "the row is below the reference by more than the margin", written out."""
    squares = [sum((x - sum(side) / len(side)) ** 2 for x in side) / (len(side) - 1) for side in (row, reference)]
    error = (max(squares) * (1 / len(row) + 1 / len(reference))) ** 0.5
    t = (sum(row) / len(row) - sum(reference) / len(reference) + margin) / error
    return float(scipy.stats.t.cdf(t, min(len(row), len(reference)) - 1))


@pytest.mark.usefixtures("no_detectable_difference")
@TABLES
def test_the_p_values_are_those_of_scipy(count: int) -> None:
    rng = np.random.default_rng(5)
    for _ in range(count):
        seeds, margin = int(rng.integers(5, 12)), float(rng.uniform(0.1, 1))
        a, b, c = rng.normal(rng.normal(size=3), rng.uniform(0.1, 3, 3), (seeds, 3)).T
        values, claims = {"a": a, "b": b, "c": c}, ("a < b on val_loss", f"c > b on val_loss margin {margin}")
        pairs = [
            scipy.stats.ttest_rel(a, b, alternative="less").pvalue,
            scipy.stats.ttest_rel(c - margin, b, alternative="greater").pvalue,
        ]
        entries = judged(values, *claims, paired=True)
        np.testing.assert_allclose([entry["p"] for entry in entries], pairs, rtol=0, atol=1e-12)
        np.testing.assert_allclose([entry["p_holm"] for entry in entries], holm(pairs), rtol=0, atol=1e-12)
        independent = [larger_variance_p(a, b, 0.0), larger_variance_p(-c, -b, margin)]
        np.testing.assert_allclose([entry["p"] for entry in judged(values, *claims)], independent, rtol=0, atol=1e-12)
        (tost,) = judged(values, f"a = b on val_loss margin {margin}", paired=True)
        sides = [
            scipy.stats.ttest_rel(a + margin, b, alternative="greater").pvalue,
            scipy.stats.ttest_rel(a - margin, b, alternative="less").pvalue,
        ]
        assert tost["p"] == pytest.approx(max(sides), rel=0, abs=1e-12)


@TABLES
def test_t_and_the_interval_are_those_of_scipy(count: int) -> None:
    rng = np.random.default_rng(6)
    row, reference = rng.normal(0.3, 1, (count, 7)), rng.normal(0, 2, (count, 7))
    expected = scipy.stats.ttest_rel(row, reference, axis=1)
    test = significance_tests.paired_difference(row, reference)
    np.testing.assert_allclose(test.estimate / test.error, expected.statistic, rtol=1e-12)
    low, high = expected.confidence_interval(0.95)
    np.testing.assert_allclose(test.estimate - test.half_width(0.975), low, atol=1e-12)
    np.testing.assert_allclose(test.estimate + test.half_width(0.975), high, atol=1e-12)


@TABLES
def test_shares_of_seeds_that_learned_are_compared_as_by_scipy(count: int) -> None:
    rng = np.random.default_rng(7)
    for _ in range(count):
        seeds = rng.integers(5, 12, 2)
        learned = [int(rng.integers(0, n + 1)) for n in seeds]
        rows = {
            name: [1.0] * k + [float("nan") if number % 2 else 9.0 for number in range(n - k)]
            for name, k, n in zip("ab", learned, seeds, strict=True)
        }
        (entry,) = judged({**rows, "untrained": [9.0] * 5}, "a < b on val_loss", control="untrained")
        if sum(learned) == 0:
            assert entry["verdict"] == "not testable"
            continue
        for side, k, n in zip(("row", "reference"), learned, seeds, strict=True):
            low, high = scipy.stats.binomtest(k, n).proportion_ci(method="exact")
            share = entry["shares"][side]
            assert (share["low"], share["high"]) == pytest.approx((low, high), rel=0, abs=1e-12)
        if learned != list(seeds):
            table = [[learned[0], seeds[0] - learned[0]], [learned[1], seeds[1] - learned[1]]]
            expected: Any = scipy.stats.fisher_exact(table, alternative="greater")
            assert entry["p"] == pytest.approx(expected.pvalue, rel=0, abs=1e-12)


def null_table(rng: np.random.Generator, items: int) -> dict[str, Any]:
    """Return rows with equal means over all seeds and items that there could be; "d" is lower than they by 0.5.

    With items, those of the table are a sample, and each row has its own difficulty of every item.
    """
    rows: dict[str, Any] = {}
    for name in "abcd":
        seeds = rng.normal(0, rng.uniform(0.1, 1), 5) - 0.5 * (name == "d")
        rows[name] = seeds if items == 0 else seeds[:, None] + rng.normal(0, 1, items) + rng.normal(0, 0.5, (5, items))
    return rows


NULL = ("a < b on val_loss", "c > b on val_loss margin 0.2", "a = d on val_loss margin 0.5", "d > c on val_loss")


def is_false(verdicts: Sequence[str]) -> bool:
    """Return whether any verdict on the claims of `NULL` is wrong."""
    return any(
        verdict in wrong
        for verdict, wrong in zip(
            verdicts,
            (
                ("reproduced", "direction only", "contradicted"),
                ("reproduced", "direction only", "contradicted"),
                ("equivalent", "contradicted"),
                ("reproduced", "direction only"),
            ),
            strict=True,
        )
    )


@pytest.mark.usefixtures("no_detectable_difference")
@pytest.mark.parametrize("items", [0, 20])
@TABLES
def test_at_most_5_percent_of_tables_without_differences_have_a_false_verdict(count: int, items: int) -> None:
    rng = np.random.default_rng(8)
    false = sum(is_false([entry["verdict"] for entry in judged(null_table(rng, items), *NULL)]) for _ in range(count))
    # Of 40 tables, more than 5 would be false in 1% of the cases at a rate of 5%.
    assert false <= (0.05 * count if count > 100 else 5)


@pytest.mark.usefixtures("no_detectable_difference")
@pytest.mark.planted
def test_items_that_are_left_out_of_the_error_are_noticed() -> None:
    rng, counts = np.random.default_rng(9), [0, 0]
    for _ in range(20):
        rows = {name: rng.normal(0, 1, 20) + rng.normal(0, 0.05, (5, 20)) for name in "ab"}
        means = {name: values.mean(1) for name, values in rows.items()}
        for place, table in enumerate((rows, means)):
            counts[place] += judged(table, "a < b on val_loss")[0]["verdict"] != "not shown"
    assert counts[0] <= 4 and counts[1] > 10


def test_the_verdicts_are_those_of_the_judge_of_experiments() -> None:
    rng = np.random.default_rng(3)
    values = {"a": rng.normal(0, 0.1, 5), "b": rng.normal(1, 0.1, 5), "c": rng.normal(0, 0.1, 5)}
    claims = ("a < b on val_loss margin 0.1", "a > b on val_loss", "a = c on val_loss margin 0.5", "a < c on val_loss")
    registration, cells, items, entries = table_judge.judge_measurements(
        measured(values), [parse_claim(claim, paired=False) for claim in claims]
    )
    assert [entry["verdict"] for entry in entries] == ["reproduced", "contradicted", "equivalent", "not shown"]
    assert [entry | {"exploratory": True} for entry in judge(registration, cells, (), items)] == entries
    assert all(entry["exploratory"] for entry in entries)


def test_fewer_than_five_seeds_are_not_testable() -> None:
    (entry,) = judged({"a": [1, 2, 3, 4], "b": [2, 3, 4, 5]}, "a < b on val_loss")
    assert (entry["verdict"], entry["reason"]) == ("not testable", "a has 4 seeds; a verdict needs 5")


@pytest.mark.parametrize(("a", "b"), [(0.31, 0.29), (0.06, 0.04)])
def test_pairs_with_equal_differences_are_not_testable(a: float, b: float) -> None:
    values = {"a": [0.9, 0.8, 0.7, 0.6, a], "b": [0.88, 0.78, 0.68, 0.58, b]}
    (entry,) = judged(values, "a > b on val_loss", paired=True)
    assert entry["verdict"] == "not testable" and entry["reason"].startswith("all seeds differ by the same value")


def test_seeds_with_names_are_paired_by_them() -> None:
    values = [("a", "x", 1.0), ("a", "y", 2.1), ("a", "z", 3.0), ("a", "v", 4.0), ("a", "w", 5.0)]
    values += [("b", name, value + 0.1) for _, name, value in reversed(values)]
    lines = [Measurement(where="", row=row, seed=seed, metric=METRIC, value=value) for row, seed, value in values]
    lines[-1] = Measurement(where="", row="b", seed="x", metric=METRIC, value=1.11)
    (entry,) = table_judge.judge_measurements(lines, [parse_claim("a < b on val_loss", paired=True)])[3]
    assert entry["verdict"] == "reproduced" and entry["rho"] > 0.99 and entry["test"] == "paired"


@pytest.fixture
def registered(tmp_path: Path) -> dict[str, Any]:
    """A registration in the folder `registered`, and a table with all of its values."""
    content = register_grid(small_grid(), tmp_path / "registered")
    metric = content["claims"][0]["metric"]
    rng = np.random.default_rng(1)
    lines = [
        f"{row['name']},{seed},{metric},{5 * (row['name'] == content['control']) + rng.normal()}"
        for row in content["rows"]
        for seed in content["seeds"]
    ]
    (tmp_path / "t.csv").write_text("\n".join(["row,seed,metric,value", *lines]))
    return content


JUDGE = ("judge", "t.csv", "--registration", "registered")


def test_claims_of_a_registration_are_not_exploratory(
    registered: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with in_folder(tmp_path):
        ended = call(capsys, *JUDGE, "--out", "out")
    assert ended.code == 0 and "exploratory" not in ended.stdout and "Not registered" not in ended.stdout
    result = json.loads((tmp_path / "out" / "experiment.json").read_text())
    assert result["registration"]["hash"] == registered["hash"]
    assert "before the first run" in (tmp_path / "out" / "experiment.md").read_text()


@pytest.mark.planted(4)
def test_a_registration_that_does_not_fit_is_noticed(
    registered: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "registered" / "registration.json"
    sealed = json.loads(file.read_text())

    def seal(**changes: Any) -> None:
        content = {**sealed, **changes}
        file.write_text(json.dumps({**content, "hash": content_hash(content)}))

    with in_folder(tmp_path):
        seal(judge={**sealed["judge"], "files": dict.fromkeys(sealed["judge"]["files"], "0" * 64)})
        assert ", exploratory: " in call(capsys, *JUDGE).stdout
        seal(judge={**sealed["judge"], "function": "eval.experiments.analysis.scaling_fit.judge"})
        of_its_own = {
            "a judge of its own": (JUDGE, "--registration: its claims have a judge of their own, eval.*scaling_fit.judge; ")
        }
        assert_refused(capsys, tmp_path, of_its_own)
        file.write_text(json.dumps({**sealed, "control": "a"}))
        assert_refused(capsys, tmp_path, {"edited": (JUDGE, r"registered/registration\.json was edited after the registration")})
        seal()
        Path("t.csv").write_text(Path("t.csv").read_text().replace(",0,", ",zero,"))
        assert_refused(capsys, tmp_path, {"other seeds": (JUDGE, "seed zero: registered seeds are whole numbers; write those")})
