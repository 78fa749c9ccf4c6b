"""Versions of messages: editing, regenerating, continuing and deleting, with nothing lost that was not agreed to."""

import threading

import pytest

from .conftest import ANSWER, DIE, DONE, REPLY, WRONG, chunk

ARTICLES = "document.querySelectorAll('article').length"
VERSIONS = "[...document.querySelectorAll('.versions:not([hidden]) span')].map((place) => place.textContent)"


def answer(server, text, finish="stop"):
    server.steps = [chunk(content=text), *([chunk(finish)] if finish else [])]


def ask(page, server, question, text):
    answer(server, text)
    page.ask(question)
    page.until(DONE)


def sent(server):
    return [message["content"] for message in server.asked[-1]["messages"]]


class TestVersions:
    def test_an_edited_question_keeps_the_old_one_and_what_followed(self, page, server):
        ask(page, server, "First", "one")
        ask(page, server, "Second", "two")
        page.click("Edit")
        assert page.run("document.querySelectorAll('.dropped').length") == 4
        page.press("Escape")
        assert page.run("document.querySelectorAll('.dropped').length") == 0
        page.click("Edit")
        page.type(" again")
        answer(server, "three")
        page.press("Enter")
        page.until(f"{ARTICLES} === 2 && {DONE}")
        assert sent(server) == ["First again"]
        assert page.run(VERSIONS) == ["2 of 2"]
        page.click("Previous version")
        assert page.run(ARTICLES) == 4
        assert page.run(REPLY) == "two"
        assert page.run("document.activeElement.ariaLabel") == "Previous version"
        ask(page, server, "Third", "four")
        assert sent(server) == ["First", "one", "Second", "two", "Third"]

    def test_a_regenerated_reply_is_another_version(self, page, server):
        ask(page, server, "First", "one")
        answer(server, "other")
        page.click("Regenerate")
        page.until(f"{REPLY} === 'other' && {DONE}")
        assert sent(server) == ["First"]
        assert page.run(VERSIONS) == ["2 of 2"]
        page.click("Previous version")
        assert page.run(REPLY) == "one"
        ask(page, server, "Second", "two")
        assert sent(server) == ["First", "one", "Second"]

    def test_an_edited_reply_is_another_version(self, page, server):
        ask(page, server, "First", "one")
        page.click("Edit", last=True)
        page.type(" and more")
        page.click("Save")
        page.until(f"{REPLY} === 'one and more'")
        assert len(server.asked) == 1
        assert page.run(VERSIONS) == ["2 of 2"]
        ask(page, server, "Second", "two")
        assert sent(server) == ["First", "one and more", "Second"]

    def test_a_stopped_reply_is_continued_where_it_ended(self, page, server):
        answer(server, "one ", "length")
        page.ask("First")
        page.until(DONE)
        answer(server, "two")
        page.click("Continue")
        page.until(f"{REPLY} === 'one two' && {DONE}")
        assert sent(server) == ["First", "one "]
        assert server.asked[-1]["continue_final_message"] is True
        assert page.run(ARTICLES) == 2
        assert not page.run(
            "[...document.querySelectorAll('.reply button')].some((b) => !b.hidden && b.textContent === 'Continue')"
        )

    def test_a_message_is_deleted_only_when_that_is_confirmed(self, page, server):
        ask(page, server, "First", "one")
        ask(page, server, "Second", "two")
        page.click("Delete", "document.querySelector('.question')")
        page.until("document.getElementById('dialog').open")
        assert "the 3 messages after it" in page.run("document.getElementById('asking').textContent")
        assert page.run("document.activeElement.id") == "no"
        page.press("Escape")
        page.until("!document.getElementById('dialog').open")
        assert page.run(ARTICLES) == 4
        page.click("Delete", "document.getElementById('log')", last=True)
        page.click("Delete", "document.getElementById('dialog')")
        page.until(f"{ARTICLES} === 3")

    def test_thousands_of_messages_are_deleted_at_once(self, page):
        code = """(async () => {
          const { Conversation } = await import("/conversation.js"), made = new Conversation();
          for (let count = 0; count < 12_000; count++) made.add("user", `message ${count}`);
          const read = Conversation.from(made.record()), second = read.path()[1], below = read.below(second).length;
          read.remove(second);
          return [below, read.messages.size, read.removed.length, read.path().map((message) => message.content)];
        })()"""
        assert page.run(code) == [11_999, 1, 11_999, ["message 0"]]


