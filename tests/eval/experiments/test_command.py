"""The command `zoo experiment`: what it refuses in one line, and what it prints without running anything."""

from pathlib import Path

import pytest

from eval.experiments import catalogue
from tests.support.commands import assert_refused, call

REFUSED = {
    "an unknown experiment": (("mask", "new"), "no experiment is called 'mask'; the nearest is masks"),
    "an unknown tier": (("masks", "new", "--tier", "huge"), "--tier huge: masks has smoke, nano"),
    "no corpus": (("repeats", "new"), "--corpus: this tier trains on the `public` corpus; name a folder"),
    "another corpus": (("repeats", "new", "--corpus", "text"), "--corpus text: its SHA-256 is [0-9a-f]{64}, and the tier's"),
    "the embedded corpus": (
        ("repeats", "new", "--corpus", "embedded"),
        "--corpus embedded: this tier trains on the public corpus",
    ),
    "no task files": (("objectives", "new", "--corpus", "text", "--corpus-digest", "any"), "--tasks: this tier reads published"),
    "two answers": (("masks", "new", "--plan", "--commands"), "--plan --plan --commands: choose one"),
    "more workers than cores": (
        ("masks", "new", "--tier", "smoke", "--workers", "5000"),
        "--workers 5000: this process may use [0-9]+ cores; choose at most as many",
    ),
    "workers below zero": (("masks", "new", "--workers", "-1"), "--workers -1: choose 1 or more, or 0 for the default"),
    "another place": (("masks", "new", "--on", "pbs"), "--on pbs"),
    "no script of Ray": (("masks", "new", "--on", "ray", "--commands"), "--on ray: it has no script to print"),
    "no image": (("masks", "new", "--tier", "smoke", "--on", "jobset"), "--image IMAGE: name a container image"),
    "an object store": (("masks", "s3://bucket/new", "--tier", "smoke"), "s3://bucket/new: an experiment needs a folder"),
    "no Slurm here": (
        ("masks", "new", "--tier", "smoke", "--on", "slurm"),
        "sbatch is not installed here; run this command where it is, or add --commands",
    ),
    "no Kubernetes here": (
        ("masks", "new", "--tier", "smoke", "--on", "jobset", "--image", "a"),
        "kubectl is not installed here; run this command where it is, or add --commands",
    ),
    "a node alone": (("masks", "new", "--tier", "smoke", "--node", "x"), "new is not an experiment: registration.json cannot"),
    "nothing to render": (("masks", "new", "--tier", "smoke", "--render"), "new is not an experiment: registration.json cannot"),
    "no pilot": (("masks", "new", "--tier", "smoke", "--pilot"), "--pilot True: the tier smoke of masks has no pilot"),
    "a file": (("masks", "text/train/a.txt", "--tier", "smoke"), "text/train/a.txt: is a file"),
}


def test_wrong_input_is_refused_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "valid"):
        (tmp_path / "text" / part).mkdir(parents=True)
        (tmp_path / "text" / part / "a.txt").write_text(part)
    monkeypatch.chdir(tmp_path)
    assert_refused(capsys, tmp_path, {name: (("experiment", *words), line) for name, (words, line) in REFUSED.items()})


def test_commands_are_printed_after_the_files_and_the_registration_were_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = call(capsys, "experiment", "masks", str(tmp_path / "grid"), "--tier", "smoke", "--commands")
    assert (ended.code, ended.stderr) == (0, "") and ended.stdout.count("&& zoo train roberta-nano") == 4
    assert (tmp_path / "grid/registration.json").exists()
    assert all((tmp_path / "grid/files" / part / "text.jsonl").stat().st_size > 10_000 for part in ("train", "valid"))
    listed = call(capsys, "experiment", "--list").stdout
    assert all(name in listed for name in catalogue.names())
