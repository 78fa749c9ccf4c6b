"""A sender of caches as its receiver sees it: connections that are made when needed, and the transfers over them.

Each connection has a thread (`receive`); all of a peer's connections carry all of its transfers. They close once
nothing was asked for `IDLE_SECONDS`. One more thread watches deadlines.
"""

import logging
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from itertools import count
from threading import Condition, Thread
from time import monotonic

from earthshine.errors import UsageError
from earthshine.prfaas.wire.address import PeerAddress
from earthshine.prfaas.wire.connect import Caller
from earthshine.prfaas.wire.fault import Reason, WireError
from earthshine.prfaas.wire.frames import Kind
from earthshine.prfaas.wire.link import TICK_SECONDS, Link
from earthshine.prfaas.wire.messages import SESSION_BYTES, Ping, Plain, Resume, Welcome
from earthshine.prfaas.wire.receive import receive
from earthshine.prfaas.wire.request import PrefillRequest
from earthshine.prfaas.wire.transfer import PieceSink, Transfer
from earthshine.prfaas.wire.trust import Trust

_log = logging.getLogger(__name__)
MOST_CONNECTIONS = 8
MOST_TOKEN_BYTES = 1 << 10
WINDOW_BYTES = 32 << 20
IDLE_SECONDS = 60.0
RESUME_SECONDS = 10.0  # how long accepted transfers wait for a connection
_LEAST_PAUSE_SECONDS, _MOST_PAUSE_SECONDS = 0.05, 1.0  # before connecting again
_PROGRESS_BYTES = 4096  # that a connection received: connecting again was worth it
_MOST_BAD_CONNECTIONS = 4  # in a row that ended with damaged frames, before the transfers do
_HOPELESS = (Reason.TOKEN, Reason.CERTIFICATE, Reason.VERSION, Reason.PROTOCOL)  # connecting again will not help


@dataclass(frozen=True, slots=True)
class LinkFigures:
    """What the peer's kernel measured on the connections to here. 0 where unknown."""

    connections: int
    rtt_seconds: float  # smoothed, the mean of the connections
    rtt_least_seconds: float
    retransmitted: float  # share of the segments since the connections began
    bytes_per_second: float  # delivery rate, all connections together


