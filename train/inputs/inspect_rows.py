"""A readable view of the training examples of a run: `zoo data inspect`."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from train.config import run_config
from train.data.text_files import Document
from train.inputs import run_inputs
from train.inputs.inspected_examples import batch_record
from train.rows import continued_rows, example_rows, instruction_rows, lm_rows, seq2seq_rows
from train.rows.batches import Batches
from train.rows.feedback import kto_rows, preference_rows, response_rows
from train.rows.mixture import Mixture
from train.run.run_dir import RunDir
from train.tokenizers.tokenizer import Tokenizer
from train.weights.load import open_checkpoints
from zoo.batch import IGNORED, Batch
from zoo.errors import BadInput, require
from zoo.json_text import print_json
from zoo.runtime import caches

LEGEND = """\
│ separates tokens, ↵ ends a line of the text, and � is a part of a character.
«Tokens» are not counted in the loss. token→target is shown where the target is
not simply the next token, and is the tag of a word that is tagged. At the left
is the position of each line's first token."""
SIDES = {preference_rows.PreferenceRow: ("chosen", "rejected"), kto_rows.UnpairedRow: kto_rows.NAMES}
"""Class of a row -> the names of its two completions."""
GUTTER = 7
"""Width in columns of the margin before the tokens."""


def inspect(
    run: run_config.Run, folder: RunDir, *, count: int, first: int, stored_data: bool = False, as_json: bool = False
) -> None:
    """Print the examples `first`, `first` + 1, ... of a run, `count` of them, exactly as it trains on them.

    The number of an example is that of the examples of the steps before its own, step x batch, + its place in the batch. Where a
    run takes several steps on a batch, the batch is printed for each of them.

    Each example is printed with its origin, its tokens and the predictions that count; the last line has the share of padding.
    The output is styled on a terminal and plain text elsewhere. Neither parameters nor a device are needed: the fields of `Batch`
    are read, whatever the objective is.

    Args:
        folder: the folder of the run; its tokenizer is used if it has a checkpoint.
        stored_data: True if config.json names the data, and the user does not.
        as_json: print JSON instead, with the arrays of `Batch`.

    Raises:
        BadInput: see `run_inputs.read_inputs` and, if `stored_data`, `check_stored_data`; also if `count` is not positive, or
            `first` is negative.
    """
    require(count >= 1, "rows", count, "choose 1 or more rows")
    require(first >= 0, "first", first, "choose 0 or more: the number of an example, step x batch + its place in the batch")
    run = run_inputs.resolve_config(run)
    data = run_inputs.read_inputs(run, folder, caches.cache_dir() / "text")
    if stored_data:
        check_stored_data(run, folder, data.fingerprints())
    batches = Batches(data.rows, run_inputs.builder(run, data), run.seed, 1, np.arange(1), run.mask_period, run.repeat)
    examples = [(number, *run.data.sizes.place_of(number)) for number in range(first, first + count)]
    # Each of these batches is one example, so that their numbers are those of examples of the stream.
    streamed = [run.data.sizes.examples(run.batch_of(step)) + place for _, step, place in examples]
    chosen = [batches.use(number).row for number in streamed]
    names = _document_names(data.rows, chosen)
    console = Console(highlight=False, markup=False, emoji=False)
    if not as_json:
        console.print(LEGEND, style="dim")
    counts, records = _Counts(), []
    for (example, step, place), number, row in zip(examples, streamed, chosen, strict=True):
        component, _ = data.rows.locate(row)
        arrays = jax.tree.map(lambda array: array[0], batches.batch(number))
        counts.add(arrays)
        if as_json:
            parts = [part._asdict() | {"name": names[component][part.document]} for part in _ranges(data.rows.row(row))]
            record = {"example": example, "step": step, "place": place, "row": row, "documents": parts}
            record["component"] = data.rows.components[component].name
            records.append(record | batch_record(data.tokenizer, arrays))
            continue
        title = f"Example {example:,}: step {step:,}, place {place:,}; row {row:,} of {len(data.rows):,}"
        console.print(Text(f"\n{title}", style="bold"))
        if len(data.rows.components) > 1:
            _heading(console, f"from {data.rows.components[component].name}")
        _show(console, data.tokenizer, arrays, data.rows.row(row), names[component], run.model)
    if as_json:
        numbers = {name: getattr(counts, name) for name in ("room", "tokens", "predictions")}
        print_json({"rows": len(data.rows), "labels": getattr(run.model, "labels", ()), **numbers, "examples": records})
    else:
        console.print(Text(f"\n{counts}", style="bold"))


