"""What people put in: long pastes, files, a prompt of 10 MB; by keyboard alone, by touch, and with a screen reader."""

import json

import pytest

from .conftest import DONE, chunk

ATTACHED = "[...document.querySelectorAll('#attached span')].map((place) => place.textContent)"


def paste(page, code):
    page.run(
        f"(() => {{ const data = new DataTransfer(); data.setData('text/plain', {code});"
        " document.getElementById('question').dispatchEvent("
        "new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true })); })()"
    )


def give_file(page, name, code):
    page.run(
        f"(() => {{ const data = new DataTransfer(); data.items.add(new File([{code}], {json.dumps(name)}));"
        " const field = document.getElementById('file'); field.files = data.files;"
        " field.dispatchEvent(new Event('change')); })()"
    )


class TestLongTexts:
    @pytest.mark.parametrize("way", ["pasted", "typed"])
    def test_ten_megabytes_are_sent_whole_and_shown_short(self, page, server, way):
        code = "'word '.repeat(2_000_000) + 'end'"
        if way == "pasted":
            paste(page, code)
        else:
            page.run(f"document.getElementById('question').value = {code}")
            page.run("document.getElementById('question').dispatchEvent(new Event('input'))")
        assert page.run(ATTACHED) == ["Pasted text 1, 10,000,003 characters"]
        assert page.run("document.getElementById('question').value") == ""
        server.steps = [chunk(content="Long."), chunk("stop")]
        page.ask("What is this?")
        page.until(DONE)
        content = server.asked[-1]["messages"][0]["content"]
        assert content.startswith("What is this?\n\nPasted text 1:\n\n```\nword word ")
        assert content.endswith("word end\n```")
        assert page.run("document.querySelector('.question').textContent.length") < 21_000
        assert "Copy" in page.run("document.querySelector('.question pre').textContent.slice(-60)")
        page.open(page.run("location.href"))
        assert "10,000,003 characters" in page.run("document.querySelector('.question summary').textContent")

    def test_what_the_server_refuses_is_said_and_kept(self, page, server):
        paste(page, "'word '.repeat(2_000_000)")
        server.failure = 400, "The prompt has 2,000,011 tokens; this model reads at most 262,144."
        page.ask("Read it")
        page.until("document.querySelector('.wrong:not([hidden])')")
        assert "2,000,011 tokens" in page.run("document.querySelector('.wrong').textContent")
        page.click("Edit")
        assert page.run(ATTACHED) == ["Pasted text 1, 10,000,000 characters"]
        page.click("Remove Pasted text 1")
        assert page.run(ATTACHED) == []

    def test_files(self, page, server):
        give_file(page, "notes.txt", "'a ``` b'")
        page.until(f"{ATTACHED}.length === 1")
        server.steps = [chunk(content="Noted."), chunk("stop")]
        page.run("document.getElementById('send').click()")
        page.until(DONE)
        assert server.asked[-1]["messages"][0]["content"] == "notes.txt:\n\n````\na ``` b\n````"
        give_file(page, "moon.png", "new Uint8Array([137, 80, 0, 1])")
        page.until("!document.getElementById('refused').hidden")
        assert "moon.png is not a text file" in page.run("document.getElementById('refused').textContent")


class TestWays:
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
        page.tab_to("focus.textContent === 'Regenerate'")
        page.press("Enter")
        page.until("document.querySelector('.versions:not([hidden])') && " + DONE)
        page.tab_to("focus.ariaLabel === 'Previous version'")
        page.press("Enter")
        assert "1 of 2" in page.run("document.querySelector('.versions:not([hidden])').textContent")
        page.tab_to("focus.textContent === 'Delete' && focus.closest('.reply')")
        page.press("Enter")
        page.until("document.getElementById('dialog').open")
        page.tab_to("focus.id === 'yes'")
        page.press("Enter")
        page.until("!document.querySelector('.versions:not([hidden])')")
        page.tab_to("focus.id === 'search'")
        page.tab_to("focus.closest('#titles')")
        page.tab_to("focus.id === 'keep'")
        page.tab_to("focus.id === 'theme'")
        page.tab_to("focus.matches('.question button')")
        page.press("Enter")
        assert page.run("document.activeElement.id") == "question"

    def test_everything_has_a_role_and_a_name(self, page):
        page.ask("What is earthshine?")
        page.until(DONE)
        page.run("document.getElementById('settings').open = true")
        tree = page.tree()
        wanted = {
            ("banner", ""), ("main", ""), ("navigation", "Conversations"), ("complementary", "Server"),
            ("log", "Conversation"), ("heading", "Earthshine"), ("heading", "You"), ("heading", "Reply"),
            ("textbox", "Message"), ("searchbox", "Search conversations"), ("button", "New conversation"),
            ("switch", "Keep conversations in this browser"), ("combobox", "Theme"), ("button", "Send"),
            ("button", "Regenerate"), ("meter", "Memory"), ("spinbutton", "Longest reply, in tokens"),
            ("combobox", "Thinking"), ("button", "Add a text file"), ("list", "Kept conversations"),
        }  # fmt: skip
        assert wanted <= set(tree), wanted - set(tree)
        acting = {"button", "textbox", "searchbox", "combobox", "checkbox", "switch", "spinbutton", "link", "meter"}
        assert [role for role, name in tree if role in acting and not name.strip()] == []

    def test_what_is_touched_is_large_enough(self, page):
        page.size(360, 740, phone=True)
        page.ask("What is earthshine?")
        page.until(DONE)
        page.run("document.getElementById('settings').open = true")
        page.click("Menu")
        page.until("document.getElementById('library').checkVisibility()")
        small = page.run(
            "[...document.querySelectorAll("
            "'button, input:not([type=checkbox]), select, textarea, summary, label.switch')]"
            ".filter((node) => node.checkVisibility() && !node.closest('.unseen'))"
            ".map((node) => [node.textContent || node.id, node.offsetWidth, node.offsetHeight])"
            ".filter(([, width, height]) => width < 44 || height < 44)"
        )
        assert small == []
        page.press("Escape")
        assert not page.run("document.getElementById('library').checkVisibility()")
        assert page.run("document.activeElement.id") == "menu"
        page.size(1280, 800)
