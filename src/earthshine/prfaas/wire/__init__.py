"""The wire: pieces of a sequence's state over TCP, from the process that prefills to the one that decodes.

A receiver makes a `PrefillPeer` for each sender and calls `prefill(request, sink, deadline_seconds)`. A sender makes a
`WireServer(options, handler)`, which calls `handler(request, out)` on a thread of its own; the handler calls
`out.begin(header)`, then `out.block(index, buffers)` as soon as each layer is computed, for each piece in turn, and
`out.end()`. Blocks go straight into the buffers that the sink gives, and are verified before the sink hears of them.
Every failure is a `WireError` with a `reason`. docs/wire.md describes the bytes. Nothing heavier than the standard
library and blake3 is imported.
"""

from earthshine.prfaas.wire.address import PeerAddress
from earthshine.prfaas.wire.fault import Reason, WireError
from earthshine.prfaas.wire.handles import Handle, Handles
from earthshine.prfaas.wire.peer import LinkFigures, PrefillPeer
from earthshine.prfaas.wire.request import PrefillRequest
from earthshine.prfaas.wire.server import Handler, Limits, WireServer
from earthshine.prfaas.wire.transfer import PieceSink, Transfer
from earthshine.prfaas.wire.trust import Trust
from earthshine.prfaas.wire.writer import PieceWriter

__all__ = [
    "Handle",
    "Handler",
    "Handles",
    "Limits",
    "LinkFigures",
    "PeerAddress",
    "PieceSink",
    "PieceWriter",
    "PrefillPeer",
    "PrefillRequest",
    "Reason",
    "Transfer",
    "Trust",
    "WireError",
    "WireServer",
]
