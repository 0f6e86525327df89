"""Pairs of texts for text to text, from their files to the rows a model is trained on and the rows it is scored on."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int64

from train.config import run_config
from train.config.objective_options import Labelled
from train.data import labelled_reader
from train.data.example_types import Pair
from train.data.records import TO_UTF8
from train.data.text_files import Document, lines
from train.inputs import labelled_inputs
from train.rows.lm_rows import ends
from train.rows.mixture import Component, Mixture
from train.rows.seq2seq_rows import Placed, Sides, marks_of
from train.run.console import short
from train.run.run_dir import Folder
from train.tokenizers.tokenizer import Tokenizer
from train.weights.load import check_vocabulary, chosen_tokenizer
from zoo.errors import BadInput, require

OPEN = 256
"""Rows that a pair may still be packed into: the newest ones."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Pairs as rows, one in each or several packed. They are held in memory."""

    examples: Sequence[Pair]
    sides: Sequence[Sides]
    """Of each example."""
    order: Int64[np.ndarray, " examples"]
    """The examples, row after row."""
    first: Int64[np.ndarray, " rows_and_one"]
    """Where each row begins in `order`; the last entry is the end."""
    length: int
    """Tokens a row has room for on the source's side."""
    fingerprint: str
    """Of all rows and the tokenizer."""

    def __len__(self) -> int:
        return len(self.first) - 1

    def row(self, number: int) -> tuple[Placed, ...]:
        """The pairs of a row."""
        chosen = self.order[self.first[number] : self.first[number + 1]].tolist()
        return tuple(Placed(example, self.sides[example]) for example in chosen)

    @property
    def text_size(self) -> int:
        """Tokens of both sides, marks included and padding not."""
        return sum(len(each.source) + len(each.target) for each in self.sides)

    @property
    def targets(self) -> int:
        """Tokens that are written, over all rows."""
        return sum(len(each.target) for each in self.sides)

    @functools.cached_property
    def asked(self) -> str:
        """A fingerprint of the pairs, wherever they were read and whatever reads them."""
        return hashlib.sha256(repr([(each.source, each.target) for each in self.examples]).encode()).hexdigest()

    def spread(self, count: int) -> "Rows":
        """At most `count` of the rows, evenly spaced: a sample that is the same each time."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.int64))
        taken = [self.order[self.first[number] : self.first[number + 1]] for number in chosen]
        return dataclasses.replace(self, order=np.concatenate(taken), first=ends(np.array([len(each) for each in taken])))


@dataclasses.dataclass(frozen=True, eq=False)
class TextPairs:
    """Pairs of texts, tokenized; see `train.inputs.dataset.Inputs`."""

    tokenizer: Tokenizer
    token_bytes: Int[np.ndarray, " V"]
    """UTF-8 bytes each token stands for; 0 for marks and for ids the tokenizer does not have."""
    rows: Mixture
    training: Rows
    """The same rows."""
    held_out: Rows

    def scored(self, run: run_config.Run, stride: int) -> Rows:
        """The rows of the held-out pairs."""
        return self.held_out

    def counts(self) -> Int64[np.ndarray, " V"]:
        """How often each id occurs in the training rows."""
        found = np.zeros(len(self.token_bytes), np.int64)
        for side in itertools.chain.from_iterable(self.training.sides):
            found += np.bincount(side, minlength=len(found))
        return found

    def fingerprints(self) -> dict[str, str]:
        """What a checkpoint remembers of its data, so that it is never resumed on other data.

        Of what is held out, the pairs: runs of any tokenizer, length and weights are asked the same and can be compared.
        """
        return {"tokenizer": self.tokenizer.fingerprint, "data": self.rows.fingerprint, "held_out": self.held_out.asked}

    def facts(self, run: run_config.Run) -> dict[str, str]:
        """The data and what the run does with it, as the console and the report show it."""
        rows, epochs = self.training, run.steps * run.data.batch / len(self.training)
        several = f" in {len(rows):,} rows" if len(rows) < len(rows.examples) else ""
        return {
            "data": f"{self.rows.components[0].name}: {len(rows.examples):,} pairs{several}, {short(rows.text_size)} tokens",
            "held out": f"{len(self.held_out.examples):,} pairs",
            "seen": f"{run.steps:,} steps of {run.data.batch}, {epochs:.3g} epochs",
        }


def settled(run: run_config.Run, folder: Folder) -> run_config.Run:
    """The run as it is: pairs decide nothing of it.

    Raises:
        BadInput: options that would change nothing.
    """
    labelled_inputs.refuse_idle(run)
    alone = not run.model.sourced
    require(not (alone and run.data.pack), "data.pack", run.data.pack, "a decoder alone has a row for each pair; leave it out")
    return run


def read(run: run_config.Run, folder: Folder, cache: Path, *, quiet: bool = False) -> TextPairs:
    """Read, tokenize and plan. A run that has no tokenizer to begin with trains one on both sides of its pairs.

    Raises:
        BadInput: data that cannot be read, a tokenizer without marks or with ids beyond the vocabulary, or a pair too long.
    """
    training, held_out = split(run)
    tokenizer = chosen_tokenizer(run, folder)
    if tokenizer is None:
        texts = (text for each in training for text in (each.source, each.target))
        tokenizer = Tokenizer.train(texts, run.tokenizer.vocab, run.tokenizer.kind, run.tokenizer.lowercase)
    check_vocabulary(run, tokenizer)
    token_bytes = np.zeros(run.model.vocab, np.int64)
    token_bytes[: tokenizer.vocab_size] = tokenizer.token_bytes()
    rows = rows_of(training, run, tokenizer)
    named = [Document(example.origin, "") for example in training]
    component = Component(", ".join(run.pairs.source + run.pairs.target or run.data.paths), 1.0, named, rows)
    return TextPairs(tokenizer, token_bytes, Mixture((component,)), rows, rows_of(held_out, run, tokenizer))


def split(run: run_config.Run) -> tuple[list[Pair], list[Pair]]:
    """(training, held-out) pairs: of parallel files, or of the columns of tables.

    Raises:
        BadInput: no files or both kinds, one that cannot be read or is in both halves, files of different numbers of lines, an
            empty text (with its line), or too few pairs to have two halves.
    """
    asked, options = run.pairs, run.labelled
    if not asked.source:
        if not run.data.paths:
            raise BadInput(
                "--pairs.source: there is no embedded data for text_to_text; name parallel files, with --pairs.target, or give "
                f"--data.paths tables: {labelled_reader.kinds('text_to_text')}"
            )
        return labelled_reader.split("text_to_text", run.data, options)  # pyright: ignore[reportReturnType]
    idle = " ".join(run.data.paths + run.data.valid_paths)
    require(not idle, "data.paths", idle, "pairs are read from --pairs.source; leave it out")
    found = list(parallel(asked.source, asked.target, options))
    if not asked.valid_source:
        return labelled_reader.halves(found, run.data.valid_fraction)
    if both := {Path(file).resolve() for file in asked.source} & {Path(file).resolve() for file in asked.valid_source}:
        raise BadInput(f"--pairs.valid-source {min(both)}: it is also in --pairs.source; hold out pairs that are not trained on")
    return found, list(parallel(asked.valid_source, asked.valid_target, options))


def parallel(sources: Sequence[str], targets: Sequence[str], options: Labelled) -> Iterator[Pair]:
    """The pairs of parallel files, a line each.

    Raises:
        BadInput: files of different numbers of lines, or an empty line.
    """
    for source, target in zip(sources, targets, strict=True):
        read = [[text.rstrip("\r\n") for _, text in lines(Path(file), options.encoding, TO_UTF8)] for file in (source, target)]
        one, other = map(len, read)
        if one != other:
            raise BadInput(f"{source} has {one:,} lines and {target} {other:,}; a pair is the same line of both, so mend one")
        if not one:
            raise BadInput(f"{source}: holds no pairs")
        for number, (first, second) in enumerate(zip(*read, strict=True), 1):
            named = target if first.strip() and not second.strip() else source
            yield labelled_reader.pair(f"{named}:{number}", first, second)


def rows_of(examples: Sequence[Pair], run: run_config.Run, tokenizer: Tokenizer) -> Rows:
    """The rows of some pairs as a run makes them.

    Raises:
        BadInput: a text that is too long, or that has no ids.
    """
    room = run.data.length, run.data.target_length or run.data.length
    sides = tuple(_encoded(examples, run, tokenizer, room))
    row = _packed(sides, room) if run.data.pack else np.arange(len(sides))
    order, digest = np.argsort(row, kind="stable"), hashlib.sha256(f"{tokenizer.fingerprint} {room}".encode())
    for side in itertools.chain.from_iterable(sides):
        digest.update(len(side).to_bytes(8) + side.tobytes())
    digest.update(order.tobytes() + row.tobytes())
    return Rows(examples, sides, order, ends(np.bincount(row)), room[0], digest.hexdigest())


def _encoded(examples: Sequence[Pair], run: run_config.Run, tokenizer: Tokenizer, room: tuple[int, int]) -> Iterator[Sides]:
    """Both sides of each pair, with their ends."""
    marks, before = marks_of(tokenizer), f"{run.pairs.prefix} " if run.pairs.prefix else ""
    sources = tokenizer.encode_many(before + each.source for each in examples)
    targets = tokenizer.encode_many(each.target for each in examples)
    options = (("source", "--data.length"), ("target", "--data.target-length"))
    for example, *both in zip(examples, sources, targets, strict=True):
        made = []
        for ids, most, (name, option) in zip(both, room, options, strict=True):
            if not len(ids):
                raise BadInput(f"{example.origin}: the tokenizer gives no ids to the {name}; mend it or leave the pair out")
            if len(ids) >= most and not run.labelled.truncate:
                raise BadInput(
                    f"{example.origin}: a {name} of {len(ids) + 1} tokens, and a row has {most}; choose a longer {option}, or "
                    "cut it with --labelled.truncate"
                )
            made.append(np.append(ids[: most - 1], marks.end).astype(np.int32))
        yield Sides(*made)


def _packed(sides: Sequence[Sides], room: tuple[int, int]) -> Int64[np.ndarray, " examples"]:
    """The row of each pair: the first of the `OPEN` newest ones with room on both sides, else a new one."""
    left = np.zeros((OPEN, 2), np.int64)
    number, rows = np.full(OPEN, -1), []
    for each in sides:
        size = np.array([len(each.source), len(each.target)])
        fits = np.flatnonzero((left >= size).all(1))
        slot = int(fits[np.argmin(number[fits])]) if len(fits) else int(np.argmin(number))
        if not len(fits):
            left[slot], number[slot] = room, number.max() + 1
        left[slot] -= size
        rows.append(number[slot])
    return np.array(rows, np.int64)
