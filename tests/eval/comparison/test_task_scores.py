"""`zoo compare --metric TASK/METRIC`: scores of tasks in a row of seeds, and which of them are not comparable."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval import task_data_files
from eval.commands.run_task import task_fingerprint
from eval.comparison import comparison_table
from eval.comparison.seed_statistics import compare_runs
from eval.tasks.task import Result, Settings
from tests.support import tiny
from tests.support.finished_runs import META, RUN, make
from train.config.run_config import Optim, Run
from zoo.errors import BadInput

SCOPE: dict[str, Any] = {"files": "f", "settings": {}, "items": {"length": 32}}


def scored(where: Path, name: str, accuracy: float, run: Run = RUN, *, scope: Any = SCOPE, meta: Any = META, **more: Any) -> str:
    """Write a finished run with results of one task; `more` are fields of the entry, or changes of the run."""
    entry = {"step": 20, "examples": 100, "details": {}, "fingerprint": scope, "tokenizer": "t", "per_token": ["loss"]}
    entry |= {key: more.pop(key) for key in (*entry, "metrics") if key in more}
    path = make(where / name, run, meta=meta, scores={"loss": 2.0, "tokens": 100, "step": 20}, **more)
    entry.setdefault("metrics", {"accuracy": accuracy, "loss": 1.0, "odd": 1})
    (Path(path) / "evaluations.json").write_text(json.dumps({"blimp": entry}))
    return path


def test_scores_of_a_task_are_compared_over_seeds_and_objectives(tmp_path: Path) -> None:
    first = [scored(tmp_path, f"a{seed}", 0.5 + seed / 10, seed=seed) for seed in (0, 1)]
    masked = scored(tmp_path, "masked", 0.9, tiny.run("masked"), meta=META | {"held_out": "i", "targets": {"masking.rate": 0.15}})
    result = compare_runs([*first, masked], metric=["blimp/accuracy", "blimp/odd"])
    assert [row.scores["blimp/accuracy"].mean for row in result.rows] == [pytest.approx(0.55), 0.9]
    record = comparison_table.comparison_record(result)
    assert record["rows"][0]["scores"]["blimp/accuracy"]["values"] == [0.5, 0.6]
    shown = comparison_table.render_comparison(result, 300)
    assert "blimp accuracy ↑" in shown and "blimp odd" in shown
    with pytest.raises(BadInput, match=r"was scored as masked and .* as causal"):
        compare_runs([*first, masked], metric=["blimp/accuracy", "loss"])


@pytest.mark.planted(8)
def test_scores_of_other_items_are_refused(tmp_path: Path) -> None:
    one = scored(tmp_path, "one", 0.5)
    for number, (metric, changes, message) in enumerate(
        [
            (
                "blimp/accuracy",
                {"scope": SCOPE | {"files": "g"}},
                "other items than .*/one: the contents of --files differ",
            ),
            ("blimp/accuracy", {"scope": SCOPE | {"settings": {"limit": 2}}}, "limit is 2 and not None; choose one"),
            ("blimp/accuracy", {"scope": SCOPE | {"items": {"length": 64}}}, "length is 64 and not 32; choose one"),
            ("blimp/accuracy", {"scope": {}}, "no fingerprint of the files of blimp; run zoo eval .* --task blimp"),
            ("blimp/accuracy", {"step": 10}, "was scored on blimp at step 10, and not at 20; run zoo eval"),
            ("blimp/accuracy", {"examples": 99}, "99 and not 100 examples"),
            ("blimp/loss", {"tokenizer": "u"}, "its tokens are those of another tokenizer"),
            ("lambada/accuracy", {}, r"/one has no score of lambada \(it has blimp\); run zoo eval .*/one --task lambada"),
            ("blimp/accurate", {}, "the nearest is blimp/accuracy"),
        ]
    ):
        other = scored(tmp_path, f"other{number}", 0.5, optim=Optim(lr=0.5), **changes)
        with pytest.raises(BadInput, match=message) as refused:
            compare_runs([one, other], metric=[metric])
        assert "\n" not in str(refused.value)
    assert compare_runs([one, scored(tmp_path, "u", 0.5, optim=Optim(lr=0.5), tokenizer="u")], metric=["blimp/accuracy"])
    (Path(one) / "evaluations.json").write_text("[1]")
    with pytest.raises(BadInput, match=r"evaluations\.json has unexpected content \(the whole: list .*score the tasks again"):
        compare_runs([one])
    entry = '{"step": null, "metrics": {"loss": %s}, "examples": 1, "details": {}, "fingerprint": %s}'
    for value, scope, problem in (
        ("1" + "0" * 400, "{}", r"a\.metrics\.loss: an integer of more than 64 bits"),
        ("-Infinity", "{}", r"a\.metrics\.loss: the number -inf"),
        ("1", "3", r"a\.fingerprint: int instead of dict"),
        ("true", "{}", r"a\.metrics\.loss: bool"),
    ):
        (Path(one) / "evaluations.json").write_text('{"a": %s}' % (entry % (value, scope)))
        with pytest.raises(BadInput, match=problem):
            compare_runs([one])


def test_a_fingerprint_is_of_contents_and_of_what_decides_the_items(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jsonl").write_text("1")
        (tmp_path / folder / ".hidden").write_text(folder)
    a, b = (str(tmp_path / folder) for folder in ("a", "b"))
    digest = task_data_files.digest_data_files
    assert digest([a]) == digest([b]) == digest([f"{a}/x.jsonl"]) != digest([a, b])
    (tmp_path / "b" / "x.jsonl").write_text("2")
    assert digest([a]) != digest([b]) and digest(["hub:a/b"]) != digest(["hub:a/c"])
    result = Result({}, 1, items={"length": 3})
    plain = task_fingerprint([a], Settings(), result)
    assert plain == task_fingerprint([a], Settings(batch=3, length=8, prefix="x"), result) | {"files": plain["files"]}
    assert task_fingerprint([a], Settings(limit=3), result)["settings"] == {"limit": 3}
