"""A profile made from `plan`'s forecast, for any model on any described or measured machine."""

import math
from itertools import accumulate

from earthshine.errors import UsageError
from earthshine.plan.explore import Case
from earthshine.plan.forecast import Load
from earthshine.prfaas.curve import Curve
from earthshine.prfaas.profile import Profile
from earthshine.spec import ModelSpec
from earthshine.storage import BF16_BYTES

_PER_OCTAVE = 4  # lengths: a curve of the second degree is then met within 1% between them


def forecast_profile(case: Case, longest: int, usd_per_hour: float) -> Profile:
    """One machine that serves prompts of up to `longest` tokens under one plan, an instance of its own.

    Decode steps are forecast for sequences of half that length, for 1 to `case.args.batch` of them.

    Raises UsageError where the machine's memory can't hold a context of that length.
    """
    held = case.with_context(longest)
    if held is None:
        raise UsageError(f"A prompt of {longest} tokens does not fit {case.machine.name}'s memory with this model.")
    return held_profile(held, longest, usd_per_hour)


def held_profile(held: Case, longest: int, usd_per_hour: float = 0.0) -> Profile:
    """The same for a plan that has room for `longest` tokens."""
    costs, spec, skew, args = held.costs(), held.spec, held.args.skew, held.args
    steps = math.ceil(_PER_OCTAVE * math.log2(longest))
    sizes = sorted({1, longest, *(round(longest ** (i / steps)) for i in range(1, steps))})
    seconds = accumulate((costs.prompt(size, skew).seconds for size in sizes), max)
    batches = sorted({args.batch, *(1 << i for i in range(args.batch.bit_length()))})
    loads = [Load(max(1, longest // 2), batch, skew) for batch in batches]
    step_seconds = accumulate((costs.decode(load).seconds for load in loads), max)
    cache, recurrent = cache_curve(spec, longest)
    return Profile(
        name=held.machine.name,
        source=f"Forecast by earthshine plan for {held.plan.model} on {held.machine.name}.",
        prefill=Curve(tuple(zip(map(float, sizes), seconds, strict=True))),
        cache=cache,
        decode=Curve(tuple(zip((float(load.batch) for load in loads), step_seconds, strict=True))),
        batch=args.batch,
        recurrent=recurrent,
        usd_per_hour=usd_per_hour,
    )


def cache_curve(spec: ModelSpec, longest: int) -> tuple[Curve, bool]:
    """Bytes of a sequence's cache in bf16 over its tokens, and whether part of it is a state of constant size."""
    per_token, constant = BF16_BYTES * spec.row_values, spec.state_bytes(BF16_BYTES)
    return Curve(tuple((float(n), float(constant + n * per_token)) for n in (1, max(2, longest)))), constant > 0
