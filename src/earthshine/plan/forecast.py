"""What a step costs on a machine: seconds of a decoded token and of a prompt, and what bounds them.

Invariant: a forecast follows from the spec, a memory plan and a machine's measured rates alone; every second in
it belongs to one part and one bound. Weights are read from memory once per step and multiplied at the machine's rate
for that number of rows; attention reads cached rows as they lie (latents absorbed); experts that are not held come from
disk while those that are held compute.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from earthshine.machine import Machine
from earthshine.plan.budget import MemoryPlan
from earthshine.plan.routing import SKEW, Routing
from earthshine.plan.sizes import Sizes
from earthshine.spec.footprint import expert_bytes, expert_params
from earthshine.spec.layout import layer_tensors
from earthshine.spec.model import LayerSpec, ModelSpec, MoeSpec
from earthshine.spec.tensor import Use

READ_DEPTH = 2  # the store's reading threads
_COMPUTE_SHARE = 0.6  # of a format's best rate, from which on a product is bound by computing, not by memory


@dataclass(frozen=True, slots=True)
class Load:
    """One step's work: sequences that decode together, each attending to `context_tokens`. `skew`: see plan.routing."""

    context_tokens: int
    batch: int = 1
    skew: float = SKEW


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one step of decoding, or of one whole prompt."""

    tokens: int  # generated, one per sequence; or of the prompt
    seconds: float
    bound: str  # "disk", "memory", "compute" or "overhead": what takes most of the time
    disk_bytes: float  # of experts and of the trunk
    hit_share: float  # of the experts that were chosen, those already in memory
    parts: Mapping[str, float]  # seconds of each part by itself; reading and computing overlap

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


@dataclass(slots=True)
class _Clock:
    """Adds up what a step costs, or all chunks of a prompt: seconds also by part and by bound."""

    seconds: float = 0.0
    disk_bytes: float = 0.0
    asked: float = 0.0  # experts
    missed: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)

    def add(self, part: str, bound: str, seconds: float) -> float:
        self.parts[part] = self.parts.get(part, 0.0) + seconds
        self.bounds[bound] = self.bounds.get(bound, 0.0) + seconds
        return seconds

    def cost(self, tokens: int) -> Cost:
        """All that was added up, as the cost of `tokens` tokens."""
        bound = max(self.bounds, key=lambda name: self.bounds[name])
        hits = 1 - self.missed / self.asked if self.asked else 1.0
        return Cost(tokens, self.seconds, bound, self.disk_bytes, hits, dict(self.parts))


@dataclass(frozen=True, slots=True)
class _Kind:
    """Layers that are alike: how many there are, and their trunk's values by the form they are multiplied in."""

    layer: LayerSpec
    count: int
    values: Mapping[str, int]


