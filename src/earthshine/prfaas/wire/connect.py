"""Connects to a sender of caches: TCP, TLS, and the greeting.

Raises WireError: UNREACHABLE where nothing listens, LOST where the connection ended while it was made, or the reason of
the refusal.
"""

import socket
from dataclasses import dataclass

from earthshine.prfaas.wire.address import PeerAddress
from earthshine.prfaas.wire.fault import Reason, WireError
from earthshine.prfaas.wire.frames import Kind
from earthshine.prfaas.wire.link import Link
from earthshine.prfaas.wire.messages import Failure, Hello, Welcome
from earthshine.prfaas.wire.trust import Trust

CONNECT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who connects, and to whom."""

    address: PeerAddress
    trust: Trust | None  # None: without TLS
    token: bytes
    session: bytes

    def connect(self, number: int) -> tuple[Link, Welcome]:
        """Connection `number` of the session, accepted by the peer."""
        address = self.address
        try:
            sock = socket.create_connection((address.host, address.port), CONNECT_SECONDS)
        except OSError as error:
            why = error.strerror or str(error)
            raise WireError(Reason.UNREACHABLE, f"{address} can't be reached: {why}.") from None
        link = None
        try:
            if self.trust is not None:
                sock = self.trust.connect(sock, address.host)
            link = Link(sock, str(address))
            link.send(Hello(self.session, number, self.token).frame())
            return link, _welcome(link)
        except BaseException:
            if link is not None:
                link.close()
            sock.close()
            raise


def _welcome(link: Link) -> Welcome:
    try:
        answer = link.first(Kind.WELCOME)
    except WireError as error:
        if error.reason is not Reason.LOST:
            raise
        why = f"{error} It may have as many connections as it takes, or need TLS."
        raise WireError(Reason.LOST, why) from None
    if isinstance(answer, Failure):
        raise WireError(answer.reason, f"{link.peer} refuses the connection: {answer.text}")
    assert isinstance(answer, Welcome)
    return answer
