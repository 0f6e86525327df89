"""Speed of generation, beside `transformers` if torch is installed: `python -m benchmarks.micro.generation_speed`.

Models with random weights continue prompts of one length, or read sources, and write as many tokens for each; no text ends
before. It times greedy tokens, samples, samples of a nucleus (top-p), and the same greedy tokens with a higher limit, which shows
whether a token's cost depends on the limit. The products of a token with the same matrices and nothing else show what the
compiler's products leave to be gained. `transformers` must write the same greedy tokens before it is timed, except in bfloat16,
where rounding decides between likely tokens. --model and --rows take several values with commas. It prints Markdown.
"""

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.core import peer_process, timing
from benchmarks.core.peer_process import Kind, Peer
from benchmarks.core.worker_process import WorkerFailed
from benchmarks.micro import script_setup
from benchmarks.step.bytes_read import argument_bytes_read
from zoo import configs, models
from zoo.batch import Batch
from zoo.errors import BadInput, require
from zoo.generation import decode_loop
from zoo.generation.decode_loop import Decoder
from zoo.generation.decoding_settings import GREEDY, Sampling
from zoo.ops.products import OutputMajor, product
from zoo.precision import DTYPES

PEER = Kind("benchmarks.micro.peer_generation", ("torch", "transformers"))
SETTINGS = {
    "greedy": GREEDY,
    "temperature 0.8": Sampling(temperature=0.8),
    "temperature 0.8, top-p 0.9": Sampling(temperature=0.8, top_p=0.9),
}
ALONE = "its products alone"
"""Name of the program of the products of as many tokens as are written, without all else."""
CHUNK = 16
"""Number of tokens sampled by one dispatch, as in `eval.generation.generator`."""


def print_generation_speeds() -> int:
    """Time all models for all numbers of texts, print a table, and return the exit code."""
    options = script_setup.start_measurement(
        "generation_speed",
        __doc__,
        model="gpt2,t5-small,xlnet-base-cased",
        rows="1,8,32",
        prompt=64,
        tokens=64,
        limit=256,
        precision="float32",
        rounds=3,
    )
    require(options.precision in DTYPES, "precision", options.precision, f"choose one of {', '.join(DTYPES)}")
    require(options.limit >= options.tokens, "limit", options.limit, f"choose at least --tokens {options.tokens}")
    counts = options.rows.split(",")
    numbers = all(count.isdecimal() and int(count) > 0 for count in counts)
    require(numbers, "rows", options.rows, "write numbers of texts with commas, such as 1,8,32")
    subjects = [(name, _model(name)) for name in options.model.split(",")]
    for name, model in subjects:
        require(model.generates, "model", name, "it does not generate; choose a decoder or an encoder-decoder")
    print(
        f"{options.prompt} + {options.tokens} tokens, {options.precision}, random weights; medians of {options.rounds} rounds.\n"
    )
    print("| model | texts | tokens | ms per token | tokens/s | GB/s | of copies | over greedy | speed over `transformers` |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|")
    notes: dict[str, None] = {}
    for name, model in subjects:
        params = jax.jit(model.init)(jax.random.key(0))
        for rows in map(int, counts):
            lines, note = _measure(model, params, rows, options)
            notes |= dict.fromkeys(f"{name}, texts: {rows}; {text}." for text in note)
            for line in lines:
                print(f"| {name} | {rows} | {line} |", flush=True)
    print("\nGB/s: bytes of the matrices that a token is multiplied with, over its time. Quotients are those of the same rounds.")
    print("\n".join(notes))
    return 0


def _model(size: str) -> models.Model:
    """Return the model of a size, with the first of its family's heads that generates text, if one does."""
    config = configs.find_size(size)[1].config
    model = models.model(config)
    tasks = model.definition.names if hasattr(config, "task") else ()
    heads = [model, *(models.model(dataclasses.replace(config, task=task)) for task in tasks)]
    return next((head for head in heads if head.generates), model)


def _measure(model: models.Model, params: Any, rows: int, options: Any) -> tuple[list[str], list[str]]:
    """Time all programs for a number of texts; return the lines of the table without their first two cells, and notes."""
    prompts = np.random.default_rng(0).integers(3, model.config.vocab, (rows, options.prompt)).astype(np.int32)
    write, matrices = _generation_program(model, params, prompts, options)
    programs: dict[str, Callable[[], Any]] = {name: write(sampling, options.tokens) for name, sampling in SETTINGS.items()}
    higher = f"greedy, limit {options.limit}"
    programs[higher] = write(GREEDY, options.limit)
    expected = programs["greedy"]()
    if not np.array_equal(programs[higher](), expected):
        raise BadInput(f"--limit {options.limit}: the tokens are not those with --limit {options.tokens}")
    reads = sum(matrix.nbytes for matrix in matrices)
    if matrices:
        programs[ALONE] = _products(matrices, rows, options.tokens)
    notes: list[str] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if reason := PEER.missing_packages():
            notes.append(f"transformers was not timed: {reason}")
        for name, sampling in {} if reason else SETTINGS.items():
            _export(folder, model, params, prompts, options)
            kind = dataclasses.replace(PEER, options={"sampling": dataclasses.asdict(sampling)})
            peer = Peer(kind, folder)
            stack.callback(peer.close)
            try:
                peer.begin()
                tokens = np.array(peer.run()["result"])
            except WorkerFailed as error:
                notes.append(f"transformers was not timed: {error}")
                break
            if sampling == GREEDY and options.precision == "float32" and not np.array_equal(tokens, expected):
                same = np.equal(tokens, expected).mean() if tokens.shape == expected.shape else 0.0
                notes.append(f"transformers was not timed: {same:.1%} of its greedy tokens are the same as here")
                break
            programs[f"transformers, {name}"] = peer.run
        rates: list[float] = []
        seconds = timing.time_interleaved({**programs, "copies": lambda: rates.append(timing.copy_rate(0.2))}, options.rounds)
    notes.append(f"copies {max(rates) / 1e9:.1f} GB/s in the same rounds")
    lines = []
    for name in programs:
        if name.startswith("transformers"):
            continue
        token, peer_seconds = np.median(seconds[name]) / options.tokens, seconds.get(f"transformers, {name.split(', limit')[0]}")
        over = "" if name == ALONE else f"{np.median(seconds[name] / seconds['greedy']):.3f}"
        speed = "" if peer_seconds is None else f"{np.median(peer_seconds / seconds[name]):.2f}"
        rate = f"{reads / token / 1e9:.1f} | {reads / token / max(rates):.0%}" if matrices else " | "
        lines.append(f"{name} | {1e3 * token:.2f} | {rows / token:.0f} | {rate} | {over} | {speed}")
    return lines, notes


