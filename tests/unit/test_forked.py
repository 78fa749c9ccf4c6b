"""The processes that tests fork: their arguments arrive, and none outlives its time."""

import os
import subprocess
import sys

import pytest

from ..forked import Forker


def test_an_order_larger_than_a_socket_message_arrives(forker: Forker) -> None:
    length = 900_000
    done = forker.run([sys.executable, "-c", "import sys; print(len(sys.argv[1]))", "x" * length])
    assert (done.returncode, int(done.stdout)) == (0, length)


def test_a_process_beyond_its_time_is_killed(forker: Forker) -> None:
    begun: list[int] = []

    class Watched(Forker):
        def fork(self, *arguments: object) -> int:
            begun.append(forker.fork(*arguments))  # type: ignore[arg-type]
            return begun[-1]

    with pytest.raises(subprocess.TimeoutExpired):
        Watched().run([sys.executable, "-c", "import signal; signal.pause()"], timeout=0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(begun[0], 0)
