"""XLM-R's unigram model: SentencePiece's ids plus 1, as in fairseq's dictionary, and the files that it comes in."""

from pathlib import Path

import pytest

from tests.train.tokenizers import kinds
from tests.train.tokenizers.kinds import AWKWARD, ROBERTA, VOCAB, library, raw, trained
from train.tokenizers import hf_files, sentencepiece_proto, xlm_unigram
from train.weights import import_export


def test_ids_are_those_of_sentencepiece_and_one_more() -> None:
    """The unknown token has another place: 0 there, 3 here."""
    ours, model = trained("xlm-roberta"), library("xlm-roberta")
    for text in (*AWKWARD, *kinds.chapters()[-1:]):
        expected = [ROBERTA.unk if number == model.unk_id() else number + 1 for number in model.encode(text)]
        assert ours.encode(text).tolist() == expected, text
    assert ours.entries([0, 1, 2, 3, VOCAB - 1]) == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert ours.special_tokens == ROBERTA and import_export._ids(ours) == {"bos_token_id": 0, "eos_token_id": 2}


@pytest.mark.planted(3)
def test_models_of_other_kinds_are_refused(tmp_path: Path) -> None:
    for content, message in (
        (raw("sentencepiece"), "its first entries are not <unk>, <s>, </s>, as XLM-R's are"),
        (raw("xlm-roberta").replace(b"\x06\xe2\x96\x81the", b"\x06<mask>"), "it has an ordinary entry <mask>, which XLM-R adds"),
        (raw("xlm-roberta")[:-3], "not a SentencePiece model"),
    ):
        (tmp_path / "sentencepiece.bpe.model").write_bytes(content)
        assert kinds.refused(tmp_path).startswith(f"{tmp_path}/sentencepiece.bpe.model: {message}")


@pytest.mark.planted
def test_a_mutant_with_the_ids_of_sentencepiece_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = sentencepiece_proto.parse_spiece_model(raw("xlm-roberta"))
    content = xlm_unigram.convert_xlm_unigram(proto._replace(entries=(*proto.entries[:3], *proto.entries[4:])))
    monkeypatch.setattr("tests.train.tokenizers.test_xlm_unigram.trained", lambda kind: hf_files.Tokenizer(content))
    with pytest.raises(AssertionError):
        test_ids_are_those_of_sentencepiece_and_one_more()
