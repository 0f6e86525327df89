"""Uploads of runs to an object store: what kills, failures, other machines and evaluations leave in it."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support import object_stores
from tests.support.commands import snapshot
from tests.support.object_stores import Place
from tests.support.processes import run_python
from tests.support.run_copies import NAME, fetch, train, uploads
from tests.support.states import META, Log, make
from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.manifest import Manifest
from train.run.item_outcomes import Outcomes, read_outcomes, write_outcomes
from train.run.outcome_sets import parse_sets
from train.run.result_files import failure_recorded
from train.run.run_dir import RESULTS_LOCK, RunDir
from train.store import result_sync, run_fetch, run_layout, run_uploads
from train.store.run_uploads import RunUploads
from train.weights import reward_scale
from zoo import object_store
from zoo.errors import BadInput
from zoo.fault_points import faults
from zoo.object_store import ObjectStore

FULL = pytest.mark.full
PASS = {"store.put": 3, "store.commit": 1, "store.delete": 2}
"""The pass of a point at which a process is killed: a step is partly uploaded, all but its COMMIT.json, or partly deleted."""


@pytest.mark.planted
def test_a_step_whose_upload_ended_half_way_does_not_exist(
    place: Place, work: RunDir, other: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log()
    train(place, work, 5, log=log)
    with faults("store.commit:EIO:1"):
        train(place, work, 10, log=log)
    assert "UPLOAD of step 10 FAILED: " in log[0] and "the next save tries again" in log[0] and len(log) == 1
    with monkeypatch.context() as patch:
        # The mistake: objects are taken for a step without their COMMIT.json.
        patch.setattr(run_layout, "committed_steps", lambda keys, name: sorted(run_layout.steps_with_objects(keys, name))[::-1])
        patch.setattr(Manifest, "read", lambda folder, step: Manifest(step=step, meta={}, leaves={}))
        run_fetch._fetch(place.store(NAME), RunDir(other.path / "wrong"), place.store(NAME).list(), pytest.fail)
        assert [entry.name for entry in (other.path / "wrong" / "checkpoints").iterdir()] == ["00000010"]
    assert fetch(place, other, log) == 5
    # The next save uploads what is missing.
    train(place, work, 15, keep=3, log=log)
    assert run_layout.committed_steps(place.store(NAME).list(), "checkpoints") == [15, 10, 5]
    assert len(log) == 1


@pytest.mark.parametrize("point", ["store.commit", *(pytest.param(point, marks=FULL) for point in ("store.put", "store.delete"))])
def test_a_kill_during_an_upload_leaves_the_step_before(
    point: str, place: Place, work: RunDir, other: RunDir, tmp_path: Path
) -> None:
    """In a process of its own, which uploads what is in the folder and prunes the store to one step."""
    train(place, work, 5)
    with Checkpoints(work.checkpoints, 9, notify=pytest.fail) as checkpoints:
        checkpoints.save(make(10), META | {"step": 10})
    code = f"""if True:
        import os, pathlib, pytest
        from tests.support import object_stores
        from train.run.run_dir import RunDir
        from train.store.run_uploads import RunUploads
        from zoo import fault_points
        with pytest.MonkeyPatch.context() as patch:
            root = pathlib.Path({str(tmp_path / "store")!r})
            if not os.environ.get("AWS_ENDPOINT_URL"):
                object_stores.in_folder(root, patch)
            fault_points.set_faults("{point}:kill:{PASS[point]}")
            store = object_stores.Place({place.uri!r}).store({NAME!r})
            RunUploads(store, RunDir({str(work.path)!r}), 1, notify=print)._upload()
        """
    env = object_stores.environment(place.proxy) if place.proxy else {"AWS_ENDPOINT_URL": None}
    ended = run_python("-c", code, env=env, cwd=Path(__file__).parents[3])
    assert ended.code == -9, ended
    assert fetch(place, other, Log()) == (10 if point == "store.delete" else 5)
    train(place, work, 15, keep=1)
    assert run_layout.steps_with_objects(place.store(NAME).list(), "checkpoints") == {15}
    assert fetch(place, other, Log()) == 15


def test_without_its_store_a_run_goes_on_and_uploads_later(place: Place, work: RunDir, other: RunDir) -> None:
    log = Log()
    train(place, work, 5, log=log)
    target = uploads(place, work, log)
    before = snapshot(work.path)
    with faults("store.list:EIO:1+,store.put:EIO:1+,store.read:EIO:1+"):
        with Checkpoints(work.checkpoints, 2, notify=log, on_commit=target.commit) as checkpoints:
            for step in (10, 15):
                checkpoints.save(make(step), META | {"step": step})
                assert checkpoints.wait()
        after = snapshot(work.path)
        assert len(log) == 2 and all("FAILED" in line and "after 3 attempts" in line for line in log)
        with pytest.raises(BadInput, match=r"the run could not be uploaded: .*; everything is in .*, and the same command tries"):
            target.__exit__(None)
    assert {name: after[name] for name in before if "00000005" not in name} == {
        name: content for name, content in before.items() if "00000005" not in name
    }
    with target:
        pass
    assert fetch(place, other, log) == 15
    assert len(log) == 2
    # An exception that ends the run is not hidden by an upload.
    with faults("store.list:error:1+"):
        target.__exit__(KeyError)


def test_the_reason_of_a_failure_is_uploaded_until_the_run_continues(place: Place, work: RunDir) -> None:
    log, store = Log(), place.store(NAME)

    def fail(error: BaseException, faulty: str = "") -> None:
        with pytest.raises(type(error)), faults(faulty), uploads(place, work, log), failure_recorded(work, 0):
            raise error

    fail(BadInput("6 steps in a row had a non-finite loss"))
    assert json.loads(store.read("failure.json"))["reason"] == "6 steps in a row had a non-finite loss"
    # Nothing else is uploaded after an error, and no lock ever.
    assert {*store.list()} == {"failure.json", "writer.json"}
    (work.path / RESULTS_LOCK).touch()
    with uploads(place, work, log), failure_recorded(work, 0):
        pass
    assert {"config.json", "metrics.jsonl"} < {*store.list()} and not {"failure.json", RESULTS_LOCK} & {*store.list()}
    # An interruption is no failure, and an upload that fails does not hide the error.
    fail(KeyboardInterrupt())
    assert log == []
    fail(ZeroDivisionError(), "store.read:EIO:1+")
    assert "failure.json" not in store.list() and len(log) == 1 and "failure.json could not be uploaded: " in log[0]


@pytest.mark.planted
def test_failures_that_end_do_not_affect_a_run(
    place: Place, work: RunDir, other: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log()
    with faults("store.list:EIO:1,store.put:EIO:2,store.put:ESTALE:5,store.read:EIO:1"):
        train(place, work, 5, log=log)
    with faults("store.get:EIO:2,store.list:EIO:1"):
        assert fetch(place, other, log) == 5
    assert log == []
    # The mistake: one attempt.
    monkeypatch.setattr(object_store, "WAITS", ())
    with faults("store.put:EIO:3"):
        train(place, work, 10, log=log)
    assert len(log) == 1


def test_two_machines_do_not_train_the_same_run(place: Place, work: RunDir, other: RunDir) -> None:
    log = Log()
    first = uploads(place, work, log)
    uploads(place, other, log)
    first.commit(5)
    [line] = log
    assert "has begun to train this run as well; stop one of the two" in line
    place.store(NAME).delete("writer.json")
    first.commit(5)
    assert "writer.json was deleted" in log[1]


def test_the_logs_of_a_run_that_was_replaced_are_deleted(place: Place, work: RunDir) -> None:
    work.ledger.write_text("{}")
    work.evaluations.write_text("{}")
    notes = work.path / "notes.jsonl"
    notes.write_text("{}")
    train(place, work, 5)
    for file in (work.ledger, work.evaluations, notes):
        file.unlink()
    train(place, work, 10)
    keys = {key for key in place.store(NAME).list() if "/" not in key}
    assert keys == {"config.json", "metrics.jsonl", "evaluations.json", "notes.jsonl", "writer.json"}


def no_report(folder: Path) -> None:
    pytest.fail(f"{folder} had no evaluations to merge")


def test_results_of_an_evaluation_are_uploaded(place: Place, work: RunDir) -> None:
    train(place, work, 5)
    work.evaluations.write_text('{"blimp": 1}')
    work.metrics.write_text("changed")
    run_uploads.upload_results(f"{place.uri}/{NAME}", work, write_report=no_report)
    run_uploads.upload_results(str(work.path), work, write_report=no_report)
    store = place.store(NAME)
    assert json.loads(store.read("evaluations.json")) == {"blimp": 1}
    assert store.read("metrics.jsonl") != b"changed"


@pytest.mark.planted
def test_evaluations_of_two_machines_are_merged(
    place: Place, work: RunDir, other: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(place, work, 5)
    name, store, reports = f"{place.uri}/{NAME}", place.store(NAME), []

    def evaluate(run: RunDir, **entries: int) -> None:
        earlier = json.loads(run.evaluations.read_text()) if run.evaluations.exists() else {}
        run.evaluations.write_text(json.dumps(earlier | entries))
        run_uploads.upload_results(name, run, write_report=reports.append)

    evaluate(work, blimp=1, lambada=1)
    fetch(place, other, Log())
    evaluate(work, blimp=2)
    # This machine has not fetched that; it has an old entry of blimp, which is not its own.
    evaluate(other, lambada=3, rewards=3)
    assert json.loads(store.read("evaluations.json")) == {"blimp": 2, "lambada": 3, "rewards": 3}
    assert json.loads(other.evaluations.read_text()) == {"blimp": 2, "lambada": 3, "rewards": 3}
    assert reports == [other.path]
    # Neither a start with the newest step nor its uploads lose what the store has.
    (other.path / reward_scale.FILE).write_text("{}")
    run_uploads.upload_results(name, other, write_report=reports.append)
    with monkeypatch.context() as patch:
        # The mistake: every result counts as changed here.
        patch.setattr(result_sync, "is_changed", lambda folder, key: True)
        fetch(place, work, Log())
        assert json.loads(work.evaluations.read_text()) == {"blimp": 2, "lambada": 1}
    with uploads(place, work, Log()):
        pass
    assert json.loads(store.read("evaluations.json")) == {"blimp": 2, "lambada": 3, "rewards": 3}
    fetch(place, work, Log())
    assert json.loads(work.evaluations.read_text()) == {"blimp": 2, "lambada": 3, "rewards": 3}
    assert (work.path / reward_scale.FILE).read_text() == "{}"


def test_an_evaluation_that_ends_during_a_fetch_is_not_lost(
    place: Place, work: RunDir, other: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    work.evaluations.write_text('{"blimp": 1}')
    train(place, work, 5)
    fetch(place, other, Log())
    (newer := work.path / "newer.json").write_text('{"blimp": 2}')
    place.store(NAME).put(newer, "evaluations.json")
    get = ObjectStore.get

    def evaluate_meanwhile(store: ObjectStore, key: str, target: Path) -> None:
        get(store, key, target)
        if key == "evaluations.json":
            with other.lock_results(pytest.fail):
                other.evaluations.write_text('{"blimp": 3}')

    monkeypatch.setattr(ObjectStore, "get", evaluate_meanwhile)
    fetch(place, other, Log())
    assert json.loads(other.evaluations.read_text()) == {"blimp": 3}


@pytest.mark.planted
def test_entries_that_another_machine_replaces_are_uploaded_again(
    place: Place, work: RunDir, other: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other machine has read the object before an upload, and replaces it after the upload or after its check."""
    train(place, work, 5)
    name, store, reports, put = f"{place.uri}/{NAME}", place.store(NAME), [], ObjectStore.put
    other.evaluations.write_text('{"lambada": 1}')

    def evaluate(task: str, replaced: int) -> None:
        """Evaluate a task, and let another machine replace the first uploads."""
        uploaded = 0

        def replace(place: ObjectStore, file: Path, key: str) -> None:
            nonlocal uploaded
            put(place, file, key)
            uploaded += key == "evaluations.json"
            if key == "evaluations.json" and uploaded <= replaced:
                put(place, other.evaluations, key)

        earlier = json.loads(work.evaluations.read_text()) if work.evaluations.exists() else {}
        work.evaluations.write_text(json.dumps(earlier | {task: 1}))
        with monkeypatch.context() as patch:
            patch.setattr(ObjectStore, "put", replace)
            run_uploads.upload_results(name, work, write_report=reports.append)

    def stored() -> set[str]:
        return {*json.loads(store.read("evaluations.json"))}

    evaluate("blimp", 2)
    assert stored() == {"blimp", "lambada"} and reports == [work.path]
    store.put(other.evaluations, "evaluations.json")
    fetch(place, work, Log())
    assert {*json.loads(work.evaluations.read_text())} == {"blimp", "lambada"} and stored() == {"lambada"}
    run_uploads.upload_results(name, work, write_report=no_report)
    assert stored() == {"blimp", "lambada"}
    # The same without a fetch, beside a new entry.
    store.put(other.evaluations, "evaluations.json")
    evaluate("rewards", 0)
    assert stored() == {"blimp", "lambada", "rewards"}
    with pytest.raises(
        BadInput, match=r"evaluations.json: another machine has replaced each of 5 uploads; evaluate the run on one"
    ):
        evaluate("mlm", 5)
    assert result_sync.is_changed(work, "evaluations.json")
    with monkeypatch.context() as patch:
        # The mistake: the object is not read after the upload.
        patch.setattr(result_sync, "_has_own_entries", lambda *_: True)
        evaluate("mlm", 1)
        assert stored() == {"lambada"}


