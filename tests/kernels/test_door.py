"""Dispatch: which implementation serves each operation, that it matches the oracle, and that fallbacks are reported."""

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from earthshine import kernels
from earthshine.errors import KernelError, UsageError
from earthshine.kernels import Expert, library, reference
from earthshine.settings import KERNEL_CHOICES, read_settings
from earthshine.storage import Storage

from .stored import FORMATS, draw, matrix

CHOICES = ("auto", "reference", "portable", "avx2", "avx512", "avx512_bf16", "amx")
EXPERTS = [Expert(*(matrix(Storage.INT4_GROUP32, *s, seed=i) for s in ((64, 96), (64, 96), (96, 64)))) for i in (1, 2)]
TOKEN = torch.tensor([0, 2, 5, 1, 2], dtype=torch.int32)


def _written(operation: Callable[..., None], *arguments: object, into: Tensor) -> Tensor:
    result = into.clone()
    operation(*arguments, result)
    return result


# 37 rows and 300 keys: neither fills its blocks.
CASES: dict[str, Callable[[Callable[..., object], torch.dtype], object]] = {
    "attend": lambda f, t: f(*(draw(3, n, 24, seed=n).to(t) for n in (37, 300, 300)), 0.2, 263),
    "decode": lambda f, _: torch.cat([f(matrix(form, 130, 160)) for form in FORMATS]),
    "linear": lambda f, t: torch.cat(
        [f(draw(37, 160).to(t), w) for w in (draw(70, 160).to(t), *(matrix(form, 70, 160) for form in FORMATS))]
    ),
    "linear_by_head": lambda f, t: f(draw(37, 3, 40).to(t), draw(3, 70, 40).to(t)),
    "moe_ffn": lambda f, _: _written(f, draw(6, 96), EXPERTS, TOKEN, [0, 3, 5], into=torch.zeros(5, 96)),
    "moe_sum": lambda f, _: _written(f, draw(5, 96).float(), TOKEN, draw(5, seed=1).float(), into=torch.zeros(6, 96)),
    "rms_norm": lambda f, t: f(draw(37, 40).to(t), draw(40, seed=1).to(t), 1e-6),
    "rotate": lambda f, t: torch.cat(
        [
            f(draw(37, 3, 8).to(t), draw(37, 1, 4).float(), draw(37, 1, 4, seed=1).float(), interleaved=interleaved)
            for interleaved in (True, False)
        ]
    ),
    "route": lambda f, _: [
        f(draw(37, 11).float(), bias, top_k=3, scoring=scoring)
        for bias, scoring in ((torch.zeros(11), "sigmoid"), (None, "softmax"))
    ],
    "swiglu": lambda f, t: f(draw(37, 11).to(t), draw(37, 11, seed=1).to(t)),
}


