"""Settings of generation as a folder has them: random ones, and the probabilities and texts that they give here and elsewhere."""

import copy
import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.generation.folder_settings import end_ids, resolve_settings
from eval.generation.generation_options import Decoding
from train.tokenizers.tokenizer import Tokenizer
from train.weights.generation_settings import PublishedGeneration
from zoo.batch import Batch
from zoo.generation.logits_processors import process_logits, start_context
from zoo.generation.sampling import filter_logits

Rows = Sequence[Sequence[int]]
FIRST = 0
"""First input of the decoders of encoder-decoders."""


class Numbers(Tokenizer):
    """A tokenizer whose texts are the numbers of their tokens; the last entry is end-of-text."""

    def __init__(self, size: int) -> None:
        self.vocab_size, self.end_of_text, self.begin_of_text, self.settings = size, size - 1, size - 1, {}

    @property
    def text_special_tokens(self) -> None:
        return None

    def decode(self, ids: Any) -> str:
        return " ".join(map(str, ids))

    continuation = decode


VOCABULARY = 24
ROWS: Rows = ((7,), (5, 6, 5, 8))
"""Prompts of decoders and sources of encoder-decoders."""
OUTPUTS: Rows = ((5, 6, 7, 5, 6), (8, 5, 6, 5, 5))
CASES: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.7},
    "less than 1": {"repetition_penalty": 0.6},
    "ngrams of 1": {"no_repeat_ngram_size": 1},
    "ngrams of 2": {"no_repeat_ngram_size": 2},
    "ngrams of 3": {"no_repeat_ngram_size": 3},
    "ngrams of the source": {"encoder_no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[5], [6, 9], [5, 6, 10], [5, 11], [3]], "eos_token_id": [3, 4]},
    "minimum": {"min_new_tokens": 4, "eos_token_id": [3, 4]},
    "minimum with the prompt": {"min_length": 7, "eos_token_id": 3},
    "forced first": {"forced_bos_token_id": 9, "begin_suppress_tokens": [9, 10]},
    "forced end": {"forced_eos_token_id": [3, 4], "max_new_tokens": 4},
    "forced end with the prompt": {"forced_eos_token_id": 3, "max_length": 7},
    "suppressed": {"suppress_tokens": [5, 6], "begin_suppress_tokens": [7, 8]},
    "sampled": {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "min_p": 0.02},
    "all": {
        **{"do_sample": True, "temperature": 1.4, "top_k": 9, "top_p": 0.95, "repetition_penalty": 1.3, "eos_token_id": [3, 4]},
        **{"no_repeat_ngram_size": 2, "bad_words_ids": [[12], [6, 13]], "min_new_tokens": 6, "suppress_tokens": [20]},
    },
}
"""Settings whose frozen probabilities are in tests/golden/logits_processors.json."""
AFTER = (0, 3, 5)
"""Numbers of new tokens before the one that they are of."""


def case_arguments(size: int, *, pairs: bool) -> tuple[np.ndarray, Rows, Rows, Rows]:
    """Logits, prompts, outputs of this many tokens, and sources, as `probabilities` takes them."""
    logits = np.random.Generator(np.random.PCG64(size)).standard_normal((len(ROWS), VOCABULARY))
    outputs = [row[:size] for row in OUTPUTS]
    return np.float32(3 * logits), [[FIRST]] * len(ROWS) if pairs else ROWS, outputs, ROWS if pairs else ()


def of_folder(settings: dict[str, Any]) -> PublishedGeneration:
    return PublishedGeneration(Path("generation_config.json"), settings)


def random_settings(rng: np.random.Generator, vocabulary: int, *, samples: bool = False) -> dict[str, Any]:
    """Settings that leave a token; each is absent about half of the time, and a third of those without sampling search."""

    def some(count: int) -> list[int]:
        return rng.choice(np.arange(3, vocabulary - 1), count, replace=False).tolist()

    def maybe(share: float = 0.4) -> bool:
        return bool(rng.random() < share)

    ends = some(int(rng.integers(1, 4)))
    values: dict[str, Any] = {"eos_token_id": ends if len(ends) > 1 else ends[0], "pad_token_id": 1, "bos_token_id": 2}
    values["decoder_start_token_id"] = FIRST
    values |= {"max_new_tokens": int(rng.integers(4, 11))} if maybe(0.8) else {"max_length": int(rng.integers(9, 15))}
    values |= {"min_new_tokens": int(rng.integers(1, 6))} if maybe(0.3) else {}
    values |= {"min_length": int(rng.integers(2, 9))} if maybe(0.3) else {}
    values |= {"repetition_penalty": round(float(rng.uniform(0.6, 2.0)), 3)} if maybe() else {}
    values |= {"no_repeat_ngram_size": int(rng.integers(1, 4))} if maybe() else {}
    values |= {"encoder_no_repeat_ngram_size": int(rng.integers(1, 4))} if maybe(0.3) else {}
    values |= {"bad_words_ids": [some(int(size)) for size in rng.integers(1, 4, 6)]} if maybe() else {}
    values |= {"suppress_tokens": some(8)} if maybe(0.3) else {}
    values |= {"begin_suppress_tokens": some(12)} if maybe(0.3) else {}
    free = sorted(set(range(3, vocabulary - 1)) - set(values.get("suppress_tokens", [])))
    values |= {"forced_bos_token_id": int(rng.choice(free))} if maybe(0.2) else {}
    values |= {"forced_eos_token_id": rng.choice(free, 2).tolist()} if maybe(0.3) else {}
    if samples:
        values |= {"do_sample": True, "top_k": int(rng.integers(0, vocabulary))}
        values |= {"temperature": round(float(rng.uniform(0.3, 3.0)), 3)} if maybe(0.7) else {}
        values |= {"top_p": round(float(rng.uniform(0.3, 1.0)), 3)} if maybe() else {}
        values |= {"min_p": round(float(rng.uniform(0.0, 0.3)), 3)} if maybe(0.3) else {}
        return values
    values |= {"do_sample": False} if maybe() else {}
    values |= {"temperature": 0.7, "top_p": 0.9} if maybe(0.2) else {}
    values |= {"num_beams": int(rng.integers(2, 5))} if maybe() else {}
    if "num_beams" in values and "forced_eos_token_id" in values:
        # Texts that end with one or the other have equal scores.
        values["forced_eos_token_id"] = values["forced_eos_token_id"][0]
    values |= {"length_penalty": round(float(rng.uniform(-1.0, 2.0)), 2)} if maybe() else {}
    values |= {"early_stopping": [True, False, "never"][int(rng.integers(3))]} if maybe() else {}
    values |= {"renormalize_logits": True} if maybe(0.2) else {}
    return values


