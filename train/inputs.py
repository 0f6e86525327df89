"""A run's text, from its files to the rows it trains on and the rows it is scored on."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Int

from train import config, corpus, rows
from train.folder import Folder
from train.rows import Rows, Tokens
from train.tokenizer import FILE, Tokenizer
from zoo.errors import require


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """Text, tokenized and planned."""

    tokenizer: Tokenizer
    token_bytes: Int[np.ndarray, " V"]
    """UTF-8 bytes each token stands for; 0 for end-of-text and for ids the tokenizer does not have."""
    rows: Rows
    """What the run trains on."""
    held_out: Tokens

    def scored(self, data: config.Data, stride: int) -> Rows:
        """Rows that count every held-out token once; `stride` new tokens each (isolated documents have no stride)."""
        if data.rows == "packed":
            return rows.packed(self.held_out, data.length)
        return rows.windows(self.held_out, data.length, stride)

    def fingerprints(self) -> dict[str, str]:
        """What a checkpoint remembers of its text, so that it is never resumed on another."""
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "data": self.rows.fingerprint,
            "held_out": self.held_out.fingerprint,
        }


def read(run: config.Run, folder: Folder, cache: Path) -> Inputs:
    """Read, tokenize (once: kept in `cache`) and plan. A resumed run uses the tokenizer in its folder.

    Raises:
        BadInput: see `corpus.split`, `Tokenizer.load` and `rows.training_rows`; or the tokenizer has ids beyond the vocabulary.
    """
    documents, held_out = corpus.split(run.data)
    if run.tokenizer.path:
        tokenizer = Tokenizer.load(run.tokenizer.path)
    elif (folder.tokenizer / FILE).exists() and any(folder.checkpoints.glob("*/COMMIT.json")):
        # Without a checkpoint nothing depends on it, and it may be of a text that has changed since.
        tokenizer = Tokenizer.load(folder.tokenizer)
    else:
        tokenizer = Tokenizer.train((document.text for document in documents), run.tokenizer.vocab)
    require(
        tokenizer.vocab_size <= run.model.vocab,
        "model.vocab",
        run.model.vocab,
        f"the tokenizer has {tokenizer.vocab_size} entries, so it gives ids beyond it; choose {tokenizer.vocab_size} or more",
    )
    token_bytes = np.zeros(run.model.vocab, np.int64)
    token_bytes[: tokenizer.vocab_size] = tokenizer.token_bytes()
    return Inputs(
        tokenizer=tokenizer,
        token_bytes=token_bytes,
        rows=rows.training_rows(rows.prepare(documents, tokenizer, cache), run.data),
        held_out=rows.prepare(held_out, tokenizer, cache),
    )
