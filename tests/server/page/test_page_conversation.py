"""Conversations on the page: asking, editing, stopping, what is kept and where the reader is."""

import threading

import pytest
from browser.chromium import PATIENCE

from .conftest import ANSWER, DONE, REPLY, chunk


class TestConversation:
    def test_a_reply_streams_in_and_stays_text(self, page, server):
        hold = threading.Event()
        server.steps.insert(12, hold)
        page.ask("What is earthshine?")
        page.until("document.querySelector('.reply .text strong').textContent === 'sunlight'")
        assert "albedo" not in page.run(REPLY)
        assert page.run("document.getElementById('log').ariaBusy") == "true"
        hold.set()
        page.until(DONE)
        assert page.run("document.getElementById('log').ariaBusy") == "false"
        assert "<script>alert(1)</script>" in page.run(REPLY)
        assert "onerror=alert(2)>" in page.run(REPLY)
        assert page.run("document.querySelectorAll('#log script, #log img').length") == 0
        assert page.run("document.querySelector('.reply pre').textContent") == "def albedo():\n    return 0.3"
        assert page.run("document.querySelector('.reply .text h4').textContent") == "Moonlight"
        assert page.run("document.querySelector('.reply p code').textContent") == "reflects"
        assert "48 tokens" in page.run("document.querySelector('.reply .acts p').textContent")
        assert "96 of 120 prompt tokens" in page.run("document.querySelector('.reply .acts p').textContent")
        assert page.complaints() == []

    def test_thoughts_are_folded(self, page):
        page.ask("Why?")
        page.until(DONE)
        assert not page.run("document.querySelector('.thought').open")
        assert "near" not in page.run("document.getElementById('log').innerText")
        page.run("document.querySelector('.thought summary').click()")
        assert "The Moon is near." in page.run("document.getElementById('log').innerText")
        assert page.run("document.querySelector('.thought summary').textContent") == "Thought: 2 tokens, 1 s"

    def test_history_and_settings_are_sent(self, page, server):
        page.run(
            "for (const [id, value] of Object.entries({system: 'Be brief.', thinking: 'disabled', most: '99',"
            " temperature: '0.5', top_p: '0.9', more: '{\"seed\": 7}'})) document.getElementById(id).value = value"
        )
        for text in ("One", "Two"):
            page.ask(text)
            page.until(DONE)
        body = server.asked[-1]
        assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
        assert body["messages"][2] == {"role": "assistant", "content": ANSWER, "reasoning_content": "The Moon is near."}
        assert (body["max_completion_tokens"], body["temperature"], body["model"]) == (99, 0.5, "kimi")
        assert (body["top_p"], body["seed"], body["return_progress"]) == (0.9, 7, True)
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
        page.until("document.querySelector('.reply .text strong')")
        if way == "button":
            page.run("document.getElementById('stop').click()")
        else:
            page.press("Escape")
        page.until(DONE)
        assert server.gone.wait(PATIENCE)
        assert page.run("document.querySelector('.reply .acts p').textContent").startswith("Stopped · ")
        assert "Moonlight" in page.run(REPLY)
        assert page.run("document.activeElement.id") == "question"
        assert page.complaints() == []

    def test_a_reply_that_ends_does_not_move_a_reader_who_scrolled_up(self, page, server):
        hold = threading.Event()
        server.steps[3:-2] = [chunk(content="line\n\n" * 200), hold, chunk(content="the last one")]
        page.ask("Long, please")
        page.until("document.querySelectorAll('.reply .text p').length === 200")
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
            page.click("Edit")
            page.click("Edit")
            assert page.run("document.getElementById('question').value") == "First"
            page.press("Escape")
            assert page.run("document.getElementById('question').value") == "a draft"
        page.click("Edit")
        page.type(" again")
        page.press("Enter")
        page.until("document.querySelectorAll('article').length === 2 && " + DONE)
        assert server.asked[-1]["messages"][-1]["content"] == "First again"
        assert page.run("document.getElementById('question').value") == "a draft"

    def test_copying(self, page):
        page.ask("Hi")
        page.until(DONE)
        page.run("navigator.clipboard.writeText = async (text) => { window.copied = text }")
        page.click("Copy", "document.querySelector('.reply > .acts')")
        assert page.run("window.copied") == ANSWER
        page.run("document.querySelector('.reply figure button').click()")
        assert page.run("window.copied") == "def albedo():\n    return 0.3"
        page.until("document.querySelector('.reply figure button').textContent === 'Copied'")
        page.run("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as on pages from plain HTTP
        page.run("document.execCommand = () => { window.copied = document.activeElement.value }")
        page.click("Copy", "document.querySelector('.question')")
        assert page.run("window.copied") == "Hi"
