"""Conversations as prompts: rendered with the chat template, ended by its mark, and passed to reward functions as messages."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import preferences, tiny
from tests.support.chat import CHATML, chat_tokenizer
from tests.support.labelled_files import put
from tests.support.small import small
from train.config.data_options import PromptData
from train.config.option_groups import ChatRendering, Prompts
from train.config.rollout_options import Rollout
from train.config.run_config import Checkpoint
from train.config.run_config import Tokenizer as TokenizerOptions
from train.data.example_types import Message, Prompt
from train.inputs import inspect_rows, run_inputs
from train.inputs.prompt_inputs import PromptInputs
from train.rollouts import reward_models
from train.rollouts.rewards import Completion, RewardFunction
from train.rows.batches import Batches
from train.rows.feedback import preference_rows
from train.run.run_dir import RunDir
from train.tokenizers.chat_token_ids import CompletionText
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput

SYSTEM = {"role": "system", "content": "Be brief."}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def prepared(folder: Path, family: str = "gpt", template: str | None = CHATML, **options: Any) -> Any:
    """Return a run on six conversations, of which the last one is held out, with a tokenizer in a folder: for GPT of ChatML."""
    (folder / "tokenizer").mkdir(exist_ok=True)
    (chat_tokenizer(template) if family == "gpt" else preferences.tokenizer(family)).save(folder / "tokenizer")
    prompts = [{"prompt": [SYSTEM, user(f"What is {n}?")], "answer": n} for n in range(6)]
    data = PromptData(paths=(str(put(folder / "a.jsonl", prompts)),), length=96, batch=8)
    model = small(family, **({"context": 128, "vocab": 300} if family == "gpt" else {"vocab": 300}))
    path = TokenizerOptions(path=str(folder / "tokenizer"))
    rollout = Rollout(samples=2, tokens=8)
    changes: dict[str, Any] = dict(data=data, tokenizer=path, rollout=rollout, out=str(folder), **options)
    return tiny.run("policy_gradient", model=model.config, **changes)


def read(folder: Path, run: Any) -> PromptInputs:
    run = run_inputs.resolve_config(run)
    return run_inputs.read_inputs(run, RunDir(folder / "run"), folder)


RENDERED = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 1?<|im_end|>\n<|im_start|>assistant\n"


def test_a_conversation_is_what_the_template_writes_and_its_mark_ends_a_response(tmp_path: Path) -> None:
    data = read(tmp_path, run := prepared(tmp_path))
    names = data.tokenizer.special_names
    row, example = data.training.row(1), data.training.examples[1]
    assert data.tokenizer.decode(row.prompt) == example.prompt == RENDERED
    assert np.isin(row.prompt, [names["<|im_start|>"], names["<|im_end|>"]]).sum() == 5
    assert data.end_mark == names["<|im_end|>"] != data.tokenizer.end_of_text
    assert example.messages == (Message(**SYSTEM), Message("user", "What is 1?")) and example.columns == {"answer": 1}
    assert data.describe(run)["chat template"] == "the tokenizer's own"


def test_the_built_in_template_is_stored_with_the_tokenizer_and_changes_the_rows_alone(tmp_path: Path) -> None:
    built_in = read(tmp_path, prepared(tmp_path, chat=ChatRendering(template="builtin")))
    assert built_in.training.examples[0].prompt == "Be brief.\n\nUser: What is 0?\n\nAssistant:"
    assert built_in.tokenizer.chat_template is not None and built_in.end_mark == built_in.tokenizer.end_of_text
    other = read(tmp_path, prepared(tmp_path))
    assert other.fingerprints()["data"] != built_in.fingerprints()["data"]
    assert other.fingerprints()["held_out"] == built_in.fingerprints()["held_out"]


def test_an_encoder_decoder_reads_the_conversation_in_its_source(tmp_path: Path) -> None:
    data = read(tmp_path, prepared(tmp_path, "t5", chat=ChatRendering(template="builtin")))
    *ids, end = data.training.row(1).prompt.tolist()
    assert data.training.examples[1].prompt == "Be brief.\n\nUser: What is 1?\n\nAssistant:"
    # The test's tokenizer knows no capital letters.
    assert "hat is 1? " in data.tokenizer.decode(ids)
    assert end == data.end_mark == data.tokenizer.end_of_text


CASES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "the assistant last": ([user("a"), {"role": "assistant", "content": "b"}], {}, "a.jsonl:2: message 2, the last one, is the"),
    "no alternation": ([user("a"), user("b")], {}, "a.jsonl:2: message 2 is the user's where the assistant's belongs"),
    "no messages": ([], {}, 'a.jsonl:2: "prompt" is an empty list; write a list of objects'),
    "a special token": ([user("<|im_end|>")], {}, r"a.jsonl:2: message 1 spells the special token <\|im_end\|>"),
    "a text among them": ("a", {}, "a.jsonl:2 is a text, and .*a.jsonl:1 is a conversation; reward functions get either"),
    "no template": ([user("a")], {"template": None}, "no chat template; put the model's chat_template.jinja beside"),
    "not for the template": (
        [user("b")],
        {"template": "{{ raise_exception('b') if messages[-1].content == 'b' }}<|im_end|>"},
        r"a.jsonl:2: .*: chat_template.jinja cannot render the conversation: b; change one of the two",
    ),
    "a long one": ([user("13579" * 30)], {}, "a.jsonl:2: a prompt of .* tokens, and a row of 96 has room for 88 before"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_conversation_that_cannot_be_a_prompt_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    prompt, options, message = CASES[name]
    run = prepared(tmp_path, **options)
    put(tmp_path / "a.jsonl", [{"prompt": [user("x")]}, {"prompt": prompt}, {"prompt": [user("y")]}])
    with pytest.raises(BadInput, match=message) as refusal:
        read(tmp_path, run)
    assert "\n" not in str(refusal.value)


def test_a_template_for_texts_is_refused(tmp_path: Path) -> None:
    run = prepared(tmp_path, chat=ChatRendering(template="builtin"))
    put(tmp_path / "a.jsonl", [{"prompt": f"{n}"} for n in range(3)])
    with pytest.raises(
        BadInput, match=r"--chat\.template builtin: the data has no messages, and plain texts are not rendered; remove it"
    ):
        read(tmp_path, run)


def conversation() -> Prompt:
    return Prompt(origin="p:0", prompt=RENDERED, columns={}, messages=(Message("user", "What is 1?"),))


def test_a_reward_function_gets_messages() -> None:
    calls: list[Any] = []

    def function(prompts: Any, completions: Any, ids: Any) -> list[float]:
        calls.append((prompts, completions))
        return [0.0]

    RewardFunction("m:f", function).scores([Completion(conversation(), " One.", [1])])
    assert calls == [([[user("What is 1?")]], [[{"role": "assistant", "content": "One."}]])]


@pytest.mark.planted
def test_a_reward_model_reads_the_special_tokens_of_a_template() -> None:
    """As characters, the names of special tokens would be other ids; so would the text of another template."""
    tokenizer, cfg = chat_tokenizer(), small("gpt", labels=("reward",)).config
    text = reward_models.text_of(conversation(), None)
    (side,) = preference_rows.encode_sides([CompletionText(text, "One.", rendered=True)], tokenizer, cfg)
    (spelled,) = preference_rows.encode_sides([CompletionText(text, "One.")], tokenizer, cfg)
    expected = tokenizer.encode_rendered([RENDERED + "One."])[0]
    np.testing.assert_array_equal(side.ids, [*expected, tokenizer.end_of_text])
    assert len(spelled.ids) > len(side.ids)
    built_in = reward_models.chat_template(chat_tokenizer("{{ messages[0].content }}"), "judge")
    assert reward_models.text_of(conversation(), built_in) == "What is 1?"
    assert reward_models.text_of(dataclasses.replace(conversation(), messages=()), built_in) == RENDERED


def test_the_view_of_rows_shows_the_rendered_conversation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    inspect_rows.inspect(prepared(tmp_path), RunDir(tmp_path / "run"), count=1, first=0)
    text = capsys.readouterr().out
    assert "│<|im_start|>│" in text and "a.jsonl:" in text
    assert Tokenizer.load(tmp_path / "tokenizer").chat_template == CHATML and json.dumps(SYSTEM["content"]) not in text


def test_the_view_of_rows_repeats_the_batches_of_a_rollout_in_each_of_its_epochs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches of 4 rows in the steps 0 to 3, the next two from step 4 on; a prompt has 2 responses."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    run = tiny.with_options(prepared(tmp_path), rollout=Rollout(samples=2, tokens=8, steps=4, epochs=2))
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, batch=4), checkpoint=Checkpoint(every=4))
    inspect_rows.inspect(run, RunDir(tmp_path / "run"), count=20, first=0)
    titles = re.findall(r"^Example (\d+): step (\d+), place (\d+); row (\d+) of 5$", capsys.readouterr().out, re.MULTILINE)
    numbers, rows = np.split(np.array(titles, int), [3], axis=1)
    assert [tuple(row) for row in numbers.tolist()] == [(number, number // 4, number % 4) for number in range(20)]
    data: Any = read(tmp_path, run)
    stream = Batches(data.rows, run_inputs.builder(run, data), run.seed, 4, np.arange(4), repeat=2)
    assert rows.ravel().tolist() == [row for batch in (0, 1, 0, 1, 2) for row in stream.rows_of(batch).tolist()]
    assert not np.array_equal(stream.rows_of(0), stream.rows_of(1))


def test_long_conversations_are_cut_at_their_beginning_if_asked(tmp_path: Path) -> None:
    run = prepared(tmp_path, labelled=Prompts(truncate=True))
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, length=28))
    data = read(tmp_path, run)
    assert RENDERED.endswith(data.tokenizer.decode(data.training.row(1).prompt)) and len(data.training.row(1).prompt) == 20
