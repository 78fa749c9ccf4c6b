"""The scheduler against single sessions: whatever else runs, each reply is what it would be alone."""

import time

import numpy as np
import pytest

from earthshine.engine import Admitted, Failed, Finished, PromptScores, Request, SamplingParams, Session, TokenEvent
from earthshine.engine.pace import Pace, fair_shares
from earthshine.engine.reply import Reply
from earthshine.engine.scheduler import Scheduler
from earthshine.errors import EarthshineError
from earthshine.kv import BlobLayout, LatentFormat, PageFiles, PageKeys, PagePool, PrefixCache

from .conftest import CONTEXT, SPEC, STOP, VOCAB, FakeDecoder

PAGE = 4
LAYOUT = BlobLayout("fake-1", LatentFormat.BF16, SPEC.n_layers, 4, 2)
PROMPTS = [
    [(i * step + 3) % (VOCAB - 1) for i in range(length)] for step, length in ((5, 9), (7, 21), (11, 1), (3, 30))
]


class Bench:
    """A scheduler, and what each request was told."""

    def __init__(self, n_pages: int = 64, most: int = 8, files: PageFiles | None = None, **options) -> None:
        self.decoder = options.pop("decoder", None) or FakeDecoder()
        self.pool = PagePool(SPEC.n_layers, SPEC.latent_dim, PAGE, n_pages, self.decoder.dtype)
        self.cache = PrefixCache(self.pool, files, keep_all=options.pop("keep_all", True))
        settings = {"context_tokens": CONTEXT, "prefill_tokens": 16, "max_stall": 1.0} | options
        self.scheduler = Scheduler(self.decoder, self.pool, self.cache, most=most, **settings)
        self.told: list[list] = []
        self.replies: list[Reply] = []

    def ask(self, tokens: list[int], max_tokens: int = 6, tenant: str = "", priority: int = 0, **params) -> list:
        extra = {key: params.pop(key) for key in ("constraint", "prompt_logprobs") if key in params}
        sampling = SamplingParams(**({"temperature": 0.0, "max_tokens": max_tokens} | params))
        told: list = []
        request = Request(tokens, sampling, tenant, priority, **extra)
        self.replies.append(Reply(len(self.told), request, told.append, PAGE, frozenset({STOP})))
        self.told.append(told)
        self.scheduler.add(self.replies[-1])
        return told

    def run(self, turns: int = 10_000) -> None:
        for _ in range(turns):
            if not self.scheduler.busy:
                return
            self.scheduler.turn()
        assert turns < 10_000, "the scheduler does not come to an end"

    def nothing_is_held(self) -> None:
        self.cache.settle()
        self.cache.clear()
        assert self.pool.free_pages == self.pool.n_pages


def alone(tokens: list[int], max_tokens: int = 6, **params) -> list:
    pool = PagePool(SPEC.n_layers, SPEC.latent_dim, PAGE, 64, FakeDecoder().dtype)
    session = Session(FakeDecoder(), pool, fingerprint="fake-1", context_tokens=CONTEXT)
    session.sync(tokens)
    return list(session.generate(SamplingParams(**({"temperature": 0.0, "max_tokens": max_tokens} | params))))


def reply(told: list) -> list:
    return [event for event in told if isinstance(event, TokenEvent | Finished | Failed)]


def test_replies_together_are_what_they_are_alone():
    bench = Bench(prefill_tokens=7)
    told = [bench.ask(prompt, max_tokens=3 + 2 * i) for i, prompt in enumerate(PROMPTS)]
    bench.run()
    for i, prompt in enumerate(PROMPTS):
        assert reply(told[i]) == alone(prompt, 3 + 2 * i)
        assert told[i][0] == Admitted(0)
    counts = bench.scheduler.counts
    assert counts.prompt_tokens == counts.prefix_queries == sum(map(len, PROMPTS))
    assert counts.generated_tokens == sum(len(reply(each)) for each in told) - sum(
        each[-1].reason != "stop" for each in told
    )
    assert bench.scheduler.pace.decode_seconds > 0
    bench.nothing_is_held()


