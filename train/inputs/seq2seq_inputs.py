"""Pairs of texts for text to text, from files to the rows for training and scoring."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32, Int64

from train.config import run_config
from train.config.option_groups import ExampleFileOptions
from train.data import labelled_reader
from train.data.example_types import Dialogue, Pair
from train.data.records import TO_UTF8
from train.data.text_files import Document, lines
from train.inputs.example_inputs import ExampleInputs, PackedRows, token_sizes, tokenizer_of
from train.rows.lm_rows import csr_offsets
from train.rows.mixture import Component, Mixture
from train.rows.row_source import digest_of
from train.rows.seq2seq_rows import PackedPair, SourceTarget, text_special_tokens_of
from train.run.progress_display import short_number
from train.run.run_dir import RunDir
from train.tokenizers.chat_template import chat_template
from train.tokenizers.chat_token_ids import rendered_pairs
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput, require
from zoo.file_access import real_path

OPEN = 256
"""Number of rows, the newest ones, that a pair may be packed into."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PairRows(PackedRows):
    """Rows of pairs of a source and a target text."""

    examples: Sequence[Pair]
    sides: Sequence[SourceTarget]
    """Ids of each example."""

    def row(self, number: int) -> tuple[PackedPair, ...]:
        """Return the pairs of a row."""
        return tuple(PackedPair(example, self.sides[example]) for example in self.examples_of(number))

    @property
    def text_size(self) -> int:
        """Number of tokens of both sides, with end tokens and without padding."""
        return sum(len(side.source) + len(side.target) for side in self.sides)

    @property
    def targets(self) -> int:
        """Number of target tokens in all rows."""
        return sum(len(side.target) for side in self.sides)

    @functools.cached_property
    def content_digest(self) -> str:
        """SHA-256 of the texts of the pairs, independent of their files and of the tokenizer."""
        return digest_of(repr([(example.source, example.target) for example in self.examples]), ())


@dataclasses.dataclass(frozen=True, eq=False)
class PairInputs(ExampleInputs[PairRows]):
    """Tokenized pairs of texts; see `train.inputs.run_inputs.Inputs`."""

    tokenizer: Tokenizer
    token_bytes: Int[np.ndarray, " V"]
    """UTF-8 bytes of each token; 0 for special tokens and for ids that the tokenizer does not have."""
    rows: Mixture
    training: PairRows
    """The rows in `rows`."""
    held_out: PairRows

    def counts(self) -> Int64[np.ndarray, " V"]:
        """Return the number of occurrences of each id in the training rows."""
        counts = np.zeros(len(self.token_bytes), np.int64)
        for side in itertools.chain.from_iterable(self.training.sides):
            counts += np.bincount(side, minlength=len(counts))
        return counts

    def describe(self, run: run_config.Run) -> dict[str, str]:
        """Return a summary of the data and its use in the run, for the console and the report."""
        rows, epochs = self.training, run.steps * run.data.batch / len(self.training)
        several = f" in {len(rows):,} rows" if len(rows) < len(rows.examples) else ""
        size = f"{len(rows.examples):,} pairs{several}, {short_number(rows.text_size)} tokens"
        return {
            "data": f"{self.rows.components[0].name}: {size}",
            "held out": f"{len(self.held_out.examples):,} pairs",
            "seen": f"{run.steps:,} steps of {run.data.batch}, {epochs:.3g} epochs",
        }


def resolve_config(run: run_config.Run, folder: RunDir) -> run_config.Run:
    """Return the run unchanged: pairs determine no value of it.

    Raises:
        BadInput: an option has no effect.
    """
    alone = not run.model.is_encoder_decoder
    require(not (alone and run.data.pack), "data.pack", run.data.pack, "a decoder-only model has one pair per row; remove it")
    return run


