"""Replies that go on while another conversation is shown, over a reload of the page, and over a lost connection.

Most are shown with the real server, whose model is a script.
"""

import json
import threading

import pytest

from earthshine.server.openai.chat import CHAT

from ..serving import HANG_SECONDS, serving, until
from .conftest import DIE, DONE, REPLY, WRONG, chunk
from .test_page_library import TITLES, confirm, exported, load_again, settle

WRITING = "[...document.querySelectorAll('#titles button:has(.writing)')].map((button) => button.textContent)"
BUSY = "document.getElementById('send').hidden"
STOP = "document.getElementById('stop')"


@pytest.fixture
def real(browser):
    """The server; the page is open. Each word of a question is a piece of its reply, and `gate` waits."""
    with serving(apis=(CHAT,), drain_seconds=0.0) as server:
        browser.media(prefers_color_scheme="light")
        browser.size(1280, 800)
        browser.open(server.url + "/")
        yield server


def ask(page, text):
    """Asks, and waits for the reply's first word."""
    page.ask(text)
    page.until(f"{REPLY} === {json.dumps(text.split()[0])} && {TITLES}.includes({json.dumps(text)})")


def ends(server):
    """Waits until the server has nothing to compute and holds no stream."""
    until(lambda: not server.service.app.state.streams._streams)
    until(lambda: not server.lifetime.requests)


class TestElsewhere:
    def test_replies_go_on_while_other_conversations_are_shown(self, browser, real):
        ask(browser, "one gate two")
        browser.click("New conversation")
        browser.until("document.querySelectorAll('article').length === 0")
        assert not browser.run(BUSY)
        ask(browser, "three gate four")
        browser.click("New conversation")
        browser.until(f"{WRITING}.length === 2")
        browser.click("one gate two")
        browser.until(f"{REPLY} === 'one' && {BUSY} && !{STOP}.hidden")
        browser.click("New conversation")
        real.generator.gate.set()
        browser.until(f"{WRITING}.length === 0")
        assert "has ended" in browser.run("document.getElementById('ended').textContent")
        for question, reply in (("one gate two", "onetwo"), ("three gate four", "threefour")):
            browser.click(question)
            browser.until(f"{REPLY} === {json.dumps(reply)} && {DONE}")
        assert browser.complaints() == []
        ends(real)

    def test_the_list_says_which_reply_is_written(self, browser, real):
        ask(browser, "one gate two")
        browser.click("New conversation")
        browser.until(f"{WRITING}.length === 1")
        assert ("button", "one gate two (a reply is being written)") in browser.tree()
        real.generator.gate.set()
        browser.until(f"{WRITING}.length === 0")
        tree = browser.tree()
        assert ("button", "one gate two") in tree
        assert "status" in {role for role, _ in tree}

    def test_more_than_four_at_once_are_refused_with_a_message(self, browser, real):
        for number in range(4):
            ask(browser, f"w{number} gate end")
            browser.click("New conversation")
        browser.ask("another")
        browser.until("!document.getElementById('refused').hidden")
        assert "4 replies are being written" in browser.run("document.getElementById('refused').textContent")
        assert browser.run("document.getElementById('question').value") == "another"
        real.generator.gate.set()
        browser.until(f"{WRITING}.length === 0")
        browser.press("Enter")
        browser.until(f"{REPLY} === 'another' && {DONE}")

    def test_a_conversation_is_deleted_with_the_reply_that_is_written(self, browser, real):
        ask(browser, "one gate two")
        browser.click("Delete", "document.getElementById('titles')")
        browser.until("document.getElementById('dialog').open")
        assert "is stopped" in browser.run("document.getElementById('asking').textContent")
        confirm(browser, "Delete")
        assert real.generator.closed.wait(HANG_SECONDS)
        ends(real)
        load_again(browser)
        assert browser.run(TITLES) == []

    def test_what_the_switch_deletes_is_not_written_again(self, browser, real):
        ask(browser, "one gate two")
        browser.click("New conversation")
        ask(browser, "three gate four")
        browser.run("document.getElementById('keep').click()")
        confirm(browser, "Delete them")
        browser.until(f"{TITLES}.length === 1")
        real.generator.gate.set()
        browser.until(f"{REPLY} === 'threefour' && {DONE}")
        assert browser.run(TITLES) == ["three gate four"]
        ends(real)


