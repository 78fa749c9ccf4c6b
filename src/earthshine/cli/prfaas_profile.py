"""`earthshine prfaas profile`: measures a running server, and prints the profile that a fleet's file takes."""

import json
import random
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import cast

from earthshine.cli.bench_serve import MOST_AT_ONCE, BenchServeOptions, site_of
from earthshine.cli.progress import ProgressLine
from earthshine.errors import UsageError
from earthshine.hub import find_model
from earthshine.loadgen.drive import ApiName, Target, open_target
from earthshine.loadgen.trace import MOST_TOKENS
from earthshine.prfaas.forecast import cache_curve
from earthshine.prfaas.measure import SHORTEST, measure_decode, measure_prefill
from earthshine.prfaas.profile import MOST_USD, Profile, profile_fields
from earthshine.spec import load_spec
from earthshine.untrusted import shown

_ROOM = 8  # tokens of the context that a prompt leaves to the reply and the template


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """The options of the command."""

    url: str
    model: str
    served_as: str | None
    api: str
    api_key_file: Path | None
    longest: int
    batch: int
    seconds: float
    usd_per_hour: float
    seed: int | None


def run_profile(options: ProfileOptions) -> None:
    _check(options)
    site = site_of(BenchServeOptions(options.url, api=options.api, api_key_file=options.api_key_file))
    spec = load_spec(find_model(options.model, weights=False))
    target = open_target(site, cast(ApiName, options.api), options.served_as)
    longest = _longest(target, options.longest)
    seeds = count(random.SystemRandom().getrandbits(32) if options.seed is None else options.seed)
    with ProgressLine() as progress:
        prefill = measure_prefill(target, longest, options.seconds, seeds, progress.measuring)
        decode, batch = measure_decode(target, options.batch, seeds, progress.measuring)
    cache, recurrent = cache_curve(spec, longest)
    source = f"Measured at {options.url}, model {shown(target.model)}, by earthshine prfaas profile."
    found = Profile(target.model, source, prefill, cache, decode, batch, recurrent, options.usd_per_hour)
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in profile_fields(found).items()]
    print("{\n" + ",\n".join(lines) + "\n}")
    for line in _remarks(prefill.points[-1][0], longest, batch, options.batch):
        print(line, file=sys.stderr)


def _check(options: ProfileOptions) -> None:
    if options.api not in ("completions", "chat"):
        raise UsageError(f"--api must be completions or chat, not {shown(options.api)}.")
    for name, value, least, most in (
        ("longest", options.longest, SHORTEST, MOST_TOKENS),
        ("batch", options.batch, 1, MOST_AT_ONCE),
        ("seconds", options.seconds, 1, 86400),
        ("usd-per-hour", options.usd_per_hour, 0, MOST_USD),
    ):
        if not least <= value <= most:
            raise UsageError(f"--{name} must be from {least} to {most:g}, not {value:g}.")


def _longest(target: Target, asked: int) -> int:
    """Tokens of the longest prompt. Raises UsageError for a context that is too short to measure."""
    if target.context_tokens is None:
        return asked
    if target.context_tokens < SHORTEST + 64 + _ROOM:
        raise UsageError(f"The server's context has {target.context_tokens} tokens; measuring needs {SHORTEST + 72}.")
    return min(asked, target.context_tokens - _ROOM)


def _remarks(reached: float, longest: int, batch: int, asked: int) -> list[str]:
    found = []
    if reached < longest * 0.9:
        found.append(f"Prompts above {reached:.0f} tokens were not measured; give more --seconds.")
    if batch < asked:
        found.append(f"The server never ran {asked} sequences at once; batch is {batch}.")
    return found
