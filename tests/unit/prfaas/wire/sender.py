"""A sender of caches in a process of its own; `python sender.py PORT N_BLOCKS PAUSE_SECONDS TICK_SECONDS` prints its
port."""

import sys
import threading

sys.path.insert(0, __file__.rpartition("/")[0])

from ends import Pieces

from earthshine.net.listen import ListenOptions
from earthshine.prfaas.wire import WireServer, link
from earthshine.prfaas.wire import server as servers

if __name__ == "__main__":
    port, n_blocks, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    link.TICK_SECONDS = servers.TICK_SECONDS = float(sys.argv[4])
    pieces = Pieces(n_pieces=1, n_blocks=n_blocks)

    def pace(piece: int, index: int) -> None:
        threading.Event().wait(pause)

    server = WireServer(ListenOptions(port=port), lambda asked, out: pieces.send(asked, out, pace))
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    sys.stdin.read()
    server.close()
