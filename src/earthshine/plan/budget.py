"""How a memory budget is divided: the process, pages, activations, the trunk, then experts.

Invariant: the parts of a MemoryPlan add up to no more than the budget. The trunk comes before experts, since a token
needs all of the trunk and 2% of the experts; where it does not fit, as many layers as possible stay and the others
stream. Refuses a budget that can't work, naming the smallest that does and what takes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from earthshine.errors import UsageError
from earthshine.plan.args import PlanArgs
from earthshine.plan.sizes import Sizes
from earthshine.spec.attention import STATES_PER_SEQUENCE
from earthshine.storage import PAGE_TOKENS, page_count
from earthshine.units import format_bytes

NEW_PLAN = "create a new one with earthshine plan --save"
MARGIN_BYTES = 224 << 20  # allocators' rest, tokenizer, sampling; measured peaks are below their sum (docs/numbers.md)
WORKSPACE_BYTES = 192 << 20  # 64 MiB of experts' outputs, 64 of attention's partial sums, and the kernels' packed rows
TRANSIT_SLOTS = 8  # experts on their way from disk: two keep it busy, and a token's misses fit at once
CONTEXT_TOKENS, LEAST_CONTEXT = 32768, 2048  # of a sequence: most and least that are chosen by default
PREFILL_TOKENS = (256, 8192)  # of one prefill pass: fewest, most
EASY_PREFILL = 2048  # of them before anything else has its share


# What the budget is divided among.
PARTS = (
    *("process", "margin", "workspace", "cache pages", "recurrent states", "activations"),
    *("trunk", "embedding", "trunk buffers", "expert slots", "experts in transit"),
)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The parts of the budget. `parts`, one for each of PARTS, adds up to `planned_bytes`; `smallest`: the smallest
    budget that works."""

    budget_bytes: int
    context_tokens: int  # of one sequence
    batch: int  # sequences that a step computes together
    pages: int  # of storage.PAGE_TOKENS tokens, shared by all sequences
    prefill_tokens: int  # of one prefill pass
    streamed: tuple[str, ...]  # units of the trunk
    embedding_on_disk: bool
    slots_per_layer: int
    transit_slots: int
    parts: Mapping[str, int]  # bytes
    smallest: int

    @property
    def planned_bytes(self) -> int:
        return sum(self.parts.values())


