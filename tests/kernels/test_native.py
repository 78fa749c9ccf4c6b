"""The native library against the oracle, bit for bit, on every instruction set that this processor offers."""

import ctypes
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution

import pytest
import torch
from torch import Tensor

from earthshine.errors import KernelError
from earthshine.kernels import native, reference

# bf16 patterns: zeros, subnormals, the smallest normal, one, 1/3, the largest, infinities, nans.
SCALES = (
    0x0000,
    0x8000,
    0x0001,
    0x807F,
    0x0080,
    0x3F80,
    0x3EAB,
    0xBEAB,
    0x7F7F,
    0xFF7F,
    0x7F80,
    0xFF80,
    0x7FC1,
    0xFF81,
)


@pytest.fixture(scope="module")
def library() -> None:
    """Skips where the sources run uninstalled; an installed package without its library is a failure."""
    if native.available():
        return
    try:
        distribution("earthshine")
    except PackageNotFoundError:
        pytest.skip(native.reason())
    pytest.fail(native.reason())


@pytest.fixture(params=["portable", "avx2", "avx512"])
def instruction_set(request: pytest.FixtureRequest, library: None) -> Iterator[str]:
    if request.param not in native.instruction_sets():
        pytest.skip(f"this processor or build does not offer {request.param}")
    native.force(request.param)
    assert native.instruction_set() == request.param
    yield request.param
    native.force("auto")


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    nan = expected.isnan()
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert torch.equal(actual.isnan(), nan)
    assert torch.equal(actual.view(torch.int16)[~nan], expected.view(torch.int16)[~nan])
    assert (actual.view(torch.int16)[nan] == 0x7FC0).all()


def bf16(patterns: Tensor) -> Tensor:
    return patterns.to(torch.int32).to(torch.int16).view(torch.bfloat16)


def random_bits(*shape: int, seed: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int32)


