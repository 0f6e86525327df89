"""Rules that the source follows: which module imports which, what of flax is used, and what a recipe's docstring says."""

import ast
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.processes import ROOT, run_python
from train import recipes
from train.config.run_config import Run
from train.run import run_dir
from zoo.models import model

PACKAGES = ("zoo", "train", "eval", "benchmarks", "tests")
"""Each imports only itself and those before it."""
ZOO = {"jax", "flax", "numpy", "jaxtyping"}
"""What `zoo` may import beside the standard library."""
EXTRA_IMPORTS = {
    "zoo/cli/models_table.py": {"rich"},
    "zoo/cli/doctor_report.py": {"rich"},
    "zoo/hf/hub.py": {"huggingface_hub"},
    "zoo/hf/hub_upload.py": {"huggingface_hub"},
    "zoo/object_store.py": {"fsspec"},
    "zoo/attention/kernels/tokamax.py": {"tokamax"},
    "zoo/hf/safetensors_dir.py": {"safetensors", "huggingface_hub", "ml_dtypes"},
}
OWN_FILES = {
    "zoo/file_access.py": "the place for it",
    "zoo/errors.py": "the metadata of the installed package",
    **dict.fromkeys(("zoo/runtime/launch.py", "zoo/runtime/stdio.py", "zoo/runtime/compile_cache.py"), "descriptors, /dev/null"),
    **dict.fromkeys(
        ("zoo/runtime/local_group.py", "zoo/runtime/caches.py", "zoo/runtime/jax_setup.py", "train/run/matmul_rate.py"), "/proc"
    ),
    "benchmarks/core/memory.py": "/proc",
    **dict.fromkeys(
        ("benchmarks/core/result_files.py", "zoo/cli/parameter_counts.py", "zoo/attention/auto.py", "train/data/corpus.py"),
        "/proc, the package",
    ),
    **dict.fromkeys(("benchmarks/plan/plan_cache.py", "eval/experiments/judge_source.py"), "the source of the package"),
    "eval/experiments/package_texts.py": "archives whose digests are known",
    **dict.fromkeys(("eval/experiments/public_corpus.py", "eval/serving/http_server.py"), "the package"),
    **dict.fromkeys(
        ("benchmarks/core/peer_process.py", "benchmarks/step/peer_keras.py"), "files of another process of a benchmark"
    ),
    **dict.fromkeys(("benchmarks/attention/tpu_schedule.py", "benchmarks/attention/gpu_kernels.py"), "what a compiler wrote"),
    "benchmarks/plan/large_arrays.py": "what a compiler wrote",
}
"""Files that open or read files by themselves -> which. All others read by `zoo.file_access`: what is there may be of others."""
READS = {"read_text", "read_bytes", "open"}
DESCRIPTORS = {"os.open"}
"""Calls with flags, which say what is done with a FIFO or a link."""
FLAX = {"Module", "Param", "Rngs", "eval_shape", "graphdef", "merge", "split", "state", "to_pure_dict"}
"""What of flax.nnx is used: it declares parameters, JAX transforms functions of them."""
COMMANDS = "zoo/cli/"
"""It may import everything, and nothing else imports it."""
INTERFACE = {("zoo/__init__.py", f"zoo.cli.python_api.{name}") for name in ("LoadedModel", "load")} | {
    ("zoo/__init__.py", f"zoo.cli.python_functions.{name}") for name in ("metrics", "model", "recipes", "sizes", "train")
}
"""What `import zoo` offers of it, for type checkers alone."""


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted name of everything that is imported anywhere in a file; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names)


