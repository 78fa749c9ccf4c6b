"""What passes through the router: bodies and events unchanged, no faster than they are read, and only some headers."""

import json
import os
import socket
import threading

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from ..serving import HANG_SECONDS, answered, received, until
from .routing import CHAT, EVENT, REPLY, STREAM_HEAD, FakePlace, answer, chunk, routing


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"model": "m", "prompt": [1, 2, 3]}),
        ("/v1/responses", {"model": "m", "input": "hello"}),
        ("/v1/messages", {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}),
        ("/v1/messages/count_tokens?beta=true", CHAT),
        ("/tokenize", {"model": "m", "prompt": "hello"}),
        ("/detokenize", {"model": "m", "tokens": [1]}),
    ],
)
def test_a_request_and_its_answer_arrive_byte_by_byte(path, body):
    raw = json.dumps(body, indent=3).encode()  # as no encoder here writes it
    with routing(place := FakePlace()) as routed:
        status, reply = answered(routed.send(raw, path))
    assert (status, reply) == (200, REPLY)
    (asked,) = place.asked
    assert (asked.method, asked.path, asked.body) == ("POST", path, raw)


def test_reads_are_forwarded_and_other_paths_are_not():
    with routing(place := FakePlace()) as routed:
        for path in ("/v1/models", "/v1/models/org/name", "/v1/responses/resp_1"):
            assert httpx.get(routed.url + path).content == REPLY
        assert [asked.path for asked in place.asked] == ["/v1/models", "/v1/models/org/name", "/v1/responses/resp_1"]
        for path in ("/pause", "/v1/update_weights", "/server_info", "/v1/models/../../pause",
                     "/v1/models/%2e%2e/pause",
                     "/v1/models//x?y", "/inference/v1/generate"):  # fmt: skip
            request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
            (connection := routed.connect()).sendall(request)
            assert answered(connection)[0] == 404, path
        assert httpx.get(routed.url + "/v1/chat/completions").headers["allow"] == "POST"
        assert len(place.asked) == 3


def test_events_pass_unchanged_whatever_pieces_they_come_in():
    events = [EVENT, b": ping\n\n", b"event: done\r\ndata: 1\r\n\r\n", b"data: [DONE]\n\n"]
    whole = b"".join(events)
    with routing(place := FakePlace()) as routed:

        @settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
        @given(cuts=some.lists(some.integers(1, len(whole) - 1), max_size=12).map(lambda found: sorted({0, *found})))
        def passes(cuts):
            def script(connection, asked):
                connection.sendall(STREAM_HEAD)
                for begin, end in zip(cuts, [*cuts[1:], len(whole)], strict=True):
                    connection.sendall(chunk(whole[begin:end]))
                connection.sendall(b"0\r\n\r\n")

            place.script = script
            assert httpx.post(routed.url + "/v1/chat/completions", json=CHAT | {"stream": True}).content == whole

        passes()


