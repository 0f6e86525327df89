"""Verdicts: their error rates over simulated experiments, and each of the five by constructed cells."""

from typing import Any

import numpy as np
import pytest

from eval.experiments.analysis import significance_tests, verdicts
from eval.experiments.analysis.significance_tests import welch_difference
from eval.experiments.analysis.verdicts import judge
from tests.support.experiment_result import METRIC, cells, claim, registration
from zoo.errors import BadInput

DRAWS = 20_000
NOISE = np.array([-1.2, -0.4, 0.1, 0.5, 1.0])


def rates(effect: float, n: int, claims: int = 1, seed: int = 3) -> tuple[float, float]:
    """Return the shares of experiments with a claim that holds, and with any claim judged in either direction."""
    row, reference = np.random.default_rng(seed).normal(size=(2, DRAWS, claims, n))
    p = verdicts.p_values("less", welch_difference(row - effect, reference), 0.0)
    _, _, holds, contradicted = verdicts.decide_claims(*p)
    return float(holds.any(-1).mean()), float((holds | contradicted).any(-1).mean())


NULLS = ((3, 1), (5, 1), (5, 4))


def test_an_experiment_without_effect_has_a_false_verdict_in_one_of_twenty_cases() -> None:
    assert [rates(0.0, n, claims)[1] <= 0.05 for n, claims in NULLS] == [True] * 3
    assert rates(2.0, 5)[0] >= 0.75


@pytest.mark.planted(4)
def test_wrong_levels_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(significance_tests, "holm_adjusted", np.asarray)
        assert rates(0.0, 5, 4)[1] > 0.1
    with monkeypatch.context() as patch:
        patch.setattr(verdicts, "OPPOSITE_LEVEL", verdicts.LEVEL)
        assert rates(0.0, 5)[1] > 0.05
    with monkeypatch.context() as patch:
        # Two-sided p values for one-sided ones.
        patch.setattr(verdicts, "p_values", lambda *args, right=verdicts.p_values: (2 * np.minimum(*right(*args)),) * 2)
        assert rates(2.0, 5)[0] < 0.75
    with monkeypatch.context() as patch:
        patch.setattr(verdicts, "LEVEL", 0.05)
        assert rates(0.0, 5)[1] > 0.05


def test_a_simulated_experiment_is_judged_by_the_same_rule() -> None:
    rng, names = np.random.default_rng(5), ("a", "b", "c")
    claims = [claim("less", "a", "b"), claim("greater", "a", "c")]
    for _ in range(20):
        values = {name: rng.normal(mean, 1, 5) for name, mean in zip(names, (0, 2, 2), strict=True)}
        entries = judge(registration(claims, names, 5), cells(values | {"control": rng.normal(90, 1, 5)}))
        tests = [
            verdicts.p_values(item["kind"], welch_difference(values["a"], values[item["reference"]]), 0.0) for item in claims
        ]
        adjusted, _, holds, contradicted = verdicts.decide_claims(*np.transpose(tests))
        assert [entry["p_holm"] for entry in entries] == pytest.approx(list(adjusted))
        expected = ["reproduced" if h else "contradicted" if c else "not shown" for h, c in zip(holds, contradicted, strict=True)]
        assert [entry["verdict"] for entry in entries] == expected


def one(claimed: dict[str, Any], values: dict[str, Any], floors: Any = (), seeds: int = 5) -> dict[str, Any]:
    (entry,) = judge(registration([claimed], [*values, "c"], seeds), cells(values), floors)
    return entry


CONTROL = {"control": 9 + 0.01 * NOISE}
A, B, CLOSE = 5 + 0.01 * NOISE, 5.1 + 0.01 * NOISE[::-1], 5.001 + 0.01 * NOISE[[2, 0, 4, 1, 3]]


@pytest.mark.parametrize(
    ("claimed", "values", "verdict"),
    [
        (claim("less"), {"a": A, "b": B}, "reproduced"),
        (claim("greater"), {"a": A, "b": B}, "contradicted"),
        (claim("less"), {"a": A, "b": CLOSE}, "not shown"),
        (claim("equivalent"), {"a": A, "b": CLOSE}, "equivalent"),
        (claim("equivalent"), {"a": A, "b": B}, "contradicted"),
        (claim("equivalent", margin=0.1), {"a": A, "b": B}, "not shown"),
        (claim("less", reference=["b", "c"]), {"a": A, "b": B, "c": B + 1}, "reproduced"),
        (claim("less", reference=["b", "c"]), {"a": A, "b": B, "c": CLOSE}, "not shown"),
        (claim("less", reference=["b", "c"]), {"a": A, "b": CLOSE, "c": A - 1}, "contradicted"),
        (claim("less", paired=True), {"a": A + NOISE, "b": B + NOISE}, "reproduced"),
        (claim("less"), {"a": A + NOISE, "b": B + NOISE}, "not shown"),
        # One seed of five may diverge or be stuck; it is named.
        (claim("less"), {"a": [*A[:4], "diverged"], "b": B}, "reproduced"),
        # Rows that are no better than the control say nothing, however clear their difference is.
        (claim("less"), {"a": A + 4.5, "b": B}, "not testable"),
        (claim("less"), {"a": A, "b": B + 4.5}, "not testable"),
        (claim("less", row="control"), {"b": B}, "contradicted"),
        (claim("less"), {"a": [*A[:3], "diverged", "did not learn"], "b": B}, "not testable"),
        (claim("less"), {"a": A, "b": [*B[:2], "missing"]}, "not testable"),
        (claim("less"), {"a": A[:1], "b": B}, "not testable"),
        (claim("less", paired=True), {"a": ["missing", *A[:3]], "b": ["failed", "missing", *B[:3]]}, "not testable"),
        (claim("less"), {"a": [5.1] * 5, "b": [6.7] * 5}, "not testable"),
    ],
)
def test_each_verdict_follows_from_its_values(claimed: dict[str, Any], values: dict[str, Any], verdict: str) -> None:
    entry = one(claimed, CONTROL | values)
    assert (entry["verdict"], bool(entry["reason"])) == (verdict, True)
    assert (entry["p_holm"] is None) == (verdict == "not testable")


