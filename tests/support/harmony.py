"""Tokenizers in the form of the one released with gpt-oss, o200k_harmony, with a small vocabulary.

Sources: openai/gpt-oss (`gpt_oss/tokenizer.py`) for the pattern and the special tokens, and `convert_gpt_oss_weights_to_hf.py` of
`transformers` for the files. The released vocabulary has 199,998 entries before the special tokens.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from train.data.example_types import Message

BEGIN, END, RETURN = "<|startoftext|>", "<|endoftext|>", "<|return|>"
NAMED = {0: BEGIN, 1: END, 4: RETURN, 5: "<|constrain|>", 7: "<|channel|>", 8: "<|start|>", 9: "<|end|>", 10: "<|message|>"}
NAMED |= {14: "<|call|>", 20: "<|endofprompt|>"}
NAMES = tuple(NAMED.get(place, f"<|reserved_{199_998 + place}|>") for place in range(21))
"""The special tokens in the order of their ids; the released ids begin at 199,998."""
ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERN = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ENDING}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ENDING}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
"""The words of GPT-4o's tokenizer: letters by case, up to three digits, signs, spaces."""
TEMPLATE = """\
{%- macro header(role, channel) -%}
{{- '<|start|>' + role -}}
{%- if channel -%}{{- '<|channel|>' + channel -}}{%- endif -%}
{{- '<|message|>' -}}
{%- endmacro -%}
{%- for message in messages -%}
{%- set last = loop.last and not add_generation_prompt -%}
{%- if message.role == 'assistant' -%}
{{- header('assistant', 'final') + message.content + ('<|return|>' if last else '<|end|>') -}}
{%- else -%}
{{- header('developer' if message.role == 'system' else message.role, none) + message.content + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}
"""
"""Messages in the harmony format: an answer is in the channel `final`, and the last one ends with the token of its own."""
MESSAGES = (Message("system", "Be brief."), Message("user", "Who?  12345"), Message("assistant", "The WHALE's."))


def content(texts: Iterable[str], vocab: int) -> dict[str, Any]:
    """Return a tokenizer.json whose merges are trained on texts: `vocab` entries, and then the special tokens."""
    core = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="isolated", invert=False)
    parts = [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    core.pre_tokenizer = pre_tokenizers.Sequence(parts)  # pyright: ignore[reportAttributeAccessIssue]
    core.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    core.post_processor = processors.ByteLevel(trim_offsets=False)  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(iter(texts), trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet, show_progress=False))
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in NAMES])
    return json.loads(core.to_str())


def write(folder: Path, tokenizer: dict[str, Any], **changes: Any) -> None:
    """Write the files of a tokenizer as released: tokenizer.json, its settings, the chat template."""
    decoder = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in tokenizer["added_tokens"]
    }
    settings = {
        **{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BEGIN, "eos_token": RETURN, "pad_token": END},
        **{"added_tokens_decoder": decoder, "clean_up_tokenization_spaces": False, "extra_special_tokens": {}},
        **{"model_input_names": ["input_ids", "attention_mask"], "model_max_length": 10**30},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | changes))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