def test_a_request_that_arrives_later_changes_nothing_for_others():
    bench = Bench()
    first = bench.ask(PROMPTS[1], 12)
    bench.run(3)
    second = bench.ask(PROMPTS[3], 5)
    bench.run()
    assert reply(first) == alone(PROMPTS[1], 12)
    assert reply(second) == alone(PROMPTS[3], 5)


def test_decoding_replies_share_a_step():
    bench = Bench()
    for prompt in PROMPTS:
        bench.ask(prompt, 12, ignore_stop=True)
    bench.run()
    assert [len(tokens) for tokens in bench.decoder.steps].count(len(PROMPTS)) >= 2


def test_a_prefix_is_computed_once():
    bench = Bench()
    bench.ask(PROMPTS[1])
    bench.run()
    again = bench.ask(PROMPTS[1] + [1, 2])
    other = bench.ask(PROMPTS[1][:10])
    bench.run()
    assert again[0] == Admitted(24 - 24 % PAGE if len(PROMPTS[1]) >= 24 else 20)
    assert other[0] == Admitted(8)
    assert reply(again) == alone(PROMPTS[1] + [1, 2])
    assert reply(other) == alone(PROMPTS[1][:10])


def test_what_a_reply_said_is_a_prefix_too():
    bench = Bench()
    first = bench.ask(PROMPTS[0], 8)
    bench.run()
    said = [event.token for event in first if isinstance(event, TokenEvent)]
    whole = PROMPTS[0] + said + [1]
    again = bench.ask(whole)
    bench.run()
    assert again[0].reused >= (len(whole) - 2) // PAGE * PAGE
    assert reply(again) == alone(whole)


def test_the_last_token_is_computed_even_if_all_pages_are_there():
    bench = Bench()
    tokens = PROMPTS[3][:16]
    bench.ask(tokens)
    bench.run()
    again = bench.ask(tokens)
    bench.run()
    assert again[0] == Admitted(12)
    assert reply(again) == alone(tokens)


def test_tenants_share_nothing():
    bench = Bench()
    bench.ask(PROMPTS[1], tenant="one")
    bench.run()
    other = bench.ask(PROMPTS[1], tenant="other")
    bench.run()
    assert other[0] == Admitted(0)


def test_equal_prompts_at_once_are_computed_once():
    bench = Bench(prefill_tokens=8)
    told = [bench.ask(PROMPTS[3], 4) for _ in range(4)]
    bench.run()
    assert [each[0].reused for each in told] == [0, 28, 28, 28]
    assert all(reply(each) == alone(PROMPTS[3], 4) for each in told)
    prompt_tokens = sum(len(tokens) for tokens in bench.decoder.steps) - 4 * 3
    assert prompt_tokens == 30 + 3 * 2


def test_no_more_run_than_may():
    bench = Bench(most=2)
    for prompt in PROMPTS:
        bench.ask(prompt, 6)
    while bench.scheduler.busy:
        bench.scheduler.turn()
        assert len(bench.scheduler.running) <= 2
    assert all(reply(told) == alone(prompt, 6) for told, prompt in zip(bench.told, PROMPTS, strict=True))


@pytest.mark.parametrize("n_pages", [16, 18, 20])
def test_replies_give_way_when_pages_run_out_and_go_on(n_pages):
    """Four replies of up to 60 tokens, 15 pages each."""
    bench = Bench(n_pages=n_pages)
    for prompt in PROMPTS:
        bench.ask(prompt, 30, ignore_stop=True)
    bench.run()
    assert bench.scheduler.counts.preemptions > 0
    for told, prompt in zip(bench.told, PROMPTS, strict=True):
        assert reply(told) == alone(prompt, 30, ignore_stop=True)
        assert sum(isinstance(event, Admitted) for event in told) == 1
    bench.nothing_is_held()


