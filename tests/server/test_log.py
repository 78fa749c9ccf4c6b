"""The log: lines while a request takes long, JSON that no request can break, and ids that answers have too."""

import asyncio
import json
import logging
import re
from types import SimpleNamespace

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from earthshine.engine import PromptProgress
from earthshine.errors import ContextError, OverloadError, UnavailableError
from earthshine.generation.request import Delta, Ended, Reading, Started
from earthshine.server.http import timing
from earthshine.server.http.body import Limits
from earthshine.server.http.context import RequestContext
from earthshine.server.http.log import JsonFormatter, Log, json_line, request_id
from earthshine.server.http.metrics import Metrics
from earthshine.text import Content

from .serving import GAUGES, HANG_SECONDS, FakeEngine, answered, received, serving, until

HOSTILE = some.text() | some.text(some.sampled_from('\n\r\x00\x1b\x85\u2028\u2029"\\{}\ud800:, '))


def objects(lines):
    """Each line as an object, however a reader splits what was written."""
    whole = "".join(f"{line}\n" for line in lines)
    assert len(whole.splitlines()) == len(lines)
    assert all(" " <= character <= "~" or character == "\n" for character in whole)
    return [json.loads(line) for line in whole.splitlines()]


def requests_of(server):
    return [found for found in objects(list(server.lines)) if found["event"] == "request"]


class ReadingEngine(FakeEngine):
    """Uses 40 experts between two looks at its gauges, and reads 10 of them, 64 MiB in all."""

    looks = 0

    def gauges(self):
        self.looks += 1
        used = {"expert_hits": 30, "expert_misses": 10, "expert_bytes_read": 64 << 20}
        return SimpleNamespace(**vars(GAUGES) | {name: self.looks * each for name, each in used.items()})


def context_of(lines, as_json=False, **fields):
    metrics = Metrics(ReadingEngine(), "tiny")
    return RequestContext("POST /v1/echo", "::1", metrics, Log(lines.append, as_json), **fields)


def happens(monkeypatch, timed, as_json=False, **fields):
    """The lines of a request whose pieces come at given seconds; "?" is where the timer would report."""
    lines = []

    async def run():
        now = 100.0
        monkeypatch.setattr(timing.time, "monotonic", lambda: now)
        context = context_of(lines, as_json, id="r1", model="tiny", **fields)
        for at, piece in timed:
            now = 100.0 + at
            if piece == "?":
                context._report()
            else:
                context.observe(piece)
        context.close()

    asyncio.run(run())
    return lines


LONG = [
    (1, "?"),
    (3, "?"),
    (5, Started(1000, 200)),
    (5, Reading(0, PromptProgress(1000, 200, 200, 0.0, 40.0))),
    (15, Reading(0, PromptProgress(1000, 200, 400, 10.0, 30.0))),
    (16, "?"),
    (45, Delta(0, [Content("a")], (), 1)),
    (65, Delta(0, [Content("b")], (), 11)),
    (66, "?"),
    (85, Ended(0, "length", 21, 0)),
]


