"""The audit of a run: an honest one passes, forgeries are noticed, and what cannot be audited is refused."""

import dataclasses
import random
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from eval.audit import audit_run, comparison, hardware, recomputed_scores
from eval.audit.audit_types import Interval, choose_intervals, describe_coverage
from tests.support import forgeries
from tests.support.audited_runs import STEPS, audit, copied, edit_json, edit_rows, evaluated, extended, findings, reseal, trained
from tests.support.commands import call, printed, snapshot
from train.run.item_outcomes import HELD_OUT, Outcomes, read_outcomes, write_outcomes
from train.run.metrics_file import read_starts
from train.run.run_dir import RunDir
from zoo.errors import BadInput


def results(certificate: dict[str, Any]) -> dict[str, str]:
    return {check["check"]: check["result"] for check in certificate["checks"]}


def test_all_steps_of_an_honest_run_are_replayed_with_the_same_bits() -> None:
    with copied(trained("gpt")) as run:
        before = snapshot(run)
        certificate = audit(run)
        assert snapshot(run) == before
    assert certificate["verdict"] == "passed"
    assert certificate["coverage"]["states_reproduced"] == [3, 6, 8] and certificate["coverage"]["share"] == 1
    assert [interval["compared"] for interval in certificate["intervals"]] == ["bits"] * 3
    assert {interval["state"] for interval in certificate["intervals"]} == {"compared"}


@pytest.mark.planted(4)
def test_an_audit_names_each_of_several_forgeries() -> None:
    """By somebody who computes the digests of all files again."""
    rng = random.Random(0)
    with copied(trained("gpt")) as run:
        forgeries.other_samples(run, rng)
        forgeries.edited_moments(run, random.Random(1))
        forgeries.last_bit_of_a_loss(run, rng)
        forgeries.better_score(run, rng)
        certificate = audit(run)
    failed = {name for name, result in results(certificate).items() if result == "failed"}
    problems = " ".join(problem for interval in certificate["intervals"] for problem in interval["problems"])
    assert certificate["verdict"] == "failed" and {"samples of each step", "scores.json"} <= failed
    for part in ("opt_state/", "ledger.jsonl: step", "loss is"):
        assert part in problems, (part, problems)


EARLY = ("other_seed", "other_rate", "other_batch", "edited_data", "swapped_data", "flipped_bit")
"""Forgeries that are noticed before anything is replayed."""


@pytest.mark.planted(len(EARLY))
def test_edits_without_new_digests_are_noticed_before_a_replay() -> None:
    for name in EARLY:
        with copied(trained("gpt")) as run:
            forgeries.FORGERIES[name](run, random.Random(0))
            assert findings(run), name


@pytest.mark.full
@pytest.mark.planted(len(forgeries.EVALUATED))
def test_an_edited_evaluation_is_noticed_and_an_honest_one_passes() -> None:
    with copied(evaluated("gpt")) as run:
        certificate = audit(run, 1)
        assert results(certificate)["evaluations.json: blimp"] == results(certificate)["outcomes.npz: blimp"] == "passed"
        (run.parents[1] / "pairs.jsonl").unlink()
        assert findings(run, 1) == ["evaluations.json: blimp: pairs.jsonl is not here"]
    for forge in forgeries.EVALUATED.values():
        with copied(evaluated("gpt")) as run:
            forge(run, random.Random(0))
            assert any(line.startswith("evaluations.json: blimp: ") for line in findings(run, 1))


@pytest.mark.full
def test_a_run_that_was_killed_and_continued_passes() -> None:
    run = trained("gpt", "--data.batch", "16", "--accumulate", "2", fault="train.step:error:5")
    with copied(run) as copy:
        assert findings(copy) == []
        assert [start["step"] for start in read_starts(RunDir(copy))] == [0, 3]


@pytest.mark.full
@pytest.mark.planted
def test_edited_outcomes_of_rows_are_noticed_and_absent_ones_are_named() -> None:
    with copied(trained("gpt")) as run:
        outcomes = read_outcomes(RunDir(run), HELD_OUT)
        write_outcomes(RunDir(run), HELD_OUT, dataclasses.replace(outcomes, nats=outcomes.nats * 0.99))
        assert any(line.startswith("outcomes.npz: held_out: ") for line in findings(run))
        RunDir(run).outcomes.unlink()
        certificate = audit(run)
        assert results(certificate)["outcomes.npz: held_out"] == "not checked" and certificate["verdict"] == "incomplete"


