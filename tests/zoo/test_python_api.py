"""The Python interface: `import zoo` and what it offers."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.support import tiny
from tests.support.commands import call
from tests.support.processes import ROOT, run_python
from train.run.run_dir import read_config


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
        "--text '': pass a text": lambda: zoo.load(trained).logits(""),
        "encoder": lambda: zoo.load(trained).embed("The whale"),
    }
    for words, act in wrong.items():
        with pytest.raises(zoo.BadInput) as error:
            act()
        assert words in str(error.value)
        assert "\n" not in str(error.value)


def test_the_training_loop_of_the_page_lowers_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    """On the eight devices of the tests, with a small model."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.DOTALL)
    small = dict(vocab=300, context=32, layers=2, width=32, heads=2, head=16, ffn=64)
    exec(example.replace('"gpt-nano"', "config"), {"config": dataclasses.replace(zoo.sizes()["gpt-nano"], **small)})
    losses = [*map(float, capsys.readouterr().out.split())]
    assert len(losses) == 10 and losses[-1] < 0.95 * losses[0]


def test_a_model_of_no_size_and_no_configuration_is_refused() -> None:
    assert zoo.model("gpt2").config == zoo.sizes()["gpt2"]
    for size, message in (("gtp2", "no model is called 'gtp2'; the nearest is 'gpt2'"), (2, "--size 2: pass the name of a size")):
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
