"""`zoo generate`: text on the terminal, or JSON, or a table of which continuation is the likelier."""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from eval.commands import terminal
from eval.generation import prompts as texts
from eval.generation.generator import CHUNK, Generator
from eval.generation.settings import Decoding, Prompts
from eval.scoring.likelihood import Likelihood, encode, likelihoods
from train.config import run_config
from train.engine import device_mesh
from train.engine.step import DTYPES
from train.weights import load
from train.weights.load import Loaded
from zoo.errors import require


def main(
    where: str,
    asked: Prompts,
    decoding: Decoding,
    *,
    step: int | None,
    batch: int,
    precision: run_config.Precision,
    mesh: run_config.Mesh,
    as_json: bool,
) -> int:
    """Continue prompts, or score the choices given for them, and print the result. Returns the exit code.

    One continuation is printed as it comes; several follow each other when all are there. A reader that leaves, and Ctrl-C, end
    it as the command line says (BrokenPipeError, KeyboardInterrupt).

    Args:
        where, step: what to load, see `train.weights.load.load`.
        batch: rows computed at a time.
        as_json: one object a line for each continuation, or each prompt with its choices.

    Raises:
        BadInput: see `train.weights.load.load`, `eval.generation.prompts`, `eval.generation.generator` and
        `eval.scoring.likelihood`.
    """
    require(batch >= 1, "batch", batch, "choose 1 or more rows")
    decoding = dataclasses.replace(decoding, stop=tuple(map(_unescaped, decoding.stop)))
    prompts, decoding = _prompts(asked, decoding)
    loaded = load.load(where, device_mesh.make(mesh), step)
    if precision == "auto":
        precision = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    lines = _choose if asked.choices else _generate
    for text in lines(loaded, prompts, asked, decoding, batch, DTYPES[precision], as_json):
        terminal.say(text)
    return 0


def _prompts(asked: Prompts, decoding: Decoding) -> tuple[list[str], Decoding]:
    """The prompts; a few-shot prompt also ends its answer where the template goes on, unless told where."""
    if asked.prompts_file:
        return texts.read_prompts(asked.prompts_file), decoding
    if not asked.examples:
        return list(asked.prompt), decoding
    template = _unescaped(asked.template)
    shot = texts.few_shot(texts.read_examples(asked.examples, template), template, texts.parse_query(asked.query))
    if shot.stop and not decoding.stop:
        decoding = dataclasses.replace(decoding, stop=(shot.stop,))
    # A space before the answer belongs to its first token; choices are encoded with their prompt and keep it.
    return [shot.text if asked.choices else shot.text.rstrip(" ")], decoding


def _generate(
    loaded: Loaded, prompts: list[str], asked: Prompts, decoding: Decoding, batch: int, dtype: Any, as_json: bool
) -> Iterator[str]:
    """What is printed, piece by piece. A text is shown after its prompt; an answer to examples, or to a source, alone."""
    mark = [loaded.tokenizer.end_of_text] if asked.begin else []
    # A source is a whole text.
    after = [loaded.tokenizer.end_of_text] if loaded.net.sourced else []
    ids = [np.array([*mark, *prompt, *after], np.int32) for prompt in loaded.tokenizer.encode_many(prompts)]
    generator = Generator(loaded.net, loaded.params, loaded.mesh, loaded.tokenizer, dtype=dtype, batch=batch)
    shown = [""] * len(prompts) if asked.examples or loaded.net.sourced else prompts
    if len(ids) * decoding.samples == 1 and not as_json and decoding.search.beams == 1:
        # Several processes run one program, and only the first has the terminal.
        watched = sys.stdout.isatty() and jax.process_count() == 1
        pieces = generator.stream(ids[0], decoding, chunk=1 if watched else CHUNK)
        # The first piece is waited for: a prompt that is refused is not shown.
        first = next(pieces, "")
        yield shown[0] + first
        yield from pieces
        yield "\n"
        return
    for each in generator.generate(ids, decoding, progress=terminal.progress):
        if as_json:
            facts = {"prompt": prompts[each.prompt], "sample": each.sample, "text": each.text}
            facts |= {"tokens": len(each.ids), "ended": each.ended}
            facts |= {} if each.score is None else {"score": each.score}
            yield json.dumps(facts, ensure_ascii=False) + "\n"
        else:
            title = f"prompt {each.prompt + 1} of {len(prompts)}, sample {each.sample + 1} of {decoding.samples}"
            yield f"--- {title}, ended by {each.ended}\n{shown[each.prompt]}{each.text}\n"


def _choose(
    loaded: Loaded, prompts: list[str], asked: Prompts, decoding: Decoding, batch: int, dtype: Any, as_json: bool
) -> Iterator[str]:
    """A table, or an object, for each prompt: its choices, the likelier first."""
    pairs = encode(loaded.tokenizer, [(prompt, choice) for prompt in prompts for choice in asked.choices])
    if asked.begin:
        # An empty prompt is the mark already.
        given = [prompt for prompt in prompts for _ in asked.choices]
        mark = np.array([loaded.tokenizer.end_of_text], np.int32)
        pairs = [
            (np.concatenate([mark, np.asarray(context)]) if prompt.rstrip() else context, continuation)
            for prompt, (context, continuation) in zip(given, pairs, strict=True)
        ]
    found = likelihoods(loaded.net, loaded.params, loaded.mesh, pairs, batch=batch, dtype=dtype, progress=terminal.progress)
    for number, prompt in enumerate(prompts):
        mine = found[number * len(asked.choices) :][: len(asked.choices)]
        ranked = sorted(zip(asked.choices, mine, strict=True), key=lambda each: each[1].nats)
        if as_json:
            rows = [
                {"text": text, "log_likelihood": -each.nats, "per_token": -each.nats / each.tokens, "tokens": each.tokens}
                for text, each in ranked
            ]
            yield json.dumps({"prompt": prompt, "choices": rows}, ensure_ascii=False) + "\n"
        else:
            title = f"--- prompt {number + 1} of {len(prompts)}\n" if len(prompts) > 1 else ""
            yield title + _table(ranked)


def _table(ranked: Sequence[tuple[str, Likelihood]]) -> str:
    names = [json.dumps(text, ensure_ascii=False) for text, _ in ranked]
    wide = max(len("choice"), *map(len, names))
    lines = [f"{'choice':<{wide}}  {'log likelihood':>14}  {'per token':>9}  tokens"]
    for name, (_, each) in zip(names, ranked, strict=True):
        lines.append(f"{name:<{wide}}  {-each.nats:>14.4f}  {-each.nats / each.tokens:>9.4f}  {each.tokens:>6}")
    return "\n".join(lines) + "\n"


def _unescaped(text: str) -> str:
    r"""Text as typed in a shell, where \n and \t are hard to write otherwise."""
    return text.replace("\\n", "\n").replace("\\t", "\t")
