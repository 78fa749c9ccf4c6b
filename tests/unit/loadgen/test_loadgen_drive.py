"""The measuring client against a server of scripted answers: lengths, prefixes, times, ways to fail."""

import asyncio
import errno
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from earthshine.errors import UsageError
from earthshine.loadgen import client
from earthshine.loadgen.client import Site, parse_site
from earthshine.loadgen.drive import Target, Unreachable, drive, open_target
from earthshine.loadgen.trace import Arrival, Shape, fitting_scale, read_trace, synthetic_trace, token_ids, words

from .pretender import END, Pretender, chunk, whole

ARRIVALS = [
    Arrival(0.0, 1200, 4, (1, 2, 3)),
    Arrival(0.02, 1100, 3, (1, 2, 9)),
    Arrival(0.04, 700, 2, (1, 8)),
    Arrival(0.06, 30, 1),
]


@pytest.fixture
def server() -> Iterator[Pretender]:
    pretender = Pretender()
    yield pretender
    pretender.close()


def common(first: list[int], second: list[int]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


class TestPrompts:
    @pytest.mark.parametrize("scale", [1.0, 0.37, 0.01])
    def test_equal_leading_blocks_are_equal_tokens_and_nothing_else_is(self, scale):
        shape = Shape.of_tokens(5, scale)
        prompts = [shape.units(arrival, index) for index, arrival in enumerate(ARRIVALS)]
        assert [len(prompt) for prompt in prompts] == [max(1, round(scale * n)) for n in (1200, 1100, 700, 30)]
        assert all(0 <= unit < 1024 for prompt in prompts for unit in prompt)
        two, one = round(2 * 512 * scale), round(512 * scale)
        assert two <= common(prompts[0], prompts[1]) <= two + 2
        assert one <= common(prompts[0], prompts[2]) <= one + 2
        assert common(prompts[0], prompts[3]) <= 2
        assert sum(shape.shared_units(ARRIVALS)) == two + one

    def test_a_seed_gives_the_same_prompts_and_another_one_does_not(self):
        a, b = Shape.of_tokens(1, 1.0).units(ARRIVALS[0], 0), Shape.of_tokens(1, 1.0).units(ARRIVALS[0], 0)
        assert a == b != Shape.of_tokens(2, 1.0).units(ARRIVALS[0], 0)

    def test_an_id_in_another_place_shares_nothing(self):
        shape = Shape.of_tokens(0, 1.0)
        assert shape.shared_units([Arrival(0, 1024, 1, (1, 2)), Arrival(0, 1024, 1, (2, 1))]) == [0, 0]
        assert shape.shared_units([Arrival(0, 1024, 1, (1, 2)), Arrival(0, 600, 1, (1, 2))]) == [0, 600]

    def test_words_are_as_many_as_their_price_allows(self):
        shape = Shape.of_words(0, 0.5, tokens_per_word=2.0, overhead_tokens=10.0)
        prompt = words(shape.units(ARRIVALS[0], 0)).split()
        assert len(prompt) == 295  # of 600 tokens ten are the template's, and a word takes two
        assert {len(word) for word in prompt} == {4}
        assert len(set(words(range(1024)).split())) == 1024
        assert token_ids([0, 1023]) == [100, 1123]

    def test_the_longest_fits(self):
        assert fitting_scale(ARRIVALS, 5000) == 1.0
        scale = fitting_scale(ARRIVALS, 100)
        shape = Shape.of_tokens(0, scale)
        assert 95 <= max(shape.input_units(a) + shape.output_tokens(a) for a in ARRIVALS) <= 100

    def test_synthetic_requests_repeat_with_their_seed(self):
        found = synthetic_trace(500, 3)
        assert found == synthetic_trace(500, 3) != synthetic_trace(500, 4)
        assert found[:100] == synthetic_trace(100, 3)
        assert found[0].seconds == 0.0
        assert 400 < found[-1].seconds < 600
        assert 850 < sorted(arrival.input_tokens for arrival in found)[250] < 1200


class TestTraces:
    def test_published_ones(self, shared_data):
        traces = shared_data / "traces"
        first = read_trace(traces / "conversation_trace.jsonl", 3)
        assert [(a.input_tokens, a.output_tokens, a.blocks[:2]) for a in first] == [
            (6758, 500, (0, 1)), (7322, 490, (0, 14)), (7236, 794, (0, 28))]  # fmt: skip
        azure = read_trace(traces / "AzureLLMInferenceTrace_code.csv", 10**6)
        assert (len(azure), azure[0], azure[-1].output_tokens) == (8819, Arrival(0.0, 4808, 10), 173)
        assert azure[1].seconds == pytest.approx(0.052, abs=1e-6)

    def test_the_prefixes_of_a_whole_trace_are_those_that_its_readme_states(self, shared_data):
        arrivals = read_trace(shared_data / "traces" / "synthetic_trace.jsonl", 10**6)
        shape = Shape.of_tokens(0, 1.0)
        share = sum(shape.shared_units(arrivals)) / sum(arrival.input_tokens for arrival in arrivals)
        assert (len(arrivals), round(share, 3)) == (3993, 0.651)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "has no requests"),
            ("hello\n", "line 1, is neither"),
            ('\n{"timestamp": 0, "input_length": 5, "output_length": 0}', "line 2, has output_length 0"),
            ('{"timestamp": 0, "input_length": 1e3, "output_length": 1}', "line 1, has input_length 1000.0"),
            ('{"timestamp": 0, "input_length": true, "output_length": 1}', "line 1, has input_length true"),
            ('{"timestamp": -1, "input_length": 1, "output_length": 1}', "line 1, has the timestamp -1"),
            ('{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [1, "a"]}', "line 1, has hash_ids"),
            ('{"timestamp": 0, "input_length": 1, "output_length": 1}\n{"a"', "line 2, is not JSON"),
            ('{"timestamp": 5, "input_length": 1, "output_length": 1}\n'
             '{"timestamp": 4, "input_length": 1, "output_length": 1}', "request 2 arrives before"),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,5", "line 2, has 2 fields"),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,5,6", "line 2, begins with 'yesterday'"),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,5,6\n2023-11-16 18:17:04,5,-6",
             "line 3, has GeneratedTokens '-6'"),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03," + "9" * 5000 + ",6", "line 2, has"),
        ],
    )  # fmt: skip
    def test_a_line_that_is_not_a_request_is_named(self, tmp_path, text, says):
        path = tmp_path / "trace"
        path.write_text(text)
        with pytest.raises(UsageError, match=says):
            read_trace(path, 100)

    def test_a_folder_and_an_endless_line_are_refused(self, tmp_path):
        with pytest.raises(UsageError, match="not a regular file"):
            read_trace(tmp_path, 1)
        path = tmp_path / "long"
        path.write_bytes(b"{" + b" " * (5 << 20))
        with pytest.raises(UsageError, match="line 1, has more than 4194304 bytes"):
            read_trace(path, 1)


