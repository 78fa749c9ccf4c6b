"""Serves prompts that vLLM computes: a handler for `wire.WireServer`.

A piece is sent for each chunk that vLLM computes, cut at whole pages, layer by layer while the chunk is computed. The
tokens after the last whole page are left to the receiver. vLLM gets the prompt from a router, or from here (`submit`).
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from earthshine.errors import UsageError
from earthshine.kv.header import BlobHeader, BlobLayout, pack_header
from earthshine.kv.page_key import PageKeys
from earthshine.prfaas.vllm.prompts import Prompts, Reader
from earthshine.prfaas.wire.request import PrefillRequest
from earthshine.prfaas.wire.writer import PieceWriter
from earthshine.storage import PAGE_TOKENS

MOST_PIECE_TOKENS = 2048  # 2.25 MiB per layer
Submit = Callable[[PrefillRequest], AbstractContextManager[Callable[[], None]]]


class Sending:
    """`submit`: gives vLLM the prompt of a request while its context is open; what it yields raises UnavailableError
    once vLLM has refused. None where a router gives the prompts."""

    def __init__(self, prompts: Prompts, layout: BlobLayout, vocab_size: int, submit: Submit | None = None) -> None:
        self._prompts, self._layout, self._vocab_size, self._submit = prompts, layout, vocab_size, submit

    def __call__(self, request: PrefillRequest, out: PieceWriter) -> None:
        """Raises UsageError for parts and tokens that vLLM lacks, UnavailableError where it does not compute the
        prompt, and WireError where the receiver is gone."""
        tokens = list(request.token_ids)
        pages = len(tokens) // PAGE_TOKENS
        if request.parts not in ((), tuple(range(len(self._layout.parts)))):
            raise UsageError("vLLM's connector sends all layers of a prompt, not some.")
        if max(tokens) >= self._vocab_size:  # vLLM itself would end with an error, for everyone
            raise UsageError(f"Token ids are below {self._vocab_size} in this model; the prompt has {max(tokens)}.")
        if not pages:
            raise UsageError(f"Whole pages of {PAGE_TOKENS} tokens are sent; the prompt has {len(tokens)} tokens.")
        until = time.monotonic() + out.deadline_seconds
        known = self._submit is None or self._prompts.has(request.tenant, tokens)
        with nullcontext(_nothing) if known or self._submit is None else self._submit(request) as refused:

            def check() -> None:
                out.check()
                refused()

            with self._prompts.reader(request.tenant, tokens[: pages * PAGE_TOKENS], until, check) as reader:
                keys = [key.prior for key in PageKeys(request.tenant, PAGE_TOKENS).of(tokens, pages)]
                self._send(reader, out, tokens, request.start // PAGE_TOKENS, keys)
                out.end()
                reader.served()

    def _send(
        self, reader: Reader, out: PieceWriter, tokens: Sequence[int], page: int, priors: Sequence[bytes]
    ) -> None:
        """Pages from number `page` on; each has its entry in `priors`."""
        while page < len(priors):
            start, most = page * PAGE_TOKENS, min(len(priors) * PAGE_TOKENS, page * PAGE_TOKENS + MOST_PIECE_TOKENS)
            end = min(reader.beyond(start + PAGE_TOKENS - 1) // PAGE_TOKENS * PAGE_TOKENS, most)
            own = tuple(tokens[start:end])
            out.begin(pack_header(BlobHeader(self._layout, end - start, own, 0, start, priors[page])))
            for layer in range(len(self._layout.parts)):
                out.block(layer, [reader.rows(layer, start, end).view(torch.uint8).numpy().data])
            page = end // PAGE_TOKENS


def _nothing() -> None:
    return None
