"""The tokenizer of nanochat: byte-level pairs whose documents are divided by `<|bos|>` (nanochat/tokenizer.py at b8076dd)."""

import json
from pathlib import Path

from train.tokenizers.hf_files import read_tokenizer
from train.tokenizers.tokenizer import Tokenizer


def test_documents_are_divided_by_its_first_special_token(tmp_path: Path) -> None:
    Tokenizer.train(["a line of text"] * 9, 270).save(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace("<|endoftext|>", "<|bos|>"))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nanochat"}))
    tokenizer = read_tokenizer(tmp_path)
    bos = json.loads(file.read_text())["model"]["vocab"]["<|bos|>"]
    assert (tokenizer.kind, tokenizer.end_of_text, tokenizer.begin_of_text) == ("gpt", bos, bos)
    assert tokenizer.decode(tokenizer.encode("a text")) == "a text" and bos not in tokenizer.encode("<|bos|>")
