"""A stand-in of the Hugging Face hub's API, as far as its client needs it for a commit: repositories, LFS storage, branches.

It holds to the protocol: an LFS object is stored only under the hash of its content, a commit that names one which is not
there is refused, and nothing of a commit is there before all of it is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_" + "x" * 34
OWNER = "me"
BREAK = "break"
Answer = tuple[int, Any]


class Hub:
    """What is stored, what was asked, and where it fails."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        """Name → branch → path → content."""
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        """Method and route of every request, repository names left out."""
        self.messages: list[str] = []
        self.fails: dict[str, int | str] = {}
        """A route's name → the status it answers with, or BREAK: the connection ends without an answer."""
        self.endpoint = ""

    def answer(self, method: str, path: str, body: bytes, token: str) -> Answer | None:
        """Status and body of the answer; None where the connection is broken."""
        route, parts = _route(method, path.partition("?")[0])
        self.asked.append(route)
        failure = self.fails.get(route)
        if failure == BREAK:
            return None
        if isinstance(failure, int):
            return failure, {"error": "as asked"}
        if route != "store" and token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        found: Answer = getattr(self, f"_{route}")(*parts, body)
        return found

    def _create(self, body: bytes) -> Answer:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != OWNER:
            return 403, {
                "error": f"You don't have the rights to create a model under the namespace {asked['organization']}"
            }
        url = {"url": f"{self.endpoint}/{name}", "name": name}
        if name in self.repositories:
            return 409, {"error": "You already created this model repo"} | url
        self.repositories[name] = {"main": {".gitattributes": b""}}
        self.private[name] = asked.get("visibility") == "private"
        return 200, url

    def _info(self, name: str, _: bytes) -> Answer:
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        return 200, {"id": name, "private": self.private[name], "sha": "0" * 40, "siblings": [], "tags": []}

    def _branch(self, name: str, branch: str, _: bytes) -> Answer:
        branches = self.repositories[name]
        if branch in branches:
            return 409, {"error": "Reference already exists"}
        branches[branch] = dict(branches["main"])
        return 200, {}

    def _yaml(self, body: bytes) -> Answer:
        content = json.loads(body)["content"]
        front = yaml.safe_load(content.split("---\n")[1])
        return (
            (200, {"errors": [], "warnings": []}) if isinstance(front, dict) else (400, {"errors": [{"message": "no"}]})
        )

    def _preupload(self, name: str, branch: str, body: bytes) -> Answer:
        if branch not in self.repositories[name]:
            return 404, {"error": f"Invalid rev id: {branch}"}
        files = json.loads(body)["files"]
        kinds = {True: "lfs", False: "regular"}
        told = [
            {
                "path": one["path"],
                "uploadMode": kinds[one["path"].endswith((".safetensors", ".png"))],
                "shouldIgnore": False,
            }
            for one in files
        ]
        return 200, {"files": told}

    def _batch(self, name: str, body: bytes) -> Answer:
        objects = []
        for one in json.loads(body)["objects"]:
            upload = {"href": f"{self.endpoint}/store/{one['oid']}", "header": {}}
            there = one["oid"] in self.objects
            objects.append(
                {"oid": one["oid"], "size": one["size"]} | ({} if there else {"actions": {"upload": upload}})
            )
        return 200, {"objects": objects, "transfer": "basic"}

    def _store(self, oid: str, body: bytes) -> Answer:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "another content"}
        self.objects[oid] = body
        return 200, {}

    def _commit(self, name: str, branch: str, body: bytes) -> Answer:
        files: dict[str, bytes] = {}
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif value["oid"] not in self.objects:
                return 400, {"error": f"{value['path']} was not uploaded"}
            else:
                files[value["path"]] = self.objects[value["oid"]]
        self.repositories[name][branch] |= files
        self.messages.append(message)
        oid = hashlib.sha1(body).hexdigest()
        return 200, {"commitUrl": f"{self.endpoint}/{name}/commit/{oid}", "commitOid": oid, "success": True}


def _route(method: str, path: str) -> tuple[str, list[str]]:
    parts = path.strip("/").split("/")
    match parts:
        case ["api", "repos", "create"]:
            return "create", []
        case ["api", "validate-yaml"]:
            return "yaml", []
        case ["api", "models", owner, name]:
            return "info", [f"{owner}/{name}"]
        case ["api", "models", owner, name, ("branch" | "preupload" | "commit") as what, branch]:
            return what, [f"{owner}/{name}", branch]
        case [owner, name, "info", "lfs", "objects", "batch"]:
            return "batch", [f"{owner}/{name.removesuffix('.git')}"]
        case ["store", oid]:
            return "store", [oid]
    raise AssertionError(f"the client asked for {method} {path}")


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on this machine, at `endpoint`."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = self._chunks()
            found = hub.answer(self.command, self.path, body, self.headers.get("Authorization") or "")
            if found is None:
                self.close_connection = True
                return
            status, content = found
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def _chunks(self) -> bytes:
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found

        do_GET = do_POST = do_PUT = _answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
