"""An HTTP client for untrusted servers: one request per connection, with times taken as bytes arrive.

A malformed, endless or late answer is returned as a sentence and raises nothing, and the bytes that are kept are
limited. A body's bytes are passed to a taker, which may end the exchange.
"""

import asyncio
import errno
import functools
import json
import os
import ssl
import time
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from earthshine.errors import UsageError
from earthshine.untrusted import read_file, real_path, shown

NO_CONNECTION = "no connection"
LINE_BYTES = 4 << 20  # of an event
_HEAD_BYTES, _WHOLE_BYTES, _READ_BYTES = 64 << 10, 4 << 20, 64 << 10


@dataclass(frozen=True, slots=True)
class Site:
    """The server's address and the API key. `prefix`: the path before /v1."""

    host: str
    port: int
    tls: bool
    prefix: str = ""
    key: str = field(default="", repr=False)
    timeout_seconds: float = 600.0  # for a whole reply


class Taker(Protocol):
    """Gets a body's bytes as they come."""

    def take(self, at: float, data: bytes) -> bool:
        """Returns whether more is wanted. `at`: time.perf_counter when `data` came."""
        ...


class Whole:
    """Keeps a body, up to a little more than _WHOLE_BYTES."""

    def __init__(self) -> None:
        self.raw = bytearray()

    def take(self, at: float, data: bytes) -> bool:
        """Returns whether more is wanted."""
        self.raw += data
        return len(self.raw) <= _WHOLE_BYTES


def parse_site(url: str, key: str = "", timeout_seconds: float = 600.0) -> Site:
    """The site of an address http://host:port, with or without a path and /v1. Raises UsageError for anything else."""
    try:
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError:
        parts, port = urllib.parse.SplitResult("", "", "", "", ""), None
    plain = url.isascii() and url.isprintable() and " " not in url
    if not plain or parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise UsageError(f"{shown(url)} is not a server's address; give one such as http://127.0.0.1:8000.")
    if parts.query or parts.fragment or port == 0:
        raise UsageError(f"{shown(url)} must be a host, a port and a path only, such as http://127.0.0.1:8000.")
    tls = parts.scheme == "https"
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    return Site(parts.hostname, port or (443 if tls else 80), tls, prefix, key, timeout_seconds)


def read_key(path: Path) -> str:
    """The API key in a file, which holds nothing else. Raises UsageError."""
    raw = read_file(real_path(path, UsageError), shown(path), 4096, UsageError).decode("ascii", "replace").strip()
    if not raw or not all("!" <= character <= "~" for character in raw):
        raise UsageError(f"{shown(path)} has no API key; it must be one line of printable ASCII without spaces.")
    return raw


@functools.cache
def _context() -> ssl.SSLContext:
    return ssl.create_default_context()  # once, since reading all certificates takes time


async def call(site: Site, method: str, path: str, body: bytes, taker: Taker) -> str | None:
    """Make one request. Returns None, or what went wrong. The taker gets the body of a 200 only."""
    writer, reply, refusal = None, _Reply(), Whole()
    try:
        async with asyncio.timeout(site.timeout_seconds):
            try:
                secure = _context() if site.tls else None
                reader, writer = await asyncio.open_connection(site.host, site.port, ssl=secure)
            except (OSError, UnicodeError) as error:
                if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                    return "this client has too many open connections; see ulimit -n"
                return f"{NO_CONNECTION}: {_reason(error)}"
            writer.write(_head(site, method, path, body) + body)
            while not reply.finished and (data := await reader.read(_READ_BYTES)):
                found = reply.feed(data)
                wanted = taker if reply.status == 200 else refusal
                if found and not wanted.take(time.perf_counter(), found):
                    break
    except TimeoutError:
        return f"no whole reply within {site.timeout_seconds:g} s"
    except OSError as error:
        return f"the connection broke: {_reason(error)}"
    except ValueError:
        return "the answer is not HTTP"
    finally:
        if writer is not None:
            writer.transport.abort()
    if reply.status == 0:
        return "the connection ended without an answer"
    return None if reply.status == 200 else f"HTTP {reply.status}: {error_message(parsed(bytes(refusal.raw)))}"


def _head(site: Site, method: str, path: str, body: bytes) -> bytes:
    host = f"[{site.host}]" if ":" in site.host else site.host
    key = f"Authorization: Bearer {site.key}\r\n" if site.key else ""
    return (
        f"{method} {site.prefix}{path} HTTP/1.1\r\nHost: {host}:{site.port}\r\nConnection: close\r\n{key}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode("ascii")


def parsed(raw: bytes) -> object:
    """The JSON value, or None for what is not JSON."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def error_message(answer: object) -> str:
    """The message of an error in OpenAI's form, as far as there is one."""
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return shown(message) if isinstance(message, str) else "no message"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


class _Reply:
    """Parses the bytes of an HTTP/1.1 answer: its status, then the body's bytes as they come."""

    def __init__(self) -> None:
        self.status = 0
        self.finished = False
        self._head = b""
        self._left: int | None = None  # bytes of the body or the chunk; None: until the connection ends
        self._chunked = False

    def feed(self, data: bytes) -> bytes:
        """The bytes of the body in `data`. Raises ValueError for what is not HTTP."""
        if self.status == 0:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                if len(self._head) > _HEAD_BYTES:
                    raise ValueError
                return b""
            self._head = b""
            self._begin(head)
        if self._chunked:
            return self._chunks(data)
        if self._left is None:
            return data
        body, self._left = data[: self._left], max(0, self._left - len(data))
        self.finished = self._left == 0
        return body

    def _begin(self, head: bytes) -> None:
        first, *rest = head.decode("latin-1").split("\r\n")
        version, code = first.split(" ", 2)[:2]
        if not version.startswith("HTTP/1.") or not (code.isdecimal() and 200 <= int(code) <= 599):
            raise ValueError
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        self.status, self._chunked = int(code), fields.get("transfer-encoding", "").lower() == "chunked"
        if not self._chunked and "content-length" in fields:
            self._left = int(fields["content-length"][:20])
            self.finished = self._left <= 0

    def _chunks(self, data: bytes) -> bytes:
        body, rest = [], self._head + data
        self._head = b""
        while rest and not self.finished:
            if not self._left:  # a chunk's size, after the line end of the previous chunk
                line, found, after = rest.removeprefix(b"\r\n").partition(b"\r\n")
                if not found:
                    if len(rest) > _HEAD_BYTES:
                        raise ValueError
                    self._head = rest
                    break
                self._left, rest = int(line.split(b";")[0][:16], 16), after
                if self._left < 0:
                    raise ValueError
                self.finished = self._left == 0
                continue
            body.append(rest[: self._left])
            taken = len(body[-1])
            self._left, rest = self._left - taken, rest[taken:]
        return b"".join(body)
