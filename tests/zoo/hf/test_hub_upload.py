"""`zoo export --push`, against a local server of the hub's interface."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.support.commands import call, in_folder, printed, snapshot, write_gpt2
from tests.support.hub_server import OTHER, OWN, TOKEN, Hub, hub_server
from tests.support.processes import run_python
from tests.support.runs import PATIENCE
from zoo.errors import BadInput
from zoo.hf.hub_upload import check_upload, upload_folder

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
"""The library uploads to the storage of Git LFS by a deprecated argument of its HTTP client."""
PUSH = ("--license", "mit", "--push", f"{OWN}/whale")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to work in, with the published model `gpt2`."""
    folder = tmp_path_factory.mktemp("place")
    write_gpt2(folder)
    with in_folder(folder):
        yield folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server, to which the library of this process sends its requests with a token that may write."""
    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
    huggingface_hub.close_session()


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library repeats a request at once."""
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http.time, "sleep", lambda _: None)


def test_the_command_uploads_what_it_exports(place: Path) -> None:
    with hub_server() as server:
        environment = {"HF_ENDPOINT": server.address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": None}
        done = run_python("-m", "zoo.cli", "export", "gpt2", "pushed", *PUSH, "--private", env=environment, timeout=PATIENCE)
        assert done.code == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"{server.address}/{OWN}/whale/commit/{1:040x}"
        assert server.files[f"{OWN}/whale"] == {name: data for name, data in snapshot(place / "pushed").items()}
        assert server.private == {f"{OWN}/whale": True} and server.messages == ["Upload whale from transformer-zoo"]
        assert b"license: mit" in server.files[f"{OWN}/whale"]["README.md"]


def test_a_repository_of_ones_own_gets_another_commit(tmp_path: Path, hub: Hub) -> None:
    """Weights of an earlier commit do not stay beside those of the new one; other files do."""
    old = {"model-00001-of-00002.safetensors": b"a", "model.safetensors.index.json": b"b", "photo.png": b"c", "config.json": b"d"}
    hub.files[f"{OWN}/whale"] = dict(old)
    (tmp_path / "model.safetensors").write_bytes(b"new")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    check_upload(f"{OWN}/whale", "mit")
    upload_folder(tmp_path, f"{OWN}/whale", private=False, message="second")
    new = {"model.safetensors": b"new", "config.json": b"{}", "1_Pooling/config.json": b"{}", "photo.png": b"c"}
    assert hub.files[f"{OWN}/whale"] == new and hub.messages == ["second"]


def refusal(name: str = f"{OWN}/whale", licence: str = "mit") -> str:
    with pytest.raises(BadInput) as caught:
        check_upload(name, licence)
    return str(caught.value)


@pytest.mark.planted(7)
def test_what_will_fail_is_refused_at_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--push whale: name a repository of the hub, ORG/NAME" in refusal("whale")
    assert "the hub asks for a licence; add --license ID" in refusal(licence="")
    assert hub.requests == []
    hub.files[f"{OTHER}/whale"] = {}
    assert f"--push {OTHER}/whale: the token may not write there" in refusal(f"{OTHER}/whale")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    assert "the hub does not accept the token; run `hf auth login --force`" in refusal()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the hub does not answer" in refusal()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/none/such")
    assert "no token for the hub; run `hf auth login`, or set HF_TOKEN" in refusal()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids the upload" in refusal()


def test_a_refusal_comes_before_the_export(place: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(place)
    line = printed(capsys, "export", "gpt2", "never", "--push", f"{OWN}/whale", code=2)
    assert line.startswith(f"zoo: --push {OWN}/whale: the hub asks for a licence; add --license ID (apache-2.0, mit")
    line = printed(capsys, "export", "gpt2", "never", "--license", "Apache 2", code=2)
    assert line.startswith("zoo: --license Apache 2: write the id of a licence on the hub, in lower case")
    line = printed(capsys, "export", "gpt2", "never", "--private", code=2)
    assert line.startswith("zoo: --private: it is of a repository; name one with --push")
    assert snapshot(place) == before and hub.requests == []


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("repos/create", 403, "the token may not write there"),
        ("commit", 409, "the hub refuses it (409: a fault of the test)"),
        ("storage", 500, "the hub refuses it"),
    ],
)
def test_a_failed_upload_leaves_the_export(
    place: Path, hub: Hub, path: str, status: int, reason: str, capsys: pytest.CaptureFixture[str], no_waiting: None
) -> None:
    hub.fail[path] = status
    target = f"failed-{status}"
    ended = call(capsys, "export", "gpt2", target, *PUSH)
    line = ended.stderr.strip().splitlines()[-1]
    assert ended.code == 2 and line.startswith(f"zoo: --push {OWN}/whale: {reason}"), ended
    assert line.endswith(f"; {target} is complete, and `hf upload {OWN}/whale {target}` uploads it")
    files = snapshot(place / target)
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= files.keys()
    assert hub.files.get(f"{OWN}/whale", {}) == {}


def test_a_card_that_the_hub_refuses_is_one_line(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: none-such\n---\n")
    with pytest.raises(BadInput, match=r'\(400: .*"license" must be one of \[apache-2.0, mit\]|must be one of'):
        upload_folder(tmp_path, f"{OWN}/whale", private=False, message="a")
