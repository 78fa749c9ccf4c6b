"""A relay between the two ends that cuts, freezes and damages what passes."""

import contextlib
import socket
import threading


class Relay:
    """Passes connections from its own `port` on to `target`. `flip`: offsets, counted over all bytes that the target
    sends over the first connection, at which a byte is changed once."""

    def __init__(self, target: int, flip: tuple[int, ...] = ()) -> None:
        self._target, self._flip = target, set(flip)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._frozen: set[socket.socket] = set()
        self._closed = self._refusing = False
        self.connections = self.flipped = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, refuse: bool = False) -> None:
        """End every connection at once. `refuse`: and those to come."""
        with self._lock:
            pairs, self._pairs, self._refusing = self._pairs, [], refuse
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    end.shutdown(socket.SHUT_RDWR)

    def freeze(self) -> None:
        """The connections stay open, but nothing passes; new ones work."""
        with self._lock:
            self._frozen.update(end for pair in self._pairs for end in pair)

    def close(self) -> None:
        self._closed = True
        self.cut(refuse=True)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def __enter__(self) -> "Relay":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._pairs.append((near, far))
                self.connections += 1
                flip = self._flip if self.connections == 1 else set()
            ended = threading.Semaphore(0)
            for source, sink, offsets in ((near, far, set()), (far, near, flip)):
                threading.Thread(target=self._pass, args=(source, sink, offsets, ended), daemon=True).start()
            threading.Thread(target=self._end, args=(near, far, ended), daemon=True).start()

    def _pass(self, source, sink, offsets, ended) -> None:  # type: ignore[no-untyped-def]
        passed = 0
        with contextlib.suppress(OSError):
            while data := bytearray(source.recv(1 << 16)):
                while source in self._frozen and not self._closed:
                    threading.Event().wait(0.02)
                for offset in [offset for offset in offsets if passed <= offset < passed + len(data)]:
                    data[offset - passed] ^= 0x40
                    self.flipped += 1
                passed += len(data)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        ended.release()

    def _end(self, near, far, ended) -> None:  # type: ignore[no-untyped-def]
        ended.acquire()
        ended.acquire()
        near.close()
        far.close()
