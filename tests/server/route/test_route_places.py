"""Places that come and go, lenders, limits that are configured, and the router's own end."""

import json
import re
import signal
import subprocess
import sys
import threading

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from earthshine.prfaas.router.setup import RouterSetup, read_setup
from earthshine.server.route.probes import ProbeTimes

from ..serving import HANG_SECONDS, answered, received, until
from .routing import CHAT, EVENT, REPLY, STREAM_HEAD, FakePlace, chunk, routing

ROUTE = [sys.executable, "-c", "from earthshine.cli import main; main()", "route"]
OFTEN = ProbeTimes(every=0.02, answer=HANG_SECONDS, hang=HANG_SECONDS)
LONG = {"model": "m", "messages": [{"role": "user", "content": "word " * 40_000}]}


def fleet(**prefill_seconds: float) -> dict:
    """A fleet's file: seconds for 100,000 tokens by the place's name; those of one letter decode."""
    profiles = [
        {"name": name, "source": "a test", "prefill": [[1, seconds / 1e5], [100_000, seconds]],
         "cache": [[1, 1.0], [100_000, 1e5]], "decode": [[1, 0.01], [8, 0.02]], "batch": 8}
        for name, seconds in prefill_seconds.items()
    ]  # fmt: skip
    clusters = [
        {"name": name, "profile": name, "n_prefill": 1, "n_decode": int(len(name) == 1)} for name in prefill_seconds
    ]
    ends = [(source, target) for source in prefill_seconds for target in prefill_seconds if len(source) > len(target)]
    links = [{"source": source, "target": target, "bytes_per_second": 1e9} for source, target in ends]
    return {"format": "earthshine fleet 1", "profiles": profiles, "clusters": clusters, "links": links}


def configured(tmp_path, decode, prefill=(), **more) -> RouterSetup:
    """The setup of a file with these places."""
    path = tmp_path / "route.json"
    path.write_text(json.dumps({"format": "earthshine route 1", "decode": decode, "prefill": list(prefill), **more}))
    return read_setup(path)


def test_a_place_is_told_by_name_whose_prefill_to_borrow(tmp_path):
    (tmp_path / "fleet.json").write_text(json.dumps(fleet(a=1000.0, big=1.0)))
    place = FakePlace()
    setup = configured(
        tmp_path, [{"name": "a", "url": place.url}], [{"name": "big", "url": "earthshine://10.0.0.9:7000"}],
        fleet="fleet.json", threshold=5000,
    )  # fmt: skip
    with routing(place, setup=setup) as routed:
        for body in (CHAT, LONG):
            assert httpx.post(routed.url + "/v1/chat/completions", json=body).status_code == 200
        httpx.get(routed.url + "/v1/models")
        _, long, models = place.asked
        assert long.headers["x-earthshine-prefill"] == "big"
        assert "10.0.0.9" not in str(long)
        assert "x-earthshine-prefill" not in models.headers
        assert "a, prefill by big" in routed.requests()[1]
        assert routed.router.fleet.links["big", "a"].queued_bytes == 0


def test_without_lenders_no_header_is_sent():
    with routing(place := FakePlace()) as routed:
        httpx.post(routed.url + "/v1/chat/completions", json=CHAT)
    assert "x-earthshine-prefill" not in place.asked[0].headers


def test_a_lender_that_is_slower_is_not_used(tmp_path):
    (tmp_path / "fleet.json").write_text(json.dumps(fleet(a=1.0, big=1000.0)))
    place = FakePlace()
    setup = configured(
        tmp_path, [{"name": "a", "url": place.url}], [{"name": "big", "url": "earthshine://10.0.0.9:7000"}],
        fleet="fleet.json",
    )  # fmt: skip
    with routing(place, setup=setup) as routed:
        httpx.post(routed.url + "/v1/chat/completions", json=LONG)
    assert place.asked[0].headers["x-earthshine-prefill"] == "none"


def test_a_prompt_goes_to_the_place_that_computes_it_soonest(tmp_path):
    (tmp_path / "fleet.json").write_text(json.dumps(fleet(a=100.0, b=1.0)))
    places = [FakePlace(), FakePlace()]
    decode = [{"name": name, "url": place.url} for name, place in zip("ab", places, strict=True)]
    with routing(*places, setup=configured(tmp_path, decode, fleet="fleet.json")) as routed:
        httpx.post(routed.url + "/v1/chat/completions", json=LONG)
    assert [len(place.asked) for place in places] == [0, 1]


