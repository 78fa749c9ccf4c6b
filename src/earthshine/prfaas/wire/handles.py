"""Handles: opaque names of caches that a sender keeps ready, each for one request, once, and for a limited time.

A handle carries a random id, the time at which it ends, and a keyed BLAKE3 over both and over what it is bound to:
request, tenant, model and tokens. Only the process that issued it can verify it: the key is random and never leaves
it, and time is that process's own monotonic clock, so no clock of another machine matters.
"""

import hmac
import secrets
import struct
from dataclasses import dataclass
from threading import Lock
from time import monotonic

from blake3 import blake3

from earthshine.errors import OverloadError, UsageError
from earthshine.prfaas.wire.fault import Reason, WireError
from earthshine.prfaas.wire.request import PrefillRequest

ID_BYTES = 16
MOST_SECONDS = 3600.0
_MOST_OPEN = 1 << 16
_FIELDS = struct.Struct("<16sQ32s")  # id, end in ms, MAC


@dataclass(frozen=True, slots=True)
class Handle:
    """`id` is what its issuer keeps the cache under, `token` what the receiver presents."""

    id: bytes
    token: bytes


class Handles:
    """The handles of one process. Safe from several threads."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._lock = Lock()
        self._open: dict[bytes, int] = {}  # by id: its end in ms, in the order of issue

    def issue(self, request: PrefillRequest, seconds: float = 60.0) -> Handle:
        """A handle for exactly this request (its `handle` aside). Raises UsageError, OverloadError."""
        if not 0 < seconds <= MOST_SECONDS:
            raise UsageError(f"A handle lasts up to {MOST_SECONDS:.0f} seconds, not {seconds}.", "seconds")
        made, ends = secrets.token_bytes(ID_BYTES), int(1000 * (monotonic() + seconds))
        with self._lock:
            self._expire()
            if len(self._open) >= _MOST_OPEN:
                raise OverloadError(f"{_MOST_OPEN} handles are open; fetch their caches or wait.", round(seconds) + 1)
            self._open[made] = ends
        return Handle(made, _FIELDS.pack(made, ends, self._mac(made, ends, request)))

    def redeem(self, request: PrefillRequest) -> bytes:
        """The id of the request's handle, which is thereby used. Raises WireError (HANDLE)."""
        if len(request.handle) != _FIELDS.size:
            raise _refused("it is not one of this server's")
        made, ends, mac = _FIELDS.unpack(request.handle)
        if not hmac.compare_digest(mac, self._mac(made, ends, request)):
            raise _refused("it is forged, of another process, or of another request, tenant, model or prompt")
        if ends < 1000 * monotonic():
            raise _refused("it has expired")
        with self._lock:
            if self._open.pop(made, None) is None:
                raise _refused("it was used or withdrawn before")
        return bytes(made)

    def withdraw(self, handle_id: bytes) -> None:
        """End a handle whose cache is gone."""
        with self._lock:
            self._open.pop(handle_id, None)

    def _mac(self, made: bytes, ends: int, request: PrefillRequest) -> bytes:
        bound = request.binding()
        return blake3(made + ends.to_bytes(8, "little") + bound, key=self._key).digest(32)

    def _expire(self) -> None:
        now = 1000 * monotonic()
        for made in [made for made, ends in self._open.items() if ends < now]:
            del self._open[made]


def _refused(why: str) -> WireError:
    return WireError(Reason.HANDLE, f"The handle of the cache is not valid: {why}.")
