"""The cost model of tiles, and the script that judges it and writes the table, on times that follow from a rule."""

import csv
import dataclasses
import itertools
import json
from pathlib import Path

import pytest

from benchmarks.tiles import tile_model, tiles_from_figures
from benchmarks.tiles.tile_model import TimedTile, active_tiles, fit_rates, order_by_model, predicted_micros
from zoo.errors import BadInput
from zoo.ops import tile_sizes

RATES = {"call": 200.0, "grid steps": 0.3, "scores": 1.0, "log-sum-exp": 5.0}
TILES = [(q, k, 512) for q, k in itertools.product((512, 1024, 2048), repeat=2)]


def timed(length: int, causal: bool, extra: bool, head: int = 128) -> TimedTile:
    """Return a row with the best tile by `RATES`, and its time."""
    shape = (max(1, 16384 // length), length, length, 16, 16, head)
    row = TimedTile(
        device="TPU v6e", kernel="splash", direction="forward", shape=shape, tile=(), micros=1.0, causal=causal, extra=extra
    )
    times = {tile: predicted_micros(rates(row, tile), row, tile) for tile in TILES if max(tile[:2]) <= length}
    best = min(times, key=lambda tile: times[tile])
    return dataclasses.replace(row, tile=best, micros=times[best])


def rates(row: TimedTile, tile: tuple[int, ...]) -> dict[str, float]:
    return dict.fromkeys(tile_model.COUNTS[row.kernel](row, tile), 0.0) | RATES


ROWS = [timed(*case) for case in itertools.product((512, 1024, 2048, 4096, 8192), (False, True), (False, True), (64, 128))]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("blocks", [(8, 8), (16, 8), (8, 24), (40, 40)])
def test_active_tiles_are_those_with_a_pair(blocks: tuple[int, int], causal: bool) -> None:
    t = s = 40
    tiles = itertools.product(range(0, t, blocks[0]), range(0, s, blocks[1]))
    seen = [[j <= i for i in range(i0, min(t, i0 + blocks[0])) for j in range(j0, min(s, j0 + blocks[1]))] for i0, j0 in tiles]
    active = sum(any(pairs) or not causal for pairs in seen)
    full = sum(all(pairs) or not causal for pairs in seen)
    assert active_tiles(t, s, *blocks, causal) == (active, active - full)


def test_the_model_finds_the_rule_and_the_best_tiles() -> None:
    fitted, held_out = ([row for row in ROWS if row.is_held_out is half] for half in (False, True))
    found_rates = fit_rates(fitted)
    assert len(fitted) > 8 and len(held_out) > 8
    for row in held_out:
        assert predicted_micros(found_rates, row, row.tile) == pytest.approx(row.micros, rel=0.02)
        assert row.tile[:2] in order_by_model(found_rates, fitted, row)[:3]


@pytest.mark.planted
def test_a_model_without_the_grid_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = tile_model.splash_counts
    monkeypatch.setitem(tile_model.COUNTS, "splash", lambda *args: counts(*args) | {"grid steps": 0.0, "rescaled rows": 0.0})
    with pytest.raises(AssertionError):
        test_the_model_finds_the_rule_and_the_best_tiles()


def write_figures(folder: Path) -> Path:
    """Write both tables: attention by `ROWS` on three TPUs and in both directions, and no experts but one."""
    rows = []
    for device, row in itertools.product(("tpu_v5", "tpu_v6_lite", "tpu7x"), ROWS):
        for direction, end in (("forward", ""), ("vjp", "_dkv")):
            shape = "x".join(str(row.shape[place]) for place in (0, 1, 3, 5))
            q, k, compute = row.tile
            config = f"block_q{end}={q};block_kv{end}={k};block_kv{end}_compute={compute};q_layout=1"
            rows.append({"device": device, "direction": direction, "q_shape": shape, "k_shape": shape, "config": config})
            rows[-1] |= {"implementation": "pallas_mosaic_tpu_flash_attention", "causal": str(int(row.causal)), "bias": ""}
            rows[-1] |= {"return_residuals": str(int(row.extra)), "time_us_median": str(row.micros), "at_head": "1"}
    expert = {"device": "tpu_v5", "implementation": "pallas_mosaic_tpu_ragged_dot", "lhs_shape": "1024x512", "at_head": "1"}
    expert |= {"kind": "dlhs(m,n)x(g,k,n)^T", "rhs_shape": "4x2048x512", "num_groups": "4", "group_stats": "max=9;empty=1"}
    expert |= {"config": "tile_m=128;tile_k=2048;tile_n=512", "time_us_median": "9", "activation": ""}
    for name, table in (("attention_times.csv", rows), ("experts_times.csv", [expert])):
        with (folder / name).open("w", newline="") as stream:
            writer = csv.DictWriter(stream, table[0])
            writer.writeheader()
            writer.writerows(table)
    return folder


def test_the_script_prints_the_page_and_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, rates_file = tmp_path / "table.json", tmp_path / "rates.json"
    table.write_text(tile_sizes.TABLE.read_text())
    arguments = [str(write_figures(tmp_path)), "--table", str(table), "--rates", str(rates_file)]
    assert tiles_from_figures.main(arguments) == 0
    page = capsys.readouterr().out
    assert "| TPU v6e | splash | forward | " in page and "| all | splash |  | " in page
    lines = json.loads(table.read_text())["splash"]
    assert [line["sizes"]["queries"] for line in lines] == [1024, 1024, 1024, 512]
    assert {line["length"] for line in lines[:-1]} == {1024}
    assert set(json.loads(rates_file.read_text())["TPU v6e splash forward"]) > set(RATES)
    (expert,) = tile_model.read_experts(tmp_path / "experts_times.csv")
    assert (expert.shape, expert.tile, expert.direction) == ((1024, 512, 2048, 3), (128, 512, 2048), "rows")


def test_the_committed_table_is_written_by_the_script() -> None:
    text = tile_sizes.TABLE.read_text()
    assert tiles_from_figures.table_text(json.loads(text)) == text


def test_a_missing_file_or_column_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiles_from_figures.main([str(tmp_path)]) == 2
    assert "attention_times.csv: there is no such file; give the folder" in capsys.readouterr().err
    (tmp_path / "x.csv").write_text("device\ntpu7x\n")
    with pytest.raises(BadInput, match=r"it has no column lhs_shape, rhs_shape, .*; give the folder"):
        tile_model.read_experts(tmp_path / "x.csv")
