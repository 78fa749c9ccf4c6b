"""From the bytes of a request to a checked value: limited in size and time before they are parsed.

A body is one JSON object in UTF-8 that repeats no key and nests at most 32 levels deep. An invalid field is reported
in one sentence that names it by its path, such as messages[0].content, and by the name that the client used. Half
surrogate pairs become U+FFFD, as in every UTF-8 encoder: clients that cut texts in the middle of a character send them.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Set
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from earthshine.server.refusals import Refused
from earthshine.units import format_bytes
from earthshine.untrusted import parse_object, shown

_LARGE_BYTES = 64 << 10  # parsing a larger body would delay other requests' events by milliseconds
_MAX_VALUES = 1 << 19  # in one body, a text being one; checking them takes 400 bytes each where all are wrong
_SHOULD = "Input should be "  # the beginning of pydantic's messages
_BOUNDS = {  # pydantic's error types for a value of the right type that is out of range
    "too_long", "too_short", "string_too_long", "string_too_short",
    "greater_than", "greater_than_equal", "less_than", "less_than_equal",
}  # fmt: skip
_SIZE = re.compile(r"[A-Z][a-z]+ (should have at (?:least|most) [0-9]+ [a-z]+)(?: after validation, not .*)?")
_MOST_ERRORS = 1000  # that are examined: each takes a kilobyte
T = TypeVar("T")
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for one request and for all requests together."""

    body_bytes: int = 32 << 20
    all_bodies_bytes: int = 256 << 20
    stalled_body_seconds: float = 30.0
    body_seconds: float = 600.0
    n: int = 16
    choices: int = 128  # over all prompts
    first_seconds: float = 5.0  # until a stream begins with a ping
    ping_seconds: float = 10.0
    stalled_send_seconds: float = 120.0
    streams: int = 32  # with X-Conversation-Id
    owner_streams: int = 16  # of these, being computed for one API key or address, so that none takes all
    stream_bytes: int = 4 << 20  # of the events of each, compressed
    unread_seconds: float = 300.0  # being computed: a page loads in less than 60 s, a phone may sleep for minutes
    ended_seconds: float = 3600.0


class BodyTimeout(Refused):
    """408: the rest of a body did not arrive in time."""

    @property
    def status(self) -> int:
        return 408


class ClientGone(Exception):
    """The client has closed its connection."""


