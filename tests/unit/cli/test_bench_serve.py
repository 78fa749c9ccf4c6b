"""`earthshine bench serve` against a server that answers at once: what is printed, saved, drawn, and refused."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from earthshine.cli.bench_serve import BenchServeOptions, percentiles, run_bench_serve
from earthshine.errors import UsageError
from earthshine.loadgen.drive import Unreachable

sys.path.insert(0, str(Path(__file__).parents[1] / "loadgen"))
from pretender import Pretender, whole

TRACE = """{"timestamp": 0, "input_length": 2000, "output_length": 4, "hash_ids": [0, 1, 2, 3]}
{"timestamp": 10, "input_length": 1500, "output_length": 3, "hash_ids": [0, 1, 9]}
{"timestamp": 20, "input_length": 500, "output_length": 5, "hash_ids": [7]}
"""


@pytest.fixture
def server() -> Iterator[Pretender]:
    pretender = Pretender()
    yield pretender
    pretender.close()


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "three.jsonl"
    path.write_text(TRACE)
    return path


def run(capsys: pytest.CaptureFixture[str], server: Pretender, **options) -> str:
    run_bench_serve(BenchServeOptions(url=server.url, **options))
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([7.0], (7.0, 7.0, 7.0)),
        ([3.0, 1.0, 2.0], (2.0, 2.8, 2.98)),
        (list(map(float, range(101, 0, -1))), (51.0, 91.0, 100.0)),
        ([0.0] * 98 + [1.0, 1.0], (0.0, 0.0, 1.0)),
    ],
)
def test_percentiles(values, found):
    assert percentiles(values) == {
        name: pytest.approx(value) for name, value in zip(("p50", "p90", "p99"), found, strict=True)
    }
    assert percentiles([]) is None


def test_results_are_printed(capsys, server, trace):
    server.cached = 1024
    lines = run(capsys, server, trace=trace, concurrency=1).splitlines()
    assert lines[0] == f"'small' at {server.url}, completions"
    assert lines[1] == "sent        three.jsonl, 1 at once, lengths x 1"
    assert lines[2].startswith("requests    3 of 3 answered in ")
    # 1024 + 1024 + 500 of 4000 tokens were found; 1024 of them could be
    assert lines[4] == "prefixes    63.7% of prompt tokens found; 25.6% are shared with earlier prompts of the trace"
    assert lines[5].split() == ["seconds", "p50", "p90", "p99"]
    names = ["first token", "between pieces", "each further token", "whole reply"]
    assert [line[:20].rstrip() for line in lines[6:10]] == names
    assert lines[10].startswith("this client: ")
    assert len(lines) == 11


def test_one_document_and_a_saved_one_with_every_sample(capsys, server, trace, tmp_path):
    place = tmp_path / "run.json"
    document = json.loads(run(capsys, server, trace=trace, concurrency=2, json=True, save=place))
    assert {key: document[key] for key in ("requests", "done", "failed", "unsent", "short", "problems")} == {
        "requests": 3, "done": 3, "failed": 0, "unsent": 0, "short": 0, "problems": {}}  # fmt: skip
    assert (document["input_tokens"], document["output_tokens"]) == (4000, 12)
    assert document["tokens_per_second"] == pytest.approx(4012 / document["seconds"])
    assert document["prefix_share"] == 0.0
    saved = json.loads(place.read_text())
    samples = saved.pop("samples")
    assert saved == document
    assert sorted(sample["output_tokens"] for sample in samples) == [3, 4, 5]
    whole_replies = percentiles([sample["seconds"] for sample in samples])
    assert document["latency"]["whole reply"] == whole_replies
    means = [sum(sample["gaps"]) / (sample["output_tokens"] - 1) for sample in samples]
    assert document["latency"]["each further token"] == percentiles(means)


def test_lengths_are_scaled_to_the_context(capsys, server, trace):
    server.models = {"data": [{"id": "small", "max_model_len": 200}]}
    document = json.loads(run(capsys, server, trace=trace, json=True))
    assert document["scale"] == pytest.approx(198 / 2004)
    assert [len(body["prompt"]) for body in server.streams] == [198, 148, 49]
    document = json.loads(run(capsys, server, trace=trace, api="chat", json=True))
    assert document["scale"] == pytest.approx(188 / 2004)


def test_the_traces_own_times(capsys, server, trace):
    lines = run(capsys, server, trace=trace, speed=2.0).splitlines()
    assert "at the trace's times, 2 x as fast" in lines[1]
    assert lines[-1].endswith(" s late")


def test_without_a_trace_one_is_made(capsys, server):
    document = json.loads(run(capsys, server, requests=5, json=True, seed=3))
    assert (document["trace"], document["requests"], document["done"]) == ("a synthetic trace", 5, 5)
    assert document["prefix_share_possible"] == 0.0


def test_failures_are_counted_and_named(capsys, server, trace):
    refusal = whole(429, {"error": {"message": "come back later"}})
    server.answer = lambda body: refusal if len(body["prompt"]) == 1500 else None
    server.pieces = lambda body: [(0, "x")] * (body["max_tokens"] - 1)
    lines = run(capsys, server, trace=trace).splitlines()
    assert lines[2].startswith("requests    2 of 3 answered in ")
    assert lines[2].endswith(", 1 failed")
    assert lines[3] == "            1 x HTTP 429: 'come back later'"
    assert lines[4] == "            2 replies were shorter than in the trace"


def test_no_answer_at_all_is_an_error(server, trace):
    server.answer = lambda body: whole(503, {"error": {"message": "not now"}}) if body.get("stream") else None
    with pytest.raises(Unreachable, match="None of 3 requests was answered completely; 3 times: HTTP 503: 'not now'"):
        run_bench_serve(BenchServeOptions(url=server.url, trace=trace))


def test_no_server(trace):
    with pytest.raises(Unreachable, match="Connection refused"):
        run_bench_serve(BenchServeOptions(url="http://127.0.0.1:1", trace=trace))


def test_a_name_from_the_server_moves_no_cursor(capsys, server):
    server.models = {"data": [{"id": "\x1b[2Jsmall", "max_model_len": 4096}]}
    assert "\x1b" not in run(capsys, server, requests=1)


def test_a_picture(capsys, server, trace, tmp_path):
    pytest.importorskip("matplotlib")
    place = tmp_path / "run.PNG"
    run(capsys, server, trace=trace, plot=place)
    assert place.read_bytes().startswith(b"\x89PNG")


def test_the_key_comes_from_a_file(capsys, server, tmp_path):
    path = tmp_path / "key"
    path.write_text("sk-1\n")
    run(capsys, server, requests=1, api_key_file=path)
    assert all("Bearer sk-1\r\n" in head for head in server.heads)


@pytest.mark.parametrize("option", ["trace", "api_key_file"])
def test_a_loop_of_links_is_refused(server, tmp_path, option):
    path = tmp_path / "loop"
    path.symlink_to("loop")
    with pytest.raises(UsageError, match="loop' can't be opened: Too many levels of symbolic links"):
        run_bench_serve(BenchServeOptions(url=server.url, **{option: path}))


@pytest.mark.parametrize("raw", [b"", b"a b\n", b"a\r\nX: y", b"\xff", b"x" * 5000])
def test_a_file_without_a_key(server, tmp_path, raw):
    path = tmp_path / "key"
    path.write_bytes(raw)
    with pytest.raises(UsageError, match=r"has no API key|more than 4096 bytes"):
        run_bench_serve(BenchServeOptions(url=server.url, api_key_file=path))
    assert server.heads == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"api": "embeddings"}, "--api must be completions or chat, not 'embeddings'"),
        ({"requests": 0}, "--requests must be between 1 and"),
        ({"concurrency": 0}, "--concurrency must be between 1 and"),
        ({"concurrency": 2, "speed": 1.0}, "give one"),
        ({"speed": 0.0}, "--speed must be a factor above 0"),
        ({"speed": float("nan")}, "--speed must be a factor above 0"),
        ({"scale": -1.0}, "--scale must be a factor above 0"),
        ({"timeout": float("inf")}, "--timeout must be above 0"),
        ({"plot": Path("a.txt")}, "must end in one of .png"),
        ({"save": Path("/absent/folder/a.json")}, "in a folder that does not exist"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_sent(server, options, says):
    with pytest.raises(UsageError, match=says):
        run_bench_serve(BenchServeOptions(url=server.url, **options))
    assert server.heads == []


def test_an_unknown_context_needs_a_scale(capsys, server, trace):
    server.models = {"data": [{"id": "small"}]}
    with pytest.raises(UsageError, match="give --scale"):
        run_bench_serve(BenchServeOptions(url=server.url, trace=trace))
    document = json.loads(run(capsys, server, trace=trace, scale=0.5, json=True))
    assert (document["scale"], document["context_tokens"]) == (0.5, None)
