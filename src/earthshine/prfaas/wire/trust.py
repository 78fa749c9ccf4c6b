"""TLS 1.3 and who is trusted: the listener's certificate and key, and on the other side a CA or pinned certificates.

A pin is the SHA-256 of a certificate in DER. A pinned certificate is trusted as it is, by any signer and whatever
names it has, but not before and not after the dates in it.
"""

import hashlib
import socket
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from earthshine.errors import UsageError
from earthshine.net.listen import ListenOptions, tls_context
from earthshine.prfaas.wire.fault import Reason, WireError
from earthshine.untrusted import shown

_PIN_DIGITS = 64
_EXPLICIT_VERSION, _UTC_TIME = 0xA0, 0x17  # tags


@dataclass(frozen=True, slots=True)
class Trust:
    """`ca`: a PEM file of certificates that may sign a peer's, None for the system's. `pins`: SHA-256 digests in
    hexadecimal, colons allowed; if there are any, they alone decide. Raises UsageError for what is neither."""

    ca: Path | None = None
    pins: tuple[str, ...] = ()
    _context: ssl.SSLContext = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for pin in self.pins:
            if len(_plain(pin)) != _PIN_DIGITS or not set(_plain(pin)) <= set("0123456789abcdef"):
                raise UsageError(
                    f"{shown(pin)} is not the SHA-256 of a certificate; `openssl x509 -in cert.pem -noout -fingerprint "
                    "-sha256` shows it."
                )
        object.__setattr__(self, "_context", _anything() if self.pins else _of_authorities(self.ca))

    def connect(self, sock: socket.socket, host: str) -> ssl.SSLSocket:
        """TLS over a connected socket. Raises WireError (CERTIFICATE, LOST); the caller closes `sock`."""
        try:
            found = self._context.wrap_socket(sock, server_hostname=host)
        except ssl.SSLCertVerificationError as error:
            raise _untrusted(host, error.verify_message) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise WireError(Reason.LOST, f"TLS with {host} failed: {reason}. Does it use TLS?") from None
        try:
            if self.pins:
                self._check(found.getpeercert(binary_form=True) or b"", host)
        except WireError:
            found.close()
            raise
        return found

    def _check(self, der: bytes, host: str) -> None:
        digest = hashlib.sha256(der).hexdigest()
        if digest not in map(_plain, self.pins):
            raise _untrusted(host, f"its SHA-256 is {digest}, which is not pinned")
        _require_in_date(der, host)


def server_context(options: ListenOptions) -> ssl.SSLContext | None:
    """A context for TLS 1.3 alone, None without files. Raises UsageError as `net.listen.tls_context`."""
    context = tls_context(options)
    if context is not None:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0  # no session is resumed, and a ticket would look like a frame's first byte to poll
    return context


def _require_in_date(der: bytes, host: str) -> None:
    """Raises WireError if a pinned certificate is not valid now; OpenSSL looks at dates only along with signers."""
    try:
        first, last = _validity(der)
    except (IndexError, ValueError):
        raise _untrusted(host, "its dates can't be read") from None
    now = datetime.now(UTC)
    if not first <= now <= last:
        raise _untrusted(host, f"it is valid from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC")


def _validity(der: bytes) -> tuple[datetime, datetime]:
    """The dates of a certificate in DER (RFC 5280, 4.1). Raises ValueError or IndexError for anything else."""
    at = _element(der, _element(der, 0)[1])[1]  # into Certificate, into TBSCertificate
    tag, _, end = _element(der, at)
    if tag == _EXPLICIT_VERSION:
        at = end
    for _ in range(3):  # serial number, algorithm, issuer
        at = _element(der, at)[2]
    at = _element(der, at)[1]
    times = []
    for _ in range(2):
        tag, start, at = _element(der, at)
        text = der[start:at].decode("ascii")
        if tag == _UTC_TIME:  # two digits of the year: 50 to 99 are of the 20th century
            text = ("19" if text[:2] >= "50" else "20") + text
        times.append(datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC))
    return times[0], times[1]


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """The tag of the DER element at `at`, and where its content begins and ends."""
    tag, length = der[at], der[at + 1]
    at += 2
    if length & 0x80:
        more = length & 0x7F
        length = int.from_bytes(der[at : at + more], "big")
        at += more
    if at + length > len(der):
        raise ValueError
    return tag, at, at + length


def _of_authorities(ca: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"{ca} is not a PEM file of certificates: {error.strerror or error}.") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _anything() -> ssl.SSLContext:
    """Takes any certificate: the caller compares it with its pins."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _untrusted(host: str, why: str) -> WireError:
    return WireError(Reason.CERTIFICATE, f"The certificate of {host} is not trusted: {why}.")


def _plain(pin: str) -> str:
    return pin.replace(":", "").strip().lower()
