"""The content of experiment.json for its page alone: the command, the curves of every metric, and the interpretation."""

import dataclasses
import json
from pathlib import Path

import pytest

from eval.experiments import collect_results
from eval.experiments.experiment_data import Files
from eval.experiments.page.__main__ import main
from eval.experiments.preregistration import register_grid
from tests.support.small_experiment import FILES, small_grid
from zoo.errors import BadInput


def test_the_interpretation_is_read_when_the_page_is_written(tmp_path: Path) -> None:
    grid = small_grid()
    registered = register_grid(grid, tmp_path)
    assert collect_results.write_results(grid, registered, tmp_path)["interpretation"] == ""
    (tmp_path / "interpretation.md").write_text("Both rows are alike.\n")
    result = collect_results.write_results(grid, registered, tmp_path)
    assert result["interpretation"] == "Both rows are alike."
    assert "<p>Both rows are alike.</p>" in (tmp_path / collect_results.HTML).read_text()


@pytest.mark.planted(3)
def test_an_interpretation_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "interpretation.md"
    path.write_bytes(b"\xff")
    with pytest.raises(BadInput, match=r"/interpretation\.md: cannot be read \(it is not UTF-8\); correct or remove it, and run"):
        collect_results.read_interpretation(tmp_path)
    path.write_bytes(b" " * (collect_results.LARGEST_INTERPRETATION + 1))
    with pytest.raises(BadInput, match=r"/interpretation\.md: cannot be read \(larger than 65,536 bytes\)"):
        collect_results.read_interpretation(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(BadInput, match=r"/interpretation\.md: cannot be read"):
        collect_results.read_interpretation(tmp_path)


@pytest.mark.planted(3)
def test_pages_are_written_again_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = small_grid()
    collect_results.write_results(grid, register_grid(grid, tmp_path), tmp_path)
    page = tmp_path / collect_results.MARKDOWN
    before = page.read_text()
    page.unlink()
    assert main([str(tmp_path)]) == 0 and page.read_text() == before
    (tmp_path / "interpretation.md").write_text("Both rows are alike.")
    assert main([str(tmp_path)]) == 0 and "Both rows are alike." in page.read_text()
    assert json.loads((tmp_path / collect_results.JSON).read_text())["interpretation"] == "Both rows are alike."
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / collect_results.JSON).write_text('{"name": 1}')
    messages = {(): "name folders with", ("empty",): "has no experiment.json", ("damaged",): "experiment.json has unexpected"}
    for names, message in messages.items():
        capsys.readouterr()
        assert main([str(tmp_path / name) for name in names]) == 2
        assert message in capsys.readouterr().err


COMMANDS = {
    ("embedded", "embedded 0", "files/tasks"): "",
    ("public", "embedded 0", "files/tasks"): " --corpus embedded --corpus-digest any",
    ("public", "public 1", "/data/tasks"): " --corpus CORPUS --tasks TASKS",
    ("public", "user 2", "files/tasks"): " --corpus CORPUS --corpus-digest 2",
    ("user", "user 3", "files/tasks"): " --corpus CORPUS --corpus-digest 3",
}
"""(corpus of the tier, corpus of the run, task files) -> options of the command."""


@pytest.mark.parametrize("case", COMMANDS)
def test_the_command_repeats_the_experiment(case: tuple[str, str, str]) -> None:
    declared, corpus, tasks = case
    grid = small_grid()
    tier = dataclasses.replace(grid.experiment.tiers["smoke"], corpus=declared)
    experiment = dataclasses.replace(grid.experiment, tiers={"smoke": tier})
    files = Files(train=FILES.train, valid=FILES.valid, tasks=tasks, corpus=corpus)
    changed = dataclasses.replace(grid, experiment=experiment, files=files, seeds=(0, 1, 2))
    expected = f"zoo experiment small DIR --tier smoke --seeds 3{COMMANDS[case]}"
    assert collect_results.experiment_command(changed) == expected


def test_a_cell_has_the_curves_of_all_metrics_that_it_was_validated_in(tmp_path: Path) -> None:
    node = next(node for node in small_grid().nodes if node.name == "a-pretrain-0")
    folder = tmp_path / node.run
    folder.mkdir(parents=True)
    valid = [{"kind": "valid", "step": step, "loss": 6.0 - step, "bits_per_byte": 2.0, "seconds": 1.0} for step in (2, 4)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in valid))
    tokens = 8 * 32
    curves = collect_results.read_cell(node, "a", tmp_path)["curves"]
    assert curves == {
        "bits_per_byte": [[2 * tokens, None, 2.0], [4 * tokens, None, 2.0]],
        "loss": [[2 * tokens, None, 4.0], [4 * tokens, None, 2.0]],
    }