def forbidden_imports(file: str, tree: ast.AST) -> list[str]:
    """Return what a file imports and must not."""
    package, module = file.split("/")[0], Path(file).stem
    wrong = []
    for name in imports(tree):
        top, *below = name.split(".")
        if not top:
            wrong.append(name)
        if file.startswith(COMMANDS) or package == "tests" or (file, name) in INTERFACE:
            continue
        if re.match(r"zoo\.cli\b", name):
            wrong.append(name)
        if top in PACKAGES and PACKAGES.index(top) > PACKAGES.index(package):
            wrong.append(name)
        if package == "zoo" and top not in {"zoo", *sys.stdlib_module_names, *ZOO, *EXTRA_IMPORTS.get(file, ())}:
            wrong.append(name)
        # A family's two files import no other family; its sizes the standard library, published files, and private modules.
        if file.startswith("zoo/models/") and name.startswith("zoo.models."):
            wrong.append(name)
        if file.startswith("zoo/models/") and name.startswith("zoo.configs.") and below[1] != module and below[1][0].islower():
            wrong.append(name)
        if file.startswith("zoo/configs/") and not (
            top in sys.stdlib_module_names or re.match(r"zoo\.(errors|plugins|hf\.config_json|configs\.(_|[A-Z]))", name)
        ):
            wrong.append(name)
    return wrong


