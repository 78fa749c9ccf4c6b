"""The web application over real sockets: what it answers, refuses, streams, and how it ends."""

import json
import re
import socket
import threading
import time

import httpx
import pytest

from earthshine.errors import ContextError, OverloadError, UnavailableError, UsageError
from earthshine.server.http.body import Limits
from earthshine.server.refusals import Refused

from .serving import GAUGES, HANG_SECONDS, answered, received, serving, until

ERRORS = {
    "usage": UsageError("That has no meaning."),
    "context": ContextError("Too long."),
    "full": OverloadError("Many wait.", 7),
    "soon": Refused("Soon.", "unavailable"),
    "broken": UnavailableError("A part does not work; try again later."),
    "bug": ZeroDivisionError("secret"),
}


@pytest.fixture(scope="module")
def server():
    with serving(errors=ERRORS) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url) as opened:
        yield opened


def test_a_whole_answer(client):
    answer = client.post("/v1/echo", json={"prompt": "a b c", "model": "small"})
    assert (answer.status_code, answer.json()) == (200, {"text": "abc"})


def test_a_stream_has_its_headers_and_events(client):
    answer = client.post("/v1/echo", json={"prompt": "ä b", "stream": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.text == 'event: said\ndata: {"text":"ä"}\n\nevent: said\ndata: {"text":"b"}\n\ndata: [DONE]\n\n'


def test_an_api_that_counts(client):
    assert client.post("/v1/echo/count", json={"prompt": "a b", "times": 2}).json() == {"tokens": [2, 2]}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prompt", "status", "kind", "retry"),
    [
        ("!usage", 400, "invalid", None),
        ("!context", 400, "context", None),
        ("!full", 429, "rate", "7"),
        ("!soon", 503, "unavailable", "1"),
        ("!broken", 503, "unavailable", "1"),
        ("!bug", 500, "internal", None),
    ],
)
def test_errors_before_the_first_token_have_their_status(client, prompt, status, kind, retry, stream):
    answer = client.post("/v1/echo", json={"prompt": prompt, "stream": stream})
    assert (answer.status_code, answer.json()["kind"]) == (status, kind)
    assert answer.headers.get("retry-after") == retry
    assert "secret" not in answer.text


def test_errors_after_the_first_token_are_events(client):
    answer = client.post("/v1/echo", json={"prompt": "a !full", "stream": True})
    assert answer.status_code == 200
    assert answer.text.endswith('data: {"error":"Many wait.","kind":"rate"}\n\n')


def test_a_fault_is_logged_with_the_id_that_the_client_gets(client, caplog):
    message = client.post("/v1/echo", json={"prompt": "!bug"}).json()["echo"]
    name = message.rsplit(" ", 1)[1].rstrip(".")
    assert name in caplog.text
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("field", "value", "message", "param"),
    [
        ("model", "big", "The model 'big' is not served here; this server has tiny, small.", "model"),
        ("prompt", 5, "prompt should be a valid string, and is 5.", "prompt"),
        ("n", 0, "n should be greater than or equal to 1, and is 0.", "n"),
        ("n", 17, "n is 17; this server computes up to 16 choices of a prompt.", "n"),
        ("times", 129, "The request asks for 129 choices in all; 128 is the limit.", None),
        (
            "items",
            [{"role": "a", "content": 7}],
            "items[0].content should be a valid string or a valid list, and is 7.",
            "items[0].content",
        ),
        ("items", [{"role": "a"}, {}], "items[1].role is missing; it is required.", "items[1].role"),
        (
            "items",
            [{"role": "a", "content": ["b", 7]}],
            "items[0].content[1] should be a valid string, and is 7.",
            "items[0].content[1]",
        ),
    ],
)
def test_a_wrong_field_is_named(client, field, value, message, param):
    answer = client.post("/v1/echo", json={"prompt": "a", field: value})
    assert answer.json()["echo"] == message
    assert answer.json()["param"] == param
    assert answer.status_code == (404 if field == "model" else 400)


