"""The state of a run between two steps, which hooks read and the training loop changes."""

import contextlib
import math
from typing import Any

import jax

from train import run_description
from train.engine import device_mesh
from train.engine.averages import scored_parameters
from train.engine.state import State
from train.inputs import data_notices
from train.loop.open_run import OpenRun, Start
from train.rows.batch_counts import TextCounts
from train.rows.batch_feed import Feed, FeedSource
from train.run import metrics_file
from train.run.costs import COUNTS
from train.run.matmul_rate import PeakRate
from train.run.metric_logger import MetricLogger
from train.run.run_identity import repeated_options
from train.run.stop_signals import StopSignals
from train.run.time_account import TimeAccount, describe_goodput, run_seconds
from train.step.assembly import Assembly
from zoo.fault_points import fault_point
from zoo.runtime.progress import this_process


class TrainingLoop:
    """A run between two steps.

    Attributes:
        opened: the run; `opened.run` is its configuration, `opened.folder` its folder, `opened.console.notice` shows a line.
        assembly: the step, its engine and its optimizer; `assembly.state` has the shapes of `state`.
        start: what this start of the run continues from.
        state: the state after `step` steps, laid out for the step.
        step: number of steps taken.
        stopping: True if no further step is taken.
        account: where the time of this start goes.
        exhausted: why no further step is taken although the last one is not reached; "" = there is no reason.
    """

    def __init__(
        self,
        opened: OpenRun,
        assembly: Assembly,
        start: Start,
        state: State,
        account: TimeAccount,
        stack: contextlib.ExitStack,
        rate: PeakRate | None = None,
    ) -> None:
        """Place the state on the devices, show the header, and open the files of metrics.

        Args:
            state: the state before the first step, as global arrays.
            stack: closes the files.
            rate: what MFU is relative to; None = it is measured.
        """
        run, folder, objective, engine = opened.run, opened.folder, opened.objective, assembly.engine
        self.opened, self.assembly, self.start, self.account = opened, assembly, start, account
        self.state = engine.shard(state)
        self.step = start.first
        self._frozen = engine.replicate(objective.frozen_inputs())
        self._base = engine.replicate(start.parameters.base)
        if rate is None:
            rate = PeakRate(opened.dtype, metrics_file.best_rate(folder, run.precision), opened.console.notice)
        self.rate = rate
        flops = start.parameters.step_flops(objective, opened.shapes)
        self._show_header(flops)
        self.counts = TextCounts(
            opened.data.tokenizer,
            dict(device_mesh.owned_rows(opened.mesh, stage.rows) for stage in run.data.sizes.stages),
            saved=start.restored.get("counts") if start.restored else dict.fromkeys(COUNTS, 0),
        )
        logger = MetricLogger(
            run,
            folder,
            opened.console,
            first=self.step,
            tokens=math.prod(opened.shapes.tokens.shape),
            flops=flops,
            rate=self.rate,
            process=opened.process,
            saved=start.restored.get("records", {}),
            account=account,
            earlier=run_seconds(metrics_file.read_starts(folder)[:-1]) if opened.process == 0 else {},
        )
        self.recorder = stack.enter_context(logger)
        self._read_params = start.parameters.reader(opened.mesh)
        self._validate = opened.scorer(opened.data.validation_rows(run).subsample(run.log.validate_rows))
        self.feeding = objective.feed(self._feed_source(), self.step)
        """The batches of the run, to be opened before the first step."""
        self.feed: Feed
        # A run that stopped early and was killed before its score has no step left.
        self.exhausted: str = start.restored.get("ended", "")
        self._signalled = False
        self.stopping = bool(self.exhausted) or bool(opened.best.exhausted(self.step))

    def take_step(self, stop: StopSignals) -> None:
        """Take one step, and decide whether it is the last one.

        Raises:
            BadInput: too many steps in a row were skipped.
        """
        opened, engine = self.opened, self.assembly.engine
        with self.recorder.waiting(self.feed.category):
            host = self.feed.batch(self.step, self.state)
        owned = self.counts.owned_part(host)
        self.counts.add(owned, opened.objective.text_ids(opened.run, owned))
        with this_process.stage("waiting for the devices", waiting=True):
            batch = engine.shard_batch(host)
            with self._compiling():
                self.state, metrics = engine.step(self.state, batch, self._frozen, self._base)
        stop.begin()
        fault_point("train.step")
        self.recorder.step(metrics, self.feed.rows_of(self.step) if opened.run.log.ledger else None)
        self.step += 1
        opened.checkpoints.poll()
        self._signalled = self._signalled or stop.agreed(self.step - self.start.first)
        self.exhausted = self.feed.exhausted()
        self.stopping = bool(self._signalled or self.exhausted) and self.feed.at_boundary(self.step)

    def _compiling(self) -> contextlib.AbstractContextManager[None]:
        """Return what encloses the launch of the next step, which is compiled if its batch has another size than the last one's.

        The compilation of the first step is counted before the loop.
        """
        sizes, step = self.opened.run.data.sizes, self.step
        if step == self.start.first or sizes.rows(step) == sizes.rows(step - 1):
            return contextlib.nullcontext()
        return self.recorder.pause("compiling the step")

    def end(self, reason: str) -> None:
        """Take no further step; the checkpoint of this one records the reason, so that the run counts as finished.

        With several processes all of them must call it at the same step.
        """
        self.exhausted, self.stopping = reason, True

    def global_state(self) -> State:
        """Return the state as global arrays over the mesh."""
        return self.assembly.engine.get(self.state)

    def model_params(self, params: Any) -> Any:
        """Return the parameters of the model alone, from trained ones, float32, sharded over the mesh."""
        return self.start.parameters.without_added(self._read_params(params))

    def validated(self) -> Any:
        """Return the score of the current parameters on the rows of a validation, record it, and show a continuation."""
        opened = self.opened
        with self.recorder.pause("validating"):
            fault_point("train.validate")
            before = self.account.elapsed()
            params = self.model_params(scored_parameters(self.global_state()))
            score = self._validate(params)
            self.recorder.valid(score, self.account.elapsed() - before)
            # Not at the end, where samples are written.
            if opened.evaluation.preview is not None and opened.run.log.samples and self.step < opened.run.steps:
                self._show_preview(params)
            self.rate.update()
        return score

    def record_usage(self) -> None:
        """Write the time of this start of the run, and the best rate of products; all processes call it together."""
        spent = {"spent": self.account.mean(), "spent_step": self.step}
        if self.opened.process == 0:
            metrics_file.record_usage(self.opened.folder, self.account.elapsed(), self.rate.measured, **spent)

    def record_end(self, *, finished: bool) -> None:
        """Write the report of the run, and then record and show where its time went.

        Process 0 does this after the last `record_usage`, while the others end.
        """
        opened, folder = self.opened, self.opened.folder
        if opened.process:
            return
        opened.evaluation.on_end(folder.path)
        ended = {"spent": self.account.final_mean(), "finished": finished}
        metrics_file.record_usage(folder, self.account.elapsed(), self.rate.measured, **ended)
        opened.console.sample(describe_goodput(metrics_file.read_starts(folder)))

    def _show_preview(self, params: Any) -> None:
        opened, preview = self.opened, self.opened.evaluation.preview
        assert preview is not None
        # Generation copies its prompt to the devices.
        with jax.transfer_guard("allow"):
            text = preview(opened.model, params, opened.mesh, opened.data, length=opened.run.data.length, dtype=opened.dtype)
        if text:
            opened.console.sample(text)

    def _show_header(self, flops: float) -> None:
        """Show the facts about the run and notices about its data, and record the start."""
        opened, run = self.opened, self.opened.run
        facts = run_description.describe_run(
            run, opened.model, opened.mesh, opened.data, opened.traced, self.rate.source, opened.folder
        )
        facts |= self.start.parameters.describe(run.objective)
        began = "from the start" if self.step == 0 else f"resumed at step {self.step}"
        opened.console.header(f"{run.recipe}, {began}", facts)
        for line in data_notices.notices(run, opened.data):
            opened.console.notice(line)
        if opened.process == 0:
            # Not `mean`, which all processes call together.
            self.account.switch("start_up")
            measured = (self.rate.measured, self.account.seconds)
            metrics_file.record_start(opened.folder, self.step, facts, flops, *measured, repeated_options(run))

    def _feed_source(self) -> FeedSource:
        opened, engine = self.opened, self.assembly.engine
        return FeedSource(
            run=opened.run,
            model=opened.model,
            mesh=opened.mesh,
            dtype=opened.dtype,
            data=opened.data,
            batches=opened.batches,
            local=opened.local_rows,
            params=lambda state: self._read_params(engine.get(state).params),
            saved=self.start.restored.get("feed", {}),
            folder=opened.folder,
            process=opened.process,
            notify=opened.console.notice,
            progress=lambda activity: opened.console.progress(activity, now=True),
        )