def test_an_event_is_passed_on_before_the_next_one_comes():
    go_on = threading.Event()

    def script(connection, asked):
        connection.sendall(STREAM_HEAD + chunk(EVENT))
        assert go_on.wait(HANG_SECONDS)
        connection.sendall(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    with routing(FakePlace(script)) as routed:
        connection = routed.send(CHAT | {"stream": True})
        assert EVENT in received(connection, EVENT)
        go_on.set()
        assert b"[DONE]" in received(connection, b"0\r\n\r\n")


def test_a_stream_without_an_end_is_sent_no_faster_than_it_is_read():
    sent = 0

    def script(connection, asked):
        nonlocal sent
        connection.sendall(STREAM_HEAD)
        while True:
            connection.sendall(chunk(EVENT * 1000))
            sent += 1000 * len(EVENT)

    with routing(FakePlace(script)) as routed:
        connection = routed.send(CHAT | {"stream": True})
        until(lambda: sent > 100_000)
        before = -1
        while before != sent:  # until nothing more is taken
            before = sent
            threading.Event().wait(0.5)
        assert sent < 64 << 20
        connection.settimeout(HANG_SECONDS)
        taken = 0
        while taken < before:
            taken += len(connection.recv(1 << 20))
        until(lambda: sent > before)


def test_a_client_that_leaves_ends_its_request_at_the_place():
    gone, begun = threading.Event(), threading.Event()

    def script(connection, asked):
        begun.set()
        if b"stream" in asked.body:
            connection.sendall(STREAM_HEAD + chunk(EVENT))
        assert connection.recv(1) == b""
        gone.set()
        return False

    with routing(FakePlace(script)) as routed:
        for body in (CHAT, CHAT | {"stream": True}):
            begun.clear(), gone.clear()
            connection = routed.send(body)
            assert begun.wait(HANG_SECONDS)
            connection.close()
            assert gone.wait(HANG_SECONDS)
        until(lambda: len(routed.requests()) == 2)
        assert all("  499  " in line for line in routed.requests())
        assert not routed.router.lifetime.requests
        until(lambda: routed.router.fleet.places["a"].sequences == 0)


def test_only_harmless_headers_are_sent_on():
    sent = (
        "Authorization: Bearer secret\r\nx-api-key: secret\r\nCookie: a=b\r\nConnection: keep-alive, X-Other\r\n"
        "X-Other: 1\r\nUpgrade: h2c\r\nTE: trailers\r\nX-Forwarded-For: 1.2.3.4\r\nAnthropic-Version: 2023-06-01\r\n"
        "User-Agent: test\r\nX-Request-Id: ___prefill_addr_10.0.0.1:1___decode_addr_10.0.0.2:2\r\n"
    )
    with routing(place := FakePlace(), key="place-key") as routed:
        status, _ = answered(routed.send(headers=sent))
    assert status == 200
    headers = place.asked[0].headers
    request_id = headers.pop("x-request-id")
    assert "addr" not in request_id
    assert headers == {
        "host": f"127.0.0.1:{place.port}", "authorization": "Bearer place-key", "anthropic-version": "2023-06-01",
        "user-agent": "test", "content-length": str(len(json.dumps(CHAT))),
    }  # fmt: skip


def test_headers_of_a_place_that_concern_its_connection_stay_there():
    more = "Set-Cookie: a=b\r\nServer: place\r\nKeep-Alive: timeout=1\r\nX-Trace: 7\r\n"
    with routing(FakePlace(lambda connection, asked: connection.sendall(answer(more=more)))) as routed:
        headers = httpx.post(routed.url + "/v1/chat/completions", json=CHAT).headers
    assert headers["x-trace"] == "7"
    assert not {"set-cookie", "server", "keep-alive"} & headers.keys()


def test_a_connection_to_a_place_is_used_again_and_replaced_once_the_place_has_closed_it():
    ports = []

    def script(connection, asked):
        ports.append(connection.getpeername()[1])
        connection.sendall(answer())
        return len(ports) != 2

    with routing(FakePlace(script)) as routed:
        for _ in range(3):
            assert httpx.post(routed.url + "/v1/chat/completions", json=CHAT).status_code == 200
    assert ports[0] == ports[1] != ports[2]
    assert not any("after" in line for line in routed.requests())


def test_an_answer_without_a_length_ends_with_its_connection():
    def script(connection, asked):
        connection.sendall(b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n" + REPLY)
        return False

    with routing(FakePlace(script)) as routed:
        assert httpx.post(routed.url + "/v1/chat/completions", json=CHAT).content == REPLY


def test_a_body_of_ten_thousand_lines_and_a_large_answer_pass():
    large = json.dumps({"lines": ["line"] * 200_000}).encode()
    body = CHAT | {"messages": [{"role": "user", "content": f"line {at}"} for at in range(10_000)]}
    with routing(place := FakePlace(lambda connection, asked: connection.sendall(answer(large)))) as routed:
        raw = json.dumps(body, indent=1).encode()
        assert raw.count(b"\n") > 10_000
        status, reply = answered(routed.send(raw))
    assert (status, reply) == (200, large)
    assert place.asked[0].body == raw


def test_places_share_the_requests_that_are_under_way():
    waiting = threading.Event()

    def script(connection, asked):
        assert waiting.wait(HANG_SECONDS)
        connection.sendall(answer())

    places = [FakePlace(script) for _ in range(3)]
    with routing(*places) as routed:
        connections = [routed.send() for _ in range(9)]
        until(lambda: sum(len(place.asked) for place in places) == 9)
        assert [len(place.asked) for place in places] == [3, 3, 3]
        waiting.set()
        assert all(answered(connection)[0] == 200 for connection in connections)


def test_a_conversation_goes_where_its_beginning_is_cached():
    places = [FakePlace() for _ in range(3)]
    with routing(*places) as routed:
        histories = [[{"role": "user", "content": f"{name} " * 400}] for name in ("moon", "earth", "sun")]
        for turn in range(3):
            for history in histories:
                httpx.post(routed.url + "/v1/chat/completions", json={"model": "m", "messages": history})
                history += [{"role": "assistant", "content": "yes " * 50}, {"role": "user", "content": f"and {turn}?"}]
    for name in (b"moon", b"earth", b"sun"):
        assert sum(any(name in asked.body for asked in place.asked) for place in places) == 1


def test_a_resumed_stream_goes_to_its_place_under_an_id_that_others_cannot_name(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("a" * 32 + "\n" + "b" * 32)
    keys.chmod(0o600)
    places = [FakePlace() for _ in range(3)]
    with routing(*places, keys=keys) as routed:
        for owner in "ab":
            headers = {"authorization": f"Bearer {owner * 32}", "x-conversation-id": "mine"}
            httpx.post(routed.url + "/v1/chat/completions", json=CHAT, headers=headers)
            httpx.get(routed.url + "/v1/stream/mine", headers=headers)
    asked = [(place.port, each) for place in places for each in place.asked]
    ids = {each.headers["x-conversation-id"] for _, each in asked if each.method == "POST"}
    assert len(ids) == 2
    for each in ids:
        posted = [port for port, one in asked if one.method == "POST" and one.headers["x-conversation-id"] == each]
        read = [port for port, one in asked if one.path == f"/v1/stream/{each}"]
        assert posted == read


def test_descriptors_return_after_clients_that_leave_and_connections_that_are_not_used_again():
    with routing(place := FakePlace()) as routed:
        routed.router.pool.idle_seconds = 0.1
        httpx.post(routed.url + "/v1/chat/completions", json=CHAT)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            connection = routed.send()
            connection.shutdown(socket.SHUT_WR)
            connection.close()
        assert all(answered(connection)[0] == 200 for connection in [routed.send() for _ in range(20)])
        for connection in routed.opened:
            connection.close()
        until(lambda: not routed.router.lifetime.requests)
        until(lambda: len(place.open) <= 2)  # those from before
        until(lambda: len(os.listdir("/proc/self/fd")) <= before)