def direct_reads(tree: ast.AST) -> list[str]:
    """Return the calls that open or read a file, whatever it is."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = [call.id for call in calls if isinstance(call, ast.Name) and call.id == "open"]
    attributes = [ast.unparse(call) for call in calls if isinstance(call, ast.Attribute) and call.attr in READS]
    return names + [call for call in attributes if call not in DESCRIPTORS]


def forbidden_flax(tree: ast.AST) -> list[str]:
    """Return the uses of nnx beyond declaring parameters, and changes of a Variable in place.

    The references of a Pallas kernel are assigned in the same way, so a file that imports Pallas may have `x[...] = y`.
    """
    wrong, modules = [], [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    has_references = any(alias.name == "pallas" for node in modules for alias in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flax"):
            wrong += [f"{node.module}.{alias.name}" for alias in node.names if (node.module, alias.name) != ("flax", "nnx")]
        if isinstance(node, ast.Attribute):
            of_nnx = isinstance(node.value, ast.Name) and node.value.id == "nnx"
            if (of_nnx and node.attr not in FLAX) or node.attr in ("sow", "set_value", "set_metadata"):
                wrong.append(ast.unparse(node))
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
        for target in targets:
            index = target.slice if isinstance(target, ast.Subscript) else None
            all_entries = isinstance(index, ast.Constant) and index.value is Ellipsis
            if (all_entries and not has_references) or (
                isinstance(target, ast.Attribute) and target.attr in ("value", "raw_value")
            ):
                wrong.append(ast.unparse(target))
    return wrong


def subpackage(name: str) -> str:
    """Return the subpackage of a module: "train.rows" of "train.rows.batches"; "train.trainer" stands for itself."""
    return ".".join(name.split(".")[:2])


def import_cycles(imported: Mapping[str, set[str]]) -> list[str]:
    """Return the subpackages that import themselves by way of others. `imported`: subpackage -> those that it imports."""
    reached = {name: set(others) - {name} for name, others in imported.items()}
    size = 0
    while (total := sum(map(len, reached.values()))) > size:
        size = total
        for others in reached.values():
            others.update(*(reached.get(other, ()) for other in tuple(others)))
    return sorted(name for name, others in reached.items() if name in others)


def imported_modules() -> dict[str, set[str]]:
    """Return the modules that each module of the product imports anywhere in its file."""
    paths = [path.relative_to(ROOT) for package in PACKAGES[:-1] for path in (ROOT / package).rglob("*.py")]
    files = {path.with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path for path in paths}
    imported = {}
    for module, path in files.items():
        names = set(imports(ast.parse((ROOT / path).read_text())))
        imported[module] = {name if name in files else name.rpartition(".")[0] for name in names} & files.keys() - {module}
    return imported


def test_neither_modules_nor_subpackages_import_each_other_in_a_cycle() -> None:
    modules = imported_modules()
    subpackages: dict[str, set[str]] = {}
    for module, names in modules.items():
        if not module.startswith("zoo.cli") and module.count("."):
            subpackages.setdefault(subpackage(module), set()).update(map(subpackage, names))
    assert len(modules) > 300 and len(subpackages) > 30
    assert (import_cycles(modules), import_cycles(subpackages)) == ([], [])


@pytest.mark.planted
def test_a_cycle_of_imports_is_caught() -> None:
    imported = {
        "train.rows": {"train.data"},
        "train.data": {"train.run"},
        "train.run": {"train.rows"},
        "train.engine": {"train.run"},
    }
    assert import_cycles(imported) == ["train.data", "train.rows", "train.run"]
    assert import_cycles(imported | {"train.run": set()}) == []


VAGUE_NAMES = {
    *("found", "told", "given", "said", "made", "kept", "shown", "wanted", "whole", "each", "most"),
    *("mine", "ours", "theirs", "known", "asked"),
}
"""Names that say nothing about a value. An option of the command line may have one."""
VAGUE_OPTIONS = {("train/config/option_groups.py", "most")}
VAGUE_OPENINGS = re.compile(r"(Of|What|That|As|Whether|How|Where|Which|Why|When)\b")
"""A docstring begins with a verb or a noun phrase."""


def vague_words(file: str, tree: ast.AST) -> list[str]:
    """Return the variables and docstrings that the conventions of this project exclude."""
    wrong = []
    for node in ast.walk(tree):
        name = node.arg if isinstance(node, ast.arg) else node.id if isinstance(node, ast.Name) else ""
        if name in VAGUE_NAMES and not isinstance(getattr(node, "ctx", None), ast.Load) and (file, name) not in VAGUE_OPTIONS:
            wrong.append(name)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and VAGUE_OPENINGS.match(ast.get_docstring(node) or ""):
            wrong.append((ast.get_docstring(node) or "").splitlines()[0])
    return wrong


def test_no_name_or_docstring_is_vague() -> None:
    paths = [path for package in PACKAGES[:-1] for path in (ROOT / package).rglob("*.py")]
    files = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in paths}
    assert {file: words for file, tree in files.items() if (words := vague_words(file, tree))} == {}


@pytest.mark.planted(4)
def test_a_vague_name_or_docstring_is_caught() -> None:
    for source in ("found = 1", "for each in x: pass", "def f(told): pass", 'def f():\n    """What is read."""'):
        assert len(vague_words("train/trainer.py", ast.parse(source))) == 1, source
    assert vague_words("train/trainer.py", ast.parse('"""Rows."""\nrows = asked')) == []


def test_no_file_has_a_forbidden_import_or_use_of_flax() -> None:
    wrong, files = [], [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 100
    for path in files:
        file, tree = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())
        names = [*forbidden_imports(file, tree), *([] if file.startswith("tests/") else forbidden_flax(tree))]
        wrong += [f"{file}: {name}" for name in names]
    assert wrong == []


FORBIDDEN_IMPORTS = [
    ("zoo/nn/layer_stack.py", "from train.engine import optim", "train.engine.optim"),
    ("zoo/nn/layer_stack.py", "def f():\n    import optax", "optax"),
    ("zoo/nn/layers.py", "import rich.table", "rich.table"),
    ("zoo/models/bert.py", "from zoo.models import gpt", "zoo.models.gpt"),
    ("zoo/models/bert.py", "from zoo.configs.gpt import Config", "zoo.configs.gpt.Config"),
    ("zoo/models/bert.py", "from zoo.configs import gpt", "zoo.configs.gpt"),
    ("zoo/configs/bert.py", "import numpy", "numpy"),
    ("zoo/configs/bert.py", "from zoo.nn import layers", "zoo.nn.layers"),
    (
        "train/trainer.py",
        "from eval.tasks.held_out.language_model_scores import scorer",
        "eval.tasks.held_out.language_model_scores.scorer",
    ),
    ("eval/tasks/held_out/policy_scores.py", "import benchmarks.core.timing", "benchmarks.core.timing"),
    ("eval/tasks/held_out/policy_scores.py", "from zoo import cli", "zoo.cli"),
    ("zoo/runtime/launch.py", "from zoo.cli.command_setup import option_value", "zoo.cli.command_setup.option_value"),
    ("tests/test_imports.py", "from .support import tiny", ".support.tiny"),
]


@pytest.mark.planted(len(FORBIDDEN_IMPORTS))
def test_a_forbidden_import_is_caught() -> None:
    for file, source, name in FORBIDDEN_IMPORTS:
        assert name in forbidden_imports(file, ast.parse(source)), source
    assert forbidden_imports("zoo/nn/layers.py", ast.parse("import functools\nimport jax\nfrom zoo.ops import counter_rng")) == []


FORBIDDEN_FLAX = [
    *(f"nnx.{name}" for name in ("jit", "grad", "scan", "vmap", "remat", "Optimizer", "Metric", "with_partitioning")),
    "from flax.nnx import jit",
    "import flax; from flax import linen",
    "self.sow('intermediates', x)",
    "self.kernel.value = 0",
    "self.kernel[...] = 0",
    "self.kernel[...] += 1",
]


@pytest.mark.planted(len(FORBIDDEN_FLAX))
def test_a_forbidden_use_of_flax_is_caught() -> None:
    for source in FORBIDDEN_FLAX:
        assert forbidden_flax(ast.parse(source)), source
    allowed = "from flax import nnx\nclass A(nnx.Module): ...\nself.kernel = nnx.Param(x)[...]"
    assert forbidden_flax(ast.parse(allowed)) == []


def test_sizes_and_recipes_import_neither_jax_nor_flax() -> None:
    program = """
