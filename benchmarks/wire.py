"""The wire beside raw blocking sockets over loopback: bytes per second, processor time, memory of the receiver.

    python benchmarks/wire.py [--tls] [--connections N] [--gib G] [--rounds N] [--no-checksums]
    python benchmarks/wire.py --memory [--transfers N]

    python benchmarks/wire.py --crowd [--attempts N]

Sender and receiver are two processes. Each round runs raw, wire, wire, raw (A B B A), so that a machine that becomes
slower favours neither. The raw side sends the same 4 MiB blocks by `sendall` and receives them by `recv_into`, with
`ssl` for --tls, one thread a connection; "raw with BLAKE3" also computes each block's digest at both ends. The wire
sends a block from 57 pages of 72 KiB and receives it into as many. With --no-checksums, the wire's BLAKE3 is replaced
by a constant in this process and its child, to show what it costs; with --whole, a block is one buffer, as where pages
lie side by side.
--memory shows what the receiver's process grows by beyond the pages, while N transfers arrive at once; --crowd what N
connections, half of them silent, take of a sender that serves transfers meanwhile.
Prints a line a figure, and last one JSON document with rows for docs/results.
"""

import argparse
import json
import mmap
import os
import resource
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3
from result_rows import result_row

from earthshine.net.listen import ListenOptions
from earthshine.prfaas.wire import Limits, PieceWriter, PrefillPeer, PrefillRequest, Trust, WireServer, transfer, writer
from earthshine.storage.blob import DIGEST_BYTES, header_digest

PAGE_BYTES = 64 * 1152  # a page's latents in one layer
BLOCK_PAGES = 57  # 4 MiB
BLOCK_BYTES = BLOCK_PAGES * PAGE_BYTES
POOL_BLOCKS = 32  # buffers that are used in turn, 128 MiB
WHOLE_BLOCKS = False  # set by --whole
HEADER = b"a piece" + header_digest(b"a piece")


@dataclass(frozen=True)
class Setup:
    connections: int
    n_blocks: int
    certificate: tuple[Path, Path] | None

    @property
    def nbytes(self) -> int:
        return self.n_blocks * BLOCK_BYTES

    @property
    def listen(self) -> ListenOptions:
        return ListenOptions(port=0) if self.certificate is None else ListenOptions("localhost", 0, *self.certificate)


@dataclass(frozen=True)
class Run:
    """One transfer of `Setup.nbytes`: seconds, and processor seconds of the two processes."""

    seconds: float
    send: float
    receive: float


def pool() -> memoryview:
    """Memory whose pages exist."""
    made = mmap.mmap(-1, POOL_BLOCKS * BLOCK_BYTES)
    for at in range(0, len(made), mmap.PAGESIZE):
        made[at] = at // mmap.PAGESIZE & 0xFF
    return memoryview(made)


def block(memory: memoryview, number: int) -> memoryview:
    return memory[number % POOL_BLOCKS * BLOCK_BYTES :][:BLOCK_BYTES]


def pages(memory: memoryview, number: int) -> list[memoryview]:
    whole = block(memory, number)
    if WHOLE_BLOCKS:
        return [whole]
    return [whole[at : at + PAGE_BYTES] for at in range(0, BLOCK_BYTES, PAGE_BYTES)]


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Sender:
    """A forked process that runs `serve(tell)`, where tell(port) is called once; ends when `close` is called.

    The child answers each line on its pipe with its processor time so far.
    """

    def __init__(self, serve: Callable[[Callable[[int], None]], object]) -> None:
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._orders)
                serve(lambda port: os.write(answers, b"%d\n" % port))
                while os.read(orders, 1):
                    os.write(answers, b"%f\n" % cpu_seconds())
            finally:
                os._exit(0)
        os.close(orders)
        os.close(answers)
        self.port = int(self._line())

    def cpu_seconds(self) -> float:
        os.write(self._orders, b"?")
        return float(self._line())

    def close(self) -> None:
        os.close(self._orders)
        os.waitpid(self.pid, 0)
        os.close(self._answers)

    def _line(self) -> bytes:
        found = b""
        while not found.endswith(b"\n"):
            found += os.read(self._answers, 64)
        return found


def timed(sender: Sender, nbytes_arrive: Callable[[], None]) -> Run:
    sent, received, began = sender.cpu_seconds(), cpu_seconds(), time.perf_counter()
    nbytes_arrive()
    seconds = time.perf_counter() - began
    return Run(seconds, sender.cpu_seconds() - sent, cpu_seconds() - received)


