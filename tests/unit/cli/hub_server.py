"""Just enough of the hub's interface on loopback: one repository's listing, and its files with ranges."""

import hashlib
import json
import shutil
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from earthshine.hub import GLEAM

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARD = ".safetensors"


def digest(path: Path) -> str:
    """The blob's name in the hub's cache: SHA-256 of a file in LFS, git's SHA-1 of another."""
    data = path.read_bytes()
    if path.name.endswith(SHARD):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


class HubServer:
    """Serves `folder` as one repository, with a file of code that nobody should fetch.

    served: each request for a file, as "GET model.safetensors bytes=5-". tokens: what requests were authorised by.
    break_after: bytes of a weight file after which the connection is cut, once.
    stall_after: bytes of a weight file after which no more come until `go_on` is set.
    commits: of the newest state, one for each time it is asked for; the last one stays.
    listed: by path, what the listing says otherwise of a file.
    headers: of answers with a file, in place of those that are right.
    failures: how many of the next questions about the repository are answered with status 500.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.repository = folder, "team/gleam"
        self.served: list[str] = []
        self.tokens: set[str | None] = set()
        self.break_after: int | None = None
        self.stall_after: int | None = None
        self.go_on = threading.Event()
        self.commits, self.failures = [COMMIT], 0
        self.listed: dict[str, dict] = {}
        self.headers: dict[str, str] = {}
        server = self

        class Handler(_Handler):
            hub = server

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()

    def weights_served(self) -> list[str]:
        """The requests for the bytes of weight files."""
        return [line for line in self.served if line.startswith("GET") and SHARD in line and "index" not in line]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def log_message(self, *_):
        pass

    def _send(self, status, body=b"", **headers):
        self._head(status, {"Content-Length": len(body)} | headers)
        if self.command == "GET":
            self.wfile.write(body)

    def _head(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        repository = self.hub.repository
        self.hub.tokens.add(self.headers.get("Authorization"))
        if self.path.startswith("/api/") and self.hub.failures:
            self.hub.failures -= 1
            self._send(500)
        elif self.path.startswith(f"/api/models/{repository}/tree/"):
            self._send(200, json.dumps(self._tree()).encode(), Content_Type="application/json")
        elif self.path.startswith(f"/api/models/{repository}"):
            files = [{"rfilename": entry["path"]} for entry in self._tree()]
            commits = self.hub.commits
            commit = commits.pop(0) if len(commits) > 1 else commits[0]
            listing = {"id": repository, "sha": commit, "siblings": files}
            self._send(200, json.dumps(listing).encode(), Content_Type="application/json")
        elif self.path.startswith(f"/{repository}/resolve/"):
            self._file(self.hub.folder / self.path.rsplit("/", 1)[-1])
        else:
            self._send(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")

    def _tree(self):
        entries = [{"type": "file", "path": "modeling.py", "size": 9, "oid": "0" * 40}]
        for path in sorted(self.hub.folder.iterdir()):
            entry = {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": digest(path)}
            if path.name.endswith(SHARD):
                entry |= {"lfs": {"oid": digest(path), "size": path.stat().st_size, "pointerSize": 130}}
            entries.append(entry | self.hub.listed.get(path.name, {}))
        return entries

    def _file(self, path: Path):
        self.hub.served.append(f"{self.command} {path.name} {self.headers.get('Range', '')}".strip())
        if not path.is_file():
            self._send(404, X_Error_Code="EntryNotFound")
            return
        data = path.read_bytes()
        begin = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        headers = {
            "Content-Length": len(data) - begin,
            "ETag": f'"{digest(path)}"',
            "X-Repo-Commit": self.path.split("/")[-2],
        }
        if begin:
            headers["Content_Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self._head(206 if begin else 200, headers | {"Accept_Ranges": "bytes"} | self.hub.headers)
        if self.command == "GET":
            with suppress(ConnectionError):  # a client that failed
                self._bytes(data[begin:], path.name.endswith(SHARD))

    def _bytes(self, data: bytes, weights: bool):
        hub = self.hub
        if weights and hub.break_after is not None:
            cut, hub.break_after = hub.break_after, None
            self.wfile.write(data[:cut])
            self.wfile.flush()
            self.close_connection = True
        elif weights and hub.stall_after is not None:
            self.wfile.write(data[: hub.stall_after])
            self.wfile.flush()
            hub.go_on.wait()
            self.close_connection = True
        else:
            self.wfile.write(data)


def make_model(home, name, **links):
    """A model in the folder of downloads: gleam's config, and other files of its snapshot as links."""
    here = home / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT
    here.mkdir(parents=True)
    shutil.copy(GLEAM / "config.json", here)
    for file, target in links.items():
        (here / f"{file}.safetensors").symlink_to(target)
    return here
