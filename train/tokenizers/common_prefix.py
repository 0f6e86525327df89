"""The border between two texts that are encoded as one text: the ids before it do not depend on the second text."""

import numpy as np
from jaxtyping import Int


def common_prefix_length(first: Int[np.ndarray, " a"], joined: Int[np.ndarray, " b"]) -> int:
    """Return the length of the common prefix of the ids of a text and the ids of a longer text that begins with it.

    The length is the border in `joined` between both texts. A token across the end of the first text lies after the border, and
    so do all tokens before it that a merge with the second text has changed. The ids of both sides still spell the joined text.
    """
    shared = min(len(first), len(joined))
    differing = np.flatnonzero(first[:shared] != joined[:shared])
    return int(differing[0]) if differing.size else shared
