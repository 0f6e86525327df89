"""`zoo generate`: text on the terminal, JSON, or a table of the likelihoods of given continuations."""

import dataclasses
import json
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int32

from eval.commands import terminal_output
from eval.commands.model_options import ModelOptions
from eval.generation import prompts as texts
from eval.generation.conversation import without_first_space
from eval.generation.folder_settings import make_generator, resolve_settings
from eval.generation.generation_options import Decoding, Prompts
from eval.generation.generator import CHUNK
from eval.inference.likelihood import Likelihood, encode, likelihoods
from train.run.progress_display import ProgressBar
from train.tokenizers.chat_template import chat_template
from train.tokenizers.chat_token_ids import encode_prompts, end_mark
from train.weights.generation_settings import read_generation
from train.weights.load import Loaded
from train.weights.resolve_model_name import resolve_model_name
from zoo.errors import require


def run_generate(
    model: ModelOptions, source: Prompts, decoding: Decoding, *, as_json: bool, explicit: Collection[str] = ()
) -> int:
    """Continue prompts, or score the given choices for them, and print the result; return the exit code.

    A single continuation is printed while it is generated; several are printed when all are finished. A closed pipe and Ctrl-C
    end it, handled by the command line (BrokenPipeError, KeyboardInterrupt).

    Args:
        as_json: print a JSON object for each continuation, or for each prompt with its choices.
        explicit: names of the fields of `decoding` and its parts that were given; the model's folder may set the others.

    Raises:
        BadInput: see `train.weights.load.load_model`, `eval.generation.prompts`, `eval.generation.generator` and
        `eval.inference.likelihood`.
    """
    require(model.batch >= 1, "batch", model.batch, "choose 1 or more rows")
    one_way = not source.choices or decoding.read == "left-to-right"
    require(one_way, "read", decoding.read, "--choices are scored from left to right; leave --read or --choices out")
    decoding = with_typed_stops(decoding)
    prompts, decoding = _prompts(source, decoding)
    if not source.choices:
        decoding = resolve_decoding(model, decoding, {*explicit, *(("stop",) if decoding.stop else ())})
    loaded = model.load()
    lines = _choose if source.choices else _generate
    for text in lines(loaded, prompts, source, decoding, model.batch, model.dtype(), as_json):
        terminal_output.write_output(text)
    return 0


def resolve_decoding(model: ModelOptions, decoding: Decoding, explicit: Collection[str]) -> Decoding:
    """Return the settings with those of the model's folder, which are printed to stderr, before its weights are read."""
    resolved = resolve_settings(decoding, explicit, read_generation(resolve_model_name(model.source, model.step)))
    if model.machine.process == 0:
        for line in resolved.notices():
            print(f"! {line}", file=sys.stderr)
    return resolved.decoding


def _prompts(source: Prompts, decoding: Decoding) -> tuple[list[str], Decoding]:
    """Return the prompts; a few-shot prompt also sets the text that ends its answer, unless `decoding` has one."""
    if source.prompts_file:
        return texts.read_prompts(source.prompts_file), decoding
    if not source.examples:
        return list(source.prompt), decoding
    template = _unescaped(source.template)
    shot = texts.few_shot(texts.read_template_fields(source.examples, template), template, texts.parse_query(source.query))
    if shot.stop and not decoding.stop:
        decoding = dataclasses.replace(decoding, stop=(shot.stop,))
    # A space before the answer belongs to its first token; choices are encoded together with their prompt and keep it.
    return [shot.text if source.choices else shot.text.rstrip(" ")], decoding