class PrefillPeer:
    """`url`: as PeerAddress.parse takes it. `token`: the peer's, b"" where it needs none. `connections`: at most.

    window_bytes: of a transfer that the peer may send before they were verified. allow_plain: hosts that may be
    reached without TLS although they are not this machine. Raises UsageError.
    """

    def __init__(
        self,
        url: str,
        *,
        token: bytes = b"",
        trust: Trust | None = None,
        connections: int = 4,
        window_bytes: int = WINDOW_BYTES,
        allow_plain: Collection[str] = (),
    ) -> None:
        if not 1 <= connections <= MOST_CONNECTIONS:
            raise UsageError(f"A peer has 1 to {MOST_CONNECTIONS} connections, not {connections}.", "connections")
        if len(token) > MOST_TOKEN_BYTES:
            raise UsageError(f"A token has at most {MOST_TOKEN_BYTES} bytes, not {len(token)}.", "token")
        self.address = PeerAddress.parse(url)
        self.address.require_allowed(allow_plain)
        tls = None if self.address.plain else trust or Trust()
        self._caller = Caller(self.address, tls, token, secrets.token_bytes(SESSION_BYTES))
        self._most, self._window_bytes = connections, window_bytes
        self._changed = Condition()
        self._newest, self._connection_numbers = 0, count(1)
        self._transfers: dict[int, Transfer] = {}
        self._links: dict[int, Link] = {}
        self._pings: dict[int, Ping] = {}
        self._owed: dict[int, int | None] = {}  # lost connections that the peer must know of, and who carries the news
        self._threads: set[Thread] = set()
        self._instance = b""
        self.about = b""  # what the peer said of itself when it was last connected
        self._alone_since = self._used = monotonic()
        self._bad_connections = 0
        self._closed = False

    def prefill(self, request: PrefillRequest, sink: PieceSink, deadline_seconds: float) -> Transfer:
        """Ask for a prompt's cache, or with a handle for one that is ready. Returns at once; the sink gets the rest.

        Raises WireError (CLOSED) after `close`.
        """
        with self._changed:
            if self._closed:
                raise WireError(Reason.CLOSED, f"The connections to {self.address} were closed.")
            self._newest += 1
            transfer = Transfer(self._newest, request, sink, deadline_seconds, self._window_bytes, self._over)
            self._transfers[transfer.number] = transfer
            self._used = monotonic()
            if not self._links:
                self._alone_since = self._used
            self._start_threads()
            self._changed.notify_all()
        self._ask()
        return transfer

    def connect(self) -> None:
        """Begin to connect, so that `about` and `figures` are known soon. Returns at once; failures are not raised."""
        with self._changed:
            self._used = monotonic()
            if not self._closed:
                self._start_threads()

    def figures(self) -> LinkFigures:
        with self._changed:
            pings = [ping for ping in self._pings.values() if ping.rtt_us]
            connections = len(self._links)
        if not pings:
            return LinkFigures(connections, 0.0, 0.0, 0.0, 0.0)
        sent = sum(ping.sent_segments for ping in pings)
        return LinkFigures(
            connections,
            1e-6 * sum(ping.rtt_us for ping in pings) / len(pings),
            1e-6 * min(ping.rtt_least_us for ping in pings),
            sum(ping.retransmitted_segments for ping in pings) / max(1, sent),
            float(sum(ping.delivery_bytes_per_second for ping in pings)),
        )

    def close(self) -> None:
        """Cancel all transfers, and end connections and threads."""
        with self._changed:
            self._closed = True
            links, threads = list(self._links.values()), list(self._threads)
            self._changed.notify_all()
        self._fail_all(WireError(Reason.CLOSED, f"The connections to {self.address} were closed."))
        for link in links:
            link.cut()
        for thread in threads:
            thread.join()

    def _start_threads(self) -> None:
        self._threads = {thread for thread in self._threads if thread.is_alive()}
        running = {thread.name for thread in self._threads}
        tasks = {f"earthshine-wire-{slot}": self._connect_and_serve for slot in range(self._most)}
        for name, run in (tasks | {"earthshine-wire-time": self._keep_time}).items():
            if name not in running:
                thread = Thread(target=run, name=name, daemon=True)
                self._threads.add(thread)
                thread.start()

    def _wanted(self) -> bool:
        return not self._closed and (bool(self._transfers) or monotonic() - self._used < IDLE_SECONDS)

    def _connect_and_serve(self) -> None:
        pause = _LEAST_PAUSE_SECONDS
        while True:
            with self._changed:
                if not self._wanted():
                    return
                number = next(self._connection_numbers)
            try:
                link, welcome = self._caller.connect(number)
            except WireError as error:
                self._unreachable(error)
                if error.reason is not Reason.UNREACHABLE:
                    self._left(number)  # the peer may have sent something over it already
                with self._changed:
                    crowded = error.reason is Reason.BUSY and self._links
                    if crowded or not self._transfers:
                        return  # `prefill` starts the thread again
            else:
                self._serve(number, link, welcome)
                if link.received_bytes > _PROGRESS_BYTES:
                    pause = _LEAST_PAUSE_SECONDS
            with self._changed:
                if not self._closed:
                    self._changed.wait(pause)
            pause = min(_MOST_PAUSE_SECONDS, 2 * pause)

    def _serve(self, number: int, link: Link, welcome: Welcome) -> None:
        try:
            self._joined(number, link, welcome)
            while self._wanted():
                link.flush()
                if link.ping_due():
                    link.send(Ping().frame())
                if link.wait():
                    self._read(number, link)
        except WireError as error:
            self._ended_badly(error)
        except Exception:  # a bug of ours: nothing may wait for this thread
            _log.exception("A connection to %s failed", self.address)
            self._fail_all(WireError(Reason.PROTOCOL, "The connection failed; the log has the cause."))
        finally:
            self._left(number)
            link.close()

    def _read(self, number: int, link: Link) -> None:
        message = link.receive()
        if isinstance(message, Ping):
            self._pings[number] = message
        elif isinstance(message, Plain) and message.kind is Kind.RESUMED:
            with self._changed:
                self._owed.pop(message.transfer, None)
        elif receive(message, self._transfers.get(getattr(message, "transfer", 0)), link):
            self._bad_connections = 0

    def _joined(self, number: int, link: Link, welcome: Welcome) -> None:
        with self._changed:
            if self._closed:
                raise WireError(Reason.CLOSED, "The connections were closed.")
            strangers = self._instance not in (b"", welcome.instance)
            self._instance, self.about = welcome.instance, welcome.about
            gone = [one for one in self._transfers.values() if one.accepted] if strangers else []
            if strangers:
                self._owed.clear()
            self._links[number] = link
        for transfer in gone:
            transfer.finish(WireError(Reason.LOST, f"{self.address} was started again, or gave up waiting."))
        self._tell_losses()
        self._ask()

    def _left(self, number: int) -> None:
        with self._changed:
            if self._links.pop(number, None) is not None and not self._links:
                self._alone_since = monotonic()
            self._pings.pop(number, None)
            if self._transfers:
                self._owed = {lost: None if by == number else by for lost, by in self._owed.items()} | {number: None}
            else:
                self._owed.clear()
            for transfer in self._transfers.values():
                if transfer.asked_on == number:
                    transfer.asked_on = None
        self._tell_losses()
        self._ask()

    def _tell_losses(self) -> None:
        """Tell the peer over a living connection what arrived over each lost one."""
        with self._changed:
            carrier = next(iter(self._links.items()), None)
            owed = [lost for lost, by in self._owed.items() if by is None]
            if carrier is None or not owed:
                return
            self._owed |= dict.fromkeys(owed, carrier[0])
            newest, transfers = self._newest, list(self._transfers.values())
        arrived = tuple(transfer.arrived() for transfer in transfers)
        for lost in owed:
            carrier[1].post(Resume(lost, newest, arrived).frame())

    def _ask(self) -> None:
        """Send the requests that no living connection carries and that the peer has not accepted."""
        with self._changed:
            carrier = next(iter(self._links.items()), None)
            if carrier is None:
                return
            unasked = [one for one in self._transfers.values() if not one.accepted and one.asked_on is None]
            for transfer in unasked:
                transfer.asked_on = carrier[0]
        for transfer in unasked:
            carrier[1].post(transfer.message().frame())

    def _over(self, transfer: Transfer) -> None:
        """A transfer has ended; if early, the peer should know."""
        with self._changed:
            self._transfers.pop(transfer.number, None)
            self._used = monotonic()
            links = list(self._links.values()) if transfer.error is not None else []
            self._changed.notify_all()
        any(link.post(Plain(Kind.CANCEL, transfer.number).frame()) for link in links)

    def _unreachable(self, error: WireError) -> None:
        """A connection could not be made. What the network may have done is tried again before requests fail."""
        if error.reason in (Reason.DAMAGED, Reason.LOST):
            self._bad_connections += 1
            if self._bad_connections < _MOST_BAD_CONNECTIONS:
                return
            error = WireError(Reason.UNREACHABLE, str(error))
        with self._changed:
            alone = not self._links
            transfers = list(self._transfers.values()) if alone or error.reason in _HOPELESS else []
            waited = monotonic() - self._alone_since
        for transfer in transfers:
            if error.reason in _HOPELESS or not transfer.accepted or waited > RESUME_SECONDS:
                transfer.finish(error)
                self._bad_connections = 0

    def _ended_badly(self, error: WireError) -> None:
        """A connection ended with an error. Damage may be the network's: only if it goes on, the transfers end."""
        if error.reason is not Reason.LOST:
            self._bad_connections += 1
        if self._bad_connections >= _MOST_BAD_CONNECTIONS:
            self._fail_all(error)
            self._bad_connections = 0

    def _fail_all(self, error: WireError) -> None:
        with self._changed:
            transfers = list(self._transfers.values())
        for transfer in transfers:
            transfer.finish(error)

    def _keep_time(self) -> None:
        while True:
            with self._changed:
                if not self._wanted():
                    return
                now = monotonic()
                late = [one for one in self._transfers.values() if one.deadline <= now]
                if not late:
                    soon = min([one.deadline - now for one in self._transfers.values()], default=TICK_SECONDS)
                    self._changed.wait(min(soon, TICK_SECONDS))
            for transfer in late:
                transfer.finish(WireError(Reason.DEADLINE, "The cache was not complete at the transfer's deadline."))
