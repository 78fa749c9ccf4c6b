"""Sends a trace to a running server and times the answers: the client of `earthshine bench serve`.

One asyncio loop, one connection per request. Times are taken as bytes arrive and include connecting. Every request
gives one Sample, failed or not. The server is untrusted: what it sends is limited, and errors are counted. Raises
Unreachable if no server answers, or if it refuses the trial request.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from earthshine.errors import EarthshineError, UsageError
from earthshine.loadgen.client import LINE_BYTES, NO_CONNECTION, Site, Whole, call, error_message, parsed
from earthshine.loadgen.trace import Arrival, Shape, token_ids, words
from earthshine.untrusted import shown

ApiName = Literal["completions", "chat"]
_PATHS: dict[str, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_REFUSED = "The server refuses the trial request"
_GONE = 16  # connections that fail in a row, after which the rest is not sent
_TRIAL_TOKENS, _TRIAL_WORDS = 16, (32, 160)
_TEXTS = ("text", "content", "reasoning_content", "reasoning", "tool_calls")
_CONTEXTS = ("max_model_len", "context_length", "context_window", "max_context_length")


class Unreachable(EarthshineError):
    """No server answers at the address, or not like an OpenAI server."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server that answered: its model, the model's context, and the tokens of a word where prompts are text."""

    site: Site
    api: ApiName
    model: str
    context_tokens: int | None  # None if the server does not report it
    forced: bool  # the server accepts ignore_eos, so replies have the trace's lengths
    tokens_per_word: float = 1.0
    overhead_tokens: float = 0.0

    def shape(self, seed: int, scale: float) -> Shape:
        if self.api == "completions":
            return Shape.of_tokens(seed, scale)
        return Shape.of_words(seed, scale, self.tokens_per_word, self.overhead_tokens)


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. Times are in seconds from its sending, `sent` from the start of the run; `late`: how long after its
    due time it was sent; `first`: until the first piece with text, None if there is none; `gaps`: between pieces."""

    index: int
    sent: float
    late: float
    seconds: float
    first: float | None
    gaps: tuple[float, ...]
    asked_tokens: int
    output_tokens: int
    input_tokens: int | None
    cached_tokens: int | None
    problem: str | None  # None: a whole reply


@dataclass(frozen=True, slots=True)
class Run:
    """All samples in the order of their ends. `client_share`: this process's CPU time over the run's time."""

    samples: tuple[Sample, ...]
    unsent: int
    seconds: float
    client_share: float


def open_target(site: Site, api: ApiName, model: str | None = None) -> Target:
    """Lists the models and makes a short trial request, two where the tokens of words are measured. Raises
    Unreachable."""
    return asyncio.run(_open(site, api, model))


def drive(
    target: Target,
    arrivals: Sequence[Arrival],
    shape: Shape,
    *,
    concurrency: int | None = None,
    speed: float = 1.0,
    ended: Callable[[Sample], None] = lambda sample: None,
) -> Run:
    """Send every request: `concurrency` at a time, or if that is None at the trace's times, sped up by `speed`.

    `ended` is called with every sample.
    """
    return asyncio.run(_Driver(target, arrivals, shape, ended).run(concurrency, speed))


class _Driver:
    """One run. `_gone`: connections that failed since the last one that did not."""

    def __init__(
        self, target: Target, arrivals: Sequence[Arrival], shape: Shape, ended: Callable[[Sample], None]
    ) -> None:
        self._target, self._arrivals, self._shape, self._ended = target, arrivals, shape, ended
        self._samples: list[Sample] = []
        self._gone = 0
        self._began = 0.0

    async def run(self, concurrency: int | None, speed: float) -> Run:
        busy, self._began = time.process_time(), time.perf_counter()
        if concurrency is None:
            await self._by_time(speed)
        else:
            left = iter(range(len(self._arrivals)))
            await asyncio.gather(*(self._one_by_one(left) for _ in range(min(concurrency, len(self._arrivals)))))
        seconds = time.perf_counter() - self._began
        share = (time.process_time() - busy) / max(seconds, 1e-9)
        return Run(tuple(self._samples), len(self._arrivals) - len(self._samples), seconds, share)

    async def _one_by_one(self, left: Iterator[int]) -> None:
        for index in left:
            if self._gone >= _GONE:
                return
            await self._one(index, self._body(index), None)

    async def _by_time(self, speed: float) -> None:
        tasks: set[asyncio.Task[None]] = set()
        for index, arrival in enumerate(self._arrivals):
            due = self._began + arrival.seconds / speed
            body = self._body(index)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if self._gone >= _GONE:
                break
            task = asyncio.create_task(self._one(index, body, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    def _body(self, index: int) -> bytes:
        arrival = self._arrivals[index]
        units = self._shape.units(arrival, index)
        return _body(self._target, units, self._shape.output_tokens(arrival), stream=True)

    async def _one(self, index: int, body: bytes, due: float | None) -> None:
        began, stream = time.perf_counter(), _Stream()
        problem = await call(self._target.site, "POST", _PATHS[self._target.api], body, stream)
        self._gone = self._gone + 1 if problem is not None and problem.startswith(NO_CONNECTION) else 0
        times = [at - began for at in stream.times]
        gaps = tuple(after - before for before, after in pairwise(times))
        sample = Sample(
            index=index,
            sent=began - self._began,
            late=0.0 if due is None else began - due,
            seconds=time.perf_counter() - began,
            first=times[0] if times else None,
            gaps=gaps,
            asked_tokens=self._shape.output_tokens(self._arrivals[index]),
            output_tokens=_count(stream.usage, "completion_tokens", len(times)) or 0,
            input_tokens=_count(stream.usage, "prompt_tokens"),
            cached_tokens=_cached(stream.usage),
            problem=problem or stream.problem,
        )
        self._samples.append(sample)
        self._ended(sample)


class _Stream:
    """Server-sent events as they come: the times of those with text, and the usage."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.usage: object = None
        self.problem: str | None = "the stream ended before [DONE]"
        self._rest = b""

    def take(self, at: float, data: bytes) -> bool:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and not self._event(at, line[5:].strip()):
                return False
        if len(self._rest) > LINE_BYTES:
            self.problem = f"an event has more than {LINE_BYTES} bytes"
            return False
        return True

    def _event(self, at: float, raw: bytes) -> bool:
        if raw == b"[DONE]":
            self.problem = None
            return False
        event = parsed(raw)
        if not isinstance(event, dict):
            self.problem = "an event is not a JSON object"
            return False
        if event.get("error"):
            self.problem = f"an error in the stream: {error_message(event)}"
            return False
        self.usage = event.get("usage") or self.usage
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if isinstance(choice, dict):
            delta = choice.get("delta")
            piece = delta if isinstance(delta, dict) else choice
            if any(piece.get(name) for name in _TEXTS):
                self.times.append(at)
        return True


