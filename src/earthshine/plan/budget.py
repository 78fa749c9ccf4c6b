"""The division of the memory that a person grants: the process, pages, activations, the trunk, then experts.

The invariant: the parts of a Division add up to no more than the budget. The trunk comes before experts, since a token
needs all of the trunk and 2% of the experts; where it does not fit, as many layers as do stay and the others stream.
Refuses a budget that can't work, naming the smallest that does and what takes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from earthshine.errors import UsageError
from earthshine.plan.sizes import Sizes
from earthshine.spec.attention import STATES_PER_SEQUENCE
from earthshine.storage import PAGE_TOKENS, page_count
from earthshine.units import format_bytes

MARGIN_BYTES = 224 << 20  # allocators' rest, tokenizer, sampling; measured peaks lie below their sum (docs/numbers.md)
WORKSPACE_BYTES = 192 << 20  # 64 MiB of experts' outputs, 64 of attention's partial sums, and the kernels' packed rows
TRANSIT_SLOTS = 8  # experts on their way from disk: two keep it busy, and a token's misses fit at once
CONTEXT_TOKENS, LEAST_CONTEXT = 32768, 2048  # of a conversation, where no number was asked for
PREFILL_TOKENS = (256, 8192)  # of a prompt that pass through the model together: fewest, most
EASY_PREFILL = 2048  # of them before anything else has its share


@dataclass(frozen=True, slots=True)
class Division:
    """What goes where. `parts` adds up to `planned_bytes`; `smallest` is the least budget that would do as well."""

    budget_bytes: int
    context_tokens: int  # of one conversation
    batch: int  # conversations that are computed at once
    pages: int  # of PAGE_TOKENS tokens, which all conversations share
    prefill_tokens: int
    streamed: tuple[str, ...]  # units of the trunk
    embedding_on_disk: bool
    slots_per_layer: int
    transit_slots: int
    parts: Mapping[str, int]  # bytes
    smallest: int

    @property
    def planned_bytes(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a division is asked for. `context_tokens` None: what the budget allows easily; `cache_tokens`: of all
    conversations' pages, None for as many as `batch` full contexts have, 0 for those of one and of an eighth of the
    budget; `process`: bytes that the process holds before the model; `may_stream`: whether units of the trunk may."""

    process: int
    max_context: int
    context_tokens: int | None = None
    batch: int = 1
    may_stream: bool = True
    cache_tokens: int | None = None

    def pages(self, context: int) -> int:
        """At least those of one conversation of `context` tokens."""
        each = page_count(context)
        return self.batch * each if self.cache_tokens is None else max(each, page_count(self.cache_tokens))


