"""Conversations, a template with special tokens of its own, and tokenizers that have them."""

import functools
import json

import tokenizers

from train.data.example_types import Dialogue, Message
from train.tokenizers.tokenizer import Tokenizer

CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message.role }}
{% if message.role == 'assistant' %}
{% generation %}
{{ message.content }}<|im_end|>
{%- endgeneration +%}
{% else %}
{{ message.content }}<|im_end|>
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""


def turns(*contents: str, system: str = "") -> tuple[Message, ...]:
    """Return a conversation of alternating turns, after a system message unless that is empty."""
    roles = ("user", "assistant")
    first = (Message("system", system),) if system else ()
    return first + tuple(Message(roles[number % 2], content) for number, content in enumerate(contents))


CONVERSATIONS = (
    turns("What is white?", "The whale."),
    turns("  Who?\n", "\n The old man \n", system="Be brief & <kind>."),
    turns("One.", "Two.", "Three?", "Four!"),
    turns("naïve 鯨 \U0001f40b", "'quoted' \"twice\" {{ braces }}", "a\tb", "{% if %}", system="Say \\n."),
    turns("x", "y", "x", "y", "x", "y"),
    turns("a" * 50, "line\n\nline\n", system=" "),
)


def dialogue(*contents: str, system: str = "") -> Dialogue:
    return Dialogue(origin="chat.jsonl:7", messages=turns(*contents, system=system))


@functools.cache
def chat_tokenizer(template: str | None = CHATML) -> Tokenizer:
    """Return a byte-level tokenizer with the special tokens of ChatML."""
    trained = Tokenizer.train([content for turns in CONVERSATIONS for _, content in turns] * 3, 290)
    core = tokenizers.Tokenizer.from_str(json.dumps(trained.content()))
    core.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return Tokenizer(json.loads(core.to_str()), {}, template)