async def _open(site: Site, api: ApiName, model: str | None) -> Target:
    listed = await _ask(site, "GET", "/v1/models", b"")
    entries = listed.get("data")
    models = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    named = {entry["id"]: entry for entry in models if isinstance(entry.get("id"), str)}
    if not named:
        raise Unreachable(f"{site.host}:{site.port} lists no model at /v1/models.")
    name = model if model is not None else next(iter(named))
    if name not in named:
        raise UsageError(
            f"The model {shown(name)} is not on this server; it has {', '.join(map(shown, list(named)[:8]))}."
        )
    context = next((n for key in _CONTEXTS if (n := _count(named[name], key)) is not None), None)
    target = Target(site, api, name, context, forced=True)
    try:
        return await _weighed(target)
    except Unreachable as error:
        if not str(error).startswith(_REFUSED):
            raise
    return await _weighed(replace(target, forced=False))


async def _weighed(target: Target) -> Target:
    """The target after a trial; for chat with the measured tokens of a word."""
    if target.api == "completions":
        await _trial(target, _TRIAL_TOKENS)
        return target
    few, many = [await _trial(target, n) for n in _TRIAL_WORDS]
    if few is None or many is None or many <= few:
        raise Unreachable("The server's usage.prompt_tokens do not grow with the prompt, so lengths can't be set.")
    each = (many - few) / (_TRIAL_WORDS[1] - _TRIAL_WORDS[0])
    return replace(target, tokens_per_word=each, overhead_tokens=max(0.0, few - each * _TRIAL_WORDS[0]))


async def _trial(target: Target, units: int) -> int | None:
    """The tokens of a prompt of `units` words, as the server counts them."""
    body = _body(target, list(range(units)), 2, stream=False)
    found = await _ask(target.site, "POST", _PATHS[target.api], body)
    return _count(found.get("usage"), "prompt_tokens")


async def _ask(site: Site, method: str, path: str, body: bytes) -> dict[str, Any]:
    """The JSON object that answers a request. Raises Unreachable."""
    taker = Whole()
    problem = await call(site, method, path, body, taker)
    if problem is not None and problem.startswith(("HTTP 400", "HTTP 422")):
        raise Unreachable(f"{_REFUSED} ({problem}).")
    if problem is not None:
        raise Unreachable(f"http{'s' * site.tls}://{site.host}:{site.port}{site.prefix}{path}: {problem}.")
    found = parsed(bytes(taker.raw))
    if not isinstance(found, dict):
        raise Unreachable(f"{site.host}:{site.port}{site.prefix}{path} does not answer with a JSON object.")
    return found


def _body(target: Target, units: list[int], output_tokens: int, stream: bool) -> bytes:
    if target.api == "completions":
        prompt: dict[str, Any] = {"prompt": token_ids(units)}
    else:
        prompt = {"messages": [{"role": "user", "content": words(units)}]}
    request = {"model": target.model} | prompt | {"max_tokens": output_tokens, "temperature": 0}
    if target.forced:
        request["ignore_eos"] = True
    if stream:
        request |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(request, separators=(",", ":")).encode()


def _count(usage: object, name: str, otherwise: int | None = None) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40 else otherwise


def _cached(usage: object) -> int | None:
    """Tokens of the prompt found in the cache, in OpenAI's field or in Moonshot's."""
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    return _count(details, "cached_tokens", _count(usage, "cached_tokens"))
