"""The sender of caches: listens, admits connections within limits, and calls a handler for each request.

One thread accepts, one keeps time, and each connection and each request has one; all are limited. A stranger has
`HELLO_SECONDS` to say who it is; beyond `most_strangers` of them the oldest is closed. Beyond `most_connections`, a new
connection is closed at once.
"""

import contextlib
import logging
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from threading import Event, Lock, Thread
from time import monotonic

from earthshine.errors import EarthshineError, UsageError
from earthshine.net.access import Access, Unauthorized, is_loopback
from earthshine.net.listen import ListenOptions, bind
from earthshine.prfaas.wire.address import require_plain_allowed
from earthshine.prfaas.wire.fault import Reason, WireError
from earthshine.prfaas.wire.frames import MOST_TEXT_BYTES, MOST_TOKENS, Kind
from earthshine.prfaas.wire.handles import Handles
from earthshine.prfaas.wire.link import TICK_SECONDS, Link
from earthshine.prfaas.wire.messages import Failure, Hello, Plain, Request, Welcome
from earthshine.prfaas.wire.request import PrefillRequest
from earthshine.prfaas.wire.session import Session
from earthshine.prfaas.wire.trust import server_context
from earthshine.prfaas.wire.writer import PieceWriter
from earthshine.untrusted import shown

