"""The best of n responses: choosing instead of training, with the divergence from the model that it costs at most."""

import math

import numpy as np
from jaxtyping import Float64


def powers_of_two(samples: int) -> list[int]:
    """Return 1, 2, 4, ... up to a number of samples."""
    return [1 << power for power in range(samples.bit_length())]


def prompt_groups(numbers: Float64[np.ndarray, "P N"], n: int) -> Float64[np.ndarray, "G n"]:
    """Return the numbers of N responses to each of P prompts in groups of n; those of an incomplete group are left out."""
    return numbers[:, : numbers.shape[1] // n * n].reshape(-1, n)


def kl_bound(n: int) -> float:
    """Return the nats which the divergence of the best of n from the model does not exceed (Beirami et al. 2024)."""
    return math.log(n) - (n - 1) / n