class TestComingBack:
    def test_a_reply_goes_on_while_the_page_is_loaded_again(self, browser, real):
        ask(browser, "one gate two")
        load_again(browser)
        browser.until(f"{REPLY} === 'one' && {BUSY} && {WRITING}.length === 1")
        assert "Page.javascriptDialogOpening" not in browser.methods  # nothing would be lost
        real.generator.gate.set()
        browser.until(f"{REPLY} === 'onetwo' && {DONE} && {WRITING}.length === 0")
        assert browser.run(f"{WRONG} === null")
        assert len(real.generator.users) == 1
        assert browser.complaints() == []
        ends(real)
        load_again(browser)
        assert browser.run(REPLY) == "onetwo"

    def test_a_reply_that_ended_while_the_page_was_closed_is_there(self, browser, real):
        ask(browser, "one gate two")
        address = browser.run("location.href")
        settle(browser)
        browser.call("Page.navigate", url="about:blank")
        browser.until("location.href === 'about:blank'")
        real.generator.gate.set()
        assert real.generator.closed.wait(HANG_SECONDS)
        browser.open(address)
        browser.until(f"{REPLY} === 'onetwo' && {DONE}")
        ends(real)

    def test_each_of_several_is_kept_in_its_own_conversation(self, browser, real):
        for number in range(3):
            ask(browser, f"w{number} gate end")
            browser.click("New conversation")
        load_again(browser)
        browser.until(f"{WRITING}.length === 3")
        real.generator.gate.set()
        browser.until(f"{WRITING}.length === 0")
        for number in range(3):
            browser.click(f"w{number} gate end")
            browser.until(f"{REPLY} === 'w{number}end' && {DONE}")
        assert len(real.generator.users) == 3

    def test_a_reply_is_stopped_after_loading_again(self, browser, real):
        ask(browser, "one gate two")
        load_again(browser)
        browser.until(f"{REPLY} === 'one' && {BUSY}")
        browser.click("Stop")
        browser.until(DONE)
        assert real.generator.closed.wait(HANG_SECONDS)
        assert browser.run("document.querySelector('.reply .meta').textContent").startswith("Stopped")
        ends(real)
        load_again(browser)
        browser.until(f"{REPLY} === 'one' && {DONE}")

    def test_a_continued_reply_keeps_what_it_had(self, browser, real):
        ask(browser, "one gate two")
        browser.press("Escape")
        browser.until(DONE)
        ends(real)
        browser.click("Continue")  # the script's question is then the reply: "one"
        browser.until(f"{REPLY} === 'oneone' && {DONE}")
        real.generator.gate.clear()
        assert browser.run("document.querySelectorAll('article').length") == 2

    def test_two_tabs_show_one_reply(self, browser, real):
        ask(browser, "one gate two")
        address = browser.run("location.href")
        with browser.other_tab() as change:
            browser.size(1280, 800)
            browser.open(address)
            browser.click("one gate two")
            browser.until(f"{REPLY} === 'one' && {BUSY}")
            real.generator.gate.set()
            browser.until(f"{REPLY} === 'onetwo' && {DONE}")
            change()
            browser.until(f"{REPLY} === 'onetwo' && {DONE}")
            assert browser.run(f"{WRONG} === null")
        ends(real)
        _, text = exported(browser, "Save as JSON")
        kept = json.loads(text)
        assert [message["content"] for message in kept["messages"]] == ["one gate two", "onetwo"]


class TestLostConnection:
    def test_a_lost_connection_is_made_again(self, page, server):
        hold = threading.Event()
        server.steps = [chunk(reasoning_content="So."), chunk(content="one "), hold, DIE]
        server.again = [*server.steps[:2], chunk(content="two"), chunk("stop")]
        page.ask("Go")
        page.until(f"{REPLY} === 'one'")
        hold.set()
        page.until(f"{REPLY} === 'one two' && {DONE}")
        assert page.run(f"{WRONG} === null")
        assert page.run("document.querySelector('.thought > div').textContent") == "So."
        assert len(server.asked) == 1
        until(lambda: len(server.ended) == 1)

    def test_a_continued_reply_is_not_doubled(self, page, server):
        server.steps = [chunk(content="one "), chunk("length")]
        page.ask("Go")
        page.until(DONE)
        server.steps = [chunk(content="two "), DIE]
        server.again = [chunk(content="two "), chunk(content="three"), chunk("stop")]
        page.click("Continue")
        page.until(f"{REPLY} === 'one two three' && {DONE}")

    def test_a_reply_that_was_ended_unread_keeps_its_text_and_says_why(self, page, server):
        server.steps = [chunk(content="one "), DIE]
        server.again = [chunk(content="one "), chunk(content="two"), {"error": {"message": "No client read it."}}]
        page.ask("Go")
        page.until(f"{REPLY} === 'one two' && {DONE} && {WRONG}")
        assert page.run(f"{WRONG}.textContent").startswith("No client read it.")

    def test_a_server_that_does_not_come_back_is_given_up(self, page, server):
        hold = threading.Event()
        server.steps = [chunk(content="one "), hold, DIE]
        page.ask("Go")
        page.until(f"{REPLY} === 'one'")
        page.run("""(() => {
          const [ask, wait, now] = [fetch, setTimeout, performance.now.bind(performance)];
          window.attempts = 0;
          window.setTimeout = (work, milliseconds) => wait(work, Math.min(20, milliseconds));
          performance.now = () => now() + 3_600_000; // the connection has lasted an hour
          window.fetch = (path, options) => {
            if (!path.startsWith("v1/stream") || options.method) return ask(path, options);
            attempts++;
            return Promise.reject(new TypeError("Failed to fetch"));
          };
        })()""")
        hold.set()
        page.until(f"{DONE} && {WRONG}")
        assert page.run(f"{WRONG}.textContent").startswith("The server can't be reached.")
        assert page.run("attempts") == 7
        assert page.run(REPLY) == "one"

    def test_without_its_key_a_reply_waits(self, page, server):
        hold = threading.Event()
        server.steps = [chunk(content="one "), hold, chunk("stop")]
        server.again = [chunk(content="one "), chunk(content="two"), chunk("stop")]
        page.ask("Go")
        page.until(f"{REPLY} === 'one' && {WRITING}.length === 1")
        server.key = "secret"
        page.open(page.run("location.href"))
        page.until("!document.getElementById('key').hidden")
        assert page.run(f"{WRITING}.length") == 1
        page.run("document.getElementById('secret').focus()")
        page.type("secret")
        page.press("Enter")
        page.until(f"{REPLY} === 'one two' && {DONE}")
        assert not page.run(WRONG)
        page.run("sessionStorage.clear()")
        hold.set()

    def test_an_error_of_the_server_is_not_asked_for_again(self, page, server):
        server.steps = [chunk(content="one"), {"error": {"message": "The disk failed."}}]
        server.again = [chunk(content="never"), chunk("stop")]
        page.ask("Go")
        page.until(f"{DONE} && {WRONG}")
        assert page.run(REPLY) == "one"
