"""The progress of one prompt and its remaining time, for the request's sink, `Session.sync` and the gauges.

One event is sent when the prompt is admitted and one when it has been computed; in between at most one every
INTERVAL_SECONDS.
"""

import time
from collections.abc import Callable

from earthshine.engine.request import PromptProgress

INTERVAL_SECONDS = 0.25
_TRUSTED = 0.05  # the share of a prompt from which its own rate is a forecast; first layers are often dense and fast


def report_progress(
    total: int, cached: int, send: Callable[[PromptProgress], None], expected: float | None = None
) -> Callable[[float], None]:
    """Sends the beginning of a prompt of `total` tokens, of which `cached` were found, and returns what sends the rest.

    That is to be called with the number of tokens done, found ones included; after each layer a token is done in part.
    `expected`: seconds for the tokens that were not found, if known from steps before.
    """
    began = time.monotonic()
    last, latest = began, cached
    rate = _Rate()

    def report(done: float) -> None:
        nonlocal last, latest
        now, processed = time.monotonic(), int(done)
        due = processed >= total or now - last >= INTERVAL_SECONDS
        if not due or processed <= latest:
            return
        last, latest = now, processed
        share, seconds = (done - cached) / (total - cached), now - began
        rate.measure(share, seconds)
        send(PromptProgress(total, cached, processed, seconds, _seconds_left(share, rate.seconds, expected)))

    send(PromptProgress(total, cached, cached, 0.0, expected))
    return report


class _Rate:
    """`seconds` that the whole prompt would take at the rate of the later part of what is done.

    What was done at a share x of the prompt counts by x squared: attention grows with the length, and the first layers
    are often dense.
    """

    def __init__(self) -> None:
        self.seconds, self._share, self._elapsed = 0.0, 0.0, 0.0

    def measure(self, share: float, elapsed: float) -> None:
        latest = (elapsed - self._elapsed) / (share - self._share)
        self.seconds += (1 - (self._share / share) ** 3) * (latest - self.seconds)
        self._share, self._elapsed = share, elapsed


def _seconds_left(share: float, own: float, expected: float | None) -> float | None:
    """From the seconds that the whole prompt takes by its own rate, and by the initial forecast, which soon counts
    little: by half at a sixth of the prompt. Without a forecast: None until the measured rate can be trusted."""
    if expected is None:
        return own * (1 - share) if share >= _TRUSTED else None
    trust = (1 - share) ** 4
    return (trust * expected + (1 - trust) * own) * (1 - share)
