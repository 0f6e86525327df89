"""The Python interface: `import zoo` and what it offers."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.support import encoders, tiny
from tests.support.commands import call
from tests.support.processes import ROOT, run_python
from train.run.run_dir import read_config
from train.tokenizers.chat_template import TEMPLATE


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    (folder / "text.txt").write_text("The white whale swims in the old sea. " * 200)
    options = dict(zip((flag.removeprefix("--") for flag in tiny.FLAGS[::2]), tiny.FLAGS[1::2], strict=True))
    return zoo.train("gpt-nano", **options, steps=3, data={"paths": [folder / "text.txt"]}, out=folder, name="gpt")


def test_a_recipe_is_trained_with_the_options_of_the_command_line(trained: Path) -> None:
    run = read_config(trained)
    assert (run.steps, run.data.length, run.name) == (3, 32, "gpt")
    assert (trained / "report.html").exists()


def test_a_model_continues_prompts_and_gives_logits(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = zoo.load(trained)
    assert isinstance(model, zoo.LoadedModel)
    text = model.generate("whale", limit=5, temperature=0)
    done = call(capsys, *f"generate {trained} --prompt whale --limit 5 --temperature 0 --json".split())
    assert text == json.loads(done.stdout)["text"]
    assert model.generate(["whale", "A sea"], limit=5, temperature=0)[0] == text
    ids = model.tokenizer.encode("The whale")
    hidden = model.model.apply(model.params, zoo.Batch(tokens=jnp.asarray(ids)[None])).hidden
    expected = model.model.unembed(model.params, hidden)[0, :, : model.config.vocab]
    np.testing.assert_array_equal(model.logits("The whale"), expected)
    np.testing.assert_array_equal(model.logits(ids), expected)


SHORT = """\
{%- for turn in messages -%}
{%- if turn.role == 'user' -%}{{ turn.content }}|{%- else -%}{% generation %}{{ turn.content }}{{ eos_token }}{% endgeneration %}
{%- endif -%}
{%- endfor -%}
"""
WRONG = {
    "prompts": (dict(limt=5), "generate: there is no setting 'limt'; the nearest is limit; "),
    "range": (dict(temperature=-1), "--temperature -1.0: "),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_named(trained: Path, name: str) -> None:
    settings, message = WRONG[name]
    with pytest.raises(zoo.BadInput) as error:
        zoo.load(trained).generate("The whale", **settings)
    assert str(error.value).startswith(message)


def test_wrong_arguments_are_refused_in_one_line(trained: Path) -> None:
    wrong: dict[str, Any] = {
        "--stpes": lambda: zoo.train("gpt-nano", stpes=3),
        "no recipe": lambda: zoo.train("gpt-nona"),
        'limit "x": expected int; pass another value': lambda: zoo.load(trained).generate("whale", limit="x"),
        "mesh": lambda: zoo.load(trained, mesh={"fdsp": 2}),
        "target": lambda: zoo.load(trained).logits("The whale", target="x"),
        "text '': pass a text": lambda: zoo.load(trained).logits(""),
        "encoder": lambda: zoo.load(trained).embed("The whale"),
    }
    for words, act in wrong.items():
        with pytest.raises(zoo.BadInput) as error:
            act()
        assert words in str(error.value)
        assert "\n" not in str(error.value)


def code_of_the_page(words: str) -> str:
    """Return the only block of Python in the page with some words."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (block for block in blocks if words in block)
    return code


def test_a_text_is_streamed_as_it_is_generated(trained: Path) -> None:
    """Joined, the parts are the text of `generate`: with a seed, with stop strings, and with any number of tokens at a time."""
    model = zoo.load(trained)
    for chunk, settings in ((1, dict(temperature=0)), (5, dict(temperature=0)), (1, dict(seed=1, stop=[" s", "\ufffd"]))):
        text = model.generate("The whale", limit=12, **settings)
        parts = list(model.stream("The whale", chunk=chunk, limit=12, **settings))
        assert "".join(parts) == text and "" not in parts
    assert len(list(model.stream("The whale", limit=12, temperature=0))) > 1


