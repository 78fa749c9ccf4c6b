"""The one exception of the wire, with the reason that a caller decides by."""

from enum import IntEnum

from earthshine.errors import EarthshineError


class Reason(IntEnum):
    """Why a transfer or a connection failed. The numbers are sent."""

    PROTOCOL = 1  # the peer sent what the protocol does not allow
    VERSION = 2  # the two ends have no version of the protocol in common
    DAMAGED = 3  # a checksum does not match, also after the block was sent again
    LENGTH = 4  # a block has another length than its header gives
    LOST = 5  # the connection was lost, or the peer fell silent, and did not come back in time
    UNREACHABLE = 6  # no connection could be made
    CERTIFICATE = 7  # the peer's certificate is expired, unknown or not the pinned one
    TOKEN = 8  # the access token is missing or wrong
    HANDLE = 9  # the handle is forged, expired, used, or of another request
    MODEL = 10  # the peer has another model
    BUSY = 11  # the peer has as many requests or connections as it takes; later there is room again
    LIMIT = 12  # the request exceeds a limit of the peer
    DEADLINE = 13  # the transfer was not complete in time
    CANCELLED = 14  # by the receiver
    WORKER = 15  # the peer's prefill failed; the message is its own
    REFUSED = 16  # the receiver does not take what was sent, such as the cache of another model
    CLOSED = 17  # this end or the other is shutting down


class WireError(EarthshineError):
    """A transfer or a connection failed. `reason` says why, the message what would be right."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