@pytest.mark.planted
def test_a_step_that_was_uploaded_after_the_fetch_is_not_deleted(place: Place, work: RunDir, other: RunDir) -> None:
    train(place, work, 5)
    fetch(place, other, Log())
    train(place, work, 10)
    target = RunUploads(place.store(NAME), other, 1, notify=pytest.fail)
    with pytest.raises(BadInput, match=r"step 10 was uploaded after this run was fetched; run the same command again"):
        target.__enter__()
    # Nor is one that is uploaded later than that, by a machine that has not seen this one's writer.json.
    target._upload()
    assert run_layout.committed_steps(place.store(NAME).list(), "checkpoints") == [10, 5]
    # The mistake: every later step counts as damaged.
    target._damaged = {10}
    target._upload()
    assert run_layout.committed_steps(place.store(NAME).list(), "checkpoints") == [5]


@pytest.mark.planted
def test_an_error_of_any_kind_does_not_end_the_run(place: Place, work: RunDir) -> None:
    log = Log()
    target = uploads(place, work, log)
    with faults("store.list:error:1+"):
        target.commit(5)
        with pytest.raises(BadInput, match=r"could not be uploaded: RuntimeError: "):
            target.__exit__(None)
    assert len(log) == 1 and "UPLOAD of step 5 FAILED: RuntimeError: " in log[0]


