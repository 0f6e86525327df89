"""Sampling of the next token: pure functions of float32 logits [B, V], with the order and meaning that `transformers` gives them.

A removed token has the logit -inf. Tokens with equal logits are all kept or all removed.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from zoo.generation.decoding_settings import GREEDY, Sampling
from zoo.ops import counter_rng
from zoo.ops.reductions import all_finite, log_sum_exp, max_is_finite, row_argmax

Seeds = UInt32[Array, "B 2"]

SALT = 0x7E87
"""Makes the random numbers of generation differ from those of a training run with the same seed."""


def sample_token(
    logits: Float[Array, "B V"],
    sampling: Sampling,
    seeds: Seeds,
    processed: Float[Array, "B V"] | None = None,
    values: Float[Array, " 4"] | None = None,
) -> tuple[Int[Array, " B"], Bool[Array, " B"], Float[Array, "B V"]]:
    """Return the next token of each row, whether it means something, and the logits that it was sampled from.

    It means nothing if the row's logits are not finite, or if `processed` excludes every token. The last result is that of
    `filter_logits`.

    Args:
        seeds: those of this token, see `row_seeds`.
        processed: the logits after `zoo.generation.logits_processors`, where they change them.
        values: see `filter_logits`.
    """
    remaining = filter_logits(logits if processed is None else processed, sampling, values)
    # The largest of log p + Gumbel noise is distributed as p (Gumbel 1954; Maddison et al. 2014).
    noise = gumbel_noise(seeds, logits.shape[-1]) if sampling.temperature > 0 else 0.0
    return row_argmax(remaining + noise), all_finite(logits) & max_is_finite(remaining), remaining


def log_probs(remaining: Float[Array, "B V"], sampling: Sampling, tokens: Int[Array, " B"]) -> Float[Array, " B"]:
    """Return the log-probabilities in nats with which tokens are sampled, float32; 0 at temperature 0, where nothing is random.

    Args:
        remaining: the logits that tokens are sampled from, see `filter_logits`.
    """
    if sampling.temperature == 0:
        return jnp.zeros(tokens.shape, jnp.float32)
    return jnp.take_along_axis(remaining, tokens[:, None], axis=-1)[:, 0] - log_sum_exp(remaining)


def filter_logits(
    logits: Float[Array, "B V"], sampling: Sampling, values: Float[Array, " 4"] | None = None
) -> Float[Array, "B V"]:
    """Return the logits to sample from, with removed tokens at -inf; with temperature 0, those whose largest is chosen.

    Args:
        values: the numbers of `sampling` as an array, see `sampling_values`; a program then depends on which settings are used,
            and not on their numbers. None: the numbers are constants.
    """
    if sampling.temperature == 0:
        return logits
    numbers = dataclasses.astuple(sampling) if values is None else values
    temperature, top_k, top_p, min_p = (numbers[index] for index in range(4))
    logits = logits / temperature
    if sampling.top_k:
        logits = keep_top_k(logits, top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, top_p)
    return keep_min_p(logits, min_p) if sampling.min_p else logits


def sampling_values(sampling: Sampling) -> tuple[Sampling, Float[np.ndarray, " 4"]]:
    """Return (settings that are equal for all settings with the same fields in use, the numbers of the fields as float32)."""
    values, examples = np.array(dataclasses.astuple(sampling), np.float32), {"top_k": 1, "top_p": 0.5, "min_p": 0.5}
    used = {name: value for name, value in examples.items() if getattr(sampling, name) != getattr(Sampling(), name)}
    return (Sampling(**used) if sampling.temperature else GREEDY), values


def keep_top_k(logits: Float[Array, "B V"], k: int | Float[Array, ""]) -> Float[Array, "B V"]:
    """Keep only the k largest (Fan et al. 2018, section 5.1)."""
    return _cut(logits, lambda keep: keep.sum(-1, keepdims=True) >= k)


def keep_top_p(logits: Float[Array, "B V"], p: float | Float[Array, ""]) -> Float[Array, "B V"]:
    """Keep only the nucleus, the fewest likeliest tokens that together have probability p (Holtzman et al. 2020, section 3.1)."""
    probabilities = jax.nn.softmax(logits)
    # The sum is over removed tokens, because float32 is too coarse near 1, where the sum over the others lies for a p near 1.
    return _cut(logits, lambda keep: jnp.where(keep, 0, probabilities).sum(-1, keepdims=True) <= 1 - p)


def keep_min_p(logits: Float[Array, "B V"], p: float | Float[Array, ""]) -> Float[Array, "B V"]:
    """Keep only tokens that have at least p times the largest probability (Nguyen et al. 2024, section 3)."""
    log_p = jnp.log(p) if isinstance(p, jax.Array) else math.log(p)
    return jnp.where(logits >= logits.max(-1, keepdims=True) + log_p, logits, -jnp.inf)


def row_seeds(seed: int | UInt32[Array, ""], prompts: UInt32[Array, " B"], samples: UInt32[Array, " B"]) -> Seeds:
    """Return the seeds of continuations by the indices of prompt and sample; `fold` with a position gives those of a token."""
    key = jnp.stack([jnp.uint32(seed), jnp.uint32(SALT)])
    return counter_rng.fold(counter_rng.fold(jnp.broadcast_to(key, (*prompts.shape, 2)), prompts), samples)


def gumbel_noise(seeds: Seeds, size: int) -> Float[Array, "B {size}"]:
    """Return Gumbel noise, -log(-log u) for u uniform, which depends on the row's seeds and the token's id alone."""
    number = jnp.arange(size, dtype=jnp.uint32) * jnp.uint32(counter_rng.GOLDEN)
    bits = counter_rng.mix(counter_rng.mix(seeds[:, :1] ^ number) + seeds[:, 1:])
    # `uniform` is 1 - u: floats are densest near 0, where the noise is largest. The minimum keeps u itself above 0.
    uniform = jnp.minimum((bits.astype(jnp.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
    return -jnp.log(-jnp.log1p(-uniform))


def _cut(logits: Float[Array, "B V"], enough: Callable[[Bool[Array, "B V"]], Bool[Array, "B 1"]]) -> Float[Array, "B V"]:
    """Remove all tokens below the highest logit at which the remaining tokens are `enough`; the largest always remains.

    That logit is computed bit by bit, in 32 passes and without a sort.
    """
    # Integers in the order of the floats, where -0 equals 0.
    bits = jax.lax.bitcast_convert_type(jnp.where(logits == 0, 0.0, logits), jnp.uint32)
    order = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))

    def raise_by(threshold: UInt32[Array, "B 1"], bit: UInt32[Array, ""]) -> tuple[UInt32[Array, "B 1"], None]:
        candidate = threshold | (jnp.uint32(1) << bit)
        return jnp.where(enough(order >= candidate), candidate, threshold), None

    zero = jnp.zeros((logits.shape[0], 1), jnp.uint32)
    threshold, _ = jax.lax.scan(raise_by, zero, jnp.arange(31, -1, -1, dtype=jnp.uint32))
    return jnp.where(order >= jnp.minimum(threshold, order.max(-1, keepdims=True)), logits, -jnp.inf)
