"""Rows of tokens in vLLM's paged cache: every layout that holds latents, and refusals of others by name."""

import pytest
import torch

from earthshine.errors import BlobError
from earthshine.kv.header import Part
from earthshine.prfaas.vllm.latents import LatentCache

BLOCK, BLOCKS = 16, 12


def names(n_layers: int) -> list[str]:
    return [f"model.layers.{layer}.self_attn.attn" for layer in range(n_layers)]


def random_rows(count: int) -> torch.Tensor:
    return torch.randn(count, 576, generator=torch.Generator().manual_seed(count)).bfloat16()


def strided(shape: tuple[int, ...]) -> torch.Tensor:
    """A layer's view of a tensor in which the layers of each block lie together."""
    return torch.zeros(shape[0], 3, *shape[1:], dtype=torch.bfloat16)[:, 1]


LAYOUTS = {
    "with heads": lambda: torch.zeros(BLOCKS, 1, BLOCK, 576, dtype=torch.bfloat16),
    "without heads": lambda: torch.zeros(BLOCKS, BLOCK, 576, dtype=torch.bfloat16),
    "layers interleaved": lambda: strided((BLOCKS, 1, BLOCK, 576)),
    "smaller blocks": lambda: torch.zeros(4 * BLOCKS, 1, BLOCK // 4, 576, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_come_back_as_written_and_other_tokens_keep_theirs(layout):
    cache = LatentCache({name: LAYOUTS[layout]() for name in names(2)}, BLOCK)
    blocks, rows = [7, 2, 11, 5], random_rows(60)
    cache.write(1, blocks, 0, rows)
    replaced = random_rows(21)
    cache.write(1, blocks, 19, replaced)
    expected = torch.cat((rows[:19], replaced, rows[40:]))
    assert torch.equal(cache.read(1, blocks, 0, 60), expected)
    assert torch.equal(cache.read(1, blocks, 33, 50), expected[33:50])
    assert not cache.read(0, blocks, 0, 60).any()
    assert not cache.read(1, [0, 1, 3, 4, 6, 8, 9, 10], 0, 128).any()


def test_a_tensors_block_is_where_the_scheduler_says():
    tensor = torch.zeros(BLOCKS, 1, BLOCK, 576, dtype=torch.bfloat16)
    LatentCache({names(1)[0]: tensor}, BLOCK).write(0, [3, 9], 14, random_rows(4))
    assert torch.equal(torch.cat((tensor[3, 0, 14:], tensor[9, 0, :2])), random_rows(4))


def test_layers_are_ordered_by_number():
    tensors = {name: torch.zeros(BLOCKS, 1, BLOCK, 576, dtype=torch.bfloat16) for name in sorted(names(12))}
    cache = LatentCache(tensors, BLOCK)
    assert list(cache.names) == names(12)
    assert cache.layout("model").parts == tuple(Part(layer, 576) for layer in range(12))


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        (torch.zeros(BLOCKS, 1, BLOCK, 656, dtype=torch.uint8), "656 bytes per token"),
        (torch.zeros(BLOCKS, 1, BLOCK, 576, dtype=torch.float16), "torch.float16"),
        (torch.zeros(2, BLOCKS, BLOCK, 4, 192, dtype=torch.bfloat16), "192"),
        (torch.zeros(BLOCKS, 4, BLOCK, 576, dtype=torch.bfloat16), r"\[12, 4, 16, 576\]"),
    ],
)
def test_other_caches_are_refused_by_name(tensor, named):
    with pytest.raises(BlobError, match=named):
        LatentCache({names(1)[0]: tensor}, BLOCK)


def test_layers_without_latents_are_refused():
    tensor = torch.zeros(BLOCKS, 1, BLOCK, 576, dtype=torch.bfloat16)
    with pytest.raises(BlobError, match="layers 0, 2"):
        LatentCache({"model.layers.0.attn": tensor, "model.layers.2.attn": tensor}, BLOCK)
    with pytest.raises(BlobError, match=r"'model\.mixer'"):
        LatentCache({"model.mixer": tensor}, BLOCK)
    with pytest.raises(BlobError, match="no cache"):
        LatentCache({}, BLOCK)
    with pytest.raises(BlobError, match="blocks of 16 tokens, its scheduler 24"):
        LatentCache({names(1)[0]: tensor}, 24)