def test_a_reply_that_gave_way_finds_its_pages_on_disk(tmp_path):
    files = PageFiles(tmp_path, LAYOUT, PAGE, 1 << 20)
    bench = Bench(n_pages=16, files=files, keep_all=False)
    for prompt in PROMPTS:
        bench.ask(prompt, 30, ignore_stop=True)
    bench.run()
    assert files.stats.pages_read > 0
    for told, prompt in zip(bench.told, PROMPTS, strict=True):
        assert reply(told) == alone(prompt, 30, ignore_stop=True)
    files.close()


def test_a_prefix_comes_back_from_disk_after_a_restart(tmp_path):
    for run in range(2):
        files = PageFiles(tmp_path, LAYOUT, PAGE, 1 << 20)
        bench = Bench(files=files)
        told = bench.ask(PROMPTS[3])
        bench.run()
        assert told[0] == Admitted(28 if run else 0)
        assert reply(told) == alone(PROMPTS[3])
        assert files.flush(10)
        files.close()
    assert files.stats.pages_read == 7


def test_a_prompt_that_gives_way_before_its_pages_are_read_counts_once(tmp_path):
    files = PageFiles(tmp_path, LAYOUT, PAGE, 1 << 20)
    bench = Bench(files=files)
    bench.ask(PROMPTS[3])
    bench.run()
    files.flush(10)
    bench.cache.settle()
    bench.cache.clear()
    bench.ask(PROMPTS[3])
    bench.scheduler._admit()
    bench.scheduler._preempt(bench.replies[1])
    bench.run()
    assert bench.scheduler.counts.prefix_queries == 2 * len(PROMPTS[3])
    assert bench.scheduler.counts.prefix_hits == 28
    files.close()


def test_a_damaged_page_is_computed_again(tmp_path):
    files = PageFiles(tmp_path, LAYOUT, PAGE, 1 << 20)
    bench = Bench(files=files)
    bench.ask(PROMPTS[3])
    bench.run()
    files.flush(10)
    bench.cache.settle()
    bench.cache.clear()
    third = bench.replies[0].keys(12)[2]
    (path,) = tmp_path.rglob(f"{third.key.hex()}*")
    raw = bytearray(path.read_bytes())
    raw[-40] ^= 1
    path.write_bytes(raw)
    again = bench.ask(PROMPTS[3])
    bench.run()
    assert again[0] == Admitted(8)
    assert reply(again) == alone(PROMPTS[3])
    assert files.stats.damaged == 1
    files.close()


def test_lower_numbers_go_first_and_push_others_aside():
    bench = Bench(most=1)
    slow = bench.ask(PROMPTS[0], 20, priority=5, ignore_stop=True)
    bench.run(3)
    soon = bench.ask(PROMPTS[2], 3, priority=1)
    late = bench.ask(PROMPTS[2][:1], 3, priority=9)
    ended: list[int] = []
    while bench.scheduler.busy:
        bench.scheduler.turn()
        ended += [i for i, r in enumerate(bench.replies) if r.ended and i not in ended]
    assert ended == [1, 0, 2]
    assert bench.scheduler.counts.preemptions == 1
    assert reply(slow) == alone(PROMPTS[0], 20, ignore_stop=True)
    assert reply(soon) == reply(late) == alone(PROMPTS[2], 3)


def test_a_cancelled_reply_ends_within_a_step():
    bench = Bench()
    told, other = bench.ask(PROMPTS[0], 20, ignore_stop=True), bench.ask(PROMPTS[1], 8)
    bench.run(4)
    bench.replies[0].cancelled = True
    bench.scheduler.turn()
    assert told[-1] == Finished("cancelled")
    assert not [event for event in told[:-1] if isinstance(event, Finished)]
    bench.run()
    assert reply(other) == alone(PROMPTS[1], 8)
    bench.nothing_is_held()


