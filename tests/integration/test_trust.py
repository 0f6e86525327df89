"""Code that the files of others name: no command imports it without permission, whichever way a folder names it."""

import contextlib
import functools
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import zoo as interface
from tests.support import commands, tiny
from tests.support.commands import TINY, call, in_folder, words
from tests.support.environment import SCRATCH
from tests.support.example_plugin import installed, write_distribution
from tests.support.runs import ROLLOUTS
from train.checkpoints.manifest import Manifest
from train.config import reward_names
from train.data import sources
from train.rollouts import reward_functions
from train.rollouts.rewards import find_rewards
from train.run.run_dir import RunDir, read_config
from train.tokenizers.tokenizer import Tokenizer
from train.weights.resolve_model_name import resolve_model_name
from zoo import models, trust
from zoo.attention import attention
from zoo.cli.trust_option import trust_folder
from zoo.errors import BadInput

REWARDS = [*ROLLOUTS.replace("low_ids:share", f"{reward_names.OWN_MODULE}:exact_match").split(), "--rollout.samples", "2"]
REWARDS += [*words("--policy-gradient.beta 0 --steps 3 --checkpoint.every 3 --log.samples 0")]


@functools.cache
def rewarded() -> Path:
    """A folder with a run that learns from a reward function of the zoo, which is trained once."""
    folder = SCRATCH / "rewarded"
    (folder / "bytes").mkdir(parents=True)
    lines = (json.dumps({"prompt": f"{n}=", "completion": str(n)}) + "\n" for n in range(30))
    (folder / "prompts.jsonl").write_text("".join(lines))
    Tokenizer.train([], 257).save(folder / "bytes")
    with in_folder(folder):
        commands.trained("evil", ["rloo", *REWARDS])
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder of somebody who has confirmed nothing, in which nothing was imported."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "work").mkdir()
    with in_folder(tmp_path / "work"), installed(plugins(tmp_path)):
        trust.begin_command([])
        yield tmp_path / "work"
        trust.begin_command([])
    for name in [name for name in sys.modules if name.partition(".")[0] in ("payload", "runs", "payload_plugin")]:
        del sys.modules[name]


def payload(folder: Path) -> str:
    """The text of a module that writes the canary when it is imported."""
    return f"open({str(canary(folder))!r}, 'w').close()\ndef score(completions, **_):\n    return [1.0 for _ in completions]\n"


def canary(folder: Path) -> Path:
    return folder.parent / "canary"


def plugins(folder: Path) -> Path:
    """Install a distribution with a plug-in `payload` of each kind, none of which may be imported."""
    names = ("models", "objectives", "attention", "tasks", "recipes")
    groups = {f"zoo.{name}": {"payload": "payload_plugin"} for name in names}
    return write_distribution(folder / "site", "zoo-payload", "1", groups, {"payload_plugin.py": payload(folder / "work")})


def edit(run: Path, *keys: str, value: Any) -> None:
    """Change a value of config.json, and of what its checkpoints say of the run, as its author would."""
    config = json.loads((run / "config.json").read_text())
    functools.reduce(lambda inner, key: inner[key], keys[:-1], config)[keys[-1]] = value
    (run / "config.json").write_text(json.dumps(config))
    for file in run.glob("checkpoints/*/COMMIT.json"):
        manifest = Manifest.read(file.parent, int(file.parent.name))
        if ".".join(keys) in manifest.meta["config"]:
            manifest.meta["config"][".".join(keys)] = value
            manifest.write(file.parent)


def text_run(folder: Path, *keys: str, value: Any) -> None:
    commands.finished(folder)
    (folder / "runs/done").rename(folder / "runs/evil")
    edit(folder / "runs/evil", *keys, value=value)


def reward_run(folder: Path, reward: str) -> None:
    shutil.copytree(rewarded(), folder, dirs_exist_ok=True)
    edit(folder / "runs/evil", "rollout", "reward", value=[reward])
    for file in (folder / "payload.py", folder / "runs/evil/payload.py"):
        file.write_text(payload(folder))


def task_run(folder: Path) -> None:
    text_run(folder, "recipe", value="payload")
    assert commands.main.main(argv_of("task", folder)) == 0
    file = RunDir(folder / "runs/evil").evaluations
    [row] = json.loads(file.read_text()).values()
    file.write_text(json.dumps({"payload": row}))


