"""A plain division of the memory that a person grants: the process, pages, activations, the trunk, then experts.

The invariant: the parts of a Division add up to no more than the budget. The trunk comes before experts, since a token
needs all of the trunk and 2% of the experts; where it does not fit, as many layers as do stay and the others stream.
Refuses a budget that can't work, naming the smallest that does.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from earthshine.errors import UsageError
from earthshine.units import format_bytes

MARGIN_BYTES = 224 << 20  # allocators' rest, tokenizer, sampling; measured peaks lie below their sum (docs/numbers.md)
WORKSPACE_BYTES = 192 << 20  # 64 MiB of experts' outputs, 64 of attention's partial sums, and the kernels' packed rows
TRANSIT_SLOTS = 8  # experts on their way from disk: two keep it busy, and a token's misses fit at once
CONTEXT_TOKENS, LEAST_CONTEXT = 32768, 2048  # of a conversation, where no number was asked for
PREFILL_TOKENS = (256, 8192)  # of a prompt that pass through the model together: fewest, most
EASY_PREFILL = 2048  # of them before anything else has its share


@dataclass(frozen=True, slots=True)
class Sizes:
    """A model's parts in bytes, in the form in which they would lie in memory."""

    units: Mapping[str, int]  # of the trunk: each layer and the head, in order
    streamed_units: Mapping[str, int]  # the same as published, which is how they stream
    embedding: int
    expert: int  # a slot
    experts: tuple[int, ...]  # how many there are in each sparse layer
    latent: int  # of one token in all layers
    activation: int  # of one token of a prompt on its way through the model
    logits: int  # of one token
    loading: int = 0  # the most that the trunk takes while it is brought into this form, before anything else is there


@dataclass(frozen=True, slots=True)
class Division:
    """What goes where. `smallest` is the least budget that would do for the same context."""

    budget_bytes: int
    process: int  # Python, torch and what is open already
    context_tokens: int
    prefill_tokens: int
    streamed: tuple[str, ...]  # units of the trunk
    embedding_on_disk: bool
    slots_per_layer: int
    transit_slots: int
    planned_bytes: int
    smallest: int


def divide(
    sizes: Sizes,
    budget_bytes: int,
    process: int,
    max_context: int,
    context_tokens: int | None,
    may_stream: bool = True,
) -> Division:
    """Raises UsageError, naming the smallest budget that works, where `budget_bytes` is less.

    `process`: bytes that the process holds already; `context_tokens`: asked for, or None for what the budget allows
    easily; `may_stream`: whether units of the trunk may.
    """
    wanted = context_tokens or min(max_context, LEAST_CONTEXT)
    fixed = process + MARGIN_BYTES + WORKSPACE_BYTES + sizes.logits
    fixed += wanted * sizes.latent + PREFILL_TOKENS[0] * sizes.activation
    ways = _ways(sizes, may_stream)
    smallest = max(fixed + min(ways), process + MARGIN_BYTES + sizes.loading)
    if budget_bytes < smallest:
        raise UsageError(
            f"{format_bytes(budget_bytes)} of memory are too few for this model; the smallest budget that works with a "
            f"context of {wanted} tokens is {format_bytes(smallest)}: --memory {-(-smallest >> 20) + 1}MiB."
        )
    context = context_tokens or _easy_context(sizes, budget_bytes, max_context, wanted, budget_bytes - smallest)
    fixed += (context - wanted) * sizes.latent
    left = budget_bytes - fixed
    spare = min(left - min(ways), budget_bytes // 10)
    prefill = PREFILL_TOKENS[0] + _more_prefill(sizes, EASY_PREFILL - PREFILL_TOKENS[0], spare)
    left -= (prefill - PREFILL_TOKENS[0]) * sizes.activation
    # What is left once the best way has its least: half of it for longer prompts, unless nothing else wants it.
    way = next(i for i, nbytes in enumerate(ways) if nbytes <= left)
    spare = min((left - ways[way]) // (1 if way == 0 else 2), budget_bytes // 10)
    more = _more_prefill(sizes, PREFILL_TOKENS[1] - prefill, spare)
    left -= more * sizes.activation
    least = _least_trunk(sizes) if may_stream else sum(sizes.units.values())
    return _placed(sizes, budget_bytes, process, context, prefill + more, left, least, smallest)


def _easy_context(sizes: Sizes, budget_bytes: int, max_context: int, least: int, spare: int) -> int:
    """To 32768 tokens, and to an eighth of the budget."""
    affordable = min(budget_bytes // 8 // max(sizes.latent, 1), least + spare // max(sizes.latent, 1))
    return max(least, min(max_context, CONTEXT_TOKENS, affordable))


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


def _placed(
    sizes: Sizes,
    budget_bytes: int,
    process: int,
    context: int,
    prefill: int,
    room: int,
    least: int,
    smallest: int,
) -> Division:
    """Fills `room` bytes with the trunk, which takes `least` of them, and experts."""
    streamed: list[str] = []
    embedding_on_disk, slots, transit = False, max(sizes.experts, default=0), 0
    used = _resident_bytes(sizes)
    if used > room:
        embedding_on_disk = True
        spare = room - least
        transit = min(TRANSIT_SLOTS, max(2, spare // 8 // max(sizes.expert, 1))) if sizes.experts else 0
        streamed = _streamed(sizes, room - transit * sizes.expert)
        trunk = sum(size for name, size in sizes.units.items() if name not in streamed)
        used = trunk + _stream_bytes(sizes, streamed) + transit * sizes.expert
        each = len(sizes.experts) * sizes.expert
        slots = min((room - used) // each, max(sizes.experts)) if each else 0
        used += slots * each
    planned = budget_bytes - room + used
    return Division(
        budget_bytes, process, context, prefill, tuple(streamed), embedding_on_disk, slots, transit, planned, smallest
    )


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
