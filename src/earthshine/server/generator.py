"""Requests in, pieces out, on the event loop: connects text generation and the engine's thread to asyncio.

Prompts are prepared on threads of their own. The engine's events reach the event loop in batches and wait there for a
slow reader, at most a whole reply. Invariant: when `answer` has ended, however it ended, nothing that it asked for is
still computed. Errors of prompts and of the engine are raised unchanged.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from typing import TypeVar

from earthshine.engine import ReplyEvent
from earthshine.errors import UsageError
from earthshine.generation.output import Choice
from earthshine.generation.prompts import Prompts
from earthshine.generation.request import GenerationRequest, Piece
from earthshine.generation.submission import Computes, Submission

MOST_SCORES = 1 << 19  # tokens of prompts, alternatives included, that one request may ask for
_THREADS = 2  # that prepare prompts; tokenizing uses one core each
_BATCH = 64  # events that are processed before the event loop runs anything else
_T = TypeVar("_T")


class TextGenerator:
    """Answers requests on one event loop."""

    def __init__(self, engine: Computes, prompts: Prompts) -> None:
        self._engine, self._prompts = engine, prompts
        self._threads = ThreadPoolExecutor(_THREADS, "prompt")

    def close(self) -> None:
        """End the threads. Prompts that wait for one are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def count(self, requests: Sequence[GenerationRequest]) -> list[int]:
        """The number of tokens in each request's prompt. Raises TextError and UsageError."""
        return await self._in_thread(lambda: [self._prompts.count(request) for request in requests])

    async def answer(self, requests: Sequence[GenerationRequest], user: str) -> AsyncGenerator[Piece]:
        """The pieces of all requests' answers as they come: a Started for each request, an Ended for each choice.

        Prefixes are shared among requests of the same `user` and salt. Closing the iterator, or cancelling the task
        that waits for it, cancels the requests. Raises EarthshineError, also between pieces.
        """
        tenants = [_tenant(user, request.cache_salt) for request in requests]
        prepare = partial(self._prompts.choices, repeat_thought=True)  # agents repeat a request without content
        choices = await self._in_thread(lambda: list(map(prepare, requests, tenants)))
        _require_few_scores(choices)
        mailbox = _Mailbox(asyncio.get_running_loop())
        submission = Submission(self._engine, mailbox.put, progress=True)
        try:
            for own in choices:
                submission.add(own)
            while submission.live:
                for piece in submission.pieces(await mailbox.take()):
                    yield piece
        finally:
            submission.cancel()

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


class _Mailbox:
    """Carries events from the engine's thread to the event loop, one wake-up for all that come before it is handled."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._ready, self._awake = loop, asyncio.Event(), False
        self._events: deque[tuple[int, ReplyEvent]] = deque()

    def put(self, number: int, event: ReplyEvent) -> None:
        """Add an event; called on the engine's thread."""
        self._events.append((number, event))
        if not self._awake:  # `take` reads in the opposite order, so no event is missed
            self._awake = True
            try:
                self._loop.call_soon_threadsafe(self._ready.set)
            except RuntimeError:  # the loop is closed
                return

    async def take(self) -> list[tuple[int, ReplyEvent]]:
        """Wait for events; returns between one and _BATCH of them."""
        if self._events:
            await asyncio.sleep(0)
        while not self._events:
            await self._ready.wait()
            self._ready.clear()
            self._awake = False
        return [self._events.popleft() for _ in range(min(_BATCH, len(self._events)))]


def _tenant(user: str, salt: str) -> str:
    """A name that no other pair has, since the length of the first text comes before it."""
    named = f"{len(user)}:{user}{salt}".encode("utf-8", "surrogatepass")
    return blake2b(named, digest_size=32).hexdigest()


def _require_few_scores(requests: Sequence[Sequence[Choice]]) -> None:
    asked = sum(
        len(choice.request.tokens) * (1 + (choice.params.prompt_logprobs or 0))
        for choices in requests
        for choice in choices
        if choice.asked.echo or choice.params.prompt_logprobs is not None
    )
    if asked > MOST_SCORES:
        raise UsageError(
            f"The prompts would come back with {asked} tokens and alternatives; one request may ask for {MOST_SCORES}. "
            "Ask for fewer prompts, choices or alternatives at once."
        )
