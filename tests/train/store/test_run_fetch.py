"""Fetches of runs from an object store: the same files on another machine, damage, and other processes and runs in the way."""

import dataclasses
import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import object_stores
from tests.support.commands import snapshot
from tests.support.object_stores import Place
from tests.support.run_copies import NAME, fetch, train, uploads
from tests.support.states import META, Log, make
from train import recipes
from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.manifest import Manifest
from train.run.run_dir import RunDir
from train.store import run_fetch, run_layout
from train.store.run_uploads import RunUploads
from train.weights.resolve_model_name import resolve_model_name
from zoo import object_store
from zoo.errors import BadInput
from zoo.fault_points import faults

FULL = pytest.mark.full
LOCAL = ("run.lock", "writer.json", "fetched")


def test_a_run_is_the_same_files_on_another_machine(place: Place, work: RunDir, other: RunDir) -> None:
    log = Log()
    train(place, work, 5, 10, 15, log=log)
    with Checkpoints(work.best, 1, notify=log) as best:
        best.save(make(10), META | {"step": 10})
    work.scores.write_text("{}")
    with uploads(place, work, log):
        pass
    store = place.store(NAME)
    assert run_layout.committed_steps(store.list(), "checkpoints") == [15, 10]
    assert fetch(place, other, log) == 15
    fetched, saved = (
        {name: content for name, content in snapshot(run.path).items() if not name.startswith(LOCAL)} for run in (other, work)
    )
    expected = {name: content for name, content in saved.items() if "/00000010" not in name or name.startswith("best")}
    assert fetched == expected
    # Nothing is newer, and the scores of another machine are all that is missing.
    other.scores.unlink()
    other.metrics.write_text("own")
    assert fetch(place, other, log) == 15
    assert (other.scores.read_text(), other.metrics.read_text()) == ("{}", "own")
    # A newer step brings the files beside it.
    train(place, work, 20, log=log)
    assert fetch(place, other, log) == 20
    assert other.metrics.read_text() == work.metrics.read_text()
    assert log == []


