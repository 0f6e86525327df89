"""Text inputs of a run, from files to the rows for training and scoring."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from train.config import run_config
from train.config.data_options import TextData
from train.data import corpus
from train.data.corpus import Documents
from train.data.text_files import Document
from train.objectives import objective
from train.rows.mixture import Component, Mixture, Share
from train.rows.row_source import RowSource, TextRows
from train.rows.token_cache import Progress, Tokens, tokenize_documents
from train.run.progress_display import BYTES, EVERY, ProgressBar, short_number
from train.run.run_dir import RunDir
from train.tokenizers.tokenizer import Tokenizer
from train.weights.stored_teacher import StoredTeacher
from train.weights.tokenizer_choice import check_vocabulary, existing_tokenizer
from zoo.errors import BadInput


@dataclasses.dataclass(frozen=True, eq=False)
class TextInputs:
    """Tokenized text and its rows; see `train.inputs.run_inputs.Inputs`."""

    tokenizer: Tokenizer
    vocab: int
    """Number of ids of the model, V, which may be more than the tokenizer's."""
    rows: Mixture
    """The rows that the run trains on."""
    held_out: Tokens
    """The held-out text of all components."""
    held_out_names: tuple[str, ...] = ()
    """The names of its documents, if it is that of --data.valid-paths."""
    teacher: StoredTeacher | None = None
    """Stored probabilities of a teacher for the rows; None = there are none."""

    def scored_rows(self, run: run_config.Run, stride: int) -> RowSource:
        """Return the rows of the held-out text that score the objective; rows that are windows have `stride` new tokens each."""
        return objective(run.objective).scored_rows(self.held_out, run, self.tokenizer, stride)

    def row_origins(self, rows: RowSource) -> list[str]:
        """Return the document that each row of the held-out text begins in.

        It is a file, with the line if the file has many; or its number, if the text is held out of --data.paths.
        """
        assert isinstance(rows, TextRows), "scored rows of text are rows of text"
        names, numbers = self.held_out_names, rows.first_documents.tolist()
        return [names[number] if names else f"document {number}" for number in numbers]

    def validation_rows(self, run: run_config.Run) -> RowSource:
        """Return rows of the held-out text that do not overlap; validations use a subsample of them."""
        return self.scored_rows(run, run.data.length)

    def counts(self) -> Int64[np.ndarray, " V"]:
        """Return the number of occurrences of each id in the training text."""
        counts = np.zeros(self.vocab, np.int64)
        for component in self.rows.components:
            ids = _tokens(component).ids
            for start in range(0, len(ids), IDS_PER_CHUNK):
                counts += np.bincount(ids[start : start + IDS_PER_CHUNK], minlength=len(counts))
        return counts

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprints that a checkpoint stores, so that it is never resumed on other text."""
        several = self.rows.components if len(self.rows.components) > 1 else ()
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "data": self.rows.fingerprint,
            "held_out": self.held_out.fingerprint,
            "held_out_text": self.held_out.text,
            **({} if self.teacher is None else {"teacher": self.teacher.digest}),
            # Only for the message that names the components that changed.
            **{f"data of {component.name}": component.rows.fingerprint for component in several},
        }

    def describe(self, run: run_config.Run) -> dict[str, str]:
        """Return a summary of the text and its use in the run, for the console and the report."""
        shares = self.rows.shares(run.examples)
        names, tokens = ", ".join(share.name for share in shares), sum(share.tokens for share in shares)
        seen = f"{short_number(run.examples * run.data.length)} in {run.steps:,} steps"
        taken = "" if run.data.take == 1 else f", a sample of {run.data.take:.3g} of the text"
        facts = {"data": f"{names}{taken}: {short_number(tokens)} tokens, {len(self.rows)} rows of {run.data.length}"}
        if len(shares) == 1:
            return {**facts, "tokens seen": f"{seen}, {shares[0].epochs:.3g} epochs"}
        return {**facts, "data mixture": "; ".join(map(_share_line, shares)), "tokens seen": seen}


def _tokens(component: Component) -> Tokens:
    assert isinstance(component.rows, TextRows), "a component of text has rows of text"
    return component.rows.tokens


IDS_PER_CHUNK = 1 << 24
"""Number of ids that are counted at a time, because they are memory-mapped."""


def read_documents(run: run_config.Run, folder: RunDir, cache: Path, *, quiet: bool = False) -> TextInputs:
    """Read the text, tokenize it (once: `cache` has the result) and plan its rows. A resumed run uses its own tokenizer.

    Args:
        quiet: whether to show no progress, because another process does.

    Raises:
        BadInput: see `corpus.split_corpus`, `corpus.sample_share`, `Tokenizer.load` and `lm_rows.training_rows`; also if the
        tokenizer has
            ids beyond the model's vocabulary, or is not the teacher's.
    """
    parts = _parts(run.data, run.seed)
    tokenizer = existing_tokenizer(run, folder)
    if tokenizer is None:
        text, options = corpus.sample_chunks([part.training for part in parts]), run.tokenizer
        tokenizer = Tokenizer.train(text, options.vocab, options.kind, options.lowercase)
    check_vocabulary(run, tokenizer)
    with ProgressBar("tokenizing", BYTES, late=True, every=EVERY, quiet=quiet) as progress:
        components = tuple(_component(part, run, tokenizer, cache, progress) for part in parts)
        held_out = tokenize_documents(_held_out(parts, run.data), tokenizer, cache, progress)
    vocab, rows, names = run.model.vocab, Mixture(components), parts[0].held_out.names
    return TextInputs(tokenizer=tokenizer, vocab=vocab, rows=rows, held_out=held_out, held_out_names=names)


class _Part(NamedTuple):
    """A component before tokenization."""

    name: str
    weight: float
    training: Documents
    """The complete training text, which a tokenizer is trained on."""
    documents: Documents
    """The share of the training text that the run is trained on, `--data.take`."""
    held_out: Documents


@dataclasses.dataclass(frozen=True)
class _Concatenated:
    """Documents of several components, one component after the other; every iteration reads them again."""

    parts: list[Iterable[Document]]

    def __iter__(self) -> Iterator[Document]:
        return itertools.chain.from_iterable(self.parts)


def _parts(data: TextData, seed: int) -> list[_Part]:
    """Return the training and held-out documents of each component. Without weights all paths are one component."""
    if not data.weights:
        return [_part(", ".join(data.paths) or "Moby-Dick (embedded)", 1.0, data, seed)]
    single = [dataclasses.replace(data, paths=(path,), weights=()) for path in data.paths]
    return [_part(part.paths[0], weight, part, seed) for part, weight in zip(single, data.weights, strict=True)]


def _part(name: str, weight: float, data: TextData, seed: int) -> _Part:
    training, held_out = corpus.split_corpus(data)
    return _Part(name, weight, training, corpus.sample_share(training, data.take, seed), held_out)


def _held_out(parts: list[_Part], data: TextData) -> Iterable[Document]:
    # All components have the same `valid_paths`; without them each has its own held-out text, cut from its end.
    return parts[0].held_out if data.valid_paths or len(parts) == 1 else _Concatenated([part.held_out for part in parts])


def _component(part: _Part, run: run_config.Run, tokenizer: Tokenizer, cache: Path, progress: Progress | None) -> Component:
    tokens = tokenize_documents(part.documents, tokenizer, cache, progress)
    try:
        return Component(part.name, part.weight, part.documents, objective(run.objective).plan_rows(tokens, run, tokenizer))
    except BadInput as error:
        raise BadInput(f"{part.name}: {error}" if run.data.weights else str(error)) from None


def _share_line(share: Share) -> str:
    times = f"{share.epochs:.3g} epochs of {short_number(share.tokens)} tokens"
    return f"{share.name} {share.weight:.1%} of rows, {share.share:.1%} of tokens ({times})"