class TestSites:
    def test_addresses(self):
        assert parse_site("localhost:80") == Site("localhost", 80, False)
        assert parse_site("https://a.example/x/v1/", "k") == Site("a.example", 443, True, "/x", "k")
        assert parse_site("http://[::1]:9") == Site("::1", 9, False)
        assert "secret" not in repr(parse_site("http://a", "secret"))

    @pytest.mark.parametrize(
        "url",
        ["", "ftp://a", "http://", "http://a:b", "http://u:p@a", "http://a?b", "http://a\r\nX: y", "http://a:99999"],
    )
    def test_what_is_none(self, url):
        with pytest.raises(UsageError, match=r"such as http://127\.0\.0\.1:8000"):
            parse_site(url)


class TestRuns:
    def test_every_prompt_has_its_length_and_every_reply_is_counted(self, server):
        server.cached = 512
        target = open_target(parse_site(server.url, "the-key"), "completions")
        assert (target.model, target.context_tokens, target.forced) == ("small", 4096, True)
        ended = []
        run = drive(target, ARRIVALS, target.shape(0, 1.0), concurrency=2, ended=ended.append)
        assert ended == list(run.samples)
        samples = sorted(run.samples, key=lambda sample: sample.index)
        assert [(s.input_tokens, s.cached_tokens, s.output_tokens, s.problem) for s in samples] == [
            (1200, 512, 4, None), (1100, 512, 3, None), (700, 512, 2, None), (30, 30, 1, None)]  # fmt: skip
        assert [len(sample.gaps) for sample in samples] == [3, 2, 1, 0]
        assert run.unsent == 0
        bodies = {len(body["prompt"]): body for body in server.streams}
        assert bodies[700]["max_tokens"] == 2
        assert bodies[700]["ignore_eos"] is True
        assert bodies[700]["stream_options"] == {"include_usage": True}
        assert common(bodies[1200]["prompt"], bodies[1100]["prompt"]) >= 1024
        assert min(map(min, (body["prompt"] for body in server.streams))) >= 100
        assert all("Authorization: Bearer the-key\r\n" in head for head in server.heads)

    def test_words_get_the_length_that_the_server_counts(self, server):
        target = open_target(parse_site(server.url), "chat")
        assert (target.tokens_per_word, target.overhead_tokens) == (2.0, 7.0)
        run = drive(target, ARRIVALS, target.shape(0, 1.0), concurrency=1)
        assert [sample.input_tokens for sample in run.samples] == [1199, 1099, 699, 31]  # odd: 7, and 2 a word

    def test_times_are_those_of_the_pieces(self, server):
        server.pieces = lambda body: [(0.06, "a"), (0.0, ""), (0.03, "b"), (0.09, "c")]
        target = open_target(parse_site(server.url), "completions")
        [sample] = drive(target, ARRIVALS[:1], target.shape(0, 1.0), concurrency=1).samples
        assert sample.first is not None
        assert sample.first >= 0.06
        assert len(sample.gaps) == 2  # an empty text is not a piece
        assert sample.gaps[0] >= 0.025
        assert sample.gaps[1] >= 0.085
        assert sample.seconds >= sample.first + sum(sample.gaps)

    def test_the_traces_times_are_kept(self, server):
        target = open_target(parse_site(server.url), "completions")
        run = drive(target, ARRIVALS, target.shape(0, 0.1), speed=0.5)
        sent = [sample.sent for sample in sorted(run.samples, key=lambda sample: sample.index)]
        assert all(at >= due for at, due in zip(sent, (0, 0.04, 0.08, 0.12), strict=True))
        assert all(sample.late >= 0 for sample in run.samples)

    def test_a_server_that_knows_no_ignore_eos_is_asked_without(self, server):
        server.answer = lambda body: whole(400, {"error": {"message": "ignore_eos?"}}) if "ignore_eos" in body else None
        target = open_target(parse_site(server.url), "completions")
        assert not target.forced
        assert drive(target, ARRIVALS[:1], target.shape(0, 0.1), concurrency=1).samples[0].problem is None


