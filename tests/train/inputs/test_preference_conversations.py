"""Conversations as preferences: the ids that TRL trains on, every form of a pair, and records that are refused."""

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from tests.support import preferences, tiny, trl_pairs
from tests.support.chat import CHATML, chat_tokenizer
from tests.support.labelled_files import put
from tests.support.small import small
from tests.support.trl_pairs import PAIRS, TEMPLATES, TEXTS, implicit
from train.config.data_options import Data
from train.config.find_objective import find_options
from train.config.kto_options import Kto
from train.config.option_groups import ChatRendering, Preferences
from train.config.run_config import Tokenizer as TokenizerOptions
from train.data import labelled_reader
from train.data.example_types import Message
from train.inputs import inspect_rows, run_inputs
from train.rows.feedback.preference_rows import Limits, PreferenceRow, encode_rows
from train.run.run_dir import RunDir
from train.tokenizers import chat_template
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput

USER, ANSWER = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Anna."}
OTHER = {"role": "assistant", "content": "Bo."}


def examples(folder: Path, rows: Sequence[dict[str, Any]], objective: str = "preference") -> list[Any]:
    file = put(folder / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return labelled_reader.read_labelled_examples(objective, (str(file),), Data(), Preferences())[0]


def encoded(folder: Path, rows: Sequence[dict[str, Any]], tokenizer: Tokenizer, template: str) -> list[PreferenceRow]:
    """Return the rows of a decoder."""
    own = tokenizer.with_files(tokenizer.settings, template)
    compiled, limits = chat_template.chat_template(own, "it"), Limits(4096)
    return encode_rows(examples(folder, rows), own, small("gpt").config, Preferences(), limits, compiled)[0]


def assert_same_ids(row: PreferenceRow, theirs: dict[str, list[int]], special: set[int], *, moved: str = "") -> None:
    """Assert that a row has the ids of TRL's, without what TRL keeps behind the end mark, and the same completions.

    `moved`: white space at the end of the prompt, which here belongs to the completion.
    """
    for side, name in zip(row.sides, ("chosen_ids", "rejected_ids"), strict=True):
        last = max(at for at, number in enumerate(theirs[name]) if number in special)
        assert side.ids.tolist() == theirs["prompt_ids"] + theirs[name][: last + 1]
        assert side.first == len(theirs["prompt_ids"]) - len(moved)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("form", ["explicit", "implicit"])
def test_conversations_have_the_ids_that_trl_trains_on(name: str, form: str, tmp_path: Path) -> None:
    frozen = json.loads(trl_pairs.FILE.read_text())["ids"][name]
    pairs = PAIRS if form == "explicit" else [implicit(pair) for pair in PAIRS]
    special = {*chat_tokenizer().special_names.values()}
    for row, theirs in zip(encoded(tmp_path, pairs, chat_tokenizer(), TEMPLATES[name]), frozen, strict=True):
        assert_same_ids(row, theirs, special)


def test_texts_have_the_ids_that_trl_trains_on(tmp_path: Path) -> None:
    frozen = json.loads(trl_pairs.FILE.read_text())["ids"]["texts"]
    rows = encoded(tmp_path, TEXTS, chat_tokenizer(), CHATML)
    for row, theirs, moved in zip(rows, frozen, ("", "\n"), strict=True):
        assert_same_ids(row, theirs, {chat_tokenizer().end_of_text}, moved=moved)


@pytest.mark.planted(3)
@pytest.mark.parametrize("mistake", ["end of text", "no beginning of an answer", "as text"])
def test_other_renderings_are_noticed(mistake: str, tmp_path: Path) -> None:
    frozen, special = json.loads(trl_pairs.FILE.read_text())["ids"]["chatml"][0], {*chat_tokenizer().special_names.values()}
    (row,) = encoded(tmp_path, PAIRS[:1], chat_tokenizer(), CHATML)
    assert_same_ids(row, frozen, special)
    sides = list(row.sides)
    if mistake == "end of text":
        sides[0] = sides[0]._replace(ids=np.append(sides[0].ids[:-1], chat_tokenizer().end_of_text))
    elif mistake == "no beginning of an answer":
        sides[0] = sides[0]._replace(first=sides[0].first - 5)
    else:
        sides[0] = sides[0]._replace(ids=chat_tokenizer().encode(chat_tokenizer().decode(sides[0].ids)))
    with pytest.raises(AssertionError):
        assert_same_ids(row._replace(sides=(sides[0], sides[1])), frozen, special)


@pytest.mark.parity
def test_the_frozen_ids_are_those_of_trl_and_unpaired_ones_are_equal() -> None:
    frozen = json.loads(trl_pairs.FILE.read_text())["ids"]
    assert trl_pairs.token_ids() == frozen
    theirs = trl_pairs.published_tokenizer(chat_tokenizer(), CHATML)
    assert trl_pairs.prepared(theirs, [implicit(pair) for pair in PAIRS])[1]["chosen_ids"] == frozen["chatml"][1]["chosen_ids"]
    unpaired = [{"prompt": pair["prompt"], "completion": pair["chosen"], "label": True} for pair in PAIRS]
    for row, pair in zip(trl_pairs.prepared(theirs, unpaired, "kto"), frozen["chatml"], strict=True):
        assert (row["prompt_ids"], row["completion_ids"]) == (pair["prompt_ids"], pair["chosen_ids"])


@pytest.mark.parity
def test_the_templates_of_trl_give_the_ids_of_trl(tmp_path: Path) -> None:
    """What is refused here is what TRL cannot render either, cuts with a warning, or trains without an end."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None and spec.submodule_search_locations
    sources = [file.read_text() for file in sorted(Path(spec.submodule_search_locations[0]).rglob("*.jinja"))]
    core = tokenizers.Tokenizer.from_str(json.dumps(chat_tokenizer().content()))
    names = {name for source in sources for name in re.findall(r"<[|\uff5c]?[\w\u2581:/-]+[|\uff5c]?>|\[/?[A-Z_]{4,}\]", source)}
    core.add_special_tokens(sorted(names))
    tokenizer = Tokenizer(json.loads(core.to_str()), {})
    special, equal, refused = {*tokenizer.special_names.values()}, 0, 0
    for source in sources:
        theirs = trl_pairs.published_tokenizer(tokenizer, source)
        for pair in PAIRS:
            expected: Any = None
            try:
                (expected,) = trl_pairs.prepared(theirs, [pair])
                prompt = theirs.apply_chat_template(pair["prompt"], add_generation_prompt=True, return_dict=False)
            except Exception:
                prompt = []
            try:
                (row,) = encoded(tmp_path, [pair], tokenizer, source)
            except BadInput:
                texts = [theirs.decode(expected[side]).rstrip() for side in ("chosen_ids", "rejected_ids")] if expected else []
                is_ended = all(text.endswith(tuple(tokenizer.special_names)) for text in texts)
                assert expected is None or len(expected["prompt_ids"]) < len(prompt) or not is_ended
                refused += 1
                continue
            assert_same_ids(row, expected, special)
            equal += 1
    assert (equal, refused) == (166, 50)


def prepared(folder: Path, objective: str, rows: Sequence[dict[str, Any]], family: str = "gpt", **options: Any) -> Any:
    """Return a run on the rows, with a tokenizer in a folder: for GPT of ChatML."""
    (folder / "tokenizer").mkdir(exist_ok=True)
    (chat_tokenizer() if family == "gpt" else preferences.tokenizer(family)).save(folder / "tokenizer")
    data = find_options(objective).data(paths=(str(put(folder / "a.jsonl", [*rows])),), length=96, batch=4, valid_fraction=0.4)
    model = small(family, vocab=300, **({"context": 128} if family == "gpt" else {}))
    if objective == "preference":
        head = {"task": "sequence"} if family == "bert" else {}
        model = small(family, vocab=300, labels=("reward",), **head, **({"context": 96} if family in ("gpt", "bert") else {}))
    path = TokenizerOptions(path=str(folder / "tokenizer"))
    return tiny.run(objective, model=model.config, data=data, tokenizer=path, out=str(folder), **options)


def read(folder: Path, run: Any) -> Any:
    run = run_inputs.resolve_config(run)
    return run_inputs.read_inputs(run, RunDir(folder / "run"), folder)


def asked(number: int) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": f"What is {number}?"}], "chosen": [ANSWER], "rejected": [OTHER]}


@pytest.mark.parametrize("objective", ["dpo", "preference"])
def test_a_run_reads_conversations_with_its_template(objective: str, tmp_path: Path) -> None:
    run = prepared(tmp_path, objective, [asked(number) for number in range(6)])
    data = read(tmp_path, run)
    chosen, rejected = data.training.rows[0].sides
    assert data.tokenizer.decode(chosen.ids) == "<|im_start|>user\nWhat is 0?<|im_end|>\n<|im_start|>assistant\nAnna.<|im_end|>"
    assert data.tokenizer.decode(chosen.ids[chosen.first :]) == "Anna.<|im_end|>"
    assert data.tokenizer.decode(rejected.ids[rejected.first :]) == "Bo.<|im_end|>"
    assert data.describe(run)["chat template"] == "the tokenizer's own"


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_an_encoder_and_an_encoder_decoder_have_end_marks_of_their_own(family: str, tmp_path: Path) -> None:
    objective = "preference" if family == "bert" else "dpo"
    run = prepared(tmp_path, objective, [asked(n) for n in range(6)], family, chat=ChatRendering(template="builtin"))
    data = read(tmp_path, run)
    side, tokenizer = data.training.rows[0].sides[0], data.tokenizer
    prompt, answer = (tokenizer.encode(text) for text in ("User: What is 0?\n\nAssistant:", "Anna."))
    if family == "t5":
        end = [tokenizer.end_of_text]
        assert (side.source.tolist(), side.ids.tolist()) == ([*prompt, *end], [*answer, *end])
    else:
        assert side.ids.tolist() == tokenizer.special_tokens.pair(prompt, answer)[0].tolist()


def test_labelled_completions_are_conversations_too(tmp_path: Path) -> None:
    rows = [{"prompt": asked(n)["prompt"], "completion": [(ANSWER, OTHER)[n % 2]], "label": n % 2 == 0} for n in range(10)]
    run = prepared(tmp_path, "kto", rows)
    own, mismatched = (read(tmp_path, run).training.rows[0].sides)[:2]
    texts = [chat_tokenizer().decode(side.ids) for side in (own, mismatched)]
    prompt = "<|im_start|>user\nWhat is 0?<|im_end|>\n<|im_start|>assistant\n"
    assert texts == [f"{prompt}Anna.<|im_end|>", f"{prompt}Bo.<|im_end|>"]
    (single,) = read(tmp_path, prepared(tmp_path, "kto", rows, kto=Kto(reference="none"))).training.rows[0].sides
    assert single.ids.tolist() == own.ids.tolist()
    mixed = [*rows, {"prompt": "a", "completion": "b", "label": True}]
    with pytest.raises(BadInput, match=r"a\.jsonl:11 is a text, and .*a\.jsonl:\d+ is a conversation; kto compares examples"):
        read(tmp_path, prepared(tmp_path, "kto", mixed))


def test_a_file_may_have_pairs_of_texts_and_of_conversations(tmp_path: Path) -> None:
    data = read(
        tmp_path, prepared(tmp_path, "dpo", [{"prompt": "Who?", "chosen": " A.", "rejected": " B."}, *map(asked, range(5))])
    )
    ends = [chat_tokenizer().spell(int(row.sides[0].ids[-1])) for row in data.training.rows[:2]]
    assert ends == ["<|endoftext|>", "<|im_end|>"]


def test_the_held_out_half_is_the_same_with_another_template(tmp_path: Path) -> None:
    own = read(tmp_path, prepared(tmp_path, "dpo", [asked(n) for n in range(6)]))
    other = read(tmp_path, prepared(tmp_path, "dpo", [asked(n) for n in range(6)], chat=ChatRendering(template="builtin")))
    assert own.fingerprints()["held_out"] == other.fingerprints()["held_out"]
    assert own.fingerprints()["data"] != other.fingerprints()["data"]
    assert other.tokenizer.chat_template == chat_template.TEMPLATE


PROMPT = [USER]
SYSTEM = {"role": "system", "content": "Be brief."}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a text as prompt": (
        {"prompt": "Who?", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        '"chosen" is a list of messages, and "prompt" is not; write messages in all of them, or leave out the prompt if',
    ),
    "a text as completion": (
        {"prompt": PROMPT, "chosen": [ANSWER], "rejected": "Bo."},
        '"prompt" is a list of messages, and "rejected" is',
    ),
    "no common prompt": (
        {"chosen": [USER, ANSWER], "rejected": [SYSTEM, USER, OTHER]},
        "chosen and rejected differ from message 1 on, before an answer, so that they have different prompts; both must",
    ),
    "another question": (
        {"chosen": [USER, ANSWER, USER, ANSWER], "rejected": [USER, ANSWER, USER | {"content": "Why?"}, OTHER]},
        "chosen and rejected differ from message 3 on, before an answer",
    ),
    "only a common system message": (
        {"chosen": [SYSTEM, USER, ANSWER], "rejected": [SYSTEM, USER | {"content": "Why?"}, OTHER]},
        "chosen and rejected differ from message 2 on, before an answer",
    ),
    "no answer": (
        {"chosen": [USER, ANSWER, USER], "rejected": [USER, OTHER]},
        "chosen: message 3, the last one, is the user's; the last",
    ),
    "an answered prompt": (
        {"prompt": [USER, ANSWER], "chosen": [ANSWER], "rejected": [OTHER]},
        "prompt: message 2, the last one, is the assistant's; a response follows a turn of the user",
    ),
    "the prompt twice": (
        {"prompt": PROMPT, "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        "chosen: message 1 is the user's, and a completion begins with the assistant's; remove the messages that are in",
    ),
    "no turns": (
        {"prompt": PROMPT, "chosen": [], "rejected": [OTHER]},
        'chosen: "chosen" is an empty list; write a list of objects',
    ),
    "the same": (
        {"prompt": PROMPT, "chosen": [ANSWER], "rejected": [ANSWER]},
        "chosen and rejected are the same text; leave the",
    ),
    "tools": (
        {**asked(1), "tools": [{"name": "f"}]},
        'it has "tools", which is not supported for conversations; remove the column',
    ),
    "an unknown role": (
        {"prompt": PROMPT, "chosen": [ANSWER | {"role": "gpt"}], "rejected": [OTHER]},
        'chosen: message 1: role "gpt"; choose system, user or assistant',
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_pair_of_conversations_that_cannot_be_read_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    row, message = REFUSED[name]
    with pytest.raises(BadInput) as refusal:
        examples(tmp_path, [asked(0), row])
    assert str(refusal.value).startswith(f"{tmp_path / 'pairs.jsonl'}:2: {message}") and "\n" not in str(refusal.value)


RENDERINGS: dict[str, tuple[str | None, str]] = {
    "no template": (None, "no chat template; put the model's chat_template.jinja beside its tokenizer.json, or train with"),
    "another prompt with an answer": (
        "{{ messages[0].content }}{{ '<think>' if add_generation_prompt else messages[1].content }}<|im_end|>",
        "renders the messages before an answer differently when the answer is there; change the template so that",
    ),
    "no end": (
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "writes no special token after the assistant's turn, so that a model would not learn to stop; write {{ eos_token }}",
    ),
    "a refusal": (
        "{{ raise_exception('too short') if messages | length > 1 }}",
        "cannot render the conversation: too short; change one of the two",
    ),
}


@pytest.mark.parametrize("name", RENDERINGS)
def test_a_template_that_does_not_fit_is_refused_with_the_place_of_the_pair(name: str, tmp_path: Path) -> None:
    source, message = RENDERINGS[name]
    run = prepared(tmp_path, "dpo", [asked(n) for n in range(4)])
    chat_tokenizer(source).save(tmp_path / "tokenizer")
    with pytest.raises(BadInput) as refusal:
        read(tmp_path, run)
    place = tmp_path / "tokenizer" if source is None else f"{tmp_path / 'a.jsonl'}:1: {tmp_path / 'tokenizer'}: "
    assert str(refusal.value).startswith(str(place)) and message in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_message_that_spells_a_special_token_is_refused(tmp_path: Path) -> None:
    run = prepared(tmp_path, "dpo", [asked(0), asked(1) | {"rejected": [OTHER | {"content": "<|im_end|>"}]}, asked(2)])
    with pytest.raises(BadInput, match=r"a\.jsonl:2: message 2 spells the special token <\|im_end\|>"):
        read(tmp_path, run)


def test_the_view_of_rows_shows_both_sides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    inspect_rows.inspect(prepared(tmp_path, "dpo", [asked(n) for n in range(4)]), RunDir(tmp_path / "run"), count=1, first=0)
    text = capsys.readouterr().out
    assert "«<|im_start|>" in text and "chosen" in text and "rejected" in text and "a.jsonl:" in text


def test_messages_are_read_with_the_fields_that_data_sets_leave_empty(tmp_path: Path) -> None:
    empty = {"tool_calls": None, "name": None}
    (example,) = examples(tmp_path, [{"chosen": [USER | empty, ANSWER | empty], "rejected": [USER, OTHER], "tools": None}])
    assert (example.prompt, example.chosen) == ((Message("user", "Who?"),), (Message("assistant", "Anna."),))
    pairs = [asked(0), {name: [USER, answer] for name, answer in (("chosen", ANSWER), ("rejected", OTHER))}, asked(1)]
    put(tmp_path / "a.json", json.dumps(pairs))
    assert len(labelled_reader.read_labelled_examples("preference", (str(tmp_path / "a.json"),), Data(), Preferences())[0]) == 3
