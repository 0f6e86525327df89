"""Links in the folder of a run lead nothing out of it: what is outside is neither written nor deleted."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.experiments import grid_runner
from tests.support import tiny
from train.rollouts import rollout_files
from train.run import metrics_file, run_dir, trackers
from train.run.result_files import remove_stale_files
from train.run.run_dir import RunDir, read_config, write_text
from train.run.run_dir import as_json as config_of
from zoo import file_access
from zoo.errors import BadInput
from zoo.runtime import hang_watch

RUN = tiny.run()
FOLDERS = (
    "checkpoints",
    "best",
    "base",
    "tokenizer",
    "rollouts",
    "profile",
    "fetched",
    "tensorboard",
    "wandb",
    "trackio",
    "mlflow",
)
FILES = ("config.json", "metrics.jsonl", "ledger.jsonl", "starts.jsonl", "scores.json", "run.lock", "writer.json")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "00000000.jsonl").write_text("own")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run without results, so that a run of another configuration deletes its files."""
    folder = RunDir(tmp_path / "runs" / "a")
    folder.path.mkdir(parents=True)
    folder.write_config(tiny.run(seed=7))
    return folder


@pytest.mark.planted
@pytest.mark.parametrize("name", [*FOLDERS, "checkpoints/00000001", "profile/plugins/profile", *FILES, "tokenizer/vocab.txt"])
def test_a_link_out_of_a_run_is_refused(name: str, run: RunDir, outside: Path) -> None:
    link = run.path / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    is_file = "." in link.name
    link.symlink_to(outside / "00000000.jsonl" if is_file else outside, target_is_directory=not is_file)

    def claim() -> None:
        with run.claim():
            pass

    acts: dict[str, Callable[[], Any]] = {
        "claim": claim,
        "read": lambda: read_config(run.path),
        "stale": lambda: remove_stale_files(run, RUN),
    }
    for act in acts.values():
        with pytest.raises(BadInput, match=f"{name}: a link out of .*runs/a, to .*outside.*; replace it by a copy"):
            act()
    assert [file.name for file in outside.iterdir()] == ["00000000.jsonl"]
    assert (outside / "00000000.jsonl").read_text() == "own"


def test_links_inside_a_run_and_to_it_are_allowed(run: RunDir, tmp_path: Path, outside: Path) -> None:
    (run.path / "wandb").mkdir()
    (run.path / "wandb" / "run").mkdir()
    (run.path / "wandb" / "latest-run").symlink_to("run")
    (run.path / "notes").symlink_to(outside)
    (tmp_path / "b").symlink_to(run.path)
    folder = RunDir(tmp_path / "b")
    with folder.claim():
        assert config_of(read_config(folder.path)) == config_of(tiny.run(seed=7))
        rollout_files.write_rollout(folder, 0, ())
    assert (run.rollouts / "00000000.jsonl").exists()


@pytest.mark.planted
def test_an_id_of_wandb_that_leads_out_deletes_nothing(run: RunDir, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    (run.path / "wandb" / "offline-run-1-x").mkdir(parents=True)
    (run.path / "wandb" / "id").write_text("x/../../../../outside")
    with pytest.raises(BadInput, match="is not the id of a run of W&B; remove the file"):
        trackers.WandB(RUN, run)
    assert list(outside.iterdir())


@pytest.mark.planted(3)
def test_files_that_grow_are_no_links(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "stacks.txt"
    target.write_text("own")
    link.symlink_to(target)
    with pytest.raises(OSError, match="it is a symbolic link") as refusal:
        file_access.open_to_append(link)
    assert isinstance(refusal.value, BadInput)
    assert "above" in hang_watch.write_stacks("why", ["a\n"], link)
    # A file that is replaced is a new one.
    metrics = metrics_file.Metrics(link)
    metrics.write({"step": 1})
    metrics.close()
    assert not link.is_symlink() and link.read_text() == '{"step":1}\n'
    assert target.read_text() == "own"


@pytest.mark.planted
def test_a_file_is_written_under_a_name_that_nobody_can_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, path = tmp_path / "target", tmp_path / "report.html"
    target.write_text("own")

    def predicted(path: Path) -> Path:
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.symlink_to(target)
        return partial

    assert file_access.partial_path(path) != file_access.partial_path(path)
    monkeypatch.setattr(file_access, "partial_path", predicted)
    with pytest.raises(BadInput, match=r"report\.html cannot be written \(File exists\)"):
        write_text(path, "new")
    assert target.read_text() == "own" and not path.exists()


def test_the_mode_of_a_new_file_is_that_of_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "a")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.planted
@pytest.mark.parametrize("name", ["logs", "runs/a", "files", "experiment.lock", "logs/a.log"])
def test_a_link_out_of_an_experiment_is_refused(name: str, tmp_path: Path, outside: Path) -> None:
    folder = tmp_path / "experiment"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(outside)
    with pytest.raises(BadInput, match=f"{name}: a link out of"), grid_runner.lock_folder(folder, pytest.fail):
        pass
    assert run_dir.LOCK not in os.listdir(outside) and len(os.listdir(outside)) == 1
