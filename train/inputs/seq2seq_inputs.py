"""Pairs of texts for text to text, from files to the rows for training and scoring."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64

from train.config.option_groups import ExampleFileOptions
from train.config.run_config import Run
from train.data import labelled_reader
from train.data.example_types import Dialogue, Pair
from train.data.records import TO_UTF8
from train.data.text_files import decoded_lines
from train.inputs.example_inputs import Halves, PackedRows, pack_rows, run_template, split_examples
from train.rows.seq2seq_rows import PackedPair, SourceTarget, text_special_tokens_of
from train.tokenizers.chat_token_ids import rendered_pairs
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput, require
from zoo.file_access import real_path

OPEN = 256
"""Number of rows, the newest ones, that a pair may be packed into."""


@dataclasses.dataclass(frozen=True, eq=False)
class PairRows(PackedRows):
    """Rows of pairs of a source and a target text."""

    NOUN = "pairs"

    rows: tuple[tuple[PackedPair, ...], ...]

    @property
    def sides(self) -> list[SourceTarget]:
        """Ids of each pair."""
        return [part.sides for part in self.parts]

    def id_arrays(self) -> Iterator[np.ndarray]:
        """Yield the ids of each side, with end tokens."""
        return itertools.chain.from_iterable(self.sides)

    def room(self, run: Run) -> int:
        """Return the number of tokens that the rows have room for, of both sides."""
        return len(self) * (self.length + (run.data.target_length or self.length))

    @property
    def targets(self) -> int:
        """Number of target tokens in all rows."""
        return sum(len(side.target) for side in self.sides)

    @staticmethod
    def content_of(example: Pair) -> tuple[str, str]:
        """Return the texts of a pair."""
        return example.source, example.target


def pair_files(run: Run) -> tuple[str, ...]:
    """Return the names of the training files of pairs."""
    return run.options.pairs.source + run.options.pairs.target or run.data.paths


def split_pairs(run: Run, left_out: list[str]) -> Halves:
    """Return (training, held-out) pairs of parallel files or of two columns of tables, or conversations; none is left out.

    Raises:
        BadInput: there are no files or files of both kinds, a file cannot be read or is in both halves, parallel files differ in
            their number of lines, a text is empty (with its line), or there are too few pairs for two halves.
    """
    files, options = run.options.pairs, run.options.labelled
    if not files.source:
        if not run.data.paths:
            raise BadInput(
                "--pairs.source: there is no embedded data for text_to_text; name parallel files here and in --pairs.target, or "
                f"tables in --data.paths: {labelled_reader.format_names('text_to_text')}"
            )
        return split_examples(run, left_out)
    unused = " ".join(run.data.paths + run.data.valid_paths)
    require(not unused, "data.paths", unused, "pairs are read from --pairs.source; leave out --data.paths")
    training: list[Pair | Dialogue] = list(parallel(files.source, files.target, options))
    if not files.valid_source:
        return labelled_reader.split_halves(training, run.data.valid_fraction)
    if both := {*map(real_path, files.source)} & {*map(real_path, files.valid_source)}:
        raise BadInput(f"--pairs.valid-source {min(both)}: it is also in --pairs.source; hold out pairs that are not trained on")
    return training, list(parallel(files.valid_source, files.valid_target, options, "--pairs.valid-source"))


def parallel(
    sources: Sequence[str], targets: Sequence[str], options: ExampleFileOptions, option: str = "--pairs.source"
) -> Iterator[Pair]:
    """Yield the pairs of parallel files, one per line.

    Args:
        option: the option that names the sources.

    Raises:
        BadInput: the files differ in their number of lines, or a line is empty.
    """
    for source, target in zip(sources, targets, strict=True):
        texts = [
            [text.rstrip("\r\n") for _, text in decoded_lines(Path(file), options.encoding, TO_UTF8)] for file in (source, target)
        ]
        num_source, num_target = map(len, texts)
        if num_source != num_target:
            what = f"it has {num_source:,} lines, and its target {target} has {num_target:,}"
            fix = "a pair is the same line of both; add or remove lines, or name the files that belong together"
            raise BadInput(f"{option} {source}: {what}; {fix}")
        if not num_source:
            raise BadInput(f"{option} {source}: holds no pairs; write some, or leave out both files")
        for number, (first, second) in enumerate(zip(*texts, strict=True), 1):
            origin = target if first.strip() and not second.strip() else source
            yield labelled_reader.text_pair(f"{origin}:{number}", first, second)


def rows_of_pairs(
    examples: Sequence[Pair | Dialogue], run: Run, tokenizer: Tokenizer, left_out: list[str] | None = None
) -> PairRows:
    """Return the rows of pairs for a run; none is left out. Conversations are rendered as pairs with the chat template.

    Raises:
        BadInput: a text is too long, or has no ids; or there is no chat template for conversations.
    """
    template = functools.cache(lambda: run_template(run, tokenizer))
    pairs = rendered_pairs(examples, tokenizer, template, run.options.chat.turns)
    capacity = run.data.length, run.data.target_length or run.data.length
    sides = tuple(_encoded(pairs, run, tokenizer, capacity))
    numbers = _packed(sides, capacity) if run.data.pack else np.arange(len(sides))
    contents = (len(side).to_bytes(8) + side.tobytes() for side in itertools.chain.from_iterable(sides))
    parts = [PackedPair(number, side) for number, side in enumerate(sides)]
    rows, fingerprint = pack_rows(parts, numbers, f"{tokenizer.fingerprint} {capacity}", contents)
    return PairRows(pairs, rows, capacity[0], fingerprint)


def _encoded(examples: Sequence[Pair], run: Run, tokenizer: Tokenizer, capacity: tuple[int, int]) -> Iterator[SourceTarget]:
    """Yield the ids of both sides of each pair, with their end tokens."""
    special, prefix = text_special_tokens_of(tokenizer), run.options.pairs.prefix
    prefix = f"{prefix} " if prefix else ""
    sources = encode_texts(tokenizer, [(prefix + example.source, example.rendered) for example in examples])
    targets = encode_texts(tokenizer, [(example.target, example.rendered) for example in examples])
    options = (("source", "--data.length"), ("target", "--data.target-length"))
    for example, *encodings in zip(examples, sources, targets, strict=True):
        cut_ids = []
        for ids, limit, (name, option) in zip(encodings, capacity, options, strict=True):
            if not len(ids):
                raise BadInput(f"{example.origin}: the tokenizer returns no ids for the {name}; fix it or remove the pair")
            if len(ids) >= limit and not run.options.labelled.truncate:
                raise BadInput(
                    f"{example.origin}: a {name} of {len(ids) + 1} tokens, and a row has {limit}; choose a longer {option}, or "
                    "cut it with --labelled.truncate"
                )
            cut_ids.append(np.append(ids[: limit - 1], special.end).astype(np.int32))
        yield SourceTarget(*cut_ids)


def encode_texts(tokenizer: Tokenizer, texts: Sequence[tuple[str, bool]]) -> Iterator[Int32[np.ndarray, " n"]]:
    """Yield the ids of each of (text, whether a chat template has rendered it)."""
    plain = tokenizer.encode_many(text for text, rendered in texts if not rendered)
    for text, rendered in texts:
        yield tokenizer.encode_rendered([text])[0] if rendered else next(plain)


def _packed(sides: Sequence[SourceTarget], capacity: tuple[int, int]) -> Int64[np.ndarray, " examples"]:
    """Return the row of each pair: the first of the `OPEN` newest ones that both sides fit into, else a new one."""
    free = np.zeros((OPEN, 2), np.int64)
    number, rows = np.full(OPEN, -1), []
    for pair in sides:
        size = np.array([len(pair.source), len(pair.target)])
        fits = np.flatnonzero((free >= size).all(1))
        slot = int(fits[np.argmin(number[fits])]) if len(fits) else int(np.argmin(number))
        if not len(fits):
            free[slot], number[slot] = capacity, number.max() + 1
        free[slot] -= size
        rows.append(number[slot])
    return np.array(rows, np.int64)