def tokenizer_run(folder: Path) -> None:
    text_run(folder, "recipe", value="gpt-nano")
    (folder / "runs/evil/tokenizer/payload.py").write_text(payload(folder))
    for name in ("runs/evil/tokenizer/tokenizer_config.json", "runs/evil/tokenizer/config.json"):
        old = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        code = {"auto_map": {"AutoTokenizer": ["payload.score", "payload.score"]}, "tokenizer_class": "payload.score"}
        (folder / name).write_text(json.dumps(old | code))
    script = "{{ cycler.__init__.__globals__.os.open('" + str(canary(folder)) + "', 65) }}"
    (folder / "runs/evil/tokenizer/chat_template.jinja").write_text(script)


def published(folder: Path) -> None:
    text_run(folder, "recipe", value="gpt-nano")
    assert commands.main.main(["export", "runs/evil", "weights"]) == 0
    shutil.rmtree("runs/evil")
    Path("weights").rename("runs/evil")
    config = json.loads(Path("runs/evil/config.json").read_text())
    Path("runs/evil/config.json").write_text(json.dumps({**config, "model_type": "payload"}))


REFUSED = ("resume", "init", "eval", "task", "compare", "export", "generate", "inspect", "render", "load")
WAYS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "a reward in the working folder": (lambda folder: reward_run(folder, "payload:score"), ("eval",)),
    "a reward in the run": (lambda folder: reward_run(folder, "runs.evil.payload:score@0.5"), ("eval",)),
    "an objective": (lambda folder: text_run(folder, "objective", value="payload"), REFUSED),
    "a family": (lambda folder: text_run(folder, "family", value="payload"), REFUSED),
    "attention": (
        lambda folder: text_run(folder, "model", "compute", "attention", value="payload"),
        tuple(name for name in REFUSED if name not in ("resume", "render")),
    ),
    "published weights": (published, ("init", "task", "export", "generate", "load")),
    "a recipe and a task": (task_run, ()),
    "a tokenizer and a template": (tokenizer_run, ()),
}
"""Way in which runs/evil names code -> (function that writes it, commands that refuse it; the others do not need the code)."""


def argv_of(name: str, folder: Path) -> list[str]:
    recipe = ["rloo", *REWARDS] if (folder / "prompts.jsonl").exists() else ["gpt-nano", *TINY]
    return {
        "resume": ["train", *recipe, "--name", "evil"],
        "init": ["train", "gpt-nano", *TINY, "--name", "other", "--init", "runs/evil"],
        "eval": ["eval", "runs/evil"],
        "task": words("eval runs/evil --task perplexity --files text.txt --limit 1"),
        "compare": words("compare runs/evil"),
        "export": words("export runs/evil exported"),
        "generate": words("generate runs/evil --prompt 1 --limit 2"),
        "inspect": words("data inspect runs/evil --rows 1"),
        "render": words("experiment masks grid --tier smoke --render"),
    }[name]


def attempt(capsys: pytest.CaptureFixture[str], name: str, folder: Path) -> tuple[int, str]:
    """Run a command on runs/evil, and return its exit code with its line on stderr."""
    if name == "load":
        capsys.readouterr()
        try:
            interface.load("runs/evil")
        except BadInput as error:
            return 2, str(error)
        return 0, ""
    if name == "render":
        printed = call(capsys, *words("experiment masks grid --tier smoke --commands")).stdout
        shutil.copytree("runs/evil", Path("grid/runs", printed.partition(" --name ")[2].split()[0]))
    ended = call(capsys, *argv_of(name, folder))
    return ended.code, ended.stderr


def attack(way: str, capsys: pytest.CaptureFixture[str], here: Path) -> dict[str, tuple[int, str]]:
    (here / "text.txt").write_text("The whale is seen.\n")
    WAYS[way][0](here)
    trust.begin_command([])
    results = {}
    # The command that trains a run of this name would replace a model.
    for name in REFUSED[way == "published weights" :]:
        results[name] = attempt(capsys, name, here)
        assert not canary(here).exists(), name
    return results


@pytest.mark.full
@pytest.mark.parametrize("way", WAYS)
def test_no_command_imports_what_a_folder_names(way: str, capsys: pytest.CaptureFixture[str], here: Path) -> None:
    results = attack(way, capsys, here)
    refused = [name for name, (code, line) in results.items() if code == 2 and "if you trust its author, add --trust" in line]
    assert tuple(refused) == WAYS[way][1]
    for name, (code, lines) in results.items():
        errors = [line for line in lines.splitlines() if not line.endswith(" ...")]
        assert code == 0 or (code == 2 and len(errors) == 1), (name, lines)


