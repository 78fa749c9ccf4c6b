"""Same bits over a server whose trunk and experts stream: each reply equals that of the same request alone."""

import dataclasses
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from earthshine.engine.load import plan_for
from earthshine.hub import GLEAM
from earthshine.plan import PlanArgs, plan_json
from earthshine.spec import load_spec
from earthshine.weights import Checkpoint

from .process import serve_process

CONTEXT = 1024
VOCAB = 5888  # below the control tokens


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Path:
    """All of the trunk streams, and each layer holds one expert."""
    checkpoint = Checkpoint.open(GLEAM, load_spec(GLEAM))
    made = plan_for(checkpoint, PlanArgs(2 << 30, CONTEXT, 3))
    memory = dataclasses.replace(
        made.memory,
        streamed=(*(f"layers.{layer}" for layer in range(checkpoint.spec.n_layers)), "head"),
        embedding_on_disk=True,
        slots_per_layer=1,
        transit_slots=2,
        pages=24,
        prefill_tokens=512,
    )
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    path.write_text(plan_json(dataclasses.replace(made, memory=memory)))
    return path


@pytest.fixture
def streaming_server(forker, plan, tmp_path) -> Iterator[str]:
    """The address of a process that runs decode steps between the parts of a prefill pass as often as it can."""
    cache = ("--disk-cache", "1MiB", "--disk-cache-folder", str(tmp_path / "pages"))
    with serve_process(forker.popen, tmp_path / "log", "--plan", str(plan), "--max-stall", "0.01", *cache) as server:
        yield server.url
        server.stop()


def conversations(draw: random.Random) -> list[list[int]]:
    """Three clients' prompts of 61 to 510 tokens, which share beginnings."""
    stems = [[draw.randrange(VOCAB) for _ in range(450)] for _ in range(2)]
    lengths = ((60, 450, 200), (450, 60, 300), (200, 300, 450))
    return [
        [*draw.choice(stems)[:length], *(draw.randrange(VOCAB) for _ in range(draw.choice((1, 60))))]
        for client in lengths
        for length in client
    ]


def streamed(url: str, prompt: list[int], most: int) -> list:
    """Texts and log-probabilities of the reply, which is left once `most` events have come."""
    body = {"prompt": prompt, "max_tokens": 16, "temperature": 0, "ignore_eos": True, "logprobs": 1, "stream": True}
    found = []
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                choice = json.loads(line[6:])["choices"][0]
                scores = choice["logprobs"] or {"tokens": [], "token_logprobs": []}
                found += zip(scores["tokens"], scores["token_logprobs"], strict=True)
                most -= 1
            if most == 0:
                break
    return found


def alone(url: str, prompt: list[int], number: int) -> list:
    """The same of a server that holds all weights, where nothing is shared or beside it."""
    body = {"prompt": prompt, "max_tokens": 16, "temperature": 0, "ignore_eos": True, "logprobs": 1}
    answer = httpx.post(f"{url}/v1/completions", json=body | {"cache_salt": f"alone {number}"}, timeout=120)
    scores = answer.raise_for_status().json()["choices"][0]["logprobs"]
    return list(zip(scores["tokens"], scores["token_logprobs"], strict=True))


def test_replies_of_a_streaming_server_under_load_are_those_of_a_resident_one_alone(streaming_server, live_server):
    prompts = conversations(random.Random(5))
    leaves = {4: 3}  # one client goes away in the middle

    def client(number: int) -> list[list]:
        mine = range(3 * number, 3 * number + 3)
        return [streamed(streaming_server, prompts[each], leaves.get(each, 1000)) for each in mine]

    with ThreadPoolExecutor(3) as clients:
        found = [reply for replies in clients.map(client, range(3)) for reply in replies]
    gauges = httpx.get(f"{streaming_server}/v1/gauges").json()
    assert gauges["expert_misses"] > gauges["expert_hits"]
    for number, (prompt, reply) in enumerate(zip(prompts, found, strict=True)):
        expected = alone(live_server.url, prompt, number)
        if number in leaves:
            expected = expected[: len(reply)]
        assert len(reply) == len(expected) > 0
        assert reply == expected, f"prompt {number} of {len(prompt)} tokens"
