"""The state that a run is scored with: an audit reproduces it to the bit, or its verdict says that it has not."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.audit.run_digests import check_rows
from tests.support.audited_runs import EVERY, STEPS, audit, copied, edit_arrays, edit_json, edit_rows, findings, reseal, trained
from tests.support.commands import call
from train.checkpoints.manifest import Manifest
from zoo import trust

SELECTED = ("--selection.best", "--optim.lr", "1", "--optim.warmup", "7")
"""With this learning rate the second validation is worse than the first."""
BEST = 4


def selected() -> Path:
    """Return a run that keeps its best checkpoint, which is between two others."""
    return trained("gpt", *SELECTED)


def manifests_of(run: Path) -> dict[int, Manifest]:
    return {int(path.name): Manifest.read(path, int(path.name)) for path in sorted((run / "checkpoints").iterdir())}


def checks_of(certificate: dict[str, Any], result: str) -> dict[str, str]:
    """Return the details of the checks with a result, by their names."""
    return {check["check"]: check["detail"] for check in certificate["checks"] if check["result"] == result}


def test_the_best_checkpoint_of_an_honest_run_is_reproduced() -> None:
    with copied(selected()) as run:
        certificate = audit(run, 1)
    assert certificate["verdict"] == "passed", certificate["checks"]
    assert certificate["run"]["best_step"] == BEST
    spans = [(interval["from_step"], interval["to_step"], interval["best_checkpoint"]) for interval in certificate["intervals"]]
    assert spans == [(EVERY, BEST, "compared"), (2 * EVERY, STEPS, "not in the interval")]


@pytest.mark.planted(3)
def test_a_forged_best_checkpoint_fails_whatever_the_share() -> None:
    """Its score is then that of its parameters, and nothing but a replay shows that the run has not had them."""
    with copied(selected()) as run:
        edit_arrays(run, BEST, "params", random.Random(0), "best")
        certificate = audit(run, 1, share=1e-6)
        assert f"best/{BEST:08d}: 1 of " in checks_of(certificate, "failed")[f"steps {EVERY + 1} to {BEST}"]
    with copied(selected()) as run:

        def other_value(meta: dict[str, Any]) -> None:
            meta.update({"value": 0.5} if "value" in meta else {})

        reseal(run, other_value)
        assert "and the best validation by " in checks_of(audit(run, 1), "failed")["selection of the best checkpoint"]
    with copied(selected()) as run:
        shutil.rmtree(run / "best")
        certificate = audit(run, 1)
        assert "selection of the best checkpoint" in checks_of(certificate, "not checked")


@pytest.mark.planted
def test_forged_last_parameters_fail_whatever_the_share() -> None:
    with copied(trained("gpt")) as run:
        edit_arrays(run, STEPS, "params", random.Random(0))
        certificate = audit(run, 1, share=1e-6)
    assert f"checkpoint of step {STEPS}: 1 of " in checks_of(certificate, "failed")[f"steps {2 * EVERY + 1} to {STEPS}"]


@pytest.mark.planted
def test_forged_parameters_fail_on_other_hardware_too() -> None:
    """If they are far from those of the run; and an honest run has not passed, but passed within bounds."""
    with copied(trained("gpt")) as run:
        edit_rows(run / "starts.jsonl", lambda rows: rows[0]["provenance"].update(processor="another"))
        assert audit(run, 1)["verdict"] == "passed within bounds"
        edit_arrays(run, STEPS, "params", random.Random(0), by=1.0)
        failed = checks_of(audit(run, 1), "failed")
    assert f"checkpoints/{STEPS:08d}: the parameters differ by " in failed[f"steps {2 * EVERY + 1} to {STEPS}"]


@pytest.mark.planted(2)
def test_rows_after_the_newest_checkpoint_are_named() -> None:
    with copied(trained("gpt")) as run:
        for name in ("metrics.jsonl", "ledger.jsonl"):
            edit_rows(run / name, lambda rows: rows.append({**rows[-1], "step": STEPS + 2}))
            check = check_rows(run / name, manifests_of(run))
            assert check.result == "not checked"
            assert check.detail.startswith(f"1 rows up to step {STEPS + 2} are later than the newest checkpoint, of step {STEPS}")


@pytest.mark.planted(2)
def test_a_start_sets_no_other_option_than_a_start_may() -> None:
    """By options of starts.jsonl every replay had the forged values, and agreed."""
    for key, value in (("optim.lr", 0.00123), ("data.batch", 4)):
        with copied(trained("gpt")) as run:
            edit_rows(run / "starts.jsonl", lambda rows, key=key, value=value: rows[0]["options"].update({key: value}))
            certificate = audit(run, 1)
        assert checks_of(certificate, "failed") == {"starts.jsonl": f"row 1 sets {key}, which no start may change"}
        assert certificate["intervals"] == []


@pytest.mark.planted(2)
def test_numbers_that_are_none_are_refused_in_starts(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("provenance", "versions"):
        with copied(trained("gpt")) as run:
            edit_rows(run / "starts.jsonl", lambda rows, name=name: rows[0][name].update(evil=float("nan")))
            ended = call(capsys, "audit", str(run))
        assert ended.code == 2 and f"starts.jsonl:1 is not a row of a run: {name} is missing or of another kind" in ended.stderr


def test_a_run_whose_checkpoints_have_no_digest_of_the_text_passes() -> None:
    """As those of earlier versions; the other digests are needed."""

    def remove(name: str) -> Callable[[dict[str, Any]], None]:
        return lambda meta: meta.pop(name, None)

    with copied(trained("gpt")) as run:
        reseal(run, remove("held_out_text"))
        assert findings(run, 1) == []
        reseal(run, remove("held_out"))
        assert "was trained on other data: held_out: None in the checkpoint" in findings(run, 1)[0]


@pytest.mark.planted
def test_an_audit_confirms_nothing_that_the_run_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its replays write the config.json of somebody else, and do not stand for a command that describes the run."""
    confirmed = []
    monkeypatch.setattr(trust, "confirm_references", confirmed.append)
    with copied(trained("gpt")) as run:
        edit_json(run / "config.json", lambda config: config.update(init="hub:evil/model"))
        reseal(run, lambda meta: meta["config"].update(init="hub:evil/model"))
        trust.begin_command(["audit", str(run)])
        certificate = audit(run, 1)
        assert certificate["intervals"], certificate["checks"]
    assert confirmed == []
