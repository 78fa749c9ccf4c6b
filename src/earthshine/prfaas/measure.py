"""A running OpenAI-compatible server's prefill time over prompt length and decode step over batch, by sending requests.

The server should be idle otherwise. Each prompt is new to it, so that no prefix cache shortens its prefill. Raises
Unreachable where a request fails, and UsageError where the server had a prompt in its cache.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate
from time import monotonic

from earthshine.errors import UsageError
from earthshine.loadgen.drive import Sample, Target, Unreachable, drive
from earthshine.loadgen.trace import Arrival
from earthshine.prfaas.curve import Curve

SHORTEST = 128  # tokens
_REPEATS = 2  # of each length: the faster one is what the server can do
_GROWTH = 4.0  # of a prefill's seconds when its length doubles, at most
_STEP_TOKENS = 64  # of each reply, from which steps are measured

Report = Callable[[str], None]


def measure_prefill(target: Target, longest: int, seconds: float, seeds: Iterator[int], report: Report) -> Curve:
    """Seconds until the first token over tokens, for lengths that double up to `longest`.

    Ends before a length that might take longer than what is left of `seconds`. Each prompt has the next of `seeds`.
    """
    ends, points = monotonic() + seconds, list[tuple[float, float]]()
    for tokens in _doubling(SHORTEST, longest):
        if points and _REPEATS * _GROWTH * points[-1][1] > ends - monotonic():
            break
        report(f"prefill of {tokens} tokens")
        trials = [_send(target, 1, tokens, 1, next(seeds))[0] for _ in range(_REPEATS)]
        counted = trials[0].input_tokens or tokens
        if not points or counted > points[-1][0]:
            points.append((float(counted), min(_first_seconds(trial) for trial in trials)))
    return _ascending(points)


def measure_decode(target: Target, most: int, seeds: Iterator[int], report: Report) -> tuple[Curve, int]:
    """Seconds of a decode step over sequences, for batches that double up to `most`, and the largest one that ran.

    A step is measured while all replies of a batch are in progress. Where they never all are, the server runs fewer at
    a time, and the measurement ends. Each batch's prompts have the next of `seeds`.
    """
    points = list[tuple[float, float]]()
    for batch in _doubling(1, most):
        report(f"decode steps of {batch} sequences")
        step = step_seconds(_send(target, batch, SHORTEST, _STEP_TOKENS, next(seeds)))
        if step is None:
            break
        points.append((float(batch), step))
    if not points:
        raise Unreachable("The server's replies have no time between tokens, so its decode steps can't be measured.")
    return _ascending(points), int(points[-1][0])


def _doubling(least: int, most: int) -> Iterator[int]:
    size = min(least, most)
    while size < most:
        yield size
        size *= 2
    yield most


def _ascending(points: list[tuple[float, float]]) -> Curve:
    """Each value at least that before it: where a larger size was faster, the difference is noise."""
    values = accumulate((value for _, value in points), max)
    return Curve(tuple(zip((size for size, _ in points), values, strict=True)))


def _send(target: Target, n: int, tokens: int, output_tokens: int, seed: int) -> tuple[Sample, ...]:
    """`n` requests at once, of which none may fail."""
    arrivals = [Arrival(0.0, tokens, output_tokens)] * n
    run = drive(target, arrivals, target.shape(seed, 1.0), concurrency=n)
    for sample in run.samples:
        if sample.problem is not None:
            raise Unreachable(f"A request of {tokens} tokens failed: {sample.problem}.")
        if (sample.cached_tokens or 0) > tokens // 2:
            raise UsageError(
                f"The server had {sample.cached_tokens} of {tokens} prompt tokens in its cache; give another --seed."
            )
    return run.samples


def _first_seconds(sample: Sample) -> float:
    """Until the first token of a reply of one, which may be without text: then until the reply's end."""
    return sample.seconds if sample.first is None else sample.first


def step_seconds(samples: tuple[Sample, ...]) -> float | None:
    """Of a decode step with all `samples` in it; None where they were never all in progress for two steps."""
    if any(sample.first is None for sample in samples):
        return None
    times = [_token_times(sample) for sample in samples]
    begin, end = max(each[0] for each in times), min(each[-1] for each in times)
    inside = sum(begin < at <= end for each in times for at in each)
    if end <= begin or inside < 2 * len(samples):
        return None
    tokens = sum(s.output_tokens for s in samples) / sum(len(each) for each in times)  # of a piece
    return (end - begin) * len(samples) / (inside * tokens)


def _token_times(sample: Sample) -> list[float]:
    """Seconds from the run's start at which each piece came."""
    return list(accumulate(sample.gaps, initial=sample.sent + (sample.first or 0.0)))
