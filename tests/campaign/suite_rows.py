"""Rows of the matrix that tests of the suite cover: they are run in one pytest process, and their cases are counted."""

import contextlib
import dataclasses
import re
import subprocess
import sys
from collections.abc import Mapping

from tests.campaign.row_types import CannotRun, Outcome, Task
from tests.support.processes import ROOT

ENGINE, DATA, CHECKPOINTS = "tests/train/engine", "tests/train/data", "tests/train/checkpoints"


@dataclasses.dataclass(frozen=True)
class SuiteRow:
    """A row of the matrix, and the tests that are its trials."""

    matrix: int
    name: str
    expected: str
    tests: tuple[str, ...]


SUITE_ROWS = (
    SuiteRow(
        12, "NaN in a gradient", "the step is skipped", (f"{ENGINE}/test_step.py::test_a_step_that_is_not_finite_is_skipped",)
    ),
    SuiteRow(
        13,
        "NaN in many steps in a row",
        "the run ends with 2, and no such value is saved",
        ("tests/integration/test_resume.py::test_steps_that_are_not_finite_are_skipped_and_never_saved",),
    ),
    SuiteRow(
        14,
        "spike of the loss",
        "skipped with --spikes, as a plain loop decides",
        (f"{ENGINE}/test_step_acceptance.py::test_the_decisions_are_those_of_a_plain_loop",),
    ),
    SuiteRow(
        16,
        "number of devices that does not divide",
        "one line names the axis",
        (f"{ENGINE}/test_mesh.py::test_a_mesh_that_does_not_fit_is_refused",),
    ),
    SuiteRow(
        18,
        "another configuration or checkpoint",
        "refused, with every key that differs",
        (
            f"{CHECKPOINTS}/test_config_check.py::test_every_changed_key_is_named",
            f"{CHECKPOINTS}/test_config_check.py::test_a_checkpoint_of_another_run_is_refused_by_every_reader",
            "tests/train/run/test_run_dir.py::test_a_run_with_results_holds_its_name",
        ),
    ),
    SuiteRow(
        19,
        "bad text and labels",
        "one line with the number of the line",
        (f"{DATA}/test_corpus.py::test_bad_files_are_refused_in_one_line", f"{DATA}/test_bad_labelled_files.py"),
    ),
    SuiteRow(
        20,
        "line without end",
        "refused in bounded memory",
        (f"{DATA}/test_corpus.py::test_a_line_without_end_is_refused_in_bounded_memory",),
    ),
    SuiteRow(
        21,
        "no file, or an empty one",
        "refused before anything is compiled",
        (f"{DATA}/test_corpus.py::test_missing_files_folders_and_text_in_both_halves_are_refused",),
    ),
    SuiteRow(
        23,
        "exception in a reader",
        "the stream ends there; no batch is lost",
        ("tests/train/rows/test_batches.py::test_a_failing_row_ends_the_stream_where_it_comes",),
    ),
    SuiteRow(
        24,
        "killed preparation of tokens",
        "it continues where it stopped",
        ("tests/train/rows/test_token_cache.py::test_a_killed_preparation_continues_where_it_stopped",),
    ),
    SuiteRow(
        25,
        "data or tokenizer changed under a run",
        "refused",
        ("tests/integration/test_resume.py::test_another_run_is_refused",),
    ),
    SuiteRow(
        26,
        "labels that are no labels",
        "refused, or ignored where documented",
        ("tests/train/data/test_labelled_reader.py",),
    ),
    SuiteRow(
        27,
        "rows that do not divide",
        "every row counts once",
        ("tests/train/rows/test_batches.py::test_in_order_counts_every_row_once",),
    ),
    SuiteRow(
        28,
        "packed rows",
        "documents do not influence each other",
        ("tests/zoo/models/test_contract.py::test_a_packed_row_is_its_documents_each_alone",),
    ),
    SuiteRow(
        31,
        "folder that cannot be written",
        "refused, or one checkpoint is lost",
        (
            f"{CHECKPOINTS}/test_checkpoints.py::test_a_folder_that_cannot_be_written_is_refused",
            f"{CHECKPOINTS}/test_checkpoint_faults.py::test_an_error_anywhere_in_a_save_costs_that_checkpoint_alone",
        ),
    ),
    SuiteRow(
        32,
        "partial copy as the newest step, other files",
        "ignored and reported",
        (f"{CHECKPOINTS}/test_checkpoints.py::test_other_files_are_ignored_and_reported_once",),
    ),
    SuiteRow(
        34,
        "other shapes, types and leaves",
        "refused by name",
        (f"{CHECKPOINTS}/test_checkpoints.py::test_other_leaves_are_refused_by_name",),
    ),
    SuiteRow(
        35,
        "other format",
        "refused",
        (f"{CHECKPOINTS}/test_checkpoints.py::test_another_format_is_refused_and_not_called_damaged",),
    ),
    SuiteRow(36, "damaged tensors", "refused by name", ("tests/zoo/hf/test_damaged_weights.py::test_every_mutant_of_a_folder",)),
    SuiteRow(
        37,
        "malformed safetensors",
        "refused",
        ("tests/zoo/hf/test_damaged_weights.py::test_a_hostile_file_is_refused",),
    ),
    SuiteRow(
        38,
        "pickle",
        "refused and not opened",
        ("tests/zoo/hf/test_damaged_weights.py::test_pickle_is_refused_and_not_opened",),
    ),
    SuiteRow(
        39,
        "damaged tokenizers",
        "refused, or read",
        ("tests/train/tokenizers/test_unigram.py::test_files_with_flipped_bytes_are_refused_or_read",),
    ),
    SuiteRow(
        41,
        "wrong command lines",
        "one line, exit code 2",
        ("tests/integration/test_bad_input.py::test_wrong_input_is_refused_in_one_line",),
    ),
    SuiteRow(
        42,
        "benchmark that raises, is wrong or is slow",
        "its cell is marked; the others run",
        (
            "tests/benchmarks/attention/test_measure_row.py::test_a_wrong_implementation_is_not_timed",
            "tests/benchmarks/attention/test_measure_row.py::test_a_failure_ends_one_cell",
        ),
    ),
    SuiteRow(
        43,
        "benchmark that is killed",
        "finished cells are stored",
        ("tests/benchmarks/core/test_killed.py",),
    ),
    SuiteRow(
        44,
        "rows with nothing to attend to",
        "zeros",
        (
            "tests/zoo/attention/test_attention.py::test_reference_is_the_definition",
            "tests/zoo/attention/test_conformance.py::test_the_kernel_agrees_with_the_definition[blocked-nothing allowed]",
        ),
    ),
    SuiteRow(
        45,
        "wrong prompts",
        "refused",
        ("tests/eval/generation/test_generator.py::test_wrong_options_and_prompts_are_refused",),
    ),
    SuiteRow(
        46,
        "padding and batches",
        "the tokens of each prompt alone",
        ("tests/eval/generation/test_generator.py::test_cached_tokens_are_the_uncached_ones_and_a_batch_is_its_prompts_alone",),
    ),
    SuiteRow(
        47,
        "logits that are not finite",
        "an error and no token",
        (
            "tests/zoo/generation/test_sampling.py::test_logits_that_are_not_finite_are_reported",
            "tests/eval/generation/test_generator.py::test_a_model_with_a_nan_is_refused_in_one_line",
        ),
    ),
    SuiteRow(
        48,
        "closed pipe, Ctrl-C",
        "no traceback",
        (
            "tests/integration/test_cli.py::test_a_closed_pipe_causes_no_traceback",
            "tests/integration/test_cli.py::test_interrupted_while_generating",
        ),
    ),
)


