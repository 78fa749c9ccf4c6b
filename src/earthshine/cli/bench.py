"""`earthshine bench machine`: this machine's rates, measured in under a minute and saved with the date.

Every figure is the median of several repeats and is shown with the least and the greatest. The profile is checked by
the rules of a machine's file before it is saved. A file that can't be written is refused before anything is measured.
"""

import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from earthshine import __version__, kernels
from earthshine.engine import SamplingParams, load_model
from earthshine.errors import UsageError
from earthshine.hub import GLEAM
from earthshine.kernels import measure
from earthshine.machine import (
    DiskRate,
    Machine,
    Network,
    check_machine,
    machine_json,
    memory_available,
    memory_total,
    processors,
    save_machine,
    title,
)
from earthshine.machine.disk import Rates, measure_file, measure_folder
from earthshine.machine.network import Loopback, measure_loopback
from earthshine.machine.probe import busy_seconds, identity, last_cache_bytes
from earthshine.plan import PlanArgs
from earthshine.plan.args import MOST_THREADS
from earthshine.settings import read_settings
from earthshine.spec import ModelSpec, footprint
from earthshine.spec.footprint import expert_bytes
from earthshine.spec.layout import moe_layers
from earthshine.storage import QUANTISED, Storage
from earthshine.units import counted, format_bytes
from earthshine.untrusted import shown

REPEATS = 5
PRODUCT_ROWS = (1, 4, 16, 64, 512)
ATTENTION = ((16, 1), (64, 1), (64, 256))  # heads, tokens: Moonlight's and Kimi-K2.6's
_MEMORY_BYTES = 1 << 30
_LEAST_MEMORY_BYTES = 256 << 20  # beyond most caches, and three matrices of bf16
_LAYER_TOKENS, _WARM_TOKENS = 64, 8
_BUSY = 0.1  # share of the processors' time beyond which the profile notes that other programs ran
_LEAST_SHARE = 0.25  # of a token's time in gleam, since its weights are partly in a cache and read faster


@dataclass(frozen=True, slots=True)
class _Line:
    """One row of the table: repeats in base units, and the unit they are shown in."""

    what: str
    samples: Sequence[float]
    unit: str  # as shown
    scale: float  # base units in one of those

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def text(self) -> str:
        least, middle, most = (
            f"{value / self.scale:,.1f}" for value in (min(self.samples), self.median, max(self.samples))
        )
        return f"{self.what:31} {middle:>9} {self.unit:9}  {least} to {most}"


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """The profile's file, what the disk is measured with (one of the two, or neither), and the number of threads."""

    save: Path | None = None
    folder: Path | None = None
    file: Path | None = None
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    """Every repeat of every measurement, in bytes, FLOP and seconds."""

    disk: Rates
    read: Sequence[float]
    products: Mapping[tuple[Storage, int], Sequence[float]]  # by format and rows
    attention: Mapping[tuple[int, int], Sequence[float]]  # by heads and tokens
    layer: Sequence[float]
    network: Loopback | None
    others: float  # share of the processors' time that other programs took


def run_bench_machine(options: BenchOptions, as_json: bool) -> None:
    if options.file is not None and options.folder is not None:
        raise UsageError("--file and --folder both choose the disk to measure; give one.")
    save = options.save or read_settings().profile
    threads = _threads(options.threads)
    _require_place(save)
    kernels.set_threads(threads)
    try:
        found = _measure(options, save.parent, threads)
    finally:
        _say("")
    machine = check_machine(_machine(found, options, threads))
    save_machine(machine, save)
    _show(machine, found, save, as_json)


def _measure(options: BenchOptions, beside: Path, threads: int) -> _Found:
    memory_bytes, others = _memory_bytes(), _Others()
    disk = _disk(options, beside)
    _say("memory")
    memory = measure.make_memory(memory_bytes)
    read = measure.read_rates(memory, REPEATS)
    products = {(kind, rows): _product(memory, kind, rows) for kind in Storage for rows in PRODUCT_ROWS}
    attention = {(heads, tokens): _attention(memory, heads, tokens) for heads, tokens in ATTENTION}
    read += measure.read_rates(memory, REPEATS)  # again, since on a shared machine it changes within a minute
    del memory
    layer = _layer_seconds(threads, statistics.median(read))
    _say("network")
    return _Found(disk, read, products, attention, layer, measure_loopback(), others.share())


