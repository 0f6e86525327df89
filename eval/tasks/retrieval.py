"""Retrieval of documents for queries, and the order of given candidates, by the similarity of vectors.

retrieval. Format: a folder of BEIR (Thakur et al. 2021): corpus.jsonl with `_id`, `text` and perhaps `title`, queries.jsonl with
`_id` and `text`, and qrels/test.tsv with the header `query-id corpus-id score`; or that file in the form of TREC without header,
`query 0 document grade`. retrieval:NAME reads qrels/NAME.tsv. The text of a document is its title, a space and its text. Queries
without judgements are not asked; a document with the id of the query is left out of its ranking, as BEIR and MTEB do it.

rerank. Format: .jsonl; a line is an object with `query`, `positive` and `negative`, lists of candidate texts. A negative of the
same score is ranked before a positive. A cross-encoder, a model with a head of one score, scores each candidate together with the
query; of other models the vectors are compared, those of tokens by MaxSim.

Metrics, with the conventions of `eval.metrics.ranking`, each the mean over queries with its standard error: ndcg_at_10,
map_at_100 (rerank: map, of all candidates), mrr_at_10 and (retrieval) recall_at_100. Examples are queries. Outcomes: nDCG@10 of
each query as the number of right predictions.

Prompts are the model's own for queries and documents, see `zoo.embedding_modules`, unless --vectors.query-prompt and
--vectors.document-prompt give others. Vectors are compared as the model's folder says, by cosine or dot product, and those of
tokens by MaxSim. A text that is longer than the model's positions is cut, and the result says so.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eval import task_data_files
from eval.inference.batch_loop import Progress
from eval.inference.encoder_inputs import TaskVectors
from eval.inference.encoder_runner import Text
from eval.inference.pair_scores import CrossEncoder
from eval.inference.text_vectors import TaskEmbedder
from eval.inference.token_vectors import TokenEmbedder, best_documents, is_multi_vector, max_sim_scores
from eval.inference.top_k import top_k
from eval.metrics import ranking
from eval.metrics.standard_error import with_error
from eval.tasks.task import Result, Settings, Task, first
from train.data.text_files import check_string, nonblank_lines, parse_object
from train.run.item_outcomes import Outcomes
from train.weights.cross_encoder_settings import is_cross_encoder
from train.weights.load import Loaded
from zoo.errors import BadInput, no_such_file, require

DEEPEST = 100
"""Documents of a ranking that the metrics look at."""
LARGEST_GRADE = 1_000


class Collection(NamedTuple):
    """Queries with judgements, and the documents."""

    queries: dict[str, Text]
    documents: dict[str, Text]
    grades: dict[str, dict[str, int]]
    """Query -> document -> grade."""


class Candidates(NamedTuple):
    """A query with texts that belong to it, and others."""

    query: Text
    positive: list[Text]
    negative: list[Text]


def read_collection(names: Sequence[str], settings: Settings) -> Collection:
    """Read a folder of BEIR; with a limit, only its first queries.

    Raises:
        BadInput: not one folder with these files, a line that cannot be read, an id twice, an empty text, or a judgement that
            names an id that does not exist.
    """
    folder = Path(names[0])
    if len(names) != 1 or not folder.is_dir():
        raise BadInput(f"--files {' '.join(names)}: name one folder with corpus.jsonl, queries.jsonl and qrels/test.tsv")
    qrels = folder / "qrels" / f"{settings.argument or 'test'}.tsv"
    for file in (folder / "corpus.jsonl", folder / "queries.jsonl", qrels):
        if not file.exists():
            raise no_such_file(file, "--files ")
    documents, queries = read_documents(folder / "corpus.jsonl"), read_documents(folder / "queries.jsonl")
    grades: dict[str, dict[str, int]] = {}
    for where, query, document, grade in _read_qrels(qrels):
        for name, kind, texts, file in ((query, "query", queries, "queries"), (document, "document", documents, "corpus")):
            if name not in texts:
                raise BadInput(
                    f"{where}: there is no {kind} {json.dumps(name)} in {file}.jsonl; add it there, or remove the line"
                )
        if document in grades.setdefault(query, {}):
            raise BadInput(
                f"{where}: a second grade of document {json.dumps(document)} for query {json.dumps(query)}; remove one"
            )
        grades[query][document] = grade
    judged = first([name for name in queries if name in grades], settings.limit)
    if not judged:
        raise BadInput(f"{qrels}: no query has a judgement; add lines")
    return Collection({name: queries[name] for name in judged}, documents, {name: grades[name] for name in judged})


def score_retrieval(subject: Loaded, data: Collection, settings: Settings, progress: Progress) -> Result:
    """Rank the documents for each query.

    Raises:
        BadInput: the model is no encoder, see `TaskEmbedder`.
    """
    if is_cross_encoder(subject):
        fix = "choose --task rerank, or an embedding model"
        raise BadInput(
            f"--task retrieval: {subject.where} is a cross-encoder, which would read each document with each query; {fix}"
        )
    # The search prefers the lowest row of equal scores, and trec_eval the highest id.
    names = sorted(data.documents, reverse=True)
    queries, documents = [*data.queries.values()], [data.documents[name] for name in names]
    options: dict[str, Any] = {"batch": settings.batch, "dtype": settings.dtype}
    if is_multi_vector(subject):
        embedder = TokenEmbedder.of(subject, settings.vectors, **options)
        sides = embedder.vectors(queries, "query", progress), embedder.vectors(documents, "document", progress)
        rows = best_documents(max_sim_scores(*sides, progress), DEEPEST + 1)
    else:
        embedder = TaskEmbedder.of(subject, settings.vectors, **options)
        vectors = embedder.vectors(queries, "query", progress), embedder.vectors(documents, "document", progress)
        _, rows = top_k(*vectors, DEEPEST + 1, mesh=subject.mesh, progress=progress)
    table, judged = np.zeros((len(queries), DEEPEST), np.int64), []
    for number, (query, ranked) in enumerate(zip(data.queries, rows, strict=True)):
        own = data.grades[query]
        ranking_of_query = [names[row] for row in ranked if names[row] != query][:DEEPEST]
        table[number, : len(ranking_of_query)] = [own.get(name, 0) for name in ranking_of_query]
        judged.append(np.array([*own.values()], np.int64))
    values = {
        "ndcg_at_10": ranking.ndcg(table, judged, 10),
        "map_at_100": ranking.average_precision(table, judged, DEEPEST),
        "mrr_at_10": ranking.reciprocal_rank(table, judged, 10),
        "recall_at_100": ranking.recall(table, judged, DEEPEST),
    }
    details = {"documents": len(documents), **embedder.details()}
    return _result(values, [text.where for text in data.queries.values()], details)


def read_candidates(names: Sequence[str], settings: Settings) -> list[Candidates]:
    """Read the candidates of all files.

    Raises:
        BadInput: a file or a line that cannot be read, an empty text, or a query without positive or negative candidates.
    """
    queries = []
    for _, where, line in task_data_files.lines(names, (".jsonl",)):
        value = parse_object(line, where, '{"query": "...", "positive": ["..."], "negative": ["..."]}')
        sides = {}
        for name in ("positive", "negative"):
            texts = value.get(name)
            if not isinstance(texts, list) or not texts:
                raise BadInput(f"{where}: field {name} is no list of texts; write one or more {name} candidates")
            sides[name] = [_text(text, f"a text of {name}", where) for text in texts]
        queries.append(Candidates(_text(value.get("query"), "field query", where), **sides))
    return first(queries, settings.limit)


def score_rerank(subject: Loaded, data: Sequence[Candidates], settings: Settings, progress: Progress) -> Result:
    """Order the candidates of each query, by the scores of pairs if the model has a head for sequences, else by vectors.

    Raises:
        BadInput: the model is no encoder, see `TaskEmbedder`, or has a head that gives no score, see `CrossEncoder`.
    """
    scorer = _pair_scores if subject.model.task == "sequence" else _vector_scores
    scores_of, details = scorer(subject, data, settings, progress)
    longest = max(len(item.negative) + len(item.positive) for item in data)
    table, judged = np.zeros((len(data), longest), np.int64), []
    for row, scores, item in zip(table, scores_of, data, strict=True):
        grades = np.array([0] * len(item.negative) + [1] * len(item.positive))
        row[: len(grades)] = grades[np.argsort(-scores, kind="stable")]
        judged.append(grades)
    values = {
        "ndcg_at_10": ranking.ndcg(table, judged, 10),
        "map": ranking.average_precision(table, judged, longest),
        "mrr_at_10": ranking.reciprocal_rank(table, judged, 10),
    }
    return _result(values, [item.query.where for item in data], details)


def _vector_scores(
    subject: Loaded, data: Sequence[Candidates], settings: Settings, progress: Progress
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Return (the similarities or MaxSim of each query's negatives and positives with it, details)."""
    embedder_class = TokenEmbedder if is_multi_vector(subject) else TaskEmbedder
    embedder = embedder_class.of(subject, settings.vectors, batch=settings.batch, dtype=settings.dtype)
    queries = embedder.vectors([item.query for item in data], "query", progress)
    texts = {text.text: text for item in data for text in (*item.negative, *item.positive)}
    vectors = dict(zip(texts, embedder.vectors([*texts.values()], "document", progress), strict=True))
    scores = []
    for query, item in zip(queries, data, strict=True):
        candidates = [vectors[text.text] for text in (*item.negative, *item.positive)]
        if isinstance(embedder, TokenEmbedder):
            scores.append(max_sim_scores([query], candidates)[0])
        else:
            # Equal vectors have equal sums; in a matrix product their last bits may differ.
            scores.append((np.stack(candidates) * query).sum(1))
    return scores, embedder.details()


