"""Progress of running prompts, and their expected remaining time."""

from collections.abc import Sequence
from dataclasses import dataclass

from earthshine.engine.durations import Durations
from earthshine.engine.request_queue import RequestQueue
from earthshine.engine.sequence import TokenSequence


@dataclass(frozen=True, slots=True)
class PromptWaits:
    """`prefill_tokens`: of the largest prefill pass; `streams`: as Scheduler."""

    queue: RequestQueue
    durations: Durations
    prefill_tokens: int
    streams: bool

    def seconds(self, sequence: TokenSequence) -> float | None:
        """Expected for the tokens that the sequence lacks; None before the first prefill pass. Other prompts get as
        many tokens of each pass as this one."""
        own = sequence.missing
        others = (each for each in self.queue.running if each is not sequence and not each.decoding)
        tokens = own + sum(min(own, each.missing) for each in others)
        return self.durations.prompt_seconds(tokens, self.prefill_tokens, by_token=not self.streams)


def prompts_under_way(running: Sequence[TokenSequence]) -> tuple[int, int, float]:
    """Of the prompts that are being computed: their tokens, those that are done, and the longest expected wait in
    seconds; 0 where none is, or nothing is known. May be called on any thread."""
    known = [each.progress for each in running]
    prompts = [progress for progress in known if progress is not None and not progress.ended]
    left = max((each.seconds_left or 0.0 for each in prompts), default=0.0)
    return sum(each.total for each in prompts), sum(each.processed for each in prompts), left
