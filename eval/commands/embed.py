"""`zoo embed`: a vector for each text, written to a file, or the similarity of the texts."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32
from safetensors.numpy import save

from eval import task_data_files
from eval.commands import terminal_output
from eval.commands.model_options import ModelOptions
from eval.inference import encoder_runner
from eval.inference.encoder_inputs import TaskVectors, Texts, Vectors
from eval.inference.encoder_runner import Encoder, Text
from eval.inference.text_vectors import TaskEmbedder, embed_texts, modules_of, unit_rows
from eval.inference.vector_index import write_index
from eval.tasks.retrieval import read_documents
from train.data.text_files import nonblank_lines
from train.run.progress_display import ProgressBar
from train.run.run_dir import replace_atomically
from zoo.embedding_modules import EmbeddingModules
from zoo.errors import BadInput, cannot_write, require
from zoo.file_access import check_output_file

FORMATS = (".npy", ".safetensors", ".jsonl")


def run_index(model: ModelOptions, source: Texts, *, options: Vectors, index: str) -> int:
    """Write an index of documents for `zoo search`, and return the exit code.

    Args:
        source: files of documents: corpus.jsonl as of BEIR, with `_id`, `text` and perhaps `title`, or .txt, one a line.
        index: the new folder.

    Raises:
        BadInput: see `train.weights.load.load_model`, `eval.tasks.retrieval.read_documents` and `TaskEmbedder`; `index` exists.
    """
    documents = read_corpus(source.files)
    loaded = model.load()
    document_prompt = modules_of(loaded).prompt(options.prompt, loaded.where) if options.prompt else options.prompt_text
    settings = TaskVectors(pool=options.pool, dimensions=options.dimensions, document_prompt=document_prompt)
    embedder = TaskEmbedder.of(loaded, settings, batch=model.batch, dtype=model.dtype(), truncate=source.truncate)
    with ProgressBar("embedding", "texts", before="compiling") as progress:
        vectors = embedder.vectors([*documents.values()], "document", progress)
    write_index(Path(index), embedder, documents, vectors)
    terminal_output.write_output(
        f"{index}: {len(documents):,} documents x {vectors.shape[1]}; zoo search {index} TEXT --model ...\n"
    )
    return 0


def read_corpus(files: Sequence[str], option: str = "--files") -> dict[str, Text]:
    """Return the documents of .jsonl and .txt files by their ids; a line of a .txt has the name of its place.

    Raises:
        BadInput: a file or a line that cannot be read, an id twice, or an empty text.
    """
    documents: dict[str, Text] = {}
    for file in task_data_files.find_data_files(files, (".jsonl", ".txt"), option):
        is_text = file.suffix.lower() == ".txt"
        lines = (Text(where, text) for where, text in nonblank_lines(file)) if is_text else ()
        for name, text in ((Path(text.where).name, text) for text in lines) if is_text else read_documents(file).items():
            if name in documents:
                raise BadInput(
                    f"{text.where}: the id {json.dumps(name)} is that of {documents[name].where} too; give each its own"
                )
            documents[name] = text
    return documents


def run_embed(model: ModelOptions, source: Texts, *, options: Vectors, out: str, as_json: bool) -> int:
    """Embed texts, and write the vectors to a file or print the cosine of every two; return the exit code.

    Args:
        out: .npy, an array; .safetensors, the array as "embeddings"; .jsonl, a line for each text; "" = print.
        as_json: print the lines of the .jsonl.

    Raises:
        BadInput: see `train.weights.load.load_model`, `encoder_runner.read_texts` and `embed_texts`; a file that cannot be
            written, or too many texts for a table.
    """
    file = Path(out) if out else None
    if file is not None:
        _check(file, as_json)
    texts = encoder_runner.read_texts(source)
    if file is None and not as_json:
        _check_table(len(texts))
    encoder = Encoder.of(model.load(), batch=model.batch, dtype=model.dtype())
    vectors = embed_with_progress(encoder, texts, options, truncate=source.truncate, quiet=as_json)
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


def embed_with_progress(
    encoder: Encoder, texts: Sequence[Text], options: Vectors, *, truncate: bool = False, quiet: bool = False
) -> Float32[np.ndarray, "N D"]:
    """Return a vector for each text by the files of the model and the options, which take precedence; see `embed_texts`.

    Raises:
        BadInput: see `embed_texts`; or the model has no prompt of the name.
    """
    modules, prompt = vector_settings(encoder, options)
    with ProgressBar("embedding", "texts", before="compiling", quiet=quiet or jax.process_index() != 0) as progress:
        return embed_texts(
            encoder, texts, modules, prompt=prompt, dimensions=options.dimensions, truncate=truncate, progress=progress
        )


def vector_settings(encoder: Encoder, options: Vectors) -> tuple[EmbeddingModules, str]:
    """Return (the modules of a model's folder with the options in their places, the text of the prompt)."""
    modules = modules_of(encoder.loaded)
    prompt = modules.prompt(options.prompt, encoder.loaded.where) if options.prompt_text is None else options.prompt_text
    pool = modules.pool if options.pool == "auto" else options.pool
    normalize = modules.normalize if options.normalize is None else options.normalize
    return dataclasses.replace(modules, pool=pool, normalize=normalize), prompt


def similarity_table(texts: Sequence[Text], vectors: Float32[np.ndarray, "N D"], columns: int | None) -> str:
    """Return the numbered texts and the cosine similarity of every two of them; a text longer than a line is cut."""
    unit = unit_rows(vectors)
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
