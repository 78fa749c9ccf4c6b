"""A computer's rates as one frozen value, which measuring yields and planning takes, and its JSON file.

A measured profile is dated and names its machine; a described one is written from data sheets, which its `source`
names. Files are not trusted: every key must be known, every rate possible for hardware, and rows ascending. Raises
UsageError, which names the file, the field, and what would be right.
"""

import bisect
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from earthshine.errors import UsageError
from earthshine.files import written_whole
from earthshine.machine.probe import identity, memory_total
from earthshine.machine.strict import read_fields
from earthshine.untrusted import parse_object, read_file, real_path, shown

MAX_FILE_BYTES = 1 << 20
MEMORY_TOLERANCE = 0.02  # of the memory there is: another kernel keeps a little more or less of it to itself


class OtherMachine(UsageError):
    """A profile that was measured on another machine than this."""


Points = tuple[tuple[int, float], ...]  # rows, FLOP/s


@dataclass(frozen=True, slots=True)
class DiskRate:
    """Reads of `block_bytes`, `depth` at once: the bytes per second of all together."""

    block_bytes: int
    depth: int
    bytes_per_second: float


@dataclass(frozen=True, slots=True)
class Network:
    """One TCP connection: its rate, and the seconds from a small question to its answer."""

    bytes_per_second: float
    round_trip_seconds: float


@dataclass(frozen=True, slots=True)
class Machine:
    """A computer's rates.

    FLOP/s of a product at some rows of activations are 2 * the weight's values * rows / seconds, so that bytes per
    second at one row follow from the format's bytes per value.
    """

    name: str
    source: str  # where the figures come from, in a sentence or two
    measured: str | None  # ISO date; None for a described machine
    identity: Mapping[str, str | int] | None  # cpu_model, processors, memory_bytes, instruction_set; None likewise
    processors: int
    memory_bytes: int  # what a process may use
    memory_read: float  # bytes per second, all processors reading together
    disk: tuple[DiskRate, ...]  # by block, then depth
    products: Mapping[str, Points]  # by format: bf16, int4, fp8, int8; rows of activations ascend from 1
    attention: Points  # query rows that share a cached latent, heads * tokens, ascending
    layer_seconds: float  # of a decoded token in one layer, beside bytes and FLOPs: calls, norms, routing
    network: Network | None = None
    watts: float | None = None  # the whole machine under load
    price_usd: float | None = None
    device: str = "cpu"  # or "gpu": rates of hardware that Earthshine has no kernels for

    def disk_rate(self, block_bytes: int, depth: int) -> float:
        """Bytes per second of such reads: the figure of the largest block and depth that are not above these; below the
        smallest ones, theirs."""
        blocks = sorted({rate.block_bytes for rate in self.disk})
        block = blocks[max(0, bisect.bisect_right(blocks, block_bytes) - 1)]
        rates = [rate for rate in self.disk if rate.block_bytes == block]
        nearest = [rate for rate in rates if rate.depth <= depth]
        return max(nearest, key=lambda rate: rate.depth).bytes_per_second if nearest else rates[0].bytes_per_second

    def product_flops(self, form: str, rows: float) -> float:
        """FLOP/s of a product by weights of that format; raises UsageError for a format that has no figures."""
        if form not in self.products:
            known = ", ".join(self.products)
            raise UsageError(f"{shown(form)} is not a format that {self.name} has products of; it has {known}.")
        return _between(self.products[form], rows)

    def attention_flops(self, rows: float) -> float:
        """FLOP/s of attention over latents, where `rows` query rows share each."""
        return _between(self.attention, rows)


def _between(points: Points, rows: float) -> float:
    """On the line between two points in logarithms of both; beyond the first and the last, theirs."""
    at = bisect.bisect_right([point[0] for point in points], rows)
    if at in (0, len(points)):
        return points[max(0, at - 1)][1]
    (x0, y0), (x1, y1) = points[at - 1 : at + 1]
    share = math.log(rows / x0) / math.log(x1 / x0)
    return math.exp(math.log(y0) + share * math.log(y1 / y0)) if share else y0