def test_a_price_above_the_ceiling_is_not_paid(tmp_path):
    found = fleet(a=1000.0, big=1.0)
    found["profiles"][1]["usd_per_hour"] = 1e5
    (tmp_path / "fleet.json").write_text(json.dumps(found))
    place = FakePlace()
    setup = configured(
        tmp_path, [{"name": "a", "url": place.url}], [{"name": "big", "url": "earthshine://10.0.0.9:7000"}],
        fleet="fleet.json", usd_ceiling=0.01,
    )  # fmt: skip
    with routing(place, setup=setup) as routed:
        httpx.post(routed.url + "/v1/chat/completions", json=LONG)
        assert "all others exceed the ceiling" in routed.requests()[0]
    assert place.asked[0].headers["x-earthshine-prefill"] == "none"


def test_a_request_goes_to_a_place_that_has_its_model():
    places = [FakePlace(models=("m",)), FakePlace(models=("other",))]
    with routing(*places, times=OFTEN) as routed:
        until(lambda: all(place.models for place in routed.router.fleet.places.values()))
        for _ in range(3):
            for model in ("m", "other"):
                httpx.post(routed.url + "/v1/chat/completions", json=CHAT | {"model": model})
        assert httpx.post(routed.url + "/v1/chat/completions", json=CHAT | {"model": "unknown"}).content == REPLY
    for place, model in zip(places, ("m", "other"), strict=True):
        assert {json.loads(asked.body)["model"] for asked in place.asked} - {"unknown"} == {model}


def test_what_others_sent_is_counted_where_that_is_configured(tmp_path):
    busy = FakePlace(metrics=b'vllm:num_requests_running{model_name="m"} 3.0\nvllm:num_requests_waiting 40.0\n')
    other = FakePlace()
    decode = [{"name": "a", "url": busy.url, "metrics": True}, {"name": "b", "url": other.url}]
    with routing(busy, other, setup=configured(tmp_path, decode), times=OFTEN) as routed:
        until(lambda: routed.router.fleet.places["a"].others == 43)
        for _ in range(4):
            httpx.post(routed.url + "/v1/chat/completions", json=CHAT)
    assert len(other.asked) == 4


