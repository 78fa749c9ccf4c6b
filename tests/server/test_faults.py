"""A server that dies, a disk that fills or lies, a clock that jumps: the next request is still answered rightly."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from .serving import HANG_SECONDS, until

SERVE = [sys.executable, "-c", "from earthshine.cli import main; main()", "serve", "gleam", "--port", "0"]
LONG = {
    "messages": [
        {"role": "system", "content": "Answer with one command. " * 60},
        {"role": "user", "content": "disk use"},
    ],
    "max_tokens": 24,
    "temperature": 0,
    "ignore_eos": True,
}


@contextmanager
def serving(folder: Path, log: Path, *more: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """A process that keeps conversations in `folder`, and its address."""
    command = [*SERVE, "--memory", "1GiB", "--batch", "4", "--disk-cache-folder", str(folder), *more]
    command += [] if "--disk-cache" in more else ["--disk-cache", "64MiB"]
    with log.open("a") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        found = None
        while found is None:
            line = process.stdout.readline()
            assert line, log.read_text()
            found = re.search(r"OPENAI_BASE_URL=(\S+)/v1", line)
        yield process, found[1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


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


def kill_in_the_middle(process: subprocess.Popen, url: str, body: dict) -> None:
    with httpx.stream("POST", url, json=body) as answer:
        for count, _ in enumerate(answer.iter_lines()):
            if count == 20:
                process.kill()


def test_the_successor_of_a_killed_server_says_the_same_and_finds_what_was_computed(tmp_path):
    """kill -9 in the middle of a reply and, since pages are written as they fill, of the disk cache's writing."""
    log = tmp_path / "log"
    with serving(tmp_path / "pages", log) as (process, url):
        said, cached = ask(url)
        assert cached == 0
        until_written(url)
        body = LONG | {"stream": True, "max_tokens": 600, "messages": LONG["messages"] + LONG["messages"][1:]}
        with pytest.raises(httpx.HTTPError):
            kill_in_the_middle(process, f"{url}/v1/chat/completions", body)
    with serving(tmp_path / "pages", log) as (_, url):
        again, cached = ask(url)
        assert again == said
        assert cached >= 256
        assert ask(url, cache_salt="another")[0] == said
        assert metric(url, "disk_cache_damaged_pages") == 0


def test_damaged_pages_are_computed_again_and_counted(tmp_path):
    log, pages = tmp_path / "log", tmp_path / "pages"
    with serving(pages, log) as (process, url):
        said, _ = ask(url)
        until_written(url)
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_SECONDS) == 0
    files = sorted(pages.rglob("*.kv"))
    for path in files:
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 4
        path.write_bytes(raw)
    with serving(pages, log) as (_, url):
        again, cached = ask(url)
        assert (again, cached) == (said, 0)
        assert metric(url, "disk_cache_damaged_pages") >= 1
        assert ask(url)[0] == said
    assert "damaged" in log.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system can be mounted by root alone")
def test_a_full_disk_costs_pages_and_no_reply(tmp_path):
    pages, log = tmp_path / "pages", tmp_path / "log"
    pages.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", pages], check=False).returncode == 0
    if not mounted:
        pytest.skip("no file system can be mounted here")
    try:
        with serving(pages, log, "--disk-cache", "16MiB") as (process, url):
            first = [ask(url, cache_salt=str(i))[0] for i in range(6)]
            assert len(set(first)) == 1
            assert "No page was written" in gauges(url)["problem"]
            assert ask(url, cache_salt="0")[0] == first[0]
            process.send_signal(signal.SIGTERM)
            assert process.wait(HANG_SECONDS) == 0
    finally:
        subprocess.run(["umount", "-l", pages], check=True)
    assert "No page was written" in log.read_text()


def test_a_clock_that_jumps_changes_nothing(live_server, monkeypatch):
    url = live_server.url
    before = ask(url)[0]
    real = time.time
    for jump in (-4e8, 4e8):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        assert ask(url, cache_salt=str(jump))[0] == before
        assert httpx.get(f"{url}/health").status_code == 200