def config_of(here: Path, *keys: str, value: Any, objective: str = "causal", name: str = "runs/evil") -> Path:
    """Write a folder with nothing but the config.json of a run, and change a value of it."""
    RunDir(here / name).path.mkdir(parents=True, exist_ok=True)
    RunDir(here / name).write_config(tiny.run(objective))
    edit(here / name, *keys, value=value)
    return here / name


def reward_config(here: Path, reward: str, name: str = "runs/evil") -> Path:
    return config_of(here, "rollout", "reward", value=[reward], objective="policy_gradient", name=name)


def use(run: str) -> None:
    """Use all code that the config.json of a run names, as its evaluation does, in a command that names none of it."""
    trust.begin_command([])
    config = read_config(run)
    models.model(config.model)
    if config.model.compute.attention != "auto":
        attention.find_implementation(config.model.compute.attention)
    if config.rewards:
        find_rewards(config.rewards)


CONFIGS: dict[str, Callable[[Path], Path]] = {
    "reward function payload:score": lambda here: reward_config(here, "payload:score"),
    "reward function runs.evil.payload:score": lambda here: reward_config(here, "runs.evil.payload:score"),
    "objective payload": lambda here: config_of(here, "objective", value="payload"),
    "model family payload": lambda here: config_of(here, "family", value="payload"),
    "attention implementation payload": lambda here: config_of(here, "model", "compute", "attention", value="payload"),
}


