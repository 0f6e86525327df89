"""Predictions of a fine-tuned model for a stream of examples, in order, in constant memory."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from eval.inference.batch_loop import BatchLoop
from eval.inference.head_logits import logits_loop
from eval.inference.likelihood import row_length
from eval.prediction import prediction_records
from train.config import run_config
from train.data import unlabelled_reader
from train.data.example_types import Example
from train.data.unlabelled_reader import UnlabelledExample
from train.engine import device_mesh
from train.inputs.labelled_inputs import FEATURES, LabelledRows, outputs
from train.objectives import objective
from train.rows.example_rows import Advice, ExampleRow
from train.weights.load import Loaded
from zoo.errors import BadInput

CHUNK = 1024
"""Number of examples that are in memory at a time."""
SHORTEST = 32
"""Number of tokens of the shortest rows; fewer lengths need fewer compiled programs."""
ADVICE = Advice(
    "choose a longer --length", "or cut long ones with --labelled.truncate, or go on after them with --labelled.skip-bad"
)
"""Advice about examples that are longer than a row."""


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """A fine-tuned model with its batch size and dtype; `Predictor.of` makes one."""

    subject: Loaded
    run: run_config.Run
    """Configuration with which rows are made."""
    forward: BatchLoop
    batch: int
    null_threshold: float | None
    skip_bad: bool = False
    """Predict `error` for an example that is malformed or longer than a row; otherwise it is raised."""
    with_text: bool = False
    """See `eval.prediction.prediction_records.prediction_record`."""
    _frequent: set[tuple[int, int]] = dataclasses.field(default_factory=set, init=False)
    """Shapes of rows that have filled a batch."""

    @staticmethod
    def of(
        subject: Loaded, run: run_config.Run, *, batch: int, dtype: Any, null_threshold: float | None = None, **options: bool
    ) -> "Predictor":
        """Return the predictor of a model.

        Args:
            run: the configuration with which rows are made.
            batch: rows computed at a time.
            dtype: dtype of the arithmetic.
            null_threshold: see `eval.prediction.prediction_records.of_example`.
            options: the fields `skip_bad` and `with_text`.
        """
        forward = logits_loop(subject.model, subject.mesh, run.objective, np.dtype(dtype))
        return Predictor(subject, run, forward, batch, null_threshold, **options)

    def predict(self, items: Iterable[UnlabelledExample]) -> Iterator[dict[str, Any]]:
        """Yield a prediction for each example, in order."""
        params, index, items = self.forward.cast(self.subject.params), 0, iter(items)
        while chunk := list(itertools.islice(items, CHUNK)):
            results: dict[int, Any] = {number: item.example for number, item in enumerate(chunk)}
            numbers = [number for number, example in results.items() if not isinstance(example, BadInput)]
            examples = [results[number] for number in numbers]
            example_rows, errors = self._rows_and_errors(examples)
            results |= {numbers[number]: error for number, error in errors.items()}
            for rows in self._groups(examples, example_rows):
                for number, values in self._predictions(params, rows):
                    results[numbers[number]] = values
            for number, item in enumerate(chunk):
                yield prediction_records.prediction_record(index + number, item, results[number], with_text=self.with_text)
            index += len(chunk)

    @functools.cached_property
    def _build(self) -> Callable[..., Any]:
        return objective(self.run.objective).builder(self.run, self.subject.tokenizer, _no_counts)

    @property
    def _labels(self) -> tuple[str, ...]:
        return getattr(self.run.model, "labels", ())

    def _rows_and_errors(self, examples: Sequence[Example]) -> tuple[list[ExampleRow], dict[int, BadInput]]:
        """Return the rows of some examples, and by their numbers the errors of those that have none, if these are skipped."""
        try:
            return list(self._rows(examples)) if examples else [], {}
        except BadInput:
            if not self.skip_bad:
                raise
        rows: list[ExampleRow] = []
        errors: dict[int, BadInput] = {}
        for number, example in enumerate(examples):
            try:
                rows += [row._replace(example=number) for row in self._rows([example])]
            except BadInput as error:
                errors[number] = error
        return rows, errors

    def _rows(self, examples: Sequence[Example]) -> Iterator[ExampleRow]:
        """Yield the rows of some examples; the label of a text is 0, and the label of a word is its number."""
        run, tokenizer = self.run, self.subject.tokenizer
        make = functools.partial(
            FEATURES[run.objective], tokenizer=tokenizer, options=run.options.labelled, length=run.data.length, advice=ADVICE
        )
        if run.objective == "choice":
            # One by one, since questions may have different numbers of options.
            for number, example in enumerate(examples):
                yield from (row._replace(example=number) for row in make([example], names={}))
        elif run.objective == "tagging":
            longest = max(len(example.words) for example in examples)  # pyright: ignore[reportAttributeAccessIssue]
            yield from make(examples, names={str(number): number for number in range(longest)})
        else:
            yield from make(examples, names={unlabelled_reader.UNKNOWN: 0})

    def _groups(self, examples: Sequence[Example], example_rows: Iterable[ExampleRow]) -> Iterator[LabelledRows]:
        """Yield the rows of some examples grouped by shape, with those of an example together."""
        groups: dict[tuple[int, int], list[ExampleRow]] = {}
        for _, group in itertools.groupby(example_rows, key=lambda row: row.example):
            rows = list(group)
            longest = max(len(inputs.ids) for row in rows for inputs in row.inputs)
            length = min(max(SHORTEST, row_length(longest, None)), self.run.data.length)
            groups.setdefault((length, len(rows[0].inputs)), []).extend(rows)
        for (length, _), rows in sorted(groups.items(), key=lambda group: group[0]):
            yield LabelledRows(examples, tuple(rows), length, "")

    def _predictions(self, params: Any, rows: LabelledRows) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (number of the example, its prediction) for the examples of rows of one shape."""
        batches = self.forward.results(params, rows, self._build, self._size(rows))
        # The rows end before the last batch does, since that is padded.
        pairs = zip(rows.rows, itertools.chain.from_iterable(batches), strict=False)
        for number, group in itertools.groupby(pairs, key=lambda pair: pair[0].example):
            example_rows, logits = zip(*group, strict=True)
            example = rows.examples[number]
            if not np.isfinite(logits).all():
                raise BadInput(f"{example.origin}: the logits are not finite; the weights are damaged, or too large for bfloat16")
            options = {"multi_label": outputs(self.run)[1], "null_threshold": self.null_threshold}
            yield number, prediction_records.of_example(example, example_rows, np.stack(logits), self._labels, **options)

    def _size(self, rows: LabelledRows) -> int:
        """Return the rows of a batch: `batch`, or a power of two if there are fewer rows, so that programs are shared."""
        mesh, shape = self.subject.mesh, (rows.length, len(rows.rows[0].inputs))
        if len(rows) >= self.batch or shape in self._frequent:
            self._frequent.add(shape)
            return device_mesh.round_up_rows(mesh, self.batch)
        return device_mesh.round_up_rows(mesh, min(self.batch, 1 << (len(rows) - 1).bit_length()))


def _no_counts() -> Any:
    raise AssertionError("no labelled objective uses the frequencies of ids")
