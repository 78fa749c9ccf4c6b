"""What the router does not take: requests that name a peer, that are framed in two ways, or that exceed its limits."""

import json
import re

import httpx
import pytest

from earthshine.server.http.body import Limits

from ..serving import answered, received
from .routing import CHAT, REPLY, FakePlace, routing

ADDRESS = {"do_remote_prefill": True, "remote_host": "10.0.0.1", "remote_port": 5600, "remote_block_ids": [1]}
PEERS = {
    "kv_transfer_params": ADDRESS,
    "ec_transfer_params": ADDRESS,
    "bootstrap_host": "10.0.0.1",
    "bootstrap_port": 8998,
    "bootstrap_room": 7,
    "vllm_xargs.kv_transfer_params": ADDRESS,
    "extra_body.kv_transfer_params": ADDRESS,
}


@pytest.fixture(scope="module")
def place():
    return FakePlace()


@pytest.fixture(scope="module")
def routed(place):
    with routing(place) as found:
        yield found


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize"]
)
def test_a_request_that_names_a_peer_is_refused_by_the_field(place, routed, name, path):
    outer, _, inner = name.partition(".")
    before = len(place.asked)
    reply = httpx.post(routed.url + path, json=CHAT | {outer: {inner: PEERS[name]} if inner else PEERS[name]})
    assert reply.status_code == 400
    assert name in reply.json()["error"]["message"]
    assert len(place.asked) == before


@pytest.mark.parametrize("value", [None, {}, "", False, []])
def test_a_peers_field_that_says_nothing_passes(place, routed, value):
    assert httpx.post(routed.url + "/v1/chat/completions", json=CHAT | {"kv_transfer_params": value}).status_code == 200
    assert json.loads(place.asked[-1].body)["kv_transfer_params"] == value


def test_zero_names_a_peers_room(routed):
    assert httpx.post(routed.url + "/v1/chat/completions", json=CHAT | {"bootstrap_room": 0}).status_code == 400


@pytest.mark.parametrize("header", ["X-Earthshine-Prefill: big", "x-earthshine-anything: 1"])
def test_headers_of_routers_are_refused_by_name(place, routed, header):
    before = len(place.asked)
    status, body = answered(routed.send(headers=header + "\r\n"))
    assert status == 400
    assert header.partition(":")[0].lower() in json.loads(body)["error"]["message"]
    assert len(place.asked) == before


BODY = json.dumps(CHAT).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        HEAD + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        HEAD + b"Content-Length: 4, 5\r\n\r\nabcde",
        HEAD + b"Content-Length: +4\r\n\r\nabcd",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc",
        HEAD + b"Content-Length : 4\r\n\r\nabcd",
        b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
    ],
)
def test_a_request_that_is_framed_wrongly_is_refused_and_its_connection_closed(place, routed, raw):
    before = len(place.asked)
    connection = routed.connect()
    connection.sendall(raw + SMUGGLED)
    found = received(connection)
    assert re.match(rb"HTTP/1.1 (?:4\d\d|501) ", found)
    assert len(re.findall(rb"HTTP/1.1 \d", found)) == 1
    assert len(place.asked) == before


def test_two_framings_of_one_body_reach_the_place_as_one(place, routed):
    """Transfer-Encoding counts, as the standard says, and the place gets the body with a length of the router's own."""
    before = len(place.asked)
    connection = routed.connect()
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    connection.sendall(HEAD + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked)
    assert answered(connection) == (200, REPLY)
    (asked,) = place.asked[before:]
    assert asked.body == BODY
    assert "transfer-encoding" not in asked.headers


def test_a_body_within_a_body_stays_a_body(place, routed):
    before = len(place.asked)
    inner = json.dumps(CHAT | {"user": SMUGGLED.decode()}).encode()
    assert answered(routed.send(inner)) == (200, REPLY)
    assert [asked.body for asked in place.asked[before:]] == [inner]


def test_an_upgrade_is_not_made(place, routed):
    headers = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
    assert answered(routed.send(headers=headers)) == (200, REPLY)
    assert not {"upgrade", "http2-settings"} & place.asked[-1].headers.keys()


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"a": 1, "a": 2}', b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_body_that_is_no_json_object_is_refused(routed, body, path):
    status, answer = answered(routed.send(body, path))
    assert status == 400
    assert json.loads(answer)["error"]["message"]


def test_bodies_are_limited():
    with routing(place := FakePlace(), limits=Limits(body_bytes=1000)) as routed:
        status, answer = answered(routed.send(b"x" * 1001))
        assert status == 413
        assert "1000 B" in json.loads(answer)["error"]["message"]
        connection = routed.connect()
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"3e9\r\n" + b"x" * 1001)
        assert answered(connection)[0] == 413
        assert not place.asked


def test_heads_are_limited(routed):
    connection = routed.connect()
    connection.sendall(HEAD + b"X: " + b"x" * 100_000)
    assert received(connection).startswith(b"HTTP/1.1 431")


def test_keys_hosts_and_origins_are_checked(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("k" * 32)
    keys.chmod(0o600)
    with routing(place := FakePlace(), keys=keys) as routed:
        good = {"authorization": f"Bearer {'k' * 32}"}
        for path in ("/v1/models", "/v1/fleet", "/metrics", "/nothing"):
            refused = httpx.get(routed.url + path)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer"), path
        assert httpx.get(routed.url + "/v1/models", headers=good).status_code == 200
        assert httpx.get(routed.url + "/v1/models", headers={"x-api-key": "k" * 32}).status_code == 200
        assert httpx.get(routed.url + "/v1/models", headers=good | {"host": "evil.example"}).status_code == 400
        assert httpx.get(routed.url + "/v1/models", headers=good | {"origin": "http://evil"}).status_code == 400
        assert httpx.get(routed.url + "/health").status_code == httpx.get(routed.url + "/").status_code == 200
        assert "authorization" not in place.asked[-1].headers
