"""Instructions and conversations: which tokens count, rows that depend on nothing else, and data that is refused."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import tiny
from tests.support.chat import CHATML, chat_tokenizer, dialogue, turns
from tests.support.labelled_files import put
from tests.support.small import random_params, small
from tests.support.unigram_text import spelled
from train import recipes
from train.config.data_options import DialogueData, PairData
from train.config.option_groups import Chat, ExampleFileOptions
from train.data import labelled_reader
from train.data.example_types import Pair
from train.inputs import data_notices, inspect_rows, instruction_inputs, run_inputs, seq2seq_inputs
from train.inputs.example_inputs import ExampleInputs
from train.objectives import supported_objectives
from train.objectives.instruction import Instruction
from train.objectives.text_to_text import TextToText
from train.rows.batches import in_order
from train.rows.mixture import Component, Mixture
from train.run.run_dir import RunDir
from train.tokenizers import chat_template
from train.tokenizers.tokenizer import Tokenizer
from train.weights import pretrained_config
from zoo.errors import BadInput

PLAIN = Pair(origin="a:1", source="What is white?", target=" The whale.")
CHAT = dialogue("One.", "Two.", "Three?", "Four!", system="Count.")
ONE = dialogue("Who?", "The old man")
EXAMPLES = [PLAIN, CHAT, ONE]
RESPONSES = [" The whale.<|endoftext|>", "Two.<|im_end|>Four!<|im_end|>", "The old man<|im_end|>"]


def run(**changes: Any) -> Any:
    model = small("gpt", context=128).config
    return tiny.run(**{"objective": "instruction", "model": model, "data": DialogueData(length=96, batch=4), **changes})


def batch_of(rows: Any, length: int, size: int = 8, build: Any = None) -> Any:
    build = build or Instruction.builder(run(), chat_tokenizer(), dict)
    return next(iter(in_order(rows, lambda rng, row, _: build(rng, row, length), size, np.arange(size))))


def assert_counts(batch: Any, tokenizer: Tokenizer, responses: list[str]) -> None:
    """Assert that the counted targets of each row are a response with its end mark, and all other inputs are not."""
    for row, response in enumerate(responses):
        counted = batch.weights[row] > 0
        assert tokenizer.decode(batch.targets[row][counted]).strip() == response.strip()
        # A target is the input after it, which the model sees only later.
        assert batch.targets[row][:-1][counted[:-1]].tolist() == batch.tokens[row][1:][counted[:-1]].tolist()


def test_the_responses_and_their_end_marks_count() -> None:
    rows = instruction_inputs.rows_of_instructions(EXAMPLES, run(), chat_tokenizer())
    assert_counts(batch_of(rows, rows.length), chat_tokenizer(), RESPONSES)
    last = instruction_inputs.rows_of_instructions(EXAMPLES, run(chat=Chat(turns="last")), chat_tokenizer())
    assert_counts(batch_of(last, rows.length), chat_tokenizer(), [RESPONSES[0], "Four!<|im_end|>", RESPONSES[2]])
    built_in = chat_template.with_template(chat_tokenizer(None), "builtin")
    texts = instruction_inputs.rows_of_instructions(EXAMPLES[1:], run(), built_in).texts
    assert [built_in.decode(text.ids[text.counted]) for text in texts] == [
        " Two.<|endoftext|> Four!<|endoftext|>",
        " The old man<|endoftext|>",
    ]
    expected = "Count.\n\nUser: One.\n\nAssistant: Two.<|endoftext|>User: Three?\n\nAssistant: Four!<|endoftext|>"
    assert built_in.decode(texts[0].ids) == expected and not any(text.differs for text in texts)


@pytest.mark.planted(3)
@pytest.mark.parametrize("mistake", ["shifted", "prompt", "no end"])
def test_a_wrong_mask_is_noticed(mistake: str) -> None:
    rows = instruction_inputs.rows_of_instructions(EXAMPLES, run(), chat_tokenizer())
    right = Instruction.builder(run(), chat_tokenizer(), dict)

    def build(*arguments: Any) -> dict[str, np.ndarray]:
        arrays = right(*arguments)
        weights = arrays["weights"]
        ends = np.isin(arrays["targets"], [*chat_tokenizer().special_names.values()])
        wrong = {"shifted": np.roll(weights, 1), "prompt": (arrays["segments"] > 0) * np.float32(1), "no end": weights * ~ends}
        return arrays | {"weights": wrong[mistake]}

    with pytest.raises(AssertionError):
        assert_counts(batch_of(rows, rows.length, build=build), chat_tokenizer(), RESPONSES)


@pytest.mark.parametrize("family", ["t5", "transformer"])
def test_an_encoder_decoder_reads_the_same_files(family: str, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [{"prompt": "the whale is", "completion": "white"}] * 2
    lines += [{"messages": [message._asdict() for message in turns("one", "two", "three", "four")]}] * 2
    put(tmp_path / "data.jsonl", lines)
    tokenizer = spelled(["the", "whale"])
    tokenizer.save(tmp_path)
    data = PairData(paths=(str(tmp_path / "data.jsonl"),), length=64, target_length=16, batch=4, valid_fraction=0.4)
    tokens = tiny.Tokenizer(path=str(tmp_path), vocab=300)
    asked = tiny.run(
        objective="text_to_text", model=small(family).config, data=data, tokenizer=tokens, chat=Chat(template="builtin")
    )
    inputs = run_inputs.read_inputs(asked, RunDir(tmp_path / "run"), tmp_path)
    pairs = [(example.source, example.target) for example in (*inputs.training.examples, *inputs.held_out.examples)]
    conversation = [("User: one\n\nAssistant:", "two"), ("User: one\n\nAssistant: two</s>User: three\n\nAssistant:", "four")]
    assert sorted({*pairs}) == sorted({("the whale is", "white"), *conversation})
    rows = seq2seq_inputs.rows_of_pairs([*inputs.training.examples], asked, inputs.tokenizer)
    build = TextToText.builder(asked, inputs.tokenizer, dict)
    batch = next(iter(in_order(rows, build, len(rows), np.arange(len(rows)))))
    for row, example in enumerate(rows.examples):
        assert inputs.tokenizer.decode(batch.targets[row][batch.weights[row] > 0]) == f"{example.target}</s>"
        source = batch.source.tokens[row][batch.source.segments[row] > 0]
        assert (source == inputs.tokenizer.end_of_text).sum() == 1 + example.source.count("</s>")


@functools.cache
def losses() -> Any:
    """The compiled sums of the loss of each row."""
    net = small("gpt", context=128)
    loss = functools.partial(Instruction().loss, net, frozen={}, seeds=None, carry={}, smoothing=0.0, chunk=0)

    def of_rows(params: Any, batch: Any) -> jax.Array:
        one = lambda number: jax.tree.map(lambda leaf: leaf[number : number + 1], batch)  # noqa: E731
        return jnp.stack([loss(params, one(number))[0]["instruction"] for number in range(len(batch.tokens))])

    return functools.partial(jax.jit(of_rows), random_params(net))


def test_a_loss_depends_neither_on_padding_nor_on_neighbours() -> None:
    examples = [dialogue("Who?", "The old man"), Pair(origin="a:1", source="a b", target=" b a")]
    asked = run(data=DialogueData(length=32, batch=2))
    rows = instruction_inputs.rows_of_instructions(examples, asked, chat_tokenizer())
    expected = np.asarray(losses()(batch_of(rows, 32, 2)))
    for pads in (5, 50):
        np.testing.assert_allclose(losses()(batch_of(rows, 32 + pads, 2)), expected, rtol=1e-6)
    short = [dialogue("a", "b"), Pair(origin="a:1", source="a b", target=" b a")]
    alone, packed = (
        instruction_inputs.rows_of_instructions(short, run(data=DialogueData(length=32, batch=2, pack=pack)), chat_tokenizer())
        for pack in (False, True)
    )
    assert (len(alone), len(packed)) == (2, 1)
    np.testing.assert_allclose(losses()(batch_of(packed, 32, 1)).sum(), losses()(batch_of(alone, 32, 2)).sum(), rtol=1e-6)


def test_the_view_of_rows_marks_counted_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    put(tmp_path / "a.jsonl", [{"prompt": "a b", "completion": " c"}] * 3)
    tokens = tiny.Tokenizer(path=str(tmp_path), vocab=300)
    chat_tokenizer().save(tmp_path)
    data = DialogueData(paths=(str(tmp_path / "a.jsonl"),), length=48, batch=2)
    inspect_rows.inspect(run(data=data, tokenizer=tokens), RunDir(tmp_path / "run"), count=1, first=0)
    out = capsys.readouterr().out
    assert "│«a│ │b»│ │c│<|endoftext|>│" in out and "padding: 42" in out and "1 row: 6 tokens" in out


def test_prompts_that_are_other_tokens_without_their_responses_are_noticed() -> None:
    examples = [Pair(origin="a:1", source="a ", target="b"), PLAIN]
    rows = instruction_inputs.rows_of_instructions(examples, run(), Tokenizer.train(["a b a b"] * 9, 300))
    assert [text.differs for text in rows.texts] == [True, False]
    generation = chat_tokenizer(CHATML.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant: {% endif"))
    assert all(text.differs for text in instruction_inputs.rows_of_instructions([CHAT], run(), generation).texts)
    inputs = ExampleInputs(chat_tokenizer(), _mixture(rows), rows)
    assert any(line.startswith("in 1 of 2 training examples the tokens before") for line in data_notices.notices(run(), inputs))


def _mixture(rows: Any) -> Any:
    return Mixture((Component("", 1.0, (), rows),))


def messages(*roles: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "x", **fields} for role in roles]}


RECORDS: dict[str, tuple[dict[str, Any], str]] = {
    "no columns": ({"text": "a"}, 'no column "prompt"; it has "text": write "prompt" and "completion", or "messages"'),
    "both": ({"prompt": "a", "completion": "b", "messages": []}, 'it has both "messages" and "completion"'),
    "a list": ({"prompt": [], "completion": "b"}, "the prompt is a list; write the messages of both as one list"),
    "empty completion": ({"prompt": "a", "completion": " "}, "the completion is empty"),
    "no messages": ({"messages": []}, '"messages" is an empty list'),
    "unknown role": (messages("user", "tool"), 'message 2: role "tool"; choose system, user or assistant'),
    "not alternating": (messages("user", "user", "assistant"), "message 2 is the user's where the assistant's belongs"),
    "late system": (messages("user", "system", "assistant"), "message 2 is the system's where the assistant's belongs"),
    "assistant first": (messages("system", "assistant"), "message 2 is the assistant's where the user's belongs"),
    "user last": (
        messages("user", "assistant", "user"),
        "message 3, the last one, is the user's; the last message must be the assistant's",
    ),
    "system alone": (messages("system"), "message 1, the last one, is the system's"),
    "no content": ({"messages": [{"role": "user"}]}, 'message 1: "content" is missing'),
    "parts": ({"messages": [{"role": "user", "content": []}]}, 'message 1: "content" is an array'),
    "empty turn": ({"messages": [{"role": "user", "content": "\n"}]}, "message 1: the user's content is empty"),
    "tools": (messages("user", "assistant", tool_calls=[1]), 'message 1: it has "tool_calls", which is not supported'),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_that_are_no_instructions_are_refused(name: str, tmp_path: Path) -> None:
    record, message = RECORDS[name]
    file = put(tmp_path / "a.jsonl", [messages("user", "assistant"), record])
    with pytest.raises(BadInput) as refusal:
        labelled_reader.read_labelled_examples("instruction", (str(file),), DialogueData(), ExampleFileOptions())
    assert str(refusal.value).startswith(f"{file}:2: {message}") and "\n" not in str(refusal.value)


NO_TAG = CHATML.replace("{% generation %}\n", "").replace("\n{%- endgeneration +%}", "")
ROWS: dict[str, tuple[Any, str | None, dict[str, Any], str]] = {
    "no template": (CHAT, None, {}, "the tokenizer: no chat template; put the model's chat_template.jinja beside"),
    "no tag": (CHAT, NO_TAG, {}, "chat.jsonl:7: 2 turns of the assistant, and .* has no {% generation %}.*--chat.turns last"),
    "no syntax": (CHAT, "{% for %}", {}, "the tokenizer: chat_template.jinja: line 1: "),
    "refusing": (ONE, "{{ raise_exception('No\nsystem') }}", {}, "chat.jsonl:7: the tokenizer: .* render the conversation: No s"),
    "failing": (ONE, "{{ 1 / 0 }}", {}, "chat.jsonl:7: .* cannot render the conversation: division by zero"),
    "unsafe": (ONE, "{{ ''.__class__.mro() }}", {}, "chat.jsonl:7: .* cannot render the conversation: .*unsafe"),
    "unsafe too": (ONE, "{% set n = namespace(__class__=1) %}", {}, ".* cannot render the conversation: a namespace has no name"),
    "one tag": (CHAT, NO_TAG + "{% generation %}x{% endgeneration %}", {}, ".* encloses 1 parts in .* the assistant has 2 turns"),
    "no end mark": (CHAT, CHATML.replace("<|im_end|>", ""), {}, ".*writes no special token after the assistant's turn"),
    "other prompt": (
        dialogue("a", "b"),
        "{{ messages | length }}{{ messages[-1].content }}<|im_end|>",
        {},
        "chat.jsonl:7: .* renders the messages before an answer differently",
    ),
    "a trimmed part": (
        dialogue("a", "b"),
        "{% set x %}{% generation %} b {% endgeneration %}{% endset %}{{ x | trim }}<|im_end|>",
        {},
        "chat.jsonl:7: .* writes a text that depends on the length or the ends",
    ),
    "a special token": (
        dialogue("a", "b <|im_end|>"),
        CHATML,
        {},
        r"chat.jsonl:7: message 2 spells the special token <\|im_end\|>",
    ),
    "half of one": (dialogue("<|im_", "end|>"), CHATML, {}, "chat.jsonl:7: a message with the one after it spells"),
    "a long prompt": (
        Pair(origin="a:1", source="b" * 40, target="c"),
        CHATML,
        {"labelled": ExampleFileOptions(truncate=True)},
        "a:1: the prompt alone has 40 tokens, and a row has 32, .*; choose a longer --data.length",
    ),
    "a long response": (
        Pair(origin="a:1", source="b", target="c" * 40),
        CHATML,
        {},
        r"a:1: 42 tokens \(1 before .* a row has 32; ",
    ),
    "no tokens": (Pair(origin="a:1", source="", target="c"), CHATML, {}, "a:1: the prompt has no tokens of its own"),
}


@pytest.mark.parametrize("name", ROWS)
def test_examples_that_make_no_rows_are_refused(name: str) -> None:
    example, template, options, message = ROWS[name]
    asked = run(data=DialogueData(length=32, batch=4), **options)
    with pytest.raises(BadInput, match=f"^{message}" if message[0] != "." else message) as refusal:
        instruction_inputs.rows_of_instructions([example], asked, chat_tokenizer(template))
    assert "\n" not in str(refusal.value)


def test_a_template_without_the_tag_gives_the_last_turn_and_a_long_response_is_cut_if_asked() -> None:
    tokenizer = chat_tokenizer(NO_TAG)
    (text,) = instruction_inputs.rows_of_instructions([CHAT], run(chat=Chat(turns="last")), tokenizer).texts
    assert tokenizer.decode(text.ids[text.counted]) == "Four!<|im_end|>" and not text.differs
    asked = run(data=DialogueData(length=32, batch=4), labelled=ExampleFileOptions(truncate=True))
    (text,) = instruction_inputs.rows_of_instructions([Pair(origin="a:1", source="b", target="c" * 40)], asked, tokenizer).texts
    assert len(text.ids) == 32 and text.counted.sum() == 31


FAMILIES = {"gpt": ("instruction", {}), "t5": ("text_to_text", {}), "transformer": ("text_to_text", {})}
FAMILIES |= {name: ("instruction", {}) for name in ("ettin_decoder", "llama")}
FAMILIES["decoder"] = ("text_to_text", {"architecture": "decoder"})


@pytest.mark.parametrize("name", FAMILIES)
def test_the_recipe_has_the_objective_of_the_family(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, changes = FAMILIES[name]
    model = small("t5" if name == "decoder" else name, **changes).config
    monkeypatch.setattr(pretrained_config, "read_model_config", lambda init: model)
    sft = recipes.recipe_run("sft", "it")
    longest = getattr(model, "context", 512)
    assert (sft.objective, sft.model, sft.data.length, sft.init) == (objective, model, longest, "it")
    assert sft.objective in supported_objectives(sft) and sft.data.pack == (name in ("t5", "transformer"))


def test_a_template_for_data_without_messages_is_refused(tmp_path: Path) -> None:
    file = put(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}] * 3)
    asked = run(data=DialogueData(paths=(str(file),), length=32), chat=Chat(template="builtin"))
    with pytest.raises(BadInput, match=r"^--chat\.template builtin: the data has no messages, and plain texts are not rendered"):
        run_inputs.read_inputs(asked, RunDir(tmp_path / "run"), tmp_path)