class _Others:
    """Measures the processor time of programs other than this one, from when it is made."""

    def __init__(self) -> None:
        self._began, self._all, self._own = time.monotonic(), busy_seconds(), time.process_time()

    def share(self) -> float:
        taken = busy_seconds() - self._all - (time.process_time() - self._own)
        return max(0.0, taken) / max(time.monotonic() - self._began, 1e-9) / (os.cpu_count() or 1)


def _machine(found: _Found, options: BenchOptions, threads: int) -> Machine:
    own, network = identity(), found.network.medians() if found.network is not None else None
    return Machine(
        name=title(threads),
        source=_source(found, options, threads),
        measured=datetime.date.today().isoformat(),
        identity=own,
        processors=threads,
        memory_bytes=memory_total(),
        memory_read=_figure(found.read),
        disk=tuple(DiskRate(*key, _figure(samples)) for key, samples in sorted(found.disk.samples.items())),
        products={
            kind.value_type: tuple((rows, _figure(found.products[kind, rows])) for rows in PRODUCT_ROWS)
            for kind in Storage
        },
        attention=tuple((heads * tokens, _figure(rates)) for (heads, tokens), rates in found.attention.items()),
        layer_seconds=_figure(found.layer),
        network=network and Network(_figure([network.bytes_per_second]), _figure([network.round_trip_seconds])),
    )


def _figure(samples: Sequence[float]) -> float:
    """The median, rounded to four digits."""
    return float(f"{statistics.median(samples):.4g}")


def _threads(asked: int | None) -> int:
    if asked is not None and not 1 <= asked <= MOST_THREADS:
        raise UsageError(f"--threads must be between 1 and {MOST_THREADS}, not {shown(asked)}.")
    return asked or min(processors(), MOST_THREADS)


