"""Tokenizers: the byte-level BPE of GPT-2, RoBERTa and ModernBERT, BERT's WordPiece, unigram models (T5, XLNet, XLM-R), bytes."""

import copy
import functools
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

from train.data.chunking import group_chunks
from train.run.run_dir import write_text
from train.tokenizers import byte_bpe, byte_tokens, special_tokens, text_borders, unigram, wordpiece, xlnet_unigram
from train.tokenizers.byte_bpe import QWEN_PATTERN
from train.tokenizers.special_tokens import END_OF_TEXT, ENDS, LLAMA_BEGIN, ROBERTA, SpecialTokens, TextSpecialTokens
from train.untrusted import tokenizer_content
from zoo.errors import BadInput
from zoo.file_access import read_regular_text, refuse_link_out
from zoo.hf.config_json import read_json
from zoo.hf.tokenizer_files import FILE, SETTINGS
from zoo.runtime import stdio

CHAT, LARGEST_FILE = "chat_template.jinja", 64 << 20

TrainedKind = Literal["gpt", "wordpiece", "roberta", "modernbert", "sentencepiece", "xlnet"]
Kind = TrainedKind | Literal["xlm-roberta", "bytes"]
"""The kinds that are trained here, and those that are only read."""
KNOWN_PATTERNS = (QWEN_PATTERN, xlnet_unigram.SPACES["pattern"]["Regex"])
"""Regular expressions of tokenizers that are built here, which need no check."""
CLEAN = "clean_up_tokenization_spaces"
CONTRACTED = [(f" {end}", end) for end in (".", "?", "!", ",")] + [(" ' ", "'")]
CONTRACTED += [(f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")]
"""Replacements that `transformers` makes in decoded text if `clean_up_tokenization_spaces` is set."""

# The threads of the library do not survive a fork. If the variable is unset, the library warns at a fork; if it is true, the
# child hangs. So it is set to true here, and to false in the child.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.register_at_fork(after_in_child=lambda: os.environ.__setitem__("TOKENIZERS_PARALLELISM", "false"))


class Tokenizer:
    """A tokenizer, defined by the content of its tokenizer.json.

    `Tokenizer.train(texts, vocab, kind)` and `Tokenizer.load(folder)` create one. Encoding adds nothing to a text and never
    returns the id of a special token, except the unknown token: the text "<|endoftext|>" is encoded as those thirteen characters.
    """

    kind: Kind
    """The rules: those of GPT-2, BERT, RoBERTa, ModernBERT, T5, XLNet, XLM-R or ByT5."""
    vocab_size: int
    """Number of entries; ids are 0 .. vocab_size - 1."""
    special_tokens: SpecialTokens | None
    """The special tokens of an encoder, else None: GPT-2 has only the end of text."""
    text_special_tokens: TextSpecialTokens | None
    """The special tokens of T5 or ByT5, else None."""
    end_of_text: int
    """Id that ends a document: "<|endoftext|>" (0 if trained here), an encoder's `special_tokens.end`, or T5's "</s>"."""
    begin_of_text: int
    """Id before a text that follows nothing: "<|begin_of_text|>" if the template adds it (Llama 3), "[CLS]" of ModernBERT's kind
    (Ettin's decoders), else that of `end_of_text`, which is between documents."""
    spells_bytes: bool
    """True if a unigram model spells unknown characters as bytes, as mT5's."""
    fingerprint: str
    """SHA-256 of the content of tokenizer.json, independent of its layout: equal for equal tokenizers."""

    settings: Mapping[str, Any]
    """Content of the tokenizer_config.json in the same folder, whose settings do not change ids; empty if there was none."""
    chat_template: str | None
    """Content of the chat_template.jinja there, which `train.tokenizers.chat_template` renders; None if there was none."""

    def __init__(self, content: Any, settings: Mapping[str, Any] | None = None, chat_template: str | None = None) -> None:
        """Build a tokenizer from the parsed content of a tokenizer.json, and the content of the files to store with it.

        Raises:
            BadInput: the content does not define a usable tokenizer; the caller adds the name of the file.
        """
        tokenizer_content.check_content(content, KNOWN_PATTERNS)
        self.settings, self.chat_template = dict(settings or {}), chat_template
        self._json = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        self.fingerprint = hashlib.sha256(self._json.encode()).hexdigest()
        self._core = _parse(self._json)
        self._core.no_truncation()
        self._core.no_padding()
        self._core.encode_special_tokens = True
        ids = self._core.get_vocab(with_added_tokens=True)
        self.vocab_size = len(ids)
        if set(ids.values()) != set(range(self.vocab_size)):
            raise BadInput(f"its {self.vocab_size} entries do not have the ids 0 to {self.vocab_size - 1}; renumber them")
        model = self._core.model
        self._unigram = isinstance(model, models.Unigram)
        self.spells_bytes = self._unigram and bool(content["model"].get("byte_fallback"))
        is_bytes = byte_tokens.is_byte_tokens(content)
        is_t5 = self._unigram and not xlnet_unigram.has_xlnet_names(ids) and ROBERTA["mask"] not in ids
        is_text_to_text = is_bytes or is_t5
        self.special_tokens = None if is_text_to_text else special_tokens.special_tokens_of(self._core, ids)
        self.text_special_tokens = special_tokens.text_special_tokens(ids) if is_text_to_text else None
        if self._unigram:
            self._core.model = unigram.without_special_texts(self._core)  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(model, models.WordPiece) and model.token_to_id(model.unk_token) is None:
            raise BadInput(f"its vocabulary has no entry {model.unk_token}, which stands for unknown words; add it")
        self._continues = model.continuing_subword_prefix if isinstance(model, models.WordPiece) else None
        if self._continues and self._core.decoder is None:
            self._core.decoder = decoders.WordPiece(self._continues)  # pyright: ignore[reportAttributeAccessIssue]
        if self.text_special_tokens:
            self.kind, self.end_of_text = "bytes" if is_bytes else "sentencepiece", self.text_special_tokens.end
        elif self.special_tokens:
            bpe: Kind = "roberta" if self.special_tokens.between == 2 else "modernbert"
            of_model: Kind = "wordpiece" if self._continues else "xlm-roberta" if self._unigram else bpe
            self.kind = "xlnet" if self.special_tokens.cls_last else of_model
            self.end_of_text = self.special_tokens.end
        elif (end := next((name for name in ENDS if name in ids), None)) is not None:
            self.kind, self.end_of_text = "gpt", ids[end]
        else:
            raise BadInput(f"it has no entry {END_OF_TEXT}, which ends every document; add it")
        begin = ids.get(LLAMA_BEGIN)
        begins = self.kind == "gpt" and begin is not None and self.encode_with_template("a")[0][:1] == [begin]
        self.begin_of_text = begin if begins and begin is not None else self.end_of_text
        if self.kind == "modernbert" and self.special_tokens:
            self.begin_of_text = self.special_tokens.cls
        self._cuts: text_borders.Cuts = text_borders.safe_cuts(content)
        special = self.text_special_tokens or self.special_tokens
        for number in sorted(self._special() - ({special.unk} if special else set())):
            if number in self.encode(spelling := str(self._core.id_to_token(number))):
                raise BadInput(f"{spelling} is not marked as special, so any text could end a document; set its special to true")

    @property
    def mask_absorbs_space(self) -> bool:
        """True if the mask stands for a word and the space before it, as in byte-level BPE and XLM-R's unigram model."""
        return self.kind in ("roberta", "modernbert", "xlm-roberta")

    @property
    def contracts_spaces(self) -> bool:
        """True if decoding removes spaces before punctuation, so that later ids can change the last two words of a text."""
        # Byte-level BPE decodes to exactly the text that was encoded.
        return bool(self.settings.get(CLEAN)) and not isinstance(self._core.model, models.BPE)

    @classmethod
    def train(cls, texts: Iterable[str], vocab: int, kind: TrainedKind = "gpt", lowercase: bool = True) -> "Tokenizer":
        """Train a tokenizer of up to `vocab` entries.

        They are the special tokens, the 256 bytes (WordPiece: the characters), then merges, most frequent pair first; or the most
        likely pieces, for T5's kind and XLNet's (see `train.tokenizers.unigram` and `train.tokenizers.xlnet_unigram`).

        The result does not depend on whether the texts are whole or in the chunks of `train.data.chunking.cut_chunks`. A text too
        small for that many merges gives fewer entries: the vocabulary of a model is `vocab_size`, not `vocab`.

        Args:
            lowercase: for WordPiece only: drop case and accents, as the "uncased" models do.
        """
        if kind == "sentencepiece":
            return cls(unigram.train_t5_tokenizer(texts, vocab))
        if kind == "xlnet":
            return cls(xlnet_unigram.train_xlnet_tokenizer(texts, vocab))
        if kind == "wordpiece":
            return cls(wordpiece.train_wordpiece(texts, vocab, lowercase=lowercase))
        rules = {"roberta": byte_bpe.train_roberta, "modernbert": byte_bpe.train_modernbert, "gpt": byte_bpe.train_gpt}
        return cls(rules[kind](texts, vocab))

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Load the tokenizer of a folder with a tokenizer.json.

        Raises:
            BadInput: there is no such file; or its content is not a tokenizer, has gaps between the ids, or has neither
                "<|endoftext|>" nor all special tokens of its kind.
        """
        file, settings = Path(folder) / FILE, Path(folder) / SETTINGS
        config = read_json(settings, LARGEST_FILE) if settings.exists() else None
        chat_template = read_chat_template(Path(folder))
        try:
            return cls(json.loads(read_regular_text(file, LARGEST_FILE)), config, chat_template)
        except OSError as error:
            raise BadInput(f"{file}: cannot be read ({error.strerror}); name a folder that holds a {FILE}") from None
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{file}: not JSON ({error}); write it with the tokenizers library") from None
        except BadInput as error:
            raise BadInput(f"{file}: {error}") from None

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, and the files loaded with it, into a folder; each file is replaced atomically.

        Raises:
            BadInput: a file cannot be written; the old one is unchanged.
        """
        settings = json.dumps(self.settings, indent=2) + "\n" if self.settings else None
        for name, text in ((SETTINGS, settings), (CHAT, self.chat_template), (FILE, self._json)):
            if text is None:
                (Path(folder) / name).unlink(missing_ok=True)
            else:
                write_text(Path(folder) / name, text)

    def with_files(self, settings: Mapping[str, Any], chat_template: str | None) -> "Tokenizer":
        """Return the same tokenizer with other files beside it."""
        other = copy.copy(self)
        other.settings, other.chat_template = dict(settings), chat_template
        return other

    def content(self) -> dict[str, Any]:
        """Return the content of tokenizer.json as the installed library writes it, whatever version it was read from."""
        return json.loads(_parse(self._json).to_str())

    def ids(self) -> dict[str, int]:
        """Return the id of each entry, added tokens included."""
        return self._core.get_vocab(with_added_tokens=True)

    def encode_with_template(self, first: str, second: str | None = None) -> tuple[list[int], list[int]]:
        """Return ids and token types of one text or two with the special tokens that the template in tokenizer.json adds."""
        with tokenizer_content.library_errors(), stdio.silence_native():
            encoding = self._core.encode(first, second)
        return encoding.ids, encoding.type_ids

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Return the ids of a text, without special tokens."""
        return next(self.encode_many([text]))

    def encode_many(self, texts: Iterable[str]) -> Iterator[Int32[np.ndarray, " tokens"]]:
        """Yield the ids of each text, in order, on all cores. Memory is bounded by the longest text, not by their number."""
        parts: list[np.ndarray] = []
        for group in group_chunks(self.chunks((text, True) for text in texts)):
            for ids, (_, last) in zip(self.encode_batch([chunk for chunk, _ in group]), group, strict=True):
                parts.append(ids)
                if last:
                    yield np.concatenate(parts)
                    parts = []

    def encode_rendered(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " tokens"]]:
        """Return the ids of texts that a chat template has rendered, in which the names of special tokens are those tokens.

        This is what `transformers` does with every text, without the special tokens that it puts around one.
        """
        with tokenizer_content.library_errors():
            encodings = self._parsing_core.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    @functools.cached_property
    def _parsing_core(self) -> tokenizers.Tokenizer:
        """The library's tokenizer, which replaces the names of special tokens by their ids."""
        core = _parse(self._json)
        core.no_truncation()
        core.no_padding()
        core.encode_special_tokens = False
        return core

    @functools.cached_property
    def special_names(self) -> dict[str, int]:
        """The ids by name of all special tokens, also of those without a role here, but not of the unknown token."""
        own = self.special_tokens or self.text_special_tokens
        ids = {number for number, token in self._core.get_added_tokens_decoder().items() if token.special} | self._special()
        return {str(self._core.id_to_token(number)): number for number in sorted(ids - ({own.unk} if own else set()))}

    def encode_batch(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " tokens"]]:
        """Return the ids of each text, on all cores: the library's threads need the interpreter lock only for the result."""
        with tokenizer_content.library_errors():
            encodings = self._core.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def encode_spans(self, texts: Sequence[str]) -> list[tuple[Int32[np.ndarray, " tokens"], Int64[np.ndarray, "tokens 2"]]]:
        """Return the ids of each text and their spans: index of the first character, and of the one after the last.

        Tokens that share a character (bytes of an emoji) have the same span. The spans of RoBERTa, T5 and XLNet exclude the space
        before a word. Characters that normalization drops are in no span, or inside one.
        """
        with tokenizer_content.library_errors():
            encodings = self._core.encode_batch(texts, add_special_tokens=False)
        return [(np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int64).reshape(-1, 2)) for encoding in encodings]

    def encode_words(self, words: Sequence[str]) -> tuple[Int32[np.ndarray, " tokens"], Int64[np.ndarray, " tokens"]]:
        """Return the ids of a list of words, and the index of the word of each id. A word may have no ids.

        Byte-level BPE encodes a word within a text with the space before it. Here every word gets that space, the first too, as
        in `transformers` (`is_split_into_words=True, add_prefix_space=True`) and in the models fine-tuned with it.
        """
        if not self._continues:
            words = [word if word.startswith(" ") or not word else f" {word}" for word in words]
        with tokenizer_content.library_errors():
            encoding = self._core.encode(words, is_pretokenized=True, add_special_tokens=False)
        return np.array(encoding.ids, np.int32), np.array(encoding.word_ids, np.int64)

    def chunks(self, texts: Iterable[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
        """Yield (chunk, True if it ends a text), cut so that the ids of a text are those of its chunks, joined.

        `texts` has the same form: whole texts, or the chunks of `train.data.chunking.cut_chunks`, which are kept or cut further.
        The rules of T5 and XLNet allow cuts before spaces only. With unknown rules every text is yielded as a whole.

        Raises:
            BadInput: a text is longer than can be encoded at once.
        """
        return text_borders.cut_texts(texts, self._cuts)

    def entries(self, ids: Integer[np.ndarray, " tokens"] | Sequence[int]) -> list[str]:
        """Return the entry of the vocabulary for each id."""
        return [str(self._core.id_to_token(number)) for number in np.asarray(ids).tolist()]

    def spell(self, number: int) -> str:
        """Return the text of an id that is not the first of its text; the text of a word's first id begins with a space.

        WordPiece's entries have no space, but "##" if there is none. (`decode` would treat an id of T5 or XLNet as a text of its
        own, which does not begin with a space.)
        """
        if self._unigram:
            return str(self._core.id_to_token(number)).replace(unigram.SPACE, " ")
        return self.decode([number])

    def decode(self, ids: Integer[np.ndarray, " tokens"] | Sequence[int]) -> str:
        """Return the text of ids; special tokens appear as their names, and bytes that are not UTF-8 as U+FFFD.

        WordPiece returns words separated by spaces, not the original text: case, accents and the kind of space may be lost. The
        kinds of T5 and XLNet return the normalized text, with "<unk>" for unknown characters; if the settings have
        `clean_up_tokenization_spaces`, without the space before punctuation, as `transformers` decodes it.

        Raises:
            ValueError: an id is outside the vocabulary (the library would drop it silently).
        """
        numbers = np.asarray(ids, np.int64)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= self.vocab_size):
            raise ValueError(f"ids {numbers.min()} to {numbers.max()} are not all in a vocabulary of {self.vocab_size}")
        with tokenizer_content.library_errors():
            text = self._core.decode(numbers.tolist(), skip_special_tokens=False)
        if self.contracts_spaces:
            for before, after in CONTRACTED:
                text = text.replace(before, after)
        return text

    def continuation(self, ids: Integer[np.ndarray, " tokens"] | Sequence[int]) -> str:
        """Return the text of ids that continue another text; with T5 and XLNet it includes the space before its first word."""
        text = self.decode(ids)
        if self._unigram and len(ids) and self.spell(int(ids[0])).startswith(" ") and not text.startswith(" "):
            return f" {text}"
        return text

    def token_bytes(self) -> Int64[np.ndarray, " V"]:
        """Return the number of UTF-8 bytes of each id; 0 for special tokens.

        Byte-level BPE: the sum over the ids of a text is its size. WordPiece: the bytes of the entry without "##"; the sum is
        less than the size of the text, because spaces, dropped accents and unknown words are not counted. T5 and XLNet: the sum
        is the size of the normalized text with a space before it, unknown characters not counted.
        """
        sizes = np.array([self._size(entry) for entry in self._entries()], np.int64)
        for number, token in self._core.get_added_tokens_decoder().items():
            sizes[number] = 0 if token.special else len(token.content.encode())
        return sizes

    def word_starts(self) -> Bool[np.ndarray, " V"]:
        """Return whether each entry begins a word, judged by the entry alone; special tokens do.

        WordPiece: it has no "##". Byte-level BPE: it begins with anything but a letter or digit (a space, punctuation), which no
        rule joins to the letters before it. The first word of a text or line has no space, so this table counts it as a
        continuation. T5 and XLNet: it begins with a space.
        """
        if self._unigram:
            special = self._special()
            starts = (entry.startswith(unigram.SPACE) or number in special for number, entry in enumerate(self._entries()))
            return np.array(list(starts), bool)
        if self._continues:
            return np.array([not entry.startswith(self._continues) for entry in self._entries()], bool)
        with tokenizer_content.library_errors():
            firsts = [self._core.decode([number], skip_special_tokens=False)[:1] for number in range(self.vocab_size)]
        return np.array([not (first.isalnum() or first == "\ufffd") for first in firsts], bool)

    def _special(self) -> set[int]:
        own = self.text_special_tokens or self.special_tokens
        return {*own.special} if own else {self.end_of_text, self.begin_of_text}

    def _size(self, entry: str) -> int:
        if self._unigram:
            return 1 if self.spells_bytes and entry in unigram.BYTES else len(entry.replace(unigram.SPACE, " ").encode())
        # The entries of byte-level BPE have one character for each byte.
        return len(entry) if self._continues is None else len(entry.removeprefix(self._continues).encode())

    def _entries(self) -> Iterator[str]:
        return (self._core.id_to_token(number) or "" for number in range(self.vocab_size))


def read_chat_template(folder: Path) -> str | None:
    """Return the content of a folder's chat_template.jinja, None if there is none.

    Raises:
        BadInput: it cannot be read, is not UTF-8 or is too large.
    """
    file = folder / CHAT
    try:
        # Any text is a template, and exports contain it.
        refuse_link_out(file)
        return read_regular_text(file, LARGEST_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: cannot be read ({error}); put the model's own file there, or remove it") from None


def _parse(content: str) -> tokenizers.Tokenizer:
    """Parse a tokenizer.json with the library."""
    with tokenizer_content.library_errors("not a tokenizer", "write it with the tokenizers library"), stdio.silence_native():
        return tokenizers.Tokenizer.from_str(content)
