"""The connector's half in vLLM's scheduler: which prompts are fetched from a peer, and what the worker has to know.

Peers never come from a request: `kv_transfer_params`, which any client may set, can only ask to hold a prompt for a
peer (`do_remote_decode`). A request is fetched once at most; what fails is computed by vLLM. Requests with pictures,
embeddings or adapters are left alone, since token ids do not name their latents.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from earthshine.prfaas.vllm.orders import Chunk, Load, NewPrompt, Orders
from earthshine.prfaas.wire.frames import MOST_TOKENS
from earthshine.prfaas.wire.request import MOST_NAME_BYTES, encoded
from earthshine.storage import PAGE_TOKENS

_log = logging.getLogger("vllm.earthshine")
_PEER_KEYS = {"remote_host", "remote_port", "remote_engine_id", "remote_block_ids", "peer", "url"}


@dataclass
class _Tracked:
    """A prompt that vLLM computes and a peer may ask for."""

    tenant: str
    tokens: list[int]
    held: bool
    blocks: list[int] = field(default_factory=list)
    ordered: bool = False  # the worker knows of it
    complete: bool = False


class Scheduling:
    """`fetches`, `sends`: what this vLLM does. `min_tokens`: fewer are computed rather than fetched. `retry_seconds`:
    after a failed transfer, how long everything is computed here."""

    def __init__(
        self,
        *,
        fetches: bool,
        sends: bool,
        min_tokens: int,
        retry_seconds: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetches, self._sends, self._min_tokens = fetches, sends, min_tokens
        self._retry_seconds, self._now, self._retry_at = retry_seconds, now, float("-inf")
        self._tried: set[str] = set()  # requests whose latents were asked for
        self._loads: list[Load] = []
        self._tracked: dict[str, _Tracked] = {}
        self._warned = False

    def matched(self, request: Any, computed: int) -> int:
        """Tokens after the first `computed` that a peer is to send; 0 for none. Changes nothing."""
        request_id = request.request_id
        if not self._fetches or request_id in self._tried or not _by_tokens(request) or self._now() < self._retry_at:
            return 0
        wanted = len(request.prompt_token_ids) // PAGE_TOKENS * PAGE_TOKENS - computed
        return wanted if wanted >= self._min_tokens else 0

    def allocated(self, request: Any, blocks: Sequence[int], external: int) -> None:
        """vLLM has given a request its `blocks`, `external` tokens of which a peer sends."""
        if not _by_tokens(request):
            return
        tokens, tenant = request.prompt_token_ids, request.cache_salt or ""
        params = request.kv_transfer_params or {}
        if not self._warned and _PEER_KEYS & {key for key, value in params.items() if value is not None}:
            self._warned = True
            _log.warning("A request names a peer in kv_transfer_params; peers come from the connector's configuration.")
        if external:
            self._tried.add(request.request_id)
            start = len(tokens) // PAGE_TOKENS * PAGE_TOKENS - external
            self._loads.append(Load(request.request_id, tenant, tokens[: start + external], start, list(blocks)))
        if self._sends and len(tokens) >= PAGE_TOKENS and request.request_id not in self._tracked:
            held = params.get("do_remote_decode") is True
            self._tracked[request.request_id] = _Tracked(tenant, tokens, held)

    def orders(self, output: Any) -> Orders:
        """The orders of the step that vLLM's SchedulerOutput describes."""
        orders = Orders(loads=self._loads, preempted=set(output.preempted_req_ids or ()))
        self._loads = []
        for new in output.scheduled_new_reqs:
            self._step(orders, output, new.req_id, new.num_computed_tokens, new.block_ids, whole=True)
        cached = output.scheduled_cached_reqs
        for at, request_id in enumerate(cached.req_ids):
            whole = request_id in cached.resumed_req_ids
            self._step(
                orders, output, request_id, cached.num_computed_tokens[at], cached.new_block_ids[at], whole=whole
            )
        return orders

    def finished(self, request_id: str) -> bool:
        """Whether the worker says when the request's blocks may be used again."""
        self._tried.discard(request_id)
        tracked = self._tracked.pop(request_id, None)
        return tracked is not None and tracked.ordered

    def failed(self) -> None:
        """A transfer has failed: for a while nothing is asked for."""
        self._retry_at = self._now() + self._retry_seconds

    def _step(self, orders: Orders, output: Any, request_id: str, computed: int, blocks: Any, *, whole: bool) -> None:
        """`blocks`: all of the request's where `whole`, else those that are new; by cache group, or None."""
        tracked = self._tracked.get(request_id)
        if tracked is None or (tracked.complete and not whole):
            return
        if whole:
            tracked.blocks, tracked.complete = [], False
            orders.prompts.append(NewPrompt(request_id, tracked.tenant, tracked.tokens, tracked.held))
        tracked.blocks += blocks[0] if blocks else []
        end = min(computed + output.num_scheduled_tokens[request_id], len(tracked.tokens))
        tracked.ordered, tracked.complete = True, end == len(tracked.tokens)
        orders.chunks.append(Chunk(request_id, min(computed, end), end, list(tracked.blocks)))


def _by_tokens(request: Any) -> bool:
    """Whether tenant and token ids name the request's latents, and a peer can be asked for them."""
    if request.mm_features or request.lora_request or request.prompt_embeds is not None:
        return False
    named = len(encoded(request.cache_salt or "")) <= MOST_NAME_BYTES  # as a tenant on the wire
    return named and 0 < len(request.prompt_token_ids or ()) <= MOST_TOKENS
