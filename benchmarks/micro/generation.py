"""Speed of generation, beside `transformers` if torch is installed: `python -m benchmarks.micro.generation`.

A model with random weights continues prompts of one length, or reads sources, and writes as many tokens for each; no text ends
before. Greedy tokens, samples, and samples of a nucleus (top-p), and the same greedy tokens with a higher limit, which shows
whether a token's cost depends on how many tokens were asked for. `transformers` must write the same greedy tokens before it is
timed, but in bfloat16, where rounding decides between likely tokens. Prints Markdown.
"""

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.core import peer_process, timing
from benchmarks.core.peer_process import Kind, Peer
from benchmarks.core.worker_process import WorkerFailed
from benchmarks.micro import start_measurement
from zoo import configs, models
from zoo.batch import Batch
from zoo.errors import BadInput, require
from zoo.generation import decode_loop
from zoo.generation.decode_loop import Decoder
from zoo.generation.decoding_settings import GREEDY, Sampling
from zoo.precision import DTYPES

PEER = Kind("benchmarks.micro.peer_generation", ("torch", "transformers"))
SETTINGS = {
    "greedy": GREEDY,
    "temperature 0.8": Sampling(temperature=0.8),
    "temperature 0.8, top-p 0.9": Sampling(temperature=0.8, top_p=0.9),
}
CHUNK = 16
"""Number of tokens sampled by one dispatch, as in `eval.generation.generator`."""


def main() -> int:
    """Run the command."""
    options = start_measurement.start(
        "generation", __doc__, model="gpt2", rows=8, prompt=64, tokens=64, limit=256, precision="float32", rounds=3
    )
    require(options.precision in DTYPES, "precision", options.precision, f"choose one of {', '.join(DTYPES)}")
    require(options.limit >= options.tokens, "limit", options.limit, f"choose at least --tokens {options.tokens}")
    model = models.model(configs.find_size(options.model)[1].config)
    require(model.generates, "model", options.model, "it does not generate; choose a decoder or an encoder-decoder")
    params = jax.jit(model.init)(jax.random.key(0))
    shape = options.rows, options.prompt
    prompts = np.random.default_rng(0).integers(3, model.config.vocab, shape).astype(np.int32)
    write = _ours(model, params, prompts, options)
    programs: dict[str, Callable[[], Any]] = {name: write(sampling, options.tokens) for name, sampling in SETTINGS.items()}
    higher = f"greedy, limit {options.limit}"
    programs[higher] = write(GREEDY, options.limit)
    expected = programs["greedy"]()
    if not np.array_equal(programs[higher](), expected):
        raise BadInput(f"--limit {options.limit}: the tokens are not those with --limit {options.tokens}")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        reason = PEER.missing_packages()
        for name, sampling in {} if reason else SETTINGS.items():
            _export(folder, model, params, prompts, options)
            kind = dataclasses.replace(PEER, options={"sampling": dataclasses.asdict(sampling)})
            peer = Peer(kind, folder)
            stack.callback(peer.close)
            try:
                peer.begin()
                tokens = np.array(peer.run()["result"])
            except WorkerFailed as error:
                reason = str(error)
                break
            if sampling == GREEDY and options.precision == "float32" and not np.array_equal(tokens, expected):
                same = np.equal(tokens, expected).mean() if tokens.shape == expected.shape else 0.0
                raise BadInput(f"transformers writes other greedy tokens: {same:.1%} are the same")
            programs[f"transformers, {name}"] = peer.run
        seconds = timing.interleaved(programs, options.rounds)
    what = f"{options.model}, {options.precision}, {options.rows} texts of {options.prompt} + {options.tokens} tokens"
    print(f"| {what} | time | tokens/s | over greedy | speed over transformers |")
    print("|---|---:|---:|---:|---:|")
    for name in (*SETTINGS, higher):
        middle, peer_seconds = float(np.median(seconds[name])), seconds.get(f"transformers, {name.split(', limit')[0]}")
        over = float(np.median(seconds[name] / seconds["greedy"]))
        speed = "" if peer_seconds is None else f"{float(np.median(peer_seconds / seconds[name])):.2f}"
        rate = options.rows * options.tokens / middle
        print(f"| {name} | {middle:.3f} s | {rate:.0f} | {over:.3f} | {speed} |")
    print(f"\nMedians of {options.rounds} rounds; quotients are those of the same rounds.")
    if reason:
        print(f"transformers was not timed: {reason}.")
    return 0


def _ours(model: models.Model, params: Any, prompts: np.ndarray, options: Any) -> Callable[[Sampling, int], Callable[[], Any]]:
    """Return a function of settings and a limit, which returns a program that returns the tokens [B, R]."""
    dtype, rows = np.dtype(DTYPES[options.precision]), len(prompts)
    # transformers' XLNet reads the prompt both ways, and the two newest tokens again.
    decoder = Decoder(decode_loop.unroll_layers(model), model.config.vocab, dtype, reread=int(model.reads_both_ways))
    decoding_params = jax.jit(decode_loop.decoding_params, static_argnums=1)(params, dtype)
    segments, positions = np.ones_like(prompts), np.broadcast_to(np.arange(prompts.shape[1], dtype=np.int32), prompts.shape)
    batch = Batch(tokens=prompts, segments=segments, positions=positions)
    if model.is_encoder_decoder:
        begin = np.zeros((rows, 1), np.int32)
        batch = Batch(tokens=begin, segments=begin + 1, positions=begin, source=batch)
    batch = jax.tree.map(jax.numpy.asarray, batch)
    numbers = np.stack([np.arange(rows), np.zeros(rows)]).astype(np.uint32)

    def write(sampling: Sampling, limit: int) -> Callable[[], np.ndarray]:
        def program() -> np.ndarray:
            parts: list[np.ndarray] = []
            arguments = (decoding_params, batch, np.uint32(0), numbers)
            for sampled in decode_loop.continuation(decoder, sampling, *arguments, limit=limit, chunk=CHUNK):
                parts.append(np.asarray(sampled.tokens))
                if sum(map(len, parts)) >= options.tokens:
                    break
            return np.concatenate(parts)[: options.tokens].T

        return program

    return write


def _export(folder: Path, model: models.Model, params: Any, prompts: np.ndarray, options: Any) -> None:
    request = {"architecture": model.names.architecture, "tokens": options.tokens, "precision": options.precision}
    peer_process.export(folder, model.config, params, request, {"prompts": prompts})


if __name__ == "__main__":
    sys.exit(start_measurement.run(main))
