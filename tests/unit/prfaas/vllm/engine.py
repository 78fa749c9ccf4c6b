"""What vLLM does to the connector's parts in a step, over a small cache whose latents say where they belong."""

import torch

from earthshine.prfaas.vllm.latents import LatentCache
from earthshine.prfaas.vllm.orders import Chunk, NewPrompt, Orders
from earthshine.prfaas.vllm.prompts import Prompts

LAYERS, BLOCK = 3, 16


def paged(n_blocks: int) -> LatentCache:
    """An empty cache."""
    shape = (n_blocks, 1, BLOCK, 576)
    return LatentCache({f"layers.{n}.attn": torch.zeros(shape, dtype=torch.bfloat16) for n in range(LAYERS)}, BLOCK)


def latents(layer: int, start: int, end: int) -> torch.Tensor:
    """Of tokens `start` to `end`: no two tokens or layers have the same."""
    values = torch.arange(start, end)[:, None] * 7 + torch.arange(576) * 3 + layer * 131
    return (values % 251).bfloat16()


class Engine:
    """Computes the prompt `tokens` as request "a", in blocks that are not in order."""

    def __init__(self, tokens: list[int], hold_seconds: float = 0.0) -> None:
        self.tokens = tokens
        self.blocks = list(reversed(range(-(-len(tokens) // BLOCK))))
        self.cache = paged(len(self.blocks))
        self.prompts = Prompts(self.cache, hold_seconds)

    def begin(self, start: int, end: int, *, new: bool = False, held: bool = False) -> None:
        prompts = [NewPrompt("a", "", self.tokens, held)] if new else []
        chunk = Chunk("a", start, end, self.blocks[: -(-end // BLOCK)])
        self.prompts.begin_step(Orders(prompts=prompts, chunks=[chunk]))

    def compute(self, layer: int, start: int, end: int) -> None:
        self.cache.write(layer, self.blocks, start, latents(layer, start, end))
        self.prompts.layer_done(layer)

    def step(self, start: int, end: int, *, new: bool = False, held: bool = False) -> None:
        self.begin(start, end, new=new, held=held)
        for layer in range(LAYERS):
            self.compute(layer, start, end)
        self.prompts.end_step()
