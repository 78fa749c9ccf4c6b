"""One budget of growth.py, in a process of its own: measures points, and forecasts each from the machine's profile.

Contexts are filled with random latents, which decode at the speed of true ones. Where experts stream, a decoded token
is forecast from the disk's rate for the same pattern of reads right after it (`profile_forecast`: from the profile's):
a virtual disk answers what its host still holds at up to twice the rate.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from engine import experts_on_disk, fill, prompt, spread, steps

from earthshine.engine import StepRow, load_model, plan_for, step
from earthshine.engine.sizes import stored_sizes
from earthshine.kv import PageTable
from earthshine.machine import DiskRate, Machine, memory_peak, own_machine, read_machine
from earthshine.plan import Forecaster, Load, PlanArgs
from earthshine.settings import read_settings
from earthshine.spec import load_spec, moe_layers
from earthshine.units import parse_bytes
from earthshine.weights import Checkpoint

SETTLING = 512  # tokens of a prompt, then of a reply, after which the slots hold what they will keep
SETTLING_STEPS = 24


class Budget:
    """A model held within one budget, and what its plan forecasts."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        machine = profile(request["machine"])
        memory = parse_bytes(request["memory"]) if request["memory"] else None
        room = max([*request["contexts"], *request["prompts"], SETTLING]) + 256
        checkpoint = Checkpoint.open(Path(request["model"]), load_spec(Path(request["model"])))
        self.plan = plan_for(checkpoint, PlanArgs(memory, room, skew=request["skew"]), machine)
        self.spec, self.machine = checkpoint.spec, machine
        self.sizes = stored_sizes(checkpoint, "bf16", "bf16")
        self.costs = Forecaster(self.spec, self.sizes, self.plan.memory, machine)
        self.model = load_model(Path(request["model"]), self.plan)
        self.session = self.model.session()
        self.disk = experts_on_disk(checkpoint) if self.plan.memory.transit_slots else None

    def points(self) -> Iterator[dict[str, Any]]:
        yield from self.prompts()
        self.session.sync(prompt(SETTLING, 99))
        steps(self.session, SETTLING_STEPS)
        yield from self.contexts()
        self.session.clear()
        yield from self.batches()

    def prompts(self) -> Iterator[dict[str, Any]]:
        """Where experts stream, slots are empty at first, so only the first run counts."""
        streams = self.plan.memory.transit_slots > 0
        for n_tokens in self.request["prompts"]:
            seconds, before = [], self.read()
            for repeat in range(1 if streams else self.request["repeats"]):
                self.session.clear()
                began = time.perf_counter()
                self.session.sync(prompt(n_tokens, repeat))
                seconds.append(time.perf_counter() - began)
            cost = self.costs.prompt(n_tokens, self.request["skew"])
            yield point("prompt", n_tokens, seconds, cost.seconds, self.read() - before, cost.disk_bytes)

    def contexts(self) -> Iterator[dict[str, Any]]:
        for context in self.request["contexts"]:
            self.session.clear()
            if context:
                fill(self.session, context)
            else:
                self.session.sync(prompt(16))
            steps(self.session, 3)
            before = self.read()
            seconds = steps(self.session, self.request["tokens"])
            yield self.decoded("decode", context, seconds, before, Load(max(context, 16), 1, self.request["skew"]))

    def batches(self) -> Iterator[dict[str, Any]]:
        """Decode steps of several short sequences."""
        pool, decoder = self.session._page_table.pool, self.model.decoder
        for batch in self.request["batches"]:
            page_tables = [PageTable(pool) for _ in range(batch)]
            tokens = [prompt(self.request["tokens"] + 10, seed) for seed in range(batch)]
            step(decoder, [StepRow(t, ids[:8]) for t, ids in zip(page_tables, tokens, strict=True)])
            seconds, before = [], self.read()
            for at in range(8, 8 + self.request["tokens"]):
                began = time.perf_counter()
                rows = step(decoder, [StepRow(t, [ids[at]]) for t, ids in zip(page_tables, tokens, strict=True)])
                decoder.logits(torch.cat(rows))
                seconds.append(time.perf_counter() - began)
            yield self.decoded("batch", batch, seconds, before, Load(16, batch, self.request["skew"]))
            for page_table in page_tables:
                page_table.release()

    def decoded(self, what: str, at: int, seconds: list[float], before: int, load: Load) -> dict[str, Any]:
        """The point of steps that began when `before` bytes had been read."""
        nbytes = (self.read() - before) / len(seconds)
        cost = by_profile = self.costs.decode(load)
        if self.disk is not None:
            layers = sum(1 for _ in moe_layers(self.spec))
            reads = max(1, round(nbytes / layers / self.sizes.expert))
            own = self.disk.rate(4 * layers, reads, statistics.median(seconds) / layers / 2)
            machine = replace(self.machine, disk=(DiskRate(self.sizes.expert, 2, own),))
            cost = Forecaster(self.spec, self.sizes, self.plan.memory, machine).decode(load)
        found = point(what, at, seconds, cost.seconds, nbytes, cost.disk_bytes)
        return found | {"profile_forecast": by_profile.seconds}

    def read(self) -> int:
        """Bytes from disk so far."""
        streamed: int = self.model.decoder.trunk.bytes_streamed
        return self.model.experts.stats.bytes_read + streamed


def profile(path: str | None) -> Machine:
    machine = read_machine(Path(path)) if path else own_machine(read_settings().profile)
    if machine is None:
        raise SystemExit("this machine's rates are not known; run earthshine bench machine first")
    return machine


def point(
    what: str, at: int, seconds: list[float], forecast: float, nbytes: float, bytes_forecast: float
) -> dict[str, Any]:
    found = {"what": what, "at": at, "seconds": spread(seconds), "forecast": forecast}
    return found | {"bytes": nbytes, "bytes_forecast": bytes_forecast}


def main() -> None:
    budget = Budget(json.loads(sys.argv[1]))
    points = list(budget.points())
    peak = memory_peak()
    memory = budget.plan.memory
    found = {"budget": memory.budget_bytes, "planned": memory.planned_bytes, "peak": peak, "points": points}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
