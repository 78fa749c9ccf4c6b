"""Request bodies and heads that are too large, too slow, or malformed."""

import json
import select
import threading

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earthshine.net.connection import MAX_HEAD_BYTES, Connection
from earthshine.server.http.body import Limits, parse_body, unknown_fields
from earthshine.server.refusals import Refused

from .serving import HANG_SECONDS, Body, answered, received, serving, until


@pytest.fixture(scope="module")
def server():
    with serving(limits=Limits(body_bytes=1 << 20, all_bodies_bytes=3 << 20)) as running:
        yield running


def ask(server, raw, **headers):
    return httpx.post(f"{server.url}/v1/echo", content=raw, headers=headers)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "The body is not JSON: it is empty."),
        (b'{"prompt": "a\x01"}', "The body is not JSON: Invalid control character at line 1, column 14."),
        (b'{"prompt": "a",\n "n": }', "The body is not JSON: Expecting value at line 2, column 7."),
        (b'{"prompt": "\xff"}', "The body is not UTF-8 text: byte 12 can't be decoded."),
        (b'{"prompt": "\xed\xa0\x80"}', "The body is not UTF-8 text: byte 12 can't be decoded."),
        (b"[1]", "The body holds no JSON object."),
        (b'{"prompt": "a", "prompt": "b"}', "The body gives the key 'prompt' twice in one object."),
        (b'{"prompt": NaN}', "The body holds NaN, which is not a JSON number."),
        (b'{"n": 1e999}', "The body holds 1e999, which is beyond the range of a number."),
        (b'{"n": ' + b"9" * 5000 + b"}", "The body holds a number with too many digits."),
        (b'{"a": ' * 40 + b"1" + b"}" * 40, "The body nests more than 32 levels deep."),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "The body nests more than 32 levels deep."),
        (b"{}", "prompt is missing; it is required."),
        (b'{"prompt": null}', "prompt should be a valid string, and is null."),
    ],
)
def test_a_body_that_is_not_the_expected_object_is_refused(server, raw, expected):
    answer = ask(server, raw)
    assert (answer.status_code, answer.json()["echo"]) == (400, expected)


def test_half_a_surrogate_pair_becomes_the_replacement_character(server):
    text = r'{"prompt": "a\ud83d\ude00b\ud83d c\ude00"}'
    assert ask(server, text.encode()).json() == {"text": "a\U0001f600b\ufffdc\ufffd"}


def test_a_byte_order_mark_is_named(server):
    answer = ask(server, b'\xef\xbb\xbf{"prompt": "a"}')
    expected = "The body is not JSON: it begins with a byte order mark; write it without one."
    assert (answer.status_code, answer.json()["echo"]) == (400, expected)


def test_a_large_body_is_refused_before_it_comes(server):
    connection = server.connect()
    connection.sendall(b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1048577\r\n\r\n")
    status, body = answered(connection)
    assert status == 413
    assert b"1.00 MiB" in body


def test_a_large_body_without_a_length_is_refused_on_the_way(server):
    answer = httpx.post(f"{server.url}/v1/echo", content=(b"x" * 65536 for _ in range(20)))
    assert (answer.status_code, answer.json()["kind"]) == (413, "too_large")


def test_many_bytes_of_one_value_are_fine(server):
    words = "x" * 900_000
    assert ask(server, json.dumps({"prompt": words}).encode()).json() == {"text": words}


def test_a_length_beyond_all_numbers_is_refused(server):
    connection = server.connect()
    connection.sendall(b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 19 + b"\r\n\r\n")
    assert connection.recv(64).startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))


def test_too_many_values_are_refused():
    raw = b'{"prompt": "a", "items": [' + b"1," * (1 << 19) + b"1]}"
    with pytest.raises(Refused, match="more than 524288 values"):
        parse_body(raw, Body)


def test_wrong_values_without_number_are_counted_and_not_listed():
    raw = b'{"prompt": "a", "items": [' + b"1," * 2000 + b"1]}"
    with pytest.raises(Refused, match="has 2001 errors"):
        parse_body(raw, Body)


def test_a_body_that_stalls_ends_with_408():
    with serving(limits=Limits(stalled_body_seconds=0.1)) as server:
        connection = server.connect()
        connection.sendall(b'POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"prompt"')
        status, body = answered(connection)
    assert status == 408
    assert b"after 9 bytes" in body


def test_a_body_that_comes_byte_by_byte_is_read(server):
    raw = b'{"prompt": "slow"}'
    connection = server.connect()
    connection.sendall(
        b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(raw)
    )
    for byte in raw:
        connection.sendall(bytes([byte]))
    assert b'{"text":"slow"}' in received(connection)


