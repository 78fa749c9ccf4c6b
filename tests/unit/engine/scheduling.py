"""What the scheduler's tests share: a scheduler with the events of each request, and the same request alone."""

import torch

from earthshine.engine import Failed, Finished, Request, SamplingParams, Session, TokenEvent
from earthshine.engine.scheduler import Scheduler
from earthshine.engine.sequence import TokenSequence
from earthshine.kv import BlobLayout, PageFiles, PagePool, PrefixCache

from .conftest import CONTEXT, SPEC, STOP, VOCAB, FakeDecoder

PAGE = 4
LAYOUT = BlobLayout.of(SPEC.kept, "fake-1", torch.bfloat16)
PROMPTS = [
    [(i * step + 3) % (VOCAB - 1) for i in range(length)] for step, length in ((5, 9), (7, 21), (11, 1), (3, 30))
]


class Bench:
    """A scheduler, and the events of each request."""

    def __init__(self, n_pages: int = 64, max_running: int = 8, files: PageFiles | None = None, **options) -> None:
        self.files = files
        self.decoder = options.pop("decoder", None) or FakeDecoder()
        self.pool = PagePool(SPEC.kept, PAGE, n_pages, self.decoder.dtype)
        self.cache = PrefixCache(
            self.pool,
            options.pop("tiers", [] if files is None else [files]),
            files,
            keep_all=options.pop("keep_all", True),
            threaded=options.pop("threaded", True),
        )
        settings = {"context_tokens": CONTEXT, "prefill_tokens": 16, "max_stall": 1.0} | options
        self.scheduler = Scheduler(self.decoder, self.pool, self.cache, max_running=max_running, **settings)
        self.events: list[list] = []
        self.sequences: list[TokenSequence] = []

    def ask(self, tokens: list[int], max_tokens: int = 6, tenant: str = "", priority: int = 0, **params) -> list:
        extra = {key: params.pop(key) for key in ("constraint", "progress") if key in params}
        sampling = SamplingParams(**({"temperature": 0.0, "max_tokens": max_tokens} | params))
        events: list = []
        request = Request(tokens, sampling, tenant, priority, **extra)
        self.sequences.append(TokenSequence(len(self.events), request, events.append, PAGE, frozenset({STOP})))
        self.events.append(events)
        self.scheduler.queue.add(self.sequences[-1])
        return events

    def run(self, steps: int = 10_000) -> None:
        for _ in range(steps):
            if not self.scheduler.queue.busy:
                return
            self.scheduler.step()
        assert steps < 10_000, "the scheduler does not come to an end"

    def forget(self) -> None:
        """All pages in memory; those on their way to disk get there first."""
        self.cache.flush(60)
        self.cache.clear()

    def nothing_is_held(self) -> None:
        """But by the cache, once a page that is being read for nobody has come back."""
        self.cache.clear()
        while not self.cache.make_room(self.pool.n_pages) and self.cache.room() == self.pool.n_pages:
            self.cache.wait(60)
        assert self.pool.free_pages == self.pool.n_pages


def alone(tokens: list[int], max_tokens: int = 6, **params) -> list:
    pool = PagePool(SPEC.kept, PAGE, 64, FakeDecoder().dtype)
    session = Session(FakeDecoder(), pool, fingerprint="fake-1", context_tokens=CONTEXT)
    session.sync(tokens)
    return list(session.generate(SamplingParams(**({"temperature": 0.0, "max_tokens": max_tokens} | params))))


def reply(events: list) -> list:
    return [event for event in events if isinstance(event, TokenEvent | Finished | Failed)]
