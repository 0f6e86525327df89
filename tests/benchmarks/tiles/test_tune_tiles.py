"""`zoo bench attention --tune`: what is measured and stored, and the order by the compiler's numbers."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.attention.problems import FEATURES, Problem, Shape
from benchmarks.core.options import AttentionOptions, Output
from benchmarks.plan.target_devices import parse_target
from benchmarks.tiles import tune_tiles
from benchmarks.tiles.tune_tiles import TriedSizes
from eval.pages.html_page import Table
from tests.support import benchmark_steps as steps
from zoo.attention.kernels import blocked
from zoo.errors import BadInput
from zoo.ops import tile_sizes

SMALL, LARGE = {"queries": 16, "keys": 16}, {"queries": 512, "keys": 1024}


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tune `blocked` for two short calls in an own cache folder, and return the file."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    steps.hurry(monkeypatch)
    tile_sizes.usable_rows.cache_clear()
    monkeypatch.setitem(tune_tiles.CANDIDATES, "blocked", [SMALL, LARGE])
    options = AttentionOptions(tune=True, feature=("causal", "full"), shape=("1,32,32,2,2,8",), rounds=1)
    assert tune_tiles.main(options, ()) == 0
    return tile_sizes.stored_path("cpu", "cpu")


def test_what_is_measured_is_stored_and_used(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(tuned.read_text())
    assert content["device"] == "cpu" and content["versions"] == tile_sizes.compiler_versions("cpu")
    rows = {row["form"]: row for row in content["rows"]}
    assert sorted(rows) == ["causal", "full"]
    call = tile_sizes.KernelCall(kernel="blocked", dtype="float32", form="causal", head=8, queries=32, keys=32)
    assert tile_sizes.tile_sizes(call) == rows["causal"]["sizes"]
    # Rows of other calls stay; those of other versions, and a damaged file, do not.
    tune_tiles.store_sizes(tuned, "cpu", "cpu", [call], SMALL)
    assert len(json.loads(tuned.read_text())["rows"]) == 2 and tile_sizes.tile_sizes(call) == SMALL
    tuned.write_text(tuned.read_text().replace('"jax":', '"jax ":'))
    tune_tiles.store_sizes(tuned, "cpu", "cpu", [call], LARGE)
    assert len(json.loads(tuned.read_text())["rows"]) == 1 and tile_sizes.tile_sizes(call) == LARGE
    tuned.write_text("{")
    tune_tiles.store_sizes(tuned, "cpu", "cpu", [call], SMALL)
    assert tile_sizes.tile_sizes(call) == SMALL and "is invalid JSON" in capsys.readouterr().err


@pytest.mark.planted
def test_sizes_with_wrong_results_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, dot = Problem.of(FEATURES["full"], Shape(1, 64, 64, 2, 2, 8), "float32"), blocked.dot
    # Its products are a tenth too large in small tiles.
    monkeypatch.setattr(blocked, "dot", lambda x, y, i, j: dot(x, y, i, j) * (1.1 if y.shape[2] == 16 else 1.0))
    steps.hurry(monkeypatch)
    present, wrong = tune_tiles.time_sizes(problem, "blocked", [LARGE, SMALL], AttentionOptions(rounds=1))
    assert not present.reason and wrong.reason.startswith("WRONG: its results differ by")
    assert tune_tiles.choose_sizes([present, wrong]) == LARGE


def test_the_present_sizes_stay_unless_others_are_clearly_faster() -> None:
    def chosen(*seconds: float) -> Any:
        sizes = (SMALL, LARGE)
        tried = [TriedSizes(one, time, "" if time == time else "too large") for one, time in zip(sizes, seconds, strict=True)]
        return tune_tiles.choose_sizes(tried)

    assert [chosen(1.0, 0.98), chosen(1.0, 0.9), chosen(math.nan, 2.0), chosen(math.nan, math.nan)] == [SMALL, LARGE, LARGE, None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (AttentionOptions(impl=("xla",)), "--impl xla with --tune: its tiles have no sizes to choose; choose from blocked"),
        (AttentionOptions(quick=True), "--quick with --tune: it has no meaning there"),
        (AttentionOptions(output=Output(out="x")), "--tune with --out or --resume"),
        (AttentionOptions(impl=("splash",), compiled="h100"), "no kernel of them is for a gpu"),
    ],
)
def test_options_without_a_meaning_are_refused(options: AttentionOptions, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        tune_tiles.main(options, ())


def cell(kernel: str, sizes: dict[str, int], kernels: list[dict[str, Any]], length: int = 4096) -> dict[str, Any]:
    shape = {"batch": 1, "queries": length, "keys": length, "heads": 16, "groups": 16, "head": 128}
    return {"implementation": kernel, "feature": "causal", "sizes": sizes, "kernels": kernels, **shape}


def test_the_order_without_a_device_follows_from_bundles_and_grid() -> None:
    """By the bundles that libtpu 0.0.42.1 states for v5e, and a loss on short causal rows, of which larger tiles skip less."""

    def flash(size: int, forward: int, backward: int, length: int = 8192) -> float:
        kernels = [{"name": "flash_forward", "bundles": forward}, {"name": "flash_backward", "bundles": backward}]
        return tune_tiles.predicted_time(cell("flash_tpu", {"block": size}, kernels, length), "v5e")

    assert flash(1024, 4628, 8882) < flash(512, 1101, 2489) < flash(512, 1101, 4000)
    assert flash(1024, 4628, 8882, 1024) > flash(512, 1101, 2489, 1024)
    gpu = [tune_tiles.predicted_time(cell("flash_gpu", {"block": 64}, [{"spilled": spilled}]), "h100") for spilled in (0, 8)]
    assert math.isfinite(gpu[0]) and math.isinf(gpu[1])


def test_sizes_that_fail_are_last_with_the_reason_below_the_table() -> None:
    kernels = [{"name": "flash_forward", "bundles": 1000}, {"name": "flash_backward", "bundles": 2000}]
    common = {"dtype": "bfloat16", "compile_seconds": 3.0, "state": "compiled"}
    cells = [cell("flash_tpu", {"block": size}, kernels) | common for size in (1024, 256, 512)]
    cells[0] |= {"state": "failed", "reason": "the tiles do not fit"}
    cells += [cell("splash", {"block": size}, []) | {**common, "state": "refused", "reason": "no bias"} for size in (1, 2)]
    *_, table, reasons = tune_tiles._ranking_blocks(parse_target("v5e:2x2"), cells)
    assert isinstance(table, Table)
    assert [row[1:] for row in table.rows] == [
        ["flash_tpu", "512", "1.00", "3 s to compile"],
        ["flash_tpu", "256", table.rows[1][3], "3 s to compile"],
        ["flash_tpu", "1024", "", "failed"],
        ["splash", "1", "", "refused"],
    ]
    row = "causal 1 x 4096 128 bfloat16"
    assert reasons == [f"{row}, flash_tpu, 1024: failed: the tiles do not fit", f"{row}, splash, 1: refused: no bias"]
