"""The page in headless Chromium, driven over DevTools' pipe, against a server that streams a script: no model.

Skipped where no Chromium is installed (Debian: apt-get install chromium).
"""

import base64
import fcntl
import itertools
import json
import os
import re
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
PATIENCE = 10  # seconds for what takes milliseconds
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
                said = step if isinstance(step, str) else json.dumps(step)
                self.wfile.write(f"data: {said}\n\n".encode())
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
REPLY = "document.querySelector('.reply:last-child .said').innerText"


class TestConversation:
    def test_a_reply_streams_in_and_stays_text(self, page, server):
        hold = threading.Event()
        server.steps.insert(12, hold)
        page.ask("What is earthshine?")
        page.until("document.querySelector('.reply .said strong')?.textContent === 'sunlight'")
        assert "albedo" not in page.run(REPLY)
        assert page.run("document.getElementById('log').ariaBusy") == "true"
        hold.set()
        page.until(DONE)
        assert page.run("document.getElementById('log').ariaBusy") == "false"
        assert "<script>alert(1)</script>" in page.run(REPLY)
        assert "onerror=alert(2)>" in page.run(REPLY)
        assert page.run("document.querySelectorAll('#log script, #log img').length") == 0
        assert page.run("document.querySelector('.reply pre').textContent") == "def albedo():\n    return 0.3"
        assert page.run("document.querySelector('.reply .said h3').textContent") == "Moonlight"
        assert page.run("document.querySelector('.reply p code').textContent") == "reflects"
        assert "48 tokens" in page.run("document.querySelector('.acts p').textContent")
        assert "96 of 120 prompt tokens" in page.run("document.querySelector('.reply .acts p').textContent")
        assert page.complaints() == []

    def test_thoughts_are_folded(self, page):
        page.ask("Why?")
        page.until(DONE)
        assert not page.run("document.querySelector('.thought').open")
        assert "near" not in page.run("document.getElementById('log').innerText")
        page.run("document.querySelector('.thought summary').click()")
        assert "The Moon is near." in page.run("document.getElementById('log').innerText")
        assert page.run("document.querySelector('.thought summary').textContent").startswith("Thought for")

    def test_history_and_settings_are_sent(self, page, server):
        page.run(
            "for (const [id, value] of Object.entries({system: 'Be brief.', thinking: 'disabled', most: '99',"
            " temperature: '0.5'})) document.getElementById(id).value = value"
        )
        for text in ("One", "Two"):
            page.ask(text)
            page.until(DONE)
        body = server.asked[-1]
        assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
        assert body["messages"][2] == {"role": "assistant", "content": ANSWER, "reasoning_content": "The Moon is near."}
        assert (body["max_completion_tokens"], body["temperature"], body["model"]) == (99, 0.5, "kimi")
        assert body["thinking"] == {"type": "disabled"}
        assert "thinking" not in server.asked[0] or server.asked[0]["thinking"] == {"type": "disabled"}

    def test_tool_calls_are_shown(self, page, server):
        function = {"name": "weather", "arguments": ""}
        server.steps = [
            chunk(tool_calls=[{"index": 0, "id": "functions.weather:0", "type": "function", "function": function}]),
            chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"city": '}}]),
            chunk(tool_calls=[{"index": 0, "function": {"arguments": '"<b>Oslo</b>"}'}}]), chunk("tool_calls"),
        ]  # fmt: skip
        page.ask("Weather?")
        page.until(DONE)
        assert page.run("document.querySelector('.call').innerText").split("\n")[0] == "Calls weather"
        assert page.run("document.querySelector('.call code').textContent") == '{"city": "<b>Oslo</b>"}'

    @pytest.mark.parametrize("way", ["Escape", "button"])
    def test_stop(self, page, server, way):
        server.steps.insert(12, threading.Event())
        page.ask("Long, please")
        page.until("document.querySelector('.reply .said strong')")
        if way == "button":
            page.run("document.getElementById('stop').click()")
        else:
            page.press("Escape")
        page.until(DONE)
        assert server.gone.wait(PATIENCE)
        assert page.run("document.querySelector('.reply .acts p').textContent") == "Stopped"
        assert "Moonlight" in page.run(REPLY)
        assert page.run("document.activeElement.id") == "question"
        assert page.complaints() == []

    def test_editing_cuts_and_asks_again(self, page, server):
        for text in ("First", "Second"):
            page.ask(text)
            page.until(DONE)
        page.run("document.querySelector('.question button').click()")
        assert page.run("document.getElementById('question').value") == "First"
        assert page.run("document.querySelectorAll('.dropped').length") == 4
        page.press("Escape")
        assert page.run("document.querySelectorAll('.dropped').length") == 0
        page.run("document.querySelector('.question button').click()")
        page.type(" again")
        page.press("Enter")
        page.until(f"document.querySelectorAll('article').length === 2 && {DONE}")
        assert server.asked[-1]["messages"] == [{"role": "user", "content": "First again"}]
        page.run("document.getElementById('new').click()")
        assert page.run("document.querySelectorAll('article').length") == 0
        assert not page.run("document.getElementById('empty').hidden")

    def test_a_reply_that_ends_does_not_move_a_reader_who_scrolled_up(self, page, server):
        hold = threading.Event()
        server.steps[3:-2] = [chunk(content="line\n\n" * 200), hold, chunk(content="the last one")]
        page.ask("Long, please")
        page.until("document.querySelectorAll('.reply .said p').length === 200")
        page.run("document.getElementById('log').scrollTop = 100")
        hold.set()
        page.until(DONE)
        assert "the last one" in page.run(REPLY)
        assert page.run("document.getElementById('log').scrollTop") == 100
        page.run("document.getElementById('log').scrollTop = 1e9")
        page.ask("Again")
        page.until("document.querySelectorAll('.reply').length === 2 && " + DONE)
        log = "document.getElementById('log')"
        assert page.run(f"{log}.scrollHeight - {log}.scrollTop - {log}.clientHeight") < 2

    def test_editing_keeps_the_draft(self, page, server):
        page.ask("First")
        page.until(DONE)
        page.type("a draft")
        for _ in range(2):
            page.run("document.querySelector('.question button').click()")
            page.run("document.querySelector('.question button').click()")
            assert page.run("document.getElementById('question').value") == "First"
            page.press("Escape")
            assert page.run("document.getElementById('question').value") == "a draft"
        page.run("document.querySelector('.question button').click()")
        page.type(" again")
        page.press("Enter")
        page.until("document.querySelectorAll('article').length === 2 && " + DONE)
        assert server.asked[-1]["messages"][-1]["content"] == "First again"
        assert page.run("document.getElementById('question').value") == "a draft"

    @pytest.mark.parametrize("busy", [False, True])
    def test_a_cleared_conversation_can_be_brought_back(self, page, server, busy):
        page.ask("First")
        page.until(DONE)
        if busy:
            server.steps.insert(12, threading.Event())
            page.ask("Second")
            page.until("document.querySelector('.reply:last-child .said strong')")
        count = page.run("document.querySelectorAll('article').length")
        page.run("document.getElementById('new').click()")
        assert page.run("document.querySelectorAll('article').length") == 0
        page.until("document.getElementById('send').hidden === false")
        page.run("document.getElementById('back').click()")
        assert page.run("document.querySelectorAll('article').length") == count
        assert page.run("document.getElementById('cleared').hidden")
        page.until(DONE)
        server.steps = [step for step in server.steps if not isinstance(step, threading.Event)]
        page.ask("Third")
        page.until(DONE)
        assert server.asked[-1]["messages"][0]["content"] == "First"
        page.run("document.getElementById('new').click()")
        page.ask("Another")
        page.until(DONE)
        assert server.asked[-1]["messages"] == [{"role": "user", "content": "Another"}]
        assert page.run("document.getElementById('cleared').hidden")
        assert page.complaints() == []

    def test_copying(self, page):
        page.ask("Hi")
        page.until(DONE)
        page.run("navigator.clipboard.writeText = async (text) => { window.copied = text }")
        page.run("document.querySelector('.reply > .acts button:nth-of-type(1)').click()")
        assert page.run("window.copied") == ANSWER
        page.run("document.querySelector('.reply figure button').click()")
        assert page.run("window.copied") == "def albedo():\n    return 0.3"
        page.until("document.querySelector('.reply figure button').textContent === 'Copied'")
        page.run("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as on pages from plain HTTP
        page.run("document.execCommand = () => { window.copied = document.activeElement.value }")
        page.run("document.querySelector('.question button:nth-of-type(2)').click()")
        assert page.run("window.copied") == "Hi"

    def test_the_keyboard_alone_suffices(self, page, server):
        assert page.run("document.activeElement.id") == "question"
        page.type("One")
        page.press("Enter", shift=True)
        page.type("two")
        assert page.run("document.getElementById('question').value") == "One\ntwo"
        page.tab_to("focus.id === 'send'")
        page.press("Enter")
        page.until(DONE)
        assert server.asked[-1]["messages"][0]["content"] == "One\ntwo"
        page.tab_to("focus.matches('.thought summary')")
        assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.press(" ")
        assert page.run("document.querySelector('.thought').open")
        page.tab_to("focus.matches('pre')")
        page.tab_to("focus.matches('.question button')")
        page.press("Enter")
        assert page.run("document.activeElement.id") == "question"


class TestTrouble:
    @pytest.mark.parametrize(
        ("status", "words"),
        [(400, "edit a question"), (429, "as much to do as it takes"), (500, "Ask again"), (503, "Ask again")],
    )
    def test_a_refusal_says_what_to_do(self, page, server, status, words):
        server.failure = status, "It <b>can't</b>."
        page.ask("Hi")
        page.until(DONE)
        told = page.run("document.querySelector('.wrong').textContent")
        assert told.startswith("It <b>can't</b>. ")
        assert words in told
        server.failure = None
        page.run("document.querySelector('.reply button').click()")
        page.until("document.querySelector('.reply h3') && !document.querySelector('.wrong') && " + DONE)
        assert server.asked[-1]["messages"] == [{"role": "user", "content": "Hi"}]

    def test_an_error_within_a_stream(self, page, server):
        server.steps[5:] = [{"error": {"message": "The disk failed."}}]
        page.ask("Hi")
        page.until(DONE)
        assert "The disk failed." in page.run("document.querySelector('.wrong').textContent")

    def test_a_key_is_asked_for_only_when_needed(self, page, server):
        assert page.run("document.getElementById('key').hidden")
        server.key = "secret"
        page.open(f"http://127.0.0.1:{server.server_port}/")
        page.until("!document.getElementById('key').hidden")
        page.ask("Hi")
        page.until(DONE)
        assert page.run("document.querySelector('.wrong').textContent").startswith("No key. Enter")
        page.run("document.getElementById('secret').focus()")
        page.type("secret")
        page.press("Enter")
        assert page.run("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
        page.run("document.querySelector('.reply button').click()")
        page.until("document.querySelector('.reply .said h3') && " + DONE)
        assert page.run("document.getElementById('key').hidden")
        page.run("sessionStorage.clear()")

    def test_gauges(self, page, server):
        page.until("document.getElementById('gauges').innerText.includes('18.')")
        told = re.sub(r"\s+", " ", page.run("document.getElementById('gauges').innerText"))
        for words in (
            "1 running, 2 waiting", "21.0 GiB of 24.0 GiB", "88 %", "768.0 MiB/s", "312 used, 1,040 cached, 2,744 free",
            "Prefix hits none yet",
        ):  # fmt: skip
            assert words in told
        meters = page.run("[...document.querySelectorAll('[role=meter]')].map((m) => [m.ariaLabel, m.ariaValueNow])")
        assert meters == [["Memory", "88"], ["Expert hits", "88"], ["Prefix hits", "0"], ["Pages", "8"]]
        assert page.run("document.getElementById('model').textContent") == "kimi, 262,144 tokens of context"


class TestLive:
    def test_the_shipped_model_answers(self, browser, live_server):
        """The real server: its headers, its stream, its gauges and its access rules."""
        browser.size(1280, 800)
        browser.open(live_server.url + "/")
        browser.run("document.getElementById('most').value = 24")
        for count, text in enumerate(("how do I list files?", "and hidden ones?"), 1):
            browser.ask(text)
            browser.until(f"document.querySelectorAll('.reply').length === {count} && {DONE}")
            assert not browser.run("document.querySelector('.wrong')?.textContent")
            assert " prompt tokens from the cache" in browser.run(
                "document.querySelector('.reply .acts p').textContent"
            )
        assert browser.run("document.getElementById('model').textContent").startswith("gleam, ")
        assert browser.run("document.getElementById('problem').hidden")
        assert browser.complaints() == []
        if folder := os.environ.get("EARTHSHINE_TEST_PICTURES"):
            browser.picture(Path(folder) / "live.png")


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


class TestLook:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_contrast(self, page, scheme):
        page.media(prefers_color_scheme=scheme)
        page.run("document.getElementById('settings').open = true")
        page.ask("What is earthshine?")
        page.until(DONE)
        page.run("document.querySelector('.thought').open = true")
        found = page.run(CONTRASTS)
        assert len(found) > 40
        assert found[0][0] >= 4.5, found[:5]
        if folder := os.environ.get("EARTHSHINE_TEST_PICTURES"):
            page.picture(Path(folder) / f"{scheme}.png")

    def test_a_phone_does_not_scroll_sideways(self, page):
        page.size(360, 740)
        page.ask("A" * 300)
        page.until(DONE)
        page.run("document.getElementById('settings').open = true")
        assert page.run("[document.documentElement.scrollWidth, document.getElementById('log').scrollWidth]") == [
            360,
            360,
        ]
        box = page.run("JSON.stringify(document.getElementById('composer').getBoundingClientRect())")
        assert json.loads(box)["bottom"] <= 740
        aside, main = page.run(
            "['aside', 'main'].map((name) => document.querySelector(name).getBoundingClientRect().top)"
        )
        assert aside > main
        small = page.run(
            "[...document.querySelectorAll('button')].filter((b) => b.offsetHeight && b.offsetHeight < 24)"
        )
        assert small == []

    def test_reduced_motion(self, page, server):
        page.media(prefers_reduced_motion="reduce")
        assert page.run("getComputedStyle(document.querySelector('[role=meter] i')).transitionDuration") == "0s"

    def test_nothing_is_external(self):
        for path in PAGE.iterdir():
            text = path.read_text(encoding="utf-8").replace("http://www.w3.org/", "")
            assert "http:" not in text, path
            assert "https:" not in text, path
            assert "innerHTML" not in text, path
