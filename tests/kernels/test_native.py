"""The native library itself: exact decoding, refusals, threads, children of fork, and loading."""

import ctypes
import re
import sys
from pathlib import Path

import pytest
import torch

from earthshine.errors import KernelError, UsageError
from earthshine.kernels import Expert, Matrix, fp8_matrix, int4_matrix, library, native, reference
from earthshine.storage import Storage, matrix_bytes

from .stored import FORMATS, assert_same_bits, bf16, draw, matrix, random_bits

# bf16 patterns: zeros, subnormals, the smallest normal, one, 1/3, the largest, infinities, nans.
SCALES = (
    0x0000, 0x8000, 0x0001, 0x807F, 0x0080, 0x3F80, 0x3EAB, 0xBEAB, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC1, 0xFF81,
)  # fmt: skip
SPECIAL = torch.tensor(SCALES, dtype=torch.int32) << 16
TIES = torch.tensor([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x00000001, 0x7F7FFFFF], dtype=torch.int32)
WIDE_SCALES = torch.cat([SPECIAL, TIES, random_bits(44, seed=8)]).view(torch.float32)


@pytest.mark.usefixtures("instruction_set")
class TestDecode:
    @pytest.mark.parametrize("groups_a_row", [1, 4, 64], ids="groups={}".format)
    def test_int4_is_exact_for_every_nibble_and_every_bf16_scale(self, groups_a_row: int) -> None:
        words = torch.tensor([0x76543210, -0x01234568, 0x0F1E2D3C, 0x4B5A6978], dtype=torch.int32)  # each nibble, twice
        nibbles = (words[:, None] >> torch.arange(0, 32, 4)) & 15
        assert torch.equal(nibbles.flatten().bincount(), torch.full((16,), 2))
        packed = words.repeat(65536).view(-1, 4 * groups_a_row)
        scale = bf16(torch.arange(65536)).view(-1, groups_a_row)
        assert_same_bits(native.decode(int4_matrix(packed, scale)), reference.decode_int4(packed, scale))

    @pytest.mark.parametrize("shape", [(1, 32), (3, 96), (2, 128), (5, 160), (129, 224), (4, 1056), (0, 64), (3, 0)])
    def test_int4_is_exact_whatever_the_shape(self, shape: tuple[int, int]) -> None:
        rows, cols = shape
        packed = random_bits(rows, cols // 8, seed=rows + cols)
        scale = bf16(torch.tensor(SCALES)[random_bits(rows, cols // 32, seed=cols) % len(SCALES)])
        assert_same_bits(native.decode(int4_matrix(packed, scale)), reference.decode_int4(packed, scale))

    def test_int4_has_the_published_nibble_order_and_offset(self) -> None:
        packed = torch.tensor([[0x76543210, -0x01234568, 0, -1]], dtype=torch.int32)
        expected = [*range(-8, 8), *[-8] * 8, *[7] * 8]
        assert native.decode(int4_matrix(packed, torch.ones(1, 1).bfloat16())).tolist() == [expected]

    def test_fp8_is_exact_for_every_code_and_unusual_scales(self) -> None:
        scale_inv = WIDE_SCALES.view(-1, 2)
        weight = torch.arange(256, dtype=torch.uint8).repeat(128 * len(scale_inv), 1).view(torch.float8_e4m3fn)
        assert_same_bits(native.decode(fp8_matrix(weight, scale_inv)), reference.decode_fp8(weight, scale_inv))

    @pytest.mark.parametrize(
        "shape", [(1, 1), (3, 127), (128, 128), (129, 129), (257, 300), (130, 1), (2, 576), (0, 5), (5, 0)]
    )
    def test_fp8_crops_the_blocks_at_the_edges(self, shape: tuple[int, int]) -> None:
        rows, cols = shape
        weight = random_bits(rows, cols, seed=rows).to(torch.uint8).view(torch.float8_e4m3fn)
        scale_inv = torch.rand(-(-rows // 128), -(-cols // 128), generator=torch.Generator().manual_seed(cols)) - 0.5
        assert_same_bits(native.decode(fp8_matrix(weight, scale_inv)), reference.decode_fp8(weight, scale_inv))

    def test_fp8_has_the_published_values(self) -> None:
        codes = torch.tensor([[0x00, 0x01, 0x07, 0x08, 0x38, 0x7E, 0xFE]], dtype=torch.uint8)
        decoded = native.decode(fp8_matrix(codes.view(torch.float8_e4m3fn), torch.full((1, 1), 2.0)))
        assert decoded.tolist() == [[0.0, 2**-8, 7 * 2**-8, 2**-5, 2.0, 896.0, -896.0]]

    def test_int8_is_exact_for_every_code_and_unusual_scales(self) -> None:
        codes = torch.arange(-128, 128, dtype=torch.int8).repeat(len(WIDE_SCALES) // 2, 1)
        scales = WIDE_SCALES.view(-1, 2)
        stored = Matrix(Storage.INT8_GROUP128, *codes.shape, codes.view(-1).view(torch.uint8), _raw(scales))
        assert_same_bits(native.decode(stored), reference.decode_int8(codes, scales))

    def test_bf16_is_returned_as_it_is(self) -> None:
        values = bf16(torch.arange(65536)).view(128, 512)
        decoded = native.decode(Matrix(Storage.BF16, 128, 512, _raw(values)))
        assert torch.equal(decoded.view(torch.int16), values.view(torch.int16))

    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize("rows", [1, 15, 33])
    def test_bytes_need_no_alignment(self, form: Storage, rows: int) -> None:
        for cols in (32, 288) if form is Storage.INT4_GROUP32 else (1, 31, 32, 161, 289):
            stored = matrix(form, rows, cols)
            assert stored.codes.data_ptr() % 2
            assert_same_bits(native.decode(stored), reference.decode(stored))


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


class TestMatrix:
    @pytest.mark.parametrize("form", FORMATS)
    def test_it_has_exactly_the_bytes_of_its_shape(self, form: Storage) -> None:
        codes, scales = matrix_bytes(form, 130, 160)
        expected = {
            Storage.BF16: (130 * 160 * 2, 0),
            Storage.FP8_BLOCK128: (130 * 160, 2 * 2 * 4),
            Storage.INT4_GROUP32: (130 * 80, 130 * 5 * 2),
            Storage.INT8_GROUP128: (130 * 160, 130 * 2 * 4),
        }
        assert (codes, scales) == expected[form]
        held = None if form is Storage.BF16 else torch.zeros(scales, dtype=torch.uint8)
        assert Matrix(form, 130, 160, torch.zeros(codes, dtype=torch.uint8), held).nbytes == codes + scales
        with pytest.raises(KernelError, match=f"130 by 160 takes {codes} bytes of codes and {scales} of scales"):
            Matrix(form, 130, 160, torch.zeros(codes - 1, dtype=torch.uint8), held)

    def test_bytes_elsewhere_or_with_gaps_are_refused(self) -> None:
        codes = torch.zeros(64, dtype=torch.uint8)
        for wrong in (torch.zeros(128, dtype=torch.uint8)[::2], codes.view(torch.int8), codes.to("meta")):
            with pytest.raises(KernelError, match="contiguous uint8 tensor on the CPU"):
                Matrix(Storage.BF16, 1, 32, wrong)

    @pytest.mark.parametrize(("rows", "cols"), [(-1, 32), (1, -32), (1, 33)])
    def test_an_impossible_shape_is_refused(self, rows: int, cols: int) -> None:
        with pytest.raises(UsageError, match="can't be stored as int4-g32"):
            matrix_bytes(Storage.INT4_GROUP32, rows, cols)

    def test_published_tensors_of_another_kind_are_refused(self) -> None:
        packed, scale = torch.zeros(2, 8, dtype=torch.int32), torch.ones(2, 2).bfloat16()
        for wrong in ((packed.long(), scale), (packed, scale.float()), (packed[0], scale), (packed.to_sparse(), scale)):
            with pytest.raises(KernelError, match="matrix is expected"):
                int4_matrix(*wrong)
        weight, scale_inv = torch.zeros(2, 200).to(torch.float8_e4m3fn), torch.ones(1, 2)
        for other in ((weight.view(torch.uint8), scale_inv), (weight, scale_inv.double())):
            with pytest.raises(KernelError, match="matrix is expected"):
                fp8_matrix(*other)
        with pytest.raises(KernelError, match="of scales"):
            fp8_matrix(weight, scale_inv[:, :1])


@pytest.mark.usefixtures("native_library")
class TestRefusals:
    def test_a_product_that_does_not_fit(self) -> None:
        x, weight = draw(3, 32), draw(4, 32)
        for x_, weight_, kind in (
            (x.float(), weight, torch.bfloat16),
            (x[:, :31], weight, torch.bfloat16),
            (x, weight, torch.float16),
            (x, weight.float(), torch.bfloat16),
            (x, weight.T, torch.bfloat16),
            (x[:, :0], weight[:, :0].contiguous(), torch.bfloat16),
        ):
            with pytest.raises(KernelError):
                native.linear(x_, weight_, kind)

    def test_a_product_by_head_that_does_not_fit(self) -> None:
        x, weight, out = draw(3, 2, 32), draw(2, 5, 32), draw(3, 2, 5)
        for wrong in (
            (x[:, :1], weight, out),
            (x[..., :31], weight, out),
            (x, weight, out[..., :4]),
            (x, weight[:, :, ::2], out),
            (x.float(), weight, out),
            (x, weight, out.float()),
            (x.expand(3, 2, 32).mT.contiguous().mT, weight, out),
        ):
            with pytest.raises(KernelError, match="does not fit"):
                native.linear_by_head(*wrong)

    def test_experts_and_pairs_that_do_not_fit(self) -> None:
        expert = Expert(matrix(Storage.BF16, 48, 32), matrix(Storage.BF16, 48, 32), matrix(Storage.BF16, 32, 48))
        odd = Expert(expert.gate, expert.up, matrix(Storage.BF16, 32, 47))
        x, token, each = draw(4, 32), torch.tensor([0, 3], dtype=torch.int32), torch.zeros(2, 32)
        right = (x, [expert], token, [0, 2], each)
        native.moe_ffn(*right)
        for at, wrong in (
            (0, x.float()),
            (0, draw(4, 64)[:, ::2]),
            (1, [odd]),
            (2, token.long()),
            (2, torch.tensor([0, 4], dtype=torch.int32)),
            (2, torch.tensor([0, -1], dtype=torch.int32)),
            (3, [0, 3]),
            (3, [-1, 2]),
            (3, [2, 0]),
            (3, [0, 1, 2]),
            (4, each.bfloat16()),
            (4, each[:, :31]),
            (4, each[0]),
            (4, torch.zeros(32, 2).T),
        ):
            with pytest.raises(KernelError):
                native.moe_ffn(*right[:at], wrong, *right[at + 1 :])

    def test_a_sum_that_does_not_fit(self) -> None:
        each, token, weight = torch.ones(2, 32), torch.zeros(2, dtype=torch.int32), torch.ones(2)
        total = torch.zeros(3, 32)
        native.moe_sum(each, token, weight, total)
        for wrong in (
            (each, token.long(), weight, total),
            (each, token + 3, weight, total),
            (each, token[:1], weight, total),
            (each, token, weight[:1], total),
            (each, token, weight.double(), total),
            (each, token, weight, total[:, :31]),
            (each, token, weight, total[0]),
            (each, token, weight, torch.zeros(32, 3).T),
        ):
            with pytest.raises(KernelError):
                native.moe_sum(*wrong)
        assert total.sum() == 64

    def test_an_instruction_set_that_is_not_offered(self) -> None:
        with pytest.raises(KernelError, match=r"permitted are auto, .*portable"):
            library.force("avx1024")
        assert library.refusal("portable") == ""
        assert "no avx1024" in library.refusal("avx1024")

    def test_the_c_interface_checks_its_own_arguments(self) -> None:
        loaded = library.library()
        memory = ctypes.addressof(ctypes.create_string_buffer(4096))

        def describe(form: int, rows: int, cols: int, codes: int | None, scales: int | None) -> object:
            return ctypes.byref(native.CMatrix(form, rows, cols, codes, scales))

        for form, rows, cols in [(2, -1, 32), (2, 1, -32), (2, 1, 33), (2, 2**62, 64), (1, 2**40, 2**40), (4, 1, 1)]:
            assert loaded.es_decode(describe(form, rows, cols, memory, memory), memory) == 2
            assert loaded.es_linear(describe(form, rows, cols, memory, memory), memory, 1, memory, 0) == 2
        right = describe(0, 2, 32, memory, None)
        assert loaded.es_linear(right, memory, -1, memory, 0) == 2
        assert loaded.es_linear(right, memory, 2**62, memory, 0) == 2
        assert loaded.es_linear(right, memory, 1, None, 0) == loaded.es_linear(right, None, 1, memory, 0) == 1
        assert loaded.es_linear(right, None, 0, None, 0) == 0
        assert loaded.es_decode(None, memory) == loaded.es_decode(describe(1, 1, 1, memory, None), memory) == 1
        assert loaded.es_decode(describe(2, 0, 32, None, None), None) == 0
        assert loaded.es_force_instruction_set(None) == 1
        assert loaded.es_force_instruction_set(b"sse9") == 3
        assert [loaded.es_set_threads(n) for n in (0, -1, 513, 2**31 - 1)] == [2] * 4
        assert b"format" in loaded.es_status_text(2)
        assert b"not one of" in loaded.es_status_text(99)


FORK = """
import os, sys, torch
from earthshine import kernels
kernels.set_threads(3)
x, weight = torch.ones(64, 256).bfloat16(), torch.randn(512, 256).bfloat16()
before = kernels.linear(x, weight)
child = os.fork()
same = torch.equal(kernels.linear(x, weight), before)
if child == 0:
    alone = kernels.threads() == 1
    kernels.set_threads(2)
    os._exit(0 if same and alone and torch.equal(kernels.linear(x, weight), before) else 1)
assert same and kernels.threads() == 3
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.usefixtures("native_library")
class TestThreads:
    def test_there_are_as_many_as_were_asked_for(self) -> None:
        for wanted in (1, 3, 2, 1):
            library.set_threads(wanted)
            assert library.threads() == wanted

    def test_invalid_number_changes_nothing(self) -> None:
        library.set_threads(2)
        for wrong in (0, -1, 513, 2**40):
            with pytest.raises(KernelError, match=f"n_threads must be between 1 and 512, not {wrong}"):
                library.set_threads(wrong)
        assert library.threads() == 2

    def test_a_child_of_fork_has_one_thread_and_can_compute(self, forker) -> None:
        """The parent's workers do not exist there, and a lock that one of them held would never be released."""
        done = forker.run([sys.executable, "-c", FORK])
        assert done.returncode == 0, done.stderr


class TestLoading:
    def test_file_that_is_not_a_library_is_reported(self, tmp_path) -> None:
        damaged = tmp_path / library.FILE_NAME
        damaged.write_bytes(b"not a library")
        assert "can't be loaded" in library.open_library(damaged)

    @pytest.mark.usefixtures("native_library")
    def test_another_interface_version_is_reported(self, monkeypatch) -> None:
        built = library.library()._name
        version = library.ABI_VERSION
        monkeypatch.setattr(library, "ABI_VERSION", version + 1)
        assert f"has interface version {version}, and this package needs {version + 1}" in library.open_library(built)

    @pytest.mark.usefixtures("native_library")
    def test_a_library_without_a_function_is_reported(self, monkeypatch) -> None:
        monkeypatch.setattr(library, "_SIGNATURES", {"es_absent": (None, ())})
        assert "can't be loaded" in library.open_library(library.library()._name)

    def test_an_absent_library_is_a_reason_and_an_error(self, monkeypatch) -> None:
        monkeypatch.setattr(library, "_load", lambda: "It is not there.")
        assert not library.available()
        assert library.reason() == "It is not there."
        with pytest.raises(KernelError, match="It is not there"):
            native.decode(matrix(Storage.BF16, 1, 32))

    def test_every_function_of_the_header_is_declared_and_no_other(self) -> None:
        header = Path(__file__).parents[2] / "native" / "include" / "earthshine.h"
        functions = set(re.findall(r"\b(es_[a-z0-9_]+)\(", header.read_text()))
        assert functions - {"es_abi_version"} == set(library._SIGNATURES) - {"es_abi_version"}
        assert int(re.search(r"ES_ABI_VERSION ([0-9]+)", header.read_text())[1]) == library.ABI_VERSION
