"""Access control: API keys, allowed Host names, and the origins of web pages that may send requests.

Keys are stored as SHA-256 digests; a request's key is compared with all of them in constant time. Without keys a server
listens on loopback only. Refused: a file of keys that other users can read, a Host that is not this server's (this
prevents DNS rebinding), and requests from web pages of other origins.
"""

import hashlib
import hmac
import ipaddress
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from earthshine.errors import EarthshineError, UsageError
from earthshine.settings import expanded
from earthshine.untrusted import open_regular, shown

_MAX_FILE_BYTES = 1 << 20
_LEAST_CHARACTERS = 16
_MAX_KEY_BYTES = 1 << 10
_LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


class Unauthorized(EarthshineError):
    """A request's API key is missing or wrong."""


@dataclass(frozen=True, slots=True)
class Access:
    """`keys`: SHA-256 digests; if there are none, no key is needed. `hosts`: Host names to accept, None for any.
    `origins`: web pages that may send requests from elsewhere, "*" for all."""

    keys: tuple[bytes, ...] = ()
    hosts: frozenset[str] | None = None
    origins: tuple[str, ...] = ()

    def user(self, headers: Mapping[str, str]) -> str:
        """The hexadecimal digest of the request's key; "" if no keys are configured.

        Raises Unauthorized for a missing or wrong key, with the same message.
        """
        if not self.keys:
            return ""
        digest = hashlib.sha256(_given(headers).encode("utf-8", "surrogateescape")).digest()
        found = False
        for key in self.keys:  # compare with all keys, so that the time does not depend on which one matches
            found |= hmac.compare_digest(key, digest)
        if not found:
            raise Unauthorized("This server needs an API key: send Authorization: Bearer KEY, or x-api-key: KEY.")
        return digest.hex()

    def check_caller(self, headers: Mapping[str, str]) -> None:
        """Raises UsageError for a missing Host, one that is not this server's, and a web page of another origin."""
        host = headers.get("host", "")
        if self.hosts is not None and not host:
            raise UsageError("The request has no Host header; send one with this server's name.")
        if self.hosts is not None and host_name(host) not in self.hosts:
            raise UsageError(
                f"The host {shown(host)} is not one of this server's names; start it with --allow-host to add it."
            )
        origin = headers.get("origin")
        if origin is None or "*" in self.origins or origin in self.origins:
            return
        if urlsplit_host(origin) != host.lower():
            raise UsageError(
                f"Pages from {shown(origin)} may not use this server; start it with --allow-origin to permit them."
            )


def _given(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return given if len(given) <= _MAX_KEY_BYTES else ""


def host_name(host: str) -> str:
    """A Host header without its port, in lower case."""
    name = host.lower().removesuffix(".")
    if name.startswith("["):
        return name.partition("]")[0] + "]"
    return name.partition(":")[0].removesuffix(".")


def urlsplit_host(origin: str) -> str:
    """The host and port of an origin; "" if it has none, such as "null"."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def make_access(
    host: str, keys: Path | None = None, allowed_hosts: tuple[str, ...] = (), origins: tuple[str, ...] = ()
) -> Access:
    """Access control for a server on `host`. Raises UsageError if other machines can reach it and there are no keys."""
    digests = () if keys is None else read_keys(keys)
    origins = tuple(map(read_origin, origins))
    if is_loopback(host):
        bound = f"[{host}]" if ":" in host else host
        names = frozenset(host_name(name) for name in (*_LOOPBACK_HOSTS, bound, *allowed_hosts))
        return Access(digests, names, origins)
    if not digests:
        raise UsageError(
            f"Other machines can reach {host}, so API keys are needed: put one per line in a file and give --api-keys "
            "FILE."
        )
    return Access(digests, frozenset(map(host_name, allowed_hosts)) or None, origins)


def read_origin(text: str) -> str:
    """An origin as browsers send it: scheme, host and port, in lower case. "*" is every page.

    A slash at the end and the scheme's default port are left out. Raises UsageError for anything else.
    """
    if text == "*":
        return text
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    more = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc
    if not parts.scheme or not parts.hostname or more or not text.isascii():
        raise UsageError(
            f"--allow-origin {shown(text)} is not an origin; give scheme, host and port alone, such as https://app.example."
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    own = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{host}" + (f":{port}" if port is not None and port != own else "")


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Digests of a file's keys, one per line; # begins a comment. Raises UsageError for an unsafe or empty file."""
    try:
        real = Path(os.path.realpath(expanded(str(path))))
    except (RuntimeError, ValueError):
        raise UsageError(f"The file of API keys {shown(path)} is not a path.") from None
    descriptor = open_regular(real, f"The file of API keys {path}", UsageError)
    with open(descriptor, "rb") as file:
        if os.fstat(descriptor).st_mode & (stat.S_IRWXG | stat.S_IRWXO) & ~stat.S_IXGRP & ~stat.S_IXOTH:
            raise UsageError(f"Other users can read the API keys in {path}; run: chmod 600 {path}")
        raw = file.read(_MAX_FILE_BYTES + 1)
    if len(raw) > _MAX_FILE_BYTES:
        raise UsageError(f"{path} has more than {_MAX_FILE_BYTES} bytes, which is too much for a file of keys.")
    keys = [line for line in (text.partition(b"#")[0].strip() for text in raw.splitlines()) if line]
    for number, key in enumerate(keys, 1):
        if not all(0x21 <= byte <= 0x7E for byte in key) or not _LEAST_CHARACTERS <= len(key) <= _MAX_KEY_BYTES:
            raise UsageError(
                f"Key {number} in {path} is not {_LEAST_CHARACTERS} to {_MAX_KEY_BYTES} letters, digits and signs "
                "without spaces; make one with: openssl rand -hex 32"
            )
    if not keys:
        raise UsageError(f"{path} has no key; write one per line, such as openssl rand -hex 32 makes.")
    return tuple(dict.fromkeys(hashlib.sha256(key).digest() for key in keys))
