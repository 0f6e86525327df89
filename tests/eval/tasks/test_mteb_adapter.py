"""mteb asks a zoo encoder: the same metrics as the zoo's own tasks, from local data alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.eval.tasks.test_embedding_tasks import score, sentences, unit
from tests.support import encoders
from tests.support.text_tasks import write
from zoo.errors import BadInput

pytestmark = pytest.mark.parity
QRELS = {f"q{i}": {f"d{(3 * i) % 8}": 2, f"d{(3 * i + 1) % 8}": 1} for i in range(4)}


@pytest.fixture
def mteb() -> Any:
    """The package, which is in no group of this project: `pip install mteb` in the environment of the parity group."""
    return pytest.importorskip("mteb", reason="mteb is not installed")


@pytest.fixture
def encoder(mteb: Any) -> Any:
    from eval.tasks.harness.mteb_adapter import MtebEncoder

    return MtebEncoder(encoders.loaded("bert"), batch=4)


def pairs() -> list[dict[str, Any]]:
    texts = sentences(12)
    return [{"sentence1": texts[i], "sentence2": texts[(5 * i + 1) % 12], "score": (i * 7) % 5 / 2} for i in range(12)]


def evaluated(mteb: Any, encoder: Any, task: Any) -> dict[str, Any]:
    result = mteb.evaluate(encoder, task, cache=None, co2_tracker=False, show_progress_bar=False)
    return result.task_results[0].scores["test"][0]


def test_sts_of_mteb_has_the_correlations_of_our_task(mteb: Any, encoder: Any, tmp_path: Path) -> None:
    import datasets
    from mteb.mocks.mock_tasks.sts import MockSTSTask  # pyright: ignore[reportMissingImports]

    class LocalPairs(MockSTSTask):
        def load_data(self, **_: Any) -> None:
            self.dataset = datasets.DatasetDict({"test": datasets.Dataset.from_list(pairs())})
            self.data_loaded = True

    assert isinstance(encoder, mteb.EncoderProtocol)
    theirs = evaluated(mteb, encoder, LocalPairs())
    ours = score("sts", write(tmp_path / "a.jsonl", *pairs())).metrics
    assert theirs["spearman"] == pytest.approx(ours["spearman"], abs=1e-6)
    assert theirs["cosine_spearman"] == pytest.approx(ours["spearman"], abs=1e-6)
    assert theirs["pearson"] == pytest.approx(ours["pearson"], abs=1e-5)


def test_retrieval_of_mteb_has_the_metrics_of_our_task(mteb: Any, encoder: Any, tmp_path: Path) -> None:
    import datasets
    from mteb.mocks.mock_tasks.retrieval import MockRetrievalTask  # pyright: ignore[reportMissingImports]

    texts = sentences(12)
    queries = [{"id": f"q{i}", "text": texts[8 + i]} for i in range(4)]
    corpus = [{"id": f"d{i}", "text": texts[i], "title": ""} for i in range(8)]

    class LocalDocuments(MockRetrievalTask):
        def load_data(self, **_: Any) -> None:
            split = {"queries": queries, "corpus": corpus}
            tables = {name: datasets.Dataset.from_list(rows) for name, rows in split.items()}
            self.dataset = {"default": {"test": {**tables, "relevant_docs": QRELS, "top_ranked": None}}}
            self.data_loaded = True

    task = LocalDocuments()
    task.metadata = task.metadata.model_copy(update={"eval_splits": ["test"]})
    theirs = evaluated(mteb, encoder, task)
    (tmp_path / "qrels").mkdir()
    write(tmp_path / "corpus.jsonl", *[{"_id": row["id"], "text": row["text"]} for row in corpus])
    write(tmp_path / "queries.jsonl", *[{"_id": row["id"], "text": row["text"]} for row in queries])
    lines = [f"{query}\t{name}\t{grade}" for query, grades in QRELS.items() for name, grade in grades.items()]
    write(tmp_path / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore", *lines)
    ours = score("retrieval", str(tmp_path)).metrics
    for name in ("ndcg_at_10", "map_at_100", "recall_at_100"):
        assert theirs[name] == pytest.approx(ours[name], abs=1e-5)  # mteb rounds to five digits


def test_vectors_follow_the_batches_and_other_inputs_are_refused(encoder: Any) -> None:
    class Task:
        name = "a task"

    options: dict[str, Any] = {"task_metadata": Task, "hf_split": "test", "hf_subset": "default"}
    texts = sentences(5)
    vectors = encoder.encode([{"text": list(texts[:3])}, {"text": list(texts[3:])}], **options)
    expected = np.stack([unit(text) for text in texts])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(encoder.similarity(vectors, vectors[:2]), expected @ expected[:2].T, atol=1e-5)
    np.testing.assert_allclose(encoder.similarity_pairwise(vectors, vectors), np.ones(5), atol=1e-5)
    assert encoder.mteb_model_meta.embed_dim == vectors.shape[1]
    with pytest.raises(BadInput, match="its inputs are image; choose a task of texts"):
        encoder.encode([{"image": []}], **options)
    with pytest.raises(BadInput, match="no type of prompt 'answer'"):
        encoder.encode([{"text": ["a"]}], prompt_type="answer", **options)
