"""Every cache that the zoo reads is refused if other users can write to it, before anything in it is read."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest

from benchmarks.plan import plan_cache
from benchmarks.plan.target_devices import parse_target
from eval.tasks.harness import harness_task
from tests.support.processes import run_python
from tests.support.text_tasks import tokenizer
from train.config.data_options import TextData
from train.data import sources
from train.recipes.gpt import gpt_nano
from train.rows import token_cache
from train.store import run_fetch
from train.weights import reference_cache
from zoo.errors import BadInput
from zoo.hf import hub
from zoo.runtime import jax_setup


def read_tokens(folder: Path) -> None:
    token_cache.tokenize_documents([], tokenizer(), folder)


def read_reference(folder: Path) -> None:
    reference_cache.read_log_probs(folder, "key", 1)


def read_plan(folder: Path) -> None:
    plan_cache.cached_plan(gpt_nano(), "train", parse_target("cpu:1"))


def train_in_a_working_copy(folder: Path) -> None:
    run_fetch.prepare_training(dataclasses.replace(gpt_nano(), out="s3://bucket/runs"))


def read_model_of_the_hub(folder: Path) -> None:
    hub.fetch_model("hub:organisation/model")


def read_data_of_the_hub(folder: Path) -> None:
    sources.load_data_set("hub:organisation/data", TextData())


def read_task_of_the_harness(folder: Path) -> None:
    with harness_task._offline():
        raise AssertionError("the cache was accepted")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that holds the caches of the zoo and of the Hugging Face libraries."""
    import datasets.config

    cache = tmp_path / "cache"
    monkeypatch.setenv("ZOO_CACHE", str(cache))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache / "datasets"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(cache / "modules"))
    return cache


@pytest.mark.planted
@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize(
    ("name", "setting", "use"),
    [
        ("text", "ZOO_CACHE", read_tokens),
        ("reference", "ZOO_CACHE", read_reference),
        ("plans", "ZOO_CACHE", read_plan),
        ("runs/s3/bucket/runs/gpt-nano", "ZOO_CACHE", train_in_a_working_copy),
        ("hub", "HF_HUB_CACHE", read_model_of_the_hub),
        ("datasets", "HF_DATASETS_CACHE", read_data_of_the_hub),
        ("datasets", "HF_DATASETS_CACHE", read_task_of_the_harness),
        ("modules", r"HF_\w+_CACHE", read_task_of_the_harness),
    ],
)
def test_a_cache_that_others_can_write_to_is_refused(
    name: str, setting: str, use: Callable[[Path], None], above: bool, cache: Path
) -> None:
    folder = cache / name
    folder.mkdir(parents=True)
    path = cache if above else folder
    path.chmod(0o777)
    where = f"cache folder {folder}: " if not above else rf"cache folder {cache}/[\w/-]+: {cache}: "
    command = f"chmod {'go-w' if above else '700'} {path}"
    fix = f"run `{command}`, or set {setting} to a private folder"
    with pytest.raises(BadInput, match=rf"^{where}others can write to it \(mode 0777\); {fix}$"):
        use(folder)
    assert [file for file in cache.rglob("*") if file.is_file()] == []


@pytest.mark.full
def test_a_command_refuses_a_cache_that_others_can_write_to_until_its_advice_is_followed(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    env = {"ZOO_CACHE": str(cache), "JAX_COMPILATION_CACHE_DIR": None}
    done = run_python("-m", "zoo.cli", "doctor", env=env)
    compiled = cache / f"compiled-{jax_setup.processor_digest()}"
    command = f"chmod go-w {cache}"
    line = f"{compiled}: {cache}: others can write to it (mode 0777); run `{command}`, or set ZOO_CACHE to a private folder"
    assert (done.code, done.stderr) == (2, f"zoo: cache folder {line}\n")
    run_python("-c", f"import os; os.system({command!r})")
    assert run_python("-m", "zoo.cli", "doctor", env=env).code == 0
