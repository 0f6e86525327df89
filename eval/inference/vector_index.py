"""A folder with the vectors of documents: INDEX/vectors.npy (a memory map), texts.jsonl, and index.json with their settings."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32

from eval.inference.encoder_runner import Text
from eval.inference.text_vectors import TaskEmbedder, check_similarity
from train.config.from_json import from_json
from train.data.text_files import decoded_lines
from train.run.run_dir import write_json
from train.weights.load import Loaded
from zoo.configs._pooling import Pool
from zoo.embedding_modules import EmbeddingModules
from zoo.errors import BadInput, no_such_file
from zoo.file_access import open_regular
from zoo.hf import safetensors_dir
from zoo.hf.config_json import LARGEST_FILE, read_json

VECTORS, TEXTS, INDEX = "vectors.npy", "texts.jsonl", "index.json"
AGAIN = "write the index again with `zoo embed MODEL --files ... --index DIR`"


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """The content of index.json."""

    model: str
    """The model as the command named it."""
    step: int | None
    """Step of the checkpoint of a run."""
    digest: str
    """See `digest_of_model`."""
    pool: Pool
    prompt: str
    """Text that was put before each document."""
    dimensions: int
    similarity: str
    """cosine (the vectors have length 1) or dot."""
    number: int
    """Number of documents."""


def digest_of_model(loaded: Loaded, modules: EmbeddingModules) -> str:
    """Return a SHA-256 digest that changes with the parameters, the tokenizer and the modules that a vector depends on.

    A run and its export have one digest, whatever its folder and the mesh are.
    """
    digest = hashlib.sha256(f"{loaded.model.family} {loaded.tokenizer.fingerprint}".encode())
    settings = (modules.include_prompt, modules.normalize, modules.longest, modules.lowercase)
    digest.update(json.dumps([settings, [layer.activation for layer in modules.dense]]).encode())
    arrays = jax.tree_util.tree_leaves_with_path(loaded.params)
    named = [(jax.tree_util.keystr(path), leaf) for path, leaf in arrays]
    named += [
        (f"dense {i}", part) for i, layer in enumerate(modules.dense) for part in (layer.kernel, layer.bias) if part is not None
    ]
    for name, leaf in named:
        array = np.ascontiguousarray(jax.device_get(leaf))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write_index(folder: Path, embedder: TaskEmbedder, documents: Mapping[str, Text], vectors: Float32[np.ndarray, "N D"]) -> None:
    """Write a new index, atomically.

    Raises:
        BadInput: the folder exists, or cannot be written.
    """
    loaded, modules = embedder.encoder.loaded, embedder.modules
    settings = IndexSettings(
        model=loaded.where,
        step=loaded.step,
        digest=digest_of_model(loaded, modules),
        pool=modules.pool,
        prompt=embedder.prompt("document"),
        dimensions=vectors.shape[1],
        similarity=check_similarity(loaded, modules),
        number=len(documents),
    )
    with safetensors_dir.new_folder(folder) as new_folder:
        np.save(new_folder / VECTORS, vectors)
        lines = (json.dumps({"id": name, "text": text.text}, ensure_ascii=False) for name, text in documents.items())
        (new_folder / TEXTS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        write_json(new_folder / INDEX, dataclasses.asdict(settings))


def read_index(folder: Path) -> tuple[IndexSettings, Float32[np.ndarray, "N D"]]:
    """Return the settings of an index, and its vectors as a memory map.

    Raises:
        BadInput: not an index, or a damaged one.
    """
    for name in (INDEX, VECTORS, TEXTS):
        if not (folder / name).exists():
            raise no_such_file(folder / name)
    settings = from_json(IndexSettings, read_json(folder / INDEX, LARGEST_FILE), str(folder / INDEX), fix=AGAIN)
    file = folder / VECTORS
    try:
        open_regular(file).close()
        vectors = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{file}: no array ({' '.join(str(error).split())[:80]}); {AGAIN}") from None
    expected = (settings.number, settings.dimensions)
    if vectors.shape != expected or vectors.dtype != np.float32:
        raise BadInput(f"{file}: {vectors.dtype} {vectors.shape}, and {INDEX} says float32 {expected}; {AGAIN}")
    return settings, vectors


def check_model(folder: Path, settings: IndexSettings, loaded: Loaded, modules: EmbeddingModules) -> None:
    """Refuse a model that the vectors of an index are not from.

    Raises:
        BadInput: names both.
    """
    if (similarity := check_similarity(loaded, modules)) != settings.similarity:
        raise BadInput(f"--model {loaded.where}: it compares by {similarity}, and {folder} is for {settings.similarity}; {AGAIN}")
    if digest_of_model(loaded, modules) != settings.digest:
        step = "" if settings.step is None else f" at step {settings.step:,}"
        raise BadInput(
            f"--model {loaded.where}: {folder} has vectors of another model, {settings.model}{step}; name that one, or {AGAIN}"
        )


def read_entries(folder: Path, rows: Sequence[int]) -> list[tuple[str, str]]:
    """Return (id, text) of rows of an index.

    Raises:
        BadInput: texts.jsonl is damaged or too short.
    """
    file, numbers = folder / TEXTS, set(rows)
    entries = {}
    for number, (line, text) in enumerate(itertools.islice(decoded_lines(file), max(numbers, default=-1) + 1)):
        if number in numbers:
            try:
                value = json.loads(text)
                entries[number] = str(value["id"]), str(value["text"])
            except (ValueError, KeyError, TypeError, RecursionError):
                raise BadInput(f"{file}:{line}: not an object with id and text; {AGAIN}") from None
    if len(entries) < len(numbers):
        raise BadInput(f"{file}: fewer lines than vectors; {AGAIN}")
    return [entries[row] for row in rows]