def test_a_conversation_is_answered_in_the_template_of_the_model(
    trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = shutil.copytree(trained, tmp_path / "gpt")
    (folder / "tokenizer" / "chat_template.jinja").write_text(TEMPLATE)
    model, options = zoo.load(folder), dict(limit=6, seed=2)
    done = call(capsys, *f"generate {folder} --prompt whale --chat --limit 6 --seed 2 --json".split())
    answer = model.chat([{"role": "user", "content": "whale"}], **options)
    assert answer == json.loads(done.stdout)["text"] == model.chat("whale", **options)
    assert "".join(model.chat("whale", stream=True, **options)) == answer
    (folder / "tokenizer" / "chat_template.jinja").write_text(SHORT)
    model = zoo.load(folder)
    turns = [{"role": role, "content": content} for role, content in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    (ids,) = model.tokenizer.encode_rendered(["a|b<|endoftext|>c|"])
    first = int(np.argmax(model.logits(ids)[-1]))
    assert model.chat(turns, limit=1, temperature=0) == model.tokenizer.decode([first]).lstrip()
    assert len(model.chat(turns, limit=2, samples=3)) == 3


def test_scores_are_sums_of_log_probabilities(trained: Path) -> None:
    model = zoo.load(trained)
    text = "The white whale"
    ids = model.tokenizer.encode(text)
    start = [model.tokenizer.end_of_text]
    logs = jax.nn.log_softmax(np.asarray(model.logits(np.concatenate([start, ids])), np.float64))[:-1]
    one = model.score(text)
    assert one["log_likelihood"] == pytest.approx(float(logs[np.arange(len(ids)), ids].sum()), rel=1e-5)
    assert (one["tokens"], one["text"]) == (len(ids), text) and one["per_token"] == one["log_likelihood"] / len(ids)
    assert model.score([text, "sea"])[0]["log_likelihood"] == pytest.approx(one["log_likelihood"], rel=1e-5)
    (white, sea) = model.score("The", [" white whale", " sea"])
    logs, context = jax.nn.log_softmax(np.asarray(model.logits(ids), np.float64)), len(model.tokenizer.encode("The"))
    expected = sum(float(logs[at - 1, ids[at]]) for at in range(context, len(ids)))
    assert white["log_likelihood"] == pytest.approx(expected, rel=1e-5)
    assert (white["tokens"], sea["text"]) == (len(ids) - context, " sea")


def test_masks_are_filled_as_the_command_fills_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, texts = encoders.folder(tmp_path / "bert", "bert"), ["The [MASK] is [MASK].", "<mask> whale"]
    model = zoo.load(folder)
    two, one = model.fill_mask(texts, top=3)
    printed = call(capsys, "fill-mask", str(folder), "--text", *texts, "--top", "3", "--json").stdout
    assert [*two, *one] == [json.loads(line) for line in printed.splitlines()]
    assert [mask["mask"] for mask in two] == [1, 2] and len(one) == 1
    (only,) = model.fill_mask(texts[1], targets=["whale", "ship"])
    assert {candidate["token"] for candidate in only["candidates"]} == {"whale", "ship"}


def test_metrics_are_a_flat_table(trained: Path) -> None:
    rows = zoo.metrics(trained)
    assert {type(value) for row in rows for value in row.values()} <= {str, int, float, type(None)}
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert losses
    assert all("time.seconds" in row for row in rows)
    stored = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["step"]) for row in rows] == [(row["kind"], row["step"]) for row in stored]


def test_the_plot_of_the_page_is_drawn(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "gpt-nano").symlink_to(trained)
    exec(code_of_the_page("import pandas"), {})
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_training_loop_of_the_page_lowers_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    """On the eight devices of the tests, with a small model."""
    example = code_of_the_page("import optax")
    small = dict(vocab=300, context=32, layers=2, width=32, heads=2, head=16, ffn=64)
    exec(example.replace('"gpt-nano"', "config"), {"config": dataclasses.replace(zoo.sizes()["gpt-nano"], **small)})
    losses = [*map(float, capsys.readouterr().out.split())]
    assert len(losses) == 10 and losses[-1] < 0.95 * losses[0]


def test_a_model_of_no_size_and_no_configuration_is_refused() -> None:
    assert zoo.model("gpt2").config == zoo.sizes()["gpt2"]
    for size, message in (("gtp2", "no model is called 'gtp2'; the nearest is 'gpt2'"), (2, "size 2: pass the name of a size")):
        with pytest.raises(zoo.BadInput, match=message):
            zoo.model(size)


def test_importing_zoo_imports_nothing_else() -> None:
    program = (
        "import sys, zoo; zoo.BadInput; print([name for name in ('jax', 'numpy', 'train') if name in sys.modules], dir(zoo))"
    )
    printed = run_python("-c", program).stdout
    assert printed.startswith("[] ")
    assert all(repr(name) in printed for name in zoo.__all__)
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        zoo.laod  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", ["train.py", "eval.py", "train/__init__.py"])
def test_a_file_that_hides_a_package_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    ended = run_python("-m", "zoo.cli", "models", cwd=tmp_path)
    assert ended.code == 2
    package = name.partition("/")[0].removesuffix(".py")
    assert ended.stderr == (
        f"zoo: {tmp_path / name} hides the package {package!r} of the zoo; rename that file, or run from another folder\n"
    )