def _generate(
    loaded: Loaded, prompts: list[str], source: Prompts, decoding: Decoding, batch: int, dtype: Any, as_json: bool
) -> Iterator[str]:
    """Yield the output in parts: a text after its prompt; an answer to examples, or to a source text, alone."""
    start = [loaded.tokenizer.begin_of_text] if source.begin else []
    # A source is a complete text.
    end = [loaded.tokenizer.end_of_text] if loaded.model.is_encoder_decoder else []
    encoded, mark = _chat(loaded, prompts) if source.chat else (loaded.tokenizer.encode_many(prompts), None)
    ids = [np.array([*start, *prompt, *end], np.int32) for prompt in encoded]
    generator = make_generator(loaded, mark, dtype=dtype, batch=batch)
    alone = source.examples or source.chat or loaded.model.is_encoder_decoder
    printed_prompts = [""] * len(prompts) if alone else prompts
    if len(ids) * decoding.samples == 1 and not as_json and decoding.search.beams == 1:
        # Several processes run one program, and only the first has the terminal.
        live = sys.stdout.isatty() and jax.process_count() == 1
        parts = generator.stream(ids[0], decoding, chunk=1 if live else CHUNK)
        parts = without_first_space(parts) if source.chat else parts
        # The prompt is printed together with the first part, so that a refused prompt is not printed.
        first = next(parts, "")
        yield printed_prompts[0] + first
        yield from parts
        yield "\n"
        return
    with ProgressBar("generating", "texts", before="compiling", quiet=as_json or jax.process_index() != 0) as progress:
        continuations = generator.generate(ids, decoding, progress=progress)
    for generated in continuations:
        written = generated.text.lstrip() if source.chat else generated.text
        if as_json:
            facts = {"prompt": prompts[generated.prompt], "sample": generated.sample, "text": written}
            facts |= {"tokens": len(generated.ids), "ended": generated.ended}
            facts |= {} if generated.score is None else {"score": generated.score}
            yield json.dumps(facts, ensure_ascii=False) + "\n"
        else:
            title = f"prompt {generated.prompt + 1} of {len(prompts)}, sample {generated.sample + 1} of {decoding.samples}"
            yield f"--- {title}, ended by {generated.ended}\n{printed_prompts[generated.prompt]}{written}\n"


def _chat(loaded: Loaded, prompts: list[str]) -> tuple[list[Int32[np.ndarray, " n"]], int | None]:
    """Return the ids of prompts as turns of users, and the id that ends an answer; None = end-of-text."""
    template = chat_template(loaded.tokenizer, loaded.where)
    ids = encode_prompts(prompts, loaded.tokenizer, template)
    # The text of an encoder-decoder ends with end-of-text, like the target of every pair.
    return ids, None if loaded.model.is_encoder_decoder else end_mark(loaded.tokenizer, template)


def _choose(
    loaded: Loaded, prompts: list[str], source: Prompts, decoding: Decoding, batch: int, dtype: Any, as_json: bool
) -> Iterator[str]:
    """Yield a table, or an object, for each prompt: its choices, the most likely first."""
    pairs = encode(loaded.tokenizer, [(prompt, choice) for prompt in prompts for choice in source.choices])
    if source.begin:
        # An empty prompt is already encoded as this token.
        repeated_prompts = [prompt for prompt in prompts for _ in source.choices]
        start = np.array([loaded.tokenizer.begin_of_text], np.int32)
        pairs = [
            (np.concatenate([start, np.asarray(context)]) if prompt.rstrip() else context, continuation)
            for prompt, (context, continuation) in zip(repeated_prompts, pairs, strict=True)
        ]
    with ProgressBar("scoring", "choices", before="compiling", quiet=as_json or jax.process_index() != 0) as progress:
        results = likelihoods(loaded, pairs, batch=batch, dtype=dtype, progress=progress)
    for number, prompt in enumerate(prompts):
        prompt_results = results[number * len(source.choices) :][: len(source.choices)]
        ranked = sorted(zip(source.choices, prompt_results, strict=True), key=lambda choice: choice[1].nats)
        if as_json:
            rows = [
                {"text": text, "log_likelihood": -choice.nats, "per_token": -choice.nats / choice.tokens, "tokens": choice.tokens}
                for text, choice in ranked
            ]
            yield json.dumps({"prompt": prompt, "choices": rows}, ensure_ascii=False) + "\n"
        else:
            title = f"--- prompt {number + 1} of {len(prompts)}\n" if len(prompts) > 1 else ""
            yield title + _table(ranked)


def _table(ranked: Sequence[tuple[str, Likelihood]]) -> str:
    names = [json.dumps(text, ensure_ascii=False) for text, _ in ranked]
    width = max(len("choice"), *map(len, names))
    lines = [f"{'choice':<{width}}  {'log likelihood':>14}  {'per token':>9}  tokens"]
    for name, (_, result) in zip(names, ranked, strict=True):
        lines.append(f"{name:<{width}}  {-result.nats:>14.4f}  {-result.nats / result.tokens:>9.4f}  {result.tokens:>6}")
    return "\n".join(lines) + "\n"


def with_typed_stops(decoding: Decoding) -> Decoding:
    """Return the settings with the line ends and tabs that `--stop` spells."""
    return dataclasses.replace(decoding, stop=tuple(map(_unescaped, decoding.stop)))


def _unescaped(text: str) -> str:
    r"""Return text as typed in a shell, with \n and \t, which are hard to type there, replaced."""
    return text.replace("\\n", "\n").replace("\\t", "\t")
