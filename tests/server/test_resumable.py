"""Streamed replies that outlast their connection: the client comes back, ends them, or never returns."""

import asyncio
import hashlib
import json
import zlib

import httpx
import pytest

from earthshine.errors import UsageError
from earthshine.net.access import Access, make_access
from earthshine.server.http.body import Limits
from earthshine.server.http.resumable import ResumableStream, ResumableStreams, _Events

from .serving import HANG_SECONDS, received, serving, until

WORDS = [f"w{number}" for number in range(6)]
SAID = "".join(f'event: said\ndata: {{"text":"{word}"}}\n\n' for word in WORDS)


def begin(server, prompt, name="one", headers=""):
    """A connection that has received the first word of a resumable stream."""
    connection = server.post({"prompt": prompt, "stream": True}, headers=f"X-Conversation-Id: {name}\r\n{headers}")
    received(connection, b"w0")
    return connection


def events(text):
    """A stream without its pings."""
    return text.replace(": ping\n\n", "")


def leave(server, connection):
    """Closes the connection, and waits until the server has noticed."""
    connection.close()
    until(lambda: all(stream.unread for stream in streams(server)))


def streams(server):
    return list(server.service.app.state.streams._streams.values())


def ask(server, name, **headers):
    """The answer to a request that is over at once."""
    return httpx.post(
        f"{server.url}/v1/echo",
        json={"prompt": "a", "stream": True},
        headers={"X-Conversation-Id": name, **headers},
    )


def test_a_client_that_comes_back_gets_every_event_once():
    with serving() as server:
        leave(server, begin(server, "w0 w1 gate w2 w3 w4 w5"))
        assert not server.generator.closed.is_set()
        with httpx.stream("GET", f"{server.url}/v1/stream/one", timeout=HANG_SECONDS) as answer:
            server.generator.gate.set()
            assert events(answer.read().decode()) == SAID + "data: [DONE]\n\n"
        assert events(httpx.get(f"{server.url}/v1/stream/one").text) == SAID + "data: [DONE]\n\n"  # and again
        until(lambda: any("POST" in line for line in server.lines))
        assert [line.split("  ")[3] for line in server.lines if "POST" in line] == ["200 stop"]


def test_the_first_client_reads_as_without_the_header():
    with serving() as server:
        server.generator.gate.set()
        answer = httpx.post(
            f"{server.url}/v1/echo",
            json={"prompt": " ".join(WORDS), "stream": True},
            headers={"X-Conversation-Id": "one", "X-Request-Id": "mine"},
        )
        assert answer.text == SAID + "data: [DONE]\n\n"
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["x-request-id"] == "mine"


def test_a_reply_is_ended_by_delete_and_computed_no_further():
    with serving() as server:
        begin(server, "w0 hold").close()
        assert httpx.delete(f"{server.url}/v1/stream/one").json() == {"id": "one", "deleted": True}
        assert server.generator.closed.wait(HANG_SECONDS)
        assert httpx.delete(f"{server.url}/v1/stream/one").json() == {"id": "one", "deleted": False}
        answer = httpx.get(f"{server.url}/v1/stream/one")
        assert answer.status_code == 404
        assert "No stream has the id 'one'" in answer.json()["error"]["message"]
        until(lambda: any("POST" in line for line in server.lines))
        assert "499" in next(line for line in server.lines if "POST" in line)


def test_a_reply_that_has_ended_is_read_to_its_end_after_delete():
    """One of two tabs may end it before the other has read the last events."""

    ended = []

    class Context:
        computing: asyncio.Task[None]

        def end(self, reason):
            ended.append(reason)

    async def parts():
        yield b"one "
        yield b"two"

    async def read():
        stream = ResumableStream("owner", parts(), Context(), Limits(), lambda error: error)
        await stream._context.computing
        stream.end()
        gone = asyncio.get_running_loop().create_future()
        return b"".join([part async for part in stream.read(gone)])

    assert asyncio.run(read()) == b"one two"
    assert not ended


def test_a_client_that_never_comes_back_does_not_keep_the_model_busy():
    with serving(limits=Limits(unread_seconds=0.05)) as server:
        leave(server, begin(server, "w0 hold"))
        assert server.generator.closed.wait(HANG_SECONDS)
        answer = httpx.get(f"{server.url}/v1/stream/one").text  # what it wrote is still there
        assert answer.startswith('event: said\ndata: {"text":"w0"}')
        assert "no client read it for 50.0 ms" in answer
        until(lambda: any("POST" in line for line in server.lines))
        assert "499 client_gone" in next(line for line in server.lines if "POST" in line)


def test_a_reply_that_has_ended_is_forgotten_later():
    with serving(limits=Limits(ended_seconds=0.05)) as server:
        server.generator.gate.set()
        received(begin(server, "w0 w1"), b"[DONE]")
        until(lambda: not streams(server))
        assert httpx.get(f"{server.url}/v1/stream/one").status_code == 404


def test_a_reply_that_is_read_does_not_expire():
    with serving(limits=Limits(unread_seconds=0.05, ping_seconds=0.05)) as server:
        connection = begin(server, "w0 gate w1")
        for _ in range(5):
            received(connection, b": ping")
        server.generator.gate.set()
        received(connection, b"[DONE]")


def test_a_reply_belongs_to_the_key_that_began_it():
    keys = {"first": "a" * 32, "second": "b" * 32}
    digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys.values())
    with serving(access=Access(digests, make_access("127.0.0.1").hosts)) as server:
        headers = {name: {"authorization": f"Bearer {key}"} for name, key in keys.items()}
        begin(server, "w0 hold", headers=f"Authorization: Bearer {keys['first']}\r\n").close()
        url = f"{server.url}/v1/stream/one"
        assert httpx.get(url).status_code == httpx.delete(url).status_code == 401
        assert httpx.get(url, headers=headers["second"]).status_code == 404
        assert httpx.delete(url, headers=headers["second"]).json()["deleted"] is False
        assert httpx.delete(url, headers=headers["first"]).json()["deleted"] is True