class TestEndings:
    def test_a_server_that_dies_leaves_what_it_wrote(self, page, server):
        hold = threading.Event()
        server.steps = [chunk(content=ANSWER[:60]), hold, DIE]
        page.ask("First")
        page.until(f"{REPLY}.includes('Moonlight')")
        hold.set()
        page.until(f"{DONE} && {WRONG}")
        text = page.run(f"{WRONG}.textContent")
        assert text == (
            "The server can't be reached. Check that it runs, then try again."
            " What it wrote is kept; Continue goes on from there."
        )
        assert "Moonlight" in page.run(REPLY)
        page.open(page.run("location.href"))
        assert "Moonlight" in page.run(REPLY)  # also after the page was loaded again
        answer(server, " the rest")
        page.click("Continue")
        page.until(f"{REPLY}.includes('the rest') && !{WRONG} && {DONE}")
        assert sent(server) == ["First", ANSWER[:60]]

    def test_a_server_that_ends_its_stream_early_is_noticed(self, page, server):
        answer(server, "one", None)
        page.ask("First")
        page.until(f"{DONE} && {WRONG}")
        assert page.run(f"{WRONG}.textContent").startswith("The reply was cut off.")

    def test_an_event_that_is_none_is_said(self, page, server):
        server.steps = [chunk(content="one"), "{not json"]
        page.ask("First")
        page.until(f"{DONE} && {WRONG}")
        assert "not an event of a reply" in page.run(f"{WRONG}.textContent")
        assert page.complaints() == []

    def test_a_setting_that_can_not_be_sent_is_said_and_nothing_is_lost(self, page, server):
        cases = (
            ("more", "{seed: 1}", "JSON object"),
            *(
                ("more", f'{{"{name}": true}}', "the page sets it")
                for name in ("model", "return_progress", "continue_final_message")
            ),
            ("temperature", "9", "0 to 2"),
        )
        for field, value, words in cases:
            page.run(f"document.getElementById('{field}').value = {value!r}")
            page.run("document.getElementById('question').value = ''")
            page.ask("First")
            page.until("!document.getElementById('refused').hidden")
            assert words in page.run("document.getElementById('refused').textContent")
            assert page.run("document.getElementById('settings').open")
            assert page.run("document.getElementById('question').value") == "First"
            page.run(f"document.getElementById('{field}').value = ''")
        assert server.asked == []

    def test_a_setting_that_is_given_twice_is_said(self, page, server):
        page.run("document.getElementById('temperature').value = '1'")
        page.run("document.getElementById('more').value = '{\"temperature\": 0}'")
        page.ask("First")
        page.until("!document.getElementById('refused').hidden")
        assert '"temperature" is set twice' in page.run("document.getElementById('refused').textContent")
        assert server.asked == []

    @pytest.mark.parametrize("action", ["Regenerate", "Continue"])
    def test_a_reply_is_not_asked_for_with_a_setting_that_can_not_be_sent(self, page, server, action):
        answer(server, "one ", "length")
        page.ask("First")
        page.until(DONE)
        page.run("document.getElementById('temperature').value = '9'")
        page.click(action)
        page.until("!document.getElementById('refused').hidden")
        assert "0 to 2" in page.run("document.getElementById('refused').textContent")
        assert (page.run(REPLY), page.run(ARTICLES), page.run(VERSIONS)) == ("one", 2, [])
        page.run("document.getElementById('temperature').value = ''")
        answer(server, "two")
        page.click(action)
        page.until(f"{REPLY}.includes('two') && {DONE}")
        assert page.run("document.getElementById('refused').hidden")
        assert page.complaints() == []
