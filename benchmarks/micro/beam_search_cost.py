"""Cost of a generated token and of a beam search: `python -m benchmarks.micro.beam_search_cost`.

Texts of an encoder-decoder with t5-small's shape and random weights, in float32; no text ends before its limit. Greedy texts of
growing limits show whether the cost of a token depends on how many were generated before it; a search with four beams is timed
in the same rounds. Prints Markdown.
"""

import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.core import timing
from benchmarks.micro import script_setup
from eval.generation.generation_options import Decoding
from eval.generation.generator import Generator
from train.config import run_config
from train.engine import device_mesh
from train.tokenizers.tokenizer import Tokenizer
from zoo import configs, models
from zoo.generation.decoding_settings import GREEDY, Beams

LIMITS = (32, 64, 128, 256)
SEARCHED = 64
BEAMS = 4
SOURCE = 64


def print_token_costs() -> int:
    """Time texts of growing lengths and a beam search, print a table, and return the exit code."""
    options = script_setup.start_measurement("beam_search_cost", __doc__, model="t5-small", rows=4, rounds=5)
    model = models.model(configs.find_size(options.model)[1].config)
    params = jax.jit(model.init)(jax.random.key(0))
    # Only its size and its special tokens matter, not its entries.
    tokenizer = Tokenizer.train(["Call me Ishmael. Some years ago, never mind how long precisely."] * 8, 200, "sentencepiece")
    generator = Generator(
        model, params, device_mesh.make_mesh(run_config.Mesh()), tokenizer, dtype=jnp.float32, batch=options.rows * BEAMS
    )
    rng = np.random.default_rng(0)
    sources = [rng.integers(3, tokenizer.vocab_size, SOURCE).astype(np.int32) for _ in range(options.rows)]

    def written(limit: int, beams: int) -> Callable[[], object]:
        search = Beams(beams=beams, search_until="impossible") if beams > 1 else Beams()
        decoding = Decoding(limit=limit, past_end=True, sampling=GREEDY, search=search)
        return lambda: generator.generate(sources, decoding)

    programs = {f"greedy, {limit} tokens": written(limit, 1) for limit in LIMITS}
    programs[f"{BEAMS} beams, {SEARCHED} tokens"] = written(SEARCHED, BEAMS)
    middle = {name: float(np.median(seconds)) for name, seconds in timing.time_interleaved(programs, options.rounds).items()}
    unit = middle[f"greedy, {SEARCHED} tokens"]
    print(f"| {options.model}, {options.rows} texts, sources of {SOURCE} | time | time of one more token |")
    print("|---|---|---|")
    before: tuple[int, float] | None = None
    for limit in LIMITS:
        seconds = middle[f"greedy, {limit} tokens"]
        more = "" if before is None else f"{(seconds - before[1]) / (limit - before[0]) / (unit / SEARCHED):.2f}"
        print(f"| greedy, {limit} tokens | {seconds / unit:.2f} | {more} |")
        before = limit, seconds
    print(f"| {BEAMS} beams, {SEARCHED} tokens | {middle[f'{BEAMS} beams, {SEARCHED} tokens'] / unit:.2f} | |")
    print(f"\nTimes over that of greedy texts of {SEARCHED} tokens, medians of {options.rounds}.")
    print("The time of one more token is over their mean time per token.")
    return 0


if __name__ == "__main__":
    sys.exit(script_setup.run_measurement(print_token_costs))
