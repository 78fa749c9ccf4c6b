"""Rotary tables with YaRN (arXiv 2309.00071, as in DeepSeek-V3's modeling code, and as in transformers for Qwen3).

YaRN is static here: it applies at every length, as the published models were trained.
"""

import math

import torch
from torch import Tensor

from earthshine.spec.attention import MlaSpec, RopeSpec, YarnSpec

_BLOCK = 1024  # positions
_BLOCK_ANGLES = 32768  # no more, or torch divides them among threads


def _correction(turns: float, rope: RopeSpec, yarn: YarnSpec) -> float:
    """The pair that makes `turns` full turns within the original context."""
    assert rope.theta is not None, "nothing rotates"
    return rope.dim * math.log(yarn.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))


def yarn_range(rope: RopeSpec, yarn: YarnSpec) -> tuple[float, float]:
    """First and last pair of the ramp from unscaled to interpolated frequencies."""
    low = max(math.floor(_correction(yarn.beta_fast, rope, yarn)), 0)
    high = min(math.ceil(_correction(yarn.beta_slow, rope, yarn)), rope.dim - 1)
    return low, high if high > low else low + 0.001


def frequencies(rope: RopeSpec) -> Tensor:
    """Angle a position adds to each pair: fp32 [dim/2]."""
    assert rope.theta is not None, "nothing rotates"
    pair = torch.arange(rope.dim // 2, dtype=torch.float64)
    plain = rope.theta ** (-2 * pair / rope.dim)
    if rope.yarn is None:
        return plain.float()
    low, high = yarn_range(rope, rope.yarn)
    ramp = ((pair - low) / (high - low)).clamp(0, 1)
    return (plain / rope.yarn.factor * ramp + plain * (1 - ramp)).float()


def magnitude(factor: float, mscale: float) -> float:
    """YaRN's attention temperature m(s, a) = 0.1 a ln(s) + 1."""
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def attention_factor(yarn: YarnSpec) -> float:
    """By how much YaRN enlarges cosines and sines, and so queries and keys."""
    if yarn.attention_factor is not None:
        return yarn.attention_factor
    return magnitude(yarn.factor, yarn.mscale) / magnitude(yarn.factor, yarn.mscale_all_dim)


def softmax_scale(attention: MlaSpec) -> float:
    """(nope + rope)^-0.5, times m^2 where mscale_all_dim is set."""
    yarn = attention.rope.yarn
    scale: float = attention.qk_dim**-0.5
    return scale * magnitude(yarn.factor, yarn.mscale_all_dim) ** 2 if yarn and yarn.mscale_all_dim else scale


class RotaryTable:
    """cos and sin of each position's angles, made in blocks of up to 1024 positions when first asked for.

    Whole blocks also keep a position's bits independent of who asks: torch's cosine differs between the lanes of a
    vector and the scalar rest of an odd-sized tensor.
    """

    def __init__(self, rope: RopeSpec) -> None:
        self._frequencies = frequencies(rope)
        self._gain = attention_factor(rope.yarn) if rope.yarn else 1.0
        self._block = max(1, min(_BLOCK, _BLOCK_ANGLES // len(self._frequencies)))
        self._cos = self._sin = torch.empty(0, len(self._frequencies))
        self._asked: Tensor | None = None  # the positions of the last call, and its answer: a step asks in every layer
        self._answer = (self._cos, self._sin)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions: int64 [tokens]; returns two of fp32 [tokens, dim/2]. Angles are fp32 products, as published."""
        if positions is self._asked:
            return self._answer
        needed = int(positions.max()) + 1
        while self._cos.shape[0] < needed:
            block = torch.arange(self._cos.shape[0], self._cos.shape[0] + self._block)
            angles = block[:, None].float() * self._frequencies
            self._cos = torch.cat((self._cos, angles.cos() * self._gain))
            self._sin = torch.cat((self._sin, angles.sin() * self._gain))
        rows = positions.cpu()
        self._asked = positions
        self._answer = self._cos[rows].to(positions.device), self._sin[rows].to(positions.device)
        return self._answer


class RotaryTables:
    """One table for all layers that rotate alike."""

    def __init__(self) -> None:
        self._tables: dict[RopeSpec, RotaryTable] = {}

    def of(self, rope: RopeSpec) -> RotaryTable | None:
        """None where nothing rotates."""
        return None if rope.theta is None else self._tables.setdefault(rope, RotaryTable(rope))
