"""Tokens, keys and passwords of the environment and of addresses reach nothing that the zoo prints or writes."""

import gzip
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest

from tests.support import compilation, object_stores, tiny
from tests.support.commands import TINY, finished
from tests.support.processes import run_python
from zoo import errors, object_store
from zoo.errors import BadInput, without_secrets
from zoo.hf import hub
from zoo.object_store import ObjectStore

SECRETS = {
    "HF_TOKEN": "hf_PLANTEDtoken\n",
    "HUGGING_FACE_HUB_TOKEN": "hf_PLANTEDoldtoken",
    "WANDB_API_KEY": "PLANTEDkeyofwandb" * 3,
    "AWS_SECRET_ACCESS_KEY": "PLANTED/secret+key=",
    "AWS_SESSION_TOKEN": "PLANTEDsession==",
    "GOOGLE_APPLICATION_CREDENTIALS": json.dumps({"private_key": "-----BEGIN\nPLANTEDprivatekey\n-----END"}, indent=1),
    "GITHUB_TOKEN": "ghp_PLANTED00",
    "DATABASE_PASSWORD": "PLANTEDpassword",
    "JAX_SERVICE_TOKEN": "PLANTEDjaxtoken",
    "AWS_ENDPOINT_URL": "http://user:PLANTEDendpoint@127.0.0.1:9",
    "HF_ENDPOINT": "http://user:PLANTEDhub@127.0.0.1:9",
}
PLANTED = b"PLANTED"
ADDRESS = "s3://user:PLANTEDuri@bucket/runs"


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def content(data: bytes) -> bytes:
    """Return bytes with those of everything that is compressed in them."""
    if data.startswith(b"\x1f\x8b"):
        return data + content(gzip.decompress(data))
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return data + b"".join(content(archive.read(name)) for name in archive.namelist())
    return data


def files_with_secrets(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(str(file.relative_to(folder)) for file in files if PLANTED in content(file.read_bytes()))


@pytest.mark.planted(3)
def test_a_secret_in_a_file_is_seen(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"xPLANTEDx")
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"xPLANTEDx"))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("values", "PLANTED" * 9)
    (tmp_path / "nothing").write_bytes(b"planted")
    assert files_with_secrets(tmp_path) == ["a.gz", "a.npz", "plain"]


@pytest.mark.usefixtures("secrets")
def test_texts_lose_their_secrets_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in SECRETS.values():
        for form in (value, " ".join(value.split()), repr(value), f"b'Bearer {value}'"):
            assert "PLANTED" not in without_secrets(f"cannot open {form}: refused")
    assert without_secrets(f"{ADDRESS}/x: 'Bearer abc\\n'") == "s3://***@bucket/runs/x: 'Bearer ***\\n'"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no/such.json")
    monkeypatch.setenv("SHORT_KEY", "word")
    for text in ("/no/such.json is no word", "hub:a/b@main", "mail a@b.c", "s3://bucket/a@b", "http://host:1/x"):
        assert without_secrets(text) == text


def fail_in_a_store(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    store = object_stores.in_folder(tmp_path, patch).store("run")

    def refuse(path: str) -> bytes:
        raise OSError(f"{'x' * 100}: Could not connect to the endpoint URL: {os.environ['AWS_ENDPOINT_URL']}/bucket")

    patch.setattr(store._files, "cat_file", refuse)
    store.read("key")


def fail_in_s3(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("AWS_ENDPOINT_URL", "http://user:PLANTEDendpoint@")
    ObjectStore("s3://bucket/run").list()


def fail_in_an_address(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    object_store.split_uri(ADDRESS)


def fail_in_the_hub(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def refuse() -> None:
        # A client of HTTP refuses a header with a line end, and cites it.
        raise OSError(f"{'x' * 60}: Illegal header value {('Bearer ' + SECRETS['HF_TOKEN']).encode()!r}")

    hub.request_from_hub(refuse, "hub:organisation/model", "model", instead="a folder")


@pytest.mark.planted
@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize(
    "fail", [fail_in_a_store, fail_in_an_address, fail_in_the_hub, pytest.param(fail_in_s3, marks=pytest.mark.store)]
)
def test_error_lines_have_no_secrets(
    fail: Callable[[Path, pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match=r"\*\*\*") as refusal:
        fail(tmp_path, monkeypatch)
    assert "PLANTED" not in str(refusal.value)
    # The mistake: the messages of libraries are passed on as they are.
    monkeypatch.setattr(errors, "without_secrets", lambda text: text)
    for module in (object_store, hub):
        monkeypatch.setattr(module, "without_secrets", lambda text: text)
    with pytest.raises(BadInput, match="PLANTED"):
        fail(tmp_path, monkeypatch)


@pytest.mark.full
@pytest.mark.planted
def test_nothing_that_commands_print_and_write_has_a_secret(tmp_path: Path) -> None:
    """A run with trackers, its evaluation and comparison, refused addresses, an unexpected error, and a benchmark's record."""
    finished(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    own = {"HOME": str(home), "WANDB_MODE": "offline", "ZOO_CACHE": str(tmp_path / "cache")}
    crash = """
import os
from zoo.cli import main
def fail(name):
    raise TypeError(os.environ["HF_TOKEN"])
main._find = fail
main.run()
"""
    record = "import json; from benchmarks.core.result_files import *; print(json.dumps(describe_environment()['settings']))"
    zoo = ("-m", "zoo.cli")
    commands = {
        (*zoo, "train", "gpt-nano", *TINY, "--name", "tracked", "--log.sinks", "wandb", "tensorboard"): 0,
        (*zoo, "eval", "runs/tracked"): 0,
        (*zoo, "compare", "runs/tracked"): 0,
        (*zoo, "train", "gpt-nano", *TINY, "--name", "stored", "--out", ADDRESS): 2,
        (*zoo, "train", "gpt-nano", *TINY, "--name", "begun", "--init", ADDRESS): 2,
        (*zoo, "train", "gpt-nano", *tiny.FLAGS, "--data.paths", "https://user:PLANTEDuri@host/book.txt"): 2,
        (*zoo, "train", "gpt-nano", *tiny.FLAGS, "--data.paths", "hub:organisation/data"): 2,
        (*zoo, "eval", f"{ADDRESS}/x"): 2,
        ("-c", crash, "models"): 1,
        ("-c", record): 0,
    }
    for command, code in commands.items():
        done = run_python(*command, env=SECRETS | compilation.FLAGS | own | {"HF_HUB_OFFLINE": "0"}, cwd=tmp_path)
        assert done.code == code, (command, done.stderr)
        assert PLANTED.decode() not in done.stdout + done.stderr, command
        assert command[1] != crash or "TypeError: ***" in done.stderr
        assert command[1] != record or '"JAX_SERVICE_TOKEN": "***"' in done.stdout
    assert files_with_secrets(tmp_path) == []
    assert (tmp_path / "runs" / "tracked" / "report.html").exists()