def test_an_old_step_is_fetched_on_request(place: Place, work: RunDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    train(place, work, 5, 10, 15, keep=3)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    name = f"{place.uri}/{NAME}"
    folder = Path(run_fetch.local_name(name, notify=pytest.fail))
    reader = Checkpoints(folder / "checkpoints", 9, notify=pytest.fail)
    assert reader.valid_steps() == [15]
    run_fetch.local_name(name, 5, notify=pytest.fail)
    assert reader.valid_steps() == [15, 5]
    run_fetch.local_name(name, all_steps=True, notify=pytest.fail)
    assert reader.valid_steps() == [15, 10, 5]
    monkeypatch.setenv("ZOO_PROCESS", "1")
    monkeypatch.setattr(object_store, "ObjectStore", pytest.fail)
    assert run_fetch.local_name(name) == str(folder)


@pytest.mark.planted
def test_a_copy_that_others_can_write_to_is_refused(
    place: Place, work: RunDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train(place, work, 5)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    name = f"{place.uri}/{NAME}"
    folder = Path(run_fetch.local_name(name, notify=pytest.fail))
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(BadInput, match=rf"others can write to it \(mode 0777\); run `chmod 700 {folder}`"):
        run_fetch.local_name(name, notify=pytest.fail)


@pytest.mark.planted
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("largest", "flipped"),
        ("COMMIT.json", "halved"),
        *(pytest.param("largest", kind, marks=FULL) for kind in ("halved", "deleted")),
        *(pytest.param("COMMIT.json", kind, marks=FULL) for kind in ("flipped", "deleted")),
    ],
)
def test_a_damaged_object_costs_its_step(
    name: str, kind: str, place: Place, work: RunDir, other: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(place, work, 5, 10)
    store, log = place.store(NAME), Log()
    sizes = store.list("checkpoints/00000010/")
    key = max(sizes, key=sizes.__getitem__) if name == "largest" else run_layout.commit_key("checkpoints", 10)
    object_stores.change(store, key, kind, tmp_path / "scratch")
    if (name, kind) == ("largest", "flipped"):
        with monkeypatch.context() as patch:
            # The mistake: digests are not compared.
            patch.setattr(Manifest, "check_content", lambda self, folder: None)
            run_fetch._fetch(store, RunDir(other.path / "wrong"), store.list(), pytest.fail)
            assert (other.path / "wrong" / "checkpoints" / "00000010").exists()
    assert fetch(place, other, log) == 5
    if (name, kind) == ("COMMIT.json", "deleted"):
        assert log == []
    else:
        [line] = log
        assert line.startswith(f"CHECKPOINT {place.uri}/{NAME}/checkpoints/00000010/ IS DAMAGED: ")
        assert line.endswith("; it is skipped, and the one before it is used")
    # Training continues from there, and its next step takes the place of the damaged one.
    again = RunDir(tmp_path / "again")
    shutil.copytree(other.path, again.path)
    train(place, other, 10)
    assert fetch(place, RunDir(tmp_path / "third"), Log()) == 10
    object_stores.change(store, run_layout.commit_key("checkpoints", 10), "halved", tmp_path / "scratch")
    fetch(place, again, Log())
    train(place, again, 7)
    assert run_layout.committed_steps(store.list(), "checkpoints") == [7, 5]


def test_no_intact_step_is_refused(place: Place, work: RunDir, other: RunDir, tmp_path: Path) -> None:
    train(place, work, 5, 10)
    for step in (5, 10):
        object_stores.change(place.store(NAME), run_layout.commit_key("checkpoints", step), "halved", tmp_path / "scratch")
    with pytest.raises(BadInput, match=r"only 00000005, 00000010; delete .* to start again, or choose another --name"):
        fetch(place, other, Log())


def test_the_copy_in_the_store_repairs_a_damaged_newest_step(place: Place, work: RunDir, tmp_path: Path) -> None:
    train(place, work, 5, 10)
    log, manifest = Log(), work.checkpoints / "00000010" / "COMMIT.json"
    manifest.unlink()
    assert fetch(place, work, log) == 10
    assert len(log) == 1 and "it is replaced by that of the object store" in log[0]


def test_keys_outside_of_a_run_are_refused(place: Place, work: RunDir, other: RunDir) -> None:
    train(place, work, 5)
    for key in ("../x", "a//b", "checkpoints/00000005/../../x"):
        with pytest.raises(BadInput, match="not the name of a file in a run"):
            run_fetch._fetch(place.store(NAME), other, {**place.store(NAME).list(), key: 1}, pytest.fail)
    assert list(other.path.iterdir()) == []


def test_a_name_without_a_run_is_refused(place: Place) -> None:
    with pytest.raises(BadInput, match=r"/absent: no run there, which has a config\.json"):
        run_fetch.local_name(f"{place.uri}/absent")


def holding(code: str) -> subprocess.Popen[bytes]:
    """Start a process that prints a line when it has locked a run, and ends when it gets one."""
    folder, pipe = Path(__file__).parents[3], subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, cwd=folder)


