"""Same bits with all parts running at once: each reply equals that of the same request alone.

Trunk and experts stream from disk into the fewest buffers and slots that work, the store shrinks under way, pages run
out and go to disk and come back, requests are cancelled, and decode steps run between the pieces of prefill passes,
within a layer too. Only the scheduler's clock is counted instead of read, so that its choices do not depend on how fast
the machine is; pages are written by a real thread, so a seed gives nearly the same schedule each time, and the same
replies always.
"""

import random
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from earthshine.engine import Failed, Finished, Request, SamplingParams, Session, TokenEvent
from earthshine.engine import experts as experts_module
from earthshine.engine import scheduler as scheduler_module
from earthshine.engine import sequence as sequence_module
from earthshine.engine.experts import RoutedExperts
from earthshine.engine.memory_limit import NEAR_BYTES, MemoryLimit
from earthshine.engine.scheduler import Outcome, Scheduler, Step
from earthshine.engine.sequence import TokenSequence
from earthshine.kv import BlobLayout, PageBlobs, PageFiles, PageKey, PageParts, PagePool, PrefixCache
from earthshine.kv import prefix_cache as prefix_cache_module
from earthshine.models import Decoder
from earthshine.spec import load_spec
from earthshine.weights import Checkpoint, ExpertStore, Reader, StoredTrunk

from .tiny import VOCAB, Case, KimiLinear, Qwen3, write_tiny

PAGE = 16
CONTEXT = 192
UNITS = frozenset(("layers.0", "layers.1", "layers.2", "head"))
STEMS = [[(i * i * step + 5 * i + step) % (VOCAB - 1) for i in range(160)] for step in range(3, 40, 4)]
BUDGET = 1 << 40