FIRST = chunk('{"choices": [{"text": "a"}]}')
WRONG = {
    "refused": (whole(429, {"error": {"message": "too many \x1b[31m"}}), r"HTTP 429: 'too many \x1b[31m'"),
    "wordless": (whole(500, "what"), "HTTP 500: no message"),
    "cut": (END + FIRST, "the stream ended before [DONE]"),
    "ended": (END + FIRST + b"0\r\n\r\n", "the stream ended before [DONE]"),
    "broken": (END + chunk("{"), "an event is not a JSON object"),
    "nested": (END + chunk("[" * 100_000), "an event is not a JSON object"),
    "list": (END + chunk("[]"), "an event is not a JSON object"),
    "error": (END + FIRST + chunk('{"error": {"message": "gone"}}'), "an error in the stream: 'gone'"),
    "silent": (b"", "the connection ended without an answer"),
    "odd": (b"SSH-2.0-x\r\n\r\n", "the answer is not HTTP"),
    "size": (END + b"-5\r\nabc", "the answer is not HTTP"),
    "head": (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000, "the answer is not HTTP"),
    "long": (END + b"600000\r\ndata: " + b"x" * (5 << 20), "an event has more than 4194304 bytes"),
}


class TestFailures:
    @pytest.mark.parametrize("name", WRONG)
    def test_each_is_a_sentence(self, server, name):
        target = open_target(parse_site(server.url), "completions")
        raw, says = WRONG[name]
        server.answer = lambda body: raw
        run = drive(target, ARRIVALS[:2], target.shape(0, 0.1), concurrency=2)
        assert [sample.problem for sample in run.samples] == [says, says]

    def test_a_reply_that_does_not_end_is_left(self, server):
        target = open_target(parse_site(server.url), "completions")
        server.pieces = lambda body: [(0, "a"), (1e6, "b")]
        first, seconds = None, 0.1
        while first is None:  # until even the busiest machine sends the first piece in time
            seconds *= 2
            short = replace(target, site=replace(target.site, timeout_seconds=seconds))
            [sample] = drive(short, ARRIVALS[:1], target.shape(0, 0.1), concurrency=1).samples
            assert sample.problem == f"no whole reply within {seconds:g} s"
            first = sample.first

    def test_a_server_that_goes_away_is_not_asked_for_ever(self, server):
        target = open_target(parse_site(server.url), "completions")
        many = [Arrival(0.0, 10, 1) for _ in range(100)]
        server.stop_listening()
        while True:  # the other thread needs a moment
            run = drive(target, many, target.shape(0, 1.0), concurrency=1)
            if run.unsent:
                break
        assert run.samples[-1].problem == "no connection: Connection refused"
        assert len(run.samples) + run.unsent == 100
        *served, first = [sample.problem for sample in run.samples[:-15]]
        assert first is not None  # the first of 16 in a row may have been cut off while the server went
        assert all("refused" in (sample.problem or "") for sample in run.samples[-15:])
        assert not any("refused" in (problem or "") for problem in served)
        again = drive(target, [Arrival(i / 100, 10, 1) for i in range(100)], target.shape(0, 1.0), speed=10.0)
        assert 0 < again.unsent < 100

    def test_a_client_without_descriptors_does_not_blame_the_server(self, server, monkeypatch):
        target = open_target(parse_site(server.url), "completions")
        real, opened = asyncio.open_connection, []

        async def scarce(*args, **options):
            opened.append(args)
            if len(opened) > 3:
                raise OSError(errno.EMFILE, "Too many open files")
            return await real(*args, **options)

        monkeypatch.setattr(asyncio, "open_connection", scarce)
        run = drive(target, [Arrival(0.0, 10, 1) for _ in range(60)], target.shape(0, 1.0))
        problems = [sample.problem for sample in run.samples]
        assert problems.count("this client has too many open connections; see ulimit -n") == 57
        assert run.unsent == 0

    def test_hostile_usage_is_ignored(self, server):
        target = open_target(parse_site(server.url), "completions")
        usage = {"prompt_tokens": -1, "completion_tokens": 1e9, "cached_tokens": "all", "prompt_tokens_details": []}
        done = chunk(json.dumps({"choices": {}, "usage": usage})) + chunk("[DONE]")
        server.answer = lambda body: END + FIRST + done
        [sample] = drive(target, ARRIVALS[:1], target.shape(0, 0.1), concurrency=1).samples
        assert (sample.problem, sample.input_tokens, sample.cached_tokens) == (None, None, None)
        assert sample.output_tokens == 1  # the pieces with text