def divide(sizes: Sizes, budget_bytes: int, wanted: Wanted) -> Division:
    """Raises UsageError, naming the smallest budget that works and what takes it, where `budget_bytes` is less."""
    context = wanted.context_tokens or min(wanted.max_context, LEAST_CONTEXT)
    least = _fixed(sizes, wanted, context, PREFILL_TOKENS[0])
    ways = _ways(sizes, wanted.may_stream)
    smallest = max(sum(least.values()) + min(ways), wanted.process + MARGIN_BYTES + sizes.loading)
    if budget_bytes < smallest:
        raise UsageError(_refusal(budget_bytes, smallest, context, wanted, least, min(ways)))
    if wanted.context_tokens is None:
        context = _easy_context(sizes, budget_bytes, wanted, context, budget_bytes - smallest)
    if wanted.cache_tokens == 0:
        taken = max(smallest, sum(_fixed(sizes, wanted, context, PREFILL_TOKENS[0]).values()) + min(ways))
        spare = min(budget_bytes // 8, max(0, budget_bytes - taken) // 2)
        wanted = replace(wanted, cache_tokens=_shared_tokens(sizes, wanted, context, spare))
    left = budget_bytes - sum(_fixed(sizes, wanted, context, PREFILL_TOKENS[0]).values())
    spare = min(left - min(ways), budget_bytes // 10)
    prefill = PREFILL_TOKENS[0] + _more_prefill(sizes, EASY_PREFILL - PREFILL_TOKENS[0], spare)
    left -= (prefill - PREFILL_TOKENS[0]) * sizes.activation
    # What is left once the best way has its least: half of it for longer prompts, unless nothing else wants it.
    way = next(i for i, nbytes in enumerate(ways) if nbytes <= left)
    spare = min((left - ways[way]) // (1 if way == 0 else 2), budget_bytes // 10)
    prefill += _more_prefill(sizes, PREFILL_TOKENS[1] - prefill, spare)
    fixed = _fixed(sizes, wanted, context, prefill)
    trunk = _least_trunk(sizes) if wanted.may_stream else sum(sizes.units.values())
    streamed, on_disk, slots, transit = _placed(sizes, budget_bytes - sum(fixed.values()), trunk)
    parts = fixed | weight_parts(sizes, streamed, on_disk, slots, transit)
    return Division(
        budget_bytes,
        context,
        wanted.batch,
        wanted.pages(context),
        prefill,
        tuple(streamed),
        on_disk,
        slots,
        transit,
        parts,
        smallest,
    )


def check_division(division: Division, sizes: Sizes, process: int) -> None:
    """Raises UsageError where what `division` asks for takes more than its budget, as with files of another layout."""
    if set(division.streamed) - set(sizes.units):
        raise UsageError("The plan streams layers that this model does not have; make it anew with earthshine plan.")
    wanted = Wanted(process, 0, division.context_tokens, division.batch, cache_tokens=division.pages * PAGE_TOKENS)
    parts = _fixed(sizes, wanted, division.context_tokens, division.prefill_tokens) | weight_parts(
        sizes, list(division.streamed), division.embedding_on_disk, division.slots_per_layer, division.transit_slots
    )
    needed = max(sum(parts.values()), process + MARGIN_BYTES + sizes.loading)
    if needed > division.budget_bytes:
        raise UsageError(
            f"The plan takes {format_bytes(needed)} with these files in this process, but its budget is "
            f"{format_bytes(division.budget_bytes)}; make it anew with earthshine plan."
        )


def weight_parts(sizes: Sizes, streamed: list[str], on_disk: bool, slots: int, transit: int) -> dict[str, int]:
    """Bytes of what a choice of places holds of the weights."""
    held = sum(min(slots, n) for n in sizes.experts)
    return {
        "trunk": sum(size for name, size in sizes.units.items() if name not in streamed),
        "embedding": 0 if on_disk else sizes.embedding,
        "trunk buffers": _stream_bytes(sizes, streamed),
        "expert slots": held * sizes.expert,
        "experts in transit": transit * sizes.expert,
    }


def _fixed(sizes: Sizes, wanted: Wanted, context: int, prefill: int) -> dict[str, int]:
    """All but the weights."""
    return {
        "process": wanted.process,
        "margin": MARGIN_BYTES,
        "workspace": WORKSPACE_BYTES + wanted.batch * sizes.logits + context * sizes.gathered,
        "cache pages": wanted.pages(context) * PAGE_TOKENS * sizes.kept,
        "recurrent states": wanted.batch * STATES_PER_SEQUENCE * sizes.state,
        "activations": prefill * sizes.activation,
    }


def _refusal(
    budget_bytes: int, smallest: int, context: int, wanted: Wanted, least: Mapping[str, int], weights: int
) -> str:
    pages = least["cache pages"]
    pages += least["recurrent states"]
    others = sum(least.values()) - pages - wanted.process
    each = f" for each of {wanted.batch} conversations" if wanted.batch > 1 and wanted.cache_tokens is None else ""
    return (
        f"{format_bytes(budget_bytes)} of memory are too few for this model; the smallest budget that works with a "
        f"context of {context} tokens{each} is {format_bytes(smallest)}: --memory {-(-smallest >> 20) + 1}MiB. Of it "
        f"{format_bytes(weights)} are weights, {format_bytes(pages)} the context, {format_bytes(others)} room to "
        f"compute in, {format_bytes(wanted.process)} the process itself."
    )


def _shared_tokens(sizes: Sizes, wanted: Wanted, context: int, spare: int) -> int:
    """Of one conversation and of `spare` bytes more, but no more than all conversations could fill."""
    one = wanted.pages(context) * PAGE_TOKENS
    return min(one + spare // max(sizes.kept, 1), wanted.batch * one)


def _easy_context(sizes: Sizes, budget_bytes: int, wanted: Wanted, least: int, spare: int) -> int:
    """To 32768 tokens, and all conversations together to an eighth of the budget."""
    each = max(sizes.kept, 1) * (wanted.batch if wanted.cache_tokens is None else 1)
    affordable = min(budget_bytes // 8 // each, least + spare // (each + sizes.gathered)) // PAGE_TOKENS * PAGE_TOKENS
    return max(least, min(wanted.max_context, CONTEXT_TOKENS, affordable))


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