def test_a_sweep_that_nobody_waits_for_is_left():
    bench = Bench()

    def cancel() -> None:
        bench.replies[0].cancelled = True

    bench.scheduler._poll = cancel
    told = bench.ask(PROMPTS[3])
    bench.run(1)
    assert told == [Admitted(0), Finished("cancelled")]
    assert not bench.scheduler.busy
    bench.nothing_is_held()


def test_waiting_requests_can_be_cancelled():
    bench = Bench(most=1)
    bench.ask(PROMPTS[0])
    waiting = bench.ask(PROMPTS[1])
    bench.replies[1].cancelled = True
    bench.run()
    assert waiting == [Finished("cancelled")]


def test_who_writes_takes_steps_between_the_layers_of_a_long_sweep():
    bench = Bench(prefill_tokens=64, max_stall=0.02)
    bench.ask(PROMPTS[2], 40, ignore_stop=True)
    bench.run(3)
    slow, plain = bench.decoder.hidden, type(bench.decoder).hidden

    def hidden(tokens, positions, context, after_layer=None):
        def after(layer: int) -> None:
            if len(tokens) > 1:
                time.sleep(0.03)
            after_layer(layer)

        return plain(bench.decoder, tokens, positions, context, after)

    bench.decoder.hidden = hidden
    long = bench.ask(PROMPTS[3], 2)
    bench.scheduler.pace.swept(64, 10.0)
    bench.scheduler.turn()
    assert [len(tokens) for tokens in bench.decoder.steps[-4:]] == [30, 1, 1, 1]
    bench.decoder.hidden = slow
    bench.run()
    assert reply(bench.told[0]) == alone(PROMPTS[2], 40, ignore_stop=True)
    assert reply(long) == alone(PROMPTS[3], 2)


def test_who_writes_rides_along_where_the_sweep_is_short():
    bench = Bench(max_stall=60.0)
    bench.scheduler.pace.swept(64, 0.001)
    bench.ask(PROMPTS[2], 9, ignore_stop=True)
    bench.run(2)
    bench.ask(PROMPTS[3], 2)
    bench.scheduler.turn()
    assert len(bench.decoder.steps[-1]) == 16


def test_a_failed_step_ends_only_whom_it_concerns():
    class Broken(FakeDecoder):
        def hidden(self, tokens, positions, context, after_layer=None):
            if 17 in tokens.tolist():
                raise RuntimeError("the disk is gone")
            return super().hidden(tokens, positions, context, after_layer)

    bench = Bench(decoder=Broken())
    good, bad = bench.ask([1, 2, 3], 1), bench.ask([4, 17, 5], 4)
    bench.run()
    assert reply(good) == alone([1, 2, 3], 1)
    assert isinstance(bad[-1], Failed)
    assert "RuntimeError" in str(bad[-1].error)
    bench.nothing_is_held()


@pytest.mark.parametrize("failures", [1, 2])
def test_logits_that_fail_end_only_whom_they_concern(failures):
    """The first call is for both replies; the second one for the first reply alone."""
    bench = Bench()
    working, calls = bench.decoder.logits, []

    def logits(hidden):
        calls.append(len(hidden))
        if len(calls) <= failures:
            raise OSError("the head can't be read")
        return working(hidden)

    bench.decoder.logits = logits
    told = [bench.ask(tokens, 2) for tokens in ([1, 2, 3], [4, 5, 6])]
    bench.run()
    assert calls[:3] == [2, 1, 1]
    assert isinstance(told[0][-1], Failed) == (failures == 2)
    assert reply(told[1]) == alone([4, 5, 6], 2)
    bench.nothing_is_held()


