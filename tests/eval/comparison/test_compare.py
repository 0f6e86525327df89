"""`zoo compare`: what is one row, what its intervals are, and what is not comparable."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from eval import compare as command
from eval import finished
from eval.comparison import Estimate, compare
from tests.support import tiny
from tests.support.commands import TINY
from train import metrics
from train.config import Data, Mesh, Optim, Run, Tokenizer
from train.config_objectives import Selection
from train.folder import Folder, write_json
from train.marker import Marker, folder_name
from zoo import cli
from zoo.errors import BadInput
from zoo.models import parameter_count

RUN = tiny.run()
META = {"tokenizer": "t", "data": "d", "held_out": "h"}


def make(
    path: Path,
    run: Run = RUN,
    *,
    scores: Any = None,
    flops: float | None = None,
    meta: Any = META,
    ended: int | None = None,
    **changes: Any,
) -> str:
    """The folder of a finished run, as far as it is read here; it `ended` at its last step or before."""
    run = dataclasses.replace(run, **changes)
    files, step = Folder(path), ended or run.steps
    checkpoint = files.checkpoints / folder_name(step)
    checkpoint.mkdir(parents=True)
    Marker(step=step, meta=meta, leaves={}).write(checkpoint)
    files.write_config(run)
    write_json(files.scores, {"loss": 2.0, "tokens": 100, "stride": 16} if scores is None else scores)
    metrics.started(files, 0, {}, flops or 0.0)
    if flops is None:
        # As starts were noted before they had this number.
        (start,) = metrics.read(files.starts)
        files.starts.write_text(json.dumps({key: value for key, value in start.items() if key != "flops"}) + "\n")
    rows = metrics.Metrics(files.metrics)
    row = step - step % 4
    seen = row * run.data.batch * run.data.length
    numbers = dict(loss=2.0, grad_norm=1.0, lr=0.1, skipped=0, seconds=1.0, tokens_per_s=1.0, mfu=None)
    rows.write(metrics.train_row(step=row, tokens=seen, **numbers))
    rows.write(metrics.valid_row(step=step, loss=2.0, bits_per_byte=1.0, seconds=1.0))
    rows.close()
    return str(path)


def several(where: Path, name: str, values: dict[int, float], **changes: Any) -> list[str]:
    """A run for each seed -> loss."""
    return [
        make(where / f"{name}-{seed}", scores={"loss": loss, "tokens": 100}, seed=seed, **changes)
        for seed, loss in values.items()
    ]


def faster(**more: Any) -> dict[str, Any]:
    return {"optim": dataclasses.replace(RUN.optim, lr=0.5), **more}


# --- real runs ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two seeds, and one of them at another learning rate, in `runs/`."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "book.txt").write_text("".join(f"The {n}th whale is seen, and {n * n} more.\n\n" for n in range(400)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, *options in (("a0",), ("a1", "--seed", "1"), ("b0", "--optim.lr", "0.01")):
            assert cli.main(["train", "gpt-nano", *TINY, "--name", name, *options]) == 0
        yield folder


def test_trained_runs_side_by_side(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert command.main(["runs/b0", "runs/a1", "runs/a0"], unequal=False, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    scores = {name: json.loads((trained / "runs" / name / "scores.json").read_text()) for name in ("a0", "a1", "b0")}
    fast, base = found["rows"]
    assert found["metrics"] == ["bits_per_byte", "perplexity", "loss"]
    assert (fast["runs"], base["runs"]) == (["runs/b0"], ["runs/a0", "runs/a1"])
    assert (fast["seeds"], base["seeds"]) == ([0], [0, 1])
    assert (fast["differing"], base["differing"]) == ({"optim.lr": 0.01}, {"optim.lr": 0.003})
    for row in found["rows"]:
        assert row["tokens_seen"] == 2 * 8 * 32
        assert row["parameters"] == parameter_count(finished.read(row["runs"][0]).run.model)
        assert row["recipe"] == "gpt-nano"
    for name in found["metrics"]:
        assert base["scores"][name]["values"] == [scores["a0"][name], scores["a1"][name]]
        assert fast["scores"][name] == {"mean": scores["b0"][name], "half": None, "values": [scores["b0"][name]]}
    assert command.main(["runs/a0", "runs/b0"], unequal=False, as_json=False, metric=["loss"]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"1  a0 +{scores['a0']['loss']:.4f}\n2  b0 +{scores['b0']['loss']:.4f}\n", shown)
    assert re.search(rf"less a0, of the same seed\n.*\n2  b0 +{scores['b0']['loss'] - scores['a0']['loss']:+.4f}\n", shown)
    assert "optim.lr  0.003 (1)   0.01 (2)" in shown
    assert "perplexity" not in shown


# --- rows -----------------------------------------------------------------------------------------------------------------------


def test_seeds_are_one_row_and_so_is_what_changes_no_number(tmp_path: Path) -> None:
    paths = [
        make(tmp_path / "c", seed=7),
        make(tmp_path / "a", seed=2, accumulate=4, mesh=Mesh(fsdp=2), recipe="other", name="x"),
        make(tmp_path / "b", seed=3, steps=21),
        make(tmp_path / "d", seed=1, loss_chunk=8),
    ]
    found = compare(paths, unequal=True)
    assert [[run.path.name for run in row.runs] for row in found.rows] == [["d", "a", "c"], ["b"]]
    assert found.differing == {"steps": [20, 21]}


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=2, max_size=8))
def test_intervals_are_students(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = np.array(pairs).T
    got = Estimate.of(list(ours - theirs))
    if np.ptp(ours - theirs) < 1e-9:
        assert got.half == pytest.approx(0, abs=1e-8)
        return
    expected = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (got.mean - got.half, got.mean + got.half) == pytest.approx(expected)
    assert got.clear == (not expected.low <= 0 <= expected.high)


def test_a_row_is_compared_with_the_first_one_seed_by_seed(tmp_path: Path) -> None:
    # The seed decides much more than the learning rate does: only in pairs does the difference show.
    base = several(tmp_path, "base", {0: 2.0, 1: 3.0, 2: 4.0})
    fast = several(tmp_path, "fast", {2: 3.9, 0: 1.88, 1: 2.9}, **faster())
    some = several(tmp_path, "some", {0: 1.0, 1: 1.0, 3: 1.0}, optim=Optim(lr=0.25))
    first, second, third = compare([*base, *fast, *some]).rows
    assert first.difference is third.difference is None
    assert dataclasses.astuple(first.scores["loss"]) == pytest.approx((3.0, 4.302652729911275 / 3**0.5))
    assert second.difference is not None
    assert second.difference["loss"].mean == pytest.approx(-0.32 / 3)
    assert second.difference["loss"].half == pytest.approx(4.302652729911275 * np.std([0.12, 0.1, 0.1], ddof=1) / 3**0.5)
    assert second.difference["loss"].clear
    shown = command.render(compare([*base, *fast, *some]), width=80)
    assert "all: tiny, 27,776 parameters, 10.2k tokens seen\n" in shown
    assert re.search(r"2  fast-0 \+2  0, 1, 2  2.8933 ± 2.5090\n3  some-0 \+2  0, 1, 3  1.0000 ± 0.0000\n", shown)
    assert re.search(r"\nless base-0 \+2, seed by seed\n.*\n2  fast-0 \+2  -0.1067 ± 0.0287 \*\n\n", shown)
    assert "rows with other seeds than the first row have no difference to it" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("metric", "better", "colour"), [("loss", False, "31"), ("loss", True, "32"), ("accuracy", False, "31"), ("f1", True, "32")]
)
def test_a_clear_difference_has_the_colour_of_its_direction(
    metric: str, better: bool, colour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    change = 0.1 if better == (metric != "loss") else -0.1
    paths = [make(tmp_path / f"a{seed}", seed=seed, scores={metric: 0.5 + seed / 9}) for seed in range(2)]
    paths += [make(tmp_path / f"b{seed}", seed=seed, scores={metric: 0.5 + seed / 9 + change}, **faster()) for seed in range(2)]
    assert f"\x1b[{colour}m" in command.render(compare(paths))


def test_what_is_compared_are_the_quantities_that_all_have(tmp_path: Path) -> None:
    one = make(tmp_path / "a", scores={"f1": 0.5, "loss": 1.0, "unigram_loss": 6.0, "accuracy": 0.75, "stride": 16, "note": "x"})
    two = make(tmp_path / "b", scores={"accuracy": 0.5, "unigram_loss": 6.0, "loss": 1.0, "stride": 8}, **faster())
    assert compare([one, two]).metrics == ["loss", "accuracy"]
    assert compare([one, two], metric=["accuracy", "unigram_loss", "accuracy"]).metrics == ["accuracy", "unigram_loss"]


def test_a_loss_with_next_sentences_is_no_loss_without(tmp_path: Path) -> None:
    masked = {"loss": 3.0, "masked_loss": 3.0, "unigram_loss": 6.0, "accuracy": 0.5}
    one = make(tmp_path / "a", objective="masked", scores=masked | {"loss": 3.5, "next_loss": 0.5})
    two = make(tmp_path / "b", objective="masked", scores=masked, **faster())
    assert compare([one, two]).metrics == ["masked_loss", "accuracy"]
    assert compare([two]).metrics == ["loss", "masked_loss", "accuracy"]


# --- budgets --------------------------------------------------------------------------------------------------------------------


def test_budgets_are_equal_in_tokens_or_in_flops(tmp_path: Path) -> None:
    first = make(tmp_path / "first", flops=2e9)
    same_tokens = make(tmp_path / "tokens", flops=9e9, steps=40, data=Data(length=32, batch=8))
    same_flops = make(tmp_path / "flops", flops=1e9, steps=40)
    unknown = make(tmp_path / "unknown", steps=40)
    for other in (same_tokens, same_flops):
        assert compare([first, other]).unequal == []
    for pair in ((same_tokens, same_flops), (first, unknown), (same_flops, first, same_tokens)):
        with pytest.raises(BadInput, match=r"^unequal budgets: "):
            compare(pair)
    with pytest.raises(
        BadInput, match=r"/tokens has seen 10\.2k tokens and .*/flops 20\.5k, in 3\.60e11 and 4\.00e10 FLOPs; make"
    ):
        compare([same_tokens, same_flops])
    assert [row.first.flops for row in compare([first, unknown], unequal=True).rows] == [40e9, None]


def test_a_run_that_no_longer_got_better_has_spent_what_it_had(tmp_path: Path) -> None:
    patient = {"selection": Selection(best=True, patience=2)}
    early = make(tmp_path / "early", flops=2e9, ended=RUN.steps // 2, **patient)
    earlier = make(tmp_path / "earlier", flops=2e9, ended=RUN.steps // 2 - 4, seed=1, **patient)
    (row,) = compare([early]).rows
    seen = RUN.steps // 2 * RUN.data.batch * RUN.data.length
    (both,) = compare([early, earlier], unequal=True).rows
    assert (both.tokens, both.flops) == (seen * 0.8, RUN.steps // 2 * 2e9 * 0.8)
    assert (row.first.tokens, row.first.flops) == (seen, RUN.steps // 2 * 2e9)
    with pytest.raises(BadInput, match="make them equal"):
        compare([early, make(tmp_path / "whole", flops=2e9, **patient)])
    with pytest.raises(BadInput, match="is not finished"):
        compare([make(tmp_path / "cut", ended=RUN.steps // 2)])


def test_a_budget_within_a_hundredth_is_equal(tmp_path: Path) -> None:
    hundred = make(tmp_path / "a", steps=100)
    assert compare([hundred, make(tmp_path / "b", steps=101)]).unequal == []
    with pytest.raises(BadInput, match="unequal budgets"):
        compare([hundred, make(tmp_path / "c", steps=102)])


def test_what_is_unequal_is_said_and_shown(tmp_path: Path) -> None:
    paths = [make(tmp_path / "first", flops=2e9), make(tmp_path / "second", steps=40, scores={"loss": 1.0, "tokens": 90})]
    with pytest.raises(BadInput) as refused:
        compare(paths)
    expected = (
        f"unequal budgets: {paths[0]} has seen 10.2k tokens and {paths[1]} 20.5k; unequal scores: {paths[0]} is scored on 100 "
        f"tokens and {paths[1]} on 90; make them equal, or add --unequal to compare them as they are"
    )
    assert str(refused.value) == expected
    shown = command.render(compare(paths, unequal=True), width=400)
    assert shown.startswith(f"! unequal budgets: {paths[0]} has seen 10.2k tokens and {paths[1]} 20.5k\n! unequal scores: ")
    assert re.search(r"first +10.2k  4.00e10 +2.0000\n2  second +20.5k +- +1.0000\n", shown)


def test_pairs_are_drawn_anew_for_each_seed(tmp_path: Path) -> None:
    """So what is read of one text differs between seeds, and runs of one seed that differ there read another."""
    pairs = dataclasses.replace(RUN.data, rows="segment_pairs")
    paths = [make(tmp_path / str(seed), seed=seed, data=pairs, meta=META | {"data": f"of {seed}"}) for seed in (0, 1)]
    assert [run.run.seed for run in compare(paths).rows[0].runs] == [0, 1]
    with pytest.raises(BadInput, match="were trained on other text"):
        compare([paths[0], make(tmp_path / "other", data=pairs, meta=META | {"data": "e"})])


# --- what is refused ------------------------------------------------------------------------------------------------------------


def unfinished(where: Path) -> list[str]:
    paths = several(where, "a", {0: 1.0, 1: 2.0})
    (where / "a-1" / "scores.json").unlink()
    return paths


def without_its_last_checkpoint(where: Path) -> list[str]:
    paths = several(where, "a", {0: 1.0})
    Folder(paths[0]).checkpoints.joinpath("00000020").rename(Folder(paths[0]).checkpoints / "00000010")
    return paths


def damaged(name: str, content: str) -> Callable[[Path], list[str]]:
    def damage(where: Path) -> list[str]:
        paths = several(where, "a", {0: 1.0})
        (where / "a-0" / name).write_text(content)
        return paths

    return damage


def linked(where: Path) -> list[str]:
    (path,) = several(where, "a", {0: 1.0})
    (where / "link").symlink_to(path)
    return [path, str(where / "link")]


REFUSED: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "none": (lambda where: [], "name the folders of the runs to compare: zoo compare RUN RUN"),
    "nothing there": (
        lambda where: [str(where / "a")],
        "{where}/a is no run: config.json cannot be read (No such file or directory)",
    ),
    "unfinished": (unfinished, "{where}/a-1 is not finished: it has no scores.json; train it to step 20, its last"),
    "no last checkpoint": (
        without_its_last_checkpoint,
        "{where}/a-0 is not finished: 00000020: COMMIT.json is missing; train it to step 20, its last, or put the checkpoint "
        "back",
    ),
    "no fingerprint": (
        lambda where: [make(where / "a", meta={"tokenizer": "t"})],
        "{where}/a/checkpoints/00000020/COMMIT.json: no 'held_out', so the run does not say what it read; train it anew",
    ),
    "scores that are no JSON": (
        damaged("scores.json", "{"),
        "{where}/a-0/scores.json is no JSON that can be read (*); make it again",
    ),
    "scores that are a list": (damaged("scores.json", "[]"), "{where}/a-0/scores.json is no object of numbers; make it again"),
    "no rows": (damaged("metrics.jsonl", ""), "{where}/a-0/metrics.jsonl: no row of the training; put the file back"),
    "one path twice": (lambda where: several(where, "a", {0: 1.0}) * 2, "{where}/a-0: named twice; name it once"),
    "one run by two paths": (linked, "{where}/link: named twice, first as {where}/a-0; name it once"),
    "a copy": (
        lambda where: [make(where / "a"), make(where / "b", accumulate=2)],
        "{where}/a and {where}/b are one run: the seed is the same, and all that matters; name one",
    ),
    "text that changed": (
        lambda where: [make(where / "a"), make(where / "b", seed=1, meta=META | {"data": "e"})],
        "{where}/a and {where}/b are configured alike and were trained on other text; train one anew",
    ),
    "other held-out text": (
        lambda where: [make(where / "a"), make(where / "b", seed=1, meta=META | {"held_out": "i"})],
        "{where}/b was scored on other held-out text than {where}/a; give all runs the same --data.valid-paths and "
        "--tokenizer.path",
    ),
    "another tokenizer": (
        lambda where: [
            make(where / "a"),
            make(where / "b", tokenizer=Tokenizer(vocab=280), meta=META | {"held_out": "i", "tokenizer": "u"}),
        ],
        "{where}/b was scored on other held-out text than {where}/a, or on the tokens of another tokenizer; give all runs the "
        "same --data.valid-paths and --tokenizer.path",
    ),
    "nothing in common": (
        lambda where: [make(where / "a"), make(where / "b", scores={"f1": 0.5, "tokens": 100}, **faster())],
        "the scores of these runs have no quantity in common ({where}/a has loss, tokens, stride; {where}/b has f1, tokens); "
        "compare runs of one kind",
    ),
}


DAMAGED = ("no last checkpoint", "no fingerprint", "scores that are no JSON", "scores that are a list", "no rows")


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.planted) if case in DAMAGED else case for case in REFUSED])
def test_what_cannot_be_compared_gets_one_line(case: str, tmp_path: Path) -> None:
    prepare, expected = REFUSED[case]
    with pytest.raises(BadInput) as refused:
        compare(prepare(tmp_path))
    pattern = re.escape(expected.format(where=tmp_path)).replace(r"\*", ".*")
    assert re.fullmatch(pattern, str(refused.value)), refused.value


def test_a_metric_that_is_not_measured_gets_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"^--metric los: not measured here; the nearest is loss \(all: loss\)$"):
        compare([make(tmp_path / "a")], metric=["los"])


def test_runs_of_another_objective_are_refused_unless_they_are_scored_alike(tmp_path: Path) -> None:
    masked, distilled = (make(tmp_path / name, objective=name) for name in ("masked", "distilled"))
    assert len(compare([masked, distilled]).rows) == 2
    with pytest.raises(BadInput, match=r"distilled was scored as masked and .*a as causal; compare runs of one objective$"):
        compare([make(tmp_path / "a"), distilled])


# --- the table ------------------------------------------------------------------------------------------------------------------

MANY = ("perplexity", "loss", "masked_loss", "next_loss", "accuracy", "next_accuracy")


@pytest.mark.parametrize("width", [40, 80, 100, 120, 200])
def test_no_number_is_cut_at_any_width(width: int, tmp_path: Path) -> None:
    paths = []
    for seed in range(3):
        low, high = ({name: 10 * place + seed / 8 + more for place, name in enumerate(MANY)} for more in (1, 2))
        paths.append(make(tmp_path / f"a-rather-long-name-{seed}", seed=seed, scores=low, flops=1e9))
        paths.append(make(tmp_path / f"b-{seed}", seed=seed, scores=high, flops=2e9, **faster()))
    found = compare(paths)
    shown = command.render(found, width=width)
    assert "…" not in shown
    numbers = re.findall(r"(?<![\w.])[+-]?\d+\.\d{2,4}(?![\d%])", shown)
    for row in found.rows:
        for estimates in (row.scores, row.difference or {}):
            for name, each in estimates.items():
                form = ".2f" if name == "perplexity" else ".4f"
                assert format(each.mean, form if estimates is row.scores else f"+{form}") in numbers
                assert format(each.half, form) in numbers
    if width >= 80:
        assert max(map(len, shown.splitlines())) <= width


def test_what_exploded_does_not_widen_the_table(tmp_path: Path) -> None:
    paths = [make(tmp_path / "a", scores={"perplexity": 1e304}), make(tmp_path / "b", scores={"perplexity": 20.0}, **faster())]
    shown = command.render(compare(paths), width=80)
    assert re.search(r"1  a +1e\+304\n2  b +20.00\n", shown)
    assert "2  b   -1e+304" in re.sub(" +", lambda gap: gap[0][:3], shown)


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    paths = [make(tmp_path / "x" / "run"), make(tmp_path / "y" / "run", **faster())]
    shown = "".join(command.render(compare(paths), width=200).split())
    assert f"1{paths[0]}2.0000" in shown
    assert f"2{paths[1]}2.0000" in shown


def test_whatever_a_name_holds_is_text(tmp_path: Path) -> None:
    path = make(tmp_path / "[red]run[", data=Data(length=32, batch=16, paths=("[bold]a.txt",)))
    shown = command.render(compare([path, make(tmp_path / "b", data=Data(length=32, batch=16))]), width=100)
    assert "[red]run[" in shown
    assert "data.paths  [bold]a.txt (1)   - (2)" in shown