LINE = re.compile(r"(tests/\S+\.py::.+?) (PASSED|FAILED|ERROR)( |$)")


def run_tests(task: Task, tests: tuple[str, ...]) -> dict[str, str]:
    """Run tests and return {test: PASSED, FAILED or ERROR} of those that end in time.

    Raises:
        CannotRun: none of them does.
    """
    log = task.folder / "pytest.log"
    command = [sys.executable, "-m", "pytest", "-v", "--full", "--tb=no", "-p", "no:cacheprovider", *tests]
    with log.open("w") as stream, contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, timeout=task.seconds() + 60)
    outcomes = {match[1]: match[2] for line in log.read_text().splitlines() if (match := LINE.match(line))}
    if not outcomes:
        raise CannotRun("its tests did not end in their share of the time")
    return outcomes


def count(row: SuiteRow, outcomes: Mapping[str, str], outcome: Outcome) -> int:
    """Count the cases of a row's tests, and return the number of tests none of whose cases ended."""
    unfinished = 0
    for test in row.tests:
        results = {
            name: result for name, result in outcomes.items() if name == test or name.startswith((f"{test}[", f"{test}::"))
        }
        unfinished += not results
        for name, result in results.items():
            outcome.add(test.rpartition("/")[2])
            if result != "PASSED":
                outcome.fail(f"{name}: {result}")
    return unfinished
