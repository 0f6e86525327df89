"""Chat templates: the text that `transformers` renders, byte for byte, and templates and conversations that are refused."""

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import jinja2
import pytest

from eval.commands.generate import without_first_space
from eval.generation.generation_options import Decoding
from eval.generation.generator import _Text
from tests.support.chat import CHATML, CONVERSATIONS, chat_tokenizer
from train.data.example_types import Dialogue
from train.tokenizers import hf_files
from train.tokenizers.chat_template import TEMPLATE, ChatTemplate, chat_template, with_template
from train.tokenizers.chat_token_ids import encode_dialogues, encode_prompts, end_mark
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput

LOOPS = """{{ bos_token }}
{% for message in messages %}
    {% if message['role'] == 'system' %}
        {% continue %}
    {% endif %}
    {% if loop.index0 > 3 %}{% break %}{% endif %}
  <{{ loop.index }}/{{ loop.length }}> {{ message['content'] | trim }}
{% endfor %}
{%- if add_generation_prompt %}[{{ messages[-1].role | upper }}]{% endif %}
"""
FILTERS = """{% set ns = namespace(system='', count=0) %}
{%- for m in messages %}{% if m.role == 'system' %}{% set ns.system = m.content %}{% endif %}
    {%- set ns.count = ns.count + 1 %}{% endfor -%}
{{ messages | tojson }} {{ {'b': "<é>&'", 'a': ns.count} | tojson(indent=2, sort_keys=true) }}
{{- ns.system | default('none', true) | replace('a', 'A') | title }} {{ messages | map(attribute='role') | join(',') }}
{%- if tools is not none or documents %}never{% endif %}{{ unk_token }}|{{ undefined_name }}|{{ strftime_now('%Y') }}
{{- dict(a=1).items() | list }}"""
MACROS = """{% macro turn(role, text='') -%}
<|{{ role }}|>{% generation %}{{ text }}{% endgeneration %}
{% endmacro -%}
{% for role, group in messages | groupby('role') %}{{ turn(role, group[0].content) }}{% endfor %}{# a comment #}
{%- for m in messages if m.role == 'assistant' %}
{% set inner %}{% generation %}  {{ m.content }}
{% endgeneration %}{% endset %}{{ inner }}{{ eos_token }}
{%- endfor %}"""
RAISING = """{% for m in messages %}
{% if m.role == 'system' %}{{ raise_exception('No system: ' ~ m.content) }}{% endif %}{{ m }}
{% endfor %}"""
TEMPLATES = {"built in": TEMPLATE, "chatml": CHATML, "loops": LOOPS, "filters": FILTERS, "macros": MACROS, "raising": RAISING}


def rendered_by_transformers(source: str, names: dict[str, str], messages: Any, generation_prompt: bool) -> tuple[str, Any]:
    utils: Any = importlib.import_module("transformers.utils.chat_template_utils")
    options: dict[str, Any] = {"add_generation_prompt": generation_prompt, "return_assistant_tokens_mask": True, **names}
    texts, spans = utils.render_jinja_template(conversations=[messages], chat_template=source, **options)
    return texts[0], spans[0]


def compare(source: str, names: dict[str, str]) -> int:
    """Compare the renderings of all conversations, refusals included, and return the number of texts that were equal."""
    importlib.import_module("transformers.utils.chat_template_utils")
    try:
        template = ChatTemplate(source, names, "it")
    except BadInput:
        with pytest.raises(jinja2.TemplateSyntaxError):
            rendered_by_transformers(source, names, [], False)
        return 0
    equal = 0
    for messages, prompt in itertools.product(CONVERSATIONS, (False, True)):
        listed = [message._asdict() for message in messages]
        try:
            text, spans = rendered_by_transformers(source, names, listed, prompt)
        except Exception:
            with pytest.raises(BadInput, match=r"^a\.jsonl:7: it cannot render the conversation: "):
                template.render(messages, "a.jsonl:7", generation_prompt=prompt)
            continue
        assert template.render(messages, "a.jsonl:7", generation_prompt=prompt) == text
        if not prompt and "{% set inner" not in source:
            # There the positions of `transformers` are those at which the part was captured, not where it is written.
            assert list(template.render_spans(messages, "a.jsonl:7").spans) == spans
        equal += 1
    return equal


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_is_rendered_as_transformers_renders_it(name: str) -> None:
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert compare(TEMPLATES[name], names) == (6 if name == "raising" else 12)


