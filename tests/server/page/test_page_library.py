"""Conversations that the browser keeps: listed, searched, exported, and what happens when they can't be kept."""

import json

import pytest

from .conftest import DONE, REPLY, chunk

TITLES = "[...document.querySelectorAll('#titles li > button')].map((button) => button.textContent)"
KEPT = "document.getElementById('kept')"


def converse(page, server, *questions):
    for question in questions:
        page.click("New conversation")
        server.steps = [chunk(content=f"About {question.lower()}."), chunk("stop")]
        page.ask(question)
        page.until(f"{DONE} && {TITLES}.includes({json.dumps(question)})")


SETTLED = """import("./state.js").then(({ state: { library } }) =>
  !library.unsaved || library.problem !== "" || !document.getElementById("keep").checked)"""


def settle(page):
    """Waits until everything is kept that can be."""
    page.until(SETTLED)


def load_again(page):
    """Loads the page again, once everything is kept that can be."""
    settle(page)
    page.open(page.run("location.href"))


def confirm(page, action):
    page.click(action, "document.getElementById('dialog')")
    page.until("!document.getElementById('dialog').open")


def exported(page, name):
    """The text of the next download, which the button of this name begins."""
    page.run("URL.createObjectURL = (blob) => { window.saved = blob; return 'blob:none' }")
    page.run("HTMLAnchorElement.prototype.click = function () { window.savedAs = this.download }")
    page.click(name)
    page.until("window.saved")
    return page.run("window.savedAs"), page.run("window.saved.text()")


def imported(page, text):
    page.run(
        f"(() => {{ const data = new DataTransfer(); data.items.add(new File([{json.dumps(text)}], 'some.json'));"
        " const field = document.getElementById('importing'); field.files = data.files;"
        " field.dispatchEvent(new Event('change')); })()"
    )
    page.until(f"!{KEPT}.hidden")
    return page.run(f"{KEPT}.textContent")


def stored(page, work):
    """Runs `work` on the database of the page's origin, with the page's own connection closed."""
    return page.run(f"""(async () => {{
      const opened = (request) => new Promise((yes, no) => {{
        request.onsuccess = () => yes(request.result);
        request.onerror = no;
      }});
      {work}
    }})()""")


class TestKeeping:
    def test_conversations_outlast_the_page(self, page, server):
        converse(page, server, "Moon", "Sun")
        load_again(page)
        assert page.run(TITLES) == ["Sun", "Moon"]
        assert page.run(REPLY) == "About sun."
        page.click("Moon")
        page.until(f"{REPLY} === 'About moon.'")
        page.until("document.querySelector('#titles [aria-current]').textContent === 'Moon'")
        assert page.complaints() == []

    def test_search_finds_what_was_said(self, page, server):
        converse(page, server, "Moon", "Sun")
        page.run("document.getElementById('search').focus()")
        page.type("ABOUT MO")
        page.until(f"{TITLES}.length === 1")
        assert page.run(TITLES) == ["Moon"]
        assert page.run("document.getElementById('found').textContent") == "1 conversation found"
        page.type("x")
        page.until(f"{TITLES}.length === 0")
        assert "No conversation" in page.run("document.getElementById('found').textContent")

    def test_rename_and_delete(self, page, server):
        converse(page, server, "Moon", "Sun")
        page.click("Rename")
        page.run("document.getElementById('answer').select()")
        page.type("Star")
        page.press("Enter")
        page.until(f"{TITLES}[0] === 'Star'")
        page.click("Delete", "document.getElementById('titles')")
        page.click("Cancel")
        page.until("!document.getElementById('dialog').open")
        assert page.run(TITLES) == ["Star", "Moon"]
        page.click("Delete", "document.getElementById('titles')")
        confirm(page, "Delete")
        page.until(f"{TITLES}.length === 1")
        load_again(page)
        assert page.run(TITLES) == ["Moon"]

    def test_settings_and_theme_are_kept(self, page, server):
        page.run("document.getElementById('system').value = 'Be brief.'")
        page.run("document.getElementById('theme').value = 'dark'")
        page.run("document.getElementById('theme').dispatchEvent(new Event('change', { bubbles: true }))")
        assert page.run("getComputedStyle(document.documentElement).backgroundColor") == "rgb(17, 22, 27)"
        load_again(page)
        assert page.run("document.documentElement.dataset.theme") == "dark"
        assert page.run("document.getElementById('system').value") == "Be brief."
        converse(page, server, "Moon")
        assert server.asked[-1]["messages"][0] == {"role": "system", "content": "Be brief."}

    def test_the_switch_deletes_only_when_that_is_confirmed(self, page, server):
        converse(page, server, "Moon", "Sun")
        page.run("document.getElementById('keep').click()")
        page.until("document.getElementById('dialog').open")
        assert "2 conversations" in page.run("document.getElementById('asking').textContent")
        page.press("Escape")
        page.until("document.getElementById('keep').checked")
        page.run("document.getElementById('keep').click()")
        confirm(page, "Delete them")
        page.until(f"!{KEPT}.hidden && {TITLES}.length === 1")
        assert page.run(TITLES) == ["Sun"]  # the open one, in memory
        page.run("document.getElementById('system').value = 'A secret.'")
        page.run("document.getElementById('settings').dispatchEvent(new Event('change'))")
        assert "secret" not in page.run("JSON.stringify(localStorage)")
        load_again(page)
        assert "Page.javascriptDialogOpening" in page.methods  # asked before the page was left
        assert page.run(TITLES) == []
        assert not page.run("document.getElementById('keep').checked")

    def test_the_switch_holds_in_every_tab(self, page, server):
        converse(page, server, "Moon", "Sun")
        address = page.run("location.href")
        with page.other_tab() as change:
            page.size(1280, 800)
            page.open(address)
            assert page.run(TITLES) == ["Sun", "Moon"]
            page.click("Moon")
            page.until(f"{REPLY} === 'About moon.'")
            change()
            page.run("document.getElementById('keep').click()")
            confirm(page, "Delete them")
            page.until(f"{TITLES}.length === 1")
            change()
            page.until(f"!document.getElementById('keep').checked && {TITLES}.length === 1")
            page.ask("More")
            page.until(f"document.querySelectorAll('article').length === 4 && {DONE}")
            page.run("document.getElementById('theme').dispatchEvent(new Event('change', { bubbles: true }))")
            assert page.run("JSON.parse(localStorage['earthshine.settings']).keep") is False
            assert self.count(page) == 0
            page.run("document.getElementById('keep').click()")
            change()
            page.until("document.getElementById('keep').checked")
            change()
        page.until(f"{TITLES}.length === 2")

    def test_a_reply_that_is_written_while_all_is_deleted_is_not_kept(self, page, server):
        converse(page, server, "Moon")
        page.run("""(async () => {
          const { state } = await import("/state.js"), record = state.conversation.record();
          const deleted = state.library.forget(record);
          await state.library.save(state.conversation.record());
          await deleted;
        })()""")
        assert self.count(page) == 0
        assert page.run("import('/state.js').then(({ state }) => state.library.unsaved)") == 1

    def test_a_deletion_that_fails_is_said_and_changes_nothing(self, page, server):
        converse(page, server, "Moon", "Sun")
        page.run("IDBObjectStore.prototype.clear = () => { throw new DOMException('', 'UnknownError') }")
        page.run("document.getElementById('keep').click()")
        confirm(page, "Delete them")
        page.until(f"{KEPT}.textContent.includes('did not delete')")
        assert page.run("document.getElementById('keep').checked")
        assert page.run(TITLES) == ["Sun", "Moon"]
        load_again(page)
        assert page.run(TITLES) == ["Sun", "Moon"]

    def count(self, page):
        """How many conversations the browser's database holds."""
        return stored(
            page,
            "const all = await opened(indexedDB.open('earthshine'));"
            " return opened(all.transaction('conversations').objectStore('conversations').count())",
        )

    def test_keys_wait_for_an_open_dialog(self, page, server):
        converse(page, server, "Moon", "Sun")
        page.click("Delete", "document.querySelector('.question')")
        page.until("document.getElementById('dialog').open")
        for code, shift in (("KeyO", True), ("KeyK", False)):
            page.run(
                f"document.dispatchEvent(new KeyboardEvent('keydown', {{ code: '{code}', ctrlKey: true,"
                f" shiftKey: {json.dumps(shift)}, bubbles: true, cancelable: true }}))"
            )
        assert page.run("document.querySelectorAll('article').length") == 2
        assert not page.run("document.body.classList.contains('menu')")
        confirm(page, "Delete")
        page.until("document.querySelectorAll('article').length === 0")
        page.click("Moon")
        page.until(f"{REPLY} === 'About moon.'")


