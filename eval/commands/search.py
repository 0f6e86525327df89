"""`zoo search`: the documents of an index that are nearest to a text."""

import json
from pathlib import Path

import numpy as np

from eval.commands import terminal_output
from eval.commands.model_options import ModelOptions
from eval.inference.encoder_inputs import TaskVectors
from eval.inference.encoder_runner import Text
from eval.inference.pair_scores import CrossEncoder
from eval.inference.text_vectors import TaskEmbedder
from eval.inference.token_vectors import is_multi_vector, late_interaction_scores
from eval.inference.top_k import top_k
from eval.inference.vector_index import check_model, read_entries, read_index
from train.run.progress_display import ProgressBar
from train.weights.load import Loaded, load_model
from zoo.errors import require

NUMBER, SCORE, IDENTIFIER = 4, 9, 16
"""Terminal columns of the rank, the score and the id of a document."""


def run_search(
    model: ModelOptions,
    folder: Path,
    query: str,
    *,
    prompt: str | None,
    k: int,
    rerank: str,
    rerank_k: int,
    truncate: bool,
    as_json: bool,
) -> int:
    """Print rank, score, id and text of the k nearest documents, and return the exit code.

    Args:
        prompt: text that is put before the query; None = the model's prompt for queries.
        k: number of documents; at most all of them.
        rerank: model that orders the nearest `rerank_k` documents again, and whose scores are then printed: a cross-encoder, or
            one with a vector for each token; "" = none.
        truncate: cut a query that is too long, or a pair for the cross-encoder.
        as_json: print an object for each document.

    Raises:
        BadInput: not an index, an index of another model, a query that is too long, or vectors that are not finite; or `rerank`
            is of neither kind, see `CrossEncoder.of` and `TokenEmbedder.of`.
    """
    settings, vectors = read_index(folder)
    loaded = model.load()
    options = TaskVectors(pool=settings.pool, dimensions=settings.dimensions, query_prompt=prompt)
    embedder = TaskEmbedder.of(loaded, options, batch=model.batch, dtype=model.dtype(), truncate=truncate)
    check_model(folder, settings, loaded, embedder.modules)
    with ProgressBar("searching", "documents", before="compiling", quiet=as_json) as progress:
        query_vector = embedder.vectors([Text("the query", query)], "query")
        (scores,), (rows,) = top_k(query_vector, vectors, rerank_k if rerank else k, mesh=loaded.mesh, progress=progress)
    entries = read_entries(folder, rows.tolist())
    if rerank:
        texts = [Text(f"document {name}", text) for name, text in entries]
        keys, values = _second_scores(model, load_model(rerank, loaded.mesh), query, texts, truncate=truncate, quiet=as_json)
        order = np.argsort(-keys, kind="stable")[:k]
        scores, entries = values[order], [entries[place] for place in order]
    width = terminal_output.terminal_width()
    for rank, (score, (name, text)) in enumerate(zip(scores.tolist(), entries, strict=True), 1):
        if as_json:
            row = json.dumps({"rank": rank, "score": score, "id": name, "text": text}, ensure_ascii=False)
        else:
            row = f"{rank:>{NUMBER}}{score:>{SCORE}.4f}  {terminal_output.text_excerpt(name, 0, 0, None):{IDENTIFIER}}  "
            row += terminal_output.text_excerpt(text, 0, 0, width and max(20, width - len(row)))
        terminal_output.write_output(f"{row}\n")
    return 0


def _second_scores(
    options: ModelOptions, loaded: Loaded, query: str, texts: list[Text], *, truncate: bool, quiet: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return (numbers by which a second model orders texts, the scores to print); they differ where scores are sigmoids.

    Raises:
        BadInput: the model has one vector for a text; see also `CrossEncoder` and `late_interaction_scores`.
    """
    first, settings = Text("the query", query), {"batch": options.batch, "dtype": options.dtype(), "truncate": truncate}
    is_pair_model = loaded.model.task == "sequence"
    fix = "it has one vector for a text; name a cross-encoder, or a model with a vector for each token"
    require(is_pair_model or is_multi_vector(loaded), "rerank", loaded.where, fix)
    with ProgressBar("ranking", "documents", before="compiling", quiet=quiet) as progress:
        if is_pair_model:
            scorer = CrossEncoder.of(loaded, **settings)
            logits = scorer.logits([(first, text) for text in texts], progress)
            return logits, scorer.scores(logits)
        scores = late_interaction_scores(loaded, first, texts, **settings)
        return scores, scores
