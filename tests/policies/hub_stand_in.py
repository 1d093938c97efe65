"""A Hub on this machine: what `huggingface_hub` asks of the real one to push and read files."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories in memory: `files[repo][path] -> bytes`; `ranges` are the requested ones."""

    def __init__(self):
        self.files = {}
        self.ranges = []
        self.address = ""

    def commit(self, repo, lines):
        for line in lines:
            if line["key"] == "file":
                value = line["value"]
                assert value["encoding"] == "base64"
                self.files[repo][value["path"]] = base64.b64decode(value["content"])


@contextmanager
def serve():
    """Runs a `Hub` while it lasts."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, value, status=200, **headers):
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in headers.items():
                self.send_header(name.replace("_", "-"), text)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts == ["api", "repos", "create"]:
                given = json.loads(body)
                owner = given.get("organization") or "someone"
                repo = f"{owner}/{given['name']}"
                hub.files.setdefault(repo, {})
                self.answer({"url": f"{hub.address}/{repo}", "name": repo, "id": repo})
            elif parts[4] == "preupload":
                files = json.loads(body)["files"]
                told = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
                self.answer({"files": [{"path": file["path"], **told} for file in files]})
            elif parts[4] == "commit":
                repo = "/".join(parts[2:4])
                hub.commit(repo, [json.loads(line) for line in body.splitlines() if line])
                url = f"{hub.address}/{repo}/commit/{COMMIT}"
                self.answer({"commitUrl": url, "commitOid": COMMIT, "success": True})
            else:
                self.answer({"error": self.path}, 404)

        def do_GET(self):
            parts = self.path.partition("?")[0].strip("/").split("/")
            if "resolve" not in parts:
                known = hub.files.get("/".join(parts[2:4]), {})
                names = [{"rfilename": name} for name in known]
                self.answer({"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": names})
                return
            repo, name = "/".join(parts[:2]), "/".join(parts[4:])
            data = hub.files.get(repo, {}).get(name)
            if data is None:
                reason = "EntryNotFound" if repo in hub.files else "RepoNotFound"
                self.answer({"error": name}, 404, X_Error_Code=reason)
                return
            told = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            wanted = self.headers.get("Range")
            if wanted and self.command == "GET":
                hub.ranges.append((name, wanted))
                begin, _, end = wanted.removeprefix("bytes=").partition("-")
                part = data[int(begin) : int(end or len(data) - 1) + 1]
                self.answer(part, 206, **told)
            else:
                self.answer(data, **told)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
