"""Requests on the engine: choices are submitted, their events become pieces of text, and all are cancelled at once.

Knows no event loop, so that the HTTP server and `LLM` share it: the submitter says where events go.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from earthshine.engine import Admitted, Failed, Finished, ReplyEvent, Request, Sink
from earthshine.errors import OverloadError
from earthshine.generation.output import Choice
from earthshine.generation.prompts import Prepared
from earthshine.generation.request import Piece, Started
from earthshine.text import Tokenizer

_RETRY_SECONDS = 10


class Computes(Protocol):
    """What is asked of engine.Engine."""

    def submit(self, request: Request, sink: Sink) -> Any: ...

    def cancel(self, ticket: Any) -> None: ...


class Submission:
    """Requests that are submitted together, each with one or more choices, numbered over all of them.

    `put(choice, event)` gets the engine's events on the engine's thread; hand them to `pieces` on another, in order.
    `live`: tickets of the choices that the engine still computes.
    """

    def __init__(self, engine: Computes, tokenizer: Tokenizer, put: Callable[[int, ReplyEvent], None]) -> None:
        self._engine, self._tokenizer, self._put = engine, tokenizer, put
        self.live: dict[int, Any] = {}
        self._choices: list[tuple[Choice, Prepared]] = []
        self._admitted: set[Prepared] = set()

    def add(self, prepared: Prepared, tenant: str = "") -> range:
        """Submit a request's choices; their numbers. Raises as the engine's `submit`."""
        first, params = len(self._choices), prepared.params
        for choice in range(params.n):
            number, own = first + choice, replace(params, seed=params.choice_seed(choice))
            request = Request(prepared.tokens, own, tenant, prepared.request.priority, prepared.constraint())
            self._choices.append((Choice(number, prepared, self._tokenizer), prepared))
            self.live[number] = self._engine.submit(request, partial(self._put, number))
        return range(first, len(self._choices))

    def pieces(self, events: Sequence[tuple[int, ReplyEvent]]) -> list[Piece]:
        """What these events add to the answer.

        Raises the error of a choice that failed, and OverloadError if the engine was closed.
        """
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
                raise OverloadError("The engine was closed before the request finished.", _RETRY_SECONDS)
            if isinstance(event, Admitted) and prepared not in self._admitted:
                self._admitted.add(prepared)  # the other choices share what this one has computed
                found.append(Started(len(prepared.tokens), event.reused))
            choice.push(event)
        for number in dict.fromkeys(number for number, _ in events):
            choice = self._choices[number][0]
            found += choice.take()
            if choice.ended and number in self.live:
                self._engine.cancel(self.live.pop(number))
        return found

    def cancel(self) -> None:
        """Cancel all choices that are still computed."""
        for ticket in self.live.values():
            self._engine.cancel(ticket)
        self.live.clear()
