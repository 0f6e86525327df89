"""Each verdict by constructed cells: means, shares of seeds that learned, floors, margins, two metrics, looks and items."""

from typing import Any

import numpy as np
import pytest

from eval.experiments.analysis import claim_comparison, learned_seeds, significance_tests, verdicts
from eval.experiments.analysis.claim_comparison import p_values
from eval.experiments.analysis.significance_tests import Design, larger_variance_difference
from eval.experiments.analysis.verdicts import judge
from tests.support.experiment_result import METRIC, cells, claim, registration
from zoo.errors import BadInput

NOISE = np.array([-1.2, -0.4, 0.1, 0.5, 1.0])
CONTROL = {"control": 9 + 0.01 * NOISE}
A, B, CLOSE = 5 + 0.01 * NOISE, 5.1 + 0.01 * NOISE[::-1], 5.001 + 0.001 * NOISE[[2, 0, 4, 1, 3]]
STUCK = [8.995, 8.996, 8.994, 9.001, 9.1]
"""Values that are no better than the control by the margin of 0.02."""
FAR = [12.0, 12.1, 12.2, 11.9, 12.0]
"""Values far worse than the control's."""


def one(claimed: dict[str, Any], values: dict[str, Any], floors: Any = (), seeds: int = 5, **more: Any) -> dict[str, Any]:
    (entry,) = judge(registration([claimed], [*values, "c"], seeds), cells(values), floors, **more)
    return entry


def test_a_simulated_experiment_is_judged_by_the_simulated_rule() -> None:
    rng, names = np.random.default_rng(5), ("a", "b", "c")
    claims = [claim("less", "a", "b", margin=1.0), claim("greater", "a", "c"), claim("equivalent", "b", "c", margin=4.0)]
    for _ in range(10):
        values = {name: rng.normal(mean, 1, 5) for name, mean in zip(names, (0, 4, 5), strict=True)}
        entries = judge(registration(claims, names, 5), cells(values | {"control": rng.normal(90, 1, 5)}))
        tests = [
            p_values(item["kind"], larger_variance_difference(values[item["row"]], values[item["reference"]]), item["margin"])
            for item in claims
        ]
        p_above, p_below = np.stack(tests, 1)
        above, _, judged = verdicts.decide_claims(p_above, p_below, np.array([False, False, True]))
        assert [entry["verdict"] for entry in entries] == list(judged)
        assert [entry["p_holm"] for entry in entries[:2]] == pytest.approx(list(above[:2, 2]))


