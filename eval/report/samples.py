"""Samples for the report: beginnings of held-out text, continued by the model."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Integer

from eval.generation import cross_attention_weights
from eval.generation.generation_options import Decoding
from eval.generation.generator import REPLACEMENT, Generator
from train.inputs.example_inputs import ExampleInputs
from train.inputs.instruction_inputs import DialogueRows
from train.inputs.seq2seq_inputs import PairRows
from train.rows.token_cache import Tokens
from train.run.run_dir import write_json
from train.tokenizers.special_tokens import END_OF_TEXT
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput
from zoo.generation.decoding_settings import GREEDY, Sampling
from zoo.models import Model

PROMPT, CONTINUATION = 48, 96
"""Maximum number of tokens of a prompt and of a continuation."""
PREVIEW = 32
"""Maximum number of tokens of a continuation that is shown during training; its prompt has half as many."""
TEMPERATURE, SEED = 0.8, 0


class Beginning(NamedTuple):
    """A part of a text, cut in two."""

    prompt: Integer[np.ndarray, " prompt"]
    """Ids that begin with end-of-text at the beginning of a document, as rows do in training."""
    truth: Integer[np.ndarray, " truth"]
    """Ids that follow, up to the end of the document at most."""


def write_run_samples(file: Path, model: Model, params: Any, mesh: Mesh, data: Any, **how: Any) -> None:
    """Call `write_samples` with a run's held-out text if its model continues texts, else `write_pairs` or `write_responses`.

    Preferences have no samples.
    """
    if isinstance(data.held_out, PairRows):
        if model.is_encoder_decoder:
            write_pairs(file, model, params, mesh, data, **how)
    elif isinstance(data.held_out, DialogueRows):
        write_responses(file, model, params, mesh, data, **how)
    elif model.generates and not model.is_encoder_decoder and isinstance(data.held_out, Tokens):
        write_samples(file, model, params, mesh, data.tokenizer, data.held_out, **how)


def preview_continuation(model: Model, params: Any, mesh: Mesh, data: Any, *, length: int, dtype: Any) -> str:
    """Return the beginning of a held-out text and the model's continuation of it, on one line, to be shown during training.

    It is empty if the model continues no texts, or if the text is too short. Every process calls this. The arguments are those of
    `write_samples`.
    """
    if not model.generates or model.is_encoder_decoder or not isinstance(data.held_out, Tokens):
        return ""
    pieces = held_out_beginnings(data.held_out, data.tokenizer, length, 1)
    if not pieces:
        return ""
    decoding = Decoding(limit=min(_continuation(length), PREVIEW), seed=SEED, sampling=Sampling(temperature=TEMPERATURE))
    prompt = pieces[0].prompt[: PREVIEW // 2]
    try:
        (generated,) = Generator(model, params, mesh, data.tokenizer, dtype=dtype, batch=1).generate([prompt], decoding)
    except BadInput as error:
        # Logits that are not finite must not end the training, which skips such steps and counts them.
        return f"no sample: {error}"
    beginning = data.tokenizer.decode(prompt).removeprefix(END_OF_TEXT)
    return " ".join(f"{beginning} | {generated.text}".split())


def write_samples(
    file: Path,
    model: Model,
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
    """Write {"step", "temperature", "seed", "samples": [{"prompt", "text", "truth"}]} to a file.

    `text` is the model's continuation of the prompt, `truth` that of the held-out text. Every process calls this, and process 0
    writes. The same parameters and text give the same samples.

    Args:
        file: RUN/samples.json.
        params: laid out over `mesh`.
        length: tokens in the rows of training; the model has not learned positions beyond them.
        step: of the parameters.
        dtype: of the arithmetic.
        count: samples.

    Raises:
        BadInput: the model's logits are not finite.
    """
    samples = []
    if pieces := held_out_beginnings(held_out, tokenizer, length, count):
        decoding = Decoding(limit=_continuation(length), seed=SEED, sampling=Sampling(temperature=TEMPERATURE))
        generator = Generator(model, params, mesh, tokenizer, dtype=dtype, batch=count)
        generated_texts = generator.generate([piece.prompt for piece in pieces], decoding)
        for (prompt, truth), generated in zip(pieces, generated_texts, strict=True):
            prompt_text = tokenizer.decode(prompt).removeprefix(END_OF_TEXT)
            samples.append({"prompt": prompt_text, "text": generated.text, "truth": tokenizer.continuation(truth)})
    if jax.process_index() == 0:
        write_json(file, {"step": step, "temperature": TEMPERATURE, "seed": SEED, "samples": samples})


def write_pairs(
    file: Path, model: Model, params: Any, mesh: Mesh, data: ExampleInputs, *, length: int, step: int, dtype: Any, count: int = 4
) -> None:
    """Write {"step", "pairs", "samples", "alignment"} of held-out pairs to a file.

    Prompts are the sources, `text` the model's greedy output, `truth` the reference. On a single device `alignment` is the
    attention of the first sample over its source.

    Args:
        length: tokens of the longest source in training; longer sources are cut.

    Raises:
        BadInput: the model's logits are not finite.
    """
    rows = data.held_out
    chosen = np.unique(np.linspace(0, len(rows.examples) - 1, count).astype(int)).tolist()
    generator = Generator(model, params, mesh, data.tokenizer, dtype=dtype, batch=count)
    generated = generator.generate([rows.sides[number].source for number in chosen], Decoding(limit=length, sampling=GREEDY))
    samples = [
        {"prompt": rows.examples[number].source, "text": written.text, "truth": rows.examples[number].target}
        for number, written in zip(chosen, generated, strict=True)
    ]
    content: dict[str, Any] = {"step": step, "pairs": True, "samples": samples}
    if mesh.devices.size == 1:
        # Computed once more for the first sample; with dense attention, so not over a mesh.
        source = rows.sides[chosen[0]].source
        content["alignment"] = cross_attention_weights.cross_attention_record(
            model, params, data.tokenizer, source, generated[0].ids
        )
    if jax.process_index() == 0:
        write_json(file, content)


def write_responses(
    file: Path, model: Model, params: Any, mesh: Mesh, data: ExampleInputs, *, length: int, step: int, dtype: Any, count: int = 4
) -> None:
    """Write {"step", "pairs", "samples"} of held-out instructions to a file.

    Prompts are the texts before the last responses, `text` the model's greedy response, `truth` that of the data.

    Args:
        length: tokens in the rows of training; prompt and response together have at most as many.

    Raises:
        BadInput: the model's logits are not finite.
    """
    rows, tokenizer = data.held_out, data.tokenizer
    texts = [rows.texts[number] for number in np.unique(np.linspace(0, len(rows.texts) - 1, count).astype(int)).tolist()]
    starts = [int(np.flatnonzero(~text.counted)[-1]) + 1 for text in texts]
    # A response that was cut has no end mark.
    end = next((last for text in texts if (last := int(text.ids[-1])) in tokenizer.special_names.values()), None)
    generator = Generator(model, params, mesh, tokenizer, dtype=dtype, batch=count, ends=() if end is None else (end,))
    prompts = [text.ids[:start] for text, start in zip(texts, starts, strict=True)]
    decoding = Decoding(limit=max(1, min(CONTINUATION, length - max(starts))), sampling=GREEDY)
    samples = [
        {"prompt": tokenizer.decode(prompt), "text": written.text, "truth": tokenizer.continuation(text.ids[start:])}
        for prompt, text, start, written in zip(prompts, texts, starts, generator.generate(prompts, decoding), strict=True)
    ]
    if jax.process_index() == 0:
        write_json(file, {"step": step, "pairs": True, "samples": samples})


def held_out_beginnings(held_out: Tokens, tokenizer: Tokenizer, length: int, count: int = 4) -> list[Beginning]:
    """Return at most `count` evenly spaced beginnings of documents, or of words within documents if these are too few.

    A prompt ends before a word, if possible, and fits into a row of `length` tokens together with its continuation. The list is
    empty for text that is too short to be cut, and for rows of less than 3 tokens.
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
    front = [] if start else [held_out.begin_of_text]

    def word(at: int) -> bool:
        return at < len(ids) and tokenizer.spell(int(ids[at]))[:1].isspace()

    if start:
        ids = ids[next(filter(word, range(min(len(ids) // 2, PROMPT))), 0) :]
    limit = max(1, min(_prompt(length) - len(front), len(ids) // 2))
    size = next(filter(word, range(limit, limit // 2, -1)), limit)
    # Without spaces between words, a token may still be part of a character.
    while size > 1 and tokenizer.decode(ids[:size]).endswith(REPLACEMENT):
        size -= 1
    return Beginning(np.concatenate([front, ids[:size]]).astype(np.int32), ids[size : size + _continuation(length)])


def _prompt(length: int) -> int:
    return min(PROMPT, max(2, length // 3))


def _continuation(length: int) -> int:
    return min(CONTINUATION, length - _prompt(length))
