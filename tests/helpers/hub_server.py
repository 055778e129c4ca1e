"""A server that stands in for the Hugging Face hub: the few requests of an upload, and its refusals."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TOKEN = "hf_right"


class Hub(http.server.ThreadingHTTPServer):
    """The hub.

    Attributes:
        refuses: Status of every request that creates a repository; None to grant it.
        files: Content of the uploaded files by repository and name.
        commits: Repository and message of each commit.
        private: Whether each repository was asked to be private.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.refuses: int | None = None
        self.files: dict[tuple[str, str], bytes] = {}
        self.commits: list[tuple[str, str]] = []
        self.private: dict[str, Any] = {}
        self.objects: dict[str, bytes] = {}


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.server.refuses or self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "refused"}, self.server.refuses or 401)
        elif self.path == "/api/repos/create":
            self._create(json.loads(content))
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(content)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            self._answer({"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            self._answer({"transfer": "basic", "objects": [self._offer(one) for one in json.loads(content)["objects"]]})
        elif "/commit/" in self.path:
            self._commit(self.path.split("/models/")[1].split("/commit/")[0], content)
        else:
            self._answer({})

    def do_PUT(self) -> None:
        self.server.objects[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["content-length"]))
        self._answer({})

    def _create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked.get('organization', 'me')}/{asked['name']}"
        self.server.private[repo] = asked.get("private", asked.get("visibility"))
        self._answer({"url": f"{self.server.address}/{repo}", "id": "1", "name": repo})

    def _offer(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {**asked, "actions": {"upload": {"href": f"{self.server.address}/objects/{asked['oid']}"}}}

    def _commit(self, repo: str, content: bytes) -> None:
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.commits.append((repo, value["summary"]))
            elif line["key"] == "file":
                self.server.files[repo, value["path"]] = base64.b64decode(value["content"])
            else:
                self.server.files[repo, value["path"]] = self.server.objects[value["oid"]]
        url = f"{self.server.address}/{repo}/commit/{'a' * 40}"
        self._answer({"success": True, "commitOid": "a" * 40, "commitUrl": url, "hookOutput": ""})

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *said: Any) -> None:
        """Keep silent."""


@contextmanager
def serving() -> Iterator[Hub]:
    """Yield a hub that answers until the context exits."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
