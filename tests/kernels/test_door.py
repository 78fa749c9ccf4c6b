"""The door: what serves each operation, that it is the oracle's equal, and that a fallback is said."""

import inspect
from collections.abc import Iterator

import pytest
import torch

from earthshine import kernels
from earthshine.errors import KernelError, UsageError
from earthshine.kernels import native, reference

PACKED, SCALE = torch.arange(-80, 80, dtype=torch.int32).view(5, 32) * 0x1234567, torch.randn(5, 8).bfloat16()
CODES = torch.arange(0, 127, dtype=torch.uint8).repeat(130, 2).view(torch.float8_e4m3fn)
DRAW = torch.Generator().manual_seed(1)
CASES = {
    # 37 rows and 300 keys: neither fills its blocks.
    "attend": (*(torch.randn(3, n, 24, generator=DRAW) for n in (37, 300, 300)), 0.5, 263),
    "route": (torch.randn(37, 11, generator=DRAW), torch.zeros(11)),
    "swiglu": (torch.randn(37, 11, generator=DRAW), torch.randn(37, 11, generator=DRAW)),
    "linear": (torch.randn(37, 40, generator=DRAW), torch.randn(70, 40, generator=DRAW)),
    "linear_by_head": (torch.randn(37, 3, 40, generator=DRAW), torch.randn(3, 70, 40, generator=DRAW)),
    "decode_fp8": (CODES, torch.tensor([[0.5, -3.0], [1e-3, 7.0]])),
    "decode_int4": (PACKED, SCALE),
}


@pytest.fixture(autouse=True)
def _fresh_choice(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    kernels._decoder.cache_clear()
    yield
    monkeypatch.undo()
    kernels._decoder.cache_clear()
    if native.available():
        native.force("auto")


def served(operation: str) -> kernels.Implementation:
    return next(entry for entry in kernels.implementations() if entry.operation == operation)


def test_every_exported_operation_is_listed_once_and_sorted():
    operations = [name for name in kernels.__all__ if name not in ("Implementation", "implementations")]
    assert [entry.operation for entry in kernels.implementations()] == operations


@pytest.mark.parametrize("choice", ["auto", "reference", "portable", "avx2", "avx512"])
def test_every_operation_is_its_oracle_or_is_compared_with_it(choice, monkeypatch):
    monkeypatch.setenv("EARTHSHINE_KERNELS", choice)
    if choice not in ("auto", "reference") and not (native.available() and choice in native.instruction_sets()):
        pytest.skip(f"{choice} is not offered here")
    for entry in kernels.implementations():
        operation, oracle = getattr(kernels, entry.operation), getattr(reference, entry.operation)
        assert inspect.signature(operation) == inspect.signature(oracle)
        if operation is not oracle:
            case = CASES[entry.operation]
            options = {"top_k": 3} if entry.operation == "route" else {}
            got, expected = operation(*case, **options), oracle(*case, **options)
            exact = entry.operation.startswith("decode")
            torch.testing.assert_close(got, expected, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-5)


def test_the_choice_is_named_and_explained(monkeypatch):
    monkeypatch.setenv("EARTHSHINE_KERNELS", "reference")
    assert served("decode_int4") == kernels.Implementation(
        "decode_int4", "torch", "EARTHSHINE_KERNELS asks for the reference."
    )
    assert served("linear").name == "torch"
    assert served("linear").reason


def test_a_forced_instruction_set_serves_and_says_what_would_be_better(monkeypatch):
    if not native.available():
        pytest.skip(native.reason())
    monkeypatch.setenv("EARTHSHINE_KERNELS", "portable")
    assert served("decode_fp8").name == "native portable"
    assert native.instruction_set() == "portable"
    best = native.instruction_sets()[0]
    assert best == "portable" or best in served("decode_fp8").reason


def test_auto_takes_the_best_instruction_set(monkeypatch):
    if not native.available():
        pytest.skip(native.reason())
    monkeypatch.delenv("EARTHSHINE_KERNELS", raising=False)
    assert served("decode_int4").name == f"native {native.instruction_sets()[0]}"


def test_an_absent_library_falls_back_aloud(monkeypatch):
    monkeypatch.delenv("EARTHSHINE_KERNELS", raising=False)
    monkeypatch.setattr(native, "_load", lambda: "It is not there.")
    assert served("decode_int4") == kernels.Implementation("decode_int4", "torch", "It is not there.")
    assert torch.equal(kernels.decode_int4(PACKED, SCALE), reference.decode_int4(PACKED, SCALE))


def test_what_was_asked_for_by_name_is_served_or_refused(monkeypatch):
    monkeypatch.setattr(native, "_load", lambda: "It is not there.")
    monkeypatch.setenv("EARTHSHINE_KERNELS", "portable")
    with pytest.raises(KernelError, match="asks for portable, but: It is not there"):
        kernels.implementations()


def test_an_instruction_set_that_cannot_run_is_refused_with_those_that_can(monkeypatch):
    monkeypatch.setenv("EARTHSHINE_KERNELS", "avx512")
    monkeypatch.setattr(native, "available", lambda: True)
    monkeypatch.setattr(native, "instruction_sets", lambda: ("portable",))
    with pytest.raises(KernelError, match="avx512, which can't run here; permitted are auto, reference, portable"):
        kernels.implementations()


def test_an_unknown_choice_is_a_usage_error(monkeypatch):
    monkeypatch.setenv("EARTHSHINE_KERNELS", "fast")
    with pytest.raises(UsageError, match="auto, reference, portable, avx2, avx512"):
        kernels.implementations()


@pytest.mark.parametrize("choice", ["auto", "reference"])
def test_misshapen_weights_are_refused_alike_whatever_serves(choice, monkeypatch):
    monkeypatch.setenv("EARTHSHINE_KERNELS", choice)
    with pytest.raises(KernelError, match=r"need \[5, 8\]"):
        kernels.decode_int4(PACKED, SCALE[:, :1])
    with pytest.raises(KernelError, match="uint8"):
        kernels.decode_fp8(CODES.view(torch.uint8), CASES["decode_fp8"][1])


def test_a_slice_of_a_matrix_is_decoded_as_the_slice():
    packed, scale = PACKED[:, 4:12], SCALE[:, 1:3]
    assert not packed.is_contiguous()
    assert torch.equal(kernels.decode_int4(packed, scale), reference.decode_int4(PACKED, SCALE)[:, 32:96])