import sys
from zoo import configs
import train.config.run_config, train.recipes
modules = [configs.family(name) for name in configs.families()]
runs = [recipe() for recipe in train.recipes.recipes().values()]
print(len(modules), len(runs), {"jax", "flax", "numpy", "optax", "orbax", "grain"} & set(sys.modules))
"""
    modules, runs, imported = run_python("-c", program).stdout.split(maxsplit=2)
    assert int(modules) > 0 and int(runs) > 0 and imported == "set()\n"


def test_files_of_others_are_read_in_one_way() -> None:
    for package in PACKAGES[:-1]:
        for path in sorted((ROOT / package).rglob("*.py")):
            if (file := path.relative_to(ROOT).as_posix()) not in OWN_FILES:
                reads = direct_reads(ast.parse(path.read_text()))
                assert reads == [], f"{file}: {reads}; use zoo.file_access, or say in OWN_FILES which files these are"


@pytest.mark.planted(3)
def test_a_direct_read_is_caught() -> None:
    for text in ("open(path)", "path.read_text()", "(folder / name).open('rb')"):
        assert direct_reads(ast.parse(text))


def test_the_console_script_is_there() -> None:
    assert 'zoo = "zoo.cli.main:run"' in (ROOT / "pyproject.toml").read_text()
    assert callable(importlib.import_module("zoo.cli.main").run)


RECIPES = recipes.recipes()


def test_a_recipe_says_what_to_type_and_what_to_expect() -> None:
    for name, recipe in RECIPES.items():
        facts = dict(line.split(": ", 1) for line in (inspect.getdoc(recipe) or "").splitlines()[2:])
        assert list(facts) == ["Command", "Hardware", "Time", "Expect"], name
        assert re.match(rf"zoo train {name}( |,|$)", facts["Command"])
        assert all(re.search(r"\d|^not measured", facts[key]) for key in ("Time", "Expect")), name


def test_a_recipe_is_read_back_from_the_folder_of_its_run(tmp_path: Path) -> None:
    assert recipes.DEFAULT in RECIPES
    for name, recipe in RECIPES.items():
        run = recipe()
        assert isinstance(run, Run)
        assert run.recipe == name
        assert run.objective in model(run.model).definition.objectives
        (tmp_path / name).mkdir()
        run_dir.RunDir(tmp_path / name).write_config(run)
        assert run_dir.read_config(tmp_path / name) == run
        assert json.loads((tmp_path / name / "config.json").read_text())["recipe"] == name
