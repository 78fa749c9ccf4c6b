"""Many clients of one server: half of them leave in the middle of their streams, and nothing of them stays."""

import asyncio
import json
import subprocess
from collections import Counter

import httpx
from prometheus_client.parser import text_string_to_metric_families

from .process import serve_process
from .serving import HANG_SECONDS, until

N_CLIENTS = 50
BODY = {"prompt": "tar", "max_tokens": 200, "ignore_eos": True, "stream": True}


async def stream(client, leaves):
    """The last line; or the first one, which may be a ping, where this client `leaves`."""
    async with client.stream("POST", "/v1/completions", json=BODY) as answer:
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        if leaves:
            return await anext(lines)
        return [line async for line in lines if line][-1]


async def streams(url):
    limits = httpx.Limits(max_connections=N_CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=HANG_SECONDS, limits=limits) as client:
        return await asyncio.gather(*(stream(client, number % 2 == 1) for number in range(N_CLIENTS)))


def gauges_of(url):
    text = httpx.get(f"{url}/metrics").text
    assert "_created" not in text, "series that no dashboard reads"
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.name: sample.value for sample in samples}


def ended(log):
    """The last line of each request; one that takes long has others before."""
    found = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in found if line["event"] == "request"]


def test_half_of_fifty_streams_leave_and_nothing_of_them_stays(tmp_path):
    with serve_process(subprocess.Popen, tmp_path / "log", "--batch", "8", "--log-json") as server:
        ends = asyncio.run(streams(server.url))
        assert ends[::2] == ["data: [DONE]"] * (N_CLIENTS // 2)
        until(lambda: len(ended(server.log)) == N_CLIENTS)
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        names += ("earthshine:prefill_tokens", "earthshine:prefill_tokens_processed", "earthshine:prefill_seconds_left")
        until(lambda: not any(map(gauges_of(server.url).get, names)))
        assert set(names) <= gauges_of(server.url).keys()
        server.stop()
        lines = ended(server.log)
    assert Counter((line["status"], line["reason"]) for line in lines) == {
        (200, "length"): 25,
        (499, "client_gone"): 25,
    }
    for line in lines:
        whole = line["status"] == 200
        assert (line.get("completion_tokens") == BODY["max_tokens"]) == whole  # some left while they waited
        assert not whole or line["expert_hits"] > 0
