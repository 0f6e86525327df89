"""Responses of a model to batches of prompts, sampled by programs of one shape: every prompt is padded to the longest."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float32, Int32, Int64, UInt32

from train.engine import device_mesh
from train.rows.feedback.response_rows import ResponseRow
from train.rows.seq2seq_rows import text_special_tokens_of
from train.tokenizers.tokenizer import Tokenizer
from zoo.batch import Batch
from zoo.errors import BadInput
from zoo.generation import decode_loop
from zoo.generation.decode_loop import Decoder, unroll_layers
from zoo.generation.decoding_settings import Sampling
from zoo.models import Model

CHUNK = 16
"""Number of tokens sampled by one dispatch."""
SALT = 0x5A11
"""Makes the responses in training differ from the texts that `zoo generate` samples with the same seed."""


def cache_slots(prompt: int, limit: int) -> int:
    """Return the slots of the cache for a prompt and a response of at most `limit` tokens, whose last one is not stored."""
    return prompt + decode_loop.slots_after_prompt(limit, CHUNK)


class Responses(NamedTuple):
    """The responses to a batch of prompts; every process has all of them."""

    tokens: Int32[np.ndarray, "B R"]
    """Ids of the tokens; undefined at and beyond `lengths`."""
    log_probs: Float32[np.ndarray, "B R"]
    """Log-probability in nats with which each token was sampled; 0 at temperature 0."""
    lengths: Int64[np.ndarray, " B"]
    """Number of tokens of each response, its end mark included."""
    ended: np.ndarray
    """bool [B]: True if the last token is the end mark, which the limit may cut off."""

    def ids(self, row: int) -> Int32[np.ndarray, " r"]:
        """Return the tokens of a response, with its end mark unless the limit cut it off."""
        return self.tokens[row, : self.lengths[row]]

    def text_ids(self, row: int) -> list[int]:
        """Return the tokens of a response without the end mark."""
        return self.tokens[row, : self.lengths[row] - self.ended[row]].tolist()


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """The programs that respond to `rows` prompts at a time.

    The settings of generation in a model's folder are not used: responses are sampled by the softmax of the logits divided by the
    temperature, and end at `end` alone. This is the distribution whose log-probabilities the objectives compute; a processor
    that changes it would make them wrong.

    A response is a function of the parameters, its prompt, the seed and its two numbers.
    """

    model: Model
    mesh: Mesh
    tokenizer: Tokenizer
    dtype: Any
    """Dtype of the arithmetic and the cache."""
    rows: int
    """Number of rows of a batch, over all devices; the mesh divides it."""
    slots: int
    """Number of tokens of the longest prompt."""
    limit: int
    """Most tokens of a response, its end mark included."""
    settings: Sampling
    end: int
    """Id that ends a response."""
    seed: int = 0

    def decoding_params(self, params: Any) -> Any:
        """Return parameters in the form that `sample` takes; see `zoo.generation.decode_loop.decoding_params`."""
        with jax.set_mesh(self.mesh):
            return self._as_decoding_params(params)

    def sample(self, params: Any, prompts: Sequence[ResponseRow], numbers: UInt32[np.ndarray, "2 n"]) -> Responses:
        """Return the responses to at most `rows` prompts.

        Args:
            params: what `decoding_params` returns.
            numbers: two numbers of each response, on which sampling depends.

        Raises:
            BadInput: logits are not finite.
        """
        replicated = functools.partial(_replicate, self.mesh)
        all_numbers = np.zeros((2, self.rows), np.uint32)
        all_numbers[:, : len(prompts)] = numbers
        chunks = []
        with jax.set_mesh(self.mesh):
            arguments = (params, self._prompts(prompts), replicated(np.uint32(self.seed)), replicated(all_numbers))
            for sampled in decode_loop.decode_continuation(
                self._decoder, self.settings, *arguments, limit=self.limit, chunk=CHUNK
            ):
                chunks.append(jax.device_get(sampled))
                if self._cut(chunks, len(prompts)).lengths.all():
                    break
        return self._cut(chunks, len(prompts))

    def text(self, responses: Responses, row: int) -> str:
        """Return the text of a response, as it continues a decoder's prompt, without the end mark."""
        decode = self.tokenizer.decode if self.model.is_encoder_decoder else self.tokenizer.continuation
        return decode(responses.text_ids(row))

    @functools.cached_property
    def _as_decoding_params(self) -> Any:
        return jax.jit(lambda params: decode_loop.decoding_params(params, np.dtype(self.dtype)))

    @functools.cached_property
    def _decoder(self) -> Decoder:
        sampled = self.settings.temperature > 0
        return Decoder(unroll_layers(self.model), self.tokenizer.vocab_size, np.dtype(self.dtype), log_probs=sampled)

    def _prompts(self, prompts: Sequence[ResponseRow]) -> Batch:
        """Return prompts on the devices, padded on the left; rows of padding fill up the batch."""
        tokens, segments, positions = np.zeros((3, self.rows, self.slots), np.int32)
        for row, prompt in enumerate(prompts):
            ids, first = prompt.prompt, self.slots - len(prompt.prompt)
            tokens[row, first:], segments[row, first:], positions[row, first:] = ids, 1, np.arange(len(ids))
        batch = Batch(tokens=tokens, segments=segments, positions=positions)
        if self.model.is_encoder_decoder:
            begin = np.full((self.rows, 1), text_special_tokens_of(self.tokenizer).pad, np.int32)
            batch = Batch(tokens=begin, segments=segments[:, -1:], positions=np.zeros_like(begin), source=batch)
        local = device_mesh.local_rows(self.mesh, self.rows)
        return device_mesh.shard_batch(jax.tree.map(lambda leaf: leaf[local], batch), self.mesh, self.rows)

    def _cut(self, chunks: list[Any], count: int) -> Responses:
        """Return the first `count` responses as far as they are sampled; the length of an unfinished one is 0."""

        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(chunk, name) for chunk in chunks])[: self.limit, :count].T  # [B, R]

        tokens, finite = joined("tokens"), joined("finite")
        log_probs = joined("log_probs") if self._decoder.log_probs else np.zeros(tokens.shape, np.float32)
        is_end = tokens == self.end
        ended, size = is_end.any(1), tokens.shape[1]
        lengths = np.where(ended, is_end.argmax(1) + 1, size if size == self.limit else 0)
        counted = np.arange(size) < np.where(lengths, lengths, size)[:, None]
        if not finite[counted].all():
            fix = "its weights are damaged, or too large for --precision bfloat16"
            raise BadInput(f"a response cannot be sampled: the model's logits are not finite; {fix}")
        return Responses(tokens, log_probs, lengths, ended)


def _replicate(mesh: Mesh, value: Any) -> jax.Array:
    """Return an array that is replicated on all devices; every process passes the same value."""
    array, sharding = np.asarray(value), NamedSharding(mesh, PartitionSpec())
    copies = [jax.device_put(array, device) for device in sharding.addressable_devices]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, copies)