def probabilities(settings: dict[str, Any], logits: np.ndarray, prompts: Rows, outputs: Rows, sources: Rows) -> np.ndarray:
    """Return [B, V] of the tokens after prompts and outputs, by the functions of `zoo.generation`, padded together.

    Args:
        sources: of encoder-decoders, whose prompts are their first tokens; empty for decoders.
    """
    return probabilities_after((len(outputs[0]),), settings, logits[None], prompts, outputs, sources)[0]


def probabilities_after(
    sizes: Sequence[int], settings: dict[str, Any], logits: np.ndarray, prompts: Rows, outputs: Rows, sources: Rows
) -> np.ndarray:
    """Return the same after the first `sizes` tokens of the outputs, [N, B, V], of logits [N, B, V], by one program."""
    folder = of_folder(settings)
    decoding = resolve_settings(Decoding(), (), folder).decoding
    batch = dataclasses.replace(_padded(prompts), source=_padded(sources or prompts))
    limits = jnp.array([decoding.tokens_after(len(prompt)) for prompt in prompts], jnp.int32)
    ends = tuple(end_ids(folder, -1))

    @jax.jit
    def program(logits: jax.Array, batch: Batch, tokens: jax.Array) -> list[jax.Array]:
        context = start_context(decoding.processors, batch, batch.tokens.shape[1] + max(sizes), 0)
        context = None if context is None else dataclasses.replace(context, limit=limits)
        actual = []
        for size in range(max(sizes) + 1):
            if size in sizes:
                processed = process_logits(logits[len(actual)], decoding.processors, ends, context)
                actual.append(jax.nn.softmax(filter_logits(processed, decoding.sampling)))
            context = context.append(tokens[:, size]) if context is not None and size < max(sizes) else context
        return actual

    columns = np.array(outputs, np.int32).reshape(len(prompts), -1)
    return np.stack(program(jnp.asarray(logits), batch, jnp.asarray(columns)))


def _padded(rows: Rows) -> Batch:
    width = max(map(len, rows))
    segments = np.array([[0] * (width - len(row)) + [1] * len(row) for row in rows], np.int32)
    tokens = np.array([[7] * (width - len(row)) + list(row) for row in rows], np.int32)
    return Batch(
        tokens=jnp.asarray(tokens), segments=jnp.asarray(segments), positions=jnp.maximum(jnp.cumsum(segments, 1) - 1, 0)
    )


def expected_probabilities(
    net: Any, settings: dict[str, Any], logits: np.ndarray, prompts: Rows, outputs: Rows, sources: Rows
) -> np.ndarray:
    """Return the same by the processors that `transformers` builds for a model, one row after the other."""
    import torch
    import transformers

    rows = []
    for number, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        net.generation_config = transformers.GenerationConfig(**copy.deepcopy(settings))
        config, _ = net._prepare_generation_config(None)
        net._prepare_special_tokens(config, True, device="cpu", batch_size=1)
        source = torch.tensor([sources[number] if sources else prompt])
        config = net._prepare_generated_length(
            config,
            has_default_max_length="max_length" not in settings,
            has_default_min_length="min_length" not in settings,
            model_input_name="input_ids",
            input_ids_length=len(prompt),
            inputs_tensor=source,
        )
        mask = {"attention_mask": torch.ones_like(source)}
        steps = net._get_logits_processor(
            config, input_ids_seq_length=len(prompt), encoder_input_ids=source, device="cpu", model_kwargs=mask
        )
        scores = steps(torch.tensor([[*prompt, *output]]), torch.tensor(logits[number : number + 1]))
        rows.append(scores.softmax(-1)[0].numpy())
    return np.stack(rows)


def expected_text(net: Any, prompt: Sequence[int], ends: Sequence[int]) -> tuple[int, ...]:
    """Return the new tokens that `transformers` writes after a prompt or a source, without the end, by its folder's settings."""
    import torch

    source = torch.tensor([list(prompt)])
    with torch.no_grad(), warnings.catch_warnings():
        # A text without room for `min_length` ends at its largest length on both sides.
        warnings.filterwarnings("ignore", "Unfeasible length constraints")
        (row,) = net.generate(source, attention_mask=torch.ones_like(source)).tolist()
    new = row[1 if net.config.is_encoder_decoder else len(prompt) :]
    return tuple(new[: next((place for place, token in enumerate(new) if token in ends), len(new))])
