"""A real object server that is slow, unavailable, or gets half an upload, and users without access."""

from pathlib import Path

import pytest

from tests.support import object_server, object_stores, tiny
from tests.support.commands import call
from tests.support.object_stores import Place
from tests.support.states import META, Log, make
from train.checkpoints.checkpoints import Checkpoints
from train.run.run_dir import RunDir
from train.store import run_fetch
from train.store.run_uploads import RunUploads
from zoo import object_store
from zoo.errors import BadInput

pytestmark = pytest.mark.store


def is_put(method: str, path: str) -> bool:
    return method == "PUT"


def is_put_of_a_step(method: str, path: str) -> bool:
    return method == "PUT" and "/checkpoints/" in path


def test_operations_of_a_store(server_place: Place, tmp_path: Path) -> None:
    """Among them an upload in several parts."""
    store, small, large = server_place.store("run"), tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"")
    large.write_bytes(bytes(range(256)) * (1 << 19))
    assert store.list() == {}
    store.put(small, "a/empty")
    store.put(large, "a/b/large")
    store.put(small, "b")
    assert store.list() == {"a/empty": 0, "a/b/large": 1 << 27, "b": 0}
    assert store.list("a/b/") == {"a/b/large": 1 << 27}
    store.get("a/b/large", tmp_path / "read")
    assert (tmp_path / "read").read_bytes() == large.read_bytes()
    assert store.read("b") == b""
    store.delete("b")
    store.delete("b")
    with pytest.raises(FileNotFoundError):
        store.read("b")
    with pytest.raises(FileNotFoundError):
        store.put(tmp_path / "absent", "c")
    assert {*store.list()} == {"a/empty", "a/b/large"}


@pytest.mark.planted
@pytest.mark.parametrize("kind", ["503", "half", "slow"])
def test_failures_of_the_network(kind: str, server_place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that end cost attempts, those that do not end cost the upload, in a bounded number of attempts."""
    if kind == "slow":
        monkeypatch.setattr(object_store, "TIMEOUT", 3.0)
    store, proxy, file = server_place.store("run"), server_place.proxy, tmp_path / "file"
    assert proxy is not None
    file.write_bytes(bytes(range(256)) * 100)
    seconds = 4.0 if kind == "slow" else 0.0
    proxy.fail(kind, is_put, times=2, seconds=seconds)
    store.put(file, "first")
    proxy.fail(kind, is_put, times=9, seconds=seconds)
    proxy.requests.clear()
    with pytest.raises(object_store.Unavailable, match=r"/run/second: .*, after 3 attempts in \d+ s; check the network"):
        store.put(file, "second")
    # At least: the HTTP client repeats a request by itself if its connection was closed.
    assert sum(path.endswith("/second") for _, path in proxy.requests) >= 3
    proxy.faults.clear()
    if kind != "slow":
        assert store.list() == {"first": file.stat().st_size}
    # The mistake: one attempt.
    monkeypatch.setattr(object_store, "WAITS", ())
    proxy.fail(kind, is_put, times=2, seconds=seconds)
    with pytest.raises(object_store.Unavailable):
        store.put(file, "third")


@pytest.mark.parametrize("kind", ["503", "half"])
def test_a_step_is_uploaded_by_the_next_save(kind: str, server_place: Place, tmp_path: Path) -> None:
    """All attempts at one object of step 10 fail; the server has objects of it by then."""
    run, other, log, proxy = RunDir(tmp_path / "run"), RunDir(tmp_path / "other"), Log(), server_place.proxy
    assert proxy is not None
    run.path.mkdir()
    run.config.write_text("{}")
    store = server_place.store("run")
    target = RunUploads(store, run, 3, notify=log)
    with target, Checkpoints(run.checkpoints, 3, notify=log, on_commit=target.commit) as checkpoints:
        for step, failures in ((5, 0), (10, 9), (15, 0)):
            sent = len(proxy.requests)
            later = iter(range(10_000))
            proxy.fail(kind, lambda method, path, later=later: is_put_of_a_step(method, path) and next(later) > 1, times=failures)
            checkpoints.save(make(step), META | {"step": step})
            assert checkpoints.wait() and len(proxy.requests) > sent
            proxy.faults.clear()
            if step == 10:
                assert len(log) == 1 and "UPLOAD of step 10 FAILED: " in log[0] and "after 3 attempts" in log[0]
                assert any("/checkpoints/00000010/" in path for _, path in proxy.requests[sent:])
                run_fetch._fetch(store, other, store.list(), log)
                assert Checkpoints(other.checkpoints, 1, notify=log).valid_steps() == [5]
    run_fetch._fetch(store, other, store.list(), log)
    assert Checkpoints(other.checkpoints, 1, notify=log).valid_steps() == [15, 5]
    assert len(log) == 1


def test_an_object_that_lost_its_end_is_noticed(server_place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has fewer bytes than were sent: the step gets no COMMIT.json."""
    run, log, store = RunDir(tmp_path / "run"), Log(), server_place.store("run")
    run.path.mkdir()
    put = object_store.ObjectStore.put

    def put_half(self: object_store.ObjectStore, file: Path, key: str) -> None:
        if "/d/" in key or key.endswith("_METADATA"):
            half = tmp_path / "half"
            half.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
            file = half
        put(self, file, key)

    monkeypatch.setattr(object_store.ObjectStore, "put", put_half)
    target = RunUploads(store, run, 3, notify=log).__enter__()
    with Checkpoints(run.checkpoints, 3, notify=log, on_commit=target.commit) as checkpoints:
        checkpoints.save(make(5), META)
    assert len(log) == 1 and "after its upload; check the store" in log[0]
    assert not any(key.endswith("COMMIT.json") for key in store.list())


def test_users_without_access_are_refused(
    server_place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("text\n" * 99)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    train = ["train", "gpt-nano", *tiny.FLAGS, "--data.paths", "text.txt", "--name", "gpt", "--out"]

    def refused(*command: str) -> str:
        done = call(capsys, *command)
        assert done.code == 2 and "Traceback" not in done.stderr, done
        return done.stderr.splitlines()[-1]

    line = refused(*train, "s3://absent-bucket/out")
    assert "s3://absent-bucket/out/gpt: there is no bucket 'absent-bucket' in s3://; create it, or correct the name" in line
    object_stores.set_credentials(monkeypatch, object_server.READER)
    line = refused(*train, server_place.uri)
    assert f"{server_place.uri}/gpt/writer.json: access is refused (Access Denied); grant access to the bucket" in line
    object_stores.set_credentials(monkeypatch, "stranger")
    assert "access is refused" in refused("eval", f"{server_place.uri}/gpt")
    object_stores.set_credentials(monkeypatch, "")
    line = refused(*train, server_place.uri)
    assert "no credentials for s3:// (Unable to locate credentials); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in line
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    object_stores.set_credentials(monkeypatch, object_server.KEY)
    assert "after 3 attempts in" in refused("generate", f"{server_place.uri}/gpt", "--prompt", "a")
    assert not (tmp_path / "runs").exists()


def test_reading_a_name_in_a_bucket_that_does_not_exist(server_place: Place) -> None:
    with pytest.raises(BadInput, match=r"there is no bucket 'absent-bucket' in s3://"):
        run_fetch.local_name("s3://absent-bucket/out/gpt")
