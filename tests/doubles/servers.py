"""Small HTTP servers that answer as vLLM's do: healthy, failing, or receiving weights."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from torch import Tensor

from luspo_cli.rollout.vllm.weight_stream import received_weights

Answer = Callable[[str, Any], tuple[int, Any]]
ACTIVE = "start_weight_update called while a weight update is already active. Call finish_weight_update first."


def wrapped(message: str) -> dict[str, Any]:
    """What a worker raised, as vLLM reports it."""
    text = f"Call to collective_rpc method failed: Worker failed with error '{message}', please check the stack trace"
    return {"error": {"message": text}}


def info(**model: Any) -> dict[str, Any]:
    config = {"max_model_len": 128, "logprobs_mode": "raw_logprobs", **model}
    return {"vllm_config": {"weight_transfer_config": {"backend": "luspo"}, "model_config": config}}


def answering(**routes: Any) -> Answer:
    """Answers as a healthy server does except for the given routes (slashes as underscores)."""
    healthy: dict[str, Any] = {"server_info": info(), "get_world_size": {"world_size": 1}}

    def answer(path: str, body: Any) -> tuple[int, Any]:
        found = routes.get(route_of(path), healthy.get(route_of(path), {}))
        return found if isinstance(found, tuple) else (200, found(body) if callable(found) else found)

    return answer


def route_of(path: str) -> str:
    return path.partition("?")[0].strip("/").replace("/", "_")


class PushTarget:
    """A server of one worker that takes pushes, strict about their order as vLLM is; keeps what it was sent.

    It draws the token `<end>` for everybody, under the version of the weights that it has.
    """

    def __init__(
        self, *, active: bool = False, fail_after: int | None = None, draw_s: Callable[[list[int]], float] | None = None
    ) -> None:
        """`draw_s`: how long it takes to answer a prompt."""
        self.active, self.fail_after, self.draw_s = active, fail_after, draw_s
        self.received: dict[str, Tensor] = {}
        self.routes: list[str] = []
        self.version = ""
        self.drawn: list[tuple[str, list[int]]] = []
        """Version and prompt of each answer."""
        self.drawing = self.disturbed = 0
        """Draws that are under way, and pauses that ended some."""
        self._lock = threading.Lock()

    def __call__(self, path: str, body: Any) -> tuple[int, Any]:
        route = route_of(path)
        self.routes.append(route)
        if route == "start_weight_update":
            if self.active:
                return 500, wrapped(ACTIVE)
            self.active = True
        elif route == "update_weights":
            try:
                self._receive(body["update_info"])
            except OSError as error:
                self.active = False
                return 500, wrapped(str(error))
        elif route == "finish_weight_update":
            if not self.active:
                return 500, wrapped("finish_weight_update called without a matching start_weight_update.")
            self.active, self.version = False, body["weight_version"]
        elif route == "reset_prefix_cache":
            return 200, {"success": True}
        elif route == "pause":
            self.disturbed += self.drawing > 0
        elif route == "inference_v1_generate":
            return self._draw(body["token_ids"])
        return answering()(path, body)

    def _draw(self, prompt: list[int]) -> tuple[int, Any]:
        if self.active:
            return 500, wrapped("drawn from while a push is under way")
        with self._lock:
            self.drawing += 1
        version = self.version
        time.sleep(self.draw_s(prompt) if self.draw_s else 0.0)
        with self._lock:
            self.drawing -= 1
            self.drawn.append((version, prompt))
        logprobs = {"content": [{"logprob": -0.5}]}
        versions = [{"version": version, "start": 0, "end": 1}]
        return 200, {"choices": [{"token_ids": [1], "logprobs": logprobs, "weight_versions": versions}]}

    def _receive(self, update: dict[str, Any]) -> None:
        self.received = {}
        wanted = (update["address"], update["names"], update["shapes"], update["dtype"], update["timeout_s"])
        for name, weight in received_weights(*wanted):
            if len(self.received) == self.fail_after:
                raise OSError("no memory left")
            self.received[name] = weight


@contextmanager
def serving() -> Iterator[Callable[[Answer], str]]:
    """A function that starts a server answering (path, body) → (status, JSON), and gives its address; all end with the block."""
    running: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def _reply(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, content = answer(self.path, json.loads(body) if body else None)
                text = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = _reply

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        running.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()