def test_unknown_fields_are_ignored_and_named_once(server, client):
    for name in ("first", "second"):
        asked = {"prompt": "a", "novelty": 1}
        assert client.post("/v1/echo", json=asked, headers={"x-request-id": name}).status_code == 200
    (line,) = (line.split("  ") for line in server.lines if "novelty" in line)
    assert line[1:] == ["127.0.0.1", "POST /v1/echo", "an unknown field was ignored: 'novelty'", "first"]
    time.strptime(line[0], "%Y-%m-%d %H:%M:%S")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/nowhere", {"error": {"message": "The path /nowhere does not exist.", "type": "not_found"}}),
        ("/v1/messages/batches", {"type": "error", "message": "The path /v1/messages/batches does not exist."}),
        (
            "/v1/echo/../models",
            {"error": {"message": "The path /v1/echo/../models does not exist.", "type": "not_found"}},
        ),
        (
            "//v1/models",
            {
                "error": {
                    "message": "The path //v1/models does not exist; /v1/models is probably meant, so correct the base "
                    "URL.",
                    "type": "not_found",
                }
            },
        ),
    ],
)
def test_a_path_that_leads_nowhere_has_the_shape_of_the_nearest_api(server, path, body):
    connection = server.connect()
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    head, _, raw = received(connection).partition(b"\r\n\r\n")
    found = json.loads(raw)
    assert head.startswith(b"HTTP/1.1 404")
    assert found == (body if "type" in body else {"error": body["error"] | {"param": None, "code": None}})


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/v1/echo", "/v1/echo"),
        ("/v1/echo/", "/v1/echo"),
        ("/echo", "/v1/echo"),
        ("/v1/v1/models/tiny", "/v1/models/tiny"),
        ("/v1/health", "/health"),
        ("/v1/elsewhere/", None),
    ],
)
def test_the_404_of_a_path_with_misplaced_slashes_names_the_right_one(client, path, meant):
    answer = client.post(path, json={"prompt": "a"})
    assert answer.status_code == 404
    assert (f"; {meant} is probably meant" in answer.text) if meant else ("meant" not in answer.text)


def test_a_model_may_be_called_by_an_id_with_a_slash():
    with serving(names=("maker/model-1.5",)) as server:
        for path in ("maker/model-1.5", "maker%2Fmodel-1.5", "maker%2fmodel-1.5"):
            assert httpx.get(f"{server.url}/v1/models/{path}").json()["id"] == "maker/model-1.5"
        assert httpx.get(f"{server.url}/v1/models/maker").status_code == 404
        assert httpx.post(f"{server.url}/v1/echo", json={"prompt": "a", "model": "maker/model-1.5"}).status_code == 200


@pytest.mark.parametrize("coding", ["Identity", "IDENTITY", ""])
def test_a_body_as_it_is_may_say_so(client, coding):
    answer = client.post("/v1/echo", json={"prompt": "a"}, headers={"content-encoding": coding})
    assert answer.status_code == 200


def test_the_405_of_a_wrong_method_names_the_right_one(client):
    answer = client.get("/v1/echo")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["echo"] == "/v1/echo takes POST, not 'GET'."
    assert client.delete("/v1/models").headers["allow"] == "GET, HEAD"


def test_models_in_both_forms(client):
    assert [entry["id"] for entry in client.get("/v1/models").json()["data"]] == ["tiny", "small"]
    one = client.get("/v1/models/small", headers={"anthropic-version": "2023-06-01"}).json()
    assert (one["type"], one["id"], one["created_at"]) == ("model", "small", "2023-11-14T22:13:20Z")
    assert client.get("/v1/models/small").json()["created"] == 1_700_000_000
    assert client.get("/v1/models/big").status_code == 404


def test_metrics_have_the_names_that_dashboards_know(client):
    client.post("/v1/echo", json={"prompt": "a b"})
    text = client.get("/metrics").text
    for line in (
        'vllm:num_requests_waiting{model_name="tiny"} 2.0',
        'vllm:kv_cache_usage_perc{model_name="tiny"} 0.2',
        'vllm:prefix_cache_hits_total{model_name="tiny"} 60.0',
        'vllm:prompt_tokens_cached_total{model_name="tiny"} 60.0',
        'vllm:prompt_tokens_total{model_name="tiny"} 560.0',
        'vllm:request_success_total{finished_reason="length",model_name="tiny"} 7.0',
        'vllm:request_success_total{finished_reason="abort",model_name="tiny"} 3.0',
        'earthshine:expert_bytes_read_total{model_name="tiny"} 4096.0',
    ):
        assert line in text
    assert 'vllm:time_to_first_token_seconds_bucket{le="+Inf",model_name="tiny"}' in text


def test_rates_for_the_page(client, monkeypatch):
    assert client.get("/v1/gauges").json()["expert_hit_rate"] == 0.75
    monkeypatch.setattr(GAUGES, "generated_tokens", GAUGES.generated_tokens + 1000)
    later = client.get("/v1/gauges").json()
    assert later["tokens_per_second"] > 0
    assert (later["pages_used"], later["pages_free"], later["pages_cached"]) == (2, 5, 3)


