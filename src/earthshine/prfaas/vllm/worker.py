"""The connector's half in vLLM's worker: the listener for peers, and the loads from them."""

from collections.abc import Iterable

from earthshine.prfaas.vllm.latents import LatentCache
from earthshine.prfaas.vllm.options import ConnectorOptions
from earthshine.prfaas.vllm.orders import Load
from earthshine.prfaas.vllm.prompts import Prompts
from earthshine.prfaas.vllm.receiving import Receiving
from earthshine.prfaas.vllm.sending import Sending
from earthshine.prfaas.vllm.submit import Submission
from earthshine.prfaas.wire import PrefillPeer, WireServer


class Worker:
    """Listens and connects as `options` say. Raises UsageError for settings that can't be used."""

    def __init__(self, cache: LatentCache, options: ConnectorOptions, vocab_size: int) -> None:
        self._layers = {name: layer for layer, name in enumerate(cache.names)}
        self._block_tokens, self._options = cache.block_tokens, options
        self.prompts = Prompts(cache, options.hold_seconds)
        self._invalid: set[int] = set()
        layout = cache.layout(options.model)
        self._peers: dict[str, PrefillPeer] = {url: options.peer(url) for url in options.peers}
        self._receiving = Receiving(
            cache,
            layout,
            self._peers,
            most_transfers=options.transfers,
            deadline_seconds=options.deadline_seconds,
            retry_seconds=options.retry_seconds,
        )
        self._server: WireServer | None = None
        if options.listen:
            submit = Submission(options.submit, options.submit_secret()) if options.submit else None
            self._server = WireServer(
                options.listen_options(),
                Sending(self.prompts, layout, vocab_size, submit),
                access=options.access(),
                fingerprint=options.model,
                allow_plain=options.allow_plain,
                about=options.about(),
            )

    @property
    def described(self) -> str:
        """One line for vLLM's log."""
        port = f", port {self._server.port}" if self._server is not None else ""
        return (
            f"Earthshine's connector: model {self._options.model!r}, {len(self._layers)} layers of latents, listens on "
            f"{self._options.listen or 'nothing'}{port}, fetches from {', '.join(self._peers) or 'nobody'}"
        )

    def layer_done(self, name: str) -> None:
        self.prompts.layer_done(self._layers[name])

    def load(self, loads: Iterable[Load]) -> None:
        for load in loads:
            self._receiving.begin(load)

    def loaded(self) -> tuple[set[str], set[str]]:
        """The requests whose loads have ended since the last call, and those among them that got nothing.

        The blocks that others lack are `invalid_blocks` then, from which on vLLM computes.
        """
        over = self._receiving.over()
        failed = {each.load.request_id for each in over if each.end == each.load.start}
        for each in over:
            if not each.whole and each.load.request_id not in failed:
                self._invalid |= set(each.load.blocks[each.end // self._block_tokens :])
        return {each.load.request_id for each in over}, failed

    def invalid_blocks(self) -> set[int]:
        found, self._invalid = self._invalid, set()
        return found

    def close(self) -> None:
        """End all transfers and threads."""
        self.prompts.close()
        if self._server is not None:
            self._server.close()
        for peer in self._peers.values():
            peer.close()
        self._receiving.close()