@pytest.mark.full
def test_steps_that_cannot_be_taken_here_are_named_and_the_others_are_replayed() -> None:
    """Without the model that it began with, a run continues from its checkpoints alone."""
    with copied(trained("adapters")) as run:
        (run.parent / "gpt").unlink()
        certificate = audit(run)
    assert certificate["verdict"] == "incomplete"
    assert [check["check"] for check in certificate["checks"] if check["result"] != "passed"] == ["steps 1 to 3"]


@pytest.mark.full
def test_an_extended_run_passes() -> None:
    """The steps before the extension have the schedule of the shorter run."""
    run = extended("gpt", 6)
    with copied(run) as copy:
        certificate = audit(copy)
    assert certificate["verdict"] == "passed" and certificate["coverage"]["states_reproduced"] == [3, 6, 8]


@pytest.mark.full
def test_a_run_with_one_checkpoint_is_replayed_completely() -> None:
    run = trained("gpt", "--checkpoint.every", str(STEPS), "--checkpoint.keep", "1")
    with copied(run) as copy:
        certificate = audit(copy, 3)
    [interval] = certificate["intervals"]
    assert (certificate["verdict"], interval["to_step"], interval["state"]) == ("passed", STEPS, "compared")
    assert certificate["coverage"]["states_not_reproduced"] == []


