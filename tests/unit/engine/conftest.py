"""A decoder small enough to check by hand: whole numbers throughout, so every comparison is exact.

Each layer's latent mixes the token's values with its position, and attention is the sum of all latents so far,
weighted by position. A wrong, missing, stale or misplaced latent therefore changes everything after it.
"""

import pytest
import torch
from torch import Tensor

from earthshine.engine import Session
from earthshine.kv import PagePool
from earthshine.models import LayerState, States
from earthshine.spec.attention import MlaSpec, RopeSpec
from earthshine.spec.model import DenseSpec, LayerSpec, ModelSpec
from earthshine.storage import Storage

HIDDEN, VOCAB, STOP, CONTEXT = 6, 40, 39, 64
MLA = MlaSpec(1, None, 4, 4, HIDDEN, RopeSpec(2, 10000.0, None), 1e-6)
SPEC = ModelSpec(
    "fake",
    HIDDEN,
    VOCAB,
    CONTEXT,
    1e-6,
    (LayerSpec(MLA, DenseSpec(8)),) * 3,
    Storage.BF16,
    Storage.BF16,
    None,
    (STOP,),
)


def attend(new: Tensor, own: Tensor, state: LayerState) -> Tensor:
    """new: latents [tokens, 6] of a batch; own: [tokens, 4]. Returns [tokens, 6].

    Exact in bf16 latents of whole numbers below 128.
    """
    pool, outputs = state.extend(new), []
    for piece in state.pieces:
        first = piece.first
        for sequence in piece.sequences:
            end = sequence.start + sequence.count
            latents = pool[sequence.pages.long()].flatten(0, 1)[:end]
            weight = torch.arange(1, end + 1, dtype=torch.float64)[:, None]
            mixed = (latents.double() * weight).cumsum(0)[sequence.start :]
            mine = own[first : first + sequence.count].double().sum(-1, keepdim=True)
            outputs.append(((mixed + mine) % 113).to(latents.dtype).double())
            first += sequence.count
    return torch.cat(outputs)


class FakeDecoder:
    """`steps` records the tokens of each forward pass; `fail_at` raises in that one, after two layers."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16, spec: ModelSpec = SPEC) -> None:
        self.spec, self.dtype = spec, dtype
        self.steps: list[list[int]] = []
        self.fail_at: int | None = None

    def forward(self, tokens: Tensor, positions: Tensor, states: States, *, in_groups: bool = False):
        self.steps.append(tokens.tolist())
        x = (tokens.double()[:, None] * torch.tensor([3, 5, 7, 11, 13, 17]) + 1) % 101
        for layer in range(self.spec.n_layers):
            if layer == 2 and self.fail_at == len(self.steps):
                raise RuntimeError("the disk is gone")
            latent = ((x * (layer + 2) + positions[:, None] * 19) % 109).to(self.dtype)
            x = (x + attend(latent, x[:, :4].to(self.dtype), states.layer(layer)) * 3) % 103
            yield
        return x.to(self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        scattered = (hidden.double() @ torch.arange(1, HIDDEN * VOCAB + 1).view(HIDDEN, VOCAB).double()) % 97
        return (scattered / 16).float()


@pytest.fixture
def decoder() -> FakeDecoder:
    return FakeDecoder()


@pytest.fixture
def make_pool():
    def make(n_pages: int = 32, page_tokens: int = 4, dtype: torch.dtype = torch.bfloat16) -> PagePool:
        return PagePool(SPEC.kept, page_tokens, n_pages, dtype)

    return make


@pytest.fixture
def make_session(make_pool):
    def make(decoder: FakeDecoder | None = None, pool: PagePool | None = None, **options) -> Session:
        options.setdefault("fingerprint", "fake-1")
        return Session(decoder or FakeDecoder(), pool or make_pool(), **options)

    return make


@pytest.fixture
def make_decoder():
    return FakeDecoder
