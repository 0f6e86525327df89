"""Samples for the report: beginnings of held-out text, continued by the model."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Integer

from eval.generation import cross_attention
from eval.generation.generator import HELD, Generator
from eval.generation.settings import Decoding
from train.inputs.pair_inputs import TextPairs
from train.rows.token_cache import Tokens
from train.run.run_dir import write_json
from train.tokenizers.tokenizer import END_OF_TEXT, Tokenizer
from zoo.generation.settings import GREEDY, Sampling
from zoo.models import Model

PROMPT, CONTINUATION = 48, 96
"""Tokens of each, at most."""
TEMPERATURE, SEED = 0.8, 0


class Beginning(NamedTuple):
    """A piece of text, cut in two."""

    prompt: Integer[np.ndarray, " prompt"]
    """Begins with end-of-text where it begins a document, as rows do in training."""
    truth: Integer[np.ndarray, " truth"]
    """What follows, to the end of the document at most."""


def of_run(file: Path, net: Model, params: Any, mesh: Mesh, data: Any, **how: Any) -> None:
    """`write` of a run's held-out text, where its model continues texts; `write_pairs`, where it writes one for another."""
    if isinstance(data, TextPairs):
        if net.sourced:
            write_pairs(file, net, params, mesh, data, **how)
    elif net.generates and not net.sourced:
        write(file, net, params, mesh, data.tokenizer, data.held_out, **how)


def write(
    file: Path,
    net: Model,
    params: Any,
    mesh: Mesh,
    tokenizer: Tokenizer,
    held_out: Tokens,
    *,
    length: int,
    step: int,
    dtype: Any,
    count: int = 4,
) -> None:
    """Write {"step", "temperature", "seed", "samples": [{"prompt", "text", "truth"}]}: held-out text, how the model goes on, and
    how the text does.

    Every process calls this, and process 0 writes. The same parameters and text give the same samples.

    Args:
        file: RUN/samples.json.
        params: laid out over `mesh`.
        length: tokens in the rows that the model was trained on: it has not learned positions beyond them.
        step: of the parameters.
        dtype: of the arithmetic.
        count: samples.

    Raises:
        BadInput: the model's logits are not finite.
    """
    samples = []
    if found := beginnings(held_out, tokenizer, length, count):
        decoding = Decoding(limit=_continuation(length), seed=SEED, sampling=Sampling(temperature=TEMPERATURE))
        generator = Generator(net, params, mesh, tokenizer, dtype=dtype, batch=count)
        made = generator.generate([each.prompt for each in found], decoding)
        for (prompt, truth), generated in zip(found, made, strict=True):
            shown = tokenizer.decode(prompt).removeprefix(END_OF_TEXT)
            samples.append({"prompt": shown, "text": generated.text, "truth": tokenizer.continuation(truth)})
    if jax.process_index() == 0:
        write_json(file, {"step": step, "temperature": TEMPERATURE, "seed": SEED, "samples": samples})


def write_pairs(
    file: Path, net: Model, params: Any, mesh: Mesh, data: TextPairs, *, length: int, step: int, dtype: Any, count: int = 4
) -> None:
    """Write {"step", "pairs", "samples", "alignment"} of held-out pairs: sources as prompts, the likeliest text that the model
    writes for each, and the one that is wanted; on a single device, also which tokens it looked at in the first of them.

    Args:
        length: tokens of the longest source that the model was trained on: its text is cut there.

    Raises:
        BadInput: the model's logits are not finite.
    """
    rows = data.held_out
    chosen = np.unique(np.linspace(0, len(rows.examples) - 1, count).astype(int)).tolist()
    generator = Generator(net, params, mesh, data.tokenizer, dtype=dtype, batch=count)
    made = generator.generate([rows.sides[each].source for each in chosen], Decoding(limit=length, sampling=GREEDY))
    samples = [
        {"prompt": rows.examples[each].source, "text": written.text, "truth": rows.examples[each].target}
        for each, written in zip(chosen, made, strict=True)
    ]
    found: dict[str, Any] = {"step": step, "pairs": True, "samples": samples}
    if mesh.devices.size == 1:
        # The first sample, looked at once more; dense, so not over a mesh.
        source = rows.sides[chosen[0]].source
        found["alignment"] = cross_attention.record(net, params, data.tokenizer, source, made[0].ids)
    if jax.process_index() == 0:
        write_json(file, found)


def beginnings(held_out: Tokens, tokenizer: Tokenizer, length: int, count: int = 4) -> list[Beginning]:
    """At most `count` evenly spaced beginnings of documents or, where there are too few of them, of words within documents.

    A prompt ends before a word, where there is one. It and its continuation fit into a row of `length` tokens. There are none in
    text that is too short to be cut, or for rows of less than 3 tokens.
    """
    sizes = np.diff(held_out.offsets) - 1
    enough = max(2, min(_prompt(length) + _continuation(length), int(np.median(sizes))))
    documents = np.flatnonzero(sizes >= enough)
    if length < 3 or not len(documents):
        return []
    if len(documents) >= count:
        chosen = documents[np.linspace(0, len(documents) - 1, count).astype(int)]
        places = [(document, 0) for document in chosen.tolist()]
    else:
        ends = np.cumsum(sizes[documents] - enough + 1)
        at = np.unique(np.linspace(0, ends[-1] - 1, count).astype(int))
        which = np.searchsorted(ends, at, side="right")
        before = np.concatenate([[0], ends])[which]
        places = list(zip(documents[which].tolist(), (at - before).tolist(), strict=True))
    return [_cut(held_out, tokenizer, document, start, length) for document, start in places]


def _cut(held_out: Tokens, tokenizer: Tokenizer, document: int, start: int, length: int) -> Beginning:
    first, end = int(held_out.offsets[document]), int(held_out.offsets[document + 1]) - 1
    ids = held_out.ids[first + start : end]
    front = [] if start else [held_out.end_of_text]

    def word(at: int) -> bool:
        return at < len(ids) and tokenizer.spell(int(ids[at]))[:1].isspace()

    if start:
        ids = ids[next(filter(word, range(min(len(ids) // 2, PROMPT))), 0) :]
    most = max(1, min(_prompt(length) - len(front), len(ids) // 2))
    size = next(filter(word, range(most, most // 2, -1)), most)
    # Where words are not set apart, a token may still be part of a character.
    while size > 1 and tokenizer.decode(ids[:size]).endswith(HELD):
        size -= 1
    return Beginning(np.concatenate([front, ids[:size]]).astype(np.int32), ids[size : size + _continuation(length)])


def _prompt(length: int) -> int:
    return min(PROMPT, max(2, length // 3))


def _continuation(length: int) -> int:
    return min(CONTINUATION, length - _prompt(length))