def plan_memory(sizes: Sizes, budget_bytes: int, args: PlanArgs, process_bytes: int, max_context: int) -> MemoryPlan:
    """Divides `budget_bytes` among the parts of a model.

    `process_bytes`: resident memory before the model is loaded; `max_context`: the model's limit, in tokens. Raises
    UsageError for a budget that is too small; it names the smallest that works and its parts.
    """
    context, ways = least_context(args, max_context), _ways(sizes, args.may_stream)
    least = _fixed(sizes, process_bytes, args.batch, context, _least_pages(args, context), PREFILL_TOKENS[0])
    smallest = max(sum(least.values()) + min(ways), process_bytes + MARGIN_BYTES + sizes.loading)
    if budget_bytes < smallest:
        raise UsageError(_refusal(budget_bytes, smallest, context, args, least, min(ways)), "memory")
    if args.context_tokens is None:
        context = _easy_context(sizes, budget_bytes, context, max_context, budget_bytes - smallest)
    pages = _least_pages(args, context)
    if args.cache_tokens == 0:
        fixed = sum(_fixed(sizes, process_bytes, args.batch, context, pages, PREFILL_TOKENS[0]).values())
        spare = min(budget_bytes // 8, max(0, budget_bytes - max(smallest, fixed + min(ways))) // 2)
        pages = _shared_pages(sizes, args.batch, pages, spare)
    fixed = sum(_fixed(sizes, process_bytes, args.batch, context, pages, PREFILL_TOKENS[0]).values())
    prefill = _prefill_tokens(sizes, budget_bytes, budget_bytes - fixed, ways)
    parts = _fixed(sizes, process_bytes, args.batch, context, pages, prefill)
    trunk = _least_trunk(sizes) if args.may_stream else sum(sizes.units.values())
    streamed, on_disk, slots, transit = _placed(sizes, budget_bytes - sum(parts.values()), trunk)
    parts |= weight_parts(sizes, streamed, on_disk, slots, transit)
    places = (tuple(streamed), on_disk, slots, transit)
    return MemoryPlan(budget_bytes, context, args.batch, pages, prefill, *places, parts, smallest)


def least_context(args: PlanArgs, max_context: int) -> int:
    """The tokens of a sequence for which `MemoryPlan.smallest` is the smallest budget."""
    return args.context_tokens or min(max_context, LEAST_CONTEXT)


def check_memory(memory: MemoryPlan, sizes: Sizes, process_bytes: int) -> None:
    """Raises UsageError where `memory` does not fit the model, or exceeds its budget with these files."""
    if set(memory.streamed) - set(sizes.units):
        raise UsageError(f"The plan streams layers that this model does not have; {NEW_PLAN}.")
    n_experts, slots = max(sizes.experts, default=0), memory.slots_per_layer
    if slots > n_experts:
        raise UsageError(
            f"The plan's slots_per_layer must be 0 to {n_experts} for this model, not {slots}; {NEW_PLAN}."
        )
    if memory.transit_slots == 0 and slots < n_experts:
        raise UsageError(
            f"The plan's transit_slots must be at least 1, because slots_per_layer is {slots} and a layer has "
            f"{n_experts} experts; {NEW_PLAN}."
        )
    parts = _fixed(
        sizes, process_bytes, memory.batch, memory.context_tokens, memory.pages, memory.prefill_tokens
    ) | weight_parts(
        sizes, list(memory.streamed), memory.embedding_on_disk, memory.slots_per_layer, memory.transit_slots
    )
    needed = max(sum(parts.values()), process_bytes + MARGIN_BYTES + sizes.loading)
    if needed > memory.budget_bytes:
        raise UsageError(
            f"The plan takes {format_bytes(needed)} with these files in this process, but its budget is "
            f"{format_bytes(memory.budget_bytes)}; {NEW_PLAN}."
        )


def weight_parts(sizes: Sizes, streamed: list[str], on_disk: bool, slots: int, transit: int) -> dict[str, int]:
    """Bytes of the weights in memory, by part."""
    held = sum(min(slots, n) for n in sizes.experts)
    return {
        "trunk": sum(size for name, size in sizes.units.items() if name not in streamed),
        "embedding": 0 if on_disk else sizes.embedding,
        "trunk buffers": _stream_bytes(sizes, streamed),
        "expert slots": held * sizes.expert,
        "experts in transit": transit * sizes.expert,
    }


def _fixed(sizes: Sizes, process_bytes: int, batch: int, context: int, pages: int, prefill: int) -> dict[str, int]:
    """All but the weights."""
    return {
        "process": process_bytes,
        "margin": MARGIN_BYTES,
        "workspace": WORKSPACE_BYTES + batch * sizes.logits + context * sizes.gathered,
        "cache pages": pages * PAGE_TOKENS * sizes.kept,
        "recurrent states": batch * STATES_PER_SEQUENCE * sizes.state,
        "activations": prefill * sizes.activation,
    }


def _refusal(
    budget_bytes: int, smallest: int, context: int, args: PlanArgs, least: Mapping[str, int], weights: int
) -> str:
    cache = least["cache pages"] + least["recurrent states"]
    others = sum(least.values()) - cache - least["process"]
    return (
        f"memory must be at least {-(-smallest >> 20) + 1}MiB for this model with a context of {context} tokens, "
        f"not {format_bytes(budget_bytes)}. The smallest budget that works, {format_bytes(smallest)}, is "
        f"{format_bytes(weights)} of weights, {format_bytes(cache)} of cache, {format_bytes(others)} of working "
        f"memory, and {format_bytes(least['process'])} of the process itself."
    )


def _least_pages(args: PlanArgs, context: int) -> int:
    """Of all sequences together: at least those of one with `context` tokens."""
    return max(page_count(context), page_count(args.cache_tokens))


def _shared_pages(sizes: Sizes, batch: int, one: int, spare: int) -> int:
    """Those of one sequence and what `spare` bytes hold, but no more than `batch` sequences could fill."""
    return min(one + spare // max(PAGE_TOKENS * sizes.kept, 1), batch * one)


def _easy_context(sizes: Sizes, budget_bytes: int, least: int, most: int, spare: int) -> int:
    """Up to 32768 tokens, in up to an eighth of the budget."""
    each = max(sizes.kept, 1)
    affordable = min(budget_bytes // 8 // each, least + spare // (each + sizes.gathered)) // PAGE_TOKENS * PAGE_TOKENS
    return max(least, min(most, CONTEXT_TOKENS, affordable))


def _prefill_tokens(sizes: Sizes, budget_bytes: int, left: int, ways: tuple[int, ...]) -> int:
    """Tokens of a prefill pass, of which the fewest are paid for, where `left` bytes are left for more and the weights.

    First 2048 of them; then, of what is left once the best way of holding the weights has its least, half, or all where
    nothing else wants it.
    """
    fewest, most = PREFILL_TOKENS
    prefill = fewest + _more_prefill(sizes, EASY_PREFILL - fewest, min(left - min(ways), budget_bytes // 10))
    left -= (prefill - fewest) * sizes.activation
    way = next(i for i, nbytes in enumerate(ways) if nbytes <= left)
    spare = min((left - ways[way]) // (1 if way == 0 else 2), budget_bytes // 10)
    return prefill + _more_prefill(sizes, most - prefill, spare)


def _ways(sizes: Sizes, may_stream: bool) -> tuple[int, ...]:
    """What the weights take at least, the best way first: all of them in memory, the trunk alone, or parts of it."""
    lone, several = (slots * sizes.expert if sizes.experts else 0 for slots in (2, TRANSIT_SLOTS))
    trunk = sum(sizes.units.values())
    if not may_stream:
        return _resident_bytes(sizes), trunk + lone
    return _resident_bytes(sizes), trunk + several, _least_trunk(sizes) + lone


def _more_prefill(sizes: Sizes, most: int, spare: int) -> int:
    """How many more tokens of a prompt, up to `most`, fit in `spare` bytes, in steps of 256.

    For a streamed model every doubling halves the bytes that a token of the prompt costs.
    """
    return min(most, max(spare, 0) // max(sizes.activation, 1) // 256 * 256)


def _resident_bytes(sizes: Sizes) -> int:
    return sizes.embedding + sum(sizes.units.values()) + sum(sizes.experts) * sizes.expert


def _stream_bytes(sizes: Sizes, streamed: list[str]) -> int:
    """Two buffers, so that a unit is read while another computes."""
    return 2 * max((sizes.streamed_units[name] for name in streamed), default=0)


def _least_trunk(sizes: Sizes) -> int:
    """The least memory that a trunk works in: all of it streams, or all but a head that is larger than two layers."""
    layers = [name for name in sizes.units if name != "head"]
    with_head = sizes.units.get("head", 0) + _stream_bytes(sizes, layers)
    return min(_stream_bytes(sizes, list(sizes.units)), with_head)


def _placed(sizes: Sizes, room: int, least: int) -> tuple[list[str], bool, int, int]:
    """Fills `room` bytes with the trunk, which takes `least` of them, and experts.

    Returns the units that stream, whether the embedding stays on disk, slots a layer, and slots for transit.
    """
    if _resident_bytes(sizes) <= room:
        return [], False, max(sizes.experts, default=0), 0
    spare = room - least
    transit = min(TRANSIT_SLOTS, max(2, spare // 8 // max(sizes.expert, 1))) if sizes.experts else 0
    streamed = _streamed(sizes, room - transit * sizes.expert)
    used = sum(weight_parts(sizes, streamed, True, 0, transit).values())
    each = len(sizes.experts) * sizes.expert
    slots = min((room - used) // each, max(sizes.experts)) if each else 0
    return streamed, True, slots, transit


def _streamed(sizes: Sizes, room: int) -> list[str]:
    """The units that stream: none if all fit; else as few as can be, the largest kept first and the rest spread evenly.

    Spread, because a unit is read while those between it and the one before compute.
    """
    names = list(sizes.units)
    if sum(sizes.units.values()) <= room:
        return []
    head = [name for name in names if name == "head" and sizes.units[name] + _stream_bytes(sizes, names[:-1]) <= room]
    layers = [name for name in names if name not in head]
    for kept in range(len(layers) - 1, -1, -1):
        stays = {layers[i * len(layers) // kept] for i in range(kept)} if kept else set()
        streamed = [name for name in layers if name not in stays]
        resident = sum(sizes.units[name] for name in (*head, *stays))
        if resident + _stream_bytes(sizes, streamed) <= room:
            return streamed
    return names
