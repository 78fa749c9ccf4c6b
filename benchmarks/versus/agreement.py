"""Whether two engines compute the same model: logits of one prompt at every position, and greedy tokens after it.

Each side is compared with Earthshine in fp32. A different model differs everywhere; the same one, computed in 8 or 16
bits, differs by a hundredth of the logits' spread, and by more at positions where a near tie of two experts fell the
other way, which with random weights happens more often in deeper models. So the median over positions decides,
and the first side, Earthshine in bf16, is the yardstick: `TIMES` its error, or `MOST`, is allowed to the others.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from earthshine.errors import UsageError

from .alternation import Measurement, Side, run

MOST, TIMES = 0.02, 1.5
_HOPELESS = 0.3  # beyond this even the first side proves nothing
_REQUEST = {"what": "logits", "tokens": 64, "steps": 16}


@dataclass(frozen=True, slots=True)
class Difference:
    """Of one side from the arbiter; errors are RMS over the vocabulary, as shares of the logits' spread."""

    median_error: float
    largest_error: float
    same_top: float  # share of positions with the same likeliest token
    same_greedy: int  # tokens until the first difference, which of random weights may be the first


def difference(arbiter: np.ndarray, other: np.ndarray, greedy: Sequence[int], theirs: Sequence[int]) -> Difference:
    """Of logits [positions, vocab]. Raises UsageError where shapes differ or a number is not finite."""
    if arbiter.shape != other.shape or not (np.isfinite(arbiter).all() and np.isfinite(other).all()):
        raise UsageError(f"Logits of shapes {arbiter.shape} and {other.shape}, or not finite, can't be compared.")
    errors = np.sqrt(np.square(arbiter - other).mean(1)) / arbiter.std()
    common = next((i for i, (a, b) in enumerate(zip(greedy, theirs, strict=False)) if a != b), len(theirs))
    same = float((arbiter.argmax(1) == other.argmax(1)).mean())
    return Difference(float(np.median(errors)), float(errors.max()), same, common)


def against(arbiter: Side, sides: Sequence[Side], work: Path) -> dict[str, dict[str, Any]]:
    """Each side's difference by its name; the first side is the yardstick.

    Raises UsageError where one fails or is another model, and for a model too deep to tell.
    """
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        first, greedy = _logits(arbiter, Path(folder) / "arbiter.npy")
        found: dict[str, dict[str, Any]] = {}
        allowed = _HOPELESS
        for number, side in enumerate(sides):
            other, theirs = _logits(side, Path(folder) / f"{number}.npy")
            one = difference(first, other, greedy, theirs)
            if one.median_error > allowed:
                less = "another model, or one too deep to tell" if not found else "another model"
                raise UsageError(
                    f"{side.name} computes {less}: its logits differ from {arbiter.name}'s by {one.median_error:.3f} "
                    f"of their spread at half of the positions or more, where {allowed:.3f} is allowed."
                )
            allowed = max(MOST, TIMES * one.median_error) if not found else allowed
            found[side.name] = {name: getattr(one, name) for name in Difference.__slots__}
    return found


def _logits(side: Side, out: Path) -> tuple[np.ndarray, list[int]]:
    asked = replace(side, settings={**side.settings, "out": str(out)})
    answer = run(asked, Measurement("logits", _REQUEST))
    if answer.failed:
        raise UsageError(f"{side.name} gave no logits: {answer.failed}")
    return np.load(out, allow_pickle=False), list(answer.answer["greedy"])


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = ["the same model: logits against Earthshine's in fp32, error as a share of their spread"]
    for name, one in found.items():
        lines.append(
            f"  {name:<18} median {one['median_error']:.4f}, most {one['largest_error']:.3f}, same top token "
            f"{one['same_top']:.0%}"
        )
    return "\n".join(lines)
