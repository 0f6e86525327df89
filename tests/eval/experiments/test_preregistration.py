"""The registration of an experiment, and the corpora that it accepts."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.experiments import collect_results, experiment_data, judge_source, preregistration
from eval.experiments.analysis import registration_seal, scaling_fit, significance_tests
from eval.experiments.declaration import Tier
from eval.experiments.page.registration_edits import check_registration, edit_lines
from tests.support.processes import ROOT
from tests.support.small_experiment import FILES, small_grid, with_claim, with_row
from train.run import metrics_file
from train.run.run_dir import RunDir
from zoo.errors import BadInput

RESULTS = ROOT / "eval/experiments/results"


def begin(folder: Path) -> None:
    """Make it look as if the first run had begun."""
    (folder / "runs/a-pretrain-0").mkdir(parents=True)
    (folder / "runs/a-pretrain-0/config.json").write_text("{}")


def register_and_begin(folder: Path) -> dict[str, Any]:
    registered = preregistration.register_grid(small_grid(), folder)
    begin(folder)
    return registered


def test_a_claim_that_changes_after_the_first_run_is_exploratory(tmp_path: Path) -> None:
    first = preregistration.register_grid(small_grid(), tmp_path)
    assert first["changed"] == [] and first["hash"] == preregistration.register_grid(small_grid(), tmp_path)["hash"]
    changed = small_grid(**with_claim(margin=0.5))
    # Before the first run the claims may still change.
    assert preregistration.register_grid(changed, tmp_path)["changed"] == []
    preregistration.register_grid(small_grid(), tmp_path)
    begin(tmp_path)
    later = preregistration.register_grid(changed, tmp_path)
    assert (later["changed"], later["claims"][0]["margin"], later["hash"]) == (["b_below_a"], 0.5, first["hash"])
    assert preregistration.read_registration(tmp_path)["claims"][0]["margin"] == 0.01


def test_another_registration_is_refused_and_what_changed_is_named(tmp_path: Path) -> None:
    preregistration.register_grid(small_grid(), tmp_path)
    begin(tmp_path)
    for grid, message in (
        (small_grid(**with_row("b", **{"optim.lr": 3e-3})), "row b, pretrain.options.optim.lr: 0.002 before, 0.003 now"),
        (small_grid(rows=small_grid().experiment.rows[:2], control="a"), "control: none before, a now; row none: absent now"),
        (small_grid(budget="text_tokens"), "budget: input_tokens before, text_tokens now"),
    ):
        with pytest.raises(BadInput, match=message):
            preregistration.register_grid(grid, tmp_path)
    (tmp_path / preregistration.FILE).unlink()
    with pytest.raises(BadInput, match="has runs and no registration"):
        preregistration.register_grid(small_grid(), tmp_path)


def test_a_corpus_of_another_digest_is_refused(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "text.txt").write_text(part)
    digest, options = experiment_data.folder_digest(tmp_path), {"folder": str(tmp_path), "tasks": ""}
    with pytest.raises(BadInput, match=rf"its SHA-256 is {digest}, and the tier's corpus has {experiment_data.PUBLIC_SHA256}"):
        experiment_data.find_files(Tier(), False, digest="", **options)
    chosen = experiment_data.find_files(Tier(), False, digest="any", **options)
    assert chosen.corpus == f"user {digest}" and len(chosen.deviations) == 1
    assert experiment_data.find_files(Tier(), False, digest=digest, **options).corpus == chosen.corpus
    with pytest.raises(BadInput, match="--tasks"):
        experiment_data.find_files(Tier(corpus="user"), True, digest="", **options)
    with pytest.raises(BadInput, match="--corpus: this tier trains on the `public` corpus"):
        experiment_data.find_files(Tier(), False, folder="", digest="", tasks="")
    (tmp_path / "train/text.txt").write_text("changed")
    assert experiment_data.folder_digest(tmp_path) != digest


def rewrite(folder: Path, seal: bool = False, **changes: Any) -> None:
    """Edit registration.json by hand; with `seal` also its hash, as somebody who replaces it would."""
    path = folder / preregistration.FILE
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(content | {"hash": registration_seal.content_hash(content)} if seal else content))


def test_the_seal_covers_the_claims_the_judge_the_code_and_the_data(tmp_path: Path) -> None:
    registered = preregistration.register_grid(small_grid(), tmp_path)
    sealed = json.loads((tmp_path / preregistration.FILE).read_text())
    assert registered["sealed"] == sealed and registration_seal.seal_problem(sealed) == ""
    assert sealed["judge"]["levels"]["eval.experiments.analysis.significance_tests.LEVEL"] == significance_tests.LEVEL
    assert {"jax", "numpy", "scipy"} == sealed["versions"].keys() and {"commit", "dirty"} < sealed["code"].keys()
    for name in sealed.keys() - {"hash"}:
        assert registration_seal.seal_problem({**sealed, name: "edited"}), name


@pytest.mark.planted(4)
def test_a_registration_that_was_edited_by_hand_is_refused(tmp_path: Path) -> None:
    register_and_begin(tmp_path)
    intact = (tmp_path / preregistration.FILE).read_bytes()
    registered = preregistration.read_registration(tmp_path)
    record = {"date": "2026-01-01", "tokenizer": "t"}
    edits: tuple[dict[str, Any], ...] = (
        {"claims": [{**registered["claims"][0], "margin": 0.5}]},
        {"forecast": {"b_below_a": "Reproduced, as it turned out."}},
        {"date": "2020-01-01"},
        {"records": [{**record, "hash": "0" * 64}]},
    )
    for changes in edits:
        rewrite(tmp_path, **changes)
        with pytest.raises(BadInput, match=r"registration\.json was edited after the registration: .*; restore the file, or reg"):
            preregistration.register_grid(small_grid(), tmp_path)
        (tmp_path / preregistration.FILE).write_bytes(intact)
    rewrite(tmp_path, seal=True, judge=None)
    with pytest.raises(BadInput, match=r"judge: NoneType"):
        preregistration.read_registration(tmp_path)


@pytest.mark.planted(5)
def test_what_differs_from_the_registration_is_recorded_and_exploratory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_and_begin(tmp_path)
    hopeful = small_grid(forecast={"b_below_a": "Reproduced, as it turned out."}, **with_claim(margin=0.5))
    later = preregistration.register_grid(hopeful, tmp_path)
    assert [(edit["claim"], edit["field"], edit["before"], edit["now"]) for edit in later["edits"]] == [
        ("b_below_a", "margin", 0.01, 0.5),
        ("b_below_a", "forecast", "Open.", "Reproduced, as it turned out."),
    ]
    # The date of an edit is that on which it was first seen, and the page has the registered forecast.
    monkeypatch.setattr(preregistration, "_today", lambda: "2100-01-01")
    again = preregistration.register_grid(hopeful, tmp_path)
    assert again["edits"] == later["edits"] and again["forecast"] == {"b_below_a": "Open."} and again["changed"] == ["b_below_a"]
    assert preregistration.register_grid(small_grid(), tmp_path)["changed"] == []
    # A claim more or less changes the correction of the others.
    two = (*small_grid().experiment.claims, dataclasses.replace(small_grid().experiment.claims[0], id="again"))
    more = preregistration.register_grid(small_grid(claims=two, forecast={"b_below_a": "Open.", "again": "Open."}), tmp_path)
    assert more["changed"] == ["again"]
    assert preregistration.register_grid(small_grid(claims=()), tmp_path)["changed"] == ["b_below_a"]
    # Another level of the judge, or another judge, concerns every claim.
    source = Path(significance_tests.__file__).read_text().replace("LEVEL = 0.025", "LEVEL = 0.05")
    monkeypatch.setattr(judge_source, "_source", stand_in_for(significance_tests.__name__, source, tmp_path / "tests.py"))
    edited = preregistration.register_grid(small_grid(), tmp_path)
    assert edited["changed"] == ["b_below_a"] and [edit["field"] for edit in edited["edits"]] == [
        "judge eval.experiments.analysis.significance_tests",
        "level eval.experiments.analysis.significance_tests.LEVEL",
    ]
    (line, level) = edit_lines(edited)
    assert level.endswith(
        "LEVEL was 0.025 when it was registered, and is 0.05 since 2100-01-01, so that every claim is exploratory."
    )
    assert re.match(
        r"The judge eval.experiments.analysis.significance_tests was [0-9a-f]{12}… when it was registered, and is", line
    )


def stand_in_for(module: str, source: str, path: Path) -> Callable[[str], Path]:
    """Return a function that finds the sources of modules, of one of them another source."""
    path.write_text(source)
    find = judge_source._source
    return lambda name: path if name == module else find(name)


@pytest.mark.planted
def test_an_own_judge_is_sealed_in_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = small_grid(judge=scaling_fit.judge_scaling_claims)
    registered = preregistration.register_grid(own, tmp_path)
    assert registered["judge"]["function"] == "eval.experiments.analysis.scaling_fit.judge_scaling_claims"
    begin(tmp_path)
    source = Path(scaling_fit.__file__).read_text() + "\n# A rule that is more convenient.\n"
    monkeypatch.setattr(judge_source, "_source", stand_in_for(scaling_fit.__name__, source, tmp_path / "fit.py"))
    assert preregistration.register_grid(own, tmp_path)["changed"] == ["b_below_a"]


@pytest.mark.planted
def test_a_registration_that_was_replaced_after_the_runs_is_noticed(tmp_path: Path) -> None:
    """Claim and hash are edited together; the hash that the runs recorded at their start is another one."""
    first = register_and_begin(tmp_path)
    run = RunDir(tmp_path / "runs/a-pretrain-0")
    metrics_file.record_start(run, 0, {"model": "1 parameter"}, 1.0, 0.0)
    honest = collect_results.write_results(small_grid(), first, tmp_path)
    assert (honest["registration"]["changed"], honest["registration"]["edits"]) == ([], [])
    claims = [{**first["claims"][0], "margin": 0.5}]
    rewrite(tmp_path, seal=True, claims=claims)
    replaced = preregistration.register_grid(small_grid(**with_claim(margin=0.5)), tmp_path)
    assert replaced["edits"] == []
    result = collect_results.write_results(small_grid(**with_claim(margin=0.5)), replaced, tmp_path)
    (edit,) = result["registration"]["edits"]
    assert (edit["field"], edit["before"], edit["now"]) == ("registration", first["hash"], replaced["hash"])
    assert edit["runs"] == ["runs/a-pretrain-0"]
    assert (
        result["claims"][0]["exploratory"]
        and "was replaced: runs/a-pretrain-0 started" in (tmp_path / "experiment.md").read_text()
    )
    # The record stays in the registration.
    assert preregistration.read_registration(tmp_path)["records"][0]["edits"][0]["before"] == first["hash"]


def test_the_tokenizer_is_recorded_once_it_exists(tmp_path: Path) -> None:
    first = register_and_begin(tmp_path)
    recorded = preregistration.record_tokenizer(first, "t1", tmp_path)
    assert recorded["hash"] == first["hash"] and recorded["sealed"]["records"][0]["tokenizer"] == "t1"
    assert preregistration.record_tokenizer(recorded, "t1", tmp_path)["edits"] == []
    assert preregistration.record_tokenizer(recorded, "t2", tmp_path)["changed"] == ["b_below_a"]
    assert registration_seal.seal_problem(preregistration.read_registration(tmp_path)) == ""


@pytest.mark.planted(2)
def test_task_files_are_registered_by_their_digests(tmp_path: Path) -> None:
    files = dataclasses.replace(FILES, tasks=str(tmp_path / "tasks"))
    stage = dataclasses.replace(small_grid().experiment.stages[1], overrides={"files": "{tasks}/sst2/test.tsv"})
    grid = dataclasses.replace(small_grid(stages=(small_grid().experiment.stages[0], stage)), files=files)
    with pytest.raises(BadInput, match=r"--tasks: there is no file .*sst2/test\.tsv"):
        preregistration.register_grid(grid, tmp_path)
    (tmp_path / "tasks/sst2").mkdir(parents=True)
    (tmp_path / "tasks/sst2/test.tsv").write_text("good\t1\n")
    assert preregistration.register_grid(grid, tmp_path)["tasks"].keys() == {"sst2/test.tsv"}
    begin(tmp_path)
    (tmp_path / "tasks/sst2/test.tsv").write_text("good\t0\n")
    with pytest.raises(BadInput, match=r"tasks: sst2/test.tsv [0-9a-f]{64} before, [0-9a-f]{64} now"):
        preregistration.register_grid(grid, tmp_path)


def test_the_registrations_of_committed_results_are_intact() -> None:
    for path in sorted(RESULTS.glob("*/experiment.json")):
        result = json.loads(path.read_text())
        assert registration_seal.seal_problem(result["registration"]) == "", path
        check_registration(result)
        edited = set(result["registration"]["changed"])
        assert edited == {claim["id"] for claim in result["claims"] if claim["exploratory"]}, path