@pytest.mark.parametrize(
    ("claimed", "values", "verdict"),
    [
        (claim("less"), {"a": A, "b": B}, "reproduced"),
        (claim("greater"), {"a": A, "b": B}, "contradicted"),
        # The margin counts: the direction alone is less, and a difference within the margin is none.
        (claim("less", margin=0.1), {"a": A, "b": B}, "direction only"),
        (claim("less"), {"a": A, "b": CLOSE}, "equivalent"),
        (claim("less", margin=0.001), {"a": A, "b": CLOSE}, "not shown"),
        (claim("greater", margin=0.2), {"a": A, "b": B}, "equivalent"),
        (claim("equivalent"), {"a": A, "b": CLOSE}, "equivalent"),
        (claim("equivalent"), {"a": A, "b": B}, "contradicted"),
        (claim("equivalent", margin=0.1), {"a": A, "b": B}, "not shown"),
        (claim("less", reference=["b", "c"]), {"a": A, "b": B, "c": B + 1}, "reproduced"),
        (claim("less", reference=["b", "c"]), {"a": A, "b": B, "c": CLOSE}, "equivalent"),
        (claim("less", reference=["b", "c"]), {"a": A, "b": CLOSE, "c": A - 1}, "contradicted"),
        (claim("equivalent", reference=["b", "c"]), {"a": A, "b": CLOSE, "c": A - 1}, "contradicted"),
        (claim("less", paired=True), {"a": A + NOISE, "b": B + NOISE}, "reproduced"),
        (claim("less"), {"a": A + NOISE, "b": B + NOISE}, "not shown"),
        # A pilot with more noise than the runs decides the error.
        (claim("less", pilot_deviation=0.5), {"a": A, "b": B}, "not shown"),
        # Means are not compared if seeds did not learn, diverged or failed: shares are.
        (claim("less"), {"a": [*A[:4], "diverged"], "b": B}, "not shown"),
        (claim("less"), {"a": [*A[:3], "failed", "diverged"], "b": B}, "not shown"),
        (claim("less"), {"a": STUCK, "b": B}, "contradicted"),
        (claim("less"), {"a": FAR, "b": B}, "contradicted"),
        (claim("less"), {"a": ["diverged"] * 5, "b": B}, "contradicted"),
        (claim("less"), {"a": A, "b": STUCK}, "reproduced"),
        (claim("less"), {"a": A, "b": [*STUCK[:4], B[4]]}, "reproduced"),
        (claim("less"), {"a": A, "b": [*STUCK[:3], *B[3:]]}, "not shown"),
        (claim("greater"), {"a": FAR, "b": B}, "reproduced"),
        (claim("equivalent"), {"a": STUCK, "b": B}, "contradicted"),
        (claim("equivalent"), {"a": STUCK, "b": STUCK}, "not testable"),
        (claim("less"), {"a": STUCK, "b": FAR}, "not testable"),
        (claim("less", row="control"), {"b": B}, "contradicted"),
        # A grid that is not complete, or too small, has no verdict.
        (claim("less"), {"a": A, "b": [*B[:4], "missing"]}, "not testable"),
        (claim("less"), {"a": A, "b": B[:4]}, "not testable"),
        (claim("less"), {"a": [5.1] * 5, "b": [6.7] * 5}, "not testable"),
        (claim("equivalent", paired=True, pilot_deviation=0.001), {"a": A, "b": A}, "not testable"),
    ],
)
def test_each_verdict_follows_from_its_values(claimed: dict[str, Any], values: dict[str, Any], verdict: str) -> None:
    entry = one(claimed, CONTROL | values)
    assert (entry["verdict"], bool(entry["reason"])) == (verdict, True), entry["reason"]
    assert (entry["p_holm"] is None) == (verdict == "not testable")
    assert (entry["interval"] is None) == (entry["outcome"] != "means")


def test_few_seeds_are_not_judged() -> None:
    for values in ({"a": A[:3], "b": B[:3]}, {"a": A[:4], "b": B[:4]}):
        entry = one(claim("less"), CONTROL | values, seeds=len(values["a"]))
        assert entry["reason"] == f"a has {len(values['a'])} seeds; a verdict needs 5"
    # Rows of a published table may have lists of seeds of their own.
    listed: dict[str, Any] = registration([claim("less")], ["a", "b"], 5) | {"control": ""}
    listed["rows"][1]["seeds"] = [*range(8)]
    (entry,) = judge(listed, cells({"a": A, "b": [*B, *B[:3]]}))
    assert (entry["verdict"], entry["counts"]) == ("reproduced", {"row": 5, "reference": 8})


def test_an_entry_names_seeds_and_has_its_numbers() -> None:
    entry = one(claim("less"), CONTROL | {"a": A, "b": B})
    expected = larger_variance_difference(A, B)
    half = expected.half_width(0.975)
    assert entry["interval"] == pytest.approx([expected.estimate - half, expected.estimate + half])
    assert entry["bound"] == entry["interval"][1]
    design = Design(counts=(5, 5), deviations=(A.std(ddof=1), B.std(ddof=1)))
    assert entry["mde"] == pytest.approx(significance_tests.smallest_effect(design))
    assert entry["power"] == pytest.approx(significance_tests.power_of_direction(0.02, design))
    assert entry["metrics"] == [{"metric": METRIC, **{name: entry[name] for name in ("estimate", "interval", "p", "verdict")}}]
    assert entry["floor"]["name"] == "the control row, control" and entry["floor"]["value"] == pytest.approx(9)
    unlike = one(claim("less"), CONTROL | {"a": [*A[:4], "diverged"], "b": [*B[:2], STUCK[0], "failed", "diverged"]})
    assert unlike["notes"] == ["a: seed 4 diverged", "b: seed 4 diverged", "b: seed 2 did not learn", "b: seed 3 failed"]
    assert unlike["shares"]["row"] == {"learned": 4, "seeds": 5, "low": pytest.approx(0.2836, abs=1e-4)} | {
        "high": pytest.approx(0.9949, abs=1e-4)
    }
    assert (unlike["test"], unlike["outcome"], unlike["learned"]) == ("fisher", "shares", {"row": 4, "reference": 2})
    assert "4 of 5 seeds of a and 2 of 5 seeds of b learned" in unlike["reason"]