def test_client_that_disconnects_within_its_body_causes_no_error(server, caplog):
    connection = server.connect()
    connection.sendall(b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    connection.close()
    assert ask(server, b'{"prompt": "a"}').status_code == 200
    assert not caplog.records


def test_all_bodies_together_have_a_limit(server):
    head = b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 1048576\r\n\r\n"
    held = [server.connect() for _ in range(4)]
    for connection in held:
        connection.sendall(head + b" " * 1_000_000)
    (refused,) = select.select(held, [], [], HANG_SECONDS)[0]
    assert answered(refused)[0] == 503
    held.remove(refused)  # now there is room for the others
    for connection in held:
        connection.sendall(b" " * 48_576)
    assert [answered(connection)[0] for connection in held] == [400] * 3  # white space is no JSON
    assert ask(server, b'{"prompt": "a"}').status_code == 200


def test_compressed_bodies_are_refused(server):
    assert "compressed" in ask(server, b"\x1f\x8b", **{"content-encoding": "gzip"}).json()["echo"]


@pytest.mark.parametrize(
    ("raw", "status", "expected"),
    [
        (
            b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (MAX_HEAD_BYTES + 1),
            431,
            "more than 32768 byt",
        ),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 no HTTP at all \r\n\r\n", 400, "illegal request line"),
        (b"GET /v1/models HTTP/1.1\r\n\r\n", 400, "Missing mandatory Host: header"),
        (b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "multiple Host: headers"),
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n", 400, "illegal header line"),
        (b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400, "bad Content-Length"),
        (
            b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            400,
            "conflicting Content-Length",
        ),
        (b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "Transfer-Encoding"),
        (
            b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            400,
            "illegal chunk header",
        ),
    ],
)
def test_bytes_that_are_not_http_get_a_400_that_names_the_mistake(server, raw, status, expected):
    connection = server.connect()
    connection.sendall(raw)
    head, _, body = received(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    message = json.loads(body)["error"]["message"]
    assert expected in message
    assert len(message) < 200


def test_a_request_without_a_host_is_refused_by_name(server):
    connection = server.connect()
    connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
    answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"no Host header" in answer


def test_a_head_that_does_not_come_ends_the_connection(monkeypatch):
    with serving() as server, httpx.Client(base_url=server.url) as client:
        client.get("/health")
        waiting = server.post({"prompt": "gate a"})
        assert server.generator.begun.wait(HANG_SECONDS)
        monkeypatch.setattr("earthshine.net.connection.HEAD_SECONDS", 0.1)
        client.get("/health")
        silent, slow = server.connect(), server.connect()
        slow.sendall(b"GET / HTTP/1.1\r\nHost:")
        assert received(silent) == received(slow) == b""
        server.generator.gate.set()
        assert answered(waiting) == (200, b'{"text":"a"}')
        assert client.get("/health").status_code == 200  # an idle connection is not an incomplete head
        assert "Request Count: 3" in next(iter(client._transport._pool.connections)).info()


def test_a_reply_that_is_not_read_ends_the_connection(monkeypatch):
    monkeypatch.setattr("earthshine.net.connection.UNREAD_SECONDS", 0.1)
    monkeypatch.setattr("earthshine.server.http.run._KEEP_ALIVE_SECONDS", 0.3)
    lost, close = threading.Event(), Connection.connection_lost
    monkeypatch.setattr(Connection, "connection_lost", lambda self, problem: (close(self, problem), lost.set()))
    with serving() as server:
        connection = server.post({"prompt": "x" * (20 << 20)})
        assert server.generator.closed.wait(HANG_SECONDS)
        assert lost.wait(HANG_SECONDS)
        assert 0 < len(received(connection)) < 20 << 20


def test_requests_beyond_the_limit_of_connections_get_a_503(monkeypatch):
    monkeypatch.setattr("earthshine.net.connection.MOST_OPEN", 2)
    with serving() as server:
        held = [server.post({"prompt": "a hold", "stream": True}) for _ in range(2)]
        assert [connection.recv(12) for connection in held] == [b"HTTP/1.1 200"] * 2
        answer = httpx.get(f"{server.url}/v1/models")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        held += [server.connect() for _ in range(6)]
        assert received(held[2]) == b""  # the oldest that asked nothing
        for connection in held:
            connection.close()
        until(lambda: httpx.get(f"{server.url}/v1/models").status_code == 200)


def test_unknown_fields_are_those_of_no_name():
    assert unknown_fields({"prompt": 1, "novel": 2, "model": 3}, Body) == ["novel"]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.from_regex(rb'\{"prompt": ?("(\\u[dD][89a-f]..|a)*"|\[*1|-?[0-9]{1,400})\}?'))
def test_any_bytes_are_parsed_or_refused(raw):
    try:
        checked, body = parse_body(raw, Body)
    except Refused:
        return
    assert checked.prompt.encode() == body["prompt"].encode()