def read_machine(path: Path) -> Machine:
    """The machine that a file of at most 1 MiB describes; `memory_bytes` may be a text such as "24GiB".

    `network`, `watts`, `price_usd` and `device` may be left out. Raises UsageError.
    """
    return _from_text(read_file(real_path(path, UsageError), shown(path), MAX_FILE_BYTES, UsageError), shown(path))


def _from_text(raw: bytes, what: str) -> Machine:
    fields = read_fields(parse_object(raw, what, UsageError), what)
    disk = tuple(DiskRate(*entry) for entry in fields.pop("disk"))
    network, device = fields.pop("network"), fields.pop("device") or "cpu"
    return Machine(disk=disk, network=None if network is None else Network(*network), device=device, **fields)


def machine_json(machine: Machine) -> str:
    """JSON that `read_machine` reads back as an equal value. Raises UsageError for a figure that is not a finite
    number."""
    fields = {name: getattr(machine, name) for name in Machine.__slots__}
    fields |= {name: dict(fields[name]) for name in ("identity", "products") if fields[name] is not None}
    fields["disk"] = [asdict(rate) for rate in machine.disk]
    fields["network"] = None if machine.network is None else asdict(machine.network)
    lines = [f"  {json.dumps(name)}: {_value_json(value)}" for name, value in fields.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def check_machine(machine: Machine) -> Machine:
    """Raises UsageError for a figure that `read_machine` would refuse."""
    return _from_text(machine_json(machine).encode(), machine.name)


def _value_json(value: object) -> str:
    """One line, but a line each entry of what holds lists or objects of several."""
    if isinstance(value, dict) and any(isinstance(entry, tuple) for entry in value.values()):
        entries, ends = [f"{json.dumps(key)}: {_line(entry)}" for key, entry in value.items()], "{}"
    elif isinstance(value, list):
        entries, ends = [_line(entry) for entry in value], "[]"
    else:
        return _line(value)
    return ends[0] + "\n    " + ",\n    ".join(entries) + "\n  " + ends[1]


def _line(value: object) -> str:
    """As json.dumps, but a number of few digits is written with few: 7.17e+10."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {_line(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_line, value)) + "]"
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UsageError(f"A machine's figure is {value}; it must be a number.")
        return f"{value:.6g}" if float(f"{value:.6g}") == value else repr(value)
    return json.dumps(value, ensure_ascii=False)


def save_machine(machine: Machine, path: Path) -> None:
    """Write the file as a whole or not at all. Creates its folder if it is absent. Raises UsageError."""
    text = machine_json(machine)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path, None) as file:
            file.write(text.encode())
    except OSError as error:
        raise UsageError(f"{shown(path)} can't be written: {error.strerror}; name another file.") from None


def described() -> Mapping[str, Path]:
    """The names and files of the machines that ship with the package."""
    folder = Path(__file__).with_name("described")
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def own_machine(path: Path) -> Machine | None:
    """The measured profile of this machine, with the memory that this process may use now; None if there is no file.

    Raises OtherMachine, which names the field, for a profile that was measured on another machine than this, and
    UsageError for a file that is none.
    """
    if not os.path.lexists(path):
        return None
    machine = read_machine(path)
    if machine.identity is None:
        raise UsageError(f"{shown(path)} describes a machine; a profile of this one is measured by {_AGAIN}.")
    for name, here in identity().items():
        there = machine.identity[name]
        same = there == here
        if name == "memory_bytes":
            same = abs(int(there) - int(here)) <= MEMORY_TOLERANCE * int(here)
        if not same:
            asks = "" if name != "instruction_set" else " (EARTHSHINE_CPU and EARTHSHINE_KERNELS count)"
            raise OtherMachine(
                f"{shown(path)} was measured on another machine: its {name} is {shown(there)}, and here it is "
                f"{shown(here)}{asks}. Measure this one with {_AGAIN}."
            )
    return replace(machine, memory_bytes=memory_total())


_AGAIN = "earthshine bench machine"
