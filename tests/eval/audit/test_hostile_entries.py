"""Entries of evaluations.json that somebody else has written: an audit neither runs nor fetches nor shows what they name."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.audit.repeated_tasks import MOST_FILES, check_evaluations
from eval.audit.run_digests import digest_run_files
from tests.support.audited_runs import EVERY, STEPS, copied, edit_json, evaluated, trained
from tests.support.commands import call
from train.run.run_dir import RunDir
from zoo.errors import BadInput

JUDGED = {"rollout": {"reward": ["payload:f"]}}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "responses": (JUDGED, "judges of responses, which an audit neither imports"),
    "blimp": (JUDGED, "judges of responses, which an audit neither imports"),
    "perplexity": ({"rollout": {"reference": "hub:evil/model"}}, "an audit neither fetches nor loads"),
    "choices": ({"rollout": "payload:f"}, "judges of responses"),
    "evil": ({}, "not a task of the zoo"),
    "harness:local": ({"argument": "local"}, "files of the harness may name functions"),
    "blimp (66 of 67 files, first 1)": ({}, "written by a suite"),
    "text_to_text:cola": ({"argument": ""}, "written by a suite"),
    "word_ratios (babylm wug)": ({}, "written by a suite"),
}
"""Name of an entry -> its options, and why it is not repeated."""
FILES: dict[str, tuple[list[Any], str]] = {
    "hub:evil/data": (["hub:evil/data"], "an audit fetches nothing"),
    "s3": (["s3://evil/data"], "an audit fetches nothing"),
    "absent": (["absent.jsonl"], "absent.jsonl is not here"),
    "numbers": ([1], "not a list of names"),
    "many": (["pairs.jsonl"] * (MOST_FILES + 1), "more than 10,000 files"),
    "long": (["x" * 5000], "cannot be read"),
}


def write_entry(run: Path, name: str, settings: dict[str, Any], files: list[Any]) -> None:
    entry = {"step": STEPS, "metrics": {"accuracy": 1.0}, "examples": 9, "settings": settings, "details": {"files": files}}
    (run / "evaluations.json").write_text(json.dumps({name: entry}))


def result_of(run: Path) -> tuple[str, str]:
    """Return the result and the detail of the check of the first entry."""
    check = check_evaluations(RunDir(run), {STEPS}, {STEPS})[0]
    return check.result, check.detail


@pytest.mark.planted(len(REFUSED))
def test_no_code_and_no_model_that_an_entry_names_is_used() -> None:
    with copied(trained("gpt")) as run:
        for place in (Path("payload.py"), run / "payload.py"):
            place.write_text("open('code-ran', 'w').close()\n\ndef f(**columns): return [1.0]\n")
        for name, (settings, reason) in REFUSED.items():
            write_entry(run, name, settings, ["pairs.jsonl"])
            result, detail = result_of(run)
            assert (result, reason in detail) == ("not checked", True), (name, detail)
        assert not Path("code-ran").exists()


@pytest.mark.planted(len(FILES) + 1)
def test_files_that_an_entry_names_are_bounded_and_nothing_of_them_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with copied(trained("gpt")) as run:
        for name, (files, reason) in FILES.items():
            write_entry(run, "blimp", {}, files)
            result, detail = result_of(run)
            assert (result, reason in detail) == ("not checked", True), (name, detail)
        Path("secret").write_text("a secret")
        write_entry(run, "blimp", {}, ["secret"])
        assert result_of(run) == ("failed", "its files do not have the digest that it records")
        # config.json may name any file too: without the check of the data, the certificate has no digest of it.
        edit_json(run / "config.json", lambda config: config["data"].update(paths=["secret"]))
        ended = call(capsys, "audit", str(run), "--steps", "1")
        assert ended.code == 1 and hashlib.sha256(b"a secret").hexdigest() not in ended.stdout + ended.stderr


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "score": (lambda entry: entry["metrics"].update(accuracy=0.987), "metrics.accuracy is 0.987"),
    "limit": (lambda entry: entry["settings"].update(limit=1), "its options are those of blimp (first 1)"),
    "argument": (lambda entry: entry["settings"].update(argument="x"), "its options are those of blimp:x"),
    "items": (lambda entry: entry["fingerprint"]["items"].update(evil=1), "fingerprint.items.evil"),
    "options": (lambda entry: entry["fingerprint"]["settings"].update(limit=5), "fingerprint.settings.limit"),
    "first ones": (lambda entry: entry.update(limit=1), "limit is 1"),
    "per token": (lambda entry: entry.update(per_token=["accuracy"]), "per_token"),
    "tokenizer": (lambda entry: entry.update(tokenizer="x"), "tokenizer"),
}
"""What is edited -> how, and the words by which it is reported."""


@pytest.mark.planted(len(EDITS))
def test_an_edited_entry_fails_and_an_honest_one_passes() -> None:
    with copied(evaluated("gpt")) as run:
        honest = (run / "evaluations.json").read_text()
        assert result_of(run)[0] == "passed"
        for name, (change, words) in EDITS.items():
            edit_json(run / "evaluations.json", lambda tasks, change=change: change(tasks["blimp"]))
            result, detail = result_of(run)
            assert (result, words in detail) == ("failed", True), (name, detail)
            (run / "evaluations.json").write_text(honest)
        (check,) = check_evaluations(RunDir(run), {STEPS}, {EVERY})
        assert check.result == "not checked" and "was not replayed" in check.detail
        (check,) = check_evaluations(RunDir(run), {EVERY}, {EVERY})
        assert check.result == "not checked" and "not here any more" in check.detail


@pytest.mark.planted
@pytest.mark.parametrize("name", ["ledger.jsonl", "outcomes.npz", "tokenizer/more.json"])
def test_a_file_that_is_larger_than_any_of_a_run_is_refused_before_its_digest(name: str, tmp_path: Path) -> None:
    """A sparse file takes no space, and hours to read."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.truncate(path, 1000)
    assert [*digest_run_files(RunDir(tmp_path))] == [name]
    os.truncate(path, 1 << 43)
    with pytest.raises(BadInput, match="is larger than 512 MiB, as no run writes it; restore the file"):
        digest_run_files(RunDir(tmp_path))
