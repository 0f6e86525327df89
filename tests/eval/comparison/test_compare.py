"""`zoo compare`: which runs form one row, how their intervals are computed, and what is not comparable."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.comparison import comparison_table, run_results
from eval.comparison.estimates import Estimate, RowDifference, correct_for_rows, paired_row_difference, welch_row_difference
from eval.comparison.seed_statistics import compare_runs
from tests.support import commands, tiny
from tests.support.finished_runs import MASKED, META, RUN, make, several
from train.checkpoints.manifest import Manifest, folder_name
from train.config.data_options import CausalData
from train.config.objectives import CausalOptions
from train.config.option_groups import Selection
from train.config.run_config import Mesh, Optim, Tokenizer
from train.run.run_dir import RunDir, read_config, write_json
from train.run.run_identity import run_identity
from zoo.errors import BadInput
from zoo.models import parameter_count

T_2 = 4.302652729911275
"""Student's t(0.975) of 2 degrees of freedom, from a table."""


def faster(**more: Any) -> dict[str, Any]:
    return {"optim": dataclasses.replace(RUN.optim, lr=0.5), **more}


@pytest.mark.full
def test_trained_runs_are_compared_by_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compare a trained run with copies of it that have another seed or learning rate, and another score."""
    monkeypatch.chdir(tmp_path)
    commands.finished(tmp_path)
    trained, scores = read_config("runs/done"), json.loads(Path("runs/done/scores.json").read_text())
    loss = scores["loss"]
    for name, changes in {"a1": {"seed": 1}, "b0": {"optim": dataclasses.replace(trained.optim, lr=0.01)}}.items():
        shutil.copytree("runs/done", f"runs/{name}")
        run, checkpoint = dataclasses.replace(trained, **changes), Path(f"runs/{name}/checkpoints/{folder_name(trained.steps)}")
        RunDir(f"runs/{name}").write_config(run)
        manifest = Manifest.read(checkpoint, trained.steps)
        dataclasses.replace(manifest, meta=manifest.meta | {"config": run_identity(run)}).write(checkpoint)
        write_json(Path(f"runs/{name}/scores.json"), scores | {"loss": loss - 0.5})
    result = json.loads(commands.call(capsys, "compare", "runs/b0", "runs/a1", "runs/done", "--json").stdout)
    fast, base = result["rows"]
    assert result["metrics"] == ["bits_per_byte", "perplexity", "loss"]
    assert (fast["runs"], fast["seeds"], fast["differing"]) == (["runs/b0"], [0], {"optim.lr": 0.01})
    assert fast["scores"]["loss"] == {"mean": loss - 0.5, "half": None, "values": [loss - 0.5]}
    assert (base["runs"], base["seeds"]) == (["runs/done", "runs/a1"], [0, 1])
    assert base["scores"]["loss"]["values"] == [loss, loss - 0.5]
    assert (base["recipe"], base["tokens_seen"]) == ("gpt-nano", 2 * 8 * 32)
    assert base["parameters"] == parameter_count(run_results.read_run("runs/done").run.model)
    shown = commands.call(capsys, "compare", "runs/done", "runs/b0", "--metric", "loss").stdout
    assert re.search(rf"1  done +{loss:.4f}\n2  b0 +{loss - 0.5:.4f}\n", shown)
    assert "-0.5000" in shown and "perplexity" not in shown


@pytest.mark.full
def test_trained_runs_with_other_tokenizers_count_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands.finished(tmp_path)
    trained = [*commands.TINY, "--tokenizer.vocab", "280", "--model.vocab", "280", "--name", "small"]
    assert commands.call(capsys, "train", "gpt-nano", *trained).code == 0
    counts = [json.loads(Path(f"runs/{name}/scores.json").read_text()) for name in ("done", "small")]
    assert counts[0]["bytes"] == counts[1]["bytes"] and counts[0]["tokens"] < counts[1]["tokens"]
    result = json.loads(commands.call(capsys, "compare", "runs/done", "runs/small", "--json").stdout)
    assert result["withheld"] == ["perplexity", "loss"] and result["rows"][1]["scores"]["loss"] is None
    difference = counts[1]["bits_per_byte"] - counts[0]["bits_per_byte"]
    assert result["rows"][1]["difference_to_first"]["bits_per_byte"]["mean"] == pytest.approx(difference)


def test_runs_that_differ_in_their_seed_or_in_no_number_are_one_row(tmp_path: Path) -> None:
    paths = [
        make(tmp_path / "c", seed=7),
        make(tmp_path / "a", seed=2, accumulate=4, mesh=Mesh(fsdp=2), recipe="other", name="x"),
        make(tmp_path / "b", seed=3, steps=21),
        make(tmp_path / "d", seed=1, options=CausalOptions(loss_chunk=8)),
    ]
    result = compare_runs(paths, unequal=True)
    assert [[run.path.name for run in row.runs] for row in result.rows] == [["d", "a", "c"], ["b"]]
    assert result.differing == {"steps": [20, 21]}


def test_intervals_are_those_of_student_and_of_welch(rng: np.random.Generator) -> None:
    import scipy.stats

    for count in (2, 3, 8, 8):
        ours, theirs = rng.normal(size=(2, count))
        tests: list[tuple[RowDifference, Any]] = [
            (paired_row_difference(list(ours - theirs)), scipy.stats.ttest_rel(ours, theirs)),
            (welch_row_difference(list(ours), [*theirs, 9.0]), scipy.stats.ttest_ind(ours, [*theirs, 9.0], equal_var=False)),
        ]
        for difference, expected in tests:
            interval = expected.confidence_interval(0.95)
            assert difference.half is not None and difference.p == pytest.approx(expected.pvalue, rel=1e-9)
            assert (difference.mean - difference.half, difference.mean + difference.half) == pytest.approx(tuple(interval))
            (alone,) = correct_for_rows([difference])
            assert alone.clear == (not interval.low <= 0 <= interval.high)
        estimate = Estimate.of(list(ours))
        low, high = scipy.stats.ttest_1samp(ours, 0).confidence_interval(0.95)
        assert (estimate.mean - (estimate.half or 0), estimate.mean + (estimate.half or 0)) == pytest.approx((low, high))
    assert (Estimate.of([1.0, 1.0]).half, Estimate.of([1.0]).half) == (0, None)
    # Without variance, no test tells a difference from chance; the last two differ by rounding.
    for same in ([0.0, 0.0], [1.0, 1.0], [0.31 - 0.29, 0.06 - 0.04]):
        (difference,) = correct_for_rows([paired_row_difference(same)])
        assert (difference.half, difference.p, difference.clear) == (None, None, False)
    assert welch_row_difference([1.0, 2.0], [1.0]).half is paired_row_difference([1.0]).p is None


def test_rows_are_compared_with_the_first_one_seed_by_seed_or_by_welch(tmp_path: Path) -> None:
    # The seed changes much more than the learning rate does: the difference is clear only in pairs.
    base = several(tmp_path, "base", {0: 2.0, 1: 3.0, 2: 4.0})
    fast = several(tmp_path, "fast", {2: 3.9, 0: 1.88, 1: 2.9}, **faster())
    some = several(tmp_path, "some", {0: 1.0, 5: 1.5}, optim=Optim(lr=0.25))
    result = compare_runs([*base, *fast, *some])
    first, second, third = result.rows
    assert first.difference is None
    assert dataclasses.astuple(first.scores["loss"]) == pytest.approx((3.0, T_2 / 3**0.5))
    assert second.difference is not None and second.difference["loss"].clear
    assert second.difference["loss"].test == "paired"
    expected = (-0.32 / 3, T_2 * np.std([0.12, 0.1, 0.1], ddof=1) / 3**0.5)
    assert dataclasses.astuple(second.difference["loss"])[:2] == pytest.approx(expected)
    assert third.difference is not None and third.difference["loss"].test == "welch"
    assert third.difference["loss"].mean == pytest.approx(-1.75) and not third.difference["loss"].clear
    assert [row.independent for row in result.rows] == [3, 3, 2]
    shown = comparison_table.render_comparison(result, width=400)
    assert re.search(r"difference from base-0 \+2\n.* by\n2 .* seed by seed\n3 .* Welch's t\n", shown)
    assert "a row with other seeds than the first row is not paired with it, not even by the seeds that both have" in shown
    assert "*: p is at most 0.05, after Holm's correction for the number of rows, in each metric alone" in shown


@pytest.mark.planted
def test_stars_are_corrected_for_the_number_of_rows(tmp_path: Path) -> None:
    """A difference with p = 0.03 has a star alone, and none among three of which the others show nothing."""
    base = several(tmp_path, "base", {0: 2.0, 1: 3.0, 2: 4.0})
    near = several(tmp_path, "near", {0: 2.1, 1: 3.17, 2: 4.15}, **faster())
    others = [
        several(tmp_path, name, {0: 2.1, 1: 2.9, 2: 4.05}, optim=dataclasses.replace(RUN.optim, lr=lr))
        for name, lr in (("b", 0.2), ("c", 0.3))
    ]
    alone, among = (compare_runs([*base, *near, *more]).rows[1].difference for more in ([], [*others[0], *others[1]]))
    assert alone is not None and among is not None
    assert alone["loss"].p == among["loss"].p == pytest.approx(0.022, abs=0.001)
    assert (alone["loss"].clear, among["loss"].clear) == (True, False)
    assert among["loss"].p_holm == pytest.approx(3 * (among["loss"].p or 0))


def test_a_row_of_a_single_seed_is_noticed(tmp_path: Path) -> None:
    base = several(tmp_path, "base", {0: 2.0, 1: 3.0})
    result = compare_runs([*base, make(tmp_path / "one", **faster())])
    (notice,) = comparison_table.comparison_notices(result.rows)
    assert notice == "a single seed, so it is not known how much another would change: one; add runs of other --seed"
    assert comparison_table.comparison_notices(compare_runs(base).rows) == []
    shown = comparison_table.render_comparison(result, width=80)
    assert re.search(r"^ +run +n  seeds ", shown, re.MULTILINE) and "1  base-0 +1  2  0, 1" in shown
    (difference,) = [row.difference for row in result.rows if row.difference is not None]
    assert (difference["loss"].mean, difference["loss"].half, difference["loss"].test) == (-0.5, None, "welch")


def test_a_difference_that_is_the_same_for_all_seeds_is_noticed(tmp_path: Path) -> None:
    base, fast = several(tmp_path, "base", {0: 2.0, 1: 3.0}), several(tmp_path, "fast", {0: 1.5, 1: 2.5}, **faster())
    result = compare_runs([*base, *fast])
    (notice,) = comparison_table.comparison_notices(result.rows)
    assert notice.startswith("fast-0 +1: no interval and no test of loss, because all seeds have the same values")
    shown = comparison_table.render_comparison(result, width=80)
    assert "seed by seed" in shown and "*" not in shown


TEXT = {"loss": 2.0, "perplexity": 7.4, "bits_per_byte": 1.5, "tokens": 100, "bytes": 290, "stride": 16}
OF_TEXT = META | {"held_out_text": "digest"}
OTHER_TOKENS: dict[str, Any] = {"tokenizer": Tokenizer(vocab=280), "meta": OF_TEXT | {"held_out": "i", "tokenizer": "u"}}
OTHER_SCORES = TEXT | {"loss": 3.0, "perplexity": 20.1, "bits_per_byte": 1.25, "tokens": 60}


def test_only_bits_per_byte_compare_models_with_other_tokenizers(tmp_path: Path) -> None:
    first = make(tmp_path / "a", scores=TEXT, meta=OF_TEXT)
    same = make(tmp_path / "b", scores=TEXT, meta=OF_TEXT, **faster())
    other = make(tmp_path / "c", scores=OTHER_SCORES, **OTHER_TOKENS)
    result = compare_runs([first, same, other])
    assert result.metrics == ["bits_per_byte", "perplexity", "loss"] and result.withheld == ["perplexity", "loss"]
    third = result.rows[2]
    assert list(third.scores) == list(third.difference or {}) == ["bits_per_byte"]
    assert third.difference is not None and third.difference["bits_per_byte"].mean == -0.25
    shown = comparison_table.render_comparison(result, width=400)
    assert re.search(r"3  c .* 1\.2500 +- +-\n", shown)
    assert "-: perplexity, loss: means over the tokens of another tokenizer, which do not compare; bits per byte do" in shown
    rows = comparison_table.comparison_record(result)["rows"]
    assert rows[2]["scores"]["loss"] is None and rows[1]["scores"]["loss"]["mean"] == 2.0
    assert compare_runs([first, other], metric=["bits_per_byte"]).metrics == ["bits_per_byte"]
    with pytest.raises(BadInput, match=r"^--metric loss: .*/c has another tokenizer than .*/a; choose bits_per_byte"):
        compare_runs([first, other], metric=["loss"])


@pytest.mark.planted(4)
def test_bits_per_byte_of_other_bytes_are_refused(tmp_path: Path) -> None:
    """Another text, a tokenizer that drops some of it, and runs that do not say what they were scored on."""
    first = make(tmp_path / "a", scores=TEXT, meta=OF_TEXT)
    other_text = OTHER_TOKENS | {"meta": OTHER_TOKENS["meta"] | {"held_out_text": "another"}}
    no_digest = OTHER_TOKENS | {"meta": META | {"held_out": "i", "tokenizer": "u"}}
    cases = {
        "text": (
            OTHER_SCORES,
            other_text,
            r"/text was scored on other held-out text than .*/a, with another tokenizer; ",
        ),
        "lossy": (OTHER_SCORES | {"bytes": 280}, OTHER_TOKENS, r"/a counts 290 bytes of the held-out text and .*/lossy 280: one"),
        "old": (
            OTHER_SCORES,
            no_digest,
            r"another tokenizer, and .*/old has no digest of it; .* --metric perplexity/b",
        ),
        "none": ({"loss": 3.0, "tokens": 60}, OTHER_TOKENS, r"another tokenizer, and .*/none has no bits_per_byte; give all"),
    }
    for name, (scores, changes, message) in cases.items():
        with pytest.raises(BadInput, match=message) as refused:
            compare_runs([first, make(tmp_path / name, scores=scores, **changes)])
        assert "\n" not in str(refused.value)


def test_metrics_that_all_runs_have_are_compared(tmp_path: Path) -> None:
    one = make(tmp_path / "a", scores={"f1": 0.5, "loss": 1.0, "unigram_loss": 6.0, "accuracy": 0.75, "stride": 16, "note": "x"})
    two = make(tmp_path / "b", scores={"accuracy": 0.5, "unigram_loss": 6.0, "loss": 1.0, "stride": 8}, **faster())
    assert compare_runs([one, two]).metrics == ["loss", "accuracy"]
    assert compare_runs([one, two], metric=["accuracy", "unigram_loss", "accuracy"]).metrics == ["accuracy", "unigram_loss"]
    with pytest.raises(BadInput, match=r"^--metric los: not measured here; the nearest is loss"):
        compare_runs([one], metric=["los"])
    # A loss with next sentences is not compared with one without.
    masked = {"loss": 3.0, "masked_loss": 3.0, "unigram_loss": 6.0, "accuracy": 0.5}
    one = make(tmp_path / "c", MASKED, scores=masked | {"loss": 3.5, "next_loss": 0.5})
    two = make(tmp_path / "d", MASKED, scores=masked, **faster())
    assert compare_runs([one, two]).metrics == ["masked_loss", "accuracy"]
    assert compare_runs([two]).metrics == ["loss", "masked_loss", "accuracy"]


def test_budgets_are_equal_in_tokens_or_in_flops(tmp_path: Path) -> None:
    first = make(tmp_path / "first", flops=2e9)
    same_tokens = make(tmp_path / "tokens", flops=9e9, steps=40, data=CausalData(length=32, batch=8))
    same_flops = make(tmp_path / "flops", flops=1e9, steps=40)
    unknown = make(tmp_path / "unknown", steps=40)
    for other in (same_tokens, same_flops):
        assert compare_runs([first, other]).unequal == []
    for runs in ((same_tokens, same_flops), (first, unknown), (same_flops, first, same_tokens)):
        with pytest.raises(BadInput, match=r"^unequal budgets: .*; make them equal, or add --unequal"):
            compare_runs(runs)
    assert [row.first.flops for row in compare_runs([first, unknown], unequal=True).rows] == [40e9, None]
    # They may differ by a hundredth.
    paths = [make(tmp_path / str(steps), steps=steps) for steps in (100, 101, 102)]
    assert compare_runs(paths[:2]).unequal == []
    fewer = make(tmp_path / "fewer", steps=102, seed=1, scores={"loss": 1.0, "tokens": 90})
    with pytest.raises(BadInput, match=r"unequal budgets: .*; unequal scores: .* scored on 100 tokens and .* on 90; make them"):
        compare_runs([paths[0], fewer])
    first_line, second_line = compare_runs([paths[0], fewer], unequal=True).unequal
    assert first_line.startswith("unequal budgets: ") and second_line.startswith("unequal scores: ")


def test_runs_with_as_many_positions_and_less_text_are_noticed(tmp_path: Path) -> None:
    counts = {"input_tokens": 1000, "text_tokens": 900, "predictions": 1000, "bytes": 3000}
    full = make(tmp_path / "full", meta=META | {"counts": counts})
    padded = make(tmp_path / "padded", meta=META | {"counts": counts | {"text_tokens": 500}}, **faster())
    result = compare_runs([full, padded])
    notice, single = comparison_table.comparison_record(result)["notices"]
    assert single.startswith("a single seed")
    assert notice == f"{padded} has seen 500 tokens of text and {full} 900, in equally many positions, padding included"
    assert comparison_table.comparison_record(result)["rows"][0]["costs"]["bytes"] == 3000
    assert comparison_table.comparison_record(compare_runs([full]))["notices"] == []


def test_run_that_stopped_early_has_spent_what_it_used(tmp_path: Path) -> None:
    patient: dict[str, Any] = {"selection": Selection(best=True, patience=2)}
    early = make(tmp_path / "early", flops=2e9, ended=RUN.steps // 2, **patient)
    earlier = make(tmp_path / "earlier", flops=2e9, ended=RUN.steps // 2 - 4, seed=1, **patient)
    (row,) = compare_runs([early]).rows
    seen = RUN.steps // 2 * RUN.data.batch * RUN.data.length
    (both,) = compare_runs([early, earlier], unequal=True).rows
    assert (both.tokens, both.flops) == (seen * 0.8, RUN.steps // 2 * 2e9 * 0.8)
    assert (row.first.tokens, row.first.flops) == (seen, RUN.steps // 2 * 2e9)
    with pytest.raises(BadInput, match="make them equal"):
        compare_runs([early, make(tmp_path / "whole", flops=2e9, **patient)])
    with pytest.raises(BadInput, match="is not finished"):
        compare_runs([make(tmp_path / "cut", ended=RUN.steps // 2)])


def pair(**changes: Any) -> Callable[[Path], list[str]]:
    """A run, and another one with these changes."""
    return lambda where: [make(where / "a"), make(where / "b", **changes)]


def edited(edit: Callable[[Path], Any]) -> Callable[[Path], list[str]]:
    """A run whose folder is edited afterwards."""

    def prepare(where: Path) -> list[str]:
        path = make(where / "a")
        edit(Path(path))
        return [path]

    return prepare


REFUSED: list[tuple[Callable[[Path], list[str]], str]] = [
    (edited(lambda run: (run / "scores.json").unlink()), r"/a is not finished: it has no scores\.json"),
    (lambda where: [make(where / "a"), f"{where}/b/../a"], "/a: named twice, first as .*/a; name it once"),
    (pair(accumulate=2), "/a and .*/b are the same run"),
    (pair(seed=1, meta=META | {"data": "e"}), "/a and .*/b .* were trained on different text"),
    (pair(seed=1, meta=META | {"held_out": "i"}), "/b was scored on other held-out text than .*/a"),
    (pair(tokenizer=Tokenizer(vocab=280), meta=META | {"held_out": "i", "tokenizer": "u"}), "/b was scored .* another tokenizer"),
    (
        pair(meta=META | {"targets": {"masking.rare": 0.7}}, **faster()),
        r"/b was scored on other targets than .*/a: masking\.rare is 0\.7 and not absent; score all of them alike",
    ),
    (pair(scores={"f1": 0.5, "tokens": 100}, **faster()), "no metric in common .*/b has f1, tokens"),
]
DAMAGED: list[tuple[Callable[[Path], list[str]], str]] = [
    (
        edited(lambda run: (run / "checkpoints/00000020").rename(run / "checkpoints/00000010")),
        r"/a is not finished: 00000020: COMMIT\.json is missing; train it",
    ),
    (
        lambda where: [make(where / "a", meta={"tokenizer": "t"})],
        r"/a/checkpoints/00000020/COMMIT\.json: no 'held_out', .*; train it again",
    ),
    (edited(lambda run: (run / "scores.json").write_text("{")), r"/a/scores\.json is invalid JSON .*; score the run again"),
    (
        edited(lambda run: (run / "scores.json").write_text("[]")),
        r"/a/scores\.json has unexpected content \(the whole: list instead of dict\); score the run again",
    ),
    (
        edited(lambda run: (run / "scores.json").write_text(f'{{"tokens": 1{"0" * 400}}}')),
        r"/a/scores\.json has unexpected content \(tokens: an integer of more than 64 bits\); score the run again",
    ),
    (
        edited(lambda run: (run / "scores.json").write_text('{"loss": 1e999}')),
        r"/a/scores\.json has unexpected content \(loss: the number inf\); score the run again",
    ),
    (lambda where: [make(where / "a", meta=META | {"counts": {"bytes": "x"}})], r"\(no meta\.counts\.input_tokens\); train it"),
    (lambda where: [make(where / "a", meta=META | {"held_out": [1]})], r"\(meta\.held_out: list\); train it"),
    (lambda where: [make(where / "a", meta=META | {"parents": 5})], r"\(meta\.parents: int instead of dict\); train it"),
    (edited(lambda run: (run / "metrics.jsonl").write_text("")), r"/a/metrics\.jsonl: no row of the training; restore the file"),
]


@pytest.mark.planted(len(DAMAGED))
def test_runs_that_cannot_be_compared_are_refused_in_one_line(tmp_path: Path) -> None:
    for number, (prepare, message) in enumerate([*REFUSED, *DAMAGED]):
        with pytest.raises(BadInput, match=message) as refused:
            compare_runs(prepare(tmp_path / str(number)))
        assert "\n" not in str(refused.value)


def test_segment_pairs_differ_between_seeds_and_only_between_seeds(tmp_path: Path) -> None:
    pairs = dataclasses.replace(MASKED, data=dataclasses.replace(MASKED.data, rows="segment_pairs"))
    paths = [make(tmp_path / str(seed), pairs, seed=seed, meta=META | {"data": f"of {seed}"}) for seed in (0, 1)]
    assert [run.run.seed for run in compare_runs(paths).rows[0].runs] == [0, 1]
    with pytest.raises(BadInput, match="were trained on different text"):
        compare_runs([paths[0], make(tmp_path / "other", pairs, meta=META | {"data": "e"})])


def test_samples_of_the_text_differ_between_seeds_and_only_between_seeds(tmp_path: Path) -> None:
    sampled = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, take=0.5))
    paths = [make(tmp_path / str(seed), sampled, seed=seed, meta=META | {"data": f"of {seed}"}) for seed in (0, 1)]
    assert [run.run.seed for run in compare_runs(paths).rows[0].runs] == [0, 1]
    with pytest.raises(BadInput, match="were trained on different text"):
        compare_runs([paths[0], make(tmp_path / "other", sampled, meta=META | {"data": "e"})])


def test_objectives_are_comparable_where_they_are_scored_alike(tmp_path: Path) -> None:
    masked, distilled = (make(tmp_path / name, tiny.run(name)) for name in ("masked", "distilled"))
    assert len(compare_runs([masked, distilled]).rows) == 2
    with pytest.raises(BadInput, match=r"distilled was scored as masked and .*a as causal; compare runs of one objective$"):
        compare_runs([make(tmp_path / "a"), distilled])


def test_equal_names_are_distinguished_by_their_paths_and_shown_as_plain_text(tmp_path: Path) -> None:
    data = CausalData(length=32, batch=16)
    first = make(tmp_path / "x" / "[red]run[", data=dataclasses.replace(data, paths=("[bold]a.txt",)))
    second = make(tmp_path / "y" / "[red]run[", data=data, scores={"loss": 3.0, "tokens": 100})
    shown = "".join(comparison_table.render_comparison(compare_runs([first, second]), width=200).split())
    assert f"1{first}2.0000" in shown and f"2{second}3.0000" in shown
    assert "data.paths[bold]a.txt(1)-(2)" in shown


@pytest.mark.planted
def test_an_accuracy_is_compared_beside_the_most_frequent_class_and_a_run_that_learned_nothing_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"accuracy": 0.75, "majority_share": 0.5, "predicted_share": 0.6, "examples": 100}
    nothing = scores | {"accuracy": 0.5, "predicted_share": 1.0}
    found = compare_runs([make(tmp_path / "a", scores=scores), make(tmp_path / "b", scores=nothing, optim=faster()["optim"])])
    line, single = comparison_table.comparison_record(found)["notices"]
    assert line.startswith(f"{tmp_path / 'b'}: one class is predicted for 100.0% of") and found.metrics == ["accuracy"]
    assert comparison_table.run_compare([str(tmp_path / name) for name in "ab"], unequal=False, as_json=False) == 0
    ended = capsys.readouterr()
    assert "majority class 0.5000" in ended.out and ended.err == f"! {line}\n! {single}\n"