class TestLongRequests:
    def test_people_read_what_it_waits_for_and_how_far_it_is(self, monkeypatch):
        lines = [line.partition("  ")[2] for line in happens(monkeypatch, LONG)]
        head = "::1  POST /v1/echo  "
        assert lines == [
            f"{head}waits in the queue for 1 s  r1",
            f"{head}reading 1000 tokens (200 cached), about 40 s  r1",
            f"{head}reading the prompt: 40% of 1000 tokens, 20.0 per second, about 30 s to go  r1",
            f"{head}11 generated, 0.5 per second  r1",
            f"{head}200 length  1000 tokens (200 cached) read in 40.0 s  21 generated in 40.0 s (0.5 per second)  "
            "75% of experts in memory, 64.00 MiB read  5.00 s in the queue  85.00 s in all  r1",
        ]

    def test_the_wait_is_announced_where_it_is_known_and_long(self, monkeypatch):
        for expected, announced in ((40.0, True), (2.0, False), (None, False)):
            begun = [(5, Started(1000, 200)), (5, Reading(0, PromptProgress(1000, 200, 200, 0.0, expected)))]
            lines = happens(monkeypatch, begun)
            assert ("reading 1000 tokens (200 cached), about 40 s" in lines[0]) == announced

    def test_one_token_is_singular(self, monkeypatch):
        begun = [(5, Started(1, 0)), (5, Reading(0, PromptProgress(1, 0, 0, 0.0, 40.0)))]
        started, reading, _ = happens(monkeypatch, [*begun, (15, "?")])
        assert "reading 1 token (0 cached), about 40 s" in started
        assert "0% of 1 token, 0.0 per second" in reading

    def test_long_waits_are_in_minutes(self, monkeypatch):
        begun = [(600, "?"), (600, Started(9000, 0)), (600, Reading(0, PromptProgress(9000, 0, 0, 0.0, 5058.0)))]
        reading = (660, Reading(0, PromptProgress(9000, 0, 90, 60.0, 5000.0)))
        queued, started, read, _ = happens(monkeypatch, [*begun, reading, (660, "?")])
        assert "waits in the queue for 10 min  " in queued
        assert "reading 9000 tokens (0 cached), about 84 min  " in started
        assert "1.5 per second, about 83 min to go  " in read

    def test_programs_read_the_same(self, monkeypatch):
        queued, started, reading, writing, ended = objects(happens(monkeypatch, LONG, as_json=True))
        assert (queued["event"], queued["phase"]) == ("progress", "queued")
        assert (started["event"], started["phase"], started["seconds_left"]) == ("started", "prefill", 40.0)
        for found in (reading, writing, ended):
            assert (found["request_id"], found["client"], found["model"]) == ("r1", "::1", "tiny")
            assert (found["method"], found["path"]) == ("POST", "/v1/echo")
        assert reading.items() >= {
            "event": "progress", "phase": "prefill", "prompt_tokens": 1000, "cached_tokens": 200, "seconds": 16.0,
            "processed_tokens": 400, "completion_tokens": 0, "tokens_per_second": 20.0, "seconds_left": 30.0,
        }.items()  # fmt: skip
        assert (writing["phase"], writing["completion_tokens"], writing["tokens_per_second"]) == ("decode", 11, 0.5)
        assert ended.items() >= {
            "event": "request", "status": 200, "reason": "length", "prompt_tokens": 1000, "cached_tokens": 200,
            "completion_tokens": 21, "queue_seconds": 5.0, "prefill_seconds": 40.0, "decode_seconds": 40.0,
            "tokens_per_second": 0.5, "seconds": 85.0,
            "expert_hits": 30, "expert_misses": 10, "expert_bytes_read": 64 << 20,
        }.items()  # fmt: skip

    def test_a_prompt_that_was_given_up_was_not_read(self, monkeypatch):
        (line,) = happens(
            monkeypatch, [(5, Started(1000, 200)), (5, Reading(0, PromptProgress(1000, 200, 200, 0.0, 1.0)))]
        )
        assert "  1000 tokens (200 cached)  " in line
        (line,) = happens(monkeypatch, [(5, Started(9, 0)), (7, Ended(0, "length", 0, 0))])
        assert "  9 tokens (0 cached) read in 2.0 s  " in line, "a prompt alone, to score it"

    def test_one_token_has_no_rate(self, monkeypatch):
        ended = [(5, Started(9, 0)), (6, Delta(0, [Content("a")], (), 1)), (6, Ended(0, "length", 1, 0))]
        (line,) = happens(monkeypatch, ended)
        assert "  9 tokens (0 cached) read in 1.0 s  1 generated  " in line

    def test_a_request_that_was_never_admitted_used_no_experts(self, monkeypatch):
        (line,) = happens(monkeypatch, [])
        assert "experts" not in line
        (found,) = objects(happens(monkeypatch, [], as_json=True))
        assert not [name for name in found if name.startswith("expert")]

    def test_a_server_reports_while_a_reply_is_computed(self):
        with serving(report_seconds=0.005) as server:
            connection = server.post({"prompt": "a gate b", "stream": True}, headers="X-Request-Id: mine\r\n")
            until(lambda: sum("generated" in line for line in server.lines) >= 2)
            server.generator.gate.set()
            received(connection, b"[DONE]")
            until(lambda: any("  200 stop  " in line for line in server.lines))
            own = [line for line in server.lines if "POST" in line]
            assert all(line.endswith("  mine") for line in own)
            assert "  200 stop  " in own[-1], "nothing is reported of a request that has ended"