def test_a_sink_that_fails_ends_its_reply_alone():
    bench = Bench()
    heard: list = []

    def deaf(event) -> None:
        heard.append(event)
        raise RuntimeError("nobody listens")

    params = SamplingParams(temperature=0.0, max_tokens=9, ignore_stop=True)
    bench.scheduler.add(Reply(-1, Request(PROMPTS[0], params), deaf, PAGE, frozenset({STOP})))
    other = bench.ask(PROMPTS[1])
    bench.run()
    assert heard[0] == Admitted(0)
    assert heard[-1] == Finished("cancelled")
    assert len(heard) <= 3
    assert reply(other) == alone(PROMPTS[1])
    bench.nothing_is_held()


def test_who_writes_does_not_wait_for_a_sweep_that_is_taken_again():
    """Two prompts fail together, and each of them is then swept alone."""

    class Together(FakeDecoder):
        def hidden(self, tokens, positions, context, after_layer=None):
            if len(tokens) == 51:
                raise RuntimeError("too many")
            return super().hidden(tokens, positions, context, after_layer)

    bench = Bench(decoder=Together(), prefill_tokens=64, max_stall=1e-9)
    bench.ask(PROMPTS[2], 40, ignore_stop=True)
    bench.run(3)
    for prompt in (PROMPTS[1], PROMPTS[3]):
        bench.ask(prompt, 2)
    bench.scheduler.pace.swept(64, 10.0)
    bench.scheduler.pace.decoded = lambda seconds: None
    bench.scheduler.pace.decode_seconds = 0.0
    bench.decoder.steps.clear()
    bench.scheduler.turn()
    assert [len(tokens) for tokens in bench.decoder.steps] == [21, 1, 1, 1, 30, 1, 1, 1]
    bench.run()
    assert reply(bench.told[1]) == alone(PROMPTS[1], 2)