def read_seq2seq(run: run_config.Run, folder: RunDir, cache: Path, *, quiet: bool = False) -> PairInputs:
    """Read and tokenize pairs and plan their rows. A run without a tokenizer trains one on both sides of its pairs.

    Raises:
        BadInput: the data cannot be read, the tokenizer has no special tokens or has ids beyond the vocabulary, or a pair is too
            long.
    """
    training, held_out = split(run)
    tokenizer = tokenizer_of(run, folder, training, held_out)
    training, held_out = (_rendered(half, run, tokenizer) for half in (training, held_out))
    rows = rows_of(training, run, tokenizer)
    named = [Document(example.origin, "") for example in training]
    component = Component(", ".join(run.options.pairs.source + run.options.pairs.target or run.data.paths), 1.0, named, rows)
    return PairInputs(tokenizer, token_sizes(run, tokenizer), Mixture((component,)), rows, rows_of(held_out, run, tokenizer))


def split(run: run_config.Run) -> tuple[list[Pair | Dialogue], list[Pair | Dialogue]]:
    """Return (training, held-out) pairs of parallel files or of two columns of tables, or conversations.

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
        return labelled_reader.split("text_to_text", run.data, options)  # pyright: ignore[reportReturnType]
    unused = " ".join(run.data.paths + run.data.valid_paths)
    require(not unused, "data.paths", unused, "pairs are read from --pairs.source; leave out --data.paths")
    training: list[Pair | Dialogue] = list(parallel(files.source, files.target, options))
    if not files.valid_source:
        return labelled_reader.split_halves(training, run.data.valid_fraction)
    if both := {*map(real_path, files.source)} & {*map(real_path, files.valid_source)}:
        raise BadInput(f"--pairs.valid-source {min(both)}: it is also in --pairs.source; hold out pairs that are not trained on")
    return training, list(parallel(files.valid_source, files.valid_target, options, "--pairs.valid-source"))


def _rendered(examples: Sequence[Pair | Dialogue], run: run_config.Run, tokenizer: Tokenizer) -> list[Pair]:
    """Return examples as pairs; conversations are rendered with the tokenizer's chat template."""
    template = functools.cache(lambda: chat_template(tokenizer, run.tokenizer.path or run.init or "the tokenizer"))
    return rendered_pairs(examples, tokenizer, template, run.options.chat.turns)


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
        texts = [[text.rstrip("\r\n") for _, text in lines(Path(file), options.encoding, TO_UTF8)] for file in (source, target)]
        num_source, num_target = map(len, texts)
        if num_source != num_target:
            what = f"it has {num_source:,} lines, and its target {target} has {num_target:,}"
            fix = "a pair is the same line of both; add or remove lines, or name the files that belong together"
            raise BadInput(f"{option} {source}: {what}; {fix}")
        if not num_source:
            raise BadInput(f"{option} {source}: holds no pairs; write some, or leave out both files")
        for number, (first, second) in enumerate(zip(*texts, strict=True), 1):
            origin = target if first.strip() and not second.strip() else source
            yield labelled_reader.pair(f"{origin}:{number}", first, second)


def rows_of(examples: Sequence[Pair], run: run_config.Run, tokenizer: Tokenizer) -> PairRows:
    """Return the rows of pairs for a run.

    Raises:
        BadInput: a text is too long, or has no ids.
    """
    capacity = run.data.length, run.data.target_length or run.data.length
    sides = tuple(_encoded(examples, run, tokenizer, capacity))
    row = _packed(sides, capacity) if run.data.pack else np.arange(len(sides))
    order = np.argsort(row, kind="stable")
    contents = (len(side).to_bytes(8) + side.tobytes() for side in itertools.chain.from_iterable(sides))
    fingerprint = digest_of(f"{tokenizer.fingerprint} {capacity}", itertools.chain(contents, (order.tobytes() + row.tobytes(),)))
    first = csr_offsets(np.bincount(row))
    return PairRows(examples=examples, sides=sides, order=order, first=first, length=capacity[0], fingerprint=fingerprint)


def _encoded(
    examples: Sequence[Pair], run: run_config.Run, tokenizer: Tokenizer, capacity: tuple[int, int]
) -> Iterator[SourceTarget]:
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
