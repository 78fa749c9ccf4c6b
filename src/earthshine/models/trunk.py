"""The trunk's weights as the decoder asks for them: all at hand, or a layer at a time from wherever they lie.

A layer's weights are valid until the next layer is asked for; the same mapping again means that they have not moved.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from earthshine.kernels import Matrix, Weight

LayerWeights = Mapping[str, Weight]  # by Earthshine's names without "layers.i.", such as "attention.o"


class Trunk(Protocol):
    """All weights but the routed experts'."""

    @property
    def dtype(self) -> torch.dtype:
        """Of activations."""
        ...

    @property
    def norm(self) -> Tensor:
        """The last norm's weight, [hidden]."""
        ...

    def embed(self, tokens: Tensor) -> Tensor:
        """int64 [...] to [..., hidden]."""
        ...

    def layer(self, index: int) -> LayerWeights:
        """One layer's weights, valid until the next layer is asked for; the same object where they stay in memory."""
        ...

    def head(self) -> Weight:
        """[vocab_size, hidden], valid until a layer is asked for."""
        ...


class ResidentTrunk:
    """A trunk whose weights are all in memory, by the names of `spec.layout.trunk_tensors`."""

    def __init__(self, weights: Mapping[str, Weight]) -> None:
        embed, norm = weights["embed"], weights["norm"]
        if isinstance(embed, Matrix) or isinstance(norm, Matrix):
            raise TypeError("the embedding and the last norm are plain tensors")
        self._embed, self.norm, self._head = embed, norm, weights["head"]
        self._layers: dict[int, dict[str, Weight]] = {}
        for name, weight in weights.items():
            if name.startswith("layers."):
                _, index, rest = name.split(".", 2)
                self._layers.setdefault(int(index), {})[rest] = weight

    @property
    def dtype(self) -> torch.dtype:
        return self._embed.dtype

    def embed(self, tokens: Tensor) -> Tensor:
        return functional.embedding(tokens, self._embed)

    def layer(self, index: int) -> LayerWeights:
        return self._layers[index]

    def head(self) -> Weight:
        return self._head
