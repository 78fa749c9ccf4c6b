"""Measures this machine's own network stack: one TCP connection to itself.

An upper limit for a real network: the rate at which a process can send, and the time of a question and its answer
without a wire. The listener is bound to 127.0.0.1, accepts one connection, which must send a token drawn for it, and is
closed with the call. No wait is longer than some seconds.
"""

import hmac
import secrets
import socket
import statistics
import threading
import time
from dataclasses import dataclass

from earthshine.machine.profile import Network

HOST = "127.0.0.1"
_PIECE_BYTES = 1 << 20
_QUESTION_BYTES = 64
_ROUND_BYTES = 128 << 20
_QUESTIONS = 300
_TIMEOUT_SECONDS = 10.0
_TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class Loopback:
    """Bytes per second of each repeat, and seconds of each question with its answer."""

    rates: tuple[float, ...]
    round_trips: tuple[float, ...]

    def medians(self) -> Network:
        """The two figures of a profile."""
        return Network(statistics.median(self.rates), statistics.median(self.round_trips))


def measure_loopback(repeats: int = 3) -> Loopback | None:
    """The rates; None where the system permits no such connection, or another process took it."""
    try:
        with socket.create_server((HOST, 0), backlog=1) as listener:
            listener.settimeout(_TIMEOUT_SECONDS)
            token = secrets.token_bytes(_TOKEN_BYTES)
            answers = threading.Thread(target=_answer, args=(listener, token, repeats), daemon=True)
            answers.start()
            try:
                with socket.create_connection(listener.getsockname(), _TIMEOUT_SECONDS) as connection:
                    return _ask(connection, token, repeats)
            finally:
                answers.join(_TIMEOUT_SECONDS)
    except OSError:
        return None


def _ask(connection: socket.socket, token: bytes, repeats: int) -> Loopback:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(token)
    question, piece = bytes(_QUESTION_BYTES), bytes(_PIECE_BYTES)
    trips, rates = [], []
    for _ in range(_QUESTIONS):
        began = time.perf_counter()
        connection.sendall(question)
        _receive(connection, bytearray(_QUESTION_BYTES))
        trips.append(time.perf_counter() - began)
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(_ROUND_BYTES // _PIECE_BYTES):
            connection.sendall(piece)
        _receive(connection, bytearray(1))  # all has arrived
        rates.append(_ROUND_BYTES / (time.perf_counter() - began))
    return Loopback(tuple(rates), tuple(trips))


def _answer(listener: socket.socket, token: bytes, repeats: int) -> None:
    try:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(_TIMEOUT_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            given, question, piece = bytearray(_TOKEN_BYTES), bytearray(_QUESTION_BYTES), bytearray(_PIECE_BYTES)
            _receive(connection, given)
            if not hmac.compare_digest(given, token):
                return
            for _ in range(_QUESTIONS):
                _receive(connection, question)
                connection.sendall(question)
            for _ in range(repeats):
                for _ in range(_ROUND_BYTES // _PIECE_BYTES):
                    _receive(connection, piece)
                connection.sendall(b"!")
    except OSError:  # the other side has gone, and reports the reason itself
        return


def _receive(connection: socket.socket, into: bytearray) -> None:
    view = memoryview(into)
    while view:
        step = connection.recv_into(view)
        if step == 0:
            raise ConnectionError("the connection ended")
        view = view[step:]
