"""The router's page in headless Chromium: the fleet, the last requests and why. Skipped where none is installed."""

import re
import shutil
from pathlib import Path

import httpx
import pytest
from browser.chromium import CHROMIUM, Browser

from earthshine.server.http.page_files import page_files
from earthshine.server.route import app

from ..page.conftest import CONTRASTS
from ..serving import until
from .routing import CHAT, FakePlace, routing

PAGE = Path(app.__file__).with_name("page")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None or shutil.which("bash") is None:
        pytest.skip("no Chromium is installed")
    opened = Browser(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()


def text(browser, name):
    return browser.run(f"document.getElementById('{name}').innerText")


def test_the_page_shows_places_links_and_why_requests_went_where(browser):
    with routing(FakePlace(), closing := FakePlace(), prefill=("big=earthshine://h:1",)) as routed:
        closing.close()
        for path in ("/v1/chat/completions", "/v1/messages"):
            httpx.post(routed.url + path, json=CHAT)
        httpx.post(routed.url + "/v1/chat/completions", json={"kv_transfer_params": {"<b>": "<img src=x>"}})
        until(lambda: len(routed.router.metrics.decisions) == 3)
        browser.call("Page.navigate", url=routed.url + "/")
        browser.until("document.querySelectorAll('#decisions tr').length === 3")
        places = text(browser, "places")
        assert "a\n" in places
        assert "prefills for others" in places
        assert "125.0 MB per second" in text(browser, "links")
        assert "are prefilled elsewhere" in text(browser, "threshold")
        decisions = text(browser, "decisions")
        assert "POST /v1/messages" in decisions
        assert "prefills" in decisions
        assert "kv_transfer_params names a peer" in decisions
        for theme in ("light", "dark"):
            browser.media(prefers_color_scheme=theme)
            contrast, worst = browser.run(CONTRASTS)[0]
            assert contrast >= 4.5, worst
        browser.media(prefers_color_scheme="light")


def test_a_narrow_window_does_not_scroll_sideways(browser):
    with routing(FakePlace()) as routed:
        httpx.post(routed.url + "/v1/chat/completions", json=CHAT)
        browser.size(360, 700)
        browser.call("Page.navigate", url=routed.url + "/")
        browser.until("document.querySelectorAll('#decisions tr').length === 1")
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        browser.size(1280, 800)


def test_a_key_is_asked_for_and_used(browser, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("k" * 32)
    keys.chmod(0o600)
    with routing(FakePlace(), keys=keys) as routed:
        browser.call("Page.navigate", url=routed.url + "/")
        browser.until("!document.getElementById('key').hidden")
        browser.run(f"document.getElementById('secret').value = '{'k' * 32}'")
        browser.run("document.querySelector('#key button').click()")
        browser.until("document.querySelectorAll('#places tr').length === 1")
        assert browser.run("document.getElementById('key').hidden")


def test_every_file_that_is_asked_for_is_served_with_the_policy():
    with routing(FakePlace()) as routed:
        html = (PAGE / "index.html").read_text(encoding="utf-8")
        wanted = {*re.findall(r'(?:src|href)="([^"]+)"', html), "", "dom.js"}
        assert {path.strip("/") for path in page_files(PAGE)} <= wanted | {"index.html"}
        for name in wanted:
            reply = httpx.get(f"{routed.url}/{name}")
            assert reply.status_code == 200, name
            assert "script-src 'self'" in reply.headers["content-security-policy"]
        tag = {"if-none-match": reply.headers["etag"]}
        assert httpx.get(f"{routed.url}/{name}", headers=tag).status_code == 304
    for path in PAGE.iterdir():
        found = path.read_text(encoding="utf-8")
        assert not re.search(r"https?://[\w.]", found), path
        assert not re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|srcdoc)\b", found), path
        assert not re.search(r"<style|<script>| style=| on\w+=\"", found), path
