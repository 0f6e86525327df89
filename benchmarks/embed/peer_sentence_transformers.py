"""sentence-transformers on torch: its own `encode`, with its defaults, in float32 as ours."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]


def build(folder: Path, request: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Callable[[], int]:
    """Return a function that computes the vectors of `arrays["texts"]`, and writes them into the folder at its first call.

    Args:
        folder: of the request, where the vectors are written.
        request: "model" is the folder of the model, "batch" the texts of a batch, "vectors" the name of the file of vectors.
        arrays: the texts.
    """
    # The processors that this process may use, also after `taskset`; XLA counts them likewise.
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    file = folder / request["vectors"]
    # By default the dtype is that of the folder.
    options = {"dtype": torch.float32}
    model, texts = sentence_transformers.SentenceTransformer(request["model"], model_kwargs=options), arrays["texts"].tolist()

    def run() -> int:
        vectors = model.encode(texts, batch_size=request["batch"], show_progress_bar=False)
        if not file.exists():
            np.save(file, vectors)
        return len(vectors)

    return run