def check_stored_data(run: run_config.Run, folder: RunDir, fingerprints: Mapping[str, str]) -> None:
    """Refuse data that a run's config.json names here, unless they are those of its checkpoint.

    The config.json of somebody else's run could name a private file of its reader, but its author does not know the fingerprint.

    Raises:
        BadInput: the run has no checkpoint, or one of other data.
    """
    source = open_checkpoints(folder.path, run)
    step = source.latest()
    saved = {} if step is None else source.meta(step)
    if any(saved.get(name) != fingerprints[name] for name in ("tokenizer", "data")):
        why = "has no checkpoint that shows" if step is None else "was trained on other data, or in another way, than"
        fix = "name the data in this command too, as --data.paths does"
        raise BadInput(f"{folder.path}: it {why} what its config.json names here; {fix}")


@dataclasses.dataclass
class _Counts:
    """Sums over the printed rows."""

    rows: int = 0
    room: int = 0
    tokens: int = 0
    predictions: int = 0
    predicts_tokens: bool = False
    """True if targets are tokens, so that they are counted by tokens."""

    def add(self, example: Batch) -> None:
        self.rows += 1
        for option in _options(example):
            self.room += option.tokens.size
            self.tokens += int(_filled(option).sum())
            self.predictions += int((_weights(option) > 0).sum())
            self.predicts_tokens |= option.targets is not None

    def __str__(self) -> str:
        filled, counted = self.tokens / self.room, self.predictions / max(self.tokens, 1)
        several = f"{self.rows:,} row{'s' if self.rows > 1 else ''}"
        predictions = f"; {self.predictions:,} of them counted, {counted:.1%}" if self.predicts_tokens else ""
        return f"{several}: {self.tokens:,} tokens, {filled:.1%} filled{predictions}"


def _document_names(mixture: Mixture, chosen: list[int]) -> list[dict[int, str]]:
    """Return, for each component, the names by number of the documents that the chosen rows are from."""
    numbers_of: list[set[int]] = [set() for _ in mixture.components]
    for number in chosen:
        numbers_of[mixture.locate(number)[0]] |= {part.document for part in _ranges(mixture.row(number))}
    return [_names(component.documents, numbers) for component, numbers in zip(mixture.components, numbers_of, strict=True)]


def _names(documents: Iterable[Document], numbers: set[int]) -> dict[int, str]:
    names: dict[int, str] = {}
    index, reader = 0, iter(documents)
    while len(names) < len(numbers):
        document = next(reader)
        if index in numbers:
            names[index] = document.name
        index += document.last
    return names


class _Range(NamedTuple):
    """A part of a document, or of a labelled example, in a row."""

    document: int
    start: int
    size: int


def _ranges(row: Any) -> list[_Range]:
    """Return the documents and ranges of the parts of a row of any kind."""
    if isinstance(row, continued_rows.Window):
        # Only the beginning of the row, because its second text may be from anywhere.
        return [_Range(*row.origin, 1)]
    if isinstance(row, lm_rows.LmRow):
        return [_Range(piece.document, piece.start, len(piece.ids)) for piece in row.pieces]
    if isinstance(row[0], instruction_rows.PackedDialogue):
        return [_Range(packed.example, 0, len(packed.text.ids)) for packed in row]
    if isinstance(row, tuple(SIDES)):
        return [_Range(row.example, 0, max(side.size for side in row.sides))]
    if isinstance(row, response_rows.ResponseRow):
        return [_Range(row.example, 0, len(row.prompt))]
    if isinstance(row[0], seq2seq_rows.PackedPair):
        return [_Range(pair.example, 0, len(pair.sides.source)) for pair in row]
    if isinstance(row, example_rows.ExampleRow):
        return [_Range(row.example, 0, len(inputs.ids)) for inputs in row.inputs]
    return [_Range(part.document, part.start, len(part.ids)) for sequence in row for part in sequence.parts]


