"""The metrics of a run while it trains: rows of metrics.jsonl, the ledger, and the check for non-finite steps."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from train.config import run_config
from train.run.console import Console
from train.run.matmul_rate import PeakRate
from train.run.metric_definitions import METRICS
from train.run.metrics_file import Metrics, train_row, valid_row
from train.run.run_dir import RunDir
from train.run.time_account import Category, Seconds, TimeAccount, time_columns
from train.run.trackers import Sinks
from zoo.errors import BadInput
from zoo.runtime.progress import this_process

PAUSES: dict[str, Category] = {
    "validating": "validation",
    "saving": "checkpoints",
    "waiting for the save": "checkpoints",
    "compiling the step": "compilation",
}
"""Activity between two steps -> the category of its time."""
WAITS: tuple[Category, ...] = ("data_wait", "rollouts")
"""Categories of the time in which the loop waits for a batch."""
OVERALL = ("loss", "grad_norm", "lr", "finite", "spike")
"""Metrics that a step has whatever its loss is; all others are terms of its loss."""


class MetricLogger:
    """Fetches each step's metrics one step late, so that the device never waits for the host, and writes rows.

    Process 0 writes; every process checks the metrics, so that all of them stop at the same step.
    """

    def __init__(
        self,
        run: run_config.Run,
        folder: RunDir,
        console: Console,
        *,
        first: int,
        tokens: int,
        flops: float,
        rate: PeakRate,
        process: int,
        saved: Mapping[str, Any],
        account: TimeAccount,
        earlier: Seconds,
    ) -> None:
        """Open metrics.jsonl, the ledger and the sinks of a run.

        Args:
            first: the step that this start of the run continues from.
            tokens: tokens of a training step of `data.batch` rows, of all devices.
            flops: FLOPs of such a step, of all devices.
            rate: the rate of all devices that MFU is relative to.
            saved: the `summaries` in the checkpoint that the run continues from.
            account: the time of this start.
            earlier: seconds of the starts before, and between them.
        """
        self._run, self._console, self._first, self._tokens = run, console, first, tokens
        self._flops, self._rate = flops, rate
        self._rows = Metrics(folder.metrics, resume_at=first if first else None) if process == 0 else None
        self._ledger = Metrics(folder.ledger, resume_at=first if first else None) if process == 0 and run.log.ledger else None
        for name, file in self._files().items():
            if name in saved and (lost := file.lost(saved[name])):
                console.notice(lost)
        self._sinks = Sinks(run.log.sinks if process == 0 else (), run, folder, notify=console.notice)
        self._at = first
        self._late: dict[str, jax.Array] | None = None
        self._values: dict[str, float] = {}
        self._skipped = self._spikes = self._in_a_row = 0
        self._account, self._earlier, self._timed = account, earlier, 0
        self._step_seconds = self._waited = 0.0

    def __enter__(self) -> "MetricLogger":
        return self

    def __exit__(self, error: object, *_: object) -> None:
        for file in self._files().values():
            file.close()
        self._sinks.close(failed=error is not None)

    def step(self, metrics: dict[str, jax.Array], rows: Any) -> None:
        """Record a step that was just dispatched; `rows` are the row numbers of its global batch.

        Raises:
            BadInput: too many steps in a row were skipped.
        """
        self._at += 1
        self._fetch()
        self._late = metrics
        if self._ledger is not None:
            self._ledger.write({"step": self._at, "rows": rows})
        if self._at == self._first + 1:
            # Compilation is not part of a step's time.
            self._fetch()
            self._account.switch("steps")
            self._begin_row()
        else:
            self._timed += 1
        self._console.step(self._at)

    def due(self, every: int, ahead: int = 0) -> bool:
        """Return whether a task done every `every` steps (0 = never) and at the last one is due `ahead` steps from now."""
        step = self._at + ahead
        return step == self._run.steps or (every > 0 and step % every == 0)

    def row(
        self, counts: Mapping[str, int] | None = None, rollout: Mapping[str, float] = {}, timing: Mapping[str, float] = {}
    ) -> None:
        """Write a row of the last step.

        Args:
            counts: the counts of all batches so far, by name (`train.run.costs.COUNTS`).
            rollout: numbers about the rollout that the batch is from, the same in every run of the same configuration.
            timing: numbers that depend on the machine. If there are any, the row also has "rollout_share", the share of its
                seconds that the loop spent in `waiting`.
        """
        self._fetch()
        spent = self._account.mean()
        waited = self._account.sum_of(*WAITS) - self._waited
        total = self._account.sum_of("steps", *WAITS) - self._step_seconds
        seconds = total / self._timed if self._timed else float("nan")
        # The mean share of `data.batch` that the timed steps had.
        share = self._examples(self._at - self._timed, self._at) / (max(self._timed, 1) * self._run.data.batch)
        row = train_row(
            step=self._at,
            loss=self._values["loss"],
            grad_norm=self._values["grad_norm"],
            lr=self._values["lr"],
            tokens=self._examples(0, self._at) * self._tokens // self._run.data.batch,
            skipped=self._skipped,
            seconds=seconds,
            tokens_per_s=share * self._tokens / seconds,
            mfu=self._rate.mfu(share * self._flops, seconds),
            **({} if counts is None else {"counts": dict(counts)}),
            **({"spikes": self._spikes} if self._run.spikes.sigmas else {}),
            **self._terms(),
            **({"rollout": dict(rollout)} if rollout else {}),
        )
        row["time"] |= {**timing, **time_columns(spent, self._earlier)}
        if timing:
            row["time"]["rollout_share"] = waited / total if self._timed else float("nan")
        self._skipped = self._spikes = self._timed = 0
        self._begin_row()
        self._show(row)

    def valid(self, score: Any, seconds: float) -> None:
        """Write a row of a validation with the metrics of `score.record()`."""
        numbers = {name: value for name, value in score.record().items() if name in METRICS}
        self._show(valid_row(step=self._at, seconds=seconds, **numbers))

    @contextlib.contextmanager
    def pause(self, activity: str) -> Iterator[None]:
        """Exclude the time that the block takes, such as for "validating" or "saving", from the step time."""
        self._fetch()
        with this_process.phase(activity), self._account.during(PAUSES.get(activity, "other")):
            yield

    @contextlib.contextmanager
    def waiting(self, category: Category = "data_wait") -> Iterator[None]:
        """Count the time of the block, in which the batch of the next step is made, as a part of the time of the steps."""
        with this_process.stage("reading the batch"), self._account.during(category):
            yield

    def sync(self) -> None:
        """Wait until the rows are on the disk, before the checkpoint that includes them is committed."""
        for file in self._files().values():
            file.sync()

    def summaries(self) -> dict[str, Any]:
        """Return the `Metrics.summary` of each file, for the checkpoint that includes its rows; only process 0 has the files."""
        return {name: file.summary() for name, file in self._files().items()}

    def _examples(self, first: int, last: int) -> int:
        """Return the number of examples of the steps after step `first`, up to step `last`."""
        sizes = self._run.data.sizes
        return sizes.examples(last) - sizes.examples(first)

    def _begin_row(self) -> None:
        self._waited = self._account.sum_of(*WAITS)
        self._step_seconds = self._account.sum_of("steps", *WAITS)

    def _files(self) -> dict[str, Metrics]:
        files = {"metrics.jsonl": self._rows, "ledger.jsonl": self._ledger}
        return {name: file for name, file in files.items() if file is not None}

    def _terms(self) -> dict[str, dict[str, float]]:
        """Return the terms of the loss, if it has more than one."""
        terms = {name: value for name, value in self._values.items() if name not in OVERALL}
        return {"terms": terms} if len(terms) > 1 else {}

    def _fetch(self) -> None:
        if self._late is None:
            return
        # One device's copy is enough, and a pmapped metric has a device axis.
        late, self._late = self._late, None
        with this_process.stage("waiting for the devices", waiting=True):
            self._values = {name: float(jax.device_get(value.addressable_data(0)).reshape(-1)[0]) for name, value in late.items()}
        spike = self._values.get("spike", 0) == 1
        bad = spike or self._values["finite"] == 0
        self._skipped += bad
        self._spikes += spike
        self._in_a_row = self._in_a_row + 1 if bad else 0
        if self._in_a_row >= self._run.max_skipped:
            spikes = self._run.spikes
            bound = f"{spikes.sigmas:g} standard deviations above the mean of {spikes.window} steps"
            other = f", or a loss more than {bound}" if spikes.sigmas else ""
            raise BadInput(
                f"{self._in_a_row} steps in a row had a non-finite loss or gradient{other}; "
                f"the parameters are those before them. Lower --optim.lr {self._run.optim.lr:g}, or allow more with --max-skipped"
            )

    def _show(self, row: dict[str, Any]) -> None:
        if self._rows is not None:
            self._rows.write(row)
        self._sinks.write(row)
        self._console.row(row)
