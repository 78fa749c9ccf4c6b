"""A link between two processes whose faults a test chooses: bytes that change, a rate, a silence, an end."""

import contextlib
import socket
import threading
import time

_STEP_BYTES = 1 << 14


class Relay:
    """Listens on `port` and carries each connection to `target`. Faults concern what the target sends.

    rate: bytes per second of all connections together, None for no limit. flips: bytes still to change, one in each
    step of at least 4 KiB, so that greetings stay whole.
    """

    def __init__(self, target: int) -> None:
        self.target, self.rate, self.flips = target, None, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections; new ones can be made."""
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target), 5)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open |= {near, far}
            for source, sink, spoils in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._carry, args=(source, sink, spoils), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, spoils: bool) -> None:
        try:
            while data := source.recv(_STEP_BYTES):
                sink.sendall(self._spoilt(data) if spoils else data)
        except OSError:
            pass
        finally:
            with self._lock:
                self._open -= {source, sink}
            for sock in (source, sink):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                if sock is source:
                    sock.close()

    def _spoilt(self, data: bytes) -> bytes:
        rate = self.rate
        if rate is not None:
            time.sleep(len(data) / rate)
        with self._lock:
            if self.flips and len(data) >= 4096:
                self.flips -= 1
                return data[:2048] + bytes([data[2048] ^ 1]) + data[2049:]
        return data
