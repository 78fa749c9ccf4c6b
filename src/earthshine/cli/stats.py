"""What a reply took: the lines that --stats prints after it."""

import time

from earthshine.engine import LoadedModel, Synced
from earthshine.machine import memory_peak
from earthshine.units import counted, format_bytes


class Tally:
    """Counts from when it is made; `summary` is called once the reply has ended."""

    def __init__(self, model: LoadedModel) -> None:
        self._model, self._before = model, model.experts.stats
        self._began = self._synced = self._first = self._last = time.monotonic()
        self._prompt = Synced(0, 0)
        self._tokens = 0

    def synced(self, prompt: Synced) -> None:
        """The prompt is computed."""
        self._prompt, self._synced = prompt, time.monotonic()

    def token(self) -> None:
        """One more token of the reply."""
        self._tokens, self._last = self._tokens + 1, time.monotonic()
        if self._tokens == 1:
            self._first = self._last

    def summary(self) -> str:
        """Four lines: the prompt, the reply (its rate is that of the tokens after the first), experts and memory."""
        now, stats = time.monotonic(), self._model.experts.stats
        before = self._before
        hits, misses = stats.hits - before.hits, stats.misses - before.misses
        nbytes, waited = stats.bytes_read - before.bytes_read, stats.read_wait_seconds - before.read_wait_seconds
        read = f"{format_bytes(nbytes)} read"
        if nbytes:
            read += f", {format_bytes(nbytes / max(now - self._began, 1e-9))}/s"
        wanted = max(hits + misses, 1)
        further = _rate(self._tokens - 1, self._last - self._first)
        peak = memory_peak()
        lines = [
            f"prompt   {counted(self._prompt.computed, 'token')} computed, {self._prompt.reused} reused, "
            f"{_rate(self._prompt.computed, self._synced - self._began)}",
            f"reply    {counted(self._tokens, 'token')}" + (f", {further}" if self._tokens > 1 else ""),
            f"experts  {hits} of {hits + misses} found in memory ({hits / wanted:.0%}), {read}, "
            f"{waited:.2f} s of waiting for reads{'' if stats.direct else '; ' + self._model.reader.reason}",
            f"memory   {format_bytes(peak)} at most, of {format_bytes(self._model.plan.memory.budget_bytes)}",
        ]
        return "\n".join(lines)


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / max(seconds, 1e-9):.2f} per second"
