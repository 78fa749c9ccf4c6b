"""What a worker says of itself when a receiver connects: how long it takes to prefill, as a curve over tokens.

What it says is not trusted: a curve that is none is ignored, and one that is wrong is corrected by what its transfers
take.
"""

import json
from dataclasses import replace

from earthshine.errors import EarthshineError, UsageError
from earthshine.prfaas.curve import Curve, read_curve
from earthshine.prfaas.profile import Profile
from earthshine.untrusted import parse_object

MOST_BYTES = 1024
_MOST_POINTS = 24
_FORMAT = "earthshine worker 1"


def announcement(profile: Profile) -> bytes:
    """At most MOST_BYTES: the prefill curve, thinned, with its ends kept. Raises UsageError where it has none."""
    if profile.prefill is None:
        raise UsageError(f"{profile.name} has no prefill curve; a worker prefills.")
    points = profile.prefill.points
    n = min(_MOST_POINTS, len(points))
    kept = [points[round(i * (len(points) - 1) / max(1, n - 1))] for i in range(n)]
    return json.dumps({"format": _FORMAT, "prefill": [[round(size), float(f"{s:.4g}")] for size, s in kept]}).encode()


def announced(raw: bytes, mine: Profile) -> Profile | None:
    """The profile of a worker of this server's model, whose cache is like `mine`; None where `raw` says nothing of
    use."""
    try:
        found = parse_object(raw[:MOST_BYTES], "what a worker says of itself", UsageError)
        curve: Curve = read_curve("prefill", found.get("prefill"), "tokens", "seconds")
    except EarthshineError:
        return None
    if found.get("format") != _FORMAT:
        return None
    return replace(mine, name="worker", source="Announced by the worker.", prefill=curve, decode=None, batch=0)
