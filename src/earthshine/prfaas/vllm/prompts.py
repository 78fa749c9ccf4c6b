"""The prompts that vLLM computes, as far as they are, layer by layer: written by vLLM's thread, read by the wire's.

vLLM's thread never waits for a peer: it only says what is computed. Rows are read from vLLM's own cache, whose blocks
stay the prompt's until `release` names it, so a slow peer takes no memory. Before vLLM uses a preempted prompt's blocks
again, reads that are under way end and later ones fail.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from earthshine.errors import UnavailableError
from earthshine.prfaas.vllm.latents import LatentCache
from earthshine.prfaas.vllm.orders import Orders


@dataclass(eq=False)
class Prompt:
    """`done` tokens are computed in every layer; the step under way goes up to `ahead`, and has done `layers`."""

    request_id: str
    tenant: str
    tokens: Sequence[int]
    held: bool
    blocks: Sequence[int] = ()
    done: int = 0
    ahead: int = 0
    layers: int = 0
    readers: int = 0
    reading: int = 0  # copies from the cache that are under way
    served: bool = False
    finished: float | None = None  # when vLLM was done with it
    lost: bool = False  # its blocks are another's now
    mark: Any = field(default=None)  # on a GPU: the event after which the newest rows are there


class Prompts:
    """`hold_seconds`: how long a held prompt waits for its peer after vLLM has finished it."""

    def __init__(self, cache: LatentCache, hold_seconds: float) -> None:
        self.cache, self._hold_seconds = cache, hold_seconds
        self._changed = threading.Condition()
        self._known: dict[str, Prompt] = {}
        self._owed: set[str] = set()  # requests whose release vLLM waits for, now or once it has finished them
        self._step: list[Prompt] = []
        self._closed = False

    # --- vLLM's thread

    def preempt(self, request_ids: Iterable[str]) -> None:
        """Returns when nothing reads these prompts' blocks any more."""
        with self._changed:
            lost = [self._known.pop(each) for each in request_ids if each in self._known]
            for prompt in lost:
                prompt.lost = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not any(prompt.reading for prompt in lost))

    def begin_step(self, orders: Orders) -> None:
        self.preempt([*orders.preempted, *(new.request_id for new in orders.prompts)])
        with self._changed:
            for new in orders.prompts:
                self._known[new.request_id] = Prompt(new.request_id, new.tenant, new.tokens, new.held)
                self._owed.add(new.request_id)
            self._step = []
            for chunk in orders.chunks:
                prompt = self._known.get(chunk.request_id)
                if prompt is None:  # nothing that a peer asks for may end vLLM's step
                    continue
                prompt.blocks, prompt.ahead, prompt.layers = chunk.blocks, chunk.end, 0
                prompt.done = max(prompt.done, chunk.start)
                self._step.append(prompt)
            self._changed.notify_all()

    def layer_done(self, layer: int) -> None:
        """The step's latents of this layer, and of those before it, are in the cache."""
        if self._step:
            with self._changed:
                mark = self._mark()
                for prompt in self._step:
                    prompt.layers, prompt.mark = layer + 1, mark
                self._changed.notify_all()

    def end_step(self) -> None:
        if self._step:
            with self._changed:
                mark = self._mark()
                for prompt in self._step:
                    prompt.done, prompt.mark = prompt.ahead, mark
                self._step = []
                self._changed.notify_all()

    def release(self, finished: Iterable[str]) -> set[str]:
        """Of the requests that vLLM has finished, now or before, those whose blocks nobody needs any more.

        Each is named once, and only if it was in the orders of a step: vLLM waits for no other.
        """
        now = time.monotonic()
        with self._changed:
            mine = self._owed & set(finished)
            gone = {each for each in mine if each not in self._known}  # preempted, and then ended
            for request_id in mine - gone:
                self._known[request_id].finished = now
            for prompt in list(self._known.values()):
                if prompt.finished is not None and not prompt.readers and not self._waits(prompt, now):
                    gone.add(prompt.request_id)
                    del self._known[prompt.request_id]
            self._owed -= gone
            self._changed.notify_all()
        return gone

    def close(self) -> None:
        """Those who wait get UnavailableError, and so does everyone later."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _waits(self, prompt: Prompt, now: float) -> bool:
        assert prompt.finished is not None
        whole = prompt.done >= len(prompt.tokens)
        return prompt.held and whole and not prompt.served and now - prompt.finished < self._hold_seconds

    def _mark(self) -> Any:
        if self.cache.device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    # --- the wire's threads

    def has(self, tenant: str, tokens: Sequence[int]) -> bool:
        """Whether vLLM computes a prompt that begins with `tokens`, or still has its blocks."""
        with self._changed:
            return _Search(tenant, list(tokens)).among(self._known.values())

    @contextmanager
    def reader(
        self, tenant: str, tokens: Sequence[int], until: float, check: Callable[[], None] = lambda: None
    ) -> Iterator["Reader"]:
        """Reads the prompt that begins with `tokens`, once vLLM computes it.

        `until`: on the monotonic clock, for this and all that the reader waits for. `check` is called at least once a
        second while something waits; what it raises ends the wait. Raises UnavailableError when it is late.
        """
        search = _Search(tenant, list(tokens))
        with self._changed:
            self.wait(lambda: search.among(self._known.values()), until, check, "vLLM did not get this prompt in time.")
            prompt = search.found
            assert prompt is not None
            prompt.readers += 1
        try:
            yield Reader(self, prompt, until, check)
        finally:
            with self._changed:
                prompt.readers -= 1

    @contextmanager
    def copying(self, reader: "Reader", ready: Callable[[Prompt], bool]) -> Iterator[Prompt]:
        """The reader's prompt once it is `ready`, whose blocks keep their rows meanwhile."""
        self.wait_for(reader, ready)
        with self._changed:
            self._require(reader.prompt, ready)
            reader.prompt.reading += 1
        try:
            yield reader.prompt
        finally:
            with self._changed:
                reader.prompt.reading -= 1
                self._changed.notify_all()

    def wait_for(self, reader: "Reader", ready: Callable[[Prompt], bool]) -> None:
        """Raises UnavailableError for a prompt that is lost, ended early or late."""
        prompt = reader.prompt
        with self._changed:
            self.wait(
                lambda: ready(prompt) or prompt.lost or prompt.finished is not None,
                reader.until,
                reader.check,
                "vLLM did not compute this prompt in time.",
            )
            self._require(prompt, ready)

    def wait(self, ready: Callable[[], bool], until: float, check: Callable[[], None], late: str) -> None:
        """Until `ready`, with the lock held."""
        while not self._changed.wait_for(lambda: self._closed or ready(), min(1.0, max(0.0, until - time.monotonic()))):
            check()
            if time.monotonic() >= until:
                raise UnavailableError(late)
        if self._closed:
            raise UnavailableError("vLLM is shutting down.")

    def serve(self, prompt: Prompt) -> None:
        with self._changed:
            prompt.served = True

    @staticmethod
    def _require(prompt: Prompt, ready: Callable[[Prompt], bool]) -> None:
        if prompt.lost:
            raise UnavailableError("vLLM preempted the prompt while it was sent; ask again.")
        if not ready(prompt):
            raise UnavailableError("vLLM ended the request before its prompt was computed.")


