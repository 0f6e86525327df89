"""The laws of the house, read off its source: who imports whom, what of flax is used, and what a recipe says."""

import ast
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ROOT, run_python
from train import folder, recipes
from train.config import Run
from zoo.models import model

ROOMS = ("zoo", "train", "eval", "benchmarks", "tests")
SOURCES = {file.relative_to(ROOT).as_posix(): file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))}

ZOO = {"jax", "flax", "numpy", "jaxtyping"}
"""What `zoo` may import beside the standard library, and what single files of it may import on top."""
ON_TOP = {
    "zoo/catalogue.py": {"rich"},
    "zoo/doctor.py": {"rich"},
    "zoo/hub.py": {"huggingface_hub"},
    "zoo/kernels/tokamax.py": {"tokamax"},
    "zoo/tensors.py": {"safetensors", "huggingface_hub"},
}
FLAX = {"Module", "Param", "Rngs", "eval_shape", "graphdef", "merge", "split", "state", "to_pure_dict"}
"""What of flax.nnx is used: it declares parameters, JAX transforms functions of them."""
COMPOSITION = ("zoo/cli.py", "zoo/commands/")
"""What may import everything, and what nothing else imports."""


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything that is imported, wherever in a file; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def against_the_import_law(file: str, source: str) -> list[str]:
    """What a file imports and must not."""
    room, module = file.split("/")[0], Path(file).stem
    wrong = []
    for name in imports(ast.parse(source)):
        top, *below = name.split(".")
        composes = file.startswith(COMPOSITION)
        if room != "tests" and not composes and re.match(r"zoo\.(cli|commands)\b", name):
            wrong.append(name)
        if composes or room == "tests":
            continue
        if top in ROOMS and ROOMS.index(top) > ROOMS.index(room):
            wrong.append(name)
        if room == "zoo" and top not in {"zoo", *sys.stdlib_module_names, *ZOO, *ON_TOP.get(file, ())}:
            wrong.append(name)
        # A family's two files know of no other family, and numbers of nothing but the standard library and published files.
        if file.startswith("zoo/models/") and name.startswith("zoo.models."):
            wrong.append(name)
        if file.startswith("zoo/models/") and name.startswith("zoo.configs.") and below[1] != module and below[1][0].islower():
            wrong.append(name)
        if file.startswith("zoo/configs/") and not (
            top in sys.stdlib_module_names or re.match(r"zoo\.(errors|published|encoder_config|configs\.[A-Z])", name)
        ):
            wrong.append(name)
    return wrong


def against_functional_flax(source: str) -> list[str]:
    """Uses of nnx beyond declaring parameters, and changes of a Variable in place."""
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flax"):
            wrong += [f"{node.module}.{each.name}" for each in node.names if (node.module, each.name) != ("flax", "nnx")]
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "nnx"
            and node.attr not in FLAX
        ):
            wrong.append(f"nnx.{node.attr}")
        if isinstance(node, ast.Attribute) and node.attr in ("sow", "set_value", "set_metadata"):
            wrong.append(node.attr)
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
        for target in targets:
            whole = (
                isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant) and target.slice.value is Ellipsis
            )
            if whole or (isinstance(target, ast.Attribute) and target.attr in ("value", "raw_value")):
                wrong.append(ast.unparse(target))
    return wrong


@pytest.mark.parametrize("file", SOURCES)
def test_the_source_keeps_the_laws(file: str) -> None:
    source = SOURCES[file].read_text()
    assert against_the_import_law(file, source) == []
    if not file.startswith("tests/"):
        assert against_functional_flax(source) == []


