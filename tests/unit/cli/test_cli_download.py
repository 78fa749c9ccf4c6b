"""A model named by its Hugging Face id, against a hub of our own on loopback: fetched, resumed, and refused plainly."""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from earthshine.hub import GLEAM

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RUN = [sys.executable, "-c", "from earthshine.cli import main; main()"]


class Hub(BaseHTTPRequestHandler):
    """Just enough of the hub's interface: the listing of one repository, and its files with ranges."""

    break_after: int | None = None  # bytes of model.safetensors after which the connection is cut, once
    served: list[str] = []  # noqa: RUF012  (one hub at a time)

    def log_message(self, *_):
        pass

    def _send(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.path.startswith("/api/models/team/gleam/tree/"):
            files = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}
                for path in sorted(GLEAM.iterdir())
            ]
            code = {"type": "file", "path": "modeling.py", "size": 9, "oid": "0" * 40}
            self._send(200, json.dumps([*files, code]).encode(), Content_Type="application/json")
        elif self.path.startswith("/api/models/team/gleam"):
            files = [{"rfilename": path.name} for path in sorted(GLEAM.iterdir())]
            listing = {"id": "team/gleam", "sha": COMMIT, "siblings": [*files, {"rfilename": "modeling.py"}]}
            self._send(200, json.dumps(listing).encode(), Content_Type="application/json")
        elif self.path.startswith("/team/gleam/resolve/"):
            self._file(GLEAM / self.path.rsplit("/", 1)[-1])
        else:
            self._send(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")

    def _file(self, path: Path):
        self.served.append(f"{self.command} {path.name} {self.headers.get('Range', '')}".strip())
        if not path.is_file():
            self._send(404, X_Error_Code="EntryNotFound")
            return
        data = path.read_bytes()
        headers = {"ETag": f'"{path.name}-1"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        begin = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        if self.command == "GET" and path.name == "model.safetensors" and type(self).break_after is not None:
            cut, type(self).break_after = type(self).break_after, None
            self.send_response(200)
            for name, value in ({"Content-Length": len(data)} | headers).items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            self.wfile.write(data[:cut])
            self.wfile.flush()
            self.close_connection = True
            return
        if begin:
            headers["Content_Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self._send(206 if begin else 200, data[begin:], **headers)


@pytest.fixture
def hub(forker, tmp_path):
    Hub.break_after, Hub.served = None, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "EARTHSHINE_HOME": str(tmp_path / "models"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    yield lambda *arguments: forker.run([*RUN, *arguments], text=True, env=environment)
    server.shutdown()
    server.server_close()


def test_an_id_is_downloaded_and_answers(hub):
    done = hub("chat", "team/gleam", "-p", "list all files")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not [line for line in Hub.served if "modeling.py" in line], "code is never fetched"


def test_inspect_of_an_id_fetches_no_weights(hub):
    done = hub("inspect", "team/gleam")
    assert done.returncode == 0, done.stderr
    assert "kimi_k25" in done.stdout
    assert not [line for line in Hub.served if "safetensors" in line]


def test_a_download_that_broke_goes_on_where_it_stopped(hub):
    Hub.break_after = 15_000_000  # the library keeps whole pieces of 10 MiB
    done = hub("chat", "team/gleam", "-p", "list all files")
    if done.returncode:
        assert "goes on from there" in done.stderr
        done = hub("chat", "team/gleam", "-p", "list all files")
    assert done.returncode == 0, done.stderr
    ranges = [line for line in Hub.served if line.startswith("GET model.safetensors bytes=")]
    assert ranges
    assert 0 < int(ranges[-1].split("=")[1].split("-")[0]) <= 15_000_000


def test_an_id_that_does_not_exist_is_named(hub):
    done = hub("chat", "team/nothing", "-p", "hello")
    assert done.returncode == 1
    assert "team/nothing" in done.stderr
    assert "Traceback" not in done.stderr