def test_an_entry_names_seeds_and_has_its_numbers() -> None:
    entry = one(claim("less"), CONTROL | {"a": [*A[:4], "diverged"], "b": [*B[:3], "failed", "missing"]})
    assert entry["notes"] == ["a: seed 4 diverged", "b: seed 3 failed", "b: seed 4 not finished"]
    assert (entry["n"], entry["counts"], entry["learned"]) == (3, {"row": 4, "reference": 3}, {"row": 4, "reference": 3})
    expected = welch_difference(A[:4], B[:3])
    assert entry["bound"] == pytest.approx(expected.estimate + expected.half_width())
    assert entry["mde"] == pytest.approx(expected.unit * significance_tests.smallest_effect((4, 3), alpha=verdicts.LEVEL))
    few = one(claim("less"), CONTROL | {"a": A[:2], "b": B})
    assert few["reason"] == f"a has 2 seeds with {METRIC}; a verdict needs 3"


def test_an_untestable_claim_keeps_its_place_in_the_correction() -> None:
    claims = [claim("less"), claim("less", "a", "missing"), claim("less", "b", "missing")]
    entries = judge(registration(claims, ["a", "b", "missing"], 5), cells(CONTROL | {"a": A, "b": B}))
    assert entries[0]["p_holm"] == pytest.approx(3 * entries[0]["p"])


def test_floors_stand_for_a_control_without_a_score() -> None:
    floor = {"name": "unigram", "metric": METRIC, "value": 6.4, "source": "counted"}
    assert "there is no floor" in one(claim("less"), {"a": A, "b": B})["reason"]
    scored = [item | {"scores": item["scores"] | {"unigram_loss": 5.05}} for item in cells({"a": A, "b": B})]
    (entry,) = judge(registration([claim("less")], ["a", "b"], 5), scored)
    assert "b is not better than the floor unigram loss (5.05)" in entry["reason"]
    assert one(claim("less"), {"a": A, "b": B}, [floor])["verdict"] == "reproduced"
    assert "not better than the floor unigram (5.05)" in one(claim("less"), {"a": A, "b": B}, [floor | {"value": 5.05}])["reason"]
    # A stronger baseline beside a control is printed and decides only if it says so.
    strong = floor | {"value": 4.0}
    assert one(claim("less"), CONTROL | {"a": A, "b": B}, [strong])["verdict"] == "reproduced"
    assert one(claim("less"), CONTROL | {"a": A, "b": B}, [strong | {"gate": True}])["verdict"] == "not testable"


def test_a_stage_did_not_learn_if_its_parent_did_not() -> None:
    metric = "tune/accuracy"
    values = {"a": A / 10, "b": B / 10, "control": 0.1 + 0.01 * NOISE}
    listed = registration([claim("greater", "b", "a", metric=metric)], list(values), 5)
    for row in listed["rows"]:
        row["stages"] = {"pretrain": {}, "tune": {"after": "pretrain"}}
    stuck = [{"row": "a", "seed": seed, "stage": "pretrain", "status": "did not learn", "scores": {}} for seed in (0, 1)]
    assert judge(listed, cells(values, metric))[0]["verdict"] == "reproduced"
    assert "3 of 5 seeds of a learned" in judge(listed, [*stuck, *cells(values, metric)])[0]["reason"]


def test_bad_claims_are_refused() -> None:
    for bad, match in (
        (claim("equivalent", margin=0), "margin 0: an equivalence needs one above 0"),
        (claim(metric="masked_loss"), 'must be "stage/score"'),
        (claim(metric="pretrain/zebra"), "add better="),
    ):
        with pytest.raises(BadInput, match=match):
            one(bad, CONTROL | {"a": A, "b": B})
    # A changed claim is marked, so that the page prints it as exploratory.
    listed = registration([claim("less")], ["a", "b"], 5) | {"changed": ["a-less-b"]}
    assert judge(listed, cells(CONTROL | {"a": A, "b": B}))[0]["exploratory"]