class Forecaster:
    """Costs of one model on one machine under one memory plan."""

    def __init__(
        self, spec: ModelSpec, sizes: Sizes, memory: MemoryPlan, machine: Machine, trunk: str = "bf16"
    ) -> None:
        self._spec, self._sizes, self._memory, self._machine = spec, sizes, memory, machine
        form = "int8" if trunk == "int8" else spec.trunk_storage.value_type
        self._head_form = "int8" if trunk == "int8" else "bf16"
        self._kinds = [
            _Kind(layer, count, _values(layer, spec.hidden, form)) for layer, count in Counter(spec.layers).items()
        ]

    def decode(self, load: Load) -> Cost:
        """One decode step, a token for every sequence of `load`, with the expert cache in its steady state."""
        clock, attended = _Clock(), float(load.context_tokens * load.batch)
        self._pass(clock, load.batch, attended, 1, load.batch, load.skew, self._held())
        return clock.cost(load.batch)

    def prompt(self, n_tokens: int, skew: float = SKEW) -> Cost:
        """A first prompt, from empty slots to its first token's logits, in passes of the plan's length."""
        clock, chunk = _Clock(), self._memory.prefill_tokens
        for begin in range(0, n_tokens, chunk):
            end = min(begin + chunk, n_tokens)
            last = 1 if end == n_tokens else 0
            held = self._held() if begin or not self._streams_experts() else 0
            attended = (end - begin) * (begin + end + 1) / 2
            self._pass(clock, end - begin, attended, end - begin, last, skew, held)
        return clock.cost(n_tokens)

    def _held(self) -> int:
        return self._memory.slots_per_layer

    def _streams_experts(self) -> bool:
        return self._memory.transit_slots > 0

    def _pass(
        self, clock: _Clock, rows: int, attended: float, together: int, head_rows: int, skew: float, held: int
    ) -> None:
        """Adds `rows` tokens through every layer, then the head for `head_rows` of them.

        attended: cached rows that they attend to, all added up. together: tokens that attend to the same rows.
        """
        seconds, streamed = 0.0, sum(self._sizes.streamed_units[name] for name in self._memory.streamed)
        reading = streamed / self._machine.disk_rate(8 << 20, READ_DEPTH)
        clock.disk_bytes += streamed
        for kind in self._kinds:
            seconds += self._trunk_seconds(clock, kind, rows, attended, together)
            if not isinstance(kind.layer.ffn, MoeSpec):
                continue
            moe = kind.layer.ffn
            routing = Routing(moe.n_experts, moe.top_k, skew)
            distinct, misses = routing.distinct(rows), routing.distinct(rows, min(held, moe.n_experts))
            nbytes = misses * expert_bytes(self._spec.hidden, moe, self._spec.expert_storage)
            read = nbytes / self._machine.disk_rate(self._sizes.expert, READ_DEPTH)
            clock.asked += kind.count * distinct
            clock.missed += kind.count * misses
            clock.disk_bytes += kind.count * nbytes
            reading += kind.count * read
            seconds += self._experts_seconds(clock, kind, rows, distinct, misses, read)
        seconds += self._product(clock, "head", self._head_form, self._spec.vocab_size * self._spec.hidden, head_rows)
        clock.add("disk", "disk", reading)
        clock.seconds += max(seconds, reading)  # what streams of the trunk is read whenever the disk is idle

    def _trunk_seconds(self, clock: _Clock, kind: _Kind, rows: int, attended: float, together: int) -> float:
        machine, n = self._machine, kind.count
        seconds = sum(self._product(clock, "trunk", form, n * size, rows) for form, size in kind.values.items())
        attention = kind.layer.attention
        rate = machine.attention_flops(attention.score_rows * together)
        flops = n * 2 * (attention.decode_macs * attended + attention.token_macs * rows)
        seconds += clock.add("attention", _bound(rate, machine.attention[-1][1]), flops / rate)
        seconds += clock.add("overhead", "overhead", n * machine.layer_seconds)
        return seconds + clock.add("activations", "memory", n * rows * self._sizes.activation / machine.memory_read)

    def _experts_seconds(
        self, clock: _Clock, kind: _Kind, rows: int, distinct: float, misses: float, read: float
    ) -> float:
        """Hits compute while misses are read, and misses as they arrive; the last one's computing is not hidden."""
        moe = kind.layer.ffn
        assert isinstance(moe, MoeSpec)
        values = kind.count * expert_params(self._spec.hidden, moe) * distinct
        form = self._spec.expert_storage.value_type
        computing = self._product(clock, "experts", form, values, rows * moe.top_k / distinct)
        return max(computing, kind.count * read + computing / distinct) if misses else computing

    def _product(self, clock: _Clock, part: str, form: str, values: float, rows: float) -> float:
        """Seconds to multiply a weight of `values` numbers by `rows` rows of activations."""
        if not rows:
            return 0.0
        rate = self._machine.product_flops(form, rows)
        return clock.add(part, _bound(rate, self._machine.products[form][-1][1]), 2 * values * rows / rate)


@lru_cache(maxsize=256)
def _values(layer: LayerSpec, hidden: int, form: str) -> Mapping[str, int]:
    """The router and what attention splits by head are bf16 whatever the rest of the trunk is."""
    values: dict[str, int] = {}
    for tensor in layer_tensors(0, layer, hidden):
        if len(tensor.shape) == 2:
            its = form if tensor.use is Use.STORED else "bf16"
            values[its] = values.get(its, 0) + tensor.size
    return values


def _bound(rate: float, best: float) -> str:
    return "compute" if rate >= _COMPUTE_SHARE * best else "memory"
