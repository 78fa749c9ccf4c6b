"""One tensor of a model by Earthshine's name: its shape, whether checkpoints quantise it, and how it is used."""

import math
from dataclasses import dataclass
from enum import StrEnum

from earthshine.storage import BF16_BYTES, FP32_BYTES, Storage, stored_bytes


class Use(StrEnum):
    """The form in which a tensor enters a computation."""

    STORED = "stored"  # as published, quantised or not
    PLAIN = "plain"  # decoded to the activations' dtype: attention splits it by head
    FP32 = "fp32"  # whatever the activations are: router logits in bf16 change choices


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One trunk tensor. `linear` marks those that a quantised checkpoint stores in `trunk_storage`.

    `published_fp32`: publishers store it in fp32, so that its plain form takes 4 bytes per value. `published_shape`:
    where checkpoints write the same values with axes of size one.
    """

    name: str
    shape: tuple[int, ...]
    linear: bool = False
    use: Use = Use.STORED
    published_fp32: bool = False
    published_shape: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def in_fp32(self) -> bool:
        return self.use is Use.FP32

    @property
    def rounds_to_int8(self) -> bool:
        """Whether an int8 trunk rounds this tensor: linear layers and the head, except those that attention splits by
        head."""
        return (self.linear or self.name == "head") and self.use is Use.STORED

    @property
    def plain_bytes(self) -> int:
        """Bytes in bf16, or in fp32 where it is published so."""
        return self.size * (FP32_BYTES if self.published_fp32 else BF16_BYTES)

    @property
    def int8_bytes(self) -> int:
        """Bytes in an int8 trunk."""
        return stored_bytes(Storage.INT8_GROUP128, *self.shape) if self.rounds_to_int8 else self.plain_bytes