def test_a_second_reply_of_an_id_replaces_the_first():
    with serving(drain_seconds=0.0) as server:
        first = begin(server, "w0 hold")
        begin(server, "w0 w1 hold")
        received(first, b"0\r\n\r\n")  # its stream ends
        assert len(streams(server)) == 1


def test_replies_that_clients_read_do_not_make_room():
    with serving(limits=Limits(streams=2), drain_seconds=0.0) as server:
        begin(server, "w0 hold", "first")
        begin(server, "w0 hold", "second")
        answer = ask(server, "third")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "10")
        assert "streams up to 2 replies at once" in answer.json()["echo"]
        assert ask(server, "second").status_code == 200  # replaces its own


def test_room_is_made_by_ended_replies_and_then_by_the_longest_unread():
    with serving(limits=Limits(streams=3), drain_seconds=0.0) as server:
        leave(server, begin(server, "w0 hold", "older"))
        leave(server, begin(server, "w0 hold", "newer"))
        server.generator.gate.set()
        received(begin(server, "w0 w1", "over"), b"[DONE]")
        until(lambda: all(stream.unread for stream in streams(server)))
        for name, gone in (("fourth", "over"), ("fifth", "older"), ("sixth", "newer")):
            begin(server, "w0 hold", name)
            assert httpx.get(f"{server.url}/v1/stream/{gone}").status_code == 404
        assert len(streams(server)) == 3


def test_one_key_does_not_take_the_places_of_another():
    keys = {"first": "a" * 32, "second": "b" * 32}
    digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys.values())
    access = Access(digests, make_access("127.0.0.1").hosts)
    with serving(access=access, limits=Limits(streams=4, owner_streams=2), drain_seconds=0.0) as server:
        first = f"Authorization: Bearer {keys['first']}\r\n"
        for number in range(4):
            leave(server, begin(server, "w0 hold", f"unread{number}", first))
        assert len(streams(server)) == 2
        for number in range(2):
            begin(server, "w0 hold", f"read{number}", first)
        until(lambda: not any(stream.unread for stream in streams(server)))
        answer = ask(server, "another", Authorization=f"Bearer {keys['first']}")
        assert answer.status_code == 429
        assert "2 replies for one API key or address" in answer.json()["echo"]
        assert ask(server, "another", Authorization=f"Bearer {keys['second']}").status_code == 200


def test_a_reply_of_too_many_bytes_ends_with_an_error():
    with serving(limits=Limits(stream_bytes=1 << 16)) as server:
        connection = server.post({"prompt": "flood", "stream": True}, headers="X-Conversation-Id: one\r\n")
        text = received(connection, b"unavailable")
        assert b"take more than 64.00 KiB, the most that this server holds" in text
        assert server.generator.closed.wait(HANG_SECONDS)


@pytest.mark.parametrize("name", ["", "a b", "a" * 129, "../x", "ä"])
def test_an_invalid_id_is_refused(name):
    with serving() as server:
        answer = httpx.post(
            f"{server.url}/v1/echo",
            json={"prompt": "a", "stream": True},
            headers={"X-Conversation-Id": name.encode("latin-1")},
        )
        assert answer.status_code == 400
        assert "1 to 128 letters" in answer.json()["echo"]


def test_an_error_before_the_first_event_has_its_status_and_is_there_afterwards():
    with serving(errors={"usage": UsageError("That has no meaning.")}) as server:
        answer = httpx.post(
            f"{server.url}/v1/echo", json={"prompt": "!usage", "stream": True}, headers={"X-Conversation-Id": "one"}
        )
        assert (answer.status_code, answer.json()["echo"]) == (400, "That has no meaning.")
        again = httpx.get(f"{server.url}/v1/stream/one")
        assert (again.status_code, again.json()["error"]["message"]) == (400, "That has no meaning.")


def test_a_whole_answer_is_not_held():
    with serving() as server:
        answer = httpx.post(f"{server.url}/v1/echo", json={"prompt": "a"}, headers={"X-Conversation-Id": "one"})
        assert answer.json() == {"text": "a"}
        assert streams(server) == []


def test_a_shutdown_waits_for_a_reply_that_nobody_reads():
    with serving() as server:
        leave(server, begin(server, "w0 gate w1"))
        server.service.stop()
        until(lambda: server.lifetime.draining and server.engine.drained)
        assert not server.generator.closed.is_set()
        server.generator.gate.set()
        server.thread.join(HANG_SECONDS)
        assert "200" in next(line for line in server.lines if "POST" in line)


def test_bytes_come_back_from_any_place_and_take_less_room():
    held, whole = _Events(), b""
    for number in range(3000):
        part = f"data: {json.dumps({'text': number, 'model': 'kimi'})}\n\n".encode()
        held.append(part)
        whole += part
    assert held.nbytes < len(whole) // 2
    assert held.nbytes >= len(zlib.compress(whole, 9)) // 2
    for begun in (0, 1, 65_535, 65_536, 65_537, len(whole) - 1, len(whole)):
        found = b""
        while part := held.after(begun + len(found)):
            found += part
        assert found == whole[begun:]


def test_the_routes_are_described():
    with serving() as server:
        document = httpx.get(f"{server.url}/openapi.json").json()["paths"]["/v1/stream/{stream_id}"]
        assert set(document) == {"get", "delete"}
        assert [each["name"] for each in document["get"]["parameters"]] == ["stream_id"]
        assert isinstance(server.service.app.state.streams, ResumableStreams)
