"""Turns in, pieces out: what joins the tokenizer, the template and the rules of output to the engine.

Prompts are made on threads of their own. The engine's events cross to the event loop many at a time and wait there
for a slow reader, as many as the reply has at most. Invariant: when `answer` has ended, in whatever way, nothing that
it asked for is still computed. Errors of prompts and of the engine pass as they are.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any, Protocol, TypeVar

from earthshine.engine import Admitted, Failed, Finished, ReplyEvent, Request, Sink
from earthshine.server.api import Refused
from earthshine.server.choice import Choice
from earthshine.server.prompts import Prepared, Prompts
from earthshine.server.turn import Opened, Piece, Turn
from earthshine.text import Tokenizer

MOST_SCORES = 1 << 19  # tokens of prompts, alternatives included, that one request may ask to be told
_THREADS = 2  # that make prompts; tokenizing is bound by one core each
_BATCH = 64  # events that are dealt with before anything else on the event loop has its turn
_RETRY_SECONDS = 10
_T = TypeVar("_T")


class Computes(Protocol):
    """What is asked of engine.Engine."""

    def submit(self, request: Request, sink: Sink) -> Any: ...

    def cancel(self, ticket: Any) -> None: ...


class Replies:
    """Belongs to one event loop."""

    def __init__(self, engine: Computes, tokenizer: Tokenizer, prompts: Prompts) -> None:
        self._engine, self._tokenizer, self._prompts = engine, tokenizer, prompts
        self._threads = ThreadPoolExecutor(_THREADS, "prompt")

    def close(self) -> None:
        """Ends the threads; prompts that wait for one are given up."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def count(self, turns: Sequence[Turn]) -> list[int]:
        """Tokens of each turn's prompt; nothing is computed. Raises TextError, UsageError and Refused."""
        return await self._beside(lambda: [self._prompts.count(turn) for turn in turns])

    async def answer(self, turns: Sequence[Turn], user: str) -> AsyncGenerator[Piece]:
        """The pieces of all turns' replies as they come: an Opened for each turn, an Ended for each choice.

        `user` and each turn's salt name the cache. Closing the iterator, or cancelling the task that waits for it,
        ends what is computed. Raises Refused or another EarthshineError, also between pieces.
        """
        prepared = await self._beside(lambda: [self._prompts.prepare(turn) for turn in turns])
        _require_few_scores(prepared)
        group = _Group(self._engine, asyncio.get_running_loop())
        try:
            for one in prepared:
                group.submit(one, _tenant(user, one.turn.salt), self._tokenizer)
            while group.live:
                for piece in group.pieces(await group.mailbox.take()):
                    yield piece
        finally:
            group.cancel()

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


@dataclass(eq=False, slots=True)
class _Group:
    """All choices of a request. `live`: those that the engine still computes."""

    engine: Computes
    loop: asyncio.AbstractEventLoop
    mailbox: _Mailbox = field(init=False)
    live: dict[int, Any] = field(default_factory=dict)
    _choices: list[tuple[Choice, Prepared]] = field(default_factory=list)
    _opened: set[Prepared] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.mailbox = _Mailbox(self.loop)

    def submit(self, prepared: Prepared, tenant: str, tokenizer: Tokenizer) -> None:
        """Ask the engine for a turn's choices."""
        turn = prepared.turn
        for params in prepared.params:
            number = len(self._choices)
            request = Request(
                prepared.tokens, params, tenant, turn.priority, prepared.constraint(), turn.prompt_logprobs
            )
            self._choices.append((Choice(number, prepared, tokenizer), prepared))
            self.live[number] = self.engine.submit(request, partial(self.mailbox.put, number))

    def pieces(self, events: Sequence[tuple[int, ReplyEvent]]) -> list[Piece]:
        """What the client is to hear of these events."""
        found: list[Piece] = []
        for number, event in events:
            choice, prepared = self._choices[number]
            if isinstance(event, (Finished, Failed)):
                self.live.pop(number, None)
            if choice.ended:
                continue
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished) and event.reason == "cancelled":
                raise Refused("The server has ended before the reply did.", "unavailable", None, _RETRY_SECONDS)
            if isinstance(event, Admitted) and prepared not in self._opened:
                self._opened.add(prepared)  # the other choices share what this one has computed
                found.append(Opened(len(prepared.tokens), event.reused))
            choice.push(event)
        for number in dict.fromkeys(number for number, _ in events):
            choice = self._choices[number][0]
            found += choice.take()
            if choice.ended and number in self.live:
                self.engine.cancel(self.live.pop(number))
        return found

    def cancel(self) -> None:
        """Whatever still goes on is of no use any more."""
        for ticket in self.live.values():
            self.engine.cancel(ticket)
        self.live.clear()


def _tenant(user: str, salt: str) -> str:
    """A name that no other pair has: the first text's length comes before it."""
    named = f"{len(user)}:{user}{salt}".encode("utf-8", "surrogatepass")
    return blake2b(named, digest_size=32).hexdigest()


def _require_few_scores(prepared: Sequence[Prepared]) -> None:
    asked = sum(
        len(one.tokens) * one.turn.n * (1 + (one.turn.prompt_logprobs or 0))
        for one in prepared
        if one.turn.echo or one.turn.prompt_logprobs is not None
    )
    if asked > MOST_SCORES:
        raise Refused(
            f"The prompts would be told back with {asked} tokens and alternatives; {MOST_SCORES} are the most that one "
            "request gets. Ask for fewer prompts, choices or alternatives at once."
        )
