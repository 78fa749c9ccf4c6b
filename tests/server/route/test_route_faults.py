"""Places that fail: a request goes elsewhere before the first byte, never after it, and a place that works is used."""

import json
import socket
import struct
import threading

import httpx
import pytest

from earthshine.prfaas.router import circuit
from earthshine.server.http.body import Limits
from earthshine.server.route.probes import ProbeTimes

from ..serving import HANG_SECONDS, answered, received, until
from .routing import CHAT, EVENT, REPLY, STREAM_HEAD, FakePlace, answer, chunk, routing

OFTEN = ProbeTimes(every=0.02, answer=HANG_SECONDS, hang=HANG_SECONDS)
STREAMED = CHAT | {"stream": True}
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


def close(connection, asked):
    return False


def reset(connection, asked):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    raise OSError


def says(data: bytes):
    def script(connection, asked):
        connection.sendall(data)
        return False

    return script


FAULTS = {
    "closed": close,
    "reset": reset,
    "no HTTP": says(b"220 mail.example ESMTP\r\n"),
    "half a head": says(b"HTTP/1.1 200 OK\r\ncontent-le"),
    "an endless head": says(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000),
    "too short a body": says(b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n" + REPLY),
    "two lengths": says(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 5\r\n\r\nabcde"),
    "no length": says(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nabc"),
    "a broken chunk": says(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nabc"),
    "another protocol": says(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"),
    "a redirect": says(answer(b"{}", "307 Temporary Redirect", "location: http://10.0.0.1/\r\n")),
    "a refused key": says(answer(b"{}", "401 Unauthorized")),
    "502": says(answer(b"<html>", "502 Bad Gateway")),
    "500": says(answer(b"{}", "500 Internal Server Error")),
    "503": says(answer(b"{}", "503 Service Unavailable")),
    "429": says(answer(b"{}", "429 Too Many Requests", "retry-after: 3600\r\n")),
    "no first event": says(STREAM_HEAD + chunk(b"data: {")),
}


def beginning(routed, fault: FakePlace, body=CHAT, **more):
    """The answer of the first request that `fault` got, which another place may have answered."""
    while True:
        found = httpx.post(routed.url + "/v1/chat/completions", json=body, **more)
        if fault.asked:
            return found


@pytest.mark.parametrize("name", FAULTS)
def test_a_request_that_fails_before_the_first_byte_goes_elsewhere(name):
    faulty, sound = FakePlace(FAULTS[name]), FakePlace()
    with routing(faulty, sound) as routed:
        reply = beginning(routed, faulty, STREAMED if name == "no first event" else CHAT)
        assert (reply.status_code, reply.content) == (200, REPLY)
        assert len(faulty.asked) == 1
        until(lambda: any("after a: " in line for line in routed.requests()))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["closed", "no HTTP", "too short a body", "a refused key"])
def test_the_only_place_failing_is_an_error_of_the_api(name, path):
    with routing(FakePlace(FAULTS[name])) as routed:
        reply = httpx.post(routed.url + path, json=CHAT)
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) >= 1
    problem = reply.json()
    assert problem["type"] == "error" if path == "/v1/messages" else "code" in problem["error"]
    assert "a" in problem["error"]["message"]


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable", "500 Internal Server Error"])
def test_a_refusal_of_every_place_is_passed_on(status):
    refusal = answer(b'{"error": "no room"}', status, "retry-after: 7\r\n")
    with routing(*(FakePlace(says(refusal)) for _ in range(2))) as routed:
        reply = httpx.post(routed.url + "/v1/chat/completions", json=CHAT)
    assert (str(reply.status_code), reply.headers["retry-after"]) == (status[:3], "7")
    assert reply.json() == {"error": "no room"}


def test_errors_that_are_the_clients_own_are_passed_on_and_not_repeated():
    places = [FakePlace(says(answer(b'{"error": "too long"}', "400 Bad Request"))) for _ in range(2)]
    with routing(*places) as routed:
        assert httpx.post(routed.url + "/v1/chat/completions", json=CHAT).status_code == 400
        assert sum(len(place.asked) for place in places) == 1
        assert all(not place.circuit.failures for place in routed.router.fleet.places.values())


def test_a_request_that_makes_places_fail_reaches_two_of_them():
    places = [FakePlace(close) for _ in range(4)]
    with routing(*places) as routed:
        reply = httpx.post(routed.url + "/v1/chat/completions", json=CHAT)
    assert reply.status_code == 503
    assert sum(len(place.asked) for place in places) == 2
    assert "failed at 2 places" in reply.json()["error"]["message"]


def test_places_that_cannot_be_reached_are_all_passed_over():
    places = [FakePlace() for _ in range(5)]
    with routing(*places) as routed:
        for place in places[:-1]:
            place.close()
        assert httpx.post(routed.url + "/v1/chat/completions", json=CHAT).status_code == 200


EVENTS_OF_ERRORS = {
    "/v1/chat/completions": (b"data: [DONE]\n\n", lambda found: found["error"]["message"]),
    "/v1/completions": (b"data: [DONE]\n\n", lambda found: found["error"]["message"]),
    "/v1/responses": (b"", lambda found: found["message"]),
    "/v1/messages": (b"", lambda found: found["error"]["message"]),
}


@pytest.mark.parametrize("path", EVENTS_OF_ERRORS)
@pytest.mark.parametrize("cut", [b"", b'data: {"choi', b"data: {}\n"], ids=["after", "within", "before the end of"])
@pytest.mark.parametrize("end", [close, reset], ids=["closed", "reset"])
def test_a_stream_that_breaks_after_its_first_event_ends_with_an_error(path, cut, end):
    go_on = threading.Event()

    def script(connection, asked):
        connection.sendall(STREAM_HEAD + chunk(EVENT) + (chunk(cut) if cut else b""))
        assert go_on.wait(HANG_SECONDS)
        return end(connection, asked)

    places = [FakePlace(script), FakePlace(script)]
    with routing(*places) as routed:
        connection = routed.send(STREAMED, path)
        head = received(connection, EVENT)
        go_on.set()
        whole = head + received(connection, b"0\r\n\r\n")
        assert sum(len(place.asked) for place in places) == 1
        assert whole.endswith(b"0\r\n\r\n")
        last, message_of = EVENTS_OF_ERRORS[path]
        events = httpx.Response(200, content=b"".join(_chunks(whole.partition(b"\r\n\r\n")[2]))).text
        assert events.startswith(EVENT.decode())
        rest = events.removeprefix(EVENT.decode()).removesuffix(last.decode())
        assert rest.startswith("event: error\ndata: " if not last else "data: ")
        data = json.loads(rest.partition("data: ")[2])
        assert "failed in the middle of the answer" in message_of(data)
        until(lambda: any("  503  " in line for line in routed.requests()))


def _chunks(body: bytes):
    while body:
        size, _, body = body.partition(b"\r\n")
        yield body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]


def test_a_large_answer_that_breaks_is_cut_and_not_made_to_look_whole():
    with routing(FakePlace(says(b"HTTP/1.1 200 OK\r\ncontent-length: 999999\r\n\r\n" + b"x" * 500_000))) as routed:
        raw = received(routed.send())
        assert b"content-length: 999999" in raw
        assert len(raw) < 999_999


def test_a_place_that_failed_again_and_again_is_tried_again_and_used_again():
    faulty = FakePlace(close)
    with routing(faulty) as routed:
        failing = routed.router.fleet.places["a"].circuit
        while not failing.open:
            assert httpx.post(routed.url + "/v1/chat/completions", json=CHAT).status_code == 503
        n_asked = len(faulty.asked)
        assert n_asked == circuit._FAILURES
        faulty.script = says(answer())
        until(lambda: httpx.post(routed.url + "/v1/chat/completions", json=CHAT).status_code == 200)
        until(lambda: not failing.open)  # after the reply has reached its client


def test_a_place_that_has_no_room_is_left_alone_for_as_long_as_it_says():
    full, other = FakePlace(says(answer(b"{}", "429 Too Many Requests", "retry-after: 3600\r\n"))), FakePlace()
    with routing(full, other) as routed:
        beginning(routed, full)
        now = routed.router.fleet.places["a"].circuit.busy_until
        assert all(httpx.post(routed.url + "/v1/chat/completions", json=CHAT).status_code == 200 for _ in range(3))
        assert routed.router.fleet.places["a"].circuit.busy_until == now
        assert len(full.asked) == 1


def test_a_place_that_accepts_and_never_answers_is_found_and_its_request_goes_elsewhere():
    hung, sound = FakePlace(), FakePlace()
    with routing(hung, sound, times=ProbeTimes(every=0.02, answer=0.3, hang=HANG_SECONDS)) as routed:
        until(lambda: hung.probed)
        hung.deaf.set()
        hung.script = lambda connection, asked: connection.recv(1)
        reply = httpx.post(routed.url + "/v1/chat/completions", json=CHAT)
        assert (reply.status_code, reply.content) == (200, REPLY)
        until(lambda: routed.router.fleet.places["a"].circuit.down)
        assert "hangs" in routed.router.fleet.places["a"].problem(0.0)
        for _ in range(3):
            assert httpx.post(routed.url + "/v1/chat/completions", json=CHAT).status_code == 200
        hung.deaf.clear()
        hung.script = says(answer())
        until(lambda: not routed.router.fleet.places["a"].circuit.down)
        assert any("a works again" in line for line in routed.lines)


def test_a_hung_engine_behind_a_healthy_server_is_found_by_a_token_that_does_not_come():
    """/health answers, and so does the server, while no request ever gets a byte."""

    def silent(connection, asked):
        connection.recv(1)
        return False

    hung, sound = FakePlace(silent), FakePlace()
    with routing(hung, sound, times=ProbeTimes(every=0.02, answer=HANG_SECONDS, hang=0.3)) as routed:
        replies = [httpx.post(routed.url + "/v1/chat/completions", json=CHAT, timeout=HANG_SECONDS) for _ in range(3)]
        assert [reply.status_code for reply in replies] == [200, 200, 200]
        if hung.asked:
            assert any(json.loads(asked.body).get("max_tokens") == 1 for asked in hung.asked)
            assert "hangs" in "".join(routed.lines)


def test_a_slow_engine_that_generates_a_token_is_not_hung():
    go_on = threading.Event()

    def slow(connection, asked):
        if b'"max_tokens": 1' not in asked.body:
            assert go_on.wait(HANG_SECONDS)
        connection.sendall(answer())

    place = FakePlace(slow)
    with routing(place, times=ProbeTimes(every=0.01, answer=HANG_SECONDS, hang=0.05)) as routed:
        connection = routed.send()
        until(lambda: sum(b"max_tokens" in asked.body for asked in place.asked) >= 3)
        assert not routed.router.fleet.places["a"].circuit.down
        go_on.set()
        assert answered(connection)[0] == 200


def test_a_place_that_says_it_is_shutting_down_gets_no_more_requests_and_finishes_those_it_has():
    go_on = threading.Event()

    def script(connection, asked):
        connection.sendall(STREAM_HEAD + chunk(EVENT))
        assert go_on.wait(HANG_SECONDS)
        connection.sendall(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    leaving, other = FakePlace(script), FakePlace()
    with routing(leaving, other, times=OFTEN) as routed:
        while not leaving.asked:
            connection = routed.send(STREAMED)
            received(connection, b"\r\n\r\n")
        leaving.health = answer(b'{"status": "draining", "message": "is shutting down"}', "503 Service Unavailable")
        until(lambda: routed.router.fleet.places["a"].circuit.down)
        assert httpx.post(routed.url + "/v1/chat/completions", json=CHAT).status_code == 200
        assert len(leaving.asked) == 1
        go_on.set()
        assert b"[DONE]" in received(connection, b"0\r\n\r\n")


def test_an_answer_that_the_client_does_not_read_is_given_up():
    sent = threading.Event()

    def script(connection, asked):
        connection.sendall(STREAM_HEAD)
        try:
            while True:
                connection.sendall(chunk(EVENT * 1000))
        except OSError:
            sent.set()
            raise

    with routing(FakePlace(script), limits=Limits(stalled_send_seconds=0.2)) as routed:
        routed.send(STREAMED)
        assert sent.wait(HANG_SECONDS)
        until(lambda: not routed.router.lifetime.requests)


def test_no_place_that_works_is_said_of_each():
    places = [FakePlace(health=answer(b'{"message": "engine ended"}', "503 Service Unavailable")) for _ in range(2)]
    with routing(*places, times=OFTEN) as routed:
        until(lambda: all(place.circuit.down for place in routed.router.fleet.places.values()))
        reply = httpx.post(routed.url + "/v1/chat/completions", json=CHAT)
        assert reply.status_code == 503
        message = reply.json()["error"]["message"]
        assert message.count("engine ended") == 2
        assert httpx.get(routed.url + "/health").status_code == 503
