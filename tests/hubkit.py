"""A stand-in for the part of the Hugging Face hub's HTTP API that an upload of a model uses.

It answers as the hub documents: create a repository, validate a card, say how files are uploaded, take a commit of
base64 files as lines of JSON. Large files of the real hub go by LFS or Xet; here all go along with the commit.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c" * 40


@dataclass
class Hub:
    """What was asked of it. `refuse`: answer commits to this repository with 403."""

    address: str = ""
    token: str = ""
    refuse: str = ""
    created: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    message: str = ""
    asked: list[str] = field(default_factory=list)


@contextmanager
def hub(token: str, refuse: str = "") -> Iterator[Hub]:
    """A hub on loopback that knows one token."""
    state = Hub(token=token, refuse=refuse)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *words: Any) -> None:
            pass

        def answer(self, status: int, body: dict[str, Any]) -> None:
            raw = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def do_GET(self) -> None:
            state.asked.append(f"GET {self.path}")
            self.answer(404, {"error": "not found"})

        do_HEAD = do_GET

        def do_POST(self) -> None:
            state.asked.append(f"POST {self.path}")
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != f"Bearer {state.token}":
                self.answer(401, {"error": f"Invalid credentials in {self.headers.get('Authorization')}"})
            elif self.path == "/api/repos/create":
                state.created = json.loads(raw)
                name = "/".join(part for part in (state.created.get("organization"), state.created["name"]) if part)
                self.answer(200, {"url": f"{state.address}/{name}"})
            elif self.path == "/api/validate-yaml":
                self.answer(200, {"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for file in json.loads(raw)["files"]
                ]
                self.answer(200, {"files": files})
            elif "/commit/" in self.path:
                if state.refuse and f"/{state.refuse}/commit/" in self.path:
                    self.answer(403, {"error": f"refused for {self.headers.get('Authorization')}"})
                    return
                for line in raw.decode().splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "header":
                        state.message = entry["value"]["summary"]
                    elif entry["key"] == "file":
                        state.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                where = f"{state.address}/{self.path.split('/models/')[1].split('/commit/')[0]}/commit/{COMMIT}"
                self.answer(200, {"commitUrl": where, "commitOid": COMMIT, "pullRequestUrl": None, "success": True})
            else:
                self.answer(404, {"error": "not found"})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
