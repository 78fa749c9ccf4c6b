"""The trunk's weights as the decoder asks for them: all at hand, or a layer at a time from wherever they lie.

Weights are leased: within the context that `layer` or `head` returns they stay in place, even while another pass leases
other layers. The same mapping again means that they have not moved.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
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

    def layer(self, index: int) -> AbstractContextManager[LayerWeights]:
        """One layer's weights, valid within the context; the same mapping where they stay in memory.

        A pass leases one layer at a time. While it is paused, one other pass may lease any layer.
        """
        ...

    def head(self) -> AbstractContextManager[Weight]:
        """[vocab_size, hidden], valid within the context."""
        ...


class ResidentTrunk:
    """A trunk whose weights are all in memory, by the names of `spec.layout.trunk_tensors`."""

    def __init__(self, weights: Mapping[str, Weight]) -> None:
        embed, norm = weights["embed"], weights["norm"]
        if isinstance(embed, Matrix) or isinstance(norm, Matrix):
            raise TypeError("the embedding and the last norm are plain tensors")
        self._embed, self.norm, self._head = embed, norm, nullcontext(weights["head"])
        layers: dict[int, dict[str, Weight]] = {}
        for name, weight in weights.items():
            if name.startswith("layers."):
                _, index, rest = name.split(".", 2)
                layers.setdefault(int(index), {})[rest] = weight
        self._layers = {index: nullcontext(layer) for index, layer in layers.items()}

    @property
    def dtype(self) -> torch.dtype:
        return self._embed.dtype

    def embed(self, tokens: Tensor) -> Tensor:
        return functional.embedding(tokens, self._embed)

    def layer(self, index: int) -> AbstractContextManager[LayerWeights]:
        return self._layers[index]

    def head(self) -> AbstractContextManager[Weight]:
        return self._head
