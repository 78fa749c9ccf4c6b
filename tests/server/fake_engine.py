"""An engine without a model: the interface of `engine.Engine`, with scripted answers.

A script holds what each request is answered with, in the order of submission; the last answer serves all that follow.
An answer lists token ids, which become TokenEvents, whole events, which pass as they are, and HOLD, which waits for
`release` or a cancellation. Whatever lacks an end gets one: `Finished("stop", stop_token)`. max_tokens and the stop
tokens end an answer as in the engine itself, and a constraint accepts every token.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from earthshine.engine import (
    Admitted,
    Failed,
    Finished,
    PromptScores,
    ReplyEvent,
    Request,
    Sink,
    TokenEvent,
)
from earthshine.errors import EarthshineError, OverloadError

HOLD = "hold"
Answer = Sequence[int | ReplyEvent | str]


def logprob_of(token: int) -> float:
    """What the fake says of any token, so that tests can tell values apart."""
    return -(1 + token % 7) / 8


def scored(token: int, alternatives: int | None) -> TokenEvent:
    """The token's event; its alternatives are itself and the ids after it."""
    return TokenEvent(
        token, logprob_of(token), tuple((token + i, logprob_of(token) - i) for i in range(alternatives or 0))
    )


@dataclass(eq=False, slots=True)
class Ticket:
    request: Request
    sink: Sink
    events: Iterator[ReplyEvent | None]  # None: nothing for now
    cancelled: bool = False


class FakeEngine:
    """`answers` as above, or a function from a request to its answer; `reused` is what every Admitted says;
    `stop_tokens` are the model's own; `refusal` is raised by submit. One event of every reply a round."""

    def __init__(
        self,
        answers: Sequence[Answer] | Callable[[Request], Answer] = ((),),
        *,
        reused: int = 0,
        stop_tokens: Sequence[int] = (),
        refusal: EarthshineError | None = None,
    ) -> None:
        self._answers, self._reused, self._stops, self.refusal = answers, reused, tuple(stop_tokens), refusal
        self.requests: list[Request] = []  # all that were submitted
        self.cancelled: list[Request] = []  # those that ended by a cancellation
        self._live: list[Ticket] = []
        self._changed = threading.Condition()
        self._released = self._calls = 0
        self._draining = self._closed = False
        self._thread = threading.Thread(target=self._run, name="fake-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, sink: Sink) -> Ticket:
        with self._changed:
            if self.refusal is not None:
                raise self.refusal
            if self._draining:
                raise OverloadError("The server is about to end.", 5)
            answers = self._answers
            at = len(self.requests)
            answer = answers(request) if callable(answers) else answers[min(at, len(answers) - 1)]
            self.requests.append(request)
            ticket = Ticket(request, sink, self._events(request, answer))
            self._live.append(ticket)
            self._called()
            return ticket

    def cancel(self, ticket: Ticket) -> None:
        with self._changed:
            ticket.cancelled = True
            self._called()

    def release(self, holds: int = 1) -> None:
        """Lets this number of HOLDs pass."""
        with self._changed:
            self._released += holds
            self._called()

    def idle(self, seconds: float = 5.0) -> bool:
        """Waits until no reply is under way; False if one still is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._live, seconds)

    def gauges(self) -> Any:
        with self._changed:
            return SimpleNamespace(running=len(self._live), waiting=0)

    def stalled_seconds(self) -> float:
        return 0.0

    def drain(self, seconds: float) -> None:
        self._draining = True
        if not self.idle(seconds):
            for ticket in list(self._live):
                self.cancel(ticket)
            self.idle(seconds)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._called()
        self._thread.join(5)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._live or self._closed)
                if self._closed:
                    return
                live, seen = list(self._live), self._calls
            if not any([self._advance(ticket) for ticket in live]):
                with self._changed:
                    while self._calls == seen:
                        self._changed.wait()

    def _called(self) -> None:
        self._calls += 1
        self._changed.notify_all()

    def _advance(self, ticket: Ticket) -> bool:
        """One event of a reply; False if it holds."""
        event = Finished("cancelled") if ticket.cancelled else next(ticket.events)
        if event is None:
            return False
        if isinstance(event, (Finished, Failed)):
            with self._changed:
                self._live.remove(ticket)
                if ticket.cancelled:
                    self.cancelled.append(ticket.request)
                self._changed.notify_all()
        ticket.sink(event)
        return True

    def _take_release(self) -> bool:
        with self._changed:
            self._released, had = max(0, self._released - 1), self._released > 0
            return had

    def _events(self, request: Request, answer: Answer) -> Iterator[ReplyEvent | None]:
        params = request.params
        stops = () if params.ignore_eos else (*self._stops, *params.stop_token_ids)
        produced = 0
        begun = False
        for item in answer:
            if item == HOLD:
                while not self._take_release():
                    yield None
                continue
            if not begun and not isinstance(item, (Admitted, Failed)):
                yield from self._opening(request)
            begun = True
            if not isinstance(item, int):
                assert not isinstance(item, str)
                yield item
                if isinstance(item, (Finished, Failed)):
                    return
                continue
            try:
                if request.constraint is not None:
                    request.constraint.accept(item)
            except EarthshineError as error:
                yield Failed(error)
                return
            produced += 1
            if item in stops:
                yield Finished("stop", item)
                return
            yield scored(item, params.logprobs)
            if produced == params.max_tokens:
                yield Finished("length")
                return
        if not begun:
            yield from self._opening(request)
        yield Finished("stop", stops[0] if stops else 0)

    def _opening(self, request: Request) -> Iterator[ReplyEvent]:
        yield Admitted(min(self._reused, len(request.tokens) - 1))
        asked = request.params.prompt_logprobs
        if asked is not None:
            for at in range(1, len(request.tokens), 3):  # several events, as from a prompt computed in chunks
                yield PromptScores(tuple(scored(t, asked) for t in request.tokens[at : at + 3]))
