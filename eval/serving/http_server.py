"""The HTTP server of one model: checks of requests, and answers as JSON or as server-sent events.

A browser can send requests to this server from any page. Foreign pages get nothing: a request needs a Host header that names this
machine if the server listens on loopback (otherwise a foreign name could be resolved to 127.0.0.1: DNS rebinding), an Origin, if
there is one, that is this server, and JSON as the type of its body, which a foreign page may not send without permission.
"""

import contextlib
import importlib.resources
import ipaddress
import json
import select
import socket
import sys
import threading
import traceback
import urllib.parse
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from eval.serving.request_fields import RequestError, parse_object
from eval.serving.served_model import CHAT, COMPLETIONS, EMBEDDINGS, ServedModel
from zoo.errors import BadInput, printable

LARGEST_BODY = 8 << 20
"""Bytes of the largest body of a request."""
STREAM_SECONDS = 10
"""Seconds without a byte that a client of a stream reads, during which nobody else is answered."""
STOP_SECONDS = 5
"""Most seconds that the end of the server waits for a computation."""
MODELS = "/v1/models"
POSTS = (CHAT, COMPLETIONS, EMBEDDINGS)
LOOPBACK = ("localhost", "127.0.0.1", "::1")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'"


class ClientLeft(Exception):
    """The client has closed the connection."""


