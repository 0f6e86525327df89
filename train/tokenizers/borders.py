"""The border between two texts that are encoded as one: no id before it depends on the second text."""

import numpy as np
from jaxtyping import Int


def shared_prefix(first: Int[np.ndarray, " a"], joined: Int[np.ndarray, " b"]) -> int:
    """Return the length of the common prefix of the ids of a text and the ids of a longer text that begins with it.

    It is the border of the first text in `joined`: a token across the end of the first text, and whatever a merge with the
    second text changes before it, lies behind the border. The ids of both sides still spell the joined text.
    """
    shared = min(len(first), len(joined))
    differing = np.flatnonzero(first[:shared] != joined[:shared])
    return int(differing[0]) if differing.size else shared