@pytest.mark.planted(len(CONFIGS))
@pytest.mark.parametrize("code", CONFIGS)
def test_without_the_rule_the_code_of_a_run_is_imported(code: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = CONFIGS[code](here)
    for file in (here / "payload.py", run / "payload.py"):
        file.write_text(payload(here))
    line = f"names code that is not part of the zoo: the {code}; if you trust its author, add --trust runs/evil \\(needed once"
    with pytest.raises(BadInput, match=f"^runs/evil: its config.json {line}"):
        use("runs/evil")
    assert not canary(here).exists()
    monkeypatch.setattr(trust, "check_trusted", lambda names: None)
    with contextlib.suppress(BadInput):
        use("runs/evil")
    assert canary(here).exists()


def test_a_confirmation_is_private_and_holds_until_the_code_is_another(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = reward_config(here, "payload:score")
    (here / "payload.py").write_text(payload(here))
    ended = call(capsys, *words("eval runs/evil --trust runs/evil"))
    line = f"--trust runs/evil: the reward function payload:score is imported from {here}/payload.py\n"
    assert ended.code == 2 and ended.stderr.startswith(line) and "no checkpoint yet" in ended.stderr
    assert not canary(here).exists()
    [file] = (here.parent / "cache/trusted").iterdir()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (file.parent, file)] == [0o700, 0o600]
    # A copy, another name and other logging are the same run; another seed is not.
    use("runs/evil")
    shutil.copytree(run, here / "copy")
    for keys, value in ((("log", "every"), 77), (("name",), "other"), (("checkpoint", "keep"), 9)):
        edit(here / "copy", *keys, value=value)
    use("copy")
    edit(here / "copy", "seed", value=7)
    refused("copy", "payload:score")
    # Neither another function nor another module of this name is confirmed.
    edit(run, "rollout", "reward", value=["payload:score", "payload:other"])
    refused("runs/evil", "payload:other")
    edit(run, "rollout", "reward", value=["payload:score"])
    use("runs/evil")
    shutil.copytree(run, here / "elsewhere/runs/evil")
    (here / "elsewhere/payload.py").write_text(payload(here))
    sys.path.remove(str(here))
    with in_folder(here / "elsewhere"):
        refused("runs/evil", "payload:score")
    # Whoever can write to the confirmations can confirm.
    os.chmod(file.parent, 0o777)
    with pytest.raises(BadInput, match=r"cache folder .*/trusted: others can write to it"):
        use("runs/evil")


def test_the_python_interface_confirms_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config_of(here, "objective", value="payload")
    with pytest.raises(BadInput, match="the objective payload; if you trust its author"):
        interface.load("runs/evil")
    # The plug-in is imported now, and is none.
    with pytest.raises(BadInput, match="objective 'payload' of zoo-payload 1: payload_plugin is a module; expected a subclass"):
        interface.load("runs/evil", trust=True)
    line = "--trust runs/evil: the objective payload is imported from payload_plugin of zoo-payload\n"
    assert canary(here).exists() and capsys.readouterr().err == line


def test_a_change_of_code_inside_of_a_confirmed_folder_needs_another_confirmation(here: Path) -> None:
    run = reward_config(here, "runs.evil.payload:score")
    (run / "payload.py").write_text("def score(completions, **_):\n    return [1.0]\n")
    trust_folder("runs/evil")
    use("runs/evil")
    (run / "payload.py").write_text(payload(here))
    refused("runs/evil", "runs.evil.payload:score")


def refused(run: str, name: str) -> None:
    with pytest.raises(
        BadInput, match=f"^{run}: its config.json names code .* {name}; if you trust its author, add --trust {run}"
    ):
        use(run)


def test_the_option_names_what_it_confirms(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config_of(here, "seed", value=1)
    for argv, line in {
        "eval runs/evil --trust=runs/gone": "zoo: --trust runs/gone: no such folder; name the folder of a run or of ",
        "eval runs/evil --trust": "zoo: --trust: has no value; name the folder of a run, or a task file",
        "doctor --trust runs/evil": "zoo: --trust: zoo doctor reads no run; leave the option out",
        "eval runs/evil --trust runs": "zoo: --trust runs: there is no config.json in it; name the folder of a ",
        "eval runs/evil --trust runs/evil": "--trust runs/evil: it names no code of others, so there is nothing to confirm",
    }.items():
        ended = call(capsys, *words(argv))
        assert ended.code == 2 and ended.stderr.startswith(line), ended
    assert not (here.parent / "cache/trusted").exists()


def test_the_functions_that_any_run_may_name_are_those_of_the_zoo(here: Path) -> None:
    public = [name for name, value in vars(reward_functions).items() if callable(value) and not name.startswith("_")]
    own = [name for name in public if getattr(reward_functions, name).__module__ == reward_names.OWN_MODULE]
    assert tuple(own) == reward_names.OWN_FUNCTIONS and "import_optional" in public
    reward_config(here, f"{reward_names.OWN_MODULE}:exact_match@0.5")
    use("runs/evil")
    # Otherwise a file here would take the place of a package that is not installed.
    assert str(here) not in sys.path
    for name in (f"{reward_names.OWN_MODULE}:import_optional", "train.rollouts.rewards:find_rewards", "os:system"):
        reward_config(here, name)
        refused("runs/evil", name)


def test_what_the_command_names_is_not_asked_about(here: Path) -> None:
    reward_config(here, "payload:score@0.5")
    (here / "payload.py").write_text("def score(completions, **_):\n    return [1.0]\n")
    trust.begin_command(["train", "grpo", "--rollout.reward=payload:score@0.5"])
    assert find_rewards(read_config("runs/evil").rewards)


@pytest.mark.parametrize(
    ("keys", "address"),
    [(("data", "paths"), "hub:somebody/texts"), (("init",), "hub:somebody/model@main"), (("init",), "s3://bucket/runs/model")],
)
def test_reading_a_run_fetches_nothing_that_the_command_does_not_name(keys: tuple[str, ...], address: str, here: Path) -> None:
    config_of(here, *keys, value=[address] if keys[0] == "data" else address)

    def fetch(*words: str) -> None:
        trust.begin_command(words)
        run = read_config("runs/evil")
        if keys[0] == "data":
            sources.find_sources(run.data.paths, run.data)
        else:
            resolve_model_name(run.init)

    line = (
        f"^runs/evil: its config.json names {'.'.join(keys)} {address}, which would be fetched, and this command does not name it"
    )
    with pytest.raises(BadInput, match=line):
        fetch("eval", "runs/evil")
    # These are the errors of a machine without a network, or without the library.
    for attempt in (lambda: fetch("data", "inspect", "runs/evil", f"--option={address}"), lambda: fetch("eval", "runs/evil")):
        with pytest.raises(BadInput, match=r"HF_HUB_OFFLINE forbids|s3fs is needed|no credentials|AWS"):
            attempt()
        trust_folder("runs/evil")


@pytest.mark.full
def test_a_run_of_the_user_is_confirmed_when_it_is_trained(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(rewarded(), here, dirs_exist_ok=True)
    (here / "payload.py").write_text(payload(here))
    argv = ["train", "rloo", *REWARDS[: REWARDS.index("--rollout.reward")], "--rollout.reward", "payload:score", "--name", "own"]
    argv += REWARDS[REWARDS.index("--rollout.reward") + 2 :]
    assert call(capsys, *argv).code == 0
    for command in (argv, words("eval runs/own")):
        ended = call(capsys, *command)
        assert ended.code == 0 and "--trust" not in ended.stderr, ended
