"""A worker process, a server process that borrows from it, and a link with faults: every reply is that of the same
request alone.

`EARTHSHINE_TEST_CONVERSATIONS` is the number of random conversations, a handful by default.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import httpx
import pytest

from .process import SERVE, serve_process
from .relay import Relay
from .serving import HANG_SECONDS

VOCAB = 5888  # below the control tokens
CONVERSATIONS = int(os.environ.get("EARTHSHINE_TEST_CONVERSATIONS", "6"))
PREFILL = [*SERVE[:-1], "prefill", "gleam", "--drain-seconds", "5"]
BODY = {"max_tokens": 12, "temperature": 0, "ignore_eos": True, "logprobs": 1}


class Worker:
    """`earthshine prefill` of gleam as a process, which may be ended and started again behind the same link."""

    def __init__(self, forker, folder: Path) -> None:
        self._forker, self.log, self._out = forker, folder / "worker.log", folder / "worker.out"
        self._lock = threading.Lock()
        self.process, self.relay = self._start(), None
        self.relay = Relay(self.port)

    def _start(self) -> subprocess.Popen:
        with self.log.open("a") as errors, self._out.open("w") as out:
            process = self._forker.popen([*PREFILL, "--listen", "127.0.0.1:0", "--status", "127.0.0.1:0"],
                                         stdout=out, stderr=errors, text=True)  # fmt: skip
        end = time.monotonic() + HANG_SECONDS
        while not (found := re.search(r"plain://127.0.0.1:(\d+)\n.*(http://\S+)/health", self._out.read_text())):
            assert process.poll() is None, self.log.read_text()
            assert time.monotonic() < end
            time.sleep(0.02)
        self.port, self.status = int(found[1]), found[2]
        return process

    def restart(self) -> None:
        """It ends at once, and another one takes its place."""
        with self._lock:
            self.process.kill()
            self.process.wait()
            self.process = self._start()
            self.relay.target = self.port

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def drain(self) -> None:
        """As a service manager ends it; the exit is an orderly one."""
        with self._lock:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(HANG_SECONDS) == 0
            self.process = self._start()
            self.relay.target = self.port

    def metrics(self) -> dict[str, float]:
        return metrics(self.status)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.relay.close()


@pytest.fixture(scope="module")
def worker(forker, tmp_path_factory) -> Iterator[Worker]:
    made = Worker(forker, tmp_path_factory.mktemp("worker"))
    yield made
    assert "Traceback" not in made.log.read_text()
    made.close()


@pytest.fixture(scope="module")
def server(forker, worker, tmp_path_factory) -> Iterator:
    """Every prompt goes to the worker that lacks a page here, whatever the forecast."""
    log = tmp_path_factory.mktemp("server") / "log"
    url = f"earthshine+plain://127.0.0.1:{worker.relay.port}"
    with serve_process(forker.popen, log, "--prefill", url, "--prefill-above", "0") as process:
        yield process
        process.stop()


@pytest.fixture(autouse=True)
def _well(worker, server) -> None:
    """The worker runs, the link is sound, and the server asks it again."""
    worker.relay.rate, worker.relay.flips = None, 0
    if worker.process.poll() is not None:
        worker.restart()
    until(lambda: not left_out(server.url))


def until(condition) -> None:
    end = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def metrics(url: str) -> dict[str, float]:
    lines = [line for line in httpx.get(f"{url}/metrics").text.splitlines() if line.startswith("earthshine:")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def left_out(url: str) -> bool:
    return any(value for name, value in metrics(url).items() if "remote_peer_left_out" in name)


def ends(url: str) -> Counter[str]:
    """How prompts were prefilled so far."""
    found = metrics(url).items()
    return Counter(
        {m[1]: int(value) for name, value in found if (m := re.search(r'prefills_total{name="(\w+)"', name))}
    )


def scores(url: str, tokens: list[int], **more) -> list:
    answer = httpx.post(f"{url}/v1/completions", json=BODY | {"prompt": tokens} | more, timeout=HANG_SECONDS)
    found = answer.raise_for_status().json()["choices"][0]["logprobs"]
    return list(zip(found["tokens"], found["token_logprobs"], strict=True))


def alone(live_server, tokens: list[int]) -> list:
    return scores(live_server.url, tokens, cache_salt=f"alone {random.random()}")


def prompt(seed: int, length: int = 900) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(VOCAB) for _ in range(length)]


def test_reply_after_a_remote_prefill_has_the_same_bits(server, worker, live_server):
    tokens = remotely(server, worker, live_server, count(100))
    answer = httpx.post(f"{server.url}/v1/completions", json=BODY | {"prompt": tokens}, timeout=HANG_SECONDS).json()
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 896
    assert worker.metrics()["earthshine:prefill_sent_bytes_total"] > 0
    assert httpx.get(f"{worker.status}/health").status_code == 200
    (line,) = [line for line in server.log.read_text().splitlines() if "remote prefill whole" in line]
    assert "896 of 896 tokens" in line


def remotely(server, worker: Worker, live_server, seeds: Iterator[int]) -> list[int]:
    """A prompt that was prefilled by the worker: on a busy machine not the first one that is sent in time."""
    while True:
        tokens, before = prompt(next(seeds)), ends(server.url)
        answer = httpx.post(f"{server.url}/v1/completions", json=BODY | {"prompt": tokens}, timeout=HANG_SECONDS)
        found = answer.json()["choices"][0]["logprobs"]
        assert list(zip(found["tokens"], found["token_logprobs"], strict=True)) == alone(live_server, tokens)
        assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        if ends(server.url) - before == {"whole": 1}:
            return tokens
        until(lambda: not left_out(server.url))


def killed_before(worker: Worker) -> None:
    worker.kill()


def killed_during(worker: Worker) -> None:
    time.sleep(0.1)
    worker.kill()


def stopped(worker: Worker) -> None:
    worker.process.send_signal(signal.SIGSTOP)


def cut(worker: Worker) -> None:
    time.sleep(0.1)
    worker.relay.cut()


def drained(worker: Worker) -> None:
    time.sleep(0.05)
    worker.drain()


def flipped(worker: Worker) -> None:
    worker.relay.flips = 1


def flipped_again(worker: Worker) -> None:
    worker.relay.flips = 50


def slow(worker: Worker) -> None:
    worker.relay.rate = 50_000


def slow_and_cut(worker: Worker) -> None:
    worker.relay.rate = 1_000_000
    time.sleep(0.3)
    worker.relay.cut()


FAULTS = (killed_before, killed_during, stopped, cut, drained, flipped, flipped_again, slow, slow_and_cut)


@contextlib.contextmanager
def faulty(worker: Worker, fault) -> Iterator[None]:
    """The fault begins with what is run inside, and is over afterwards."""
    acting = threading.Thread(target=fault, args=(worker,))
    if fault in (killed_before, stopped, flipped, flipped_again, slow):
        fault(worker)
        acting = threading.Thread()
    acting.start()
    try:
        yield
    finally:
        acting.join()
        worker.relay.rate, worker.relay.flips = None, 0
        with contextlib.suppress(ProcessLookupError):
            worker.process.send_signal(signal.SIGCONT)
        if worker.process.poll() is not None:
            worker.restart()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault_leaves_the_reply_as_it_is_alone(server, worker, live_server, fault):
    tokens = prompt(FAULTS.index(fault) + 10)
    before = ends(server.url)
    with faulty(worker, fault):
        assert scores(server.url, tokens) == alone(live_server, tokens)
    assert sum((ends(server.url) - before).values()) == 1
    until(lambda: at_rest(server.url))
    until(lambda: worker.metrics()["earthshine:prefill_requests_running"] == 0)


def at_rest(url: str) -> bool:
    gauges = httpx.get(f"{url}/v1/gauges").json()
    return gauges["pages_used"] == 0 and not gauges["running"]


def test_client_that_leaves_ends_its_remote_prefill(server, worker, live_server):
    worker.relay.rate = 100_000
    body = BODY | {"prompt": prompt(40), "stream": True}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=httpx.Timeout(HANG_SECONDS, read=0.5))
    until(lambda: metrics(server.url)["earthshine:remote_prefills_running"] == 0)
    until(lambda: worker.metrics()["earthshine:prefill_requests_running"] == 0)
    worker.relay.rate = None
    assert scores(server.url, prompt(40)) == alone(live_server, prompt(40))
    until(lambda: at_rest(server.url))


def conversation(seed: int, servers: tuple[str, str], worker: Worker, faults: threading.Lock) -> int:
    """One client's turns, some under a fault; each reply is compared. Returns the number of turns.

    Only one client at a time brings a fault about; it then concerns the others too."""
    draw = random.Random(seed)
    tokens = prompt(draw.randrange(20), draw.choice((30, 200, 500)))  # stems that conversations share
    turns = draw.choice((1, 2, 3))
    for _ in range(turns):
        tokens += [draw.randrange(VOCAB) for _ in range(draw.choice((10, 64, 250)))]
        brings = draw.random() < 0.3 and faults.acquire(blocking=False)
        with faulty(worker, draw.choice(FAULTS)) if brings else contextlib.nullcontext():
            if draw.random() < 0.1:  # and leaves
                with contextlib.suppress(httpx.ReadTimeout):
                    httpx.post(f"{servers[0]}/v1/completions", json=BODY | {"prompt": tokens, "stream": True},
                               timeout=httpx.Timeout(HANG_SECONDS, read=draw.choice((0.05, 0.3))))  # fmt: skip
            found = scores(servers[0], tokens, cache_salt=str(seed % 3))
        if brings:
            until(lambda: not left_out(servers[0]))
            faults.release()
        assert found == scores(servers[1], tokens, cache_salt=f"alone {seed} {len(tokens)}"), (seed, len(tokens))
    return turns


def test_random_conversations_under_faults_have_the_same_bits(server, worker, live_server):
    before, log = ends(server.url), server.log.read_text()
    faults, began, n_open = threading.Lock(), time.monotonic(), descriptors(server.process.pid)
    urls = (server.url, live_server.url)
    with ThreadPoolExecutor(3) as clients:
        seeds = range(1000, 1000 + CONVERSATIONS)
        turns = sum(clients.map(lambda seed: conversation(seed, urls, worker, faults), seeds))
    how = ends(server.url) - before
    remotely(server, worker, live_server, count(200))
    until(lambda: at_rest(server.url))
    until(lambda: worker.metrics()["earthshine:prefill_requests_running"] == 0)
    until(lambda: descriptors(server.process.pid) <= n_open + 8)
    lines = server.log.read_text()[len(log) :].splitlines()
    how = ends(server.url) - before
    assert sum("remote prefill" in line for line in lines) == sum(how.values()) - how["here"]
    assert "Traceback" not in "".join(lines)
    print(f"{CONVERSATIONS} conversations, {turns} replies in {time.monotonic() - began:.0f} s: {dict(how)}")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_worker_with_another_model_is_refused_by_name(forker, worker, live_server, tmp_path):
    """The same weights in fp32 have other latents."""
    url = f"earthshine+plain://127.0.0.1:{worker.relay.port}"
    options = ("--prefill", url, "--prefill-above", "0", "--dtype", "fp32")
    with serve_process(forker.popen, tmp_path / "log", *options) as other:
        httpx.post(f"{other.url}/v1/completions", json=BODY | {"prompt": prompt(50)}, timeout=HANG_SECONDS)
        (line,) = [line for line in other.log.read_text().splitlines() if "remote prefill model" in line]
        assert "The request is for the model" in line
        other.stop()