@pytest.fixture(autouse=True)
def _fresh_choice(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    kernels._serving.cache_clear()
    yield
    monkeypatch.undo()
    kernels._serving.cache_clear()
    if library.available():
        library.force("auto")


def served(operation: str) -> kernels.Implementation:
    return next(entry for entry in kernels.implementations() if entry.operation == operation)


def test_every_operation_of_the_oracle_is_listed_once_and_sorted() -> None:
    operations = [name for name in kernels.__all__ if inspect.isfunction(getattr(reference, name, None))]
    assert len(operations) >= 10
    assert [e.operation for e in kernels.implementations() if e.operation in operations] == operations
    listed = [entry.operation for entry in kernels.implementations()]
    assert listed == sorted(set(listed))
    assert set(listed) <= set(kernels.__all__)
    # Compared in test_elementwise.py, test_attention.py, test_kda.py, test_products.py and test_layer.py, each in its
    # own way.
    layers = {"ffn_layer", "gqa_layer", "mla_layer"}
    assert set(listed) - set(CASES) == {"add_rms_norm", "ffn", "gated_rms_norm", "kda", "paged_attention"} | layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("choice", CHOICES)
def test_every_operation_is_its_oracle_or_is_compared_with_it(choice, dtype, monkeypatch) -> None:
    monkeypatch.setenv("EARTHSHINE_KERNELS", choice)
    if choice not in ("auto", "reference") and not (library.available() and choice in library.instruction_sets()):
        pytest.skip(f"{choice} is not offered here")
    assert_each_is_its_oracle(dtype)


def assert_each_is_its_oracle(dtype: torch.dtype) -> None:
    near = partial(torch.testing.assert_close, rtol=2e-2, atol=1e-2) if dtype == torch.bfloat16 else partial(
        torch.testing.assert_close, rtol=1e-4, atol=1e-4
    )  # fmt: skip
    for operation, case in CASES.items():
        mine, oracle = getattr(kernels, operation), getattr(reference, operation)
        got, expected = case(mine, dtype), case(oracle, dtype)
        if operation == "decode":
            assert torch.equal(got, expected)
        elif operation == "moe_ffn":
            torch.testing.assert_close(got, expected, rtol=2e-2, atol=1e-2)
        else:
            near(got, expected)


@pytest.mark.parametrize("operation", sorted(CASES))
def test_an_operation_is_called_as_its_oracle_is(operation) -> None:
    """More may be asked for, but only by name or at the end, with a default."""
    mine, oracle = (inspect.signature(getattr(module, operation)).parameters for module in (kernels, reference))
    assert list(mine)[: len(oracle)] == list(oracle)
    for name, parameter in mine.items():
        if name in oracle:
            assert (parameter.kind, parameter.default) == (oracle[name].kind, oracle[name].default)
        else:
            assert parameter.default is not inspect.Parameter.empty


def test_the_choice_of_the_reference_is_named_and_explained(monkeypatch) -> None:
    monkeypatch.setenv("EARTHSHINE_KERNELS", "reference")
    for operation in ("decode", "linear", "moe_ffn"):
        assert served(operation) == kernels.Implementation(
            operation, "torch", "EARTHSHINE_KERNELS asks for the reference."
        )
    assert served("attend").name == "torch"
    assert served("attend").reason


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("choice", ["portable", "avx2", "avx512", "avx512_bf16", "amx"])
def test_a_forced_instruction_set_serves_or_is_refused_with_its_reason(choice, monkeypatch) -> None:
    monkeypatch.setenv("EARTHSHINE_KERNELS", choice)
    refusal, best = library.refusal(choice), library.instruction_sets()[0]
    if refusal:
        with pytest.raises(
            KernelError, match=f"asks for {choice}: {refusal} Permitted are auto, reference, .*portable"
        ):
            kernels.implementations()
        return
    assert served("linear").name == f"native {choice}"
    assert library.instruction_set() == choice
    assert choice == best or f"{best} would run here" in served("linear").reason


@pytest.mark.parametrize("value", [None, "", "auto"])
def test_auto_takes_the_best_instruction_set_and_says_why_none_is_better(value, processor, monkeypatch) -> None:
    monkeypatch.delenv("EARTHSHINE_KERNELS", raising=False)
    if value is not None:
        monkeypatch.setenv("EARTHSHINE_KERNELS", value)
    assert library.instruction_sets()[0] == processor
    assert served("decode").name == f"native {processor}"
    better = {library.refusal(name) for name in KERNEL_CHOICES[KERNEL_CHOICES.index(processor) + 1 :]}
    assert all(served("decode").reason.count(reason) == 1 for reason in better)
    assert len(served("decode").reason) == sum(map(len, better)) + max(len(better) - 1, 0)


def test_a_processor_without_better_sets_serves_every_operation_as_its_oracle(processor, monkeypatch) -> None:
    monkeypatch.delenv("EARTHSHINE_KERNELS", raising=False)
    assert_each_is_its_oracle(torch.bfloat16)
    assert library.instruction_set() == processor


@pytest.mark.parametrize("name", ["portable", "avx2", "avx512", "avx512_bf16", "amx"])
def test_a_processor_is_narrowed_by_the_environment_and_never_widened(forker, name) -> None:
    """In a process of its own, as a person would."""
    code = "from earthshine.kernels import library\nprint(*library.instruction_sets())"
    environment = os.environ | {"EARTHSHINE_CPU": name}
    done = forker.run([sys.executable, "-c", code], env=environment, text=True)
    library.narrow("auto")
    try:
        offered, refusal = library.instruction_sets(), library.refusal(name)
    finally:
        library.narrow(read_settings().cpu)
    if name in offered:
        assert done.stdout.split() == list(offered[offered.index(name) :]), done.stderr
    else:
        assert f"can't be narrowed to {name} (EARTHSHINE_CPU): it only hides what is there. {refusal}" in done.stderr


@pytest.mark.usefixtures("native_library")
def test_narrowing_hides_what_is_better_until_it_ends() -> None:
    before = library.instruction_sets()
    library.narrow("portable")
    try:
        assert library.instruction_sets() == ("portable",)
        assert library.instruction_set() == "portable"
        assert all("hidden" in library.refusal(name) for name in before[:-1])
        with pytest.raises(KernelError, match="no such instruction set"):
            library.narrow("sse9")
        assert library.instruction_sets() == ("portable",)
    finally:
        library.narrow(read_settings().cpu)
    assert library.instruction_sets() == before
    assert library.instruction_set() == before[0]


def test_an_absent_library_falls_back_aloud(monkeypatch) -> None:
    monkeypatch.delenv("EARTHSHINE_KERNELS", raising=False)
    monkeypatch.setattr(library, "_load", lambda: "It is not there.")
    assert served("linear") == kernels.Implementation("linear", "torch", "It is not there.")
    stored, x = matrix(Storage.INT4_GROUP32, 5, 64), draw(3, 64)
    assert torch.equal(kernels.decode(stored), reference.decode(stored))
    torch.testing.assert_close(kernels.linear(x, stored), reference.linear(x, stored))
    kernels.set_threads(2)  # as loading a model does


def test_an_instruction_set_asked_for_by_name_is_refused_without_the_library(monkeypatch) -> None:
    monkeypatch.setattr(library, "_load", lambda: "It is not there.")
    monkeypatch.setenv("EARTHSHINE_KERNELS", "portable")
    with pytest.raises(KernelError, match="asks for portable, but: It is not there"):
        kernels.implementations()


def test_an_unknown_choice_is_a_usage_error(monkeypatch) -> None:
    monkeypatch.setenv("EARTHSHINE_KERNELS", "fast")
    with pytest.raises(UsageError, match="auto, reference, portable, avx2, avx512"):
        kernels.implementations()


@pytest.mark.parametrize("choice", ["auto", "reference"])
def test_misshapen_weights_are_refused_alike_whatever_serves(choice, monkeypatch) -> None:
    monkeypatch.setenv("EARTHSHINE_KERNELS", choice)
    packed, scale = torch.zeros(5, 32, dtype=torch.int32), torch.ones(5, 8).bfloat16()
    with pytest.raises(KernelError, match="80 of scales; there are 640 and 10"):
        kernels.decode(kernels.int4_matrix(packed, scale[:, :1]))
    with pytest.raises(KernelError, match="float8_e4m3fn matrix is expected"):
        kernels.decode(kernels.fp8_matrix(torch.zeros(130, 254, dtype=torch.uint8), torch.ones(2, 2)))


def test_a_slice_of_a_matrix_is_decoded_as_the_slice() -> None:
    packed = torch.arange(-80, 80, dtype=torch.int32).view(5, 32) * 0x1234567
    scale = draw(5, 8)
    assert not packed[:, 4:12].is_contiguous()
    found = kernels.decode(kernels.int4_matrix(packed[:, 4:12], scale[:, 1:3]))
    assert torch.equal(found, reference.decode_int4(packed, scale)[:, 32:96])


def test_fp32_activations_and_gradients_take_torch() -> None:
    """The library takes bf16; a weight in training keeps its gradient."""
    x, weight = draw(3, 64), draw(5, 64).requires_grad_()
    kernels.linear(x, weight).float().sum().backward()
    assert weight.grad is not None
    by_head = draw(2, 5, 64).requires_grad_()
    kernels.linear_by_head(draw(3, 2, 64), by_head).float().sum().backward()
    assert by_head.grad is not None
    assert kernels.linear(x.float(), weight.detach().float()).dtype == torch.float32


def test_an_output_dtype_and_a_place_for_the_output_may_be_named() -> None:
    x, weight = draw(3, 2, 64), draw(2, 5, 64)
    assert kernels.linear(x, weight[0], torch.float32).dtype == torch.float32
    for kind in (torch.bfloat16, torch.float32):
        out = torch.zeros(3, 2, 8, dtype=kind)
        assert kernels.linear_by_head(x.to(kind), weight.to(kind), out[..., 3:]).data_ptr() == out[..., 3:].data_ptr()
        assert torch.equal(out[..., 3:], kernels.linear_by_head(x.to(kind), weight.to(kind)))