def test_an_untestable_claim_keeps_its_place_in_the_correction() -> None:
    claims = [claim("less"), claim("less", "a", "missing"), claim("less", "b", "missing")]
    entries = judge(registration(claims, ["a", "b", "missing"], 5), cells(CONTROL | {"a": A, "b": B}))
    assert entries[0]["p_holm"] == pytest.approx(3 * entries[0]["p"])


def test_the_strictest_floor_decides_what_learned() -> None:
    floor = {"name": "unigram", "metric": METRIC, "value": 6.4, "source": "counted"}
    assert "there is no floor" in one(claim("less"), {"a": A, "b": B})["reason"]
    scored = [item | {"scores": item["scores"] | {"unigram_loss": 5.05}} for item in cells(CONTROL | {"a": A, "b": B})]
    (entry,) = judge(registration([claim("less")], ["a", "b"], 5), scored)
    # The reference is below the control, and above word frequencies.
    assert (entry["verdict"], entry["floor"]) == ("reproduced", {"name": "the unigram loss", "value": pytest.approx(5.05)})
    assert (entry["outcome"], entry["learned"]) == ("shares", {"row": 5, "reference": 0})
    assert one(claim("less"), {"a": A, "b": B}, [floor])["outcome"] == "means"
    # The loss of pairs of segments is a sum, which has no such floor.
    paired = [
        item | {"scores": {"loss": item["scores"]["masked_loss"], "unigram_loss": 5.05, "next_loss": 0.7}} for item in scored
    ]
    (entry,) = judge(registration([claim("less", metric="pretrain/loss")], ["a", "b"], 5), paired)
    assert (entry["outcome"], entry["floor"]["name"]) == ("means", "the control row, control")
    strong = floor | {"value": 4.0}
    assert one(claim("less"), CONTROL | {"a": A, "b": B}, [strong])["verdict"] == "not testable"
    # A seed that beats the floor by less than the margin did not learn.
    assert one(claim("less", margin=1.45), {"a": A, "b": B}, [floor])["verdict"] == "not testable"


@pytest.mark.planted(4)
def test_earlier_rules_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    censored, crashed = CONTROL | {"a": FAR, "b": B}, CONTROL | {"a": [*A[:3], "failed", "failed"], "b": B}
    small = CONTROL | {"a": A, "b": CLOSE}
    with monkeypatch.context() as patch:
        # A row that is no better than the control is not judged.
        patch.setattr(learned_seeds, "share_p_values", lambda *_: (1.0, 1.0))
        assert one(claim("less"), censored)["verdict"] != "contradicted"
    with monkeypatch.context() as patch:
        # Survivors are compared.
        patch.setattr(claim_comparison, "_outcome", lambda *_, **__: ("means", ""))
        assert one(claim("less"), crashed)["verdict"] == "reproduced"
    with monkeypatch.context() as patch:
        # A direction without its margin.
        p = verdicts.claim_parts
        patch.setattr(verdicts, "claim_parts", lambda item: p({**item, "margin": 0.0}))
        assert one(claim("less", margin=0.1), CONTROL | {"a": A, "b": B})["verdict"] == "reproduced"
        assert one(claim("less"), small)["verdict"] != "equivalent"
    with monkeypatch.context() as patch:
        # A floor that is not applied.
        patch.setattr(learned_seeds, "strictest_floor", lambda *_: ("none", 99.0))
        assert one(claim("less"), CONTROL | {"a": STUCK, "b": STUCK[::-1]})["verdict"] != "not testable"