class Clock:
    """`time`, as the scheduler sees it: a tenth of a second passes at every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.1
        return self.now


@pytest.fixture
def _counted_time(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(experts_module, "_GROUP", 8)  # a small model's share of experts between two yields
    monkeypatch.setattr(prefix_cache_module, "_STUCK_SECONDS", 120.0)  # real ones: a thread writes the pages
    for module in (scheduler_module, sequence_module):
        monkeypatch.setattr(module, "time", clock)


@pytest.fixture(
    scope="module",
    params=[Case(storage="int4", n_experts=72), Qwen3(n_experts=72), KimiLinear(n_experts=72)],
    ids=["latent", "grouped", "delta"],
)
def folder(request, tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("many"), request.param)


@pytest.fixture(scope="module")
def alone(folder):
    """What a request gets from a model that lies in memory as a whole, with nothing beside it."""
    spec = load_spec(folder)
    checkpoint, known = Checkpoint.open(folder, spec), {}
    with Reader() as reader:
        store = ExpertStore(checkpoint, slots_per_layer=72, transit_slots=0, reader=reader, dtype=torch.bfloat16)
        store.preload(lambda done, total: None)
        decoder = Decoder(spec, StoredTrunk(checkpoint, reader), RoutedExperts(store))

        def ask(tokens: list[int], params: SamplingParams) -> list:
            key = (tuple(tokens), repr(params))
            if key not in known:
                pool = PagePool(spec.kept, PAGE, CONTEXT // PAGE, torch.bfloat16)
                session = Session(decoder, pool, fingerprint="alone", context_tokens=CONTEXT)
                session.sync(tokens)
                known[key] = list(session.generate(params))
            return known[key]

        yield ask


@dataclass
class Asked:
    tokens: list[int]
    params: SamplingParams
    at: int  # layers after which the request comes
    cancel_at: int | None
    events: list = field(default_factory=list)
    sequence: TokenSequence | None = None


def requests(random_: random.Random, count: int) -> list[Asked]:
    """Conversations over a few stems, so that prefixes are shared, a quarter of them cancelled."""
    found = []
    for _ in range(count):
        stem = random_.choice(STEMS)
        tokens = [*stem[: random_.choice([1, 20, 90, 150])], random_.randrange(VOCAB - 1)]
        greedy = random_.random() < 0.7
        params = SamplingParams(
            temperature=0.0 if greedy else 1.0,
            seed=random_.randrange(9),
            max_tokens=random_.choice([4, 16, 36]),
            ignore_eos=True,
        )
        at = random_.randrange(5 * count)
        cancel_at = at + random_.randrange(60) if random_.random() < 0.25 else None
        found.append(Asked(tokens, params, at, cancel_at))
    return found


class Watched(Scheduler):
    """Counts how passes are interrupted."""

    steps_between = 0

    def run(self, step: Step) -> Outcome | None:
        self.steps_between += self._prefill is not None and not step.interruptible
        return super().run(step)


class Counting(RoutedExperts):
    """Counts where calls are interrupted, and calls that run meanwhile."""

    yields = calls_between = _interrupted = 0

    def ffn(self, *call) -> torch.Tensor:
        self.calls_between += self._interrupted
        return super().ffn(*call)

    def ffn_in_groups(self, *call) -> Generator[None, None, torch.Tensor]:
        groups = super().ffn_in_groups(*call)
        while True:
            try:
                next(groups)
            except StopIteration as end:
                return end.value
            self.yields += 1
            self._interrupted = 1
            try:
                yield
            finally:
                self._interrupted = 0


class CountingFiles(PageFiles):
    """Counts pages that come back with the recurrent state after them."""

    states_read = 0

    def read(self, key: PageKey, tokens: Sequence[int]) -> PageParts | None:
        parts = super().read(key, tokens)
        self.states_read += parts is not None and parts.state is not None
        return parts


class Load:
    """Everything real, at the smallest size that works, under `asked`."""

    def __init__(self, folder, disk, asked: list[Asked], random_: random.Random) -> None:
        spec = load_spec(folder)
        checkpoint, self.reader = Checkpoint.open(folder, spec), Reader()
        self.trunk = StoredTrunk(checkpoint, self.reader, streamed=UNITS, embedding_on_disk=True)
        store = ExpertStore(checkpoint, slots_per_layer=5, transit_slots=1, reader=self.reader, dtype=torch.bfloat16)
        self.experts = Counting(store)
        self.pool = PagePool(spec.kept, PAGE, CONTEXT // PAGE + 1, torch.bfloat16, n_states=4 * 4)
        layout = BlobLayout.of(spec.kept, "load", torch.bfloat16)
        page_bytes = max(PageBlobs(layout, PAGE).sizes)
        self.files = CountingFiles(disk, layout, PAGE, 24 * max(8192, page_bytes))
        self.memory_limit = MemoryLimit(BUDGET, store.shrink, self._resident)
        self.cache = PrefixCache(self.pool, [self.files], self.files, keep_all=random_.random() < 0.7)
        self.scheduler = Watched(
            Decoder(spec, self.trunk, self.experts),
            self.pool,
            self.cache,
            max_running=4,
            context_tokens=CONTEXT,
            prefill_tokens=96,
            max_stall=0.1,
            memory_limit=self.memory_limit,
            poll=self._poll,
        )
        self._asked, self._random = asked, random_
        self._layers = self._near = 0

    def _resident(self) -> int:
        """Near the limit now and then, so that the store shrinks."""
        self._near = (self._near + 1) % 100
        return BUDGET - NEAR_BYTES + 1 if self._near == 0 else 0

    def _poll(self) -> None:
        self._layers += 1
        for number, asked in enumerate(self._asked):
            if asked.sequence is None and asked.at <= self._layers:
                request = Request(asked.tokens, asked.params)
                asked.sequence = TokenSequence(number, request, asked.events.append, PAGE, frozenset())
                self.scheduler.queue.add(asked.sequence)
            if asked.cancel_at is not None and asked.cancel_at <= self._layers and asked.sequence is not None:
                asked.sequence.cancelled = True

    def run(self) -> None:
        for _ in range(50_000):
            self._poll()
            self.scheduler.step()
            if not self.scheduler.queue.busy and all(asked.sequence is not None for asked in self._asked):
                return
        raise AssertionError("the scheduler does not come to an end")

    def happened(self) -> dict[str, int]:
        """What must have happened for the comparison to mean something."""
        scheduler = self.scheduler
        return {
            "yields between groups of a layer's experts": self.experts.yields,
            "decode steps between the pieces of a pass": scheduler.steps_between,
            "decode steps between groups of a layer's experts": self.experts.calls_between,
            "preemptions": scheduler.counts.preemptions,
            "cancelled": scheduler.queue.finished["cancelled"],
            "prefix tokens found": scheduler.counts.prefix_hits,
            "pages read from disk": self.files.stats.pages_read,
            "recurrent states read from disk": self.files.states_read,
            "bytes released near the limit": self.memory_limit.released_bytes,
            "bytes of the trunk streamed": self.trunk.bytes_streamed,
            "experts read": self.experts.stats.misses,
        }

    def close(self) -> None:
        self.cache.close()
        self.files.close()
        self.reader.close()


def check(asked: Asked, expected: list) -> None:
    events = [event for event in asked.events if isinstance(event, TokenEvent | Finished | Failed)]
    assert not isinstance(events[-1], Failed), events[-1].error
    if events[-1] == Finished("cancelled"):
        assert asked.cancel_at is not None
        events, expected = events[:-1], expected[: len(events) - 1]
    assert [(event.token, event.logprob) for event in events if isinstance(event, TokenEvent)] == [
        (event.token, event.logprob) for event in expected if isinstance(event, TokenEvent)
    ]


@pytest.mark.usefixtures("_counted_time")
def test_each_reply_is_what_the_request_gets_alone(folder, alone, tmp_path):
    happened: Counter[str] = Counter()
    for seed in range(2):
        random_ = random.Random(seed)
        asked = requests(random_, 20)
        load = Load(folder, tmp_path / str(seed), asked, random_)
        try:
            load.run()
        finally:
            load.close()
        for each in asked:
            check(each, alone(each.tokens, each.params))
        happened.update(load.happened())
    if load.pool.states is None:
        assert happened.pop("recurrent states read from disk") == 0
    assert all(happened.values()), happened
