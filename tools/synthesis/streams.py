"""Seeded tensors in their stored bytes, made at the speed of a disk: random bytes, looked up in small tables.

A tensor's bytes follow from the seed and its published name alone, so any one can be made again by itself, whatever
else was written. Nothing is ever encoded: codes and scales are drawn, and tables give them their distribution.
All values are finite, and all but scales are symmetric about zero, since a mean would grow from layer to layer.
"""

import hashlib
import random
from collections.abc import Iterator
from functools import cache
from statistics import NormalDist, pstdev

import numpy as np
import torch
from numpy.typing import NDArray

Piece = bytes | memoryview

_PIECE_BYTES = 1 << 20
_SCALE_SPREAD = 0.25  # of the logarithm of scales, from group to group
_INT4_SPREAD = 2.8  # standard deviation of codes in steps before rounding; trained INT4 weights lie near it
_E4M3_MAX = 448.0
_E4M3_SPREAD = _E4M3_MAX / 4  # so that a block's largest value is about four standard deviations


class Stream:
    """The random bytes of one tensor."""

    def __init__(self, seed: int, name: str) -> None:
        digest = hashlib.blake2b(f"{seed}\n{name}".encode(), digest_size=16).digest()
        self._source = np.random.SFC64(int.from_bytes(digest, "little"))

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """The next bytes, uint8 [nbytes]; takes of whole words join without a seam."""
        words: NDArray[np.uint64] = self._source.random_raw(-(-nbytes // 8))
        return words.view(np.uint8)[:nbytes]

    def pieces(self, nbytes: int) -> Iterator[NDArray[np.uint8]]:
        """The next bytes, one MiB at a time, which stays in the processor's cache."""
        for start in range(0, nbytes, _PIECE_BYTES):
            yield self.take(min(_PIECE_BYTES, nbytes - start))


@cache
def _normals(levels: int) -> NDArray[np.float64]:
    """Equally likely values of a standard normal distribution, ascending, with a deviation of exactly 1."""
    draw = NormalDist().inv_cdf
    half = [draw((index + 0.5) / levels) for index in range(levels // 2)]
    values = np.array([*half, *(-value for value in reversed(half))])
    return np.asarray(values / pstdev(values.tolist()) if levels <= 256 else values / values.std())


def _bf16_bits(values: NDArray[np.float64]) -> NDArray[np.uint16]:
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


@cache
def _bf16_table(deviation: float, mean: float) -> NDArray[np.uint16]:
    return _bf16_bits(mean + deviation * _normals(1 << 16))


def bf16_values(stream: Stream, count: int, deviation: float, mean: float = 0.0) -> Iterator[Piece]:
    """`count` bf16 values, normally distributed out to 4.3 deviations."""
    table = _bf16_table(deviation, mean)
    for indices in stream.pieces(2 * count):
        yield table[indices.view(np.uint16)].view(np.uint8).data


@cache
def _int4_codes() -> tuple[int, ...]:
    """256 equally likely codes from -8 to 7, normally distributed, with a mean of exactly 0."""
    codes = np.clip(np.rint(_INT4_SPREAD * _normals(256)), -8, 7).astype(int)
    for _ in range(-int(codes.sum())):  # 7 is the largest and -8 the smallest, so the sum is at most 0
        codes[np.flatnonzero(codes == 0)[0]] = 1
    return tuple(codes.tolist())


@cache
def _int4_table() -> bytes:
    """Random byte to two nibbles. The upper one's order is shuffled so that neighbours are not correlated."""
    low = _int4_codes()
    orders = (random.Random(attempt).sample(range(256), 256) for attempt in range(200))
    order = min(orders, key=lambda order: abs(sum(low[i] * low[j] for i, j in enumerate(order))))
    return bytes(low[i] + 8 | low[j] + 8 << 4 for i, j in enumerate(order))


def int4_codes(stream: Stream, nbytes: int) -> Iterator[Piece]:
    """Packed nibbles: each a code from -8 to 7 plus 8, two per byte; every code occurs."""
    table = _int4_table()
    for noise in stream.pieces(nbytes):
        yield noise.tobytes().translate(table)


@cache
def _e4m3_table() -> bytes:
    values = torch.from_numpy(_E4M3_SPREAD * _normals(256)).clamp(-_E4M3_MAX, _E4M3_MAX)
    return bytes(values.to(torch.float8_e4m3fn).view(torch.uint8).tolist())


def e4m3_codes(stream: Stream, nbytes: int) -> Iterator[Piece]:
    """Normally distributed e4m3 codes, one per byte; neither NaN occurs."""
    table = _e4m3_table()
    for noise in stream.pieces(nbytes):
        yield noise.tobytes().translate(table)


@cache
def int4_deviation() -> float:
    """Of the codes that `int4_codes` draws."""
    return pstdev(_int4_codes())


@cache
def e4m3_deviation() -> float:
    """Of the values that `e4m3_codes` draws."""
    return torch.tensor(list(_e4m3_table()), dtype=torch.uint8).view(torch.float8_e4m3fn).double().std(False).item()


@cache
def _scales(size: float) -> NDArray[np.float64]:
    """256 equally likely positive scales whose root mean square is `size`."""
    scales = np.exp(_SCALE_SPREAD * _normals(256))
    return np.asarray(scales * (size / np.sqrt((scales**2).mean())))


@cache
def _bf16_scales(size: float) -> NDArray[np.uint16]:
    return _bf16_bits(_scales(size))


def bf16_scales(stream: Stream, count: int, size: float) -> Iterator[Piece]:
    """`count` positive bf16 scales whose root mean square is `size`."""
    table = _bf16_scales(size)
    for indices in stream.pieces(count):
        yield table[indices].view(np.uint8).data


def fp32_scales(stream: Stream, count: int, size: float) -> Iterator[Piece]:
    """`count` positive fp32 scales whose root mean square is `size`."""
    table = _scales(size).astype(np.float32)
    for indices in stream.pieces(count):
        yield table[indices].view(np.uint8).data
