"""The page in trouble, its live gauges, and how it looks."""

import json
import os
import re
import threading
from pathlib import Path

import pytest

from .conftest import CONTRASTS, DONE, WRONG, chunk

SHOWN = r"""## Earthshine

Sunlight is reflected **twice**: by the Earth, with an albedo of about $A_E = 0.3$, and by the Moon.

$$\frac{L}{L_\odot} = A_E \, A_M \left(\frac{R_E}{d}\right)^2$$

| body | albedo |
|:--|--:|
| Earth | 0.30 |
| Moon | 0.12 |

```python
def ratio(radius=6371, distance=384_400):
    return 0.30 * 0.12 * (radius / distance) ** 2
```

- [x] seen with the naked eye
- [ ] read by"""


class TestTrouble:
    @pytest.mark.parametrize(
        ("status", "words"),
        [(400, "edit a question"), (429, "is busy"), (500, "Try again"), (503, "Try again")],
    )
    def test_a_refusal_says_what_to_do(self, page, server, status, words):
        server.failure = status, "It <b>can't</b>."
        page.ask("Hi")
        page.until(DONE)
        text = page.run("document.querySelector('.wrong').textContent")
        assert text.startswith("It <b>can't</b>. ")
        assert words in text
        server.failure = None
        page.click("Try again")
        page.until(f"document.querySelector('.reply .text h4') && !{WRONG} && " + DONE)
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
        assert page.run("[sessionStorage.getItem('key'), document.cookie]") == ["secret", ""]
        assert "secret" not in page.run("JSON.stringify(localStorage)")
        page.click("Try again")
        page.until("document.querySelector('.reply .text h4') && " + DONE)
        assert page.run("document.getElementById('key').hidden")
        page.run("sessionStorage.clear()")

    def test_gauges(self, page, server):
        page.until("document.getElementById('gauges').innerText.includes('18.')")
        text = re.sub(r"\s+", " ", page.run("document.getElementById('gauges').innerText"))
        for words in (
            "1 running, 2 waiting", "21.0 GiB of 24.0 GiB", "88 %", "768.0 MiB per second",
            "8 % in use, 25 % kept for reuse", "Prompt tokens reused none yet",
            "Replies preempted 0",
        ):  # fmt: skip
            assert words in text
        meters = page.run("[...document.querySelectorAll('[role=meter]')].map((m) => [m.ariaLabel, m.ariaValueNow])")
        assert meters == [
            ["Memory", "88"], ["Experts found in memory", "88"], ["Prompt tokens reused", "0"],
            ["Room for conversations", "8"],
        ]  # fmt: skip
        assert page.run("document.getElementById('model').textContent") == "kimi, up to 262,144 tokens"


class TestLive:
    def test_the_shipped_model_answers(self, browser, live_server):
        """The real server: its headers, its stream, its gauges and its access rules."""
        browser.size(1280, 800)
        browser.open(live_server.url + "/")
        browser.run("document.getElementById('most').value = 24")
        for count, text in enumerate(("how do I list files?", "and hidden ones?"), 1):
            browser.ask(text)
            browser.until(f"document.querySelectorAll('.reply').length === {count} && {DONE}")
            assert not browser.run(WRONG)
            assert " prompt tokens from the cache" in browser.run(
                "document.querySelector('.reply .acts p').textContent"
            )
        assert browser.run("document.getElementById('model').textContent").startswith("gleam, ")
        assert browser.run("document.getElementById('problem').hidden")
        assert browser.complaints() == []
        if folder := os.environ.get("EARTHSHINE_TEST_PICTURES"):
            browser.picture(Path(folder) / "live.png")


class TestLook:
    """With EARTHSHINE_TEST_PICTURES=FOLDER the pictures of docs/pictures are written there."""

    @pytest.fixture
    def shown(self, page, server):
        """The page with a conversation of every kind of text."""
        server.steps = [
            chunk(reasoning_content="The albedo of the Earth is about 0.3, that of the Moon 0.12."),
            chunk(content=SHOWN), chunk("stop"),
            {"choices": [], "usage": {"prompt_tokens": 120, "completion_tokens": 148}},
        ]  # fmt: skip
        page.ask("How bright is earthshine?")
        page.until(f"document.querySelector('.katex') && document.querySelector('.hl-keyword') && {DONE}")
        page.run("document.getElementById('log').scrollTop = 0")
        return page

    def picture(self, page, name):
        if folder := os.environ.get("EARTHSHINE_TEST_PICTURES"):
            page.run("new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn, 500)))")
            page.picture(Path(folder) / f"page-{name}.png")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("chosen", [False, True])
    def test_contrast(self, shown, scheme, chosen):
        shown.media(prefers_color_scheme=scheme if not chosen else "light")
        if chosen:
            shown.run(f"document.documentElement.dataset.theme = '{scheme}'")
        self.picture(shown, scheme)
        shown.run("document.getElementById('settings').open = true")
        shown.run("document.querySelector('.thought').open = true")
        found = shown.run(CONTRASTS)
        assert len(found) > 40
        assert found[0][0] >= 4.5, found[:5]

    def test_a_phone_does_not_scroll_sideways(self, shown):
        shown.size(360, 740, phone=True)
        self.picture(shown, "phone")
        shown.ask("A" * 300)
        shown.until("document.querySelectorAll('.reply').length === 2 && " + DONE)
        shown.run("document.getElementById('settings').open = true")
        widths = "[document.documentElement.scrollWidth, document.getElementById('log').scrollWidth]"
        assert shown.run(widths) == [360, 360]
        box = shown.run("JSON.stringify(document.getElementById('composer').getBoundingClientRect())")
        assert json.loads(box)["bottom"] <= 740
        aside, main = shown.run(
            "['aside', 'main'].map((name) => document.querySelector(name).getBoundingClientRect().top)"
        )
        assert aside > main

    def test_a_slow_prompt_shows_how_far_it_is(self, shown, server):
        hold = threading.Event()
        progress = {"total": 32_000, "cache": 1_024, "processed": 11_556, "time_ms": 21_000}
        server.gauges |= {"waiting": 0, "tokens_per_second": 0.0}
        server.steps = [
            chunk(role="assistant") | {"prompt_progress": progress},
            hold,
            chunk(content="."),
            chunk("stop"),
        ]
        shown.ask("Compare that with the attached report.")
        shown.until(
            "document.querySelector('.reply:last-child .state').textContent.startsWith('Reading the prompt: 36%')"
        )
        self.picture(shown, "slow-prompt")
        box = shown.run("document.querySelector('.reply:last-child .bar i').getBoundingClientRect().width")
        assert box > 50
        hold.set()

    def test_reduced_motion(self, page, server):
        page.media(prefers_reduced_motion="reduce")
        assert page.run("getComputedStyle(document.querySelector('[role=meter] i')).transitionDuration") == "0s"
