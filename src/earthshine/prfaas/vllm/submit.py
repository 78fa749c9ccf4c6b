"""Gives vLLM a prompt that a peer asks for, over vLLM's own HTTP server on this machine.

vLLM computes the prompt and one token, which nobody reads. When the peer goes away, the HTTP request ends, and vLLM
aborts the prompt.
"""

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from urllib.parse import urlsplit

from earthshine.errors import UnavailableError, UsageError
from earthshine.net.access import is_loopback
from earthshine.prfaas.wire.request import PrefillRequest
from earthshine.untrusted import shown

_MOST_ANSWER_BYTES = 1 << 20
_SHOWN_BYTES = 300


class Submission:
    """`url`: `http://127.0.0.1:PORT` of the vLLM in which this runs. `key`: its API key, "" for none. Raises UsageError
    for another machine's address."""

    def __init__(self, url: str, key: str = "") -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or 80
        except ValueError:
            host, port, parts = None, 0, urlsplit("")
        if parts.scheme != "http" or not host or not is_loopback(host) or parts.path.strip("/"):
            raise UsageError(f"{shown(url)} is not this vLLM's own server; write http://127.0.0.1:PORT.")
        self._host, self._port = host, port
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    @contextmanager
    def __call__(self, request: PrefillRequest) -> Iterator[Callable[[], None]]:
        """Yields a function that raises UnavailableError once vLLM has refused the prompt."""
        body = {"prompt": list(request.token_ids), "max_tokens": 1, "temperature": 0}
        if request.tenant:
            body["cache_salt"] = request.tenant
        connection = http.client.HTTPConnection(self._host, self._port)
        refusals: list[str] = []
        ended = Event()
        words = (connection, json.dumps(body).encode(), refusals, ended)
        thread = Thread(target=self._post, args=words, name="earthshine-submit", daemon=True)
        thread.start()

        def check() -> None:
            if refusals:
                raise UnavailableError(refusals[0])

        try:
            yield check
        finally:
            ended.set()
            _cut(connection)
            thread.join()

    def _post(self, connection: http.client.HTTPConnection, body: bytes, refusals: list[str], ended: Event) -> None:
        try:
            connection.request("POST", "/v1/completions", body, self._headers)
            if ended.is_set():
                return
            answer = connection.getresponse()
            text = answer.read(_MOST_ANSWER_BYTES)
            if answer.status != 200:
                refusals.append(f"vLLM answered {answer.status}: {text[:_SHOWN_BYTES].decode('utf-8', 'replace')}")
        except (OSError, http.client.HTTPException) as error:
            refusals.append(f"vLLM's server at {self._host}:{self._port} does not answer: {error}.")
        finally:
            connection.close()


def _cut(connection: http.client.HTTPConnection) -> None:
    """End a connection that another thread uses, which then finds it closed."""
    if connection.sock is not None:
        with suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)
