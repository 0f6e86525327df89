"""Rows of metrics: the share of time in which the loop waits for its batches, and the steps that were skipped."""

import dataclasses
import types
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from tests.support import tiny
from train.config.option_groups import Spikes
from train.run import metrics_file, time_account
from train.run.console import Console
from train.run.matmul_rate import PeakRate
from train.run.metric_logger import MetricLogger
from train.run.run_dir import RunDir
from train.run.time_account import TimeAccount
from zoo.errors import BadInput

MEASURED = {name: jnp.ones(()) for name in ("loss", "grad_norm", "lr", "finite")}


def test_spikes_are_counted_and_too_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    """They and steps that are not finite count together; one that is applied is the end of a row of them."""
    run, folder = dataclasses.replace(tiny.run(), max_skipped=3, spikes=Spikes(sigmas=2.0, window=8)), RunDir(tmp_path)
    options: dict[str, Any] = dict(first=0, tokens=8, flops=1.0, rate=PeakRate("float32"), process=0, saved={}, earlier={})
    options["account"] = TimeAccount(0.0)
    good = MEASURED | {"spike": jnp.zeros(())}
    spike, bad = good | {"spike": jnp.ones(())}, good | {"finite": jnp.zeros(())}
    with MetricLogger(run, folder, Console(steps=run.steps, process=1), **options) as recorder:
        for measured in (good, spike, bad, good, spike, spike):
            recorder.step(measured, None)
        recorder.row()
        recorder.step(bad, None)
        with pytest.raises(BadInput) as refused:
            recorder.row()
    [row] = metrics_file.read_rows(folder.metrics)
    assert (row["skipped"], row["spikes"]) == (4, 3)
    expected = (
        "3 steps in a row had a non-finite loss or gradient, or a loss more than 2 standard deviations above the mean of 8 steps;"
    )
    assert str(refused.value).startswith(expected)


def test_the_share_is_that_of_the_steps_of_a_row_without_pauses_and_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that only the test moves: seconds of waiting, then of the step, then of a pause, for each of five steps."""
    now = [0.0]
    monkeypatch.setattr(time_account, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    run, folder = tiny.run(), RunDir(tmp_path)
    options: dict[str, Any] = dict(first=0, tokens=8, flops=1.0, rate=PeakRate("float32"), process=0, saved={}, earlier={})
    options["account"] = TimeAccount(0.0)
    with MetricLogger(run, folder, Console(steps=run.steps, process=1), **options) as recorder:
        for waiting, step, pause in ((50.0, 9.0, 0.0), (3.0, 1.0, 7.0), (0.0, 2.0, 0.0), (0.0, 1.0, 0.0), (1.0, 2.0, 0.0)):
            with recorder.waiting():
                now[0] += waiting
            now[0] += step
            recorder.step(MEASURED, None)
            with recorder.pause("pausing"):
                now[0] += pause
            # The third and the fourth step share a row with the fifth.
            if step == 9 or pause or waiting == 1:
                recorder.row(timing={"rollout_tokens_per_s": 2.0})
    times = [row["time"] for row in metrics_file.read_rows(folder.metrics)]
    assert [time["rollout_share"] for time in times[1:]] == [pytest.approx(3 / 4), pytest.approx(1 / 6)]
    assert times[0]["rollout_share"] != times[0]["rollout_share"] and times[1]["rollout_tokens_per_s"] == 2.0
