"""Wheel and source distribution: which files they have, and that an installed wheel works outside of this checkout."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support import packages, tiny
from tests.support.processes import ROOT, Ended, clean_environment

pytestmark = pytest.mark.full
BERT = ["--model.vocab=300", "--model.layers=2", "--model.width=32", "--model.heads=4", "--model.ffn=64", "--tokenizer.vocab=300"]
SHORT = ["--model.task=masked", "--data.rows=full_sentences", "--log.samples=0", "--log.validate-rows=8", "--data.paths=text.txt"]
COMMANDS = {
    "--version": "transformer-zoo ",
    "models gpt2": "124,439,808",
    f"train gpt-nano {' '.join(tiny.FLAGS)} --steps 2 --data.paths=text.txt": "",
    "generate runs/gpt-nano --prompt whale --limit 4": "",
    f"train bert-nano --steps 2 --data.length=32 --data.batch=8 {' '.join([*BERT, *SHORT])}": "",
    "fill-mask runs/bert-nano --text [MASK]": "",
    "plan gpt-nano --target cpu:2 --data.batch 2 --data.length 32 --model.layers 1": "traced and compiled",
    "bench attention --impl blocked --feature causal --direction forward --shape 1,64,64,2,2,16 --rounds 1 --out bench": "",
    "export runs/gpt-nano exported": "",
    "test-install": "ok   export",
}
"""Commands that are run in an empty folder with a text -> what they print."""


class Installed:
    """An environment with the wheel, and an empty folder in which its commands run."""

    def __init__(self, folder: Path, python: str) -> None:
        self.environment, self.place = folder / "environment", folder / "place"
        self.place.mkdir()
        packages.run_uv("venv", "-q", "--python", python, str(self.environment))
        self.python = str(self.environment / "bin" / "python")
        self.cache = folder / "cache"
        self.cache.mkdir(mode=0o700)

    def install(self, *args: str) -> None:
        packages.run_uv("pip", "install", "-q", "--python", self.python, *args, cwd=self.place)

    def run(self, program: str, *argv: str) -> Ended:
        """Run a program of the environment, without the settings that put this checkout on the path."""
        env = clean_environment() | {"ZOO_CACHE": str(self.cache)}
        env.pop("PYTHONPATH", None)
        command = [str(self.environment / "bin" / program), *argv]
        done = subprocess.run(command, env=env, cwd=self.place, capture_output=True, text=True, timeout=600)
        return Ended(done.returncode, done.stdout, done.stderr)

    def check_commands(self) -> None:
        (self.place / "text.txt").write_text("".join(f"The {n}th whale is seen.\n\n" for n in range(400)))
        for line, expected in COMMANDS.items():
            ended = self.run("zoo", *line.split())
            assert ended.code == 0 and expected in ended.stdout, (line, ended)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel without its requirements, which come from the environment of the tests. This checkout is not on the path."""
    made = Installed(tmp_path_factory.mktemp("installed"), sys.executable)
    wheel, _ = packages.built_packages()
    made.install("--no-deps", str(wheel))
    (site,) = made.environment.glob("lib/python*/site-packages")
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made


@pytest.mark.planted(4)
def test_the_packages_have_the_files_of_the_product() -> None:
    wheel, source = packages.built_packages()
    assert wheel.stat().st_size <= packages.LARGEST_WHEEL
    files = packages.wheel_files(wheel)
    assert packages.wrong_wheel_files(files) == []
    assert packages.wrong_source_files(packages.source_files(source)) == []
    absent, added = "zoo/cli/parameter_counts.json", "eval/experiments/results/masks/experiment.json"
    assert packages.wrong_wheel_files(files - {absent}) == [absent]
    assert packages.wrong_wheel_files(files | {added}) == [added]
    assert packages.wrong_wheel_files(files | {"tests/conftest.py"}) == ["tests/conftest.py"]
    assert packages.wrong_source_files(packages.source_files(source) - {"LICENSE"}) == ["LICENSE"]


@pytest.mark.slow
def test_commands_of_an_installed_wheel_work_outside_of_the_checkout(installed: Installed) -> None:
    where = installed.run("python", "-c", "import zoo, train, eval, benchmarks; print(zoo.__file__, eval.__file__)")
    assert all(str(installed.environment) in name for name in where.stdout.split()) and str(ROOT) not in where.stdout
    installed.check_commands()


@pytest.mark.planted(3)
def test_the_check_of_an_installation_finds_what_is_wrong(installed: Installed, tmp_path: Path) -> None:
    """A data file that is absent, a module that is absent, and a file that was changed."""
    (site,) = installed.environment.glob("lib/python*/site-packages")
    mistakes = {
        "eval/pages/style.css": ("FAIL files", "style.css: missing"),
        "train/data/corpus.py": ("FAIL modules", "No module named 'train.data.corpus'"),
        "zoo/ops/tile_sizes.json": ("FAIL files", "was changed"),
    }
    for name, expected in mistakes.items():
        file = site / name
        saved = shutil.move(file, tmp_path / file.name)
        if "changed" in expected[1]:
            file.write_bytes(Path(saved).read_bytes() + b"\n")
        program = (
            "from zoo.runtime import jax_setup; from zoo.cli import install_checks as checks; jax_setup.prepare_jax(1); "
            "checks.check_training = checks.check_export = lambda folder: ''; exit(checks.run_install_checks())"
        )
        done = installed.run("python", "-c", program)
        shutil.copy(saved, file)
        assert done.code == 1 and all(text in done.stdout for text in expected), (name, done)


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_the_wheel_with_its_pinned_requirements_works(tmp_path: Path, python: str) -> None:
    """Everything comes from the index. uv finds the Python, or fetches it."""
    made = Installed(tmp_path, python)
    wheel, _ = packages.built_packages()
    made.install("-c", str(ROOT / "constraints.txt"), str(wheel))
    made.check_commands()