def test_reading_a_run_that_is_trained_here_reads_its_folder(
    place: Place, work: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(place, work, 5)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    name, log = f"{place.uri}/{NAME}", Log()
    folder = Path(run_fetch.local_name(name, notify=log))
    train(place, work, 10)
    code = f"""if True:
        from pathlib import Path
        from train.run.run_dir import RunDir
        from train.store.run_uploads import RunUploads
        from zoo.object_store import ObjectStore
        class NoStore(ObjectStore):
            def __init__(self): pass
            def put(self, file, key): pass
            def list(self, prefix=""): return {{}}
        run = RunDir(Path({str(folder)!r}))
        with run.claim():
            RunUploads(NoStore(), run, 1, notify=print).__enter__()
            print("training", flush=True)
            input()
        """
    with holding(code) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"training\n"
        assert run_fetch.local_name(name, notify=log) == str(folder)
        holder.communicate(b"\n")
    assert Checkpoints(folder / "checkpoints", 9, notify=pytest.fail).latest() == 5
    assert len(log) == 1 and "is in use by the training of this run; it is read as it is" in log[0]


def test_a_reader_waits_for_another_reader(place: Place, work: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(place, work, 5)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    name, log = f"{place.uri}/{NAME}", Log()
    folder = RunDir(object_store.working_folder(name))
    code = f"""if True:
        from pathlib import Path
        from train.run.run_dir import RunDir
        with RunDir(Path({str(folder.path)!r})).claim():
            print("fetching", flush=True)
            input()
        """
    with holding(code) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"fetching\n"
        with monkeypatch.context() as patch:
            patch.setattr(run_fetch, "LONGEST_WAIT", 0.0)
            with pytest.raises(BadInput):
                run_fetch.local_name(name, notify=pytest.fail)

        def release(message: str) -> None:
            log(message)
            holder.communicate(b"\n")

        assert run_fetch.local_name(name, notify=release) == str(folder.path)
    assert run_layout.valid_steps(folder.checkpoints) == [5]
    assert len(log) == 1 and "is in use; waiting up to 10 minutes for the process that fetches it" in log[0]


def test_a_process_fetches_a_run_once(place: Place, work: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(place, work, 5)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    folder = resolve_model_name(f"{place.uri}/{NAME}")
    monkeypatch.setattr(object_store, "ObjectStore", pytest.fail)
    monkeypatch.setattr(run_fetch, "ObjectStore", pytest.fail)
    assert resolve_model_name(f"{place.uri}/{NAME}") == folder


def start_again(place: Place, folder: RunDir, *steps: int) -> RunDir:
    """Delete the run in the store, and train another one under its name in a folder."""
    store = place.store(NAME)
    for key in store.list():
        store.delete(key)
    folder.path.mkdir(parents=True)
    folder.config.write_text('{"family": "gpt"}\n')
    target = RunUploads(store, folder, 9, notify=pytest.fail).__enter__()
    with Checkpoints(folder.checkpoints, 9, notify=pytest.fail, on_commit=target.commit) as checkpoints:
        for step in steps:
            checkpoints.save(make(step), META | {"step": step, "run": "another"})
            assert checkpoints.wait()
    return folder


@pytest.mark.planted
@pytest.mark.parametrize(("steps", "reason"), [((10,), "step 10 differs"), ((3,), "step 10 is later than all of the store")])
def test_a_run_that_was_trained_again_replaces_the_copies_of_readers(
    steps: tuple[int, ...], reason: str, place: Place, work: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    train(place, work, 5, 10)
    name, log = f"{place.uri}/{NAME}", Log()
    folder = RunDir(Path(run_fetch.local_name(name, notify=pytest.fail)))
    again = start_again(place, RunDir(tmp_path / "again"), *steps)
    with monkeypatch.context() as patch:
        # The mistake: steps are compared by their numbers.
        patch.setattr(run_fetch, "_replace_another_run", lambda *_: None)
        run_fetch.local_name(name, notify=pytest.fail)
        assert run_layout.valid_steps(folder.checkpoints) == [10]
    run_fetch.local_name(name, notify=log)
    assert len(log) == 1 and reason in log[0] and "the copy is replaced" in log[0]
    step = steps[-1]
    assert run_layout.valid_steps(folder.checkpoints) == [step]
    own, other = (run_layout.step_folder(run.checkpoints, step) / "COMMIT.json" for run in (folder, again))
    assert own.read_bytes() == other.read_bytes()
    run_fetch.local_name(name, notify=log)
    assert len(log) == 1


def test_training_refuses_a_store_with_another_run(
    place: Place, work: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a reader remove a folder in which a run was trained."""
    monkeypatch.setattr(object_store, "working_folder", lambda name: work.path if name.endswith(NAME) else work.path.parent)
    run = dataclasses.replace(recipes.recipe_run("gpt-nano", ""), out=place.uri, name=NAME)
    train(place, work, 5, 10)
    # The last uploads failed: the run continues here, and readers see its newest step.
    with Checkpoints(work.checkpoints, 2, notify=pytest.fail) as checkpoints:
        for step in (15, 20):
            checkpoints.save(make(step), META | {"step": step})
    run_fetch.prepare_training(run, notify=pytest.fail)
    run_fetch.local_name(f"{place.uri}/{NAME}", notify=pytest.fail)
    assert run_layout.valid_steps(work.checkpoints) == [20, 15]
    start_again(place, RunDir(tmp_path / "again"), 15)
    problem = r"another run than the one in .* \(step 15 differs\); remove .*, or choose another --name"
    with pytest.raises(BadInput, match=problem):
        run_fetch.prepare_training(run, notify=pytest.fail)
    with pytest.raises(BadInput, match=problem):
        run_fetch.local_name(f"{place.uri}/{NAME}", notify=pytest.fail)
    assert run_layout.valid_steps(work.checkpoints) == [20, 15]


def test_without_a_run_in_the_store_the_folder_is_uploaded_again(
    place: Place, work: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that was refused has left its writer.json alone."""
    monkeypatch.setattr(object_store, "working_folder", lambda name: work.path.parent)
    train(place, work, 5)
    store, log = place.store(NAME), Log()
    for key in store.list():
        if key != "writer.json":
            store.delete(key)
    run = dataclasses.replace(recipes.recipe_run("gpt-nano", ""), out=place.uri, name=NAME)
    run_fetch.prepare_training(run, notify=log)
    assert len(log) == 1 and "no run there" in log[0]


@pytest.mark.planted
def test_a_file_that_cannot_be_removed_does_not_hide_the_error(
    place: Place, work: RunDir, other: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(place, work, 5)

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "refused", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    with faults("store.get:ENOSPC:1+"), pytest.raises(BadInput, match="No space left"):
        run_fetch._fetch_files(place.store(NAME), other, ["config.json"])


STRANGE = (
    *(".bashrc", "run.lock", "Run.lock", "fetched/scores.json", "Fetched/scores.json", "Writer.json", "profile/a.json"),
    *("scores.json\n", "reward.py", "tokenizer/a.py", "tokenizer/.a.json", "rollouts/a/00000000.jsonl", ".config/a.json"),
    *("checkpoints/00000005/a\n", "checkpoints/00000005/a b", "best/00000005/\x1b[2J", "wandb/.netrc", "mlflow/a", "a.json/b.so"),
)


@pytest.mark.planted
@pytest.mark.parametrize("key", STRANGE)
def test_an_object_that_no_run_has_is_not_fetched(key: str, place: Place, work: RunDir, other: RunDir, tmp_path: Path) -> None:
    train(place, work, 5)
    store, log = place.store(NAME), Log()
    (tmp_path / "strange").write_text("strange")
    store.put(tmp_path / "strange", key)
    assert fetch(place, other, log) == 5
    assert log == [f"{store.uri}: {key!r}: not of a run; not fetched"]
    contents = [file.read_bytes() for file in other.path.rglob("*") if file.is_file()]
    assert b"strange" not in contents and len(contents) > 5


def test_every_file_of_a_run_is_fetched() -> None:
    keys = [path.name for path in vars(RunDir("a")).values() if path.suffix]
    keys += ["writer.json", "reward_scale.json", "stacks.txt", "stacks-3.txt", "rollouts/00000010.jsonl", "notes.jsonl"]
    keys += [f"tokenizer/{name}" for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "spiece.model")]
    keys += [
        "tensorboard/events.out.tfevents.1764510000.a-host.local",
        "wandb/id",
        "trackio/id",
        "mlflow/id",
        "wandb/offline-run-1-a/files/config.yaml",
    ]
    keys += ["checkpoints/00000005/COMMIT.json", "best/00000005/arrays/ocdbt.process_0/d/0a1b", "base/00000000/arrays/_METADATA"]
    assert [key for key in keys if not run_layout.is_of_run(key)] == []


@pytest.mark.planted
def test_a_link_in_a_run_is_not_uploaded(place: Place, work: RunDir, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (work.path / "notes.txt").symlink_to(tmp_path / "secret")
    train(place, work, 5)
    assert "notes.txt" not in place.store(NAME).list()