class TestFiles:
    def test_json_comes_back_as_it_was(self, page, server):
        converse(page, server, "Moon")
        page.click("Regenerate")
        page.until("document.querySelector('.versions:not([hidden])') && " + DONE)
        name, text = exported(page, "Save as JSON")
        assert name == "Moon.json"
        assert imported(page, text).startswith("1 conversation imported.")
        page.until(f"{TITLES}.length === 2")
        page.click("Moon", "document.getElementById('titles')", last=True)
        page.until("document.querySelector('.versions:not([hidden])').textContent.includes('2 of 2')")

    def test_markdown_is_the_path_that_is_shown(self, page, server):
        server.steps = [chunk(reasoning_content="I\nthink"), chunk(content="```py\n1\n```"), chunk("stop")]
        page.ask("Code?")
        page.until(DONE)
        name, text = exported(page, "Save as Markdown")
        assert name.split(".") == ["Code", "md"]
        assert text == "# Code?\n\n## You\n\nCode?\n\n## Reply\n\n> I\n> think\n\n```py\n1\n```\n"

    def test_all_conversations_at_once(self, page, server):
        converse(page, server, "Moon", "Sun")
        name, text = exported(page, "Export all")
        assert name == "earthshine-conversations.json"
        assert sorted(each["name"] for each in json.loads(text)["conversations"]) == ["Moon", "Sun"]
        assert imported(page, text).startswith("2 conversations imported.")
        page.until(f"{TITLES}.length === 4")

    def test_two_conversations_with_one_id_stay_two(self, page):
        records = [{"id": "same", "messages": [{"role": "user", "content": name}]} for name in ("One", "Two")]
        assert imported(page, json.dumps(records)).startswith("2 conversations imported.")
        page.until(f"{TITLES}.length === 2")
        assert sorted(page.run(TITLES)) == ["One", "Two"]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("no json", "holds no conversations"),
            ("3", "0 conversations imported; 1 could not be read"),
            ('{"conversations": [{"messages": 1}, {"format": 99, "messages": []}]}', "0 conversations imported; 2"),
            ('{"messages": [{"role": "user", "content": [1]}]}', "1 could not be read"),
            ('{"format": 1, "messages": [{"id": "a", "parent": "b", "role": "user"}]}', "1 could not be read"),
            (
                '{"format": 1, "messages": [{"id": "a", "role": "user"}, {"id": "b", "parent": "a", "role": "user"},'
                ' {"id": "a", "parent": "b", "role": "user"}]}',
                "1 could not be read",
            ),
            ('{"messages": [{"role": "system"}, {"role": "user", "content": "Hi"}]}', "1 conversation im"),
        ],
    )  # fmt: skip
    def test_a_file_from_elsewhere(self, page, text, words):
        assert words in imported(page, text)
