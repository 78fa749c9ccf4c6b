"""The page in trouble, its live gauges, and how it looks."""

import json
import os
import re
from pathlib import Path

import pytest

from .conftest import CONTRASTS, DONE, PAGE


class TestTrouble:
    @pytest.mark.parametrize(
        ("status", "words"),
        [(400, "edit a question"), (429, "is busy"), (500, "Try again"), (503, "Try again")],
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
        page.until("document.querySelector('.reply .text h3') && " + DONE)
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
