"""Rows of the matrix that tests of the suite cover: they are run in one pytest process, and their cases are counted."""

import contextlib
import dataclasses
import re
import subprocess
import sys
from collections.abc import Mapping

from tests.campaign.row_types import CannotRun, Outcome, Task
from tests.support.processes import ROOT


@dataclasses.dataclass(frozen=True)
class SuiteRow:
    """A row of the matrix, and the tests that are its trials."""

    matrix: int
    name: str
    expected: str
    tests: tuple[str, ...]


def row(matrix: int, name: str, expected: str, *tests: str) -> SuiteRow:
    """Return a row whose tests are named by file and, without `test_`, by function."""
    return SuiteRow(matrix, name, expected, tuple(f"tests/{test.replace('::', '::test_')}" for test in tests))


SUITE_ROWS = (
    row(12, "NaN in a gradient", "the step is skipped", "train/engine/test_step.py::a_step_that_is_not_finite_is_skipped"),
    row(
        13,
        "NaN in many steps in a row",
        "the run ends with 2, and no such value is saved",
        "integration/test_resume.py::steps_that_are_not_finite_are_skipped_and_never_saved",
    ),
    row(
        14,
        "spike of the loss",
        "skipped with --spikes, as a plain loop decides",
        "train/engine/test_step_acceptance.py::the_decisions_are_those_of_a_plain_loop",
    ),
    row(
        16,
        "number of devices that does not divide",
        "one line names the axis",
        "train/engine/test_mesh.py::a_mesh_that_does_not_fit_is_refused",
    ),
    row(
        18,
        "another configuration or checkpoint",
        "refused, with every key that differs",
        "train/checkpoints/test_config_check.py::every_changed_key_is_named",
        "train/checkpoints/test_config_check.py::a_checkpoint_of_another_run_is_refused_by_every_reader",
        "train/run/test_run_dir.py::a_run_with_results_holds_its_name",
    ),
    row(
        19,
        "bad text and labels",
        "one line with the number of the line",
        "train/data/test_corpus.py::bad_files_are_refused_in_one_line",
        "train/data/test_bad_labelled_files.py",
    ),
    row(
        20,
        "line without end",
        "refused in bounded memory",
        "train/data/test_corpus.py::a_line_without_end_is_refused_in_bounded_memory",
    ),
    row(
        21,
        "no file, or an empty one",
        "refused before anything is compiled",
        "train/data/test_corpus.py::missing_files_folders_and_text_in_both_halves_are_refused",
    ),
    row(
        23,
        "exception in a reader",
        "the stream ends there; no batch is lost",
        "train/rows/test_batches.py::a_failing_row_ends_the_stream_where_it_comes",
    ),
    row(
        24,
        "killed preparation of tokens",
        "it continues where it stopped",
        "train/rows/test_token_cache.py::a_killed_preparation_continues_where_it_stopped",
    ),
    row(25, "data or tokenizer changed under a run", "refused", "integration/test_resume.py::another_run_is_refused"),
    row(26, "labels that are no labels", "refused, or ignored where documented", "train/data/test_labelled_reader.py"),
    row(27, "rows that do not divide", "every row counts once", "train/rows/test_batches.py::in_order_counts_every_row_once"),
    row(
        28,
        "packed rows",
        "documents do not influence each other",
        "zoo/models/test_contract.py::a_packed_row_is_its_documents_each_alone",
    ),
    row(
        31,
        "folder that cannot be written",
        "refused, or one checkpoint is lost",
        "train/checkpoints/test_checkpoints.py::a_folder_that_cannot_be_written_is_refused",
        "train/checkpoints/test_checkpoint_faults.py::an_error_anywhere_in_a_save_costs_that_checkpoint_alone",
    ),
    row(
        32,
        "partial copy as the newest step, other files",
        "ignored and reported",
        "train/checkpoints/test_checkpoints.py::other_files_are_ignored_and_reported_once",
    ),
    row(
        34,
        "other shapes, types and leaves",
        "refused by name",
        "train/checkpoints/test_checkpoints.py::other_leaves_are_refused_by_name",
    ),
    row(35, "other format", "refused", "train/checkpoints/test_checkpoints.py::another_format_is_refused_and_not_called_damaged"),
    row(36, "damaged tensors", "refused by name", "zoo/hf/test_damaged_weights.py::every_mutant_of_a_folder"),
    row(37, "malformed safetensors", "refused", "zoo/hf/test_damaged_weights.py::a_hostile_file_is_refused"),
    row(38, "pickle", "refused and not opened", "zoo/hf/test_damaged_weights.py::pickle_is_refused_and_not_opened"),
    row(
        39,
        "damaged tokenizers",
        "refused, or read",
        "train/tokenizers/test_unigram.py::files_with_flipped_bytes_are_refused_or_read",
    ),
    row(41, "wrong command lines", "one line, exit code 2", "integration/test_bad_input.py::wrong_input_is_refused_in_one_line"),
    row(
        42,
        "benchmark that raises, is wrong or is slow",
        "its cell is marked; the others run",
        "benchmarks/attention/test_measure_row.py::a_wrong_implementation_is_not_timed",
        "benchmarks/attention/test_measure_row.py::a_failure_ends_one_cell",
    ),
    row(43, "benchmark that is killed", "finished cells are stored", "benchmarks/core/test_killed.py"),
    row(
        44,
        "rows with nothing to attend to",
        "zeros",
        "zoo/attention/test_attention.py::reference_is_the_definition",
        "zoo/attention/test_conformance.py::the_kernel_agrees_with_the_definition[blocked-nothing allowed]",
    ),
    row(45, "wrong prompts", "refused", "eval/generation/test_generator.py::wrong_options_and_prompts_are_refused"),
    row(
        46,
        "padding and batches",
        "the tokens of each prompt alone",
        "eval/generation/test_generator.py::cached_tokens_are_the_uncached_ones_and_a_batch_is_its_prompts_alone",
    ),
    row(
        47,
        "logits that are not finite",
        "an error and no token",
        "zoo/generation/test_sampling.py::logits_that_are_not_finite_are_reported",
        "eval/generation/test_generator.py::a_model_with_a_nan_is_refused_in_one_line",
    ),
    row(
        48,
        "closed pipe, Ctrl-C",
        "no traceback",
        "integration/test_cli.py::a_closed_pipe_causes_no_traceback",
        "integration/test_cli.py::interrupted_while_generating",
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
