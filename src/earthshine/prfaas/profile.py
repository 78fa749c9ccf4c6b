"""What one instance of a model costs on one kind of hardware: prefill, cache and decode step over their sizes.

Its figures are published, forecast or measured; its `source` says which. Files are not trusted: every key must be known
and every curve ascend. Raises UsageError, which names the file, the field and what would be right.
"""

from dataclasses import dataclass
from typing import Any

from earthshine.errors import UsageError
from earthshine.prfaas.curve import Curve, read_curve
from earthshine.untrusted import flag_field, number_field, require_keys, text_field

_KEYS = ("name", "source", "prefill", "cache", "decode", "batch", "recurrent", "usd_per_hour")
_REQUIRED = ("name", "source", "cache")
MOST_BATCH = 1 << 16
MOST_USD = 1e6


@dataclass(frozen=True, slots=True)
class Profile:
    """One instance. `prefill` and `decode` are None for hardware that does not do that."""

    name: str
    source: str  # where the figures come from, in a sentence or two
    prefill: Curve | None  # seconds over prompt tokens, T_prefill(l)
    cache: Curve  # bytes over tokens, S_kv(l)
    decode: Curve | None  # seconds of one step over the batch
    batch: int  # most sequences of a step, BS_max
    recurrent: bool  # the model keeps states of constant size, so a prefix is reused only where its state is kept
    usd_per_hour: float  # of one instance

    def prefill_seconds(self, tokens: int, cached: int = 0) -> float:
        """Seconds to compute a prompt of `tokens` tokens of which the first `cached` are in the prefix cache.

        Raises UsageError for an instance that does not prefill.
        """
        if self.prefill is None:
            raise UsageError(f"{self.name} has no prefill curve; a cluster that prefills needs one.")
        return self.prefill.between(cached, tokens)

    def cache_bytes(self, tokens: int, held: int = 0) -> float:
        """Bytes of `tokens` tokens to send to a cluster that holds the first `held`; a recurrent state always goes."""
        return self.cache.between(held, tokens)

    def requests_per_second(self, output_tokens: float) -> float:
        """Of one decoding instance with full batches: BS_max / (T_decode L_out), paper equation (5).

        Raises UsageError for an instance that does not decode.
        """
        if self.decode is None:
            raise UsageError(f"{self.name} has no decode curve; a cluster that decodes needs one.")
        return self.batch / (self.decode(self.batch) * output_tokens)


def profile_from(found: dict[str, Any], where: str) -> Profile:
    """A profile from a file's object; `where` names it in messages."""
    require_keys(found, where, _REQUIRED, _KEYS)
    prefill, decode = (
        read_curve(f"{where}: {name}", found[name], unit, "seconds") if found.get(name) is not None else None
        for name, unit in (("prefill", "tokens"), ("decode", "sequences"))
    )
    if prefill is None and decode is None:
        raise UsageError(f"{where} must have prefill, decode or both.")
    if decode is not None and "batch" not in found:
        raise UsageError(f"{where} has decode, so it must have batch, the most sequences of a step.")
    return Profile(
        text_field(found, "name", where),
        text_field(found, "source", where),
        prefill,
        read_curve(f"{where}: cache", found["cache"], "tokens", "bytes"),
        decode,
        int(number_field(found, "batch", where, 1, MOST_BATCH, whole=True)) if "batch" in found else 0,
        flag_field(found, "recurrent", where),
        number_field(found, "usd_per_hour", where, 0, MOST_USD) if "usd_per_hour" in found else 0.0,
    )


def profile_fields(profile: Profile) -> dict[str, Any]:
    """The object of `profile_from`."""
    curves = {name: getattr(profile, name) for name in ("prefill", "cache", "decode")}
    found: dict[str, Any] = {"name": profile.name, "source": profile.source}
    found |= {name: [list(point) for point in curve.points] for name, curve in curves.items() if curve is not None}
    if profile.decode is not None:
        found["batch"] = profile.batch
    return found | {"recurrent": profile.recurrent, "usd_per_hour": profile.usd_per_hour}