class ModelServer(ThreadingHTTPServer):
    """Listens from its construction on; `serve_model` answers requests, one computation at a time."""

    daemon_threads = True
    request_queue_size = 64
    model: ServedModel

    def __init__(self, host: str, port: int) -> None:
        """Bind the address.

        Args:
            port: 0 = a free one.

        Raises:
            BadInput: the port is in use, or the address is not one of this machine.
        """
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            self.address_family = family
            super().__init__((str(address[0]), port), _Handler)
        except (OSError, UnicodeError) as error:
            if isinstance(error, (socket.gaierror, UnicodeError)):
                raise BadInput(f"--host {host}: no such address; choose 127.0.0.1, or 0.0.0.0 for all of this machine") from None
            reason = error.strerror or str(error)
            raise BadInput(
                f"--port {port}: cannot listen on {host} ({reason}); choose another, or --port 0 for a free one"
            ) from None
        self.lock, self.stopping = threading.Lock(), threading.Event()
        self.is_loopback = ipaddress.ip_address(str(self.server_address[0]).partition("%")[0]).is_loopback

    def server_bind(self) -> None:
        """Bind the address without asking a name server for this machine's name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def url(self) -> str:
        """The address of the page."""
        host = str(self.server_address[0])
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_address[1]}"

    def serve_model(self, model: ServedModel) -> None:
        """Answer requests until an exception in this thread, such as KeyboardInterrupt, and then end the computation."""
        self.model = model
        try:
            self.serve_forever(poll_interval=0.1)
        finally:
            self.stopping.set()
            # A thread that computes sees `stopping` between two dispatches, unless it waits for a client that reads nothing.
            self.lock.acquire(timeout=STOP_SECONDS)
            self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print an error of a connection, on one line unless it is a bug."""
        error = sys.exception()
        if not isinstance(error, OSError):
            traceback.print_exc()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds without a byte to or from a client, after which its connection is closed
    server: ModelServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def version_string(self) -> str:
        return "transformer-zoo"

    def do_GET(self) -> None:
        with self._errors():
            # A body of GET is not read, and would be taken for the next request.
            self.close_connection |= bool({"content-length", "transfer-encoding"} & {name.lower() for name in self.headers})
            self._check_origin()
            match self._path():
                case "/":
                    page = importlib.resources.files("eval.serving").joinpath("page.html").read_bytes()
                    self._send(HTTPStatus.OK, page, "text/html; charset=utf-8", {"Content-Security-Policy": POLICY})
                case "/v1/models":
                    self._send_json(HTTPStatus.OK, {"object": "list", "data": [self.server.model.description()]})
                case path if urllib.parse.unquote(path) == f"{MODELS}/{self.server.model.loaded.name}":
                    self._send_json(HTTPStatus.OK, self.server.model.description())
                case path:
                    raise self._no_such_path(path)

    def do_POST(self) -> None:
        with self._errors():
            # Until the body is read, another request cannot follow on this connection.
            close, self.close_connection = self.close_connection, True
            self._check_origin()
            path = self._path()
            if path not in POSTS:
                raise self._no_such_path(path)
            body = self._read_body()
            self.close_connection = close
            self._answer(path, parse_object(body))

    def _answer(self, path: str, body: dict[str, Any]) -> None:
        model = self.server.model
        if path == EMBEDDINGS:
            with self._turn():
                answer = model.embeddings(body)
            self._send_json(HTTPStatus.OK, answer)
            return
        request = model.read_request(path, body)
        with self._turn():
            if request.stream:
                self._send_events(model.stream(request, self._poll))
                return
            answer = model.answer(request, self._poll)
        self._send_json(HTTPStatus.OK, answer)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until nothing else is computed."""
        while not self.server.lock.acquire(timeout=0.5):
            self._poll()
        try:
            self._poll()
            yield
        finally:
            self.server.lock.release()

    def _poll(self) -> None:
        """End the computation if the client has left, or the server stops. One that sends no more (`SHUT_WR`) has left."""
        if self.server.stopping.is_set():
            raise RequestError("the server was stopped", status=HTTPStatus.SERVICE_UNAVAILABLE)
        poller = select.poll()
        poller.register(self.connection, select.POLLIN)
        if poller.poll(0) and not self.connection.recv(1, socket.MSG_PEEK):
            raise ClientLeft

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Send what is wrong as an error in OpenAI's form."""
        try:
            yield
        except RequestError as error:
            self._send_error(error)
        except (ClientLeft, ConnectionError, TimeoutError):
            self.close_connection = True
            self.log_message("%s", f"{self.requestline}: the client left")
        except Exception as error:
            traceback.print_exc()
            text = f"internal error ({type(error).__name__}); the terminal of the server has the details"
            self._send_error(RequestError(text, status=HTTPStatus.INTERNAL_SERVER_ERROR))

    def _send_error(self, error: RequestError) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            if self._events_begun:
                self._send_event(error.content())
            else:
                self._send_json(error.status, error.content())

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send an error of the protocol, such as an unknown method, in OpenAI's form too."""
        self.close_connection = True
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else code
        self._send_json(status, RequestError(message or HTTPStatus(code).phrase, status=status).content())

    def _check_origin(self) -> None:
        """Refuse requests that a page of another site may have sent."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if self.server.is_loopback and _host_name(host) not in (*LOOPBACK, str(self.server.server_address[0])):
            text = f"Host {host[:60]}: this server answers requests to {', '.join(LOOPBACK)} only; use one of these names"
            raise RequestError(text, status=HTTPStatus.FORBIDDEN)
        if origin is not None and origin.partition("://")[2] != host:
            text = f"Origin {origin[:60]}: this server answers its own page only"
            raise RequestError(text, status=HTTPStatus.FORBIDDEN)

    def _path(self) -> str:
        return self.path.partition("?")[0]

    def _no_such_path(self, path: str) -> RequestError:
        if path in (*POSTS, "/", MODELS):
            method = "POST" if path in POSTS else "GET"
            return RequestError(f"{path} needs {method}", status=HTTPStatus.METHOD_NOT_ALLOWED)
        text = f"{path[:60]}: there is no such path; choose {', '.join((MODELS, *self.server.model.routes))}"
        return RequestError(text, status=HTTPStatus.NOT_FOUND)

    def _read_body(self) -> bytes:
        """Return the body of a request.

        Raises:
            RequestError: it is no JSON by its type, its length is missing, or it is too large.
        """
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            text = f"Content-Type {kind[:60] or 'is missing'}: send application/json"
            raise RequestError(text, status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or self.headers.get("Transfer-Encoding"):
            text = "Content-Length is missing or no number; send the length of the body"
            raise RequestError(text, status=HTTPStatus.LENGTH_REQUIRED)
        if len(length) > 18 or int(length) > LARGEST_BODY:
            self._discard(int(length[:18]))
            text = f"the body is larger than {LARGEST_BODY:,} bytes; send less"
            raise RequestError(text, status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ClientLeft
        return body

    def _discard(self, length: int) -> None:
        """Read a body that is refused, unless it is very large: a client reads the answer after it has sent all."""
        left = min(length, 8 * LARGEST_BODY)
        while left > 0 and (block := self.rfile.read(min(left, 1 << 16))):
            left -= len(block)

    def _send_json(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value, ensure_ascii=False).encode() + b"\n", "application/json")

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self._end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _end_headers(self) -> None:
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    _events_begun = False

    def _send_events(self, events: Iterator[dict[str, Any]]) -> None:
        """Send server-sent events (WHATWG HTML, section 9.2). An error after the first one is an event too."""
        first = next(events)
        # The end of the connection is the end of the events.
        self.close_connection = self._events_begun = True
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.connection.settimeout(STREAM_SECONDS)
        self._end_headers()
        self._send_event(first)
        for event in events:
            self._send_event(event)
        self.wfile.write(b"data: [DONE]\n\n")

    def _send_event(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n")

    def log_message(self, format: str, *args: Any) -> None:
        print(printable(format % args), file=sys.stderr, flush=True)


def _host_name(host: str) -> str:
    """Return the name in a Host header, without the port; "" if it is malformed."""
    try:
        return urllib.parse.urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
