"""`zoo mine`: hard negatives of queries, by the vectors of a model, in a file that contrastive training reads."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.commands import terminal_output
from eval.commands.embed import read_corpus
from eval.commands.model_options import ModelOptions
from eval.inference.encoder_inputs import Mining, TaskVectors
from eval.inference.hard_negatives import MinedQuery, QueryTexts, mine_negatives, query_texts
from eval.inference.text_vectors import TaskEmbedder
from train.config.data_options import LabelledData
from train.config.embedding_options import RankedTexts
from train.data.labelled_reader import read_labelled_examples
from train.run.progress_display import ProgressBar
from train.run.run_dir import replace_atomically
from zoo.errors import BadInput, cannot_write


def run_mine(
    model: ModelOptions,
    queries: Sequence[str],
    corpus: Sequence[str],
    out: Path,
    *,
    labelled: RankedTexts,
    vectors: TaskVectors,
    mining: Mining,
) -> int:
    """Write a line for each query and positive, with hard negatives and similarities, and return the exit code.

    Args:
        queries: files of queries with positives, as the objective `contrastive` reads them.
        corpus: files of documents, as `zoo embed --index` reads them, which are candidates beside the positives.

    Raises:
        BadInput: see `read_labelled_examples`, `read_corpus`, `query_texts`, `TaskEmbedder` and `mine_negatives`; no query
            with enough candidates, or a file that cannot be written.
    """
    left_out: list[str] = []
    examples: Any = read_labelled_examples("contrastive", tuple(queries), LabelledData(), labelled, left_out)[0]
    texts = query_texts(examples, list(read_corpus(corpus, "--corpus").values()) if corpus else [])
    embedder = TaskEmbedder.of(model.load(), vectors, batch=model.batch, dtype=model.dtype())
    with ProgressBar("mining", "texts", before="compiling") as progress:
        query_vectors = embedder.vectors([*texts.queries.values()], "query", progress)
        candidates = embedder.vectors([*texts.candidates.values()], "document", progress)
        mesh = embedder.encoder.loaded.mesh
        mined = mine_negatives(texts, query_vectors, candidates, mining, mesh=mesh, progress=progress)
    largest = max(len(query.rows) for query in mined)
    if largest < mining.negatives:
        fix = "choose fewer, name more texts with --corpus, or change --depth, --skip and the thresholds"
        raise BadInput(f"--negatives {mining.negatives}: no query has more than {largest} candidates that are admitted; {fix}")
    try:
        with replace_atomically(out) as stream:
            stream.writelines(_lines(mined, texts, mining.negatives))
    except OSError as error:
        raise cannot_write(f"--out {out}:", error) from None
    _report(out, mined, texts, mining.negatives)
    if left_out:
        terminal_output.write_output(f"! {len(left_out):,} malformed examples are left out; the first: {left_out[0]}\n")
    for text in embedder.details().values():
        terminal_output.write_output(f"! {text}\n")
    return 0


def _lines(mined: Sequence[MinedQuery], texts: QueryTexts, negatives: int) -> Iterator[bytes]:
    """Yield a line for each positive of the queries that have enough negatives."""
    candidates = [*texts.candidates]
    for query, own, result in zip(texts.queries, texts.positives, mined, strict=True):
        for positive, similarity in zip(own, result.positives, strict=True) if len(result.rows) == negatives else ():
            # The shortest decimals that are read as the same float32.
            scores = [float(np.format_float_positional(value, trim="0")) for value in (similarity, *result.scores)]
            own_texts = {"positive": candidates[positive], "negatives": [candidates[row] for row in result.rows]}
            yield f"{json.dumps({'query': query, **own_texts, 'scores': scores}, ensure_ascii=False)}\n".encode()


def _report(out: Path, mined: Sequence[MinedQuery], texts: QueryTexts, count: int) -> None:
    """Print what was written, and how many queries were left out because they have fewer than `count` negatives."""
    complete = [query for query in mined if len(query.rows) == count]
    positives, negatives = (np.concatenate(parts) for parts in zip(*((q.positives, q.scores) for q in complete), strict=True))
    terminal_output.write_output(
        f"{out}: {len(positives):,} pairs with {count} of {len(texts.candidates):,} texts each; "
        f"mean similarity {positives.mean():.4f} of positives, {negatives.mean():.4f} of negatives\n"
    )
    if dropped := len(mined) - len(complete):
        terminal_output.write_output(
            f"! {dropped:,} of {len(mined):,} queries have fewer than {count} admitted candidates and are left out\n"
        )
