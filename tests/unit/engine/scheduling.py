"""What the scheduler's tests share: one with what each request was told, and the same request alone."""

import torch

from earthshine.engine import Failed, Finished, Request, SamplingParams, Session, TokenEvent
from earthshine.engine.reply import Reply
from earthshine.engine.scheduler import Scheduler
from earthshine.kv import BlobLayout, PageFiles, PagePool, PrefixCache

from .conftest import CONTEXT, SPEC, STOP, VOCAB, FakeDecoder

PAGE = 4
LAYOUT = BlobLayout.of(SPEC.kept, "fake-1", torch.bfloat16)
PROMPTS = [
    [(i * step + 3) % (VOCAB - 1) for i in range(length)] for step, length in ((5, 9), (7, 21), (11, 1), (3, 30))
]


class Bench:
    """A scheduler, and what each request was told."""

    def __init__(self, n_pages: int = 64, most: int = 8, files: PageFiles | None = None, **options) -> None:
        self.decoder = options.pop("decoder", None) or FakeDecoder()
        self.pool = PagePool(SPEC.kept, PAGE, n_pages, self.decoder.dtype)
        self.cache = PrefixCache(self.pool, files, keep_all=options.pop("keep_all", True))
        settings = {"context_tokens": CONTEXT, "prefill_tokens": 16, "max_stall": 1.0} | options
        self.scheduler = Scheduler(self.decoder, self.pool, self.cache, most=most, **settings)
        self.told: list[list] = []
        self.replies: list[Reply] = []

    def ask(self, tokens: list[int], max_tokens: int = 6, tenant: str = "", priority: int = 0, **params) -> list:
        extra = {key: params.pop(key) for key in ("constraint",) if key in params}
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

    def forget(self) -> None:
        """All pages in memory; those on their way to disk get there first."""
        self.cache.files.flush(10)
        self.cache.settle()
        self.cache.clear()

    def nothing_is_held(self) -> None:
        self.cache.settle()
        self.cache.clear()
        assert self.pool.free_pages == self.pool.n_pages


def alone(tokens: list[int], max_tokens: int = 6, **params) -> list:
    pool = PagePool(SPEC.kept, PAGE, 64, FakeDecoder().dtype)
    session = Session(FakeDecoder(), pool, fingerprint="fake-1", context_tokens=CONTEXT)
    session.sync(tokens)
    return list(session.generate(SamplingParams(**({"temperature": 0.0, "max_tokens": max_tokens} | params))))


def reply(told: list) -> list:
    return [event for event in told if isinstance(event, TokenEvent | Finished | Failed)]
