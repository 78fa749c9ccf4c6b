"""The scheduler under whatever may come, drawn at random: each reply is what a lone session gives, or a part of it.

Time is counted, not measured, and files answer at once, later or never, so that every run can be repeated.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from earthshine.engine import Admitted, Failed, Finished, PromptScores, Session, TokenEvent
from earthshine.engine import scheduler as scheduler_module
from earthshine.engine import sequence as sequence_module
from earthshine.errors import ContextError
from earthshine.kv import PageKey, PageParts, PagePool
from earthshine.kv import prefix_cache as prefix_cache_module

from .conftest import CONTEXT, SPEC, VOCAB, FakeDecoder
from .scheduling import PAGE, Bench, alone, reply

STEMS = [[(i * step + 3) % (VOCAB - 1) for i in range(40)] for step in (5, 7)]
PARAMS = [{}, {"ignore_eos": True}, {"temperature": 1.0, "seed": 7, "presence_penalty": 1.0}]
LIMIT = CONTEXT // PAGE  # pages of one context
MOST_STEPS = 3000


@dataclass(frozen=True)
class Ask:
    at: int
    stem: int
    length: int
    tail: int  # a token of its own at the end
    max_tokens: int
    params: int
    tenant: str
    priority: int
    scores: bool
    cancel_at: int | None

    @property
    def tokens(self) -> list[int]:
        return [*STEMS[self.stem][: self.length], self.tail]


@dataclass(frozen=True)
class Case:
    asks: list[Ask]
    n_pages: int
    max_running: int
    prefill_tokens: int
    streams: bool
    tick: float  # seconds that pass whenever anyone looks at the clock
    broken_steps: frozenset[int]
    broken_logits: frozenset[int]
    files: str  # none, spill or keep
    answers: tuple[str, ...]  # of the files, in turn
    damaged: frozenset[int]  # reads
    deaf: bool  # whether the first one's sink raises


ASKS = st.builds(
    Ask,
    at=st.sampled_from([0, 0, 1, 5, 20, 60]),
    stem=st.integers(0, len(STEMS) - 1),
    length=st.sampled_from([0, 3, 8, 19, 24, 38]),
    tail=st.integers(0, 2),
    max_tokens=st.sampled_from([1, 6, 18, 30]),
    params=st.integers(0, len(PARAMS) - 1),
    tenant=st.sampled_from(["", "", "other"]),
    priority=st.sampled_from([0, 0, 0, 0, -1, 3]),
    scores=st.sampled_from([False, False, False, True]),
    cancel_at=st.one_of(st.none(), st.none(), st.integers(0, 200)),
)
NUMBERS = st.frozensets(st.integers(1, 40), max_size=6)
CASES = st.builds(
    Case,
    asks=st.lists(ASKS, min_size=2, max_size=7),
    n_pages=st.sampled_from([LIMIT, LIMIT, LIMIT + 1, LIMIT + 3, 2 * LIMIT]),
    max_running=st.integers(1, 5),
    prefill_tokens=st.integers(1, 24),
    streams=st.booleans(),
    tick=st.sampled_from([0.001, 0.05, 0.2]),
    broken_steps=st.one_of(st.just(frozenset()), NUMBERS),
    broken_logits=st.one_of(st.just(frozenset()), NUMBERS),
    files=st.sampled_from(["none", "spill", "keep", "keep"]),
    answers=st.lists(st.sampled_from(["late", "late", "now", "refused", "fails", "never"]), min_size=1, max_size=6).map(
        tuple
    ),
    damaged=st.one_of(st.just(frozenset()), NUMBERS),
    deaf=st.sampled_from([False, False, False, True]),
)


class Clock:
    """`time`, as the modules under test see it."""

    def __init__(self, tick: float) -> None:
        self.now, self._tick = 0.0, tick

    def monotonic(self) -> float:
        self.now += self._tick
        return self.now


class Files:
    """Pages on a disk that answers as `case` says. A page that changes while it is being written is an error."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._pages: dict[PageKey, tuple[list[int], list[torch.Tensor]]] = {}  # by key: tokens, rows
        self._jobs: list[Callable[[], None]] = []
        self._never: list[Callable[[], None]] = []
        self.writes = self.reads = 0

    def __contains__(self, key: PageKey) -> bool:
        return key in self._pages

    def used(self, keys: Sequence[PageKey]) -> None: ...

    def close(self) -> None: ...

    def has_state(self, key: PageKey) -> bool:
        return False

    def read(self, key: PageKey, tokens: Sequence[int]) -> PageParts | None:
        self.reads += 1
        if key not in self._pages or self.reads in self._case.damaged:
            self._pages.pop(key, None)
            return None
        own, layers = self._pages[key]
        assert own == list(tokens)
        event("a page was read")
        return PageParts(layers)

    def write(self, key, tokens, parts, done, *, with_state=False) -> None:
        answer = self._case.answers[self.writes % len(self._case.answers)]
        self.writes += 1
        before = [part.clone() for part in parts().rows]

        def finish() -> None:
            layers = [layer.clone() for layer in parts().rows]
            assert all(map(torch.equal, layers, before))
            if answer != "fails":
                self._pages[key] = (list(tokens), layers)
            done(answer != "fails")

        if answer == "now":
            finish()
        elif answer == "refused":
            done(False)
        else:
            (self._never if answer == "never" else self._jobs).append(finish)

    def work(self) -> None:
        if self._jobs:
            self._jobs.pop(0)()

    def end(self) -> None:
        for job in [*self._jobs, *self._never]:
            job()
        self._jobs, self._never = [], []


