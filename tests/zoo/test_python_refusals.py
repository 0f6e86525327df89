"""Wrong arguments of the Python interface: all of them are `zoo.BadInput` in one line, in a process without type checks."""

import json
from pathlib import Path

import pytest

from tests.support import encoders, published
from tests.support.processes import run_python
from train.tokenizers.tokenizer import Tokenizer

TEXTS = ("None", "3", "b'x'", "[]", "[None]", "['a', 3]", "{'a': 1}", "'\\ud800'", "['a', '\\ud800']", "object()")
"""Arguments that no method takes as texts."""
BLANK = ("''", "' '", "['a', '']")
METHODS = {"generate": "gpt", "stream": "gpt", "score": "gpt", "predict": "labels", "embed": "masked", "fill_mask": "masked"}
LONG = "'whale ' * 400"
SETTINGS = ("limit='x'", "limit=0", "limit=None", "limit=400", "temperature=-1", "temperature='hot'", "top_p=2", "stop=3")
SETTINGS += (
    "stop=[3]",
    "stop=['']",
    "seed=-1",
    "seed=1.5",
    "samples=0",
    "beams=0",
    "beams=2, temperature=0.5",
    "limt=3",
    "read='up'",
)
CASES = [
    *(f"{model}.{method}({text})" for method, model in METHODS.items() for text in TEXTS),
    *(f"{METHODS[method]}.{method}({text})" for method in ("predict", "embed", "fill_mask", "score") for text in BLANK),
    *(f"{METHODS[method]}.{method}({LONG})" for method in ("generate", "stream", "score", "predict", "embed")),
    *(f"gpt.{method}('whale', {setting})" for method in ("generate", "stream", "chat") for setting in SETTINGS),
    "gpt.generate('')",
    "gpt.generate(['whale', ''])",
    "labels.generate('whale')",
    *(f"gpt.stream('whale', {setting})" for setting in ("samples=2", "beams=2", "chunk=0", "chunk='x'", "chunk=None")),
    "gpt.stream(['whale'])",
    *(f"gpt.chat({messages})" for messages in (*TEXTS, *BLANK)),
    *(f"gpt.chat([dict(role={role!r}, content='a')])" for role in ("assistant", "system", "robot", 3)),
    "gpt.chat([dict(role='user')])",
    "gpt.chat([dict(role='user', content=3)])",
    "gpt.chat([dict(role='user', content='a'), dict(role='user', content='b')])",
    "gpt.chat([dict(role='user', content='a'), dict(role='assistant', content='b')])",
    f"gpt.chat({LONG})",
    "gpt.chat('<|endoftext|>')",
    "plain.chat('a')",
    *(
        f"gpt.logits({ids})"
        for ids in ("None", "3", "[]", "[[1, 2]]", "[-1]", "[10**6]", "[1.5]", "['a']", "[None]", "b'x'", "{1: 2}")
    ),
    *(f"gpt.logits({ids})" for ids in ("''", "'\\ud800'", LONG, "[1] * 400", "[True]", "[[1], [2, 3]]", "[2**70]", "object()")),
    "gpt.logits('whale', target='x')",
    "labels.logits('whale')",
    "masked.logits('whale ' * 400)",
    *(f"gpt.score('whale', {texts})" for texts in ("'x'", "3", "[]", "[None]", "['']", "[' a', '']", "{}")),
    "gpt.score(['a'], [' b'])",
    "masked.score('whale')",
    *(f"masked.fill_mask({rest})" for rest in ("'whale'", "'[MASK]', top=0", "'[MASK]', top='x'", "'[MASK]', top=10**9")),
    *(f"masked.fill_mask('[MASK]', {rest})" for rest in ("targets='x'", "targets=3", "targets=['whale whale']", "truncate=1")),
    f"masked.fill_mask('[MASK] ' + {LONG})",
    "gpt.fill_mask('[MASK]')",
    "labels.fill_mask('[MASK]')",
    *(f"masked.embed('whale', {rest})" for rest in ("pool='sum'", "pool=None", "normalize='x'", "truncate=None")),
    "gpt.embed('whale')",
    *(
        f"labels.predict('whale', {rest})"
        for rest in ("pair=3", "pair='\\ud800'", "context='x'", "options=['a', 'b']", "options='ab'")
    ),
    *(f"labels.predict('whale', {rest})" for rest in ("length='x'", "length=-1", "length=10**6", "null_threshold='x'")),
    *(
        f"labels.predict('whale', {rest})"
        for rest in ("labelled={}", "dtype='int8'", "dtype='x'", "with_text=1", "files=['x']", "x=1")
    ),
    "labels.predict('whale', null_threshold=1.0)",
    "gpt.predict('whale')",
    "masked.predict('whale')",
    *(f"gpt.export({folder})" for folder in ("None", "3", "''", "'labels'", "'labels/config.json/x'")),
    *(f"zoo.load({name})" for name in ("None", "3", "''", "b'x'", "'gone'", "'hub:a/b/c'", "'labels/config.json'")),
    *(f"zoo.load('labels', {rest})" for rest in ("step=1", "step='x'", "step=-2", "batch=0", "batch='x'", "batch=None")),
    *(
        f"zoo.load('labels', mesh={mesh})"
        for mesh in ("'x'", "3", "{'fdsp': 2}", "{'fsdp': 'x'}", "{'fsdp': 0}", "{'fsdp': 64}", "{3: 1}")
    ),
    *(f"zoo.model({size})" for size in ("None", "3", "''", "'gtp2'", "{}", "zoo.LoadedModel", "object()")),
    *(f"zoo.train({recipe})" for recipe in ("None", "3", "''", "'gpt-nona'", "b'x'")),
    *(
        f"zoo.train('gpt-nano', {rest})"
        for rest in ("stpes=3", "steps='x'", "steps=None", "steps=1.5", "steps=-1", "steps=[1, 2]")
    ),
    *(f"zoo.train('gpt-nano', {rest})" for rest in ("data=3", "data={'batch': 'x'}", "data={'paths': 'gone'}", "name='a/b'")),
    "zoo.train('gpt-nano', machine={'processes': 2})",
    *(f"zoo.metrics({run})" for run in ("None", "3", "''", "'gone'", "'labels'", "'labels/config.json'")),
]
"""Expressions of models in the current folder."""
MESSAGES = {
    "gpt.generate(None)": "prompts None: pass a text, or a list of texts",
    "gpt.generate(['a', 3])": "prompts[1] 3: pass a text",
    "gpt.logits([-1])": "text [-1]: the ids of the vocabulary are 0 to 256",
    "gpt.logits([1] * 400)": "text [1, 1, 1,",
    "gpt.predict('whale')": "models/gpt: this model writes text; use ",
    "plain.chat('a')": "models/gpt: no chat template; ",
    "zoo.metrics('gone')": "gone: no such folder; name a run, ",
    "zoo.metrics('labels')": "labels: not a run; name a folder that `zoo train` wrote",
    "gpt.stream('whale', samples=2)": "samples 2: one text is decoded at a time; use generate",
    "masked.fill_mask('whale')": "text 1: has no mask; write [MASK] in place of a word",
}
PROGRAM = """\
import dataclasses, json, os, sys
import zoo
from train.tokenizers.chat_template import TEMPLATE

os.mkdir("models")
os.symlink("../gpt", "models/gpt")
plain, masked, labels = zoo.load("models/gpt"), zoo.load("masked"), zoo.load("labels")
loaded = plain._loaded
gpt = zoo.LoadedModel(dataclasses.replace(loaded, tokenizer=loaded.tokenizer.with_files({}, TEMPLATE)))
results = {}
for case in json.loads(sys.argv[1]):
    try:
        result = eval(case)
        result = list(result) if hasattr(result, "__next__") else result
        results[case] = ["returned", repr(result)[:200]]
    except zoo.BadInput as error:
        results[case] = ["BadInput", str(error)]
    except BaseException as error:
        results[case] = [type(error).__name__, repr(error)[:300]]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refusals")
    encoders.folder(folder / "masked", "bert", "masked")
    encoders.folder(folder / "labels", "bert", "sequence")
    published.write(folder / "gpt", published.config("gpt", "causal", published.GPT2 | {"vocab_size": 257}))
    Tokenizer.train([], 257).save(folder / "gpt")
    return folder


def test_every_wrong_argument_is_refused_in_one_line(place: Path) -> None:
    ended = run_python("-c", PROGRAM, json.dumps(CASES), cwd=place)
    assert ended.code == 0, ended.stderr[-2000:]
    results = json.loads(ended.stdout.splitlines()[-1])
    assert {case: result for case, result in results.items() if result[0] != "BadInput"} == {}
    assert [case for case, (_, message) in results.items() if "\n" in message or not message] == []
    assert {case: results[case][1] for case, start in MESSAGES.items() if not results[case][1].startswith(start)} == {}