def raw(setup: Setup, memory: memoryview, checksums: bool = False) -> Run:
    """Plain loops: a thread and a connection for each share of the blocks. As with the wire, no two threads use one
    block at a time, which would then be in the processor's cache."""

    def check(values: memoryview) -> bytes:
        return blake3(values).digest(DIGEST_BYTES) if checksums else bytes(DIGEST_BYTES)

    def serve(tell: Callable[[int], None]) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        context = None
        if setup.certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.load_cert_chain(*setup.certificate)
        tell(listener.getsockname()[1])

        def run(sock: socket.socket, first: int) -> None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secured = sock if context is None else context.wrap_socket(sock, server_side=True)
            secured.recv(1)
            for number in range(first, setup.n_blocks, setup.connections):
                secured.sendall(check(block(memory, number)))
                secured.sendall(block(memory, number))
            secured.recv(1)

        for first in range(setup.connections):
            threading.Thread(target=run, args=(listener.accept()[0], first), daemon=True).start()

    sender = Sender(serve)
    socks = []
    for _ in range(setup.connections):
        sock = socket.create_connection(("127.0.0.1", sender.port))
        if setup.certificate is not None:
            context = ssl.create_default_context(cafile=str(setup.certificate[0]))
            sock = context.wrap_socket(sock, server_hostname="localhost")
        socks.append(sock)

    def receive(sock: socket.socket, first: int) -> None:
        sock.sendall(b"!")
        digest = memoryview(bytearray(DIGEST_BYTES))
        for number in range(first, setup.n_blocks, setup.connections):
            for whole in (digest, block(memory, number)):
                into = whole
                while len(into):
                    into = into[sock.recv_into(into) :]
            assert check(whole) == digest

    def all_arrive() -> None:
        threads = [threading.Thread(target=receive, args=(sock, first)) for first, sock in enumerate(socks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    found = timed(sender, all_arrive)
    for sock in socks:
        sock.close()
    sender.close()
    return found


class Sink:
    """Hands out the pool's pages in turn."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory

    def begin(self, piece: int, header: bytes) -> None:
        pass

    def buffers(self, piece: int, index: int) -> list[memoryview]:
        return pages(self._memory, index)

    def block(self, piece: int, index: int) -> None:
        pass

    def ended(self, error: Exception | None) -> None:
        pass


def serve_wire(setup: Setup, memory: memoryview) -> Sender:
    def handler(asked: PrefillRequest, out: PieceWriter) -> None:
        out.begin(HEADER)
        for number in range(asked.token_ids[0]):
            out.block(number, pages(memory, number))
        out.end()

    def serve(tell: Callable[[int], None]) -> WireServer:
        server = WireServer(setup.listen, handler, limits=Limits(most_requests=1024))
        tell(server.port)
        return server

    return Sender(serve)


def receiver(setup: Setup, port: int) -> PrefillPeer:
    if setup.certificate is None:
        return PrefillPeer(f"earthshine+plain://127.0.0.1:{port}", connections=setup.connections)
    trust = Trust(ca=setup.certificate[0])
    return PrefillPeer(f"earthshine://localhost:{port}", connections=setup.connections, trust=trust)


def wire(setup: Setup, memory: memoryview) -> Run:
    sender = serve_wire(setup, memory)
    peer = receiver(setup, sender.port)

    def ask(n_blocks: int) -> None:
        peer.prefill(PrefillRequest("r", "t", "m", [n_blocks]), Sink(memory), 600).result()

    while peer.figures().connections < setup.connections:
        ask(1)
        time.sleep(0.01)
    ask(4)
    found = timed(sender, lambda: ask(setup.n_blocks))
    peer.close()
    sender.close()
    return found


def compare(setup: Setup, rounds: int, what: str, checksums: bool) -> list[dict[str, Any]]:
    memory = pool()
    runs: dict[str, Callable[[], Run]] = {"raw": lambda: raw(setup, memory)}
    if checksums:
        runs["raw with BLAKE3"] = lambda: raw(setup, memory, True)
    runs["wire"] = lambda: wire(setup, memory)
    found: dict[str, list[Run]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name in (*runs, *reversed(runs)):
            found[name].append(runs[name]())
    gib = setup.nbytes / (1 << 30)
    rates = {name: [gib / run.seconds for run in each] for name, each in found.items()}
    cpu = {name: [(run.send / gib, run.receive / gib) for run in each] for name, each in found.items()}
    costs = {name: [statistics.median(side) for side in zip(*each, strict=True)] for name, each in cpu.items()}
    note = "; ".join(f"{name} {send:.2f} + {receive:.2f}" for name, (send, receive) in costs.items())
    rows = [
        result_row(f"{what}: {name}", statistics.median(each), min(each), max(each), "GiB/s")
        for name, each in rates.items()
    ]
    rows[-1]["note"] = note
    aims = dict(zip(("goal", "floor"), (0.9, 0.75) if setup.certificate else (0.85, 0.7), strict=True))
    for name in (*runs,)[:-1]:
        ratios = [ours / theirs for ours, theirs in zip(rates["wire"], rates[name], strict=True)]
        more = aims if name == "raw" and setup.connections == 4 else {}
        rows.append(
            result_row(f"{what}: wire over {name}", statistics.median(ratios), min(ratios), max(ratios), **more)
        )
    return rows


def resident_bytes() -> int:
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("Rss:"))


def memory_beyond_pages(setup: Setup, transfers: int) -> list[dict[str, Any]]:
    """The pages exist before; so what the process grows by is the wire's."""
    memory = pool()
    sender = serve_wire(setup, memory)
    peer = receiver(setup, sender.port)
    before, most = resident_bytes(), 0
    each = max(1, setup.n_blocks // transfers)
    asked = [PrefillRequest(f"r{at}", "t", "m", [each]) for at in range(transfers)]
    running = [peer.prefill(request, Sink(memory), 600) for request in asked]
    while not all(one.done.is_set() for one in running):
        most = max(most, resident_bytes())
        time.sleep(0.02)
    for one in running:
        one.result()
    peer.close()
    sender.close()
    grown = (most - before) / (1 << 20)
    what = f"receiver's memory beyond the pages, {transfers} transfers"
    return [result_row(what, grown, grown, grown, "MiB", goal=64, floor=256)]


def crowd(attempts: int, memory: memoryview) -> list[dict[str, Any]]:
    """Connections that say nothing, every second closed at once, and a transfer after each thousand."""
    setup = Setup(1, 1, None)
    sender = serve_wire(setup, memory)
    most: dict[str, int] = {"descriptors": 0, "threads": 0, "resident MiB": 0}
    held: deque[socket.socket] = deque()
    for attempt in range(attempts):
        with suppress(OSError):
            sock = socket.create_connection(("127.0.0.1", sender.port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no port in TIME_WAIT
            held.append(sock)
        if attempt % 2 and held:
            held.pop().close()
        if len(held) > 400:
            held.popleft().close()
        if attempt % 50 == 0:
            folder = Path(f"/proc/{sender.pid}")
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
            now = (len(os.listdir(folder / "fd")), int(status["Threads"]), int(status["VmRSS"].split()[0]) >> 10)
            most = {name: max(value, figure) for (name, value), figure in zip(most.items(), now, strict=True)}
        if attempt % 1000 == 0:
            peer = receiver(setup, sender.port)
            peer.prefill(PrefillRequest("r", "t", "m", [1]), Sink(memory), 60).result()
            peer.close()
    while held:
        held.pop().close()
    sender.close()
    what = f"{attempts:,} connection attempts, most of the sender's"
    return [result_row(f"{what} {name}", value, value, value) for name, value in most.items()]


def certificate(folder: Path) -> tuple[Path, Path]:
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(["openssl", "req", "-x509", *kind, *name, *files], cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


def without_checksums() -> None:
    def constant(seed: bytes, index: int, views: object) -> bytes:
        return bytes(DIGEST_BYTES)

    writer.block_digest = transfer.block_digest = constant


def main() -> None:
    global WHOLE_BLOCKS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-checksums", action="store_true")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--transfers", type=int, default=200)
    parser.add_argument("--crowd", action="store_true")
    parser.add_argument("--attempts", type=int, default=45_000)
    args = parser.parse_args()
    WHOLE_BLOCKS = args.whole
    if args.no_checksums:
        without_checksums()
    with tempfile.TemporaryDirectory() as folder:
        files = certificate(Path(folder)) if args.tls else None
        n_blocks = int(args.gib * (1 << 30) / BLOCK_BYTES) // args.connections * args.connections
        setup = Setup(args.connections, n_blocks, files)
        kind = f"{'TLS' if args.tls else 'plain'}, {args.connections} connection{'s'[: args.connections > 1]}"
        what = kind + (", whole blocks" if args.whole else "") + (", without checksums" if args.no_checksums else "")
        if args.crowd:
            rows = crowd(args.attempts, pool())
        elif args.memory:
            rows = memory_beyond_pages(setup, args.transfers)
        else:
            rows = compare(setup, args.rounds, what, not args.no_checksums)
    for row in rows:
        spread = f"({row['low']} to {row['high']})"
        print(f"{row['what']}: {row['median']} {row.get('unit', '')} {spread} {row.get('note', '')}")
    with suppress(BrokenPipeError):
        json.dump({"rows": rows}, sys.stdout)
        print()


if __name__ == "__main__":
    main()