@dataclass(frozen=True, slots=True)
class Reader:
    """One peer's view of a prompt, made by `Prompts.reader`. Raises UnavailableError for a prompt that vLLM preempted,
    ended early or computes too late, and as `check`."""

    prompts: Prompts
    prompt: Prompt
    until: float
    check: Callable[[], None]

    def beyond(self, tokens: int) -> int:
        """How many tokens vLLM has computed or computes in the step under way, once more than `tokens`."""
        self.prompts.wait_for(self, lambda prompt: max(prompt.ahead, prompt.done) > tokens)
        return max(self.prompt.ahead, self.prompt.done)

    def rows(self, layer: int, start: int, end: int) -> Tensor:
        """A copy [end - start, 576] of the latents of one layer, once they are there."""

        def ready(prompt: Prompt) -> bool:
            return prompt.done >= end or (prompt.ahead >= end and prompt.layers > layer)

        with self.prompts.copying(self, ready) as prompt:
            if prompt.mark is not None:
                prompt.mark.synchronize()
            return self.prompts.cache.read(layer, prompt.blocks, start, end)

    def served(self) -> None:
        """The peer has it all; a held prompt waits no longer."""
        self.prompts.serve(self.prompt)


class _Search:
    """Looks for the prompt that begins with `tokens`, and compares each prompt once."""

    def __init__(self, tenant: str, tokens: list[int]) -> None:
        self._tenant, self._tokens = tenant, tokens
        self._others: set[Prompt] = set()
        self.found: Prompt | None = None

    def among(self, prompts: Iterable[Prompt]) -> bool:
        n = len(self._tokens)
        for prompt in prompts:
            if prompt in self._others:
                continue
            if prompt.tenant == self._tenant and list(prompt.tokens[:n]) == self._tokens:
                self.found = prompt
                return True
            self._others.add(prompt)
        return False
