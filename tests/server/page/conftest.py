"""The page in headless Chromium against a server that streams a script: no model.

Skipped where no Chromium is installed (Debian: apt-get install chromium).
"""

import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from browser.chromium import CHROMIUM, Browser

from earthshine.server.http.page_files import page_files, page_headers

FILES = page_files()
GAUGES = {
    "running": 1, "waiting": 2, "tokens_per_second": 18.25, "expert_hit_rate": 0.875, "disk_bytes_per_second": 3 << 28,
    "pages": 4096, "pages_used": 312, "pages_cached": 1040, "pages_free": 2744, "prefix_hit_rate": None,
    "model": "kimi", "resident_bytes": 21 << 30, "budget_bytes": 24 << 30, "preemptions": 0,
    "context_tokens": 262144, "problem": None,
}  # fmt: skip
ANSWER = """## Moonlight

Earthshine is **sunlight** that the Earth <script>alert(1)</script> `reflects`:

```python
def albedo():
    return 0.3
```
- once to the Moon
- and back <img src=x onerror=alert(2)>"""


DIE = "die"  # a step that ends the connection in the middle of the reply


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


class Server(ThreadingHTTPServer):
    """`steps` are sent for each question; an Event among them is waited for. `key`, if set, is asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.steps: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        self.key = ""
        self.gone = threading.Event()  # a client left in the middle
        self.again: list[Any] | None = None  # steps for a client that comes back to a reply
        self.ended: list[str] = []  # replies that the page has ended or has no more use for
        self.failure: tuple[int, str] | None = None
        self.replaced: dict[str, bytes] = {}  # files of the page by their paths, instead of the real ones
        self.gauges = dict(GAUGES)


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"  # a reply that ends early is an error there

    def log_message(self, *args: object) -> None:
        pass

    def _send(self, status: int, kind: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refused(self) -> bool:
        if not self.server.key or self.headers.get("authorization") == f"Bearer {self.server.key}":
            return False
        self._send(401, "application/json", b'{"error": {"message": "No key."}}')
        return True

    def do_GET(self) -> None:
        if self.path == "/v1/gauges":
            self._refused() or self._send(200, "application/json", json.dumps(self.server.gauges).encode())
        elif file := FILES.get(self.path):
            headers = page_headers(file)
            self._send(
                200, headers.pop("content-type"), self.server.replaced.get(self.path) or file.read_bytes(), headers
            )
        elif self.server.again is not None and self.path.startswith("/v1/stream/"):
            self._refused() or self._stream(self.server.again)
        else:
            self._send(404, "application/json", b"{}")

    def do_DELETE(self) -> None:
        self.server.ended.append(self.path.removeprefix("/v1/stream/"))
        self._refused() or self._send(200, "application/json", b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self._refused():
            return
        if self.server.failure:
            status, message = self.server.failure
            self._send(status, "application/json", json.dumps({"error": {"message": message}}).encode())
            return
        self.server.asked.append(body)
        self._stream(self.server.steps)

    def _stream(self, steps: list[Any]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            for step in [*steps, "[DONE]"]:
                if step == DIE:
                    self.close_connection = True
                    return
                if isinstance(step, threading.Event):
                    while not step.wait(0.02):
                        self._part(": waiting\n\n")
                    continue
                self._part(f"data: {step if isinstance(step, str) else json.dumps(step)}\n\n")
            self._part("")
        except OSError:
            self.server.gone.set()
            self.close_connection = True

    def _part(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None or shutil.which("bash") is None:
        pytest.skip("no Chromium is installed")
    opened = Browser(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Browser:
    server.steps = [
        chunk(role="assistant", content=""), chunk(reasoning_content="The Moon "), chunk(reasoning_content="is near."),
        *(chunk(content=ANSWER[at : at + 7]) for at in range(0, len(ANSWER), 7)), chunk("stop"),
        {"choices": [], "usage": {"prompt_tokens": 120, "completion_tokens": 48,
                                  "prompt_tokens_details": {"cached_tokens": 96}}},
    ]  # fmt: skip
    browser.media(prefers_color_scheme="light")
    browser.size(1280, 800)
    browser.open(f"http://127.0.0.1:{server.server_port}/")
    return browser


WRONG = "document.querySelector('.reply:last-child .wrong:not([hidden])')"
DONE = "document.querySelector('.reply:last-child') && !document.getElementById('send').hidden"
REPLY = "document.querySelector('.reply:last-child .text').innerText"


# Of every visible text: its size, and the contrast between its colour and the nearest background behind it (WCAG 2).
CONTRASTS = """(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walk.nextNode()); ) {
    const owner = node.parentElement;
    if (!node.data.trim() || !owner.checkVisibility() || owner.closest('noscript')) continue;
    let behind = owner, colour = [0, 0, 0, 0];
    for (; behind && (colour.length > 3 && colour[3] === 0); behind = behind.parentElement)
      colour = parse(getComputedStyle(behind).backgroundColor);
    const [a, b] = [light(parse(getComputedStyle(owner).color)), light(colour)].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), node.data.trim().slice(0, 40)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
})()"""