@pytest.mark.usefixtures("instruction_set")
class TestEveryInstructionSet:
    @pytest.mark.parametrize("groups_a_row", [1, 4, 64], ids="groups={}".format)
    def test_int4_is_exact_for_every_nibble_and_every_bf16_scale(self, groups_a_row: int) -> None:
        words = torch.tensor([0x76543210, -0x01234568, 0x0F1E2D3C, 0x4B5A6978], dtype=torch.int32)  # each nibble, twice
        nibbles = (words[:, None] >> torch.arange(0, 32, 4)) & 15
        assert torch.equal(nibbles.flatten().bincount(), torch.full((16,), 2))
        packed = words.repeat(65536).view(-1, 4 * groups_a_row)
        scale = bf16(torch.arange(65536)).view(-1, groups_a_row)
        assert_same_bits(native.decode_int4(packed, scale), reference.decode_int4(packed, scale))

    @pytest.mark.parametrize("shape", [(1, 32), (3, 96), (2, 128), (5, 160), (129, 224), (4, 1056), (0, 64), (3, 0)])
    def test_int4_is_exact_whatever_the_shape(self, shape: tuple[int, int]) -> None:
        rows, cols = shape
        packed = random_bits(rows, cols // 8, seed=rows + cols)
        scale = bf16(torch.tensor(SCALES)[random_bits(rows, cols // 32, seed=cols) % len(SCALES)])
        assert_same_bits(native.decode_int4(packed, scale), reference.decode_int4(packed, scale))

    def test_int4_has_the_published_nibble_order_and_offset(self) -> None:
        packed = torch.tensor([[0x76543210, -0x01234568, 0, -1]], dtype=torch.int32)
        expected = [*range(-8, 8), *[-8] * 8, *[7] * 8]
        assert native.decode_int4(packed, torch.ones(1, 1).bfloat16()).tolist() == [expected]

    def test_fp8_is_exact_for_every_code_and_unusual_scales(self) -> None:
        special = torch.tensor(SCALES, dtype=torch.int32) << 16
        ties = torch.tensor([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x00000001, 0x7F7FFFFF], dtype=torch.int32)
        patterns = torch.cat([special, ties, random_bits(44, seed=8)]).view(-1, 2)
        weight = torch.arange(256, dtype=torch.uint8).repeat(128 * len(patterns), 1).view(torch.float8_e4m3fn)
        scale_inv = patterns.view(torch.float32)
        assert_same_bits(native.decode_fp8(weight, scale_inv), reference.decode_fp8(weight, scale_inv))

    @pytest.mark.parametrize(
        "shape", [(1, 1), (3, 127), (128, 128), (129, 129), (257, 300), (130, 1), (2, 576), (0, 5), (5, 0)]
    )
    def test_fp8_crops_the_blocks_at_the_edges(self, shape: tuple[int, int]) -> None:
        rows, cols = shape
        weight = random_bits(rows, cols, seed=rows).to(torch.uint8).view(torch.float8_e4m3fn)
        scale_inv = torch.rand(-(-rows // 128), -(-cols // 128), generator=torch.Generator().manual_seed(cols)) - 0.5
        assert_same_bits(native.decode_fp8(weight, scale_inv), reference.decode_fp8(weight, scale_inv))

    def test_fp8_has_the_published_values(self) -> None:
        codes = torch.tensor([[0x00, 0x01, 0x07, 0x08, 0x38, 0x7E, 0xFE]], dtype=torch.uint8)
        decoded = native.decode_fp8(codes.view(torch.float8_e4m3fn), torch.full((1, 1), 2.0))
        assert decoded.tolist() == [[0.0, 2**-8, 7 * 2**-8, 2**-5, 2.0, 896.0, -896.0]]

    def test_inputs_need_no_alignment(self) -> None:
        buffer = bytearray(random_bits(2 * 4 + 1, seed=3).numpy().tobytes())
        packed = torch.frombuffer(buffer, dtype=torch.int32, offset=1, count=8).view(2, 4)
        scale = torch.frombuffer(bytearray(b"\0\x80\x3f\x80\xbf"), dtype=torch.bfloat16, offset=1).view(2, 1)
        assert_same_bits(native.decode_int4(packed, scale), reference.decode_int4(packed.clone(), scale.clone()))


def int4(rows: int = 2, cols: int = 64) -> tuple[Tensor, Tensor]:
    return torch.zeros(rows, cols // 8, dtype=torch.int32), torch.ones(rows, cols // 32, dtype=torch.bfloat16)


def fp8(rows: int = 2, cols: int = 200) -> tuple[Tensor, Tensor]:
    return torch.zeros(rows, cols).to(torch.float8_e4m3fn), torch.ones(-(-rows // 128), -(-cols // 128))


@pytest.mark.usefixtures("library")
class TestRefusals:
    @pytest.mark.parametrize(
        ("packed", "scale", "says"),
        [
            (int4()[0].long(), int4()[1], "int64"),
            (int4()[0], int4()[1].float(), "float32"),
            (int4()[0][0], int4()[1], r"\[8\]"),
            (int4()[0][:, :5].contiguous(), int4()[1], "multiple of the group of 32"),
            (int4()[0], int4(3)[1], r"need \[2, 2\]"),
            (int4()[0], int4(2, 96)[1], r"need \[2, 2\]"),
            (int4()[0], int4()[1].to("meta"), "one device"),
            (int4()[0].to("meta"), int4()[1].to("meta"), "main memory"),
            (int4(8, 64)[0].T, int4(8, 64)[1], "contiguous"),
            (int4()[0].to_sparse(), int4()[1], "dense"),
            (None, int4()[1], "dense"),
        ],
    )
    def test_int4(self, packed: Tensor, scale: Tensor, says: str) -> None:
        with pytest.raises(KernelError, match=says):
            native.decode_int4(packed, scale)

    @pytest.mark.parametrize(
        ("weight", "scale_inv", "says"),
        [
            (fp8()[0].view(torch.uint8), fp8()[1], "uint8"),
            (fp8()[0].view(torch.float8_e5m2), fp8()[1], "e5m2"),
            (fp8()[0], fp8()[1].double(), "float64"),
            (fp8()[0], fp8(129)[1], r"need \[1, 2\]"),
            (fp8()[0], fp8(2, 128)[1], r"need \[1, 2\]"),
            (fp8(2, 400)[0][:, ::2], fp8()[1], "contiguous"),
        ],
    )
    def test_fp8(self, weight: Tensor, scale_inv: Tensor, says: str) -> None:
        with pytest.raises(KernelError, match=says):
            native.decode_fp8(weight, scale_inv)

    def test_an_instruction_set_that_is_not_offered(self) -> None:
        with pytest.raises(KernelError, match=r"permitted are auto, .*portable"):
            native.force("avx1024")

    def test_the_c_interface_checks_its_own_arguments(self) -> None:
        library = native._library()
        memory = ctypes.cast(ctypes.create_string_buffer(4096), ctypes.c_void_p)
        bad_shape = [(-1, 32), (1, -32), (1, 33), (2**62, 64)]
        for rows, cols in bad_shape:
            assert library.es_decode_int4(memory, memory, rows, cols, memory) == 2
        assert library.es_decode_fp8(memory, memory, 2**40, 2**40, memory) == 2
        assert library.es_decode_fp8(None, memory, 1, 1, memory) == 1
        assert library.es_decode_int4(None, None, 0, 32, None) == 0
        assert library.es_force_instruction_set(None) == 1
        assert library.es_force_instruction_set(b"sse9") == 3
        assert b"group" in library.es_status_text(2)
        assert b"not one of" in library.es_status_text(99)


class TestLoading:
    def test_a_file_that_is_no_library_is_reported(self, tmp_path) -> None:
        damaged = tmp_path / native.FILE_NAME
        damaged.write_bytes(b"not a library")
        assert "can't be loaded" in native.open_library(damaged)

    @pytest.mark.usefixtures("library")
    def test_another_interface_version_is_reported(self, monkeypatch, tmp_path) -> None:
        built = native._library()._name
        monkeypatch.setattr(native, "ABI_VERSION", 2)
        assert "has interface version 1, and this package needs 2" in native.open_library(built)

    def test_an_absent_library_is_a_reason_and_an_error(self, monkeypatch) -> None:
        monkeypatch.setattr(native, "_load", lambda: "It is not there.")
        assert not native.available()
        assert native.reason() == "It is not there."
        with pytest.raises(KernelError, match="It is not there"):
            native.decode_int4(*int4())
