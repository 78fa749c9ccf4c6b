"""What the kernel knows of a TCP connection (Linux's TCP_INFO, <linux/tcp.h>): round trips, losses, delivery rate."""

import socket
import struct

from earthshine.prfaas.wire.messages import Ping

_BYTES = 232
_RTT_US, _RETRANSMITTED, _LEAST_RTT_US, _SENT, _DELIVERY = 68, 100, 148, 156, 160  # offsets
_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")


def figures(sock: socket.socket) -> Ping:
    """All 0 where the system does not say."""
    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES)
        rtt, least, sent, again = (
            _U32.unpack_from(raw, at)[0] for at in (_RTT_US, _LEAST_RTT_US, _SENT, _RETRANSMITTED)
        )
        return Ping(rtt, least, sent, again, _U64.unpack_from(raw, _DELIVERY)[0])
    except (AttributeError, OSError, struct.error):
        return Ping()
