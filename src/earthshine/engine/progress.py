"""The progress of one prompt and its remaining time, for the request's sink, `Session.sync` and the gauges.

One event is sent when the prompt is admitted and one when it has been computed; in between at most one every
INTERVAL_SECONDS.
"""

import time

from earthshine.engine.request import PromptProgress

INTERVAL_SECONDS = 0.25
_TRUSTED = 0.05  # the share of a prompt from which its own rate is a forecast; first layers are often dense and fast


class PromptReport:
    """Of one prompt of `total` tokens, of which `cached` were found. `expected`: seconds for the others, if known from
    steps before."""

    def __init__(self, total: int, cached: int, expected: float | None = None) -> None:
        self._cached, self._expected = cached, expected
        self._began = self._last = time.monotonic()
        self.latest = PromptProgress(total, cached, cached, 0.0, expected)

    @property
    def ended(self) -> bool:
        return self.latest.processed >= self.latest.total

    def update(self, done: float) -> PromptProgress | None:
        """`done` of the prompt's tokens, with those that were found; after each layer a token is done in part.
        None where that is no news, or too soon after the last."""
        now, total, processed = time.monotonic(), self.latest.total, int(done)
        due = processed >= total or now - self._last >= INTERVAL_SECONDS
        if not due or processed <= self.latest.processed:
            return None
        seconds, self._last = now - self._began, now
        share = (done - self._cached) / (total - self._cached)
        self.latest = PromptProgress(total, self._cached, processed, seconds, self._left(share, seconds))
        return self.latest

    def _left(self, share: float, seconds: float) -> float | None:
        """Weights the initial forecast by 1 - `share` and the measured rate by `share`. Without a forecast: None until
        the measured rate can be trusted."""
        own = seconds / share
        if self._expected is None:
            return own * (1 - share) if share >= _TRUSTED else None
        return ((1 - share) * self._expected + share * own) * (1 - share)
