"""A small real server on loopback that answers chats as a test tells it to, rightly or wrongly."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass
class Given:
    """What the server sends: a status, headers, and a body, which may be cut off or come late.

    Attributes:
        claimed: Bytes that the header claims beyond those that are sent.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    claimed: int = 0
    after_s: float = 0.0


def says(text: str | None, reason: str = "stop", after_s: float = 0.0) -> Given:
    """A chat completion with this text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return Given(json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}).encode(), after_s=after_s)


def refuses(status: int, said: str = "", **headers: str) -> Given:
    """An error of the server's."""
    body = json.dumps({"error": {"message": said}}).encode()
    return Given(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


class ChatServer:
    """Answers `POST /v1/chat/completions`. Context manager: runs until its end.

    Args:
        behave: From a request and its number, from 0, to what is sent.
    """

    def __init__(self, behave: Callable[[dict[str, Any], int], Given]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.most_at_once = self._num_now = 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(server.requests)
                    server.requests.append(request)
                    server.headers.append({name.lower(): value for name, value in self.headers.items()})
                    server.paths.append(self.path)
                    server._num_now += 1
                    server.most_at_once = max(server.most_at_once, server._num_now)
                given = behave(request, number)
                time.sleep(given.after_s)
                with lock:
                    server._num_now -= 1
                self.send_response(given.status)
                for name, value in {"Content-Type": "application/json", **given.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(given.body) + given.claimed))
                self.end_headers()
                self.wfile.write(given.body)
                if given.claimed:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                """A client that has given up is no error of the test."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "ChatServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