class Bodies:
    """Reads bodies, and counts the bytes that all of them take. One per server."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._held = limits, 0
        self._parsing = asyncio.Lock()

    async def read(self, request: Request, model: type[BaseModel]) -> tuple[BaseModel, dict[str, Any]]:
        """The body as a `model`, and as it was sent. Raises Refused and ClientGone."""
        async with self.raw(request) as raw:
            return await self.parse(raw, partial(parse_body, model=model))

    @asynccontextmanager
    async def raw(self, request: Request) -> AsyncIterator[bytes]:
        """The bytes of a body, which count until the block ends. Raises Refused and ClientGone."""
        with self._reserved() as reserve:
            yield await self._receive(request, reserve)

    async def parse(self, raw: bytes, parser: Callable[[bytes], T]) -> T:
        """What `parser` makes of `raw`: off the event loop where that is large, and one such body at a time."""
        if len(raw) <= _LARGE_BYTES:
            return parser(raw)
        async with self._parsing:
            return await asyncio.to_thread(parser, raw)

    @contextmanager
    def _reserved(self) -> Iterator[Callable[[int], None]]:
        taken = 0

        def reserve(nbytes: int) -> None:
            nonlocal taken
            if self._held + nbytes > self._limits.all_bodies_bytes:
                raise Refused("The bodies of other requests take all the memory for bodies; try again.",
                              "unavailable", None, 1)  # fmt: skip
            self._held += nbytes
            taken += nbytes

        try:
            yield reserve
        finally:
            self._held -= taken

    async def _receive(self, request: Request, reserve: Callable[[int], None]) -> bytes:
        limit, loop = self._limits.body_bytes, asyncio.get_running_loop()
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and (len(declared) > 15 or int(declared) > limit):
            raise _too_large(limit)
        if request.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
            raise Refused("The body is compressed, which is not supported; send it uncompressed.")
        parts: list[bytes] = []
        received, end = 0, loop.time() + self._limits.body_seconds
        while True:
            try:
                async with asyncio.timeout_at(min(end, loop.time() + self._limits.stalled_body_seconds)):
                    message = await request.receive()
            except TimeoutError:
                raise BodyTimeout(f"The body stopped arriving after {received} bytes; send it again.") from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            received += len(part)
            if received > limit:
                raise _too_large(limit)
            reserve(len(part))
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)


def _too_large(limit: int) -> Refused:
    return Refused(f"The body has more than {format_bytes(limit)}, the limit of this server.", "too_large")


def parse_body(raw: bytes, model: type[BaseModel]) -> tuple[BaseModel, dict[str, Any]]:
    """The body as a `model`, and as the JSON object that was sent. Raises Refused."""
    body = parse_object(raw, "The body", Refused)
    _require_few(body)
    if _HALF.search(raw):
        body = _whole_characters(body)
    try:
        return model.model_validate(body), body
    except ValidationError as error:
        also_read = getattr(model, "also_read", {})
        if not _make_whole(body, error, also_read):
            raise _refusal(error, body, also_read) from None
    try:
        return model.model_validate(body), body
    except ValidationError as error:
        raise _refusal(error, body, also_read) from None


def _make_whole(body: dict[str, Any], error: ValidationError, also_read: Mapping[str, str]) -> bool:
    """Turns 8.0 into 8 where an integer is expected. Returns whether there was any."""
    if error.error_count() > _MOST_ERRORS:
        return False
    wrong = [each for each in error.errors(include_url=False) if each["type"] == "int_type"]
    found = False
    for each in wrong:
        if isinstance(each["input"], float) and each["input"].is_integer():
            found |= _put(body, _as_sent(each["loc"], body, also_read), int(each["input"]))
    return found


def _put(body: Any, loc: tuple[int | str, ...], value: int) -> bool:
    """Replaces the value at `loc`. Steps of `loc` that name a form of a union are not in the body and are skipped."""
    here, place = body, None
    for step in loc:
        inside = step in here if isinstance(here, dict) else isinstance(here, list) and step in range(len(here))
        if inside:
            place, here = (here, step), here[step]
    if place is None or not isinstance(here, float):
        return False
    place[0][place[1]] = value
    return True


def _require_few(body: dict[str, Any]) -> None:
    n_values = 0
    level: list[Any] = [body]
    while level:
        inner = [value for entry in level for value in (entry.values() if isinstance(entry, dict) else entry)]
        n_values += len(inner)
        if n_values > _MAX_VALUES:
            raise Refused(f"The body holds more than {_MAX_VALUES} values; send fewer.", "too_large")
        level = [value for value in inner if isinstance(value, (dict, list))]


def _whole_characters(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [_whole_characters(entry) for entry in value]
    if isinstance(value, dict):
        return {_whole_characters(key): _whole_characters(entry) for key, entry in value.items()}
    return value


def unknown_fields(body: Mapping[str, Any], model: type[BaseModel]) -> list[str]:
    """The fields of `body` that are ignored: those that `model` does not have, and those of Ollama's `options` that are
    not in its `read_options`, as options.NAME."""
    known = {name for field, info in model.model_fields.items() for name in (field, info.alias, info.validation_alias)}
    known.update(getattr(model, "also_read", {}))
    read: Set[str] | None = getattr(model, "read_options", None)
    options = body.get("options")
    nested = [] if read is None or not isinstance(options, Mapping) else [each for each in options if each not in read]
    return [name for name in body if name not in known] + [f"options.{name}" for name in nested]


def _refusal(error: ValidationError, body: dict[str, Any], also_read: Mapping[str, str]) -> Refused:
    """The most informative of the errors. Where a field may have several forms, that is a value out of range, since its
    form is right, or else the deepest error. `also_read`: other names of fields, to this server's names."""
    if error.error_count() > _MOST_ERRORS:
        return Refused(f"The body has {error.error_count()} errors; its fields are not those of this path.")
    found = [
        (_path(_as_sent(each["loc"], body, also_read), body, each["type"] == "missing"), each)
        for each in error.errors(include_url=False)
    ]
    path, worst = max(found, key=lambda pair: (pair[1]["type"] in _BOUNDS, pair[0].count(".") + pair[0].count("[")))
    message = worst["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").rstrip(".")
    if worst["type"] in ("value_error", "assertion_error"):
        return Refused(f"{message}.", "invalid", path or None)
    subject = path or "The body"
    if worst["type"] == "missing":
        return Refused(f"{subject} is missing; it is required.", "invalid", path)
    alike = [each for at, each in found if at == path and (each is worst or worst["type"] not in _BOUNDS)]
    forms = [each["msg"].removeprefix(_SHOULD) for each in alike if each["msg"].startswith(_SHOULD)]
    size = _SIZE.fullmatch(message)
    other = f"{subject} {size[1]}" if size else f"{subject}: {message}"
    rule = f"{subject} should be {' or '.join(dict.fromkeys(forms))}" if forms else other
    return Refused(f"{rule}, and is {shown(worst['input'])}.", "invalid", path or None)


def as_sent(problem: Refused, body: dict[str, Any], model: type[BaseModel]) -> Refused:
    """The refusal with the name that the client used for its field."""
    if problem.param is None:
        return problem
    sent = ".".join(map(str, _as_sent((problem.param,), body, getattr(model, "also_read", {}))))
    return problem if sent == problem.param else problem.named(sent)


def _as_sent(loc: tuple[int | str, ...], body: dict[str, Any], also_read: Mapping[str, str]) -> tuple[int | str, ...]:
    """The place by the name that the client used, which may be in `options`."""
    if not loc or body.get(str(loc[0])) is not None:
        return loc
    options = body.get("options")
    for held, outer in ((body, ()), (options if isinstance(options, dict) else {}, ("options",))):
        for name in held:
            if loc[0] in (name, also_read.get(name)) and held[name] is not None:
                return (*outer, name, *loc[1:])
    return loc


def _path(loc: tuple[int | str, ...], body: Any, missing: bool) -> str:
    """The place as a path such as messages[0].content. Names of a union's forms, which pydantic puts in between, are
    left out."""
    path, here = "", body
    for at, step in enumerate(loc):
        if isinstance(here, dict) and isinstance(step, str) and (step in here or (missing and at == len(loc) - 1)):
            here, path = here.get(step), f"{path}.{step}" if path else step
        elif isinstance(here, list) and isinstance(step, int) and 0 <= step < len(here):
            here, path = here[step], f"{path}[{step}]"
    return path if len(path) <= 200 else path[:200] + "..."