class TestJson:
    @given(HOSTILE, HOSTILE)
    @settings(deadline=None)
    def test_no_text_breaks_a_line(self, key, value):
        (found,) = objects([json_line("notice", {"message": value, "more": {key: [value]}})])
        assert found["message"] == value.encode("utf-8", "replace").decode()

    @given(HOSTILE)
    @settings(deadline=None)
    def test_an_id_is_plain_whatever_the_client_sends(self, given_id):
        assert re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", request_id({"x-request-id": given_id}))
        assert request_id({"x-request-id": "job-7.a_b:c"}) == "job-7.a_b:c"
        assert len(request_id({"x-request-id": "a" * 65})) == 16

    @pytest.mark.parametrize("model", ['tiny\n{"event": "request", "status": 200}', "\u2028x\x85\x1b[2J", "y" * 500])
    def test_a_hostile_model_or_path_stays_within_its_line(self, model):
        with serving(log_json=True) as server:
            body = json.dumps({"model": model, "prompt": "a"}).encode()
            assert answered(server.post(body, headers='X-Request-Id: "}{\r\n'))[0] == 404
            assert answered(server.post(b"{}", path="/v1/%0a%7b%22event%22"))[0] == 404
            unknown, path = requests_of(server)
        assert unknown.items() >= {"status": 404, "reason": "not_found", "param": "model", "model": model[:128]}.items()
        assert len(unknown["request_id"]) == 16
        assert "\n" not in path["path"]

    def test_text_is_logged_where_it_is_asked_for(self):
        with serving(log_json=True, log_text=True) as server:
            httpx.post(f"{server.url}/v1/echo", json={"prompt": "open sesame\u2028"})
            (line,) = requests_of(server)
        assert line["request"] == {"prompt": "open sesame\u2028"}
        assert line["answer"] == {"text": "opensesame"}

    def test_what_is_logged_of_the_server_is_json_too(self):
        lines = []
        Log(lines.append, as_json=True)("the disk\nis full")
        formatter = JsonFormatter()
        try:
            raise ValueError("line\nbreak")
        except ValueError as error:
            about = (type(error), error, error.__traceback__)
            record = logging.LogRecord("x", logging.ERROR, __file__, 1, "it %s", ("failed\n",), about)
        warned = logging.LogRecord("x", logging.WARNING, __file__, 1, "a page is not kept", (), None)
        notice, failed, warning = objects([*lines, formatter.format(record), formatter.format(warned)])
        assert (notice["event"], notice["message"]) == ("notice", "the disk\nis full")
        assert (failed["event"], failed["message"]) == ("error", "it failed\n")
        assert "ValueError: line\nbreak" in failed["traceback"]
        assert (warning["event"], warning["message"]) == ("warning", "a page is not kept")


ENDS = (  # a request's body and path, and the status, reason and parameter or figures in the log
    ({"prompt": "a b"}, "/v1/echo", 200, "stop", None),
    ({"prompt": "a", "n": 10_000}, "/v1/echo", 400, "invalid", "n"),
    ({"prompt": "!long"}, "/v1/echo", 400, "context", "26 of 20 tokens"),
    ({"prompt": "a", "model": "gpt"}, "/v1/echo", 404, "not_found", "model"),
    ({}, "/v1/nowhere", 404, "not_found", None),
    ({}, "/metrics", 405, "method", None),
    (b" " * 1001, "/v1/echo", 413, "too_large", None),
    ({"prompt": "!full"}, "/v1/echo", 429, "rate", None),
    ({"prompt": "!late"}, "/v1/echo", 500, "internal", None),
    ({"prompt": "a !late", "stream": True}, "/v1/echo", 500, "internal", None),
    ({"prompt": "!soon"}, "/v1/echo", 503, "unavailable", None),
)