HELLO_SECONDS = 5.0
_BACKLOG = 256
_log = logging.getLogger(__name__)
Handler = Callable[[PrefillRequest, PieceWriter], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """What peers may take of this process, all together unless said otherwise."""

    most_connections: int = 128
    most_session_connections: int = 8  # of one client
    most_strangers: int = 32  # connections that have not said who they are
    most_sessions: int = 64
    most_requests: int = 64
    most_tokens: int = MOST_TOKENS  # of a request
    most_seconds: float = 3600.0  # of a request


class WireServer:
    """Listens from its creation to `close`.

    handler: called on a thread of its own for each request, with a writer for its pieces; it ends with `end()`, or
    raises an EarthshineError whose message the receiver gets. fingerprint: of the model that it serves, "" for any.
    about: up to MOST_TEXT_BYTES that every receiver gets when it connects.
    Raises UsageError for an address that can't be used, and for one that others reach without tokens, or without TLS
    where `allow_plain` does not name it.
    """

    def __init__(
        self,
        options: ListenOptions,
        handler: Handler,
        *,
        access: Access | None = None,
        fingerprint: str = "",
        allow_plain: Collection[str] = (),
        limits: Limits | None = None,
        about: bytes = b"",
    ) -> None:
        self.handles, self.limits = Handles(), limits or Limits()
        self._handler, self._access, self._fingerprint = handler, access or Access(), fingerprint
        self._about = about
        if len(about) > MOST_TEXT_BYTES:
            raise UsageError(f"What a sender says of itself has at most {MOST_TEXT_BYTES} bytes.", "about")
        self._context = server_context(options)
        require_plain_allowed(options.host, self._context is None, allow_plain)
        if not is_loopback(options.host) and not self._access.keys:
            raise UsageError(f"Other machines can reach {options.host}, so tokens are needed: give a file of them.")
        self._socket = bind(options)
        self._socket.listen(_BACKLOG)
        self.port: int = self._socket.getsockname()[1]
        self._lock = Lock()
        self._sessions: dict[bytes, Session] = {}
        self._open: set[socket.socket] = set()
        self._strangers: OrderedDict[socket.socket, float] = OrderedDict()  # until when they may be
        self._n_requests = 0
        self._closing = Event()
        self._threads = [Thread(target=run, name=f"earthshine-wire-{name}", daemon=True) for name, run in self._tasks()]
        for thread in self._threads:
            thread.start()

    def _tasks(self) -> list[tuple[str, Callable[[], None]]]:
        return [("accept", self._accept), ("time", self._keep_time)]

    @property
    def figures(self) -> dict[str, int]:
        """Connections, strangers among them, sessions and requests now."""
        with self._lock:
            return {
                "connections": len(self._open),
                "strangers": len(self._strangers),
                "sessions": len(self._sessions),
                "requests": self._n_requests,
            }

    def close(self) -> None:
        """End all connections and transfers, and the listener."""
        self._closing.set()
        _cut(self._socket)  # ends the wait in accept
        with self._lock:
            sessions, sockets = list(self._sessions.values()), list(self._open)
        for session in sessions:
            session.end(Reason.CLOSED, "The sender is shutting down.")
        for sock in sockets:
            _cut(sock)
        for thread in self._threads:
            thread.join()
        self._socket.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                sock, address = self._socket.accept()
            except OSError:
                if not self._closing.wait(0.1):  # out of descriptors: others may close theirs
                    continue
                return
            try:
                if self._context is not None:
                    sock = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                if not self._admit(sock):
                    raise OSError
                peer = f"{address[0]}:{address[1]}"
                Thread(target=self._serve, args=(sock, peer), name="earthshine-wire", daemon=True).start()
            except (OSError, RuntimeError):  # RuntimeError: the system has no more threads
                self._forget(sock)
                sock.close()

    def _admit(self, sock: socket.socket) -> bool:
        with self._lock:
            if self._closing.is_set() or len(self._open) >= self.limits.most_connections:
                return False
            if len(self._strangers) >= self.limits.most_strangers:
                _cut(self._strangers.popitem(last=False)[0])
            self._open.add(sock)
            self._strangers[sock] = monotonic() + HELLO_SECONDS
            return True

    def _forget(self, sock: socket.socket) -> None:
        with self._lock:
            self._open.discard(sock)
            self._strangers.pop(sock, None)

    def _serve(self, sock: socket.socket, peer: str) -> None:
        link = session = None
        number = 0
        try:
            if isinstance(sock, ssl.SSLSocket):
                sock.settimeout(HELLO_SECONDS)
                sock.do_handshake()
            link = Link(sock, peer)
            session, number = self._greet(link)
            with self._lock:
                self._strangers.pop(sock, None)
            session.serve(number, link)
        except (WireError, OSError, ValueError) as error:  # ValueError: cut during the handshake
            _log.debug("Connection from %s: %s", peer, error)
        except Exception:
            _log.exception("The connection from %s failed", peer)
        finally:
            self._forget(sock)
            if session is not None:
                session.leave(number)
            if link is not None:
                link.close()
            sock.close()

    def _greet(self, link: Link) -> tuple[Session, int]:
        """The session and the number of a connection whose first frame is sound; the peer gets the reason if not."""
        try:
            hello = link.first(Kind.HELLO)
            assert isinstance(hello, Hello)
            session = self._session(hello)
            session.join(hello.connection, link, self.limits.most_session_connections)
        except WireError as error:
            if error.reason is not Reason.LOST:
                link.send(Failure(0, 0, error.reason, str(error)).frame())
            raise
        limits = self.limits
        numbers = (limits.most_session_connections, limits.most_tokens, limits.most_requests)
        link.send(Welcome(session.instance, *numbers, self._about).frame())
        return session, hello.connection

    def _session(self, hello: Hello) -> Session:
        try:
            user = self._access.user({"authorization": "Bearer " + hello.token.decode("utf-8", "replace")})
        except Unauthorized:
            raise WireError(Reason.TOKEN, "The sender of caches needs a token, or another one than this.") from None
        with self._lock:
            session = self._sessions.get(hello.session)
            if session is not None and session.user != user:
                raise WireError(Reason.TOKEN, "The session was begun with another token.")
            if session is None:
                if len(self._sessions) >= self.limits.most_sessions:
                    raise WireError(Reason.BUSY, f"{self.limits.most_sessions} clients are connected; try again later.")
                session = self._sessions[hello.session] = Session(user, self._request)
            return session

    def _request(self, session: Session, message: Request) -> bool:
        """Begin a request, or send the reason why not. Returns whether it began."""
        try:
            handle_id = self._check(message.request)
        except WireError as error:
            session.post(Failure(message.transfer, 0, error.reason, str(error)).frame())
            return False
        seconds = min(message.deadline_ms / 1000, self.limits.most_seconds)
        writer = PieceWriter(message.transfer, message.credit, seconds, session.ready)
        writer.handle_id, writer.user = handle_id, session.user
        session.open(writer)
        session.post(Plain(Kind.ACCEPTED, message.transfer).frame())
        run = Thread(target=self._run, args=(message.request, writer), name="earthshine-wire-request", daemon=True)
        try:
            run.start()
        except RuntimeError:
            self._count(-1)
            writer.fail(Reason.BUSY, "The sender has no thread left; try again later.")
        return True

    def _check(self, request: PrefillRequest) -> bytes:
        """The id of its handle, if any. Counts the request. Raises WireError."""
        if len(request.token_ids) > self.limits.most_tokens:
            most = self.limits.most_tokens
            raise WireError(Reason.LIMIT, f"The prompt has {len(request.token_ids)} tokens; the most is {most}.")
        if self._fingerprint and request.fingerprint != self._fingerprint:
            theirs, ours = shown(request.fingerprint), shown(self._fingerprint)
            raise WireError(Reason.MODEL, f"The request is for the model {theirs}; this sender has {ours}.")
        self._count(1)
        try:
            return self.handles.redeem(request) if request.handle else b""
        except WireError:
            self._count(-1)
            raise

    def _count(self, change: int) -> None:
        with self._lock:
            if change > 0 and (self._n_requests >= self.limits.most_requests or self._closing.is_set()):
                raise WireError(Reason.BUSY, f"{self._n_requests} requests are in work; try again later.")
            self._n_requests += change

    def _run(self, request: PrefillRequest, writer: PieceWriter) -> None:
        try:
            self._handler(request, writer)
            writer.fail(Reason.WORKER, "The prefill ended before the cache was complete.")
        except WireError as error:
            writer.fail(error.reason, str(error))
        except EarthshineError as error:
            writer.fail(Reason.WORKER, str(error))
        except Exception:
            _log.exception("A request's handler failed")
            writer.fail(Reason.WORKER, "The prefill failed; the sender's log has the cause.")
        finally:
            self._count(-1)

    def _keep_time(self) -> None:
        while not self._closing.wait(TICK_SECONDS):
            with self._lock:
                sessions, now = list(self._sessions.items()), monotonic()
                for sock in [sock for sock, until in self._strangers.items() if until < now]:
                    del self._strangers[sock]
                    _cut(sock)
            for name, session in sessions:
                if not session.tick(TICK_SECONDS):
                    self._end_session(name, session)

    def _end_session(self, name: bytes, session: Session) -> None:
        with self._lock:
            if session.unused:  # no connection joined meanwhile
                self._sessions.pop(name, None)


def _cut(sock: socket.socket) -> None:
    """End a connection whose thread then finds it closed."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