def _show(console: Console, tokenizer: Tokenizer, example: Batch, row: Any, names: dict[int, str], model: Any = None) -> None:
    """Print one example: its origin, its encoder side if it has one, its tokens, its labels.

    Args:
        model: the configuration of the model, which names the labels.
    """
    origins = [_origin(part, names) for part in dict.fromkeys(_ranges(row))]
    # If each part is a segment, the headings of the segments show the origins.
    apart = example.segments is not None and example.source is None and int(example.segments.max()) == len(origins)
    if not apart:
        for origin in origins:
            _heading(console, origin)
    for number, option in enumerate(_options(example), 1):
        if option is not example:
            _heading(console, SIDES[type(row)][number - 1] if type(row) in SIDES else f"option {number}")
        if option.source is not None:
            _heading(console, "encoder side")
            _side(console, tokenizer, option.source, [], {})
            _heading(console, "decoder side")
        _side(console, tokenizer, option, origins if apart else [], _tags(example, model), as_targets=_is_dialogue(row))
    if example.labels is not None and not _tags(example, model):
        _heading(console, f"labels: {_printable(_labels(example.labels, model))}")
    # The numbers of a response are zeros before it is sampled.
    numbers = {} if isinstance(row, response_rows.ResponseRow) else example.extra or {}
    for name, value in numbers.items():
        _heading(console, f"{name}: {value}")


def _tags(example: Batch, model: Any) -> dict[int, str]:
    """Return the tag of each token that has one, by position."""
    if getattr(model, "task", "") != "tokens" or example.labels is None:
        return {}
    return {at: model.labels[label] for at, label in enumerate(example.labels.tolist()) if label != IGNORED}


def _labels(labels: Any, model: Any) -> str:
    """Return the names of the labels of a sequence, or numbers that have no names: positions, options, values of a regression."""
    values = np.asarray(labels).ravel()
    if getattr(model, "task", "") != "sequence" or not np.issubdtype(values.dtype, np.integer):
        return " ".join(map(str, values.tolist()))
    numbers = np.flatnonzero(values) if model.multi_label else values[values != IGNORED]
    return ", ".join(model.labels[number] for number in numbers.tolist()) or "none"


def _is_dialogue(row: Any) -> bool:
    return isinstance(row, tuple) and bool(row) and isinstance(row[0], instruction_rows.PackedDialogue)


def _options(example: Batch) -> list[Batch]:
    """Return the options of a question or the completions of a preference, each as a row; for anything else the row itself."""
    if example.tokens.ndim == 1:
        return [example]
    # The weights of predictions; those of whole questions and preferences have no axis of options.
    weighted = example.targets is not None
    names = ("tokens", "segments", "positions", "types", "source", *(("targets", "weights") if weighted else ()))
    fields = {name: value for name in names if (value := getattr(example, name)) is not None}
    return [Batch(**jax.tree.map(lambda array, n=number: array[n], fields)) for number in range(len(example.tokens))]


def _origin(part: _Range, names: dict[int, str]) -> str:
    last = part.start + part.size - 1
    return f"document {part.document:,}, {_printable(names[part.document])}: tokens {part.start:,} to {last:,}"


def _heading(console: Console, text: str) -> None:
    console.print(Text(f"  {text}", style="cyan"))


def _side(
    console: Console,
    tokenizer: Tokenizer,
    side: Batch,
    origins: list[str],
    tags: dict[int, str],
    *,
    as_targets: bool = False,
) -> None:
    """Print the tokens of one side, in stretches of one segment and type with consecutive positions.

    Args:
        tags: tag of each token that has one, by position.
        as_targets: mark the tokens that do not count as targets, instead of the positions whose predictions do not count.
    """
    filled = _filled(side)
    positions = np.arange(len(filled)) if side.positions is None else side.positions
    cells = _cells(tokenizer, side, tags, as_targets=as_targets)
    segment = None
    for start, end in itertools.pairwise(_starts(side, positions, filled)):
        if not filled[start]:
            _heading(console, f"padding: {end - start:,}")
            continue
        if side.segments is not None and (here := int(side.segments[start])) != segment:
            segment = here
            _heading(console, f"segment {here}" + (f": {origins[here - 1]}" if origins else ""))
        if side.types is not None:
            _heading(console, f"type {side.types[start]}")
        for at, line in _lines(cells, start, end, console.width - GUTTER):
            # No wrapping: the line already fits the width.
            console.print(Text().append(f"{positions[at]:>{GUTTER - 1}} ", "dim").append_text(line), soft_wrap=True)


def _starts(side: Batch, positions: np.ndarray, filled: np.ndarray) -> list[int]:
    """Return the beginnings of the stretches, and the end of the last one."""
    new = (np.diff(positions) != 1) & filled[1:]
    for field in (filled, side.segments, side.types):
        if field is not None:
            new |= field[1:] != field[:-1]
    return [0, *(np.flatnonzero(new) + 1).tolist(), len(filled)]