def test_health_sees_a_hang_an_end_and_a_drain(server, client, monkeypatch):
    assert client.get("/health").json() == client.get("/ping").json() == {"status": "ok"}
    with monkeypatch.context() as patch:
        patch.setattr(server.engine, "stalled", 121.0)
        assert (client.get("/health").status_code, client.get("/health").json()["status"]) == (503, "hung")
        patch.setattr(server.engine, "alive", False)
        assert client.get("/health").json()["status"] == "failed"
        patch.setattr(server.lifetime, "draining", True)
        assert client.get("/health").json()["status"] == "draining"
        refused = client.post("/v1/echo", json={"prompt": "a"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")


def test_the_document_names_every_route_and_status(client):
    document = client.get("/openapi.json").json()
    assert {"/v1/echo", "/v1/echo/count", "/v1/models/{model_id}", "/metrics", "/health"} <= set(document["paths"])
    post = document["paths"]["/v1/echo"]["post"]
    assert {"200", "400", "401", "404", "408", "413", "429", "500", "503"} == set(post["responses"])
    form = post["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
    assert document["components"]["schemas"][form]["required"] == ["prompt"]
    assert "Item" in document["components"]["schemas"]


def test_the_log_has_a_line_a_request_and_no_text(server, client):
    client.post("/v1/echo", json={"prompt": "sesame open"})
    line = server.lines[-1]
    assert re.search(r"POST /v1/echo  200 stop  2 tokens \(0 cached\) read in [\d.]+ s  2 generated", line)
    assert not [line for line in server.lines if "sesame" in line]


def test_text_is_logged_where_it_is_asked_for():
    with serving(log_text=True) as server:
        httpx.post(f"{server.url}/v1/echo", json={"prompt": "open sesame"})
    assert [line for line in server.lines if line.startswith("  ")] == [
        '  request {"prompt": "open sesame"}',
        '  answer {"text": "opensesame"}',
    ]


# --- clients that go, stall, or come too late


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_ends_its_reply(stream):
    with serving() as server:
        connection = server.post({"prompt": "a hold", "stream": stream})
        assert server.generator.begun.wait(HANG_SECONDS)
        connection.close()
        assert server.generator.closed.wait(HANG_SECONDS)
    assert [line for line in server.lines if " 499 " in line]


def test_a_client_that_goes_before_the_first_word_ends_its_reply():
    with serving() as server:
        connection = server.post({"prompt": "gate a", "stream": True})
        assert server.generator.begun.wait(HANG_SECONDS)
        connection.close()
        assert server.generator.closed.wait(HANG_SECONDS)


def test_silence_is_filled_with_pings():
    with serving(limits=Limits(first_seconds=0.05, ping_seconds=0.05)) as server:
        connection = server.post({"prompt": "gate a", "stream": True}, headers="Connection: close\r\n")
        before = received(connection, b": ping\n\n")
        before += received(connection, b": ping\n\n")
        server.generator.gate.set()
        after = received(connection)
    assert b"data" not in before
    assert b'data: {"text":"a"}\n\n' in after
    assert b"data: [DONE]\n\n" in after


def test_a_client_that_takes_nothing_is_cut():
    with serving(limits=Limits(stalled_send_seconds=0.3)) as server:
        connection = server.post({"prompt": "flood", "stream": True})
        assert server.generator.closed.wait(HANG_SECONDS)
        until(lambda: not server.lifetime.requests)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        assert b"[DONE]" not in received(connection)
    assert [line for line in server.lines if " 499 " in line]


def test_a_drain_lets_replies_finish():
    with serving() as server:
        connection = server.post({"prompt": "a gate b", "stream": True})
        assert server.generator.begun.wait(HANG_SECONDS)
        server.service.stop()
        until(lambda: server.lifetime.draining)
        server.generator.gate.set()
        assert b"[DONE]" in received(connection)
        server.thread.join(HANG_SECONDS)
        assert server.engine.drained
        assert server.engine.closed
        with pytest.raises(ConnectionRefusedError):
            server.connect()


def test_a_drain_refuses_new_requests_on_open_connections():
    with serving() as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/health").status_code == 200
        held = server.post({"prompt": "a gate b", "stream": True})
        assert server.generator.begun.wait(HANG_SECONDS)
        server.service.stop()
        until(lambda: server.lifetime.draining)
        assert client.get("/health").json()["status"] == "draining"
        assert client.post("/v1/echo", json={"prompt": "a"}).status_code == 503
        server.generator.gate.set()
        assert b"[DONE]" in received(held)


def test_replies_that_outlast_a_drain_end_with_an_error():
    with serving(drain_seconds=0.2) as server:
        stream = server.post({"prompt": "a hold", "stream": True})
        assert stream.recv(64)
        whole = server.post({"prompt": "a hold"})
        until(lambda: len(server.generator.users) == 2)
        server.service.stop()
        assert b'data: {"error":"The server was shut down before the reply ended.","kind":"unavailable"}' in received(
            stream
        )
        assert answered(whole)[0] == 503


def test_many_at_once():
    with serving() as server:
        results: list = []

        def ask(number):
            answer = httpx.post(f"{server.url}/v1/echo", json={"prompt": f"gate w{number}x", "stream": True})
            results.append((number, answer.text))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        until(lambda: len(server.generator.users) == 24)
        server.generator.gate.set()
        for thread in threads:
            thread.join(HANG_SECONDS)
    assert len(results) == 24
    assert all(f'"w{number}x"' in text for number, text in results)
