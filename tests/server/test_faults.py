"""A killed server, a full or damaged disk, a clock that jumps: the next request still gets the right answer."""

import os
import subprocess
import time
from contextlib import AbstractContextManager

import httpx
import pytest

from .process import ServerProcess, serve_process
from .serving import HANG_SECONDS, until

LONG = {
    "messages": [
        {"role": "system", "content": "Answer with one command. " * 60},
        {"role": "user", "content": "disk use"},
    ],
    "max_tokens": 24,
    "temperature": 0,
    "ignore_eos": True,
}


@pytest.fixture
def start(forker, tmp_path):
    """Starts a server that keeps conversations in a folder of the test's own."""

    def started(*more: str) -> AbstractContextManager[ServerProcess]:
        size = () if "--disk-cache" in more else ("--disk-cache", "64MiB")
        folder = ("--disk-cache-folder", str(tmp_path / "pages"))
        return serve_process(forker.popen, tmp_path / "log", "--memory", "1GiB", "--batch", "4", *folder, *size, *more)

    return started


def ask(url: str, **changed) -> tuple[str, int]:
    """The reply's text, and how many of the prompt's tokens were found."""
    answer = httpx.post(f"{url}/v1/chat/completions", json=LONG | changed, timeout=HANG_SECONDS)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body["choices"][0]["message"]["content"], body["usage"]["cached_tokens"]


def gauges(url: str) -> dict:
    return httpx.get(f"{url}/v1/gauges", timeout=HANG_SECONDS).json()


def metric(url: str, name: str) -> float:
    text = httpx.get(f"{url}/metrics", timeout=HANG_SECONDS).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"earthshine:{name}"))


def until_written(url: str) -> None:
    until(lambda: metric(url, "disk_cache_pages") >= 4)


def kill_in_the_middle(server: ServerProcess, body: dict) -> None:
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
        for count, _ in enumerate(answer.iter_lines()):
            if count == 20:
                server.process.kill()


def test_a_server_started_after_a_kill_answers_the_same_from_the_pages_on_disk(start):
    """kill -9 in the middle of a reply and, since pages are written as they fill, of the disk cache's writing."""
    with start() as server:
        reply, cached = ask(server.url)
        assert cached == 0
        until_written(server.url)
        body = LONG | {"stream": True, "max_tokens": 600, "messages": LONG["messages"] + LONG["messages"][1:]}
        with pytest.raises(httpx.HTTPError):
            kill_in_the_middle(server, body)
    with start() as server:
        again, cached = ask(server.url)
        assert again == reply
        assert cached >= 256
        assert ask(server.url, cache_salt="another")[0] == reply
        assert metric(server.url, "disk_cache_damaged_pages") == 0


def test_damaged_pages_are_computed_again_and_counted(start, tmp_path):
    with start() as server:
        reply, _ = ask(server.url)
        until_written(server.url)
        server.stop()
    for path in sorted((tmp_path / "pages").rglob("*.kv")):
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 4
        path.write_bytes(raw)
    with start() as server:
        again, cached = ask(server.url)
        assert (again, cached) == (reply, 0)
        assert metric(server.url, "disk_cache_damaged_pages") >= 1
        assert ask(server.url)[0] == reply
        assert "damaged" in server.log.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system can be mounted by root alone")
def test_a_full_disk_costs_pages_and_no_reply(start, tmp_path):
    pages = tmp_path / "pages"
    pages.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", pages], check=False).returncode == 0
    if not mounted:
        pytest.skip("no file system can be mounted here")
    try:
        with start("--disk-cache", "16MiB") as server:
            first = [ask(server.url, cache_salt=str(i))[0] for i in range(6)]
            assert len(set(first)) == 1
            assert "No page was written" in gauges(server.url)["problem"]
            assert ask(server.url, cache_salt="0")[0] == first[0]
            server.stop()
            assert "No page was written" in server.log.read_text()
    finally:
        subprocess.run(["umount", "-l", pages], check=True)


def test_a_clock_that_jumps_changes_nothing(live_server, monkeypatch):
    url = live_server.url
    before = ask(url)[0]
    real = time.time
    for jump in (-4e8, 4e8):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        assert ask(url, cache_salt=str(jump))[0] == before
        assert httpx.get(f"{url}/health").status_code == 200
