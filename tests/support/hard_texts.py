"""Texts that tokenizers stumble over."""

import numpy as np

HARD = (
    "na\u00efve \u00dcn\u00efc\u00f6d\u00e9 Stra\u00dfe cafe\u0301 \u6f22\u5b57\u304b\u306a\u4ea4\u3058\u308a \ud55c\uad6d\uc5b4 "
    "\U0001f642\U0001f469\u200d\U0001f469\u200d\U0001f467 \u202e\x00\x01\x1f\x7f tabs\t\tand\r\nlines  it's we'll 3.14 !@#%^&*() "
    "<|endoftext " + "a" * 500
)
"""Accents composed and not, CJK, emoji joined to one, control characters, a long word."""


def random_characters(number: int = 20_000) -> str:
    """Characters of all planes, the same in every process: half of them of the first plane, with a space after one in five."""
    rng = np.random.default_rng(0)
    codes = np.where(rng.random(number) < 0.5, rng.integers(0, 1 << 16, number), rng.integers(0, 0x110000, number))
    # No surrogates: they are no characters.
    codes = np.where((codes >= 0xD800) & (codes < 0xE000), codes - 0xD800, codes)
    ends = rng.random(number) < 0.2
    return "".join(f"{chr(code)} " if end else chr(code) for code, end in zip(codes, ends, strict=True))
