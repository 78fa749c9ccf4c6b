"""Whether every panel of deploy/grafana.json shows something: its queries, asked of a real Prometheus.

    python benchmarks/dashboard.py --seconds 60 -- --memory 727MiB --disk-cache 8MiB

Starts `earthshine serve` (gleam unless --model names another) with an API key, and Prometheus (Debian: `apt-get install
prometheus`) with deploy/prometheus.yml, which then scrapes that server every second. Clients send short requests,
prompts of most of the context, wrong requests, and streams that are left in the middle. Prints a line for each query:
its panel, how many values it gave and the largest, or the error of Prometheus. Exit code 1 where a query gave no value.
"""

import argparse
import asyncio
import contextlib
import json
import math
import random
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from served import serving
from soak import Tally, asked, one

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
_RATE = "10s"  # what Grafana puts in place of $__rate_interval, for a scrape every second


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query gave over the time of the load. `error`: that of Prometheus; `values`: finite ones."""

    panel: str
    legend: str
    values: tuple[float, ...]
    error: str = ""

    def __str__(self) -> str:
        found = f"{len(self.values)} values, at most {max(self.values):.4g}" if self.values else "NOTHING"
        return f"{self.panel} / {self.legend}: {self.error or found}"


@contextlib.contextmanager
def prometheus(program: str, folder: Path, target: str, key: str) -> Iterator[str]:
    """The address of a Prometheus with deploy's configuration, which scrapes `target` every second."""
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    config["global"]["scrape_interval"] = "1s"
    job["static_configs"][0]["targets"] = [target]
    job["authorization"]["credentials_file"] = str(folder / "key")
    (folder / "key").write_text(key)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = {
        "config.file": folder / "prometheus.yml",
        "storage.tsdb.path": folder / "tsdb",
        "web.listen-address": address,
    }
    command = [program, *(f"--{name}={value}" for name, value in options.items())]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(60)


async def load(url: str, key: str, seconds: float) -> Tally:
    """Sends requests of every kind for that long."""
    tally, until, requests = Tally(), time.monotonic() + seconds, asked(40, 1)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, timeout=300, headers=headers) as client:
        context = (await client.get("/v1/gauges")).json()["context_tokens"]
        alone: list[Any] = [None] * len(requests)  # not compared here

        async def short(number: int) -> None:
            draw = random.Random(number)
            while time.monotonic() < until:
                await one(client, requests, alone, draw, tally)

        async def long(number: int) -> None:
            draw = random.Random(number)
            while time.monotonic() < until:
                prompt = [draw.randrange(256) for _ in range(context * 3 // 4)]
                answer = await client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 4})
                tally.done[f"long {answer.status_code}"] += 1

        await asyncio.gather(*map(short, range(10)), *map(long, range(2)))
    return tally


def queries() -> Iterator[tuple[str, str, str]]:
    """The panel's title, the legend and the query of every target of the dashboard."""
    for panel in json.loads((DEPLOY / "grafana.json").read_text())["panels"]:
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", _RATE).replace("$model", ".*")
            yield panel["title"], target["legendFormat"], query


def answer(url: str, panel: str, legend: str, query: str, span: tuple[float, float]) -> Answer:
    asked = {"query": query, "start": span[0], "end": span[1], "step": 1}
    found = httpx.get(f"{url}/api/v1/query_range", params=asked, timeout=60).json()
    if found["status"] != "success":
        return Answer(panel, legend, (), found["error"])
    numbers = (float(value) for series in found["data"]["result"] for _, value in series["values"])
    return Answer(panel, legend, tuple(filter(math.isfinite, numbers)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gleam")
    parser.add_argument("--prometheus", default="prometheus", help="the program (default: the one on the path)")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("serve", nargs="*", help="more options for earthshine serve, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, key = Path(name), secrets.token_hex(16)
        keys = folder / "keys"
        keys.touch(0o600)
        keys.write_text(f"{key}\n")
        own = ["--api-keys", str(keys), "--disk-cache-folder", str(folder / "pages")]
        own = own if "--disk-cache" in options.serve else own[:2]
        with (
            serving(options.model, [*own, *options.serve]) as (url, _),
            prometheus(options.prometheus, folder, url.partition("//")[2], key) as database,
        ):
            began = time.time()
            tally = asyncio.run(load(url, key, options.seconds))
            time.sleep(3)  # the last scrape
            answers = [answer(database, *each, (began, time.time())) for each in queries()]
    print(*answers, dict(tally.done), sep="\n")
    empty = [each for each in answers if not each.values]
    print(f"{len(answers) - len(empty)} of {len(answers)} queries gave values")
    return 1 if empty else 0


if __name__ == "__main__":
    sys.exit(main())
