"""A chat completion endpoint that answers as a test says, over real HTTP on a port of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any], int], Any]
"""Of a test's server: (request body, number of the request) → (status, headers, body bytes) or the reply's text."""


class Server:
    """A chat completion endpoint on a port of its own; `answer` decides each reply, `requests` keeps what came."""

    def __init__(self, answer: Answer) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.requests)
                    outer.requests.append({**body, "path": self.path})
                    outer.keys.append(self.headers.get("Authorization"))
                reply = answer(body, number)
                if isinstance(reply, str):
                    message = {"choices": [{"message": {"role": "assistant", "content": reply}}]}
                    reply = 200, {}, json.dumps(message).encode()
                status, headers, raw = reply
                self.send_response(status)
                for name, value in {"Content-Length": str(len(raw)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                return None

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


def user_text(body: dict[str, Any]) -> str:
    """The last turn of a request."""
    return body["messages"][-1]["content"]
