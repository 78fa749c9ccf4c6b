"""Submits choices to the engine, turns the engine's events into pieces of text, and cancels what is left.

Knows no event loop, so that the HTTP server and `LLM` can share it: the caller passes where events go.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from earthshine.engine import Admitted, Failed, Finished, PromptProgress, ReplyEvent, Request, Sink
from earthshine.errors import OverloadError
from earthshine.generation.output import Choice
from earthshine.generation.request import Piece, Reading, Started

_RETRY_SECONDS = 10


class Computes(Protocol):
    """The part of engine.Engine that is used here."""

    def submit(self, request: Request, sink: Sink) -> Any: ...

    def cancel(self, ticket: Any) -> None: ...


class Submission:
    """Requests that are submitted together; their choices are numbered over all of them.

    `put(number, event)` is called on the engine's thread; pass these events to `pieces` on another thread, in order.
    `live`: tickets of the choices that the engine still computes. `progress`: pieces say how far each prompt is.
    """

    def __init__(self, engine: Computes, put: Callable[[int, ReplyEvent], None], *, progress: bool = False) -> None:
        self._engine, self._put, self._progress = engine, put, progress
        self.live: dict[int, Any] = {}
        self._choices: list[Choice] = []
        self._firsts: list[int] = []  # of each choice, the number of its request's first
        self._admitted: set[int] = set()  # requests, by that number

    def add(self, choices: Sequence[Choice]) -> range:
        """Submit a request's choices and return their numbers. Raises as the engine's `submit`."""
        first = len(self._choices)
        for number, choice in enumerate(choices, first):
            choice.number = number
            self._choices.append(choice)
            self._firsts.append(first)
            request = replace(choice.request, progress=self._progress and number == first)
            self.live[number] = self._engine.submit(request, partial(self._put, number))
        return range(first, len(self._choices))

    def pieces(self, events: Sequence[tuple[int, ReplyEvent]]) -> list[Piece]:
        """What these events add to the answer.

        Raises the error of a choice that failed, and OverloadError if the engine was closed.
        """
        found: list[Piece] = []
        for number, event in events:
            choice, first = self._choices[number], self._firsts[number]
            if isinstance(event, (Finished, Failed)):
                self.live.pop(number, None)
            if choice.ended:
                continue
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished) and event.reason == "cancelled":
                raise OverloadError("The engine was closed before the request finished.", _RETRY_SECONDS)
            if isinstance(event, Admitted) and first not in self._admitted:
                self._admitted.add(first)  # the other choices share what this one has computed
                found.append(Started(len(choice.request.tokens), event.reused))
            if isinstance(event, PromptProgress):
                found.append(Reading(number, event))
            else:
                choice.push(event)
        for number in dict.fromkeys(number for number, _ in events):
            choice = self._choices[number]
            found += choice.take()
            if choice.ended and number in self.live:
                self._engine.cancel(self.live.pop(number))
        return found

    def cancel(self) -> None:
        """Cancel all choices that are still computed."""
        for ticket in self.live.values():
            self._engine.cancel(ticket)
        self.live.clear()
