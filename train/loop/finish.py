"""The end of a run: its score on the held-out data, its samples and its report."""

from typing import Any

from train.loop.loop_state import TrainingLoop
from train.loop.prepare import PreparedRun
from train.run import metric_definitions, metrics_file
from train.run.item_outcomes import HELD_OUT, write_outcomes
from train.run.result_files import read_result
from train.run.run_dir import write_json
from train.run.stop_signals import StopSignals
from zoo.errors import BadInput
from zoo.fault_points import fault_point
from zoo.runtime.progress import this_process


def finish_again(prepared: PreparedRun) -> int:
    """Report that a run was finished before, write its report if that is missing, and return the exit code 0."""
    folder = prepared.folder
    if prepared.process == 0 and not folder.report.exists():
        prepared.evaluation.on_end(folder.path)
    result = _result(prepared, read_result(folder.scores))
    prepared.console.finish(f"{folder.path} is finished: {result}; to train it again, choose another --name")
    return 0


def finish(loop: TrainingLoop, stop: StopSignals) -> int:
    """Wait for the last checkpoint, score and report the run unless a signal ended it, and return the exit code.

    Raises:
        BadInput: the last checkpoint could not be saved.
    """
    opened, run = loop.opened, loop.opened.run
    _wait_for_checkpoint(loop)
    loop.account.switch("other")
    if signal_number := stop.end():
        loop.record_usage()
        loop.record_end(finished=False)
        opened.console.finish(f"stopped and saved at step {loop.step} of {run.steps}; the same command continues from there")
        return 128 + signal_number
    if loop.step < run.steps:
        reason = loop.exhausted or opened.best.exhausted(loop.step)
        opened.console.notice(f"ended at step {loop.step} of {run.steps}: {reason}")
    score = _score(loop)
    fault_point("train.report")
    loop.record_end(finished=True)
    for line in metric_definitions.score_notices(score.record()):
        opened.console.notice(line)
    rows = metrics_file.read_rows(opened.folder.metrics) if opened.process == 0 else []
    if change := metric_definitions.validation_change(rows, run.selection.metric):
        opened.console.sample(change)
    opened.console.finish(f"{_result(opened, score.record())}  {opened.folder.report}")
    return 0


def _wait_for_checkpoint(loop: TrainingLoop) -> None:
    checkpoints = loop.opened.checkpoints
    loop.account.switch("checkpoints")
    this_process.begin("waiting for the save")
    if not checkpoints.wait():
        newest = "the start" if (latest := checkpoints.latest()) is None else f"step {latest}"
        fix = f"{checkpoints.remedy()}, and the run continues from {newest}"
        reason = f"step {loop.step} could not be saved ({checkpoints.reason()})"
        raise BadInput(f"{loop.opened.folder.checkpoints}: {reason}; {fix}")


def _score(loop: TrainingLoop) -> Any:
    """Score the best parameters, or the last ones, on all held-out data, and write the scores and the samples."""
    opened, run, folder, sample = loop.opened, loop.opened.run, loop.opened.folder, loop.opened.evaluation.sample
    loop.account.switch("validation")
    opened.console.doing("scoring the held-out data")
    fault_point("train.score")
    stride = max(1, run.data.length // 2)
    params, step = opened.best.params(loop.global_state(), loop.assembly.state)
    params = loop.model_params(params)
    score = opened.scorer(opened.data.scored_rows(run, stride))(params)
    loop.account.switch("other")
    loop.record_usage()
    if opened.process == 0:
        if mistakes := getattr(score, "mistakes", None):
            write_json(folder.predictions, mistakes)
        if outcomes := getattr(score, "outcomes", None):
            with folder.lock_results(opened.console.notice):
                write_outcomes(folder, HELD_OUT, outcomes)
        # Written before the samples and after the other results of scoring: a run with a score counts as finished.
        write_json(folder.scores, {**score.record(), "stride": stride, "step": step})
    fault_point("train.scored")
    if sample is not None and run.log.samples:
        opened.console.doing("writing samples")
        options: dict[str, Any] = {"length": run.data.length, "step": step, "dtype": opened.dtype, "count": run.log.samples}
        sample(folder.samples, opened.model, params, opened.mesh, opened.data, **options)
    return score


def _result(prepared: PreparedRun, score: dict[str, float]) -> str:
    return f"held-out {metric_definitions.score_summary(score, selected=prepared.run.selection.metric)}"
