"""A local server with the requests of the Hugging Face hub that an upload makes, as `huggingface_hub` 1 and 2 send them.

It keeps the files of the newest commit of each repository in memory. Large files go through the batch interface of Git LFS.
"""

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import yaml

TOKEN = "hf_" + "t" * 30
"""The token that the server accepts."""
OWN, OTHER = "me", "other"
"""A namespace that the token may write to, and one that it may not."""


@dataclasses.dataclass
class Hub:
    """State of the server."""

    address: str = ""
    files: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    """Repository -> path -> content."""
    private: dict[str, bool] = dataclasses.field(default_factory=dict)
    messages: list[str] = dataclasses.field(default_factory=list)
    """First line of each commit."""
    large: dict[str, bytes] = dataclasses.field(default_factory=dict)
    """SHA-256 -> content of a large file."""
    requests: list[str] = dataclasses.field(default_factory=list)
    """Method and path of each request, in their order."""
    fail: dict[str, int] = dataclasses.field(default_factory=dict)
    """Part of a path -> status of every request with it, for faults."""


@contextlib.contextmanager
def hub_server() -> Iterator[Hub]:
    """Run the server on a free port of the loopback interface."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer_request()

    def do_POST(self) -> None:
        self._answer_request()

    def do_PUT(self) -> None:
        self._answer_request()

    def _answer_request(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.requests.append(f"{self.command} {path}")
        if status := next((status for part, status in hub.fail.items() if part in path), 0):
            self._send(status, {"error": "a fault of the test"})
        elif path.startswith("/storage/"):
            assert hashlib.sha256(body).hexdigest() == path.rpartition("/")[2]
            hub.large[path.rpartition("/")[2]] = body
            self._send(200, {})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {"error": "Invalid credentials in Authorization header"})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif path.endswith("/objects/batch"):
            self._send(200, {"objects": [self._upload_action(entry) for entry in json.loads(body)["objects"]]})
        else:
            _, _, kind, *name, action = f"{path}/".split("/", 5)
            assert kind == "models", path
            self._use_repository("/".join(name), action.strip("/"), body)

    def _create(self, content: dict[str, Any]) -> None:
        name = f"{content['organization']}/{content['name']}"
        if content["organization"] != OWN:
            self._send(403, {"error": "You don't have the rights to create a model under this namespace"})
        elif name in self.hub.files:
            self._send(409, {"error": "You already created this model repo", "url": f"{self.hub.address}/{name}"})
        else:
            self.hub.files[name], self.hub.private[name] = {}, content.get("visibility") == "private"
            self._send(200, {"url": f"{self.hub.address}/{name}"})

    def _validate(self, content: str) -> None:
        data = yaml.safe_load(content.split("---")[1])
        errors = [] if data.get("license") != "none-such" else [{"message": '"license" must be one of [apache-2.0, mit]'}]
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def _upload_action(self, entry: dict[str, Any]) -> dict[str, Any]:
        target = f"{self.hub.address}/storage/{entry['oid']}"
        return {**entry, "actions": {"upload": {"href": target, "header": {}}}}

    def _use_repository(self, name: str, action: str, body: bytes) -> None:
        files = self.hub.files.get(name)
        if files is None:
            self._send(404, {"error": "Repository not found"}, code="RepoNotFound")
        elif action in ("auth-check/write", "preupload/main", "commit/main") and not name.startswith(f"{OWN}/"):
            self._send(403, {"error": "You don't have the rights to write to this repository"})
        elif action == "preupload/main":
            modes = [(entry["path"], "lfs" if entry["path"].endswith(".safetensors") else "regular") for entry in _entries(body)]
            self._send(200, {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes]})
        elif action == "commit/main":
            self._commit(name, files, body)
        elif action == "tree/main":
            self._send(200, [{"type": "file", "path": path, "oid": "0" * 40, "size": len(data)} for path, data in files.items()])
        else:
            self._send(200, {"id": name, "modelId": name, "sha": "0" * 40, "siblings": [], "tags": []})

    def _commit(self, name: str, files: dict[str, bytes], body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    self.hub.messages.append(value["summary"])
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        oid = f"{len(self.hub.messages):040x}"
        self._send(200, {"commitUrl": f"{self.hub.address}/{name}/commit/{oid}", "commitOid": oid})

    def _send(self, status: int, content: Any, code: str = "") -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if code:
            self.send_header("X-Error-Code", code)
        if status >= 400 and "error" in content:
            self.send_header("X-Error-Message", content["error"])
        self.end_headers()
        self.wfile.write(data)


def _entries(body: bytes) -> list[dict[str, Any]]:
    return json.loads(body)["files"]
