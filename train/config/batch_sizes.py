"""The number of rows in the batch of each step of a run, which may grow at its beginning. Nothing here imports JAX."""

import bisect
import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from zoo.errors import BadInput, require


class Stage(NamedTuple):
    """The steps of one size of the batch, up to the next stage."""

    step: int
    """The first step."""
    example: int
    """Number of the first example of this step in the stream, which all steps before have used."""
    rows: int
    """Number of rows of a step."""


@dataclasses.dataclass(frozen=True)
class BatchSizes:
    """The rows of each step and its place in the stream of examples, as pure functions of the step."""

    stages: tuple[Stage, ...]
    """Ascending, the first with step 0."""

    def rows(self, step: int) -> int:
        """Return the number of rows of a step."""
        return self._stage(step).rows

    def examples(self, steps: int) -> int:
        """Return the number of examples of the first `steps` steps, which is that of the first example of the step after them."""
        stage = self._stage(steps)
        return stage.example + (steps - stage.step) * stage.rows

    def place_of(self, example: int) -> tuple[int, int]:
        """Return the step of an example of the stream, and its place in the batch of that step."""
        stage = self.stages[bisect.bisect_right(self.stages, example, key=lambda stage: stage.example) - 1]
        steps, place = divmod(example - stage.example, stage.rows)
        return stage.step + steps, place

    def __str__(self) -> str:
        rows = [stage.rows for stage in self.stages]
        return f"{rows[0]} to {rows[-1]}" if len(rows) > 1 else str(rows[0])

    def _stage(self, step: int) -> Stage:
        return self.stages[bisect.bisect_right(self.stages, step, key=lambda stage: stage.step) - 1]


def micro_batches(rows: int, batch: int, accumulate: int) -> int:
    """Return the least number of micro-batches of `rows` rows that have no more rows each than `accumulate` ones of `batch`."""
    return -(-rows * accumulate // batch)


def batch_sizes(batch: int, ramp: Sequence[str] = (), length: int = 1) -> BatchSizes:
    """Return the sizes of the batches of a run.

    A step has the rows of the first item of `ramp` of which fewer tokens were seen before the step, and `batch` rows after all of
    them. Tokens are rows times `length`, padding included.

    Args:
        batch: number of rows after the ramp.
        ramp: ROWS@TOKENS, see `train.config.data_options.Data.ramp`.
        length: number of tokens in a row.

    Raises:
        BadInput: an item is not ROWS@TOKENS, or rows or tokens do not grow.
    """
    items = [_parse_item(text) for text in ramp]
    if items and batch <= items[0][0]:
        raise BadInput(f"--data.batch {batch}: the ramp begins with {items[0][0]} rows; choose more, or an empty --data.ramp")
    fix = f"rows and tokens must grow from item to item, up to --data.batch {batch}; choose such numbers, or an empty --data.ramp"
    for (rows, tokens), (more_rows, more_tokens) in itertools.pairwise([*items, (batch, float("inf"))]):
        require(rows < more_rows and tokens < more_tokens, "data.ramp", " ".join(ramp), fix)
    stages, step, example = [], 0, 0
    for rows, tokens in items:
        steps = max(0, -(-(tokens - example * length) // (rows * length)))
        if steps:
            stages.append(Stage(step, example, rows))
        step, example = step + steps, example + steps * rows
    return BatchSizes((*stages, Stage(step, example, batch)))


def linear_ramp(first: int, batch: int, tokens: int, unit: int) -> tuple[str, ...]:
    """Return the ramp on which the rows grow from `first` to `batch`, in proportion to the tokens seen, over that many tokens.

    Rows are rounded down to multiples of `unit`, and are at least one `unit`.
    """
    return tuple(
        f"{rows}@{-(-tokens * (rows + unit - first) // (batch - first))}"
        for rows in range(unit * max(1, first // unit), batch, unit)
    )


def _parse_item(text: str) -> tuple[int, int]:
    """Return the rows and the tokens of an item of a ramp."""
    if match := re.fullmatch(r"(\d+)@(\d+(?:\.\d+)?(?:e\d\d?)?)", text):
        rows, tokens = int(match[1]), float(match[2])
        if rows >= 1 and tokens >= 1 and tokens.is_integer():
            return rows, int(tokens)
    raise BadInput(f"--data.ramp {text}: choose ROWS@TOKENS, whole numbers of 1 or more, such as 1024@252e6")