class TestTargets:
    @pytest.mark.parametrize("models", [[], {}, {"data": 5}, {"data": [{"id": 7}]}, {"data": []}])
    def test_a_list_without_models(self, server, models):
        server.models = models
        with pytest.raises(Unreachable, match=r"lists no model|with a JSON object"):
            open_target(parse_site(server.url), "completions")

    def test_an_unknown_model(self, server):
        with pytest.raises(UsageError, match="model 'big' is not on this server; it has 'small'"):
            open_target(parse_site(server.url), "completions", "big")

    def test_no_server(self, server):
        with pytest.raises(Unreachable, match="no connection: Connection refused"):
            open_target(Site("127.0.0.1", 1, False), "completions")

    def test_a_refused_trial_says_why(self, server):
        server.answer = lambda body: whole(400, {"error": {"message": "no ids here"}})
        with pytest.raises(Unreachable, match=r"refuses the trial request .*no ids here"):
            open_target(parse_site(server.url), "completions")

    def test_words_without_a_count(self, server):
        server.answer = lambda body: whole(200, {"usage": {"prompt_tokens": 5}})
        with pytest.raises(Unreachable, match="do not grow"):
            open_target(parse_site(server.url), "chat")

    def test_the_context_may_be_unknown(self, server):
        server.models = {"data": [{"id": "a"}, {"id": "b", "context_length": 77}]}
        site = parse_site(server.url)
        assert open_target(site, "completions") == Target(site, "completions", "a", None, True)
        assert open_target(site, "completions", "b").context_tokens == 77


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_chunks_are_the_same_wherever_they_are_cut(step):
    raw = END + chunk("one") + b"3;x=y\r\nabc\r\n" + chunk("two") + b"0\r\n\r\n"
    reply, body = client._Reply(), b""
    for at in range(0, len(raw), step):
        body += reply.feed(raw[at : at + step])
        if reply.finished:
            break
    assert (reply.status, body, reply.finished) == (200, b"data: one\n\nabcdata: two\n\n", True)