@pytest.mark.planted
@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (ValueError("Invalid endpoint: host:80"), "correct AWS_ENDPOINT_URL"),
        (type("ParamValidationError", (Exception,), {"__module__": "botocore.exceptions"})("bucket"), "correct AWS_ENDPOINT_URL"),
        *(
            (type(name, (Exception,), {"__module__": "botocore.exceptions"})("absent"), "set AWS_ACCESS_KEY_ID")
            for name in ("ProfileNotFound", "TokenRetrievalError", "SSOTokenLoadError", "NoCredentialsError")
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_wrong_settings_are_refused_at_the_first_attempt(
    error: Exception, fix: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both when the client is constructed, and in an operation."""
    texts = {name: getattr(object_store.BACKENDS["s3"], name) for name in ("credentials", "address")}
    attempts = []

    def fail(*_: object, **__: object) -> None:
        attempts.append(1)
        raise error

    options = object_store.BACKENDS["dir"].options if "dir" in object_store.BACKENDS else dict
    backend = object_store.Backend(module="fsspec", extra="none", options=options, **texts)
    monkeypatch.setitem(object_store.BACKENDS, place.uri.partition(":")[0], backend)
    store = place.store(NAME)
    monkeypatch.setattr(store._files, "cat_file", fail)
    with pytest.raises(BadInput, match=fix):
        store.read("config.json")
    monkeypatch.setattr("fsspec.filesystem", fail)
    with pytest.raises(BadInput, match=fix):
        place.store(NAME)
    assert len(attempts) == 2


def outcomes(*right: float) -> Outcomes:
    return Outcomes.of([f"a.tsv:{number}" for number in range(len(right))], np.array(right), np.full(len(right), np.nan))


@pytest.mark.planted
def test_outcomes_of_two_machines_are_merged(
    place: Place, work: RunDir, other: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(place, work, 5)
    name, store = f"{place.uri}/{NAME}", place.store(NAME)

    def evaluate(run: RunDir, **sets: float) -> None:
        for task, right in sets.items():
            write_outcomes(run, task, outcomes(right, 1.0))
        run_uploads.upload_results(name, run, write_report=no_report)

    def stored() -> dict[str, float]:
        store.get("outcomes.npz", tmp_path / "outcomes.npz")
        folder, sets = RunDir(tmp_path), parse_sets((tmp_path / "outcomes.npz").read_bytes())
        assert all(np.isnan(read_outcomes(folder, task).nats).all() for task in sets)
        return {task: float(read_outcomes(folder, task).right[0]) for task in sets}

    evaluate(work, blimp=0.0, lambada=0.0)
    fetch(place, other, Log())
    evaluate(work, blimp=0.5)
    # This machine has an old set of blimp, which is not its own.
    evaluate(other, lambada=1.0, held_out=1.0)
    assert stored() == {"blimp": 0.5, "lambada": 1.0, "held_out": 1.0}
    assert other.outcomes.read_bytes() == store.read("outcomes.npz")
    # The training brings its own set, and what it has not fetched stays.
    write_outcomes(work, "held_out", outcomes(0.0))
    with uploads(place, work, Log()):
        pass
    assert stored() == {"blimp": 0.5, "lambada": 1.0, "held_out": 0.0}
    # A damaged file in the store is replaced.
    (tmp_path / "damaged").write_bytes(store.read("outcomes.npz")[:-9])
    store.put(tmp_path / "damaged", "outcomes.npz")
    evaluate(other, held_out=0.5)
    assert stored() == {"blimp": 0.5, "lambada": 1.0, "held_out": 0.5}
    # The mistake: the file is uploaded as it is.
    evaluate(work, mlm=1.0)
    monkeypatch.delitem(result_sync.MERGED_RESULTS, "outcomes.npz")
    evaluate(other, blimp=1.0)
    assert stored() == {"blimp": 1.0, "lambada": 1.0, "held_out": 0.5}