def _products(matrices: Sequence[jax.Array], rows: int, count: int) -> Callable[[], Any]:
    """Return a program of the products of `count` tokens of each text with matrices [out, in], one after the other."""

    @jax.jit
    def multiply(matrices: Sequence[jax.Array]) -> jax.Array:
        def token(total: jax.Array, _: None) -> tuple[jax.Array, None]:
            for matrix in matrices:
                x = jnp.broadcast_to(total.astype(matrix.dtype), (rows, matrix.shape[1]))
                total = product(x, OutputMajor(matrix), 1)[0, 0]
            return total, None

        return jax.lax.scan(token, jnp.float32(0), None, length=count)[0]

    return lambda: jax.block_until_ready(multiply(matrices))


def _matrices(model: models.Model, decoder: Decoder, params: Any, *arguments: Any) -> list[jax.Array]:
    """Return the matrices [out, in] that a token is multiplied with; none where parameters are not `OutputMajor`."""
    state, _ = decode_loop.start_decoding.eval_shape(decoder, GREEDY, 1, params, *arguments)
    reads = argument_bytes_read(decode_loop.sample_tokens, decoder, GREEDY, 1, params, state)
    matrices, tables = [], []
    for (path, leaf), read in zip(jax.tree_util.tree_leaves_with_path(params), reads, strict=False):
        if read < leaf.nbytes:
            continue
        if isinstance(path[-1], jax.tree_util.GetAttrKey):
            # Only the kernel after attention has several axes of inputs, and it alone begins with the width.
            shape = (len(leaf), -1) if leaf.ndim > 2 and len(leaf) == model.config.width else (-1, leaf.shape[-1])
            matrices.append(leaf.reshape(shape))
        elif path[-1].key == "embedding" and len(leaf) >= model.config.vocab:
            tables.append(leaf)
    return [*matrices, *tables] if matrices else []


def _generation_program(
    model: models.Model, params: Any, prompts: np.ndarray, options: Any
) -> tuple[Callable[[Sampling, int], Callable[[], Any]], list[jax.Array]]:
    """Return a function of settings and a limit, which returns a program that returns the tokens [B, R]; and `_matrices`."""
    dtype, rows = np.dtype(DTYPES[options.precision]), len(prompts)
    # transformers' XLNet reads the prompt both ways, and the two newest tokens again.
    decoder = Decoder(decode_loop.unroll_layers(model), model.config.vocab, dtype, reread=int(model.reads_both_ways))
    decoding_params = jax.jit(decode_loop.decoding_params, static_argnums=1)(params, dtype)
    segments, positions = np.ones_like(prompts), np.broadcast_to(np.arange(prompts.shape[1], dtype=np.int32), prompts.shape)
    batch = Batch(tokens=prompts, segments=segments, positions=positions)
    if model.is_encoder_decoder:
        begin = np.zeros((rows, 1), np.int32)
        batch = Batch(tokens=begin, segments=begin + 1, positions=begin, source=batch)
    batch = jax.tree.map(jnp.asarray, batch)
    numbers = np.stack([np.arange(rows), np.zeros(rows)]).astype(np.uint32)

    arguments = (decoding_params, batch, np.uint32(0), numbers)

    def write(sampling: Sampling, limit: int) -> Callable[[], np.ndarray]:
        def program() -> np.ndarray:
            parts: list[np.ndarray] = []
            for sampled in decode_loop.decode_continuation(decoder, sampling, *arguments, limit=limit, chunk=CHUNK):
                parts.append(np.asarray(sampled.tokens))
                if sum(map(len, parts)) >= options.tokens:
                    break
            return np.concatenate(parts)[: options.tokens].T

        return program

    return write, _matrices(model, decoder, *arguments)


def _export(folder: Path, model: models.Model, params: Any, prompts: np.ndarray, options: Any) -> None:
    request = {"architecture": model.names.architecture, "tokens": options.tokens, "precision": options.precision}
    peer_process.export_for_peers(folder, model.config, params, request, {"prompts": prompts})


if __name__ == "__main__":
    sys.exit(script_setup.run_measurement(print_generation_speeds))
