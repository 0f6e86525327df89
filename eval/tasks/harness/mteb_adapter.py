"""Adapter for mteb, the Massive Text Embedding Benchmark: `mteb.evaluate(MtebEncoder(load("runs/embed")), tasks=[...])`.

Importing this module needs the package mteb, which brings torch and is no dependency of the zoo.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from eval.inference.encoder_inputs import TaskVectors
from eval.inference.encoder_runner import Text
from eval.inference.text_vectors import Side, TaskEmbedder
from train.weights.load import Loaded
from zoo.errors import BadInput

try:
    from mteb.models import ModelMeta  # pyright: ignore[reportMissingImports]
    from mteb.similarity_functions import dot_score, pairwise_dot_score  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "mteb":
        raise
    raise BadInput("mteb is not installed; install it with pip install mteb, in an environment that may hold torch") from None

SIDES: dict[str | None, Side] = {None: "sentence", "query": "query", "document": "document"}
"""mteb's type of a prompt -> side of a comparison."""


class MtebEncoder:
    """A loaded encoder with the interface of mteb's `EncoderProtocol`, over its mesh.

    Vectors are those of the zoo's tasks: of length 1, unless the model compares queries and documents by the dot product. Prompts
    are those of the model's folder or of the options; the instructions that mteb has for a task are not used. Texts that are
    longer than the model reads are cut.
    """

    def __init__(self, subject: Loaded, *, vectors: TaskVectors | None = None, batch: int = 16, dtype: Any = jnp.float32) -> None:
        """Take the options of the vectors and of the arithmetic.

        Args:
            vectors: pooling, dimensions and prompts; None = as the folder of the model says.
            batch: see `eval.inference.encoder_runner.Encoder.of`; it takes the place of mteb's `batch_size`.
            dtype: dtype of the arithmetic.

        Raises:
            BadInput: the model is no encoder, or its modules are not supported; see `TaskEmbedder.of`.
        """
        self._embedder = TaskEmbedder.of(subject, TaskVectors() if vectors is None else vectors, batch=batch, dtype=dtype)
        self._subject = subject

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> Float32[np.ndarray, "N D"]:
        """Return the vectors of texts, in their order.

        Args:
            inputs: batches with a list of texts as "text", for example a `DataLoader`.
            task_metadata: the task, whose name is that of the texts in messages.
            hf_split: no effect; as are `hf_subset` and `kwargs`.
            hf_subset: see there.
            prompt_type: query, document, or None for texts that are compared with each other.
            kwargs: options of mteb's own models.

        Raises:
            BadInput: a batch without texts, such as one of images, or a type of prompt that the zoo does not have.
        """
        texts = []
        for batch in inputs:
            if "text" not in batch:
                raise BadInput(f"{task_metadata.name}: its inputs are {', '.join(batch)}; choose a task of texts")
            texts += batch["text"]
        name = getattr(prompt_type, "value", prompt_type)
        if name not in SIDES:
            raise BadInput(f"{task_metadata.name}: there is no type of prompt {name!r}; choose query, document or None")
        named = [Text(f"{task_metadata.name}, text {number}", text) for number, text in enumerate(texts, 1)]
        return self._embedder.vectors(named, SIDES[name])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the dot products of all pairs, a torch tensor [N, M]: the model's similarity, by the form of its vectors."""
        return dot_score(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the dot product of each pair, a torch tensor [N]."""
        return pairwise_dot_score(embeddings1, embeddings2)

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Description of the model in mteb's results."""
        embedder, subject = self._embedder, self._subject
        parameters = sum(leaf.size for leaf in jax.tree.leaves(subject.params))
        width = embedder.options.dimensions or embedder.modules.width(subject.model.config.width)
        fields = {
            "name": f"zoo/{Path(subject.name).name.replace(' ', '-')}",
            "revision": "no_revision_available",
            "n_parameters": parameters,
            "max_tokens": embedder.longest,
            "embed_dim": width,
            "similarity_fn_name": embedder.modules.similarity,
            "open_weights": True,
        }
        return ModelMeta.create_empty(fields)
