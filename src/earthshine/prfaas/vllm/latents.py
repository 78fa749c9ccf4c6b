"""vLLM's paged cache of latents: rows of a request's tokens, read and written layer by layer.

A layer's tensor is [blocks, 1, block, 576] or [blocks, block, 576] in bf16, contiguous or not. It is indexed, never
reshaped. Refused with BlobError: any other cache, such as FP8 (656 bytes per token) or key and value by heads.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from earthshine.errors import BlobError
from earthshine.kv.header import BlobLayout, Part, ValueFormat

WIDTH = 576  # a latent: 512 values and 64 of the rotated key
LATENT_BYTES = 1152
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


class LatentCache:
    """`caches`: a tensor per layer, by vLLM's names. `block_tokens`: tokens of a block as the scheduler counts them, a
    multiple of a tensor's own block."""

    def __init__(self, caches: Mapping[str, Tensor], block_tokens: int) -> None:
        if not caches:
            raise BlobError("vLLM registered no cache; the connector serves models with latent attention.")
        numbered = sorted((_number(name), name) for name in caches)
        if [number for number, _ in numbered] != list(range(len(numbered))):
            raise BlobError(
                f"vLLM's cache has layers {', '.join(str(number) for number, _ in numbered)}; the connector serves "
                "models whose every layer keeps latents, without a draft model."
            )
        self.names = tuple(name for _, name in numbered)
        self.block_tokens = block_tokens
        self._layers = [_checked(name, caches[name], block_tokens) for name in self.names]

    @property
    def n_layers(self) -> int:
        return len(self._layers)

    @property
    def device(self) -> torch.device:
        return self._layers[0].device

    def layout(self, fingerprint: str) -> BlobLayout:
        """The blob's layout: a latent per token and layer."""
        return BlobLayout(fingerprint, ValueFormat.BF16, tuple(Part(layer, WIDTH) for layer in range(self.n_layers)))

    def read(self, layer: int, blocks: Sequence[int], start: int, end: int) -> Tensor:
        """The latents of tokens `start` to `end` of a request with these `blocks`: a copy [tokens, 576] in memory."""
        cache = self._layers[layer]
        return cache[self._slots(cache, blocks, start, end)].cpu()

    def write(self, layer: int, blocks: Sequence[int], start: int, rows: Tensor) -> None:
        """Store `rows` [tokens, 576] as the latents of the tokens from `start` on."""
        cache = self._layers[layer]
        cache[self._slots(cache, blocks, start, start + len(rows))] = rows.to(cache.device)

    def _slots(self, cache: Tensor, blocks: Sequence[int], start: int, end: int) -> tuple[Tensor, Tensor]:
        """Block and offset of each token in the tensor, whose blocks may be parts of the scheduler's."""
        tokens = torch.arange(start, end)
        first = start // self.block_tokens
        own = torch.tensor(blocks[first : -(-end // self.block_tokens)], dtype=torch.int64)
        slots = own[tokens // self.block_tokens - first] * self.block_tokens + tokens % self.block_tokens
        block = cache.shape[1]
        return (slots // block).to(cache.device), (slots % block).to(cache.device)


def _number(name: str) -> int:
    found = _LAYER.search(name)
    if found is None:
        raise BlobError(f"vLLM's cache {name!r} belongs to no numbered layer.")
    return int(found[1])


def _checked(name: str, cache: Tensor, block_tokens: int) -> Tensor:
    """The cache as [blocks, block, 576]. Raises BlobError for another."""
    shape = list(cache.shape)
    view = cache.squeeze(1) if cache.dim() == 4 and shape[1] == 1 else cache
    if view.dim() != 3 or view.shape[2] != WIDTH or cache.dtype is not torch.bfloat16:
        kept = f"{shape} in {cache.dtype}, {shape[-1] * cache.itemsize} bytes per token"
        raise BlobError(
            f"vLLM's cache {name!r} is {kept}; the connector serves latents of {WIDTH} values in bf16, {LATENT_BYTES} "
            "bytes per token. Leave --kv-cache-dtype at auto and VLLM_MLA_DISABLE at 0."
        )
    if block_tokens % view.shape[1]:
        raise BlobError(f"vLLM's cache {name!r} has blocks of {view.shape[1]} tokens, its scheduler {block_tokens}.")
    return view
