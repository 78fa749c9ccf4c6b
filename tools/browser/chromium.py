"""A page in headless Chromium, driven over DevTools' pipe. For tests and tools of the browser page."""

import base64
import fcntl
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 300  # seconds for what takes milliseconds, unless much else runs
_KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, " ": 32}


class Browser:
    """One page of a Chromium. Messages are JSON that ends with a zero byte, in on descriptor 3 and out on 4."""

    def __init__(self, profile: Path) -> None:
        given, ours_out = os.pipe()
        ours_in, answers = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (given, answers)]  # clear of 3 and 4
        command = [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
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
        self._open_tab()

    def _open_tab(self) -> str:
        self._session = None
        target: str = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return target

    @contextmanager
    def other_tab(self) -> Iterator[Callable[[], None]]:
        """Opens a tab, which all calls are about until it is closed at the end; what it yields changes tabs."""
        tabs = [self._session]
        target = self._open_tab()
        tabs.append(self._session)

        def change() -> None:
            self._session = tabs[self._session == tabs[0]]

        yield change
        self._session = None
        self.call("Target.closeTarget", targetId=target)
        self._session = tabs[0]

    def _send(self, method: str, **params: Any) -> int:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        rest = memoryview(json.dumps(message).encode() + b"\0")
        while rest:
            rest = rest[os.write(self._out, rest) :]
        return number

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one method of DevTools' protocol."""
        number = self._send(method, **params)
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
        event: dict[str, Any] = json.loads(message)
        if event.get("method") == "Page.javascriptDialogOpening":  # the question before a tab is closed
            self._send("Page.handleJavaScriptDialog", accept=True)
        return event

    def run(self, code: str) -> Any:
        found = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, code: str) -> None:
        """Waits until the code, or the promise that it gives, is true. It may read a property of what is not there
        yet."""
        end = time.monotonic() + PATIENCE
        while not self._holds(code):
            assert time.monotonic() < end, (code, self.run("document.body.innerText"))
            time.sleep(0.02)

    def _holds(self, code: str) -> bool:
        # A promise only where the code gives one: while the page navigates, Chromium drops those under way.
        expression = f"((value) => value?.then ? value.then(Boolean) : Boolean(value))({code})"
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        thrown = found.get("exceptionDetails", {}).get("exception", {}).get("description", "")
        missing = re.match(r"TypeError: Cannot read properties of (null|undefined) ", thrown)
        assert "exceptionDetails" not in found or missing, found["exceptionDetails"]
        return not missing and bool(found["result"]["value"])

    def size(self, width: int, height: int, phone: bool = False) -> None:
        """The page's size in CSS pixels; a phone is touched instead of pointed at."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)

    def media(self, **features: str) -> None:
        pairs = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=pairs)

    def open(self, url: str) -> None:
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && document.getElementById('titles').ariaBusy === 'false'")

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str, shift: bool = False) -> None:
        about = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key], "modifiers": 8 if shift else 0}
        text = {"Enter": "\r", " ": " "}.get(key, "")
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def tab_to(self, code: str) -> None:
        """Presses Tab until the focused element, `focus` in the code, is the wanted one."""
        for _ in range(80):
            if self.run(f"((focus) => Boolean({code}))(document.activeElement)"):
                return
            self.press("Tab")
        raise AssertionError(f"Tab does not lead to {code}")

    def ask(self, text: str) -> None:
        self.run("document.getElementById('question').focus()")
        self.type(text)
        self.press("Enter")

    def click(self, name: str, within: str = "document", last: bool = False) -> None:
        """Clicks the first visible button of this name, or the last one."""
        found = f"[...{within}.querySelectorAll('button')].filter((b) => b.checkVisibility() && !b.disabled &&"
        found += f" (b.ariaLabel ?? b.textContent) === {json.dumps(name)}).at({-1 if last else 0})"
        self.until(found)
        self.run(f"{found}.click()")

    def tree(self) -> list[tuple[str, str]]:
        """The accessibility tree, in order: each node's role and name."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        shown = (node for node in nodes if not node.get("ignored"))
        return [(node["role"]["value"], node.get("name", {}).get("value", "").strip()) for node in shown]

    def hosts(self) -> set[str]:
        """The hosts (with their ports) that were asked for anything, or whose addresses were looked up."""
        self.run("1")
        asked = (event for event in self.events if event.get("method") == "Network.requestWillBeSent")
        urls = (urlsplit(event["params"]["request"]["url"]) for event in asked)
        return {url.netloc for url in urls if url.scheme not in ("data", "blob")}

    @property
    def methods(self) -> set[str]:
        """The kinds of events since the page was opened."""
        return {event["method"] for event in self.events if "method" in event}

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