def _filled(side: Batch) -> np.ndarray:
    """Return whether each token is not padding."""
    if side.segments is not None:
        return side.segments != 0
    # Without segments, padding is recognized as one id that is repeated to the end and never predicted.
    other = np.flatnonzero((side.tokens != side.tokens[-1]) | (_weights(side) != 0))
    end = int(other.max(initial=-1)) + 1
    return np.arange(len(side.tokens)) < (end if len(side.tokens) - end > 1 else len(side.tokens))


def _weights(side: Batch) -> np.ndarray:
    """Return the weight in the loss of the prediction at each position; 0 where nothing is predicted."""
    weights = np.zeros(len(side.tokens), np.float32)
    if side.targets is not None:
        at = np.arange(len(weights)) if side.predicted_positions is None else side.predicted_positions
        # Unused entries have weight 0 and may have any position.
        np.add.at(weights, at, 1.0 if side.weights is None else side.weights)
    return weights


def _cells(tokenizer: Tokenizer, side: Batch, tags: dict[int, str], *, as_targets: bool) -> list[Text]:
    """Return the printed form of each token; if nothing is predicted at all, every token is printed like a counted one."""
    weights, targets = _weights(side), _targets(side)
    if as_targets:
        weights = np.append(np.float32(0), weights[:-1])
    counted = (weights > 0) | (side.targets is None)
    edge = np.concatenate([[True], counted | ~_filled(side), [True]])
    cells = []
    for at, token in enumerate(side.tokens.tolist()):
        style = "dim" if not counted[at] else "magenta" if token == tokenizer.end_of_text else ""
        cell = Text().append("«" if edge[at] and not counted[at] else "", "dim").append(_token(tokenizer, token), style)
        if side.order is not None:
            cell.append(f"#{side.order[at]}", "dim")
        if at in targets:
            cell.append("→", "dim").append(_token(tokenizer, targets[at]), "green")
        if at in tags:
            cell.append("→", "dim").append(_printable(tags[at]), "green")
        if weights[at] not in (0, 1):
            cell.append(f"*{weights[at]:g}", "yellow")
        cells.append(cell.append("»" if edge[at + 2] and not counted[at] else "", "dim"))
    return cells


def _targets(side: Batch) -> dict[int, int]:
    """Return the targets of the predictions that count, by position.

    If all of them are the next tokens, only those of positions without a next token are returned.
    """
    if side.targets is None:
        return {}
    at = range(len(side.tokens)) if side.predicted_positions is None else side.predicted_positions.tolist()
    weights = np.ones(len(side.targets)) if side.weights is None else side.weights
    targets = {place: target for place, target, weight in zip(at, side.targets.tolist(), weights, strict=True) if weight > 0}
    segments = _filled(side).astype(int) if side.segments is None else side.segments
    follows = np.append(segments[1:] == segments[:-1], False)
    after = {place: int(side.tokens[place + 1]) for place in targets if follows[place]}
    if any(targets[place] != token for place, token in after.items()):
        return targets
    return {place: target for place, target in targets.items() if place not in after}


def _lines(cells: list[Text], start: int, end: int, width: int) -> Iterator[tuple[int, Text]]:
    """Yield (index of the first cell, line) of the cells from `start` to `end`, in lines of at most `width` columns."""
    line, first = Text().append("│", "dim"), start
    for at in range(start, end):
        for part in _chopped(cells[at], width - 2):
            if line.cell_len > 1 and line.cell_len + part.cell_len + 1 > width:
                yield first, line
                line, first = Text().append("│", "dim"), at
            line.append_text(part).append("│", "dim")
    yield first, line


def _chopped(cell: Text, width: int) -> list[Text]:
    """Split a cell into parts that fit into a line: nearly always one."""
    if cell.cell_len <= width:
        return [cell]
    ends = itertools.accumulate(len(part) for part in chop_cells(cell.plain, max(width, 2)))
    return list(cell.divide(list(ends)[:-1]))


def _token(tokenizer: Tokenizer, number: int) -> str:
    in_vocabulary = 0 <= number < tokenizer.vocab_size
    return _printable(tokenizer.spell(number)) if in_vocabulary else f"<{number}>"


def _printable(text: str) -> str:
    """Return a text as one line, with control, bidirectional and leading combining characters escaped."""

    def shown(at: int, character: str) -> str:
        if character == "\n":
            return "↵"
        alone = character.isprintable() and (at or cell_len(character))
        return character if alone else character.encode("unicode_escape").decode()

    return "".join(itertools.starmap(shown, enumerate(text)))