class Breaking(FakeDecoder):
    """Fails in the steps and logits that `case` names."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self._case, self._asked = case, 0

    def forward(self, tokens, positions, states, *, in_groups=False):
        if len(self.steps) + 1 in self._case.broken_steps:
            self.fail_at = len(self.steps) + 1
        return super().forward(tokens, positions, states, in_groups=in_groups)

    def logits(self, hidden):
        self._asked += 1
        if self._asked in self._case.broken_logits:
            raise OSError("the head can't be read")
        return super().logits(hidden)


class Run:
    """One case from its first request to an idle scheduler."""

    def __init__(self, case: Case) -> None:
        self.case, self._now = case, 0
        self.files = None if case.files == "none" else Files(case)
        self.bench = Bench(
            case.n_pages,
            case.max_running,
            self.files,
            decoder=Breaking(case),
            keep_all=case.files == "keep",
            threaded=False,
            prefill_tokens=case.prefill_tokens,
            streams=case.streams,
            poll=self._pass,
        )
        self._coming = sorted(case.asks, key=lambda ask: ask.at)
        self._asked: list[Ask] = []

    def _pass(self) -> None:
        """A layer or a step has passed."""
        self._now += 1
        if self.files is not None:
            self.files.work()
            self.bench.cache._reads.read_next()
        while self._coming and self._coming[0].at <= self._now:
            self._ask(self._coming.pop(0))
        for ask, asked in zip(self._asked, self.bench.sequences, strict=True):
            if ask.cancel_at is not None and ask.cancel_at <= self._now:
                asked.cancelled = True

    def _ask(self, ask: Ask) -> None:
        extra = {"prompt_logprobs": 1} if ask.scores else {}
        params = PARAMS[ask.params] | extra
        events = self.bench.ask(ask.tokens, ask.max_tokens, ask.tenant, ask.priority, **params)
        if self.case.deaf and not self._asked:

            def sink(generated) -> None:
                events.append(generated)
                raise RuntimeError("nobody listens")

            self.bench.sequences[-1]._sink = sink
        self._asked.append(ask)

    def to_the_end(self) -> None:
        scheduler = self.bench.scheduler
        for _ in range(MOST_STEPS):
            self._pass()
            if not scheduler.queue.busy and not self._coming:
                break
            scheduler.step()
            assert len(scheduler.queue.running) <= self.case.max_running
            self._holders_are_known()
        else:
            raise AssertionError("the scheduler does not come to an end")
        if scheduler.counts.preemptions:
            event("a sequence was preempted")

    def _holders_are_known(self) -> None:
        """Every page has exactly the holders that it should have."""
        cache, pool = self.bench.cache, self.bench.pool
        cache.settle()
        held = Counter(page for each in self.bench.scheduler.queue.running for page in each.page_table.pages)
        held.update(each.page for each in cache._cached.values())
        held.update(cache._writes._holders)
        held.update(page for fetch in self.bench.scheduler._admission.loading.values() for page in fetch.pages)
        assert {page: pool.holders(page) for page in range(pool.n_pages)} == {
            page: held[page] for page in range(pool.n_pages)
        }
        assert all(
            each.page_table is None for each in self.bench.sequences if each not in self.bench.scheduler.queue.running
        )

    def check(self) -> None:
        bench = self.bench
        assert bench.pool.free_pages + bench.cache.idle_pages == bench.pool.n_pages
        assert not bench.scheduler._admission.loading
        assert bench.scheduler._prefill is None
        assert not bench.scheduler._again
        for i, (ask, events) in enumerate(zip(self._asked, bench.events, strict=True)):
            self._check_reply(i, ask, events)
        assert sum(bench.scheduler.queue.finished.values()) == len(self.case.asks)
        if self.files is not None:
            self.files.end()
        bench.nothing_is_held()

    def _check_reply(self, i: int, ask: Ask, events: list) -> None:
        last = [isinstance(each, Finished | Failed) for each in events]
        assert last.count(True) == 1
        assert last[-1]
        admitted = [at for at, each in enumerate(events) if isinstance(each, Admitted)]
        assert admitted in ([], [0])
        expected, generated = lone(ask), reply(events)
        if isinstance(events[-1], Finished) and events[-1].reason != "cancelled":
            assert generated == list(expected)
        else:
            assert generated[:-1] == list(expected[: len(generated) - 1])
            self._may_end_so(i, ask, events[-1])
        self._check_scores(ask, events)
        if admitted:
            others = [at for at, other in enumerate(self._asked) if other.tenant == ask.tenant and at != i]
            known = max((common(ask.tokens, self.bench.sequences[at].tokens) for at in others), default=0)
            assert events[0].reused <= min(known, len(ask.tokens) - 1)
            if events[0].reused:
                event("a prefix was found")
        event(f"a reply ended: {type(events[-1]).__name__}")

    def _may_end_so(self, i: int, ask: Ask, last: Finished | Failed) -> None:
        case = self.case
        if isinstance(last, Finished):
            assert ask.cancel_at is not None or (case.deaf and i == 0)
        elif isinstance(last.error, ContextError):
            assert "never" in case.answers
        else:
            assert case.broken_steps or case.broken_logits

    def _check_scores(self, ask: Ask, events: list) -> None:
        scores = [score for each in events if isinstance(each, PromptScores) for score in each.scores]
        if not ask.scores:
            assert not scores
            return
        expected = lone_scores(tuple(ask.tokens))
        assert [(each.token, each.logprob) for each in scores] == list(expected[: len(scores)])
        if any(isinstance(each, TokenEvent) for each in events):
            assert len(scores) == len(expected)


@cache
def lone(ask: Ask) -> tuple:
    return lone_reply(tuple(ask.tokens), ask.max_tokens, ask.params)


@cache
def lone_reply(tokens: tuple[int, ...], max_tokens: int, params: int) -> tuple:
    return tuple(alone(list(tokens), max_tokens, **PARAMS[params]))


@cache
def lone_scores(tokens: tuple[int, ...]) -> tuple:
    if len(tokens) < 2:
        return ()
    pool = PagePool(SPEC.kept, PAGE, LIMIT, FakeDecoder().dtype)
    scores = Session(FakeDecoder(), pool, fingerprint="x").score(list(tokens)).tolist()
    return tuple(zip(tokens[1:], scores, strict=True))


def common(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def run(case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(case.tick)
        for module in (sequence_module, scheduler_module, prefix_cache_module):
            patch.setattr(module, "time", clock)
        patch.setattr(prefix_cache_module, "_STUCK_SECONDS", 1.0)
        at_work = Run(case)
        at_work.to_the_end()
        at_work.check()


@given(CASES)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_each_reply_under_random_load_is_that_of_the_request_alone(case):
    run(case)
