"""Waiting that can be seen: the queue, the prompt with its time to go, thoughts, and the rate of this reply."""

import threading

from .conftest import DONE, WRONG, chunk

STATE = "document.querySelector('.reply .state')"
THOUGHT = "document.querySelector('.thought summary').textContent"
META = "document.querySelector('.reply .meta').textContent"
BAR = "document.querySelector('.reply .bar')"


def reading(total, cache, processed, milliseconds):
    progress = {"total": total, "cache": cache, "processed": processed, "time_ms": milliseconds}
    return chunk(role="assistant", content=None) | {"prompt_progress": progress}


class TestProgress:
    def test_each_phase_says_what_it_is(self, page, server):
        holds = [threading.Event() for _ in range(5)]
        server.steps = [
            holds[0], chunk(role="assistant", content=""), holds[1],
            reading(10_000, 1000, 1000, 0), reading(10_000, 1000, 4000, 20_000), holds[2],
            chunk(reasoning_content="a"), chunk(reasoning_content="b"), holds[3],
            chunk(content="c"), holds[4], chunk("stop"),
        ]  # fmt: skip
        page.ask("Long")
        page.until(f'{STATE}.textContent.startsWith("In the server\'s queue: ")')
        server.gauges["waiting"] = 0
        page.until(f"{STATE}.textContent.startsWith('Waiting for the server: ')")
        holds[0].set()
        page.until(f"/^Reading the prompt: [0-9]+ s$/.test({STATE}.textContent)")
        assert page.run(f"{BAR}.hidden")
        holds[1].set()
        page.until(f"{STATE}.textContent.startsWith('Reading the prompt: 40%, about ')")
        seconds = int(page.run(f"{STATE}.textContent").split()[-2])
        assert 0 < seconds <= 40
        assert page.run(f"{BAR}.ariaValueNow") == "40"
        assert ("progressbar", "Reading the prompt") in page.tree()
        holds[2].set()
        page.until(f"{THOUGHT}.startsWith('Thinking: 2 tokens, ')")
        assert page.run(f"{STATE}.hidden")
        page.run("window.began = performance.now()")
        page.until("performance.now() > began + 200")  # a rate needs some time to divide by
        holds[3].set()
        page.until(f"{THOUGHT}.startsWith('Thought: 2 tokens, ')")
        page.until(f"/^3 tokens, [0-9.]+ per second$/.test({META})")
        holds[4].set()
        page.until(DONE)

    def test_words_of_the_time_to_go(self, page):
        code = """(async () => {
          const { duration, Progress } = await import("/progress.js"), said = [];
          for (const [total, cache, processed, time, left] of %s) {
            const progress = new Progress();
            progress.take({ prompt_progress: { total, cache, processed, time_ms: time, left_ms: left } }, {});
            said.push(progress.reading(0).text);
          }
          return [said, [0.2, 59, 60, 3599, 3600, 5400, 86400].map(duration)];
        })()"""
        cases = [[1000, 0, 340, 20_604], [1000, 340, 340, 0], [1000, 0, 1000, 9], [4000, 0, 10, 60_000], [0, 0, 0, 0],
                 [1000, 0, 340, 20_604, 90_000], [1000, 340, 340, 0, 30_000]]  # fmt: skip
        said, durations = page.run(code % cases)
        assert said == [
            "Reading the prompt: 34%, about 40 s", "Reading the prompt: 34%",
            "The prompt is read; the first word comes next", "Reading the prompt: 0%, about 6 h 39 min",
            "Reading the prompt: 1 s",
            "Reading the prompt: 34%, about 2 min", "Reading the prompt: 34%, about 30 s",
        ]  # fmt: skip
        assert durations == ["1 s", "59 s", "1 min", "1 h", "1 h", "1 h 30 min", "24 h"]

    def test_a_slow_model_is_kept_while_it_writes(self, page, server):
        """A tab that is closed in the middle of a reply of hours loses seconds of it."""
        hold = threading.Event()
        server.steps = [chunk(content="the first words"), hold, chunk("stop")]
        page.ask("Slow")
        page.until("document.querySelector('.reply .text').textContent === 'the first words'")
        page.run("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
        page.run("document.dispatchEvent(new Event('visibilitychange'))")
        page.until("""import("/state.js").then(async ({ state: { library, conversation } }) =>
          (await library.open(conversation.id)).path().at(-1).content === "the first words")""")
        page.open(page.run("location.href"))
        page.until(f"{DONE} && {WRONG}")  # this server does not keep it
        assert page.run("document.querySelector('.reply .text').textContent") == "the first words"
        assert page.run(f"{WRONG}.textContent") == (
            "The server no longer has the rest of this reply. Try again."
            " What it wrote is kept; Continue goes on from there."
        )
        hold.set()
