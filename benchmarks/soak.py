"""Many clients at once against one server: no reply is lost or mixed up, memory stays flat, all pages are freed.

    python benchmarks/soak.py --minutes 5 --conversations 64

Starts `earthshine serve` (gleam unless --model names another), computes every request alone first, with a cache of its
own, then lets `conversations` clients send requests for the given time: whole answers, streams, streams that are
abandoned in the middle, several choices at once, and requests that are wrong. Each finished reply must be, character
for character, what the same request gave alone. Ends with one line of JSON; exit code 1 where anything differed.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
from served import serving

TOPICS = (
    "list files by size",
    "extract a gzipped tar archive",
    "find text in files",
    "show disk usage",
    "count the lines of a file",
    "copy a folder over ssh",
    "rename many files",
    "kill a process by name",
)
WRONG: tuple[tuple[dict[str, Any] | bytes, int], ...] = (
    ({"messages": []}, 400),
    ({"messages": [{"role": "user", "content": "x"}], "temperature": -1}, 400),
    ({"messages": [{"role": "user", "content": "x"}], "model": "another"}, 404),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "nobody"}]}, 400),
    (b'{"messages": [', 400),
    (b"\xff\xfe", 400),
)


@dataclass(slots=True)
class Tally:
    """What happened."""

    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)


def asked(count: int, seed: int) -> list[dict[str, Any]]:
    """Requests that differ in length, sampling and number of choices; some share a long prefix."""
    draw, found = random.Random(seed), []
    for number in range(count):
        words = " ".join(draw.choice(TOPICS) for _ in range(draw.choice((1, 1, 3, 12, 40))))
        messages = [{"role": "user", "content": f"{words} {number}" if number % 3 else words}]
        if number % 4 == 0:
            messages.insert(0, {"role": "system", "content": "Answer with one command. " * 30})
        sampling = {"temperature": 0} if number % 2 else {"temperature": 1.0, "seed": number, "top_p": 0.95}
        found.append(
            {"messages": messages, "max_tokens": draw.choice((1, 8, 24, 64)), "n": 2 if number % 7 == 0 else 1}
        )
        found[-1] |= sampling
    return found


def parts_of(answer: dict[str, Any]) -> list[tuple[str, str]]:
    return [(choice["message"]["content"] or "", choice["finish_reason"]) for choice in answer["choices"]]


async def streamed(client: httpx.AsyncClient, request: dict[str, Any], leave_after: int | None) -> Any:
    """The replies of a stream, or None where it was abandoned in the middle."""
    texts, reasons = [""] * request["n"], [""] * request["n"]
    async with client.stream("POST", "/v1/chat/completions", json=request | {"stream": True}) as answer:
        if answer.status_code != 200:
            return await answer.aread()
        pieces = 0
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line[6:])["choices"]:
                texts[choice["index"]] += choice["delta"].get("content") or ""
                reasons[choice["index"]] = choice["finish_reason"] or reasons[choice["index"]]
            pieces += 1
            if leave_after is not None and pieces >= leave_after:
                return None
    return list(zip(texts, reasons, strict=True))


async def one(
    client: httpx.AsyncClient, requests: list[Any], alone: list[Any], draw: random.Random, tally: Tally
) -> None:
    kind = draw.choices(("whole", "stream", "left", "wrong"), (30, 40, 20, 10))[0]
    if kind == "wrong":
        body, status = draw.choice(WRONG)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await client.post(
            "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
        )
        if answer.status_code != status:
            tally.wrong.append(f"{body!r} got {answer.status_code}: {answer.text[:200]}")
        tally.done[kind] += 1
        return
    number = draw.randrange(len(requests))
    request = requests[number]
    if kind == "whole":
        answer = await client.post("/v1/chat/completions", json=request)
        found = parts_of(answer.json()) if answer.status_code == 200 else answer.text
    else:
        found = await streamed(client, request, draw.randrange(1, 12) if kind == "left" else None)
    tally.done[kind if found is not None else "left in the middle"] += 1
    if found is not None and found != alone[number]:
        tally.wrong.append(f"request {number} ({kind}): {found!r} instead of {alone[number]!r}")


async def watch(client: httpx.AsyncClient, tally: Tally, until: float) -> None:
    while time.monotonic() < until:
        gauges = (await client.get("/v1/gauges")).json()
        tally.samples.append({"at": time.monotonic(), **gauges})
        await asyncio.sleep(2)


async def course(url: str, options: argparse.Namespace) -> dict[str, Any]:
    limits, tally = httpx.Limits(max_connections=options.conversations + 8), Tally()
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        requests = asked(options.requests, options.seed)
        alone = []
        for number, request in enumerate(requests):
            answer = await client.post("/v1/chat/completions", json=request | {"cache_salt": f"alone {number}"})
            alone.append(parts_of(answer.raise_for_status().json()))
        until = time.monotonic() + options.minutes * 60

        async def work(number: int) -> None:
            draw = random.Random(options.seed * 1000 + number)
            while time.monotonic() < until:
                await one(client, requests, alone, draw, tally)

        await asyncio.gather(watch(client, tally, until), *(work(number) for number in range(options.conversations)))
        await settled(client)
        return summary(tally, (await client.get("/v1/gauges")).json())


async def settled(client: httpx.AsyncClient) -> None:
    """Waits until the engine has cancelled the requests of the last disconnects."""
    for _ in range(200):
        gauges = (await client.get("/v1/gauges")).json()
        if not gauges["running"] and not gauges["waiting"]:
            return
        await asyncio.sleep(0.05)


def summary(tally: Tally, last: dict[str, Any]) -> dict[str, Any]:
    memory = [sample["resident_bytes"] for sample in tally.samples]
    fifth = max(1, len(memory) // 5)
    return {
        "done": dict(tally.done),
        "wrong": len(tally.wrong),
        "first_wrong": tally.wrong[:5],
        "running_at_most": max(sample["running"] for sample in tally.samples),
        "resident_first_fifth": max(memory[:fifth]),
        "resident_last_fifth": max(memory[-fifth:]),
        "budget": last["budget_bytes"],
        "preemptions": last["preemptions"],
        "prefix_hit_rate": last["prefix_hit_rate"],
        "pages_lost": last["pages"] - last["pages_free"] - last["pages_cached"],
        "left_running": last["running"] + last["waiting"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gleam")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--conversations", type=int, default=64)
    parser.add_argument("--requests", type=int, default=150, help="that differ (default 150)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("serve", nargs="*", help="more options for earthshine serve, after --")
    options = parser.parse_args()
    with serving(options.model, ["--batch", str(options.conversations), *options.serve]) as (url, _):
        found = asyncio.run(course(url, options))
    print(json.dumps(found, indent=1))
    sound = not (found["wrong"] or found["pages_lost"] or found["left_running"])
    return 0 if sound and found["resident_last_fifth"] <= found["budget"] else 1


if __name__ == "__main__":
    sys.exit(main())