def test_two_metrics_may_disagree() -> None:
    accuracy, two = "pretrain/accuracy", {"second_metric": "pretrain/accuracy", "second_margin": 0.01}
    control = cells(CONTROL) + cells({"control": 0.1 + 0.001 * NOISE}, accuracy)

    def judged(of_a: Any, of_b: Any, loss: Any = B, kind: str = "less", **more: Any) -> dict[str, Any]:
        listed = registration([claim(kind, **(two | more))], ["a", "b"], 5)
        merged = [*control, *cells({"a": A, "b": loss}), *cells({"a": of_a, "b": of_b}, accuracy)]
        (entry,) = judge(listed, merged)
        return entry

    high, low = 0.5 + 0.001 * NOISE, 0.4 + 0.001 * NOISE[::-1]
    # A lower loss is better, and a lower accuracy worse.
    assert judged(high, low)["verdict"] == "reproduced"
    both = judged(low, high)
    assert both["verdict"] == "depends on the metric"
    assert both["reason"] == f"reproduced in {METRIC}, contradicted in {accuracy}"
    assert [part["verdict"] for part in both["metrics"]] == ["reproduced", "contradicted"]
    # Both count in the correction.
    assert both["p_holm"] == pytest.approx(2 * both["p"])
    assert judged(low, low + 1e-5 * NOISE[::-1])["verdict"] == "depends on the metric"
    assert judged(low, low + 0.1 * NOISE[::-1])["verdict"] == "reproduced"
    assert judged(low, high, CLOSE, kind="equivalent")["verdict"] == "depends on the metric"
    with pytest.raises(BadInput, match="an equivalence needs one above 0"):
        judged(low, high, kind="equivalent", second_margin=0.0)


def test_looks_are_those_that_were_registered() -> None:
    a, b = np.concatenate([A, A[:3]]), np.concatenate([B, B[:3]])
    listed = registration([claim("less")], ["a", "b"], 8) | {"looks": [5, 8]}
    control = {"control": 9 + 0.01 * np.arange(8)}

    def at(seeds: int, wide: float = 1.0, **more: Any) -> dict[str, Any]:
        values = {"a": a, "b": 5 + wide * (b - 5)}
        unfinished = {name: [*side[:seeds], *["missing"] * (8 - seeds)] for name, side in values.items()}
        (entry,) = judge(listed | more, cells(control | unfinished))
        return entry

    assert [at(seeds)["verdict"] for seeds in (4, 5, 6, 8)] == ["not testable", *["reproduced"] * 3]
    assert [at(seeds)["look"] for seeds in (5, 6, 8)] == [5, 5, 5]
    # A difference that is too small for the first look, whose level is 0.46% and not 2.5%.
    assert [at(seeds, 0.2)["verdict"] for seeds in (5, 7, 8)] == ["not shown", "not shown", "direction only"]
    assert at(8, 0.2)["look"] == 8
    assert "1 of 8 seeds of a have no" in at(7, looks=[8])["reason"]
    with pytest.raises(BadInput, match="rows have seeds of their own"):
        at(8, rows=[{"name": "a", "seeds": [1, 2]}])
    for looks in ([5, 7], [8, 5], [3, 8]):
        with pytest.raises(BadInput, match=r"must rise from at least 5 to the number of seeds, 8"):
            at(8, looks=looks)


def test_the_error_over_items_is_part_of_the_verdict() -> None:
    values = CONTROL | {"a": A, "b": B}
    part = {"row": "a", "reference": "b", "metric": METRIC, "items": 200, "item_error": 0.08}
    entry = one(claim("less"), values, items=[part])
    assert (entry["verdict"], entry["item_error"], entry["items"]["items"]) == ("not shown", 0.08, 200)
    assert entry["seed_error"] == pytest.approx(larger_variance_difference(A, B).error)
    assert one(claim("less"), values, items=[part | {"metric": "pretrain/accuracy"}])["verdict"] == "reproduced"


def test_a_stage_failed_if_its_parent_did() -> None:
    metric = "tune/accuracy"
    values = {"a": A / 10, "b": B / 10, "control": 0.1 + 0.01 * NOISE}
    listed = registration([claim("greater", "b", "a", metric=metric, margin=0.001)], list(values), 5)
    for row in listed["rows"]:
        row["stages"] = {"pretrain": {}, "tune": {"after": "pretrain"}}
    failed = [{"row": "a", "seed": seed, "stage": "pretrain", "status": "failed", "scores": {}} for seed in (0, 1)]
    assert judge(listed, cells(values, metric))[0]["verdict"] == "reproduced"
    assert judge(listed, [*failed, *cells(values, metric)])[0]["shares"]["reference"]["learned"] == 3


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