@pytest.mark.parametrize("own", [CHATML, None])
def test_an_exported_tokenizer_renders_and_counts_the_same_in_transformers(own: str | None, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = chat_tokenizer(own) if own else with_template(chat_tokenizer(None), "builtin")
    hf_files.write_tokenizer(tmp_path, tokenizer, longest=None)
    theirs, template = AutoTokenizer.from_pretrained(tmp_path), chat_template(Tokenizer.load(tmp_path), "it")
    for messages in CONVERSATIONS[:5]:
        listed = [message._asdict() for message in messages]
        assert template.render(messages, "") == theirs.apply_chat_template(listed, tokenize=False)
        encoded = theirs.apply_chat_template(listed, return_dict=True, return_assistant_tokens_mask=True)
        (text,) = encode_dialogues([Dialogue(origin="", messages=messages)], tokenizer, template, "all")
        size = len(text.ids)
        assert (text.ids.tolist(), text.counted.astype(int).tolist()) == (
            encoded["input_ids"][:size],
            encoded["assistant_masks"][:size],
        )
        assert not theirs.decode(encoded["input_ids"][size:]).strip()


def test_a_prompt_ends_with_the_beginning_of_an_answer_and_an_answer_with_its_end_mark() -> None:
    tokenizer, template = chat_tokenizer(), chat_template(chat_tokenizer(), "it")
    (ids,) = encode_prompts(["a <b>"], tokenizer, template)
    assert tokenizer.decode(ids) == "<|im_start|>user\na <b><|im_end|>\n<|im_start|>assistant\n"
    assert (tokenizer.decode(ids[:1]), end_mark(tokenizer, template)) == ("<|im_start|>", tokenizer.special_names["<|im_end|>"])
    with pytest.raises(BadInput, match=r"^prompt 2: message 1 spells the special token <\|im_start\|>; write it differently"):
        encode_prompts(["a", "<|im_start|>system"], tokenizer, template)
    text = _Text(tokenizer, Decoding(limit=9), 0, 0, ids, 0, continues_prompt=True, ends=(end_mark(tokenizer, template),))
    text.take([5, tokenizer.end_of_text, end_mark(tokenizer, template), 6], [True] * 4)
    assert (text.ids, text.ended) == ([5, tokenizer.end_of_text], "end of text")
    assert list(without_first_space(iter((" ", "\n a", " b", " ")))) == ["a", " b", " "]


def test_the_template_of_the_settings_is_used_if_there_is_no_file(tmp_path: Path) -> None:
    settings = {"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ eos_token }}"}]}
    named = chat_tokenizer(None).with_files({"eos_token": "<|im_end|>", **settings}, None)
    assert chat_template(named, "it").render([], "") == "<|im_end|>"
    (tmp_path / "own.jinja").write_text("own")
    replaced = with_template(named, str(tmp_path / "own.jinja"))
    assert (chat_template(replaced, "it").render([], ""), "chat_template" in replaced.settings) == ("own", False)
    for settings, message in (({"chat_template": [1]}, "neither a text nor a list"), ({}, "no chat template; put")):
        with pytest.raises(BadInput, match=message):
            chat_template(chat_tokenizer(None).with_files(settings, None), "it")
    with pytest.raises(BadInput, match=r"^--chat\.template .*missing: cannot be read"):
        with_template(named, str(tmp_path / "missing"))


@pytest.mark.parity
def test_the_templates_of_trl_are_rendered_as_transformers_renders_them() -> None:
    spec = importlib.util.find_spec("trl")
    assert spec is not None and spec.submodule_search_locations, "install trl, without its dependencies"
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.jinja"))
    counts = {file: compare(file.read_text(), {"bos_token": "<s>", "eos_token": "</s>"}) for file in files}
    assert len(counts) >= 70 and sum(counts.values()) >= 700
