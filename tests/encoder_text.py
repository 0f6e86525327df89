"""Tokenizers with marks and streams of their ids, small enough to read, for the tests of what encoders are pretrained on."""

import json

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from train.marks import BERT, ROBERTA, named
from train.prepare import Tokens
from train.tokenizer import Tokenizer


class Standin(Tokenizer):
    def __init__(self, core, names):
        core.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names.values()])
        self._core = core
        self._core.encode_special_tokens = True
        ids = core.get_vocab(with_added_tokens=True)
        self.vocab_size = len(ids)
        self.marks = named(ids)
        self.end_of_text = self.marks.sep
        self._cuts = False
        self.fingerprint = "x"

    def word_starts(self):
        e = [self._core.id_to_token(n) for n in range(self.vocab_size)]
        if self.marks.between == 1:
            return np.array([not x.startswith("##") for x in e])
        return np.array([x.startswith("Ġ") or not x[0].isalnum() for x in e])


def wordpiece(words, lowercase=True):
    """A WordPiece tokenizer of BERT's rules with these entries after the marks."""
    vocab = {w: i for i, w in enumerate([*BERT.values(), *words])}
    core = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    core.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(prefix="##")
    return Standin(core, BERT)


def trained_wordpiece(texts, vocab):
    core = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(prefix="##")
    core.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=vocab, special_tokens=list(BERT.values()), show_progress=False))
    return Standin(core, BERT)


def byte_level(texts, vocab):
    """A byte-level BPE tokenizer with RoBERTa's marks, trained on the texts."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab, special_tokens=list(ROBERTA.values()), show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return Standin(core, ROBERTA)


def stream(documents, tokenizer):
    """Prepared tokens of documents, each a text or the ids of one."""
    parts = [tokenizer.encode(each) if isinstance(each, str) else np.asarray(each) for each in documents]
    ids = np.concatenate([np.append(part, tokenizer.end_of_text) for part in parts]).astype(np.uint16)
    sizes = np.array([len(part) for part in parts], np.int64)
    return Tokens(ids, np.cumsum(np.append(0, sizes + 1)), sizes, tokenizer.end_of_text, "stream")
