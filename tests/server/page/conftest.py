"""The page in headless Chromium, driven over DevTools' pipe, against a server that streams a script: no model.

Skipped where no Chromium is installed (Debian: apt-get install chromium).
"""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from earthshine.server.http import pages

PAGE = Path(pages.__file__).parents[1] / "page"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 300  # seconds for what takes milliseconds, unless much else runs
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


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


class Server(ThreadingHTTPServer):
    """`steps` are sent for each question; a Event among them is waited for. `key`, if set, is asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.steps: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        self.key = ""
        self.gone = threading.Event()  # a client left in the middle
        self.failure: tuple[int, str] | None = None


class Handler(BaseHTTPRequestHandler):
    server: Server

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
        path = PAGE / (self.path.lstrip("/") or "index.html")
        if self.path == "/v1/gauges":
            self._refused() or self._send(200, "application/json", json.dumps(GAUGES).encode())
        else:
            self._send(200, TYPES[path.suffix], path.read_bytes(), pages.PAGE_HEADERS)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self._refused():
            return
        if self.server.failure:
            status, message = self.server.failure
            self._send(status, "application/json", json.dumps({"error": {"message": message}}).encode())
            return
        self.server.asked.append(body)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        try:
            for step in [*self.server.steps, "[DONE]"]:
                if isinstance(step, threading.Event):
                    while not step.wait(0.02):
                        self.wfile.write(b": waiting\n\n")
                    continue
                data = step if isinstance(step, str) else json.dumps(step)
                self.wfile.write(f"data: {data}\n\n".encode())
        except OSError:
            self.server.gone.set()


class Browser:
    """One page of a Chromium. Messages are JSON that ends with a zero byte, in on descriptor 3 and out on 4."""

    def __init__(self, profile: Path) -> None:
        given, ours_out = os.pipe()
        ours_in, answers = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (given, answers)]  # clear of 3 and 4
        command = [
            BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-extensions", "--disable-background-networking", "--hide-scrollbars", "--mute-audio",
            f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}', "chromium", *command],
            pass_fds=ends, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (given, answers, *ends):
            os.close(end)
        self._out, self._in, self._held = ours_out, ours_in, b""
        self._ids = itertools.count(1)
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._held:
            assert select.select([self._in], [], [], PATIENCE)[0], "Chromium does not answer"
            part = os.read(self._in, 1 << 20)
            assert part, "Chromium ended"
            self._held += part
        message, self._held = self._held.split(b"\0", 1)
        return json.loads(message)

    def run(self, code: str) -> Any:
        found = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, code: str) -> None:
        end = time.monotonic() + PATIENCE
        while not self.run(f"Boolean({code})"):
            assert time.monotonic() < end, (code, self.run("document.body.innerText"))
            time.sleep(0.02)

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def media(self, **features: str) -> None:
        pairs = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=pairs)

    def open(self, url: str) -> None:
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && document.querySelector('#gauges > div')")

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str, shift: bool = False) -> None:
        code = {"Enter": 13, "Escape": 27, "Tab": 9, " ": 32}[key]
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        text = {"Enter": "\r", " ": " "}.get(key, "")
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def tab_to(self, code: str) -> None:
        """Presses Tab until the focused element, `focus` in the code, is the wanted one."""
        for _ in range(40):
            if self.run(f"((focus) => Boolean({code}))(document.activeElement)"):
                return
            self.press("Tab")
        raise AssertionError(f"Tab does not lead to {code}")

    def ask(self, text: str) -> None:
        self.run("document.getElementById('question').focus()")
        self.type(text)
        self.press("Enter")

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def complaints(self) -> list[str]:
        """What the console holds: errors, warnings and breaches of the content security policy."""
        self.run("1")
        kinds = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in kinds]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)
        for end in (self._in, self._out):
            os.close(end)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if BROWSER is None or shutil.which("bash") is None:
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


DONE = "document.querySelector('.reply:last-child .acts:not([hidden])') && !document.getElementById('send').hidden"
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