def _pair_scores(
    subject: Loaded, data: Sequence[Candidates], settings: Settings, progress: Progress
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Return (the logits of each query's negatives and positives with it, details)."""
    for field in dataclasses.fields(TaskVectors):
        value = getattr(settings.vectors, field.name)
        fix = f"{subject.where} is a cross-encoder, which has no vectors; remove it"
        require(value == field.default, f"vectors.{field.name}", value, fix)
    scorer = CrossEncoder.of(subject, batch=settings.batch, dtype=settings.dtype, truncate=True)
    pairs = [(item.query, text) for item in data for text in (*item.negative, *item.positive)]
    logits = scorer.logits(pairs, progress)
    ends = np.cumsum([len(item.negative) + len(item.positive) for item in data])
    return np.split(logits, ends[:-1]), scorer.details()


def _result(values: dict[str, ranking.PerQuery], origins: Sequence[str], details: dict) -> Result:
    metrics: dict[str, float] = {}
    for name, outcomes in values.items():
        metrics |= with_error(name, outcomes.tolist())
    outcomes = Outcomes.of(origins, values["ndcg_at_10"], np.full(len(origins), np.nan))
    return Result(metrics, len(origins), details, outcomes=outcomes)


def read_documents(file: Path) -> dict[str, Text]:
    """Return the texts of a corpus.jsonl by their ids; a title comes before its text.

    Raises:
        BadInput: a line that cannot be read, an id twice, or an empty text.
    """
    texts: dict[str, Text] = {}
    for where, line in nonblank_lines(file):
        value = parse_object(line, where, '{"_id": "...", "text": "..."}')
        name, title = value.get("_id"), check_string(value.get("title") or "", f"{where}: field title")
        if not isinstance(name, str) or not name:
            raise BadInput(f"{where}: field _id is {json.dumps(name)[:40]}; write a text that is not empty")
        check_string(name, f"{where}: field _id")
        if name in texts:
            raise BadInput(f"{where}: the id {json.dumps(name)} is that of {texts[name].where} too; give each its own")
        text = check_string(value.get("text", ""), f"{where}: field text")
        texts[name] = _text(f"{title} {text}".strip(), "field text", where)
    return texts


def _read_qrels(file: Path) -> Iterator[tuple[str, str, str, int]]:
    """Yield (file:line, query, document, grade) of each judgement."""
    for number, (where, line) in enumerate(nonblank_lines(file)):
        cells = line.split("\t") if "\t" in line else line.split()
        if number == 0 and [cell.strip() for cell in cells] == ["query-id", "corpus-id", "score"]:
            continue
        if len(cells) not in (3, 4):
            raise BadInput(f"{where}: {len(cells)} columns; write query-id, corpus-id and score, or query, 0, document and grade")
        try:
            grade = int(cells[-1])
        except ValueError:
            raise BadInput(f"{where}: the grade {cells[-1][:40]!r} is no whole number; write 0, 1, ...") from None
        if abs(grade) > LARGEST_GRADE:
            raise BadInput(f"{where}: the grade {cells[-1][:40]} is too large; write -{LARGEST_GRADE:,} to {LARGEST_GRADE:,}")
        yield where, cells[0], cells[-2], grade


def _text(value: object, name: str, where: str) -> Text:
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{where}: {name} has no text; write some, or remove the line")
    return Text(where, check_string(value, f"{where}: {name}"))


def _names(*names: str) -> tuple[str, ...]:
    return tuple(part for name in names for part in (name, f"{name}_stderr"))


RETRIEVAL = Task(
    read=read_collection,
    score=score_retrieval,
    metrics=_names("ndcg_at_10", "map_at_100", "mrr_at_10", "recall_at_100"),
    options=("limit", "vectors"),
    argument="optional",
)
RERANK = Task(
    read=read_candidates,
    score=score_rerank,
    metrics=_names("ndcg_at_10", "map", "mrr_at_10"),
    options=("limit", "vectors"),
)