def test_what_a_constraint_refuses_is_not_said():
    class Even:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def allowed(self):
            words = np.zeros(-(-VOCAB // 32), np.uint32)
            for token in range(0, VOCAB, 2):
                words[token // 32] |= np.uint32(1 << (token % 32))
            return words.view(np.int32)

        def accept(self, token: int) -> None:
            self.seen.append(token)

    bench = Bench()
    even = Even()
    told = bench.ask(PROMPTS[0], 8, constraint=even)
    bench.run()
    tokens = [event.token for event in told if isinstance(event, TokenEvent)]
    assert tokens == even.seen[: len(tokens)]
    assert all(token % 2 == 0 for token in tokens)


def test_a_constraint_that_fails_ends_its_reply_alone():
    class Failing:
        def allowed(self):
            raise EarthshineError("no such form")

        def accept(self, token: int) -> None: ...

    bench = Bench()
    told, other = bench.ask(PROMPTS[0], constraint=Failing()), bench.ask(PROMPTS[1])
    bench.run()
    assert str(told[-1].error) == "no such form"
    assert reply(other) == alone(PROMPTS[1])


def test_scores_of_a_prompt_are_a_sessions():
    bench = Bench(prefill_tokens=7)
    bench.ask(PROMPTS[3], 1)
    bench.run()
    told = bench.ask(PROMPTS[3], 2, prompt_logprobs=2)
    bench.ask(PROMPTS[1], 9)
    bench.run()
    scores = [score for event in told if isinstance(event, PromptScores) for score in event.scores]
    pool = PagePool(SPEC.n_layers, SPEC.latent_dim, PAGE, 64, FakeDecoder().dtype)
    expected = Session(FakeDecoder(), pool, fingerprint="x").score(PROMPTS[3])
    assert [score.token for score in scores] == PROMPTS[3][1:]
    assert [score.logprob for score in scores] == expected.tolist()
    assert all(len(score.top) == 2 for score in scores)
    assert told[0] == Admitted(0)
    assert reply(told) == alone(PROMPTS[3], 2)


def test_scores_are_told_once_even_if_the_prompt_begins_anew():
    bench = Bench(prefill_tokens=8)
    told = bench.ask(PROMPTS[3], 2, prompt_logprobs=0)
    bench.run(2)
    bench.scheduler._preempt(bench.replies[0])
    bench.run()
    scores = [score for event in told if isinstance(event, PromptScores) for score in event.scores]
    assert [score.token for score in scores] == PROMPTS[3][1:]
    assert reply(told) == alone(PROMPTS[3], 2)


class SlowFiles:
    """Writes a page whenever `work` is called."""

    def __init__(self) -> None:
        self.written: set[bytes] = set()
        self.jobs: list = []

    def __contains__(self, key: bytes) -> bool:
        return key in self.written

    def write(self, key, prior, start, tokens, latents, done) -> None:
        self.jobs.append((key, done))

    def used(self, keys) -> None: ...

    def work(self, seconds: float = 0.0) -> None:
        key, done = self.jobs.pop(0)
        self.written.add(key)
        done(True)


def cached(n_pages: int, files: SlowFiles, keep_all: bool) -> tuple[PagePool, PrefixCache, list, list[int]]:
    """A cache of four pages that are in use; and their keys and numbers."""
    pool = PagePool(SPEC.n_layers, SPEC.latent_dim, PAGE, n_pages, FakeDecoder().dtype)
    cache = PrefixCache(pool, files, keep_all=keep_all)
    keys, pages = PageKeys("", PAGE).of(list(range(4 * PAGE)), 4), pool.allocate(4)
    for key, page in zip(keys, pages, strict=True):
        cache.add(key, page, list(range(key.start, key.start + PAGE)))
    return pool, cache, keys, pages


def test_pages_that_are_in_use_are_no_room_even_while_they_are_written(monkeypatch):
    files = SlowFiles()
    pool, cache, _, pages = cached(5, files, keep_all=True)
    assert len(files.jobs) == 4
    assert (cache.room(), cache.idle_pages) == (1, 0)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("there is nothing to wait for"))
    assert not cache.make_room(2)
    pool.release(pages)
    assert (cache.room(), cache.idle_pages) == (5, 4)
    assert cache.room(besides=pages[:2]) == 3


def test_no_more_pages_go_to_disk_than_make_way(monkeypatch):
    files = SlowFiles()
    pool, cache, keys, pages = cached(4, files, keep_all=False)
    cache.touch(keys)
    cache.spill(keys)
    pool.release(pages)
    monkeypatch.setattr("time.sleep", files.work)
    assert cache.make_room(2)
    assert files.written == {keys[3].key, keys[2].key}
    assert not files.jobs
    assert cache.pages(keys) == pages[:2]


def test_nothing_is_forgotten_where_it_would_not_suffice():
    pool, cache, keys, pages = cached(4, SlowFiles(), keep_all=False)
    pool.release(pages[2:])
    assert not cache.make_room(3)
    assert cache.pages(keys) == pages


def test_a_context_that_is_full_ends_the_reply():
    bench = Bench(context_tokens=12)
    told = bench.ask(PROMPTS[0], 30, ignore_stop=True)
    bench.run()
    assert told[-1] == Finished("context")
    assert sum(isinstance(event, TokenEvent) for event in told) == 3


@pytest.mark.parametrize(
    ("wanted", "room", "shares"),
    [
        ([5, 100, 100], 45, [5, 20, 20]),
        ([1, 1, 1], 2, [1, 1, 0]),
        ([10], 64, [10]),
        ([100, 3, 50], 10, [4, 3, 3]),
        ([], 8, []),
        ([7, 7], 0, [0, 0]),
    ],
)
def test_shares_are_even_and_none_is_wasted(wanted, room, shares):
    assert fair_shares(wanted, room) == shares


def test_a_sweep_is_never_expected_shorter_than_seen():
    pace = Pace()
    assert pace.sweep_seconds(10) is None
    pace.swept(256, 2.0)
    assert pace.sweep_seconds(100) == 2.0
    assert pace.sweep_seconds(257) == 4.0
    assert pace.tokens_within(1.0) == 128
