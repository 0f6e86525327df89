"""`zoo embed`: a vector for each text, written to a file, or the similarity of the texts."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32
from safetensors.numpy import save

from eval.commands import terminal_output
from eval.commands.model_options import ModelOptions
from eval.inference import encoder_runner
from eval.inference.encoder_inputs import Texts
from eval.inference.encoder_runner import Encoder, EncoderRow, Text
from train.run.progress_display import ProgressBar
from train.run.run_dir import replace_atomically
from zoo.batch import Batch
from zoo.configs._pooling import Pool
from zoo.errors import BadInput, cannot_write, require
from zoo.file_access import check_output_file
from zoo.models import Model
from zoo.nn.pooling import SMALLEST, pool_tokens, unit_vectors

FORMATS = (".npy", ".safetensors", ".jsonl")


def run_embed(model: ModelOptions, source: Texts, *, pool: Pool, normalize: bool, out: str, as_json: bool) -> int:
    """Embed texts, and write the vectors to a file or print the cosine of every two; return the exit code.

    Args:
        out: .npy, an array; .safetensors, the array as "embeddings"; .jsonl, a line for each text; "" = print.
        as_json: print the lines of the .jsonl.

    Raises:
        BadInput: see `train.weights.load.load_model`, `encoder_runner.read_texts` and `embed`; a file that cannot be written, or
            too many texts for a table.
    """
    file = Path(out) if out else None
    if file is not None:
        _check(file, as_json)
    texts = encoder_runner.read_texts(source)
    if file is None and not as_json:
        _check_table(len(texts))
    encoder = Encoder.of(model.load(), batch=model.batch, dtype=model.dtype())
    vectors = embed(encoder, texts, pool=pool, normalize=normalize, truncate=source.truncate, quiet=as_json)
    if file is not None:
        if jax.process_index() == 0:
            _write(file, texts, vectors)
        terminal_output.write_output(f"{file}: {len(texts):,} x {vectors.shape[1]} float32\n")
    elif as_json:
        for text, vector in zip(texts, vectors, strict=True):
            terminal_output.write_output(_line(text, vector))
    else:
        terminal_output.write_output(similarity_table(texts, vectors, terminal_output.terminal_width()))
    return 0


def embed(
    encoder: Encoder, texts: Sequence[Text], *, pool: Pool, normalize: bool = False, truncate: bool = False, quiet: bool = False
) -> Float32[np.ndarray, "N D"]:
    """Return a vector for each text, from the last hidden states.

    Args:
        pool: see `zoo.configs._pooling.Pool`.
        normalize: divide each vector by its Euclidean length.
        quiet: show no progress.

    Raises:
        BadInput: a text that is too long, or a vector that is not finite.
    """
    tokenizer = encoder.loaded.tokenizer
    ids = list(tokenizer.encode_many(text for _, text in texts))
    tokens = [
        encoder.with_special_tokens(text_ids, where, truncate=truncate) for text_ids, (where, _) in zip(ids, texts, strict=True)
    ]
    rows = [EncoderRow(number, texts[number].where, text_tokens) for number, text_tokens in enumerate(tokens)]
    vectors = np.empty((len(rows), encoder.loaded.model.config.width), np.float32)
    with ProgressBar("embedding", "texts", before="compiling", quiet=quiet or jax.process_index() != 0) as progress:
        for done, (row, (vector,)) in enumerate(encoder.run(rows, _Pooled(pool, normalize)), 1):
            vectors[row.number] = vector
            progress(done, len(rows))
    return vectors


def similarity_table(texts: Sequence[Text], vectors: Float32[np.ndarray, "N D"], columns: int | None) -> str:
    """Return the numbered texts and the cosine similarity of every two of them; a text longer than a line is cut."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), SMALLEST)
    numbers = range(1, len(texts) + 1)
    listed = [
        f"{number:>{NUMBER}}  {terminal_output.text_excerpt(text, 0, 0, columns and columns - NUMBER - 2)}"
        for number, (_, text) in zip(numbers, texts, strict=True)
    ]
    head = " " * NUMBER + "".join(f"{number:>{COSINE}}" for number in numbers)
    body = [
        f"{number:>{NUMBER}}" + "".join(f"{value:>{COSINE}.3f}" for value in row)
        for number, row in zip(numbers, unit @ unit.T, strict=True)
    ]
    return "\n".join([*listed, "", head, *body]) + "\n"


NUMBER, COSINE = 3, 7
"""Terminal columns of a text's number and of a cosine."""
NARROWEST = 80


def _check(file: Path, as_json: bool) -> None:
    """Refuse a file that cannot be written, before anything is computed."""
    require(file.suffix in FORMATS, "out", file, f"name a file that ends in {', '.join(FORMATS)}")
    if as_json:
        raise BadInput(f"--json: it prints the vectors, and --out writes them to {file}; give only one of the two")
    check_output_file(file, "out")


def _check_table(texts: int) -> None:
    limit = ((terminal_output.terminal_width() or NARROWEST) - NUMBER) // COSINE
    if texts == 1:
        raise BadInput("--out: a single text cannot be compared; give several, name a file to write, or add --json")
    if texts > limit:
        raise BadInput(f"--out: a table of {texts:,} texts is too wide (at most {limit}); name a file to write, or add --json")


def _write(file: Path, texts: Sequence[Text], vectors: Float32[np.ndarray, "N D"]) -> None:
    try:
        with replace_atomically(file) as stream:
            if file.suffix == ".npy":
                np.save(stream, vectors)
            elif file.suffix == ".safetensors":
                stream.write(save({"embeddings": vectors}))
            else:
                stream.writelines(_line(text, vector).encode() for text, vector in zip(texts, vectors, strict=True))
    except OSError as error:
        raise cannot_write(f"--out {file}:", error) from None


def _line(text: Text, vector: Float32[np.ndarray, " D"]) -> str:
    # The shortest decimal that is read as the same float32.
    numbers = ", ".join(np.format_float_positional(value, trim="0") for value in vector)
    return f'{{"text": {json.dumps(text.text, ensure_ascii=False)}, "embedding": [{numbers}]}}\n'


@dataclasses.dataclass(frozen=True)
class _Pooled:
    """The computation of the vectors, float32 [B, D]."""

    pool: Pool
    normalize: bool

    def __call__(self, model: Model, params: Any, batch: Batch) -> tuple[jax.Array]:
        vectors = pool_tokens(model.apply(params, batch).hidden.astype(jnp.float32), batch, self.pool)
        return (unit_vectors(vectors) if self.normalize else vectors,)
