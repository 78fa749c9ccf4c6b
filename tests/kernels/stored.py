"""Seeded matrices in every stored format, at unaligned addresses."""

import torch
from torch import Tensor

from earthshine.kernels import Matrix, raw_bytes
from earthshine.storage import Storage, matrix_bytes

FORMATS = tuple(Storage)


def draw(*shape: int, seed: int = 0, gain: float = 1.0) -> Tensor:
    """Normal bf16."""
    return (gain * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).bfloat16()


def random_bits(*shape: int, seed: int) -> Tensor:
    """Uniform int32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31, shape, generator=generator).to(torch.int32)


def bf16(patterns: Tensor) -> Tensor:
    """The values of 16-bit patterns."""
    return patterns.to(torch.int32).to(torch.int16).view(torch.bfloat16)


def unaligned(raw: Tensor) -> Tensor:
    """The same bytes, one byte after an aligned address."""
    moved = torch.empty(raw.numel() + 1, dtype=torch.uint8)[1:]
    moved.copy_(raw)
    return moved


def matrix(form: Storage, rows: int, cols: int, seed: int = 0) -> Matrix:
    """Finite values, about 1 / sqrt(cols) large, as weights are."""
    size = max(cols, 1) ** -0.5
    if form is Storage.BF16:
        return Matrix(form, rows, cols, unaligned(raw_bytes(draw(rows, cols, seed=seed, gain=size))))
    n_codes, n_scales = matrix_bytes(form, rows, cols)
    codes = raw_bytes(random_bits(-(-n_codes // 4), seed=seed))[:n_codes].clone()
    if form is Storage.FP8_BLOCK128:
        codes[(codes & 127) == 127] = 0x38  # nan becomes one
    largest = {Storage.FP8_BLOCK128: 100.0, Storage.INT4_GROUP32: 8.0, Storage.INT8_GROUP128: 128.0}[form]
    kind = torch.bfloat16 if form is Storage.INT4_GROUP32 else torch.float32
    scales = draw(n_scales // kind.itemsize, seed=seed + 1, gain=2 * size / largest).to(kind)
    return Matrix(form, rows, cols, unaligned(codes), unaligned(raw_bytes(scales)))


def assert_same_bits(actual: Tensor, expected: Tensor, what: str = "") -> None:
    """Equal except the sign and payload of a nan."""
    nan = expected.isnan()
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), what
    assert torch.equal(actual.isnan(), nan), what
    bits = torch.int16 if expected.dtype == torch.bfloat16 else torch.int32
    assert torch.equal(actual.view(bits)[~nan], expected.view(bits)[~nan]), what