def test_a_signed_certificate_is_checked_by_a_third_party(capsys: pytest.CaptureFixture[str]) -> None:
    with copied(trained("gpt")) as run:
        for name in ("key", "other"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", name], check=True)
            Path(f"{name}.signers").write_text(f"{name}@x {Path(f'{name}.pub').read_text()}")
        out = printed(capsys, "audit", str(run), "--steps", "1", "--out", "a.json", "--key", "key")
        assert out.endswith("passed: a.json\n")
        verify = ("audit", "--verify", "a.json")
        assert "key@x" in printed(capsys, *verify, "--signers", "key.signers")
        ended = call(capsys, *verify, "--signers", "other.signers")
        assert ended.code == 1 and "failed       signature" in ended.stdout
        certificate = Path("a.json").read_text()
        Path("a.json").write_text(certificate.replace('"share": 0.25', '"share": 0.75'))
        assert Path("a.json").read_text() != certificate
        assert call(capsys, *verify).code == 1
        Path("a.json").write_text(certificate)
        edit_json(run / "scores.json", lambda scores: scores.update(loss=1.0))
        ended = call(capsys, *verify, "--signers", "key.signers")
        assert ended.code == 1 and "failed       files: scores.json has other content" in ended.stdout


@pytest.mark.planted(5)
def test_a_certificate_is_vouched_for_by_a_listed_key_only(capsys: pytest.CaptureFixture[str]) -> None:
    with copied(trained("gpt")) as run:
        for name, phrase in (("key", ""), ("locked", "secret")):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", phrase, "-C", name, "-f", name], check=True)
        line = printed(capsys, "audit", str(run), "--out", "a.json", "--key", "locked", code=2)
        assert line.startswith("zoo: --key locked cannot sign (ssh-keygen says: ") and line.endswith("name its public key\n")
        Path("a.json.sig").mkdir()
        line = printed(capsys, "audit", str(run), "--out", "a.json", code=2)
        assert line == "zoo: --out a.json.sig: it is a folder; name a file\n"
        Path("a.json.sig").rmdir()
        assert call(capsys, "audit", str(run), "--steps", "1", "--out", "a.json").code == 0
        edit_json(Path("a.json"), lambda certificate: certificate.update(seed=1))
        ended = call(capsys, "audit", "--verify", "a.json")
        assert ended.code == 1 and "not checked  signature: not signed: there is no a.json.sig" in ended.stdout
        assert ended.stdout.endswith("incomplete: a.json\n")
        subprocess.run("ssh-keygen -q -Y sign -f key -n zoo-audit < a.json > a.json.sig", shell=True, check=True)
        ended = call(capsys, "audit", "--verify", "a.json")
        assert ended.code == 1 and "name --signers, since anybody can sign with some key" in ended.stdout
        public = Path("key.pub").read_text()
        # The first name is limited to signatures of another kind.
        Path("signers").write_text(f'git@x namespaces="git" {public}me@x,audit@x {public}')
        assert printed(capsys, "audit", "--verify", "a.json", "--signers", "signers").endswith("passed: a.json\n")
        edit_json(Path("a.json"), lambda certificate: certificate["checks"][0].update(result="failed"))
        subprocess.run("ssh-keygen -q -Y sign -f key -n zoo-audit < a.json > a.json.sig", shell=True, check=True)
        ended = call(capsys, "audit", "--verify", "a.json", "--signers", "signers")
        assert ended.code == 1 and "failed       verdict of the audit: it is passed, but its check " in ended.stdout


def test_what_cannot_be_audited_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with copied(trained("gpt")) as run:
        with FileLock(run / "run.lock", fallback_to_soft=False):
            line = printed(capsys, "audit", str(run), code=2)
        assert " is in use by " in line and line.endswith("; audit it when it has ended or stopped\n")
        line = printed(capsys, "audit", str(run), "--key", "a", code=2)
        assert line == "zoo: --key a: the signature is a file beside the certificate; add --out FILE\n"
        assert "--verify text.jsonl is invalid JSON" in printed(capsys, "audit", "--verify", "text.jsonl", code=2)
        forgeries.edited_data(run, random.Random(0))
        line = printed(capsys, "audit", str(run), code=2)
        assert " was trained on other data: data: " in line and " in the checkpoint, " in line and " here" in line
        (run / "ledger.jsonl").unlink()
        (run / "metrics.jsonl").unlink()
        line = printed(capsys, "audit", str(run), code=2)
        fix = "train a run that is to be audited with --log.ledger, and keep all of its files"
        assert line == f"zoo: {run} cannot be audited without metrics.jsonl, ledger.jsonl; {fix}\n"


@pytest.mark.planted
def test_other_versions_are_named_and_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with copied(trained("gpt")) as run:
        edit_rows(run / "starts.jsonl", lambda rows: rows[0]["versions"].update(jax="0.9.1"))
        line = printed(capsys, "audit", str(run), code=2)
        assert " was trained with other versions: jax: 0.9.1 then, " in line and "--other-versions" in line


@pytest.mark.full
@pytest.mark.planted
def test_on_other_hardware_losses_are_compared_within_the_bound() -> None:
    """And a loss that is beyond it is noticed."""
    with copied(trained("gpt")) as run:
        edit_rows(run / "starts.jsonl", lambda rows: rows[0]["provenance"].update(processor="another"))
        certificate = audit(run)
        assert certificate["verdict"] == "passed within bounds"
        assert {interval["compared"] for interval in certificate["intervals"]} == {"losses within the bound"}
        edit_rows(run / "metrics.jsonl", lambda rows: rows[0].update(loss=rows[0]["loss"] * 1.0001))
        reseal(run)
        assert any("loss is" in line for line in findings(run))


def test_intervals_begin_at_stored_states_and_take_their_share() -> None:
    options: dict[str, Any] = {"steps": 1000, "every": 10, "share": 0.03}
    states = range(0, 1001, 10)
    chosen = choose_intervals(states, **options, count=3, seed=0)
    assert len(chosen) == 3 and chosen[-1] == Interval(990, 1000, 1000) and all(interval.is_complete for interval in chosen)
    assert chosen != choose_intervals(states, **options, count=3, seed=1)
    assert describe_coverage(chosen, [1000], states, 1000)["share"] == 0.03
    assert choose_intervals([0, 800, 1000], **options, count=3, seed=0) == [Interval(0, 15, 800), Interval(800, 1000, 1000)]
    assert choose_intervals([0, 800, 1000], **options, count=0, seed=0) == [Interval(0, 800, 800), Interval(800, 1000, 1000)]
    assert choose_intervals([0, 5], steps=5, every=2, share=0.03, count=1, seed=0) == [Interval(0, 5, 5)]
    selected = choose_intervals([0, 500, 800, 1000], **options, count=1, seed=0, best=520)
    assert selected == [Interval(500, 520, 800), Interval(800, 1000, 1000)]


def test_a_step_belongs_to_the_last_start_before_it() -> None:
    starts = [{"step": 0}, {"step": 6}, {"step": 4}]
    assert hardware.starts_of_steps(starts, 0, 3) == [{"step": 0}]
    assert hardware.starts_of_steps(starts, 3, 8) == [{"step": 0}, {"step": 4}]


@pytest.mark.planted(3)
def test_rows_are_compared_to_the_bit_or_within_the_bound() -> None:
    row = {"kind": "train", "step": 2, "loss": 3.0, "grad_norm": 1.0, "skipped": 1, "time": {"at": 1.0}}
    near = row | {"loss": 3.0 * (1 + 1e-6), "grad_norm": 1.1, "time": {"at": 2.0}}
    assert comparison.row_problem([row], [row | {"time": {}}], bits=True) == ""
    assert comparison.row_problem([row], [near], bits=True).startswith("train 2: loss is 3.0, and computed again 3.0000029")
    assert comparison.row_problem([row], [near], bits=False) == ""
    assert "loss" in comparison.row_problem([row], [row | {"loss": 3.001}], bits=False)
    assert "skipped" in comparison.row_problem([row], [row | {"skipped": 0}], bits=False)
    assert comparison.row_problem([row], [row | {"skipped": 0}], bits=True, partial="train 2") == ""
    assert comparison.row_problem([row, row], [row], bits=True) == "there are 2 rows, and the run writes 1"


@pytest.mark.planted(9)
def test_scores_of_predictions_may_differ_by_the_share_of_items_that_may(tmp_path: Path) -> None:
    """The last values are forgeries."""
    scores = {"loss": 2.0, "perplexity": 7.4, "accuracy": 0.80, "accuracy_stderr": 0.02, "bleu": 30.0, "matthews": 0.6}
    entry = {"metrics": scores, "examples": 500}

    def problem(changed: dict[str, float], bits: bool = False) -> str:
        return comparison.values_problem(entry, {**entry, "metrics": scores | changed}, bits=bits, scores=True)

    assert problem({"accuracy": 0.81, "accuracy_stderr": 0.021, "bleu": 30.9, "matthews": 0.581, "perplexity": 7.4001}) == ""
    for name, value in {"accuracy": 0.811, "bleu": 31.1, "matthews": 0.579, "perplexity": 7.41, "loss": 2.0001}.items():
        assert problem({name: value}).startswith(f"metrics.{name} is {scores[name]}, and computed again {value}")
    assert problem({"accuracy": 0.802}, bits=True).startswith("metrics.accuracy is 0.8")
    right, bleu = np.arange(500) % 2.0, np.linspace(0, 90, 500)
    computed = Outcomes.of([f"a:{number}" for number in range(500)], right, np.ones(500), bleu=bleu)
    for name, largest, differences in (("right", 5, 1.0), ("bleu", 5, 20.0), ("bleu", 500, 0.3)):
        for count, factor in ((largest, 1), (min(largest + 1, 500), 10)):
            change = np.where(np.arange(500) < count, factor * differences, 0)
            write_outcomes(RunDir(tmp_path), "task", dataclasses.replace(computed, **{name: getattr(computed, name) + change}))
            check = recomputed_scores.outcomes_check(RunDir(tmp_path), "task", computed, bits=False)
            assert check.result == ("passed" if factor == 1 else "failed"), (name, count, check)
            assert recomputed_scores.outcomes_check(RunDir(tmp_path), "task", computed, bits=True).result == "failed"


def test_a_run_without_an_intact_checkpoint_is_refused() -> None:
    with copied(trained("gpt")) as run:
        for folder in run.glob("checkpoints/*"):
            (folder / "extra").write_text("x")
        with pytest.raises(BadInput, match="no intact checkpoint"):
            audit_run.audit_run(str(run), audit_run.AuditOptions(steps=1, share=0.03, seed=None, other_versions=False))
