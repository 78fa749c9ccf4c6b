"""Requests in, pieces out, on the event loop: joins text generation and the engine's thread to asyncio.

Prompts are made on threads of their own. The engine's events cross to the event loop many at a time and wait there
for a slow reader, at most all of a reply. Invariant: when `answer` has ended, however it ended, nothing that
it asked for is still computed. Errors of prompts and of the engine pass as they are.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import TypeVar

from earthshine.engine import ReplyEvent
from earthshine.errors import UsageError
from earthshine.generation.prompts import Prepared, Prompts
from earthshine.generation.request import GenerationRequest, Piece
from earthshine.generation.submission import Computes, Submission
from earthshine.text import Tokenizer

MOST_SCORES = 1 << 19  # tokens of prompts, alternatives included, that one request may ask for
_THREADS = 2  # that make prompts; tokenizing is bound by one core each
_BATCH = 64  # events that are dealt with before anything else on the event loop has its request
_T = TypeVar("_T")


class TextGenerator:
    """Belongs to one event loop."""

    def __init__(self, engine: Computes, tokenizer: Tokenizer, prompts: Prompts) -> None:
        self._engine, self._tokenizer, self._prompts = engine, tokenizer, prompts
        self._threads = ThreadPoolExecutor(_THREADS, "prompt")

    def close(self) -> None:
        """Ends the threads; prompts that wait for one are given up."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def count(self, requests: Sequence[GenerationRequest]) -> list[int]:
        """Tokens of each request's prompt; nothing is computed. Raises TextError, UsageError and Refused."""
        return await self._beside(lambda: [self._prompts.count(request) for request in requests])

    async def answer(self, requests: Sequence[GenerationRequest], user: str) -> AsyncGenerator[Piece]:
        """The pieces of all requests' answers as they come: a Started for each request, an Ended for each choice.

        `user` and each request's salt name the cache. Closing the iterator, or cancelling the task that waits for it,
        ends what is computed. Raises Refused or another EarthshineError, also between pieces.
        """
        prepared = await self._beside(lambda: [self._prompts.prepare(request) for request in requests])
        _require_few_scores(prepared)
        mailbox = _Mailbox(asyncio.get_running_loop())
        submission = Submission(self._engine, self._tokenizer, mailbox.put)
        try:
            for one in prepared:
                submission.add(one, _tenant(user, one.request.cache_salt))
            while submission.live:
                for piece in submission.pieces(await mailbox.take()):
                    yield piece
        finally:
            submission.cancel()

    async def _beside(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


class _Mailbox:
    """From the engine's thread to the event loop: one wake-up however many events come before it is acted on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._ready, self._awake = loop, asyncio.Event(), False
        self._events: deque[tuple[int, ReplyEvent]] = deque()

    def put(self, number: int, event: ReplyEvent) -> None:
        """On the engine's thread."""
        self._events.append((number, event))
        if not self._awake:  # written in this order, and read in the other one, no event is missed
            self._awake = True
            try:
                self._loop.call_soon_threadsafe(self._ready.set)
            except RuntimeError:  # the loop is closed: nobody reads any more
                return

    async def take(self) -> list[tuple[int, ReplyEvent]]:
        """At least one event, at most _BATCH."""
        if self._events:
            await asyncio.sleep(0)
        while not self._events:
            await self._ready.wait()
            self._ready.clear()
            self._awake = False
        return [self._events.popleft() for _ in range(min(_BATCH, len(self._events)))]


def _tenant(user: str, salt: str) -> str:
    """A name that no other pair has: the first text's length comes before it."""
    named = f"{len(user)}:{user}{salt}".encode("utf-8", "surrogatepass")
    return blake2b(named, digest_size=32).hexdigest()


def _require_few_scores(prepared: Sequence[Prepared]) -> None:
    asked = sum(
        len(one.tokens) * one.params.n * (1 + (one.params.prompt_logprobs or 0))
        for one in prepared
        if one.request.echo or one.params.prompt_logprobs is not None
    )
    if asked > MOST_SCORES:
        raise UsageError(
            f"The prompts would come back with {asked} tokens and alternatives; {MOST_SCORES} are the most that one "
            "request gets. Ask for fewer prompts, choices or alternatives at once."
        )
