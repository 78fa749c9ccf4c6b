"""Where a server listens: a bound socket and its TLS context.

Both are made before a model is loaded, so that a port in use or a wrong certificate is reported at once.
"""

import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from earthshine.errors import UsageError
from earthshine.untrusted import shown

_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s:/@\[\]]+)):(\d{1,5})")
_ANY = {"0.0.0.0": (socket.AF_INET, "192.0.2.1"), "::": (socket.AF_INET6, "2001:db8::1")}  # and an address elsewhere


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """An address to listen on; port 0 chooses a free one. Both TLS files, or neither."""

    host: str = "127.0.0.1"
    port: int = 8000
    tls_cert: Path | None = None
    tls_key: Path | None = None


def address_of(text: str, option: str) -> tuple[str, int]:
    """Host and port from HOST:PORT; [HOST]:PORT for IPv6. Raises UsageError, which names `option`."""
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise UsageError(f"{option} is {shown(text)}; write HOST:PORT, such as 127.0.0.1:7100; port 0 for any.")
    return found[1] or found[2], int(found[3])


def bind(options: ListenOptions) -> socket.socket:
    """A socket bound to `options`, not yet listening. Raises UsageError if the address or port can't be used."""
    if not 0 <= options.port <= 65535:
        raise UsageError(f"Port {options.port} does not exist; choose 1 to 65535, or 0 for any that is free.")
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {options.host} is not an address of this machine: {_reason(error)}.") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        why = f"Port {options.port} of {options.host} can't be used: {_reason(error)}."
        raise UsageError(f"{why} Choose another port, 0 for any.") from None
    return bound


def outside_address(host: str) -> str | None:
    """For a server on all addresses, the one that other networks see; the machine's name where it has no network.

    None for any other `host`.
    """
    if host not in _ANY:
        return None
    family, elsewhere = _ANY[host]
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))  # chooses a route; nothing is sent
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def tls_context(options: ListenOptions) -> ssl.SSLContext | None:
    """A context for TLS 1.2 and later, None without files. Raises UsageError unless they are a matching pair."""
    if options.tls_cert is None and options.tls_key is None:
        return None
    if options.tls_cert is None or options.tls_key is None:
        raise UsageError("TLS needs a certificate and its key: give --tls-cert and --tls-key.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:  # without a prompt for the password of a key that has one
        context.load_cert_chain(options.tls_cert, options.tls_key, password=lambda: "")
    except ssl.SSLError as error:
        raise UsageError(
            f"{options.tls_cert} and {options.tls_key} are not a PEM certificate and its key without a password: "
            f"{_reason(error)}."
        ) from None
    except OSError as error:
        raise UsageError(
            f"The TLS files {options.tls_cert} and {options.tls_key} can't be read: {_reason(error)}."
        ) from None
    return context
