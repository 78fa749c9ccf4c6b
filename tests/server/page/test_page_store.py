"""The browser's store in trouble: full, blocked, of another version, or written by two tabs."""

import json

import pytest

from .conftest import DONE, REPLY, chunk
from .test_page_library import KEPT, TITLES, converse, load_again, stored


class TestTrouble:
    def test_a_full_store_is_said_and_the_page_goes_on(self, page, server):
        origin = page.run("location.origin")
        page.call("Storage.overrideQuotaForOrigin", origin=origin, quotaSize=1)
        server.steps = [chunk(content="x" * 100_000), chunk("stop")]
        page.ask("Much")
        page.until(f"{DONE} && {KEPT}.textContent.includes('storage is full')")
        page.call("Storage.overrideQuotaForOrigin", origin=origin)
        page.ask("More")
        page.until(f"{DONE} && {KEPT}.hidden")
        load_again(page)
        assert page.run("document.querySelectorAll('article').length") == 4

    def test_what_the_full_store_refused_is_tried_again_with_the_next_conversation(self, page, server):
        page.run("""(() => {
          const put = IDBObjectStore.prototype.put;
          IDBObjectStore.prototype.put = function (value) {
            if (value.name === "Moon" && !window.room) throw new DOMException("", "QuotaExceededError");
            return put.call(this, value);
          };
        })()""")
        converse(page, server, "Moon", "Sun")
        page.until(f"{KEPT}.textContent.includes('storage is full')")
        unsaved = "(await import('/state.js')).state.library.unsaved"
        page.run(f"(async () => {{ while ({unsaved} !== 1) await new Promise((next) => setTimeout(next)); }})()")
        assert "storage is full" in page.run(f"{KEPT}.textContent")
        page.run("window.room = true")
        page.ask("More")
        page.until(f"document.querySelectorAll('article').length === 4 && {DONE} && {KEPT}.hidden")
        page.run(f"(async () => {{ while ({unsaved}) await new Promise((next) => setTimeout(next)); }})()")
        load_again(page)
        assert sorted(page.run(TITLES)) == ["Moon", "Sun"]

    def test_a_tab_without_any_storage_works(self, page, server):
        blocked = page.call(
            "Page.addScriptToEvaluateOnNewDocument",
            source="""for (const name of ["sessionStorage", "localStorage", "indexedDB"])
              Object.defineProperty(window, name, { get() { throw new DOMException("", "SecurityError") } });""",
        )
        page.open(page.run("location.href"))
        page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=blocked["identifier"])
        converse(page, server, "Moon", "Sun")
        server.key = "secret"
        page.until("!document.getElementById('key').hidden")
        page.run("document.getElementById('secret').focus()")
        page.type("secret")
        page.press("Enter")
        page.ask("With a key?")
        page.until(f"document.querySelectorAll('article').length === 4 && {DONE}")
        assert len(server.asked) == 3

    def test_a_store_of_a_newer_page_is_left_alone(self, page, server):
        stored(
            page,
            "(await opened(indexedDB.open('earthshine', 99))).close()",
        )
        load_again(page)
        page.until(f"{KEPT}.textContent.includes('newer version')")
        server.steps = [chunk(content="yes"), chunk("stop")]
        page.ask("Still there?")
        page.until(DONE)
        assert page.run(TITLES) == ["Still there?"]
        assert stored(page, "const all = await opened(indexedDB.open('earthshine')); return all.version") == 99

    def test_records_of_older_and_unknown_forms(self, page, server):
        converse(page, server, "Moon")
        stored(
            page,
            """const all = await opened(indexedDB.open('earthshine'));
          const change = all.transaction(['conversations', 'titles'], 'readwrite');
          const asked = { role: 'user', content: 'Old question' }, said = { role: 'assistant', content: 'Old reply' };
          const old = { id: 'old', messages: [asked, said] };
          change.objectStore('conversations').put(old);
          change.objectStore('titles').put({ id: 'old', name: 'Older', changed: 2 });
          change.objectStore('conversations').put({ id: 'odd', messages: 'none', format: 99 });
          change.objectStore('titles').put({ id: 'odd', name: 'Odd', changed: 1 });
          await new Promise((done) => (change.oncomplete = done));
          all.close();""",
        )
        load_again(page)
        page.click("Odd")
        page.until(f'{KEPT}.textContent.includes("can\'t read")')
        page.run("document.getElementById('search').focus()")
        page.type("question")
        page.until(f"{TITLES}.length === 1")
        page.click("Older")
        page.until(f"{REPLY} === 'Old reply'")
        server.steps = [chunk(content="New reply"), chunk("stop")]
        page.ask("New question")
        page.until(DONE)
        assert [message["content"] for message in server.asked[-1]["messages"]] == [
            "Old question",
            "Old reply",
            "New question",
        ]
        kept = stored(
            page,
            "const all = await opened(indexedDB.open('earthshine'));"
            " return opened(all.transaction('conversations').objectStore('conversations').get('odd'))",
        )
        assert kept["messages"] == "none"

    def test_without_a_database_the_tab_keeps_them(self, page, server):
        blocked = page.call(
            "Page.addScriptToEvaluateOnNewDocument",
            source="IDBFactory.prototype.open = () => { throw new DOMException('', 'SecurityError') }",
        )
        load_again(page)
        assert "does not let the page keep" in page.run(f"{KEPT}.textContent")
        converse(page, server, "Moon", "Sun")
        page.click("Moon")
        page.until(f"{REPLY} === 'About moon.'")
        page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=blocked["identifier"])

    def test_two_tabs_do_not_lose_each_others_messages(self, page, server):
        converse(page, server, "Moon")
        merged = page.run("""(async () => {
          const { state } = await import("/state.js"), { Conversation } = await import("/conversation.js");
          const other = Conversation.from(state.conversation.record());
          other.add("user", "from another tab");
          await state.library.save(other.record());
          state.conversation.add("user", "from this tab");
          await state.library.save(state.conversation.record());
          const found = await state.library.open(other.id);
          return [...found.messages.values()].map((message) => message.content).sort();
        })()""")
        assert merged == ["About moon.", "Moon", "from another tab", "from this tab"]

    def test_a_name_that_another_tab_gave_holds(self, page, server):
        converse(page, server, "Moon")
        names = page.run("""(async () => {
          const { save, state } = await import("/state.js"), { Conversation } = await import("/conversation.js");
          const { conversation, library } = state, other = Conversation.from(conversation.record());
          const listed = async () => (await library.titles())[0].name;
          const names = async () => [(await library.open(other.id)).name, await listed(), conversation.name];
          Object.assign(other, { title: "Star", titled: 1000 });
          await library.save(other.record());
          conversation.add("user", "a message of this tab");
          await save();
          const found = [await names()];
          Object.assign(conversation, { title: "Sun", titled: 2000 });
          await save();
          other.add("user", "a message of the other tab");
          await library.save(other.record());
          return [...found, await names()];
        })()""")
        assert names == [["Star"] * 3, ["Sun"] * 3]

    def test_a_reply_that_another_tab_wrote_further_is_kept(self, page, server):
        converse(page, server, "Moon")
        kept = page.run("""(async () => {
          const { save, state } = await import("/state.js"), { Conversation } = await import("/conversation.js");
          const { conversation, library } = state, reply = conversation.path().at(-1);
          Object.assign(reply, { content: "Ab", stream: { id: "one", from: [0, 0], asked: 1 } });
          const other = Conversation.from(conversation.record()), contents = [];
          for (const [tab, content, stream] of [[other, "About", undefined], [conversation, "Abo", reply.stream],
                                                [conversation, "About all", reply.stream]]) {
            Object.assign(tab.path().at(-1), { content, stream });
            await library.save(tab.record());
            contents.push((await library.open(tab.id)).path().at(-1).content);
          }
          return contents;
        })()""")
        assert kept == ["About", "About", "About all"]

    @pytest.mark.parametrize("again", [False, True])
    def test_what_another_tab_added_below_a_deleted_message_is_kept_with_it(self, page, server, again):
        converse(page, server, "Moon")
        page.ask("Sun")
        page.until(f"document.querySelectorAll('article').length === 4 && {DONE}")
        kept = page.run(f"""(async () => {{
          const {{ state }} = await import("/state.js"), {{ Conversation }} = await import("/conversation.js");
          const {{ conversation, library }} = state, other = Conversation.from(conversation.record());
          const [, , question, reply] = conversation.path();
          other.choose(question);
          conversation.remove(question);
          await library.save(conversation.record());
          if (!{json.dumps(again)}) other.add("user", "below", reply.id);
          else other.add("assistant", "below", question.id);
          await library.save(other.record());
          conversation.add("user", "after");
          await library.save(conversation.record());
          const found = await library.open(other.id);
          found.leaf = [...found.messages.values()].find((each) => each.content === "below").id;
          return [found.path().map((message) => message.content), found.messages.size, found.removed.length];
        }})()""")
        below = ["Moon", "About moon.", "Sun", *([] if again else ["About moon."]), "below"]
        assert kept == [below, len(below) + 1, int(again)]  # and "after", on a path of its own
