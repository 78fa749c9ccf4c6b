"""A server as a worker: started here, sent several requests at once over HTTP, and ended. Standard library alone.

Request: `command` (words that start it; {port} is filled in), `conversations`, `tokens` (of each reply), `context`
(tokens of each prompt), `span` (ids are drawn below it), `start_seconds`. Each request is a streamed
/v1/completions of token ids of its own. The time measured is that from the moment when every reply has begun to the
one when the first ends: `seconds` are of one step, that is one token of each reply. Pieces need not be tokens (half a
character waits for the rest), so a reply's tokens are taken to be spread evenly over its time. A round that is not
timed comes first, so that caches are filled as in use.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from worker import prompt, serve


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def started(command, port, seconds):
    """The server's process, once /health answers 200."""
    words = [word.replace("{port}", str(port)) for word in command]
    process = subprocess.Popen(words, stdout=sys.stderr, stderr=sys.stderr, start_new_session=True)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {process.returncode}")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return process
        except OSError:
            pass
        time.sleep(0.2)
    end(process)
    raise RuntimeError(f"the server was not ready within {seconds} s")


def end(process):
    """SIGTERM, and SIGKILL for what has not ended a while later. Returns the peak of its resident memory in bytes."""
    with open(f"/proc/{process.pid}/status") as status:
        peak = next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")), 0)
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return peak


def times(port, ids, tokens):
    """When each piece of one reply arrived. Raises RuntimeError for an answer that is not a stream of pieces."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1800)
    body = {"prompt": ids, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True,
            "cache_prompt": False}  # fmt: skip
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {answer.read()[:300]!r}")
    found = []
    for line in answer:
        if line.startswith(b"data: {"):
            piece = json.loads(line[6:])
            if piece.get("choices") and piece["choices"][0].get("finish_reason") is None:
                found.append(time.monotonic())
    return found


def together(port, request, turn):
    """Arrival times of every reply's pieces."""
    count, found, failed = request["conversations"], {}, []

    def one(number):
        try:
            ids = prompt(request["context"], request["span"], 1000 * turn + number)
            found[number] = times(port, ids, request["tokens"])
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return list(found.values())


def shared(request):
    port = free_port()
    process = started(request["command"], port, request["start_seconds"])
    try:
        together(port, {**request, "tokens": 4}, 0)
        arrivals = together(port, request, 1)
    finally:
        peak = end(process)
    begin, last = max(each[0] for each in arrivals), min(each[-1] for each in arrivals)
    if last <= begin:
        raise RuntimeError(f"replies did not overlap: they have {sorted(map(len, arrivals))} pieces")
    rates = [(request["tokens"] - 1) / (each[-1] - each[0]) for each in arrivals]
    return {"seconds": [len(rates) / sum(rates)], "overlap_seconds": last - begin, "peak_bytes": peak}


if __name__ == "__main__":
    serve({"shared": shared})
