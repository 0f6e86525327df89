"""Text to token ids and back: byte-level BPE with GPT-2's pre-tokenizer (Radford et al. 2019, section 2.2)."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int32, Int64, Integer
from tokenizers import decoders, models, pre_tokenizers, trainers

from train.pieces import LONGEST_PIECE, cut, groups
from zoo.errors import BadInput

END_OF_TEXT = "<|endoftext|>"
FILE = "tokenizer.json"
LARGEST_FILE = 64 << 20

# The library's threads do not survive a fork. Where nobody said whether to use them, it warns at a fork; where somebody said yes,
# the child hangs. So yes is said here, and no in the child.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.register_at_fork(after_in_child=lambda: os.environ.__setitem__("TOKENIZERS_PARALLELISM", "false"))


class Tokenizer:
    """A tokenizer, defined by the content of its tokenizer.json.

    `Tokenizer.train(texts, vocab)` and `Tokenizer.load(folder)` make one. Encoding adds nothing to a text and never gives the
    end-of-text id: a text that spells out "<|endoftext|>" is encoded as those thirteen characters.
    """

    vocab_size: int
    """Entries; ids are 0 .. vocab_size - 1."""
    end_of_text: int
    """Id of "<|endoftext|>"; 0 in a tokenizer trained here."""
    fingerprint: str
    """SHA-256 of the tokenizer.json, whatever its layout: equal for equal tokenizers."""

    def __init__(self, content: Any) -> None:
        """Takes the parsed content of a tokenizer.json.

        Raises:
            BadInput: it defines no usable tokenizer; the caller knows the file's name and adds it.
        """
        self._json = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        self.fingerprint = hashlib.sha256(self._json.encode()).hexdigest()
        self._core = _parse(self._json)
        self._core.no_truncation()
        self._core.no_padding()
        self._core.encode_special_tokens = True
        ids = self._core.get_vocab(with_added_tokens=True)
        self.vocab_size = len(ids)
        if set(ids.values()) != set(range(self.vocab_size)):
            raise BadInput(f"its {self.vocab_size} entries do not have the ids 0 to {self.vocab_size - 1}; number them so")
        if END_OF_TEXT not in ids:
            raise BadInput(f"it has no entry {END_OF_TEXT}, which ends every document; add it")
        self.end_of_text = ids[END_OF_TEXT]
        self._cuts = _gpt2_rules(content)
        if self.end_of_text in self.encode(END_OF_TEXT):
            raise BadInput(f"{END_OF_TEXT} is not marked as special, so any text could end a document; mark it")

    @classmethod
    def train(cls, texts: Iterable[str], vocab: int) -> "Tokenizer":
        """Byte-level BPE of up to `vocab` entries: end-of-text, the 256 bytes, then merges, most frequent pair first.

        The same texts give the same tokenizer, whole or in the pieces of `train.pieces.cut`. A text too small for that many
        merges gives fewer entries: a model's vocabulary is the tokenizer's `vocab_size`, not what was asked for.
        """
        core = tokenizers.Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
        core.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        trainer = trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        core.train_from_iterator(iter(texts), trainer)
        return cls(json.loads(core.to_str()))

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of a folder that holds a tokenizer.json.

        Raises:
            BadInput: no such file, or one that is no tokenizer, has gaps between its ids, or has no "<|endoftext|>".
        """
        file = Path(folder) / FILE
        try:
            if file.stat().st_size > LARGEST_FILE:
                raise BadInput(f"larger than {LARGEST_FILE >> 20} MiB; that is no tokenizer")
            return cls(json.loads(file.read_text(encoding="utf-8")))
        except OSError as error:
            raise BadInput(f"{file}: cannot be read ({error.strerror}); name a folder that holds a {FILE}") from None
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{file}: no JSON ({error}); write it with the tokenizers library") from None
        except BadInput as error:
            raise BadInput(f"{file}: {error}") from None

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json into a folder, whole or not at all."""
        part = Path(folder) / f".{FILE}.{os.getpid()}"
        try:
            with part.open("w", encoding="utf-8") as stream:
                stream.write(self._json)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, Path(folder) / FILE)
        finally:
            part.unlink(missing_ok=True)

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Ids of a text, without end-of-text."""
        return next(self.encode_many([text]))

    def encode_many(self, texts: Iterable[str]) -> Iterator[Int32[np.ndarray, " tokens"]]:
        """Ids of each text, in order, on all cores. Memory is bounded by the longest text, not by their number."""
        parts: list[np.ndarray] = []
        for group in groups(self.pieces((text, True) for text in texts)):
            for ids, (_, last) in zip(self.encode_batch([piece for piece, _ in group]), group, strict=True):
                parts.append(ids)
                if last:
                    yield np.concatenate(parts)
                    parts = []

    def encode_batch(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " tokens"]]:
        """Ids of each text, on all cores: the library's threads take turns with Python's only to hand over the result."""
        encodings = self._core.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def pieces(self, texts: Iterable[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
        """(piece, is it the last of a text) as this tokenizer may encode them one by one.

        Takes the same of texts that are whole, or in the pieces of `train.pieces.cut`; those are kept or cut further. A tokenizer
        whose rules are not GPT-2's gets every text whole.

        Raises:
            BadInput: a text longer than can be encoded at once.
        """
        whole: list[str] = []
        for text, last in texts:
            if self._cuts:
                yield from ((piece, end and last) for piece, end in cut([text]))
                continue
            whole.append(text)
            if sum(map(len, whole)) > LONGEST_PIECE:
                raise BadInput(
                    f"a text of more than {LONGEST_PIECE:,} characters: this tokenizer's rules need each text whole; "
                    "make several documents of it (a .jsonl line each)"
                )
            if last:
                yield "".join(whole), True
                whole = []

    def decode(self, ids: Integer[np.ndarray, " tokens"] | Sequence[int]) -> str:
        """The text of ids; end-of-text reads "<|endoftext|>", and bytes that are no UTF-8 read U+FFFD.

        Raises:
            ValueError: an id outside the vocabulary (the library would drop it unsaid).
        """
        numbers = np.asarray(ids, np.int64)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= self.vocab_size):
            raise ValueError(f"ids {numbers.min()} to {numbers.max()} are not all in a vocabulary of {self.vocab_size}")
        return self._core.decode(numbers.tolist(), skip_special_tokens=False)

    def token_bytes(self) -> Int64[np.ndarray, " V"]:
        """UTF-8 bytes that each id stands for; 0 for added entries (end-of-text). A text's bytes are the sum over its ids."""
        added = self._core.get_added_tokens_decoder()
        # Byte-level BPE writes one character of its alphabet for each byte.
        entries = (self._core.id_to_token(number) or "" for number in range(self.vocab_size))
        return np.array([0 if number in added else len(entry) for number, entry in enumerate(entries)], np.int64)


def _gpt2_rules(content: Any) -> bool:
    """Whether a text is divided by GPT-2's rules alone, and may hence be cut as `train.pieces` does."""
    rules = content.get("pre_tokenizer") or {}
    ours = rules.get("type") == "ByteLevel" and not rules.get("add_prefix_space") and rules.get("use_regex", True)
    special = all(token["special"] for token in content.get("added_tokens", ()))
    return ours and special and content.get("normalizer") is None


def _parse(content: str) -> tokenizers.Tokenizer:
    """The library's tokenizer. On some files it panics, with an exception that is no `Exception`."""
    try:
        return tokenizers.Tokenizer.from_str(content)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise BadInput(f"no tokenizer ({' '.join(str(error).split())}); write it with the tokenizers library") from None
