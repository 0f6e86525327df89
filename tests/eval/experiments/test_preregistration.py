"""The registration of an experiment, and the corpora that it accepts."""

from pathlib import Path

import pytest

from eval.experiments import experiment_data, preregistration
from eval.experiments.declaration import Tier
from tests.support.small_experiment import small_grid, with_claim, with_row
from zoo.errors import BadInput


def begin(folder: Path) -> None:
    """Make it look as if the first run had begun."""
    (folder / "runs/a-pretrain-0").mkdir(parents=True)
    (folder / "runs/a-pretrain-0/config.json").write_text("{}")


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