@pytest.mark.planted
@pytest.mark.parametrize(
    ("file", "line", "caught"),
    [
        ("zoo/stack.py", "from train import optim", "train.optim"),
        ("zoo/stack.py", "def f():\n    import optax", "optax"),
        ("zoo/layers.py", "import rich.table", "rich.table"),
        ("zoo/models/bert.py", "from zoo.models import gpt", "zoo.models.gpt"),
        ("zoo/models/bert.py", "from zoo.configs.gpt import Config", "zoo.configs.gpt.Config"),
        ("zoo/models/bert.py", "from zoo.configs import gpt", "zoo.configs.gpt"),
        ("zoo/configs/bert.py", "import numpy", "numpy"),
        ("zoo/configs/bert.py", "from zoo import layers", "zoo.layers"),
        ("train/loop.py", "from eval.score import scorer", "eval.score.scorer"),
        ("eval/score.py", "import benchmarks.timing", "benchmarks.timing"),
        ("eval/score.py", "from zoo import cli", "zoo.cli"),
        ("zoo/doctor.py", "from zoo.commands.machine import alone", "zoo.commands.machine.alone"),
    ],
)
def test_a_forbidden_import_is_caught(file: str, line: str, caught: str) -> None:
    assert caught in against_the_import_law(file, line)
    assert against_the_import_law("zoo/layers.py", "import functools\nimport jax\nfrom zoo import seeds") == []


@pytest.mark.planted
@pytest.mark.parametrize(
    "line",
    [
        *(f"nnx.{name}" for name in ("jit", "grad", "scan", "vmap", "remat", "Optimizer", "Metric", "with_partitioning")),
        "from flax.nnx import jit",
        "import flax; from flax import linen",
        "self.sow('intermediates', x)",
        "self.kernel.value = 0",
        "self.kernel[...] = 0",
        "self.kernel[...] += 1",
    ],
)
def test_a_forbidden_use_of_flax_is_caught(line: str) -> None:
    assert against_functional_flax(line)
    assert against_functional_flax("from flax import nnx\nclass A(nnx.Module): ...\nself.kernel = nnx.Param(x)[...]") == []


def test_numbers_and_recipes_need_neither_jax_nor_flax() -> None:
    program = """
import pkgutil, sys
from zoo import configs
import train.config, train.recipes
modules = [configs.family(name) for name in configs.families()]
runs = [recipe() for recipe in train.recipes.recipes().values()]
print(len(modules), len(runs), {"jax", "flax", "numpy", "optax", "orbax", "grain"} & set(sys.modules))
"""
    found = run_python("-c", program).stdout.split(maxsplit=2)
    assert int(found[0]) > 0 and int(found[1]) > 0 and found[2] == "set()\n"


def test_the_console_script_is_the_composition_root() -> None:
    assert 'zoo = "zoo.cli:run"' in (ROOT / "pyproject.toml").read_text()
    assert callable(importlib.import_module("zoo.cli").run)


# --- recipes --------------------------------------------------------------------------------------------------------------------

RECIPES = recipes.recipes()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_to_type_and_what_to_expect(name: str) -> None:
    """The docstring: a line that says what it is, then Command, Hardware, Time and Expect, each with something behind it."""
    said = inspect.getdoc(RECIPES[name]) or ""
    first, *lines = said.splitlines()
    assert len(first) > 20 and lines[0] == ""
    facts = dict(line.split(": ", 1) for line in lines[1:])
    assert list(facts) == ["Command", "Hardware", "Time", "Expect"]
    assert re.match(rf"zoo train {name}( |$)", facts["Command"])
    for key in ("Time", "Expect"):
        measured = re.search(r"\d", facts[key]) and not re.match(r"[A-Z]{4}", facts[key])
        assert measured or facts[key].startswith("not measured"), f"{key}: {facts[key]}"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_run_that_comes_back_from_its_folder(name: str, tmp_path: Path) -> None:
    run = RECIPES[name]()
    assert isinstance(run, Run)
    assert run.recipe == name
    assert run.objective in model(run.model).module.OBJECTIVES
    folder.Folder(tmp_path).write_config(run)
    assert folder.read_config(tmp_path) == run
    assert json.loads((tmp_path / "config.json").read_text())["recipe"] == name


def test_the_default_recipe_exists() -> None:
    assert recipes.DEFAULT in RECIPES
