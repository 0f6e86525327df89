"""The tokenizer of a GGUF file: entries, merges and types of byte-level BPE, as llama.cpp reads them."""

from typing import Any

from train.tokenizers import hf_files
from train.tokenizers.byte_bpe import QWEN_PATTERN
from train.tokenizers.special_tokens import LLAMA_BEGIN
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput

LLAMA_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Pattern of the words of Llama 3."""
WORDS = {
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", LLAMA_PATTERN), ("ByteLevel", False)): "llama-bpe",
    (("Split", QWEN_PATTERN), ("ByteLevel", False)): "qwen2",
}
"""Parts of the pre-tokenizer in tokenizer.json -> llama.cpp's name of these rules (`llm_tokenizer_bpe` in llama-vocab.cpp)."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Types of entries: `gguf.TokenType`."""


def add_tokenizer(writer: Any, tokenizer: Tokenizer, vocabulary: int) -> None:
    """Add a tokenizer to a `gguf.GGUFWriter`.

    Args:
        vocabulary: number of rows of the model's table. Rows after the tokenizer's entries get names that no text has.

    Raises:
        BadInput: it is not byte-level BPE, or splits words by rules that llama.cpp has no name for.
    """
    content = tokenizer.content()
    if content["model"]["type"] != "BPE":
        raise BadInput("--gguf: the tokenizer is not byte-level BPE, the kind that the zoo writes to GGUF; use --stablehlo")
    words = _word_rules(content["pre_tokenizer"])
    ids = tokenizer.ids()
    names = [name for name, _ in sorted(ids.items(), key=lambda entry: entry[1])]
    types = [NORMAL] * len(names)
    for entry in content["added_tokens"]:
        types[entry["id"]] = CONTROL if entry["special"] else USER_DEFINED
    missing = range(len(names), vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words)
    writer.add_token_list([*names, *(f"[PAD{number}]" for number in missing)])
    writer.add_token_types([*types, *(UNUSED for _ in missing)])
    merges = content["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    roles = {role: ids[name] for role, name in hf_files.special_token_names(tokenizer).items() if name in ids}
    writer.add_bos_token_id(roles.get("bos_token", tokenizer.begin_of_text))
    writer.add_eos_token_id(roles.get("eos_token", tokenizer.end_of_text))
    if "pad_token" in roles:
        writer.add_pad_token_id(roles["pad_token"])
    writer.add_add_bos_token(ids.get(LLAMA_BEGIN) == tokenizer.begin_of_text)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _word_rules(content: Any) -> str:
    """Return llama.cpp's name of the rules by which a pre-tokenizer splits texts into words.

    Raises:
        BadInput: it has none.
    """
    parts = content["pretokenizers"] if content and content["type"] == "Sequence" else [content]
    keys = {"ByteLevel": "use_regex", "Digits": "individual_digits"}
    described = tuple(
        (part["type"], part["pattern"].get("Regex") if part["type"] == "Split" else part.get(keys.get(part["type"], "")))
        for part in parts
        if part is not None
    )
    has_prefix = any(part is not None and part.get("add_prefix_space") for part in parts)
    if has_prefix or described not in WORDS:
        names = ", ".join(WORDS.values())
        raise BadInput(f"--gguf: the tokenizer splits words by rules that are none of llama.cpp's {names}; use --stablehlo")
    return WORDS[described]
