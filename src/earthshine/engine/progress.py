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

    def report(done: float) -> None:
        nonlocal last, latest
        now, processed = time.monotonic(), int(done)
        due = processed >= total or now - last >= INTERVAL_SECONDS
        if not due or processed <= latest:
            return
        last, latest = now, processed
        share, seconds = (done - cached) / (total - cached), now - began
        send(PromptProgress(total, cached, processed, seconds, _seconds_left(share, seconds, expected)))

    send(PromptProgress(total, cached, cached, 0.0, expected))
    return report


def _seconds_left(share: float, seconds: float, expected: float | None) -> float | None:
    """Weights the initial forecast by 1 - `share` and the measured rate by `share`. Without a forecast: None until the
    measured rate can be trusted."""
    own = seconds / share
    if expected is None:
        return own * (1 - share) if share >= _TRUSTED else None
    return ((1 - share) * expected + share * own) * (1 - share)