def test_places_are_added_drained_and_removed_by_the_file(tmp_path):
    first, second = FakePlace(), FakePlace()
    one, two = {"name": "a", "url": first.url}, {"name": "b", "url": second.url}
    begun, go_on = threading.Event(), threading.Event()

    def held(connection, asked):
        connection.sendall(STREAM_HEAD + chunk(EVENT))
        begun.set()
        assert go_on.wait(HANG_SECONDS)
        connection.sendall(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    setup = configured(tmp_path, [one])
    again = lambda: read_setup(tmp_path / "route.json")  # noqa: E731
    with routing(first, second, setup=setup, setup_again=again) as routed:

        def reload(*decode):
            configured(tmp_path, decode)
            n_lines = len(routed.lines)
            routed.service._loop.call_soon_threadsafe(routed.router.reload)
            until(lambda: len(routed.lines) > n_lines)

        first.script = held
        running = routed.send(CHAT | {"stream": True})
        assert begun.wait(HANG_SECONDS)
        reload(one | {"drain": True}, two)
        assert "added b" in routed.lines[-1]
        assert all(httpx.post(routed.url + "/v1/chat/completions", json=CHAT).content == REPLY for _ in range(3))
        assert (len(first.asked), len(second.asked)) == (1, 3)
        reload(two)
        assert "removed a" in routed.lines[-1]
        go_on.set()
        assert b"[DONE]" in received(running, b"0\r\n\r\n")
        (tmp_path / "route.json").write_text("{")
        n_lines = len(routed.lines)
        routed.service._loop.call_soon_threadsafe(routed.router.reload)
        until(lambda: len(routed.lines) > n_lines)
        assert "stay as they are" in routed.lines[-1]
        assert httpx.post(routed.url + "/v1/chat/completions", json=CHAT).content == REPLY


def test_metrics_count_requests_by_place_and_status():
    faulty, sound = FakePlace(lambda connection, asked: False), FakePlace()
    with routing(faulty, sound) as routed:
        while not faulty.asked:
            httpx.post(routed.url + "/v1/chat/completions", json=CHAT)
        httpx.post(routed.url + "/v1/chat/completions", json={"kv_transfer_params": {"a": 1}})
        until(lambda: len(routed.requests()) == len(sound.asked) + 1)
        found = {}
        for family in text_string_to_metric_families(httpx.get(routed.url + "/metrics").text):
            found |= {(each.name, *each.labels.values()): each.value for each in family.samples}
        assert found["earthshine_route:requests_total", "b", "200"] == len(sound.asked)
        assert found["earthshine_route:requests_total", "none", "400"] == 1
        assert found["earthshine_route:retries_total",] == 1
        assert found["earthshine_route:up", "b"] == 1
        assert found["earthshine_route:requests_running", "b"] == 0
        assert found["earthshine_route:first_byte_seconds_count",] == len(sound.asked)
        fleet = httpx.get(routed.url + "/v1/fleet").json()
        assert [place["name"] for place in fleet["places"]] == ["a", "b"]
        assert fleet["decisions"][-1]["why"]


def test_a_reply_under_way_is_finished_when_the_router_ends_and_a_new_one_refused():
    go_on = threading.Event()

    def script(connection, asked):
        connection.sendall(STREAM_HEAD + chunk(EVENT))
        assert go_on.wait(HANG_SECONDS)
        connection.sendall(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    with routing(FakePlace(script)) as routed:
        kept = routed.connect()
        kept.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert answered(kept)[0] == 200
        running = routed.send(CHAT | {"stream": True})
        received(running, EVENT)
        routed.service.stop()
        until(lambda: routed.router.lifetime.draining)
        raw = json.dumps(CHAT).encode()
        kept.sendall(f"POST /v1/messages HTTP/1.1\r\nHost: a\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
        go_on.set()
        assert b"[DONE]" in received(running, b"0\r\n\r\n")


def test_a_reply_that_outlasts_the_drain_ends_with_an_error():
    def script(connection, asked):
        connection.sendall(STREAM_HEAD + chunk(EVENT))
        connection.recv(1)
        return False

    with routing(FakePlace(script), drain_seconds=0.1) as routed:
        running = routed.send(CHAT | {"stream": True})
        received(running, EVENT)
        routed.service.stop()
        assert b"was shut down before the reply ended" in received(running, b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--decode"),
        (["--decode", "ftp://a"], "is not a server's address"),
        (["--decode", "earthshine://a:1"], "prefills"),
        (["--decode", "a=http://h:1", "--decode", "a=http://h:2"], "Two places"),
        (["--decode", "none=http://h:1"], "must be up to 64"),
        (["--decode", "http://h:1", "--host", "0.0.0.0"], "--api-keys"),
        (["--decode", "http://h:1", "--config", "x.json"], "--config"),
        (["--config", "/nowhere/x.json"], "can't be opened"),
        (["--decode", "http://h:1", "--deadline", "-1"], "--deadline"),
        (["--decode", "http://h:1", "--link", "nan"], "--link"),
    ],
)
def test_wrong_options_are_named(forker, options, says):
    done = forker.run([*ROUTE, "--port", "0", *options], text=True)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_reads_its_file_again_at_a_hangup_and_ends_at_a_signal(forker, tmp_path):
    first, second = FakePlace(), FakePlace()
    configured(tmp_path, [{"name": "a", "url": first.url}])
    with (tmp_path / "log").open("w") as log:
        command = [*ROUTE, "--port", "0", "--config", str(tmp_path / "route.json")]
        process = forker.popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        greeting = ""
        while "Ctrl-C" not in greeting:
            line = process.stdout.readline()
            assert line, (tmp_path / "log").read_text()
            greeting += line
        url = re.search(r"ANTHROPIC_BASE_URL=(\S+)", greeting)[1]
        assert httpx.post(url + "/v1/chat/completions", json=CHAT).content == REPLY
        configured(tmp_path, [{"name": "b", "url": second.url}])
        process.send_signal(signal.SIGHUP)
        until(lambda: "added b" in (tmp_path / "log").read_text())
        assert httpx.post(url + "/v1/chat/completions", json=CHAT).content == REPLY
        assert (len(first.asked), len(second.asked)) == (1, 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_SECONDS) == 0
        assert "Traceback" not in (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        first.close()
        second.close()