def _require_place(save: Path) -> None:
    """Raises UsageError if the profile can't be saved, before time is spent on measuring."""
    if save.is_dir():
        raise UsageError(f"{shown(save)} is a folder; name a file, such as {shown(save / 'machine.json')}.")
    try:
        save.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{shown(save.parent)} can't be created: {error.strerror}; name another file.") from None
    if not os.access(save.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{shown(save.parent)} can't be written; name a file in another folder with --save.")


def _memory_bytes() -> int:
    """1 GiB or eight times the last-level cache, whichever is more, but at most a quarter of the free memory."""
    wanted = max(_MEMORY_BYTES, 8 * last_cache_bytes())
    room = memory_available() // 4
    if room < _LEAST_MEMORY_BYTES:
        needed = format_bytes(4 * _LEAST_MEMORY_BYTES)
        raise UsageError(
            f"{format_bytes(4 * room)} of memory are free; measuring needs {needed} to be free and uses a quarter."
        )
    return min(wanted, room)


def _disk(options: BenchOptions, beside: Path) -> Rates:
    _say("disk")
    if options.file is not None:
        return measure_file(options.file)
    folder = options.folder or beside
    if not folder.is_dir():
        raise UsageError(f"{shown(folder)} is not a folder; name one on the disk to measure.")
    return measure_folder(folder)


def _product(memory: measure.Memory, storage: Storage, rows: int) -> list[float]:
    _say(f"products of {storage.value_type}, {rows} rows")
    # Formats of experts are measured with the call that computes experts: at one row FP8's takes a third longer.
    rates = measure.expert_rates if storage in QUANTISED else measure.linear_rates
    return rates(memory, storage, rows, REPEATS)


def _attention(memory: measure.Memory, heads: int, tokens: int) -> list[float]:
    _say(f"attention, {heads} heads")
    enough = max(_LEAST_MEMORY_BYTES, 4 * last_cache_bytes())  # sequences of 9 MiB each
    return measure.attention_rates(memory[:enough], heads, tokens, REPEATS)


def _layer_seconds(threads: int, memory_read: float) -> list[float]:
    """For each decoded token of gleam: its time minus the time to read its weights, divided by the layers."""
    _say("layers")
    model = load_model(GLEAM, PlanArgs(context_tokens=512, threads=threads))
    try:
        session = model.session()
        session.sync(list(range(5, 21)))
        seconds, last = [], time.perf_counter()
        for _ in session.generate(SamplingParams(max_tokens=_LAYER_TOKENS, ignore_eos=True)):
            now = time.perf_counter()
            seconds.append(now - last)
            last = now
    finally:
        model.close()
    explained = _token_bytes(model.spec) / memory_read
    rest = [max(each - explained, _LEAST_SHARE * each) for each in seconds[_WARM_TOKENS:_LAYER_TOKENS]]
    return [each / model.spec.n_layers for each in rest]


def _token_bytes(spec: ModelSpec) -> int:
    """Bytes that a decoded token reads: the trunk without the embedding table, and the token's experts."""
    experts = sum(moe.top_k * expert_bytes(spec.hidden, moe, spec.expert_storage) for _, moe in moe_layers(spec))
    return footprint(spec).trunk_bytes["bf16"] - 2 * spec.vocab_size * spec.hidden + experts


def _source(found: _Found, options: BenchOptions, threads: int) -> str:
    served = next(each.name for each in kernels.implementations() if each.operation == "linear")
    file = "an existing file" if options.file is not None else "a file written for it"
    way = "past the page cache" if found.disk.direct else "through the page cache after dropping its pages"
    sentences = [
        f"Measured by earthshine {__version__} with {threads} threads and {served} kernels.",
        f"Disk: with {file}, read {way}.",
        "Network: over loopback." if found.network else "Network: could not be measured.",
    ]
    if found.others > _BUSY:
        sentences.append(f"Other programs used {found.others:.0%} of the processors; an idle machine is faster.")
    return " ".join(sentences)


def _lines(found: _Found) -> Iterator[_Line]:
    for (block, depth), taken in sorted(found.disk.samples.items()):
        yield _Line(f"disk, {format_bytes(block)}, depth {depth}", taken, "GB/s", 1e9)
    yield _Line("memory", found.read, "GB/s", 1e9)
    for (storage, rows), samples in found.products.items():
        yield _Line(f"{storage.value_type}, {counted(rows, 'row')}", samples, "GFLOP/s", 1e9)
    for (heads, tokens), samples in found.attention.items():
        yield _Line(f"attention, {heads} heads, {counted(tokens, 'token')}", samples, "GFLOP/s", 1e9)
    yield _Line("overhead per layer", found.layer, "us", 1e-6)
    if found.network is not None:
        yield _Line("network, loopback", found.network.rates, "GB/s", 1e9)
        yield _Line("network, round trip", found.network.round_trips, "us", 1e-6)


def _show(machine: Machine, found: _Found, save: Path, as_json: bool) -> None:
    lines = list(_lines(found))
    if as_json:
        spread = [
            {"what": line.what, "median": line.median, "least": min(line.samples), "most": max(line.samples)}
            for line in lines
        ]
        print(json.dumps({"machine": json.loads(machine_json(machine)), "spread": spread, "saved": str(save)}))
        return
    print(f"{machine.name}\n{machine.source}\n")
    print(f"{'what':31} {'median':>9} {'':9}  least to most")
    for line in lines:
        print(line.text())
    if found.others > _BUSY:
        print("\nMeasure again when no other programs run.")
    print(f"\nsaved as {save}")


def _say(what: str) -> None:
    """Show on a terminal what is being measured, in a line that the next one replaces."""
    if sys.stderr is not None and sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[Kmeasuring: {what}" if what else "\r\x1b[K")
        sys.stderr.flush()
