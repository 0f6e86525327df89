"""Text to token ids and back: byte-level BPE, GPT-2's and RoBERTa's, BERT's WordPiece, T5's and XLNet's unigram models."""

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32, Int64, Integer
from tokenizers import decoders, models

from train.data.chunking import LONGEST_CHUNK, cut, groups
from train.run.run_dir import write_text
from train.tokenizers import byte_bpe, special_tokens, unigram, wordpiece, xlnet_unigram
from train.tokenizers.byte_bpe import END_OF_TEXT
from train.tokenizers.special_tokens import Marks, TextMarks
from zoo.errors import BadInput
from zoo.hf.config_json import read_json

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
LARGEST_FILE = 64 << 20

Kind = Literal["gpt", "wordpiece", "roberta", "sentencepiece", "xlnet"]
Cuts = Literal["anywhere", "spaces", "nowhere"]
SPACES = " \n\r\t"
CLEAN = "clean_up_tokenization_spaces"
CONTRACTED = [(f" {end}", end) for end in (".", "?", "!", ",")] + [(" ' ", "'")]
CONTRACTED += [(f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")]
"""What `transformers` replaces in decoded text where the settings ask for it."""

# The library's threads do not survive a fork. Where nobody said whether to use them, it warns at a fork; where somebody said yes,
# the child hangs. So yes is said here, and no in the child.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.register_at_fork(after_in_child=lambda: os.environ.__setitem__("TOKENIZERS_PARALLELISM", "false"))


class Tokenizer:
    """A tokenizer, defined by the content of its tokenizer.json.

    `Tokenizer.train(texts, vocab, kind)` and `Tokenizer.load(folder)` make one. Encoding adds nothing to a text and never gives
    the id of a mark, save that of the unknown: a text that spells out "<|endoftext|>" is encoded as those thirteen characters.
    """

    kind: Kind
    """Whose rules: GPT-2's, BERT's, RoBERTa's, T5's or XLNet's."""
    vocab_size: int
    """Entries; ids are 0 .. vocab_size - 1."""
    marks: Marks | None
    """An encoder's special tokens; GPT-2's has none but the end of text."""
    text_marks: TextMarks | None
    """T5's special tokens."""
    end_of_text: int
    """Id that ends a document: of "<|endoftext|>", 0 in a tokenizer trained here, an encoder's `marks.end`, or T5's "</s>"."""
    fingerprint: str
    """SHA-256 of the tokenizer.json, whatever its layout: equal for equal tokenizers."""

    settings: Mapping[str, Any]
    """What the tokenizer_config.json beside it says, of which nothing changes ids; empty if there was none."""

    def __init__(self, content: Any, settings: Mapping[str, Any] | None = None) -> None:
        """Takes the parsed content of a tokenizer.json, and of the tokenizer_config.json that is to be kept with it.

        Raises:
            BadInput: it defines no usable tokenizer; the caller knows the file's name and adds it.
        """
        self.settings = dict(settings or {})
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
        model = self._core.model
        self._unigram = isinstance(model, models.Unigram)
        text = self._unigram and not xlnet_unigram.owns(ids)
        self.marks, self.text_marks = (None, special_tokens.text_marks(ids)) if text else (_marks(self._core, ids), None)
        if self._unigram:
            self._core.model = unigram.unspelled(self._core)  # pyright: ignore[reportAttributeAccessIssue]
        self._continues = model.continuing_subword_prefix if isinstance(model, models.WordPiece) else None
        if self._continues and self._core.decoder is None:
            self._core.decoder = decoders.WordPiece(self._continues)  # pyright: ignore[reportAttributeAccessIssue]
        if self.text_marks:
            self.kind, self.end_of_text = "sentencepiece", self.text_marks.end
        elif self.marks:
            self.kind = "wordpiece" if self._continues else "xlnet" if self._unigram else "roberta"
            self.end_of_text = self.marks.end
        elif END_OF_TEXT in ids:
            self.kind, self.end_of_text = "gpt", ids[END_OF_TEXT]
        else:
            raise BadInput(f"it has no entry {END_OF_TEXT}, which ends every document; add it")
        self._cuts = _cuts(content)
        own = self.text_marks or self.marks
        for number in sorted(self._special() - ({own.unk} if own else set())):
            if number in self.encode(name := str(self._core.id_to_token(number))):
                raise BadInput(f"{name} is not marked as special, so any text could end a document; mark it")

    @classmethod
    def train(cls, texts: Iterable[str], vocab: int, kind: Kind = "gpt", lowercase: bool = True) -> "Tokenizer":
        """A tokenizer of up to `vocab` entries: the marks, the 256 bytes (WordPiece: the characters), then merges, most frequent
        pair first; or of the most likely pieces, for T5's kind and XLNet's (see `train.tokenizers.unigram` and
        `train.tokenizers.xlnet_unigram`).

        The same texts give the same tokenizer, whole or in the pieces of `train.data.chunking.cut`. A text too small for that
        many merges gives fewer entries: a model's vocabulary is the tokenizer's `vocab_size`, not what was asked for.

        Args:
            lowercase: WordPiece alone: drop case and accents, as the "uncased" models.
        """
        if kind == "sentencepiece":
            return cls(unigram.train(texts, vocab))
        if kind == "xlnet":
            return cls(xlnet_unigram.train(texts, vocab))
        if kind == "wordpiece":
            return cls(wordpiece.train(texts, vocab, lowercase=lowercase))
        return cls((byte_bpe.train_roberta if kind == "roberta" else byte_bpe.train_gpt)(texts, vocab))

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of a folder that holds a tokenizer.json.

        Raises:
            BadInput: no such file, or one that is no tokenizer, has gaps between its ids, has neither "<|endoftext|>" nor
                the marks of its kind, or lacks some of these.
        """
        file, settings = Path(folder) / FILE, Path(folder) / SETTINGS
        kept = read_json(settings, LARGEST_FILE) if settings.exists() else None
        try:
            if file.stat().st_size > LARGEST_FILE:
                raise BadInput(f"larger than {LARGEST_FILE >> 20} MiB; that is no tokenizer")
            return cls(json.loads(file.read_text(encoding="utf-8")), kept)
        except OSError as error:
            raise BadInput(f"{file}: cannot be read ({error.strerror}); name a folder that holds a {FILE}") from None
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{file}: no JSON ({error}); write it with the tokenizers library") from None
        except BadInput as error:
            raise BadInput(f"{file}: {error}") from None

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, and the settings that came with it, into a folder; each file completely or not at all.

        Raises:
            BadInput: a file cannot be written; the old one is still there.
        """
        if self.settings:
            write_text(Path(folder) / SETTINGS, json.dumps(self.settings, indent=2) + "\n")
        else:
            (Path(folder) / SETTINGS).unlink(missing_ok=True)
        write_text(Path(folder) / FILE, self._json)

    def with_settings(self, settings: Mapping[str, Any]) -> "Tokenizer":
        """Return the same tokenizer with other settings."""
        other = copy.copy(self)
        other.settings = dict(settings)
        return other

    def content(self) -> dict[str, Any]:
        """Return the content of its tokenizer.json as the library writes it, whatever version of the format it was read from."""
        return json.loads(_parse(self._json).to_str())

    def ids(self) -> dict[str, int]:
        """Return the id of each entry, those of added tokens among them."""
        return self._core.get_vocab(with_added_tokens=True)

    def by_template(self, first: str, second: str | None = None) -> tuple[list[int], list[int]]:
        """Return ids and token types of one text or two with the special tokens that the template in tokenizer.json adds."""
        encoding = self._core.encode(first, second)
        return encoding.ids, encoding.type_ids

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Ids of a text, without any mark."""
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

    def encode_spans(self, texts: Sequence[str]) -> list[tuple[Int32[np.ndarray, " tokens"], Int64[np.ndarray, "tokens 2"]]]:
        """Ids of each text, and where each of them stands in it: its first character, and the one after its last.

        Tokens that share a character (bytes of an emoji) have the same span. RoBERTa's, T5's and XLNet's leave out the space
        before a word. What normalization drops lies in no span, or within one.
        """
        encodings = self._core.encode_batch(texts, add_special_tokens=False)
        return [(np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int64).reshape(-1, 2)) for encoding in encodings]

    def encode_words(self, words: Sequence[str]) -> tuple[Int32[np.ndarray, " tokens"], Int64[np.ndarray, " tokens"]]:
        """Ids of a text that is given as its words, and for each the index of its word. A word may have no ids.

        Byte-level BPE spells a word within a text with the space before it. Every word gets one, the first too: so
        `transformers` does where it is given words (`is_split_into_words=True, add_prefix_space=True`), and what is fine-tuned
        on words.
        """
        if not self._continues:
            words = [word if word.startswith(" ") or not word else f" {word}" for word in words]
        encoding = self._core.encode(words, is_pretokenized=True, add_special_tokens=False)
        return np.array(encoding.ids, np.int32), np.array(encoding.word_ids, np.int64)

    def pieces(self, texts: Iterable[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
        """(piece, is it the last of a text) as this tokenizer may encode them one by one.

        Takes the same of texts that are whole, or in the pieces of `train.data.chunking.cut`; those are kept or cut further, but
        T5's rules and XLNet's let a text be cut before spaces alone. A tokenizer of other rules gets every text whole.

        Raises:
            BadInput: a text longer than can be encoded at once.
        """
        whole: list[str] = []
        for text, last in texts:
            for piece, end in cut([text]) if self._cuts != "nowhere" else [(text, True)]:
                if whole and (self._cuts == "anywhere" or (self._cuts == "spaces" and piece[:1] in SPACES)):
                    yield "".join(whole), False
                    whole = []
                whole.append(piece)
                if sum(map(len, whole)) > LONGEST_CHUNK:
                    raise BadInput(
                        f"a text of more than {LONGEST_CHUNK:,} characters: this tokenizer's rules need each text whole; "
                        "make several documents of it (a .jsonl line each)"
                    )
                if end and last:
                    yield "".join(whole), True
                    whole = []

    def entries(self, ids: Integer[np.ndarray, " tokens"] | Sequence[int]) -> list[str]:
        """Each id as the vocabulary spells it."""
        return [str(self._core.id_to_token(number)) for number in np.asarray(ids).tolist()]

    def spell(self, number: int) -> str:
        """What an id stands for within a text: with the space before a word, save WordPiece's, which says by "##" where there is
        none. (`decode` gives an id of T5's or XLNet's as a text of its own, which begins with no space.)"""
        if self._unigram:
            return str(self._core.id_to_token(number)).replace(unigram.SPACE, " ")
        return self.decode([number])

    def decode(self, ids: Integer[np.ndarray, " tokens"] | Sequence[int]) -> str:
        """The text of ids; end-of-text reads "<|endoftext|>", other marks their names, and bytes that are no UTF-8 U+FFFD.

        WordPiece gives words with spaces between, not the text: case, accents and the kind of space may be lost. T5's kind and
        XLNet's give the text as it is normalized, "<unk>" for what is unknown; where the settings have
        `clean_up_tokenization_spaces`, without the space before punctuation, as `transformers` decodes it.

        Raises:
            ValueError: an id outside the vocabulary (the library would drop it unsaid).
        """
        numbers = np.asarray(ids, np.int64)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= self.vocab_size):
            raise ValueError(f"ids {numbers.min()} to {numbers.max()} are not all in a vocabulary of {self.vocab_size}")
        text = self._core.decode(numbers.tolist(), skip_special_tokens=False)
        # Byte-level BPE is left as it is: that decodes to the text that was encoded.
        if self.settings.get(CLEAN) and not isinstance(self._core.model, models.BPE):
            for before, after in CONTRACTED:
                text = text.replace(before, after)
        return text

    def continuation(self, ids: Integer[np.ndarray, " tokens"] | Sequence[int]) -> str:
        """The text of ids that go on with another text: T5's and XLNet's with the space before its first word, if any."""
        text = self.decode(ids)
        if self._unigram and len(ids) and self.spell(int(ids[0])).startswith(" ") and not text.startswith(" "):
            return f" {text}"
        return text

    def token_bytes(self) -> Int64[np.ndarray, " V"]:
        """UTF-8 bytes that each id stands for; 0 for special tokens.

        Byte-level BPE: a text's bytes are the sum over its ids. WordPiece: the bytes of the piece without "##"; the sum is less
        than the text has, for spaces, dropped accents and unknown words are not counted. T5's and XLNet's: of the text as it is
        normalized, with a space before it; what is unknown is not counted.
        """
        sizes = np.array([self._size(entry) for entry in self._entries()], np.int64)
        for number, token in self._core.get_added_tokens_decoder().items():
            sizes[number] = 0 if token.special else len(token.content.encode())
        return sizes

    def word_starts(self) -> Bool[np.ndarray, " V"]:
        """Whether an entry begins a word, as far as it can tell by itself; marks do.

        WordPiece: it has no "##". Byte-level BPE: it begins with anything but a letter or digit (a space, punctuation), which no
        rule joins to the letters before it. A text's first word, or one after a line end, has no space: to this table it goes on
        with what stands before it. T5's and XLNet's: it begins with a space.
        """
        if self._unigram:
            special = self._special()
            starts = (entry.startswith(unigram.SPACE) or number in special for number, entry in enumerate(self._entries()))
            return np.array(list(starts), bool)
        if self._continues:
            return np.array([not entry.startswith(self._continues) for entry in self._entries()], bool)
        firsts = (self._core.decode([number], skip_special_tokens=False)[:1] for number in range(self.vocab_size))
        return np.array([not (first.isalnum() or first == "\ufffd") for first in firsts], bool)

    def _special(self) -> set[int]:
        own = self.text_marks or self.marks
        return {*own.special} if own else {self.end_of_text}

    def _size(self, entry: str) -> int:
        if self._unigram:
            return len(entry.replace(unigram.SPACE, " ").encode())
        # Byte-level BPE writes one character of its alphabet for each byte.
        return len(entry) if self._continues is None else len(entry.removeprefix(self._continues).encode())

    def _entries(self) -> Iterator[str]:
        return (self._core.id_to_token(number) or "" for number in range(self.vocab_size))


def _marks(core: tokenizers.Tokenizer, ids: Mapping[str, int]) -> Marks | None:
    """An encoder's marks. RoBERTa's vocabulary has GPT-2's end of text too, but as an entry like any other."""
    if any(token.content == END_OF_TEXT for token in core.get_added_tokens_decoder().values()):
        return None
    found = special_tokens.named(ids)
    if found is None:
        return None
    unknown = core.model.unk_token if isinstance(core.model, models.WordPiece) else None
    if found.cls_last:
        fits, wanted = isinstance(core.model, models.Unigram), "a unigram model"
    elif found.between == 2:
        fits, wanted = isinstance(core.model, models.BPE), "byte-level BPE"
    else:
        fits, wanted = unknown == special_tokens.BERT["unk"], f"WordPiece, with {special_tokens.BERT['unk']} for the unknown"
    if not fits:
        raise BadInput(f"its marks are those of {wanted}, and its model is another; give one of that kind")
    return found


def _cuts(content: Any) -> Cuts:
    """Where a text may be cut without a trace: as `train.data.chunking` does by GPT-2's rules alone or BERT's; before spaces by
    T5's or XLNet's.

    BERT's divide at every space and around all punctuation. None normalizes a character with regard to one before a space.
    """
    rules, normalizer = content.get("pre_tokenizer") or {}, content.get("normalizer")
    kind, normal = rules.get("type"), (normalizer or {}).get("type")
    if not all(token["special"] for token in content.get("added_tokens", ())):
        return "nowhere"
    gpt = kind == "ByteLevel" and not rules.get("add_prefix_space") and rules.get("use_regex", True)
    if (gpt and normal is None) or (kind == "BertPreTokenizer" and normal in (None, "BertNormalizer")):
        return "anywhere"
    parts: list[Any] = rules.get("pretokenizers", []) if kind == "Sequence" else []
    words = [part["type"] for part in parts] == ["WhitespaceSplit", "Metaspace"]
    # Older files have the flag, newer ones the word.
    prefixed = words and parts[1].get("prepend_scheme", "always") == "always" and parts[1].get("add_prefix_space", True)
    return "spaces" if prefixed and (normal in (None, "Precompiled") or xlnet_unigram.is_normalizer(normalizer)) else "nowhere"


def _parse(content: str) -> tokenizers.Tokenizer:
    """The library's tokenizer. On some files it panics, with an exception that is no `Exception`."""
    try:
        return tokenizers.Tokenizer.from_str(content)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise BadInput(f"no tokenizer ({' '.join(str(error).split())}); write it with the tokenizers library") from None
