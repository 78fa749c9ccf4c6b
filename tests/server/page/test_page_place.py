"""Where the reader is, what is typed and not sent, how full the context is; keys and files that are dropped."""

from .conftest import DONE, chunk

END = "document.getElementById('end')"
ATTACHED = "[...document.querySelectorAll('#attached span')].map((place) => place.textContent)"


class TestPlace:
    def test_a_button_leads_to_the_end(self, page, server):
        server.steps = [chunk(content="line\n\n" * 200), chunk("stop")]
        page.ask("Long")
        page.until(DONE)
        assert page.run(f"{END}.hidden")
        page.run("document.getElementById('log').scrollTop = 0")
        page.until(f"!{END}.hidden")
        page.click("To the end")
        page.until(f"{END}.hidden")
        assert page.run("document.activeElement.id") == "log"
        log = "document.getElementById('log')"
        assert page.run(f"{log}.scrollHeight - {log}.scrollTop - {log}.clientHeight") < 2

    def test_how_much_of_the_context_is_used_is_said_after_a_reply(self, page):
        page.ask("What is earthshine?")
        page.until(DONE)
        assert "168 of 262,144 tokens of context used" in page.run("document.querySelector('.reply .meta').textContent")


class TestInput:
    def test_unsent_text_is_there_after_loading_again(self, page, server):
        page.ask("One")
        page.until(DONE)
        page.type("half a question")
        page.click("Edit")
        page.type(" and more")
        page.open(page.run("location.href"))
        assert page.run("document.getElementById('question').value") == "half a question"
        page.ask("")
        page.until(f"document.querySelectorAll('.reply').length === 2 && {DONE}")
        assert server.asked[-1]["messages"][-1]["content"] == "half a question"
        page.open(page.run("location.href"))
        assert page.run("document.getElementById('question').value") == ""

    def test_keys_begin_a_conversation_and_the_search(self, page):
        page.ask("One")
        page.until(DONE)
        press = "document.dispatchEvent(new KeyboardEvent('keydown', {{ code: '{}', ctrlKey: true, shiftKey: {} }}))"
        page.run(press.format("KeyO", "true"))
        page.until("document.querySelectorAll('article').length === 0")
        page.run(press.format("KeyK", "false"))
        assert page.run("document.activeElement.id") == "search"

    def test_a_file_that_is_dropped_is_added(self, page, server):
        page.run(
            "(() => { const data = new DataTransfer(); data.items.add(new File(['tides'], 'notes.txt'));"
            " document.getElementById('composer').dispatchEvent(new DragEvent('drop',"
            " { dataTransfer: data, bubbles: true, cancelable: true })); })()"
        )
        page.until(f"{ATTACHED}.length === 1")
        assert page.run(ATTACHED) == ["notes.txt, 5 characters"]
        page.ask("What is in it?")
        page.until(DONE)
        assert server.asked[-1]["messages"][0]["content"] == "What is in it?\n\nnotes.txt:\n\n```\ntides\n```"
        assert page.complaints() == []