def requests(server):
    return [line for line in list(server.lines) if "POST" in line]


@pytest.mark.parametrize("as_json", [False, True])
def test_the_log_has_the_reason_of_each_end(as_json):
    errors = {
        "long": ContextError("Too long.", "26 of 20 tokens"),
        "full": OverloadError("Many wait.", 7),
        "late": RuntimeError("bug"),
        "soon": UnavailableError("Not now."),
    }
    with serving(log_json=as_json, errors=errors, limits=Limits(body_bytes=1000)) as server:
        for count, (body, path, *_) in enumerate(ENDS, 1):
            sent = {"content": body} if isinstance(body, bytes) else {"json": body}
            httpx.post(f"{server.url}{path}", **sent)
            until(lambda: len(requests(server)) == count)  # noqa: B023
        gone = server.post({"prompt": "a hold", "stream": True})
        gone.recv(64)
        gone.close()
        until(lambda: len(requests(server)) == len(ENDS) + 1)
        lines = requests(server)
    if as_json:
        found = [(each["status"], each["reason"], each.get("param", each.get("figures"))) for each in objects(lines)]
        assert found == [*(each[2:] for each in ENDS), (499, "client_gone", None)]
    else:
        ends = [line.split("  ")[3] for line in lines]
        named = [f"{status} {reason}" + (f": {param}" if param else "") for *_, status, reason, param in ENDS]
        assert ends == [*named, "499 client_gone"]


class TestIds:
    def test_an_answer_has_the_id_of_its_line(self):
        with serving() as server:
            for path, names in (("/v1/echo", {"x-request-id"}), ("/v1/messages", {"x-request-id", "request-id"})):
                for stream in (False, True):
                    answer = httpx.post(f"{server.url}{path}", json={"prompt": "a", "stream": stream})
                    ids = {answer.headers[name] for name in names}
                    until(lambda: any("POST" in line for line in server.lines))
                    assert ids == {next(line for line in server.lines if "POST" in line).rpartition("  ")[2]}
                    server.lines.clear()
            assert httpx.get(f"{server.url}/nowhere", headers={"x-request-id": "n1"}).headers["x-request-id"] == "n1"


def test_a_client_that_goes_in_the_middle_of_a_prompt_ends_its_computation(live_server, monkeypatch):
    """The real engine: the prompt is given up between two layers, and nothing of it stays in the gauges."""
    scheduler, poll = live_server.engine._scheduler, live_server.engine._poll

    def after_a_layer():
        poll()
        until(lambda: all(sequence.cancelled for sequence in scheduler.queue.running))

    monkeypatch.setattr(scheduler, "_poll", after_a_layer)
    body = {"prompt": "Where the light of the moon comes from. " * 50, "stream": True, "return_progress": True}
    before = live_server.engine.gauges()
    with (
        httpx.Client(timeout=HANG_SECONDS) as client,
        client.stream("POST", f"{live_server.url}/v1/completions", json=body) as answer,
    ):
        assert answer.status_code == 200
        chunk = json.loads(next(line for line in answer.iter_lines() if line.startswith("data: "))[6:])
        assert chunk["prompt_progress"]["processed"] < chunk["prompt_progress"]["total"]
        until(lambda: live_server.engine.gauges().prefill_tokens == chunk["prompt_progress"]["total"])
    until(lambda: live_server.engine.gauges().running == 0)
    after = live_server.engine.gauges()
    assert (after.prompt_tokens, after.generated_tokens) == (before.prompt_tokens, before.generated_tokens)
    assert (after.prefill_tokens, after.prefill_processed, after.prefill_seconds_left) == (0, 0, 0.0)
    assert after.finished["cancelled"] == before.finished.get("cancelled", 0) + 1
