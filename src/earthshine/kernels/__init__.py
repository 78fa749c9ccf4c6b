"""The door to every operation: what serves it is decided here, and nowhere else.

`reference` is the oracle and serves wherever nothing better exists. `rows` keeps torch's bits independent of the
batch. The native library decodes stored weights in main memory. EARTHSHINE_KERNELS can ask for the reference or for
an instruction set, never for other results: the same bits come out. A fallback is never silent: `implementations()`
says what serves and why a better one does not.
"""

import functools
from dataclasses import dataclass

from torch import Tensor

from earthshine.errors import KernelError
from earthshine.kernels import native, reference
from earthshine.kernels.reference import rms_norm, rotate
from earthshine.kernels.rows import attend, linear, linear_by_head, route, swiglu
from earthshine.settings import KERNEL_CHOICES, read_settings

__all__ = [
    "Implementation",
    "attend",
    "decode_fp8",
    "decode_int4",
    "implementations",
    "linear",
    "linear_by_head",
    "rms_norm",
    "rotate",
    "route",
    "swiglu",
]

_DECODERS = ("decode_fp8", "decode_int4")
_TORCH_ONLY = ("attend", "linear", "linear_by_head", "rms_norm", "rotate", "route", "swiglu")


@dataclass(frozen=True, slots=True)
class Implementation:
    """What serves one operation on this machine's processor, and why a better one does not ("" where this is best)."""

    operation: str
    name: str  # "torch" or "native" and its instruction set
    reason: str


@dataclass(frozen=True, slots=True)
class _Decoder:
    native: bool
    name: str
    reason: str


def implementations() -> tuple[Implementation, ...]:
    """One entry an operation, sorted by name. Raises KernelError where EARTHSHINE_KERNELS can't be satisfied here."""
    decoder = _decoder()
    served = [Implementation(operation, decoder.name, decoder.reason) for operation in _DECODERS]
    unwritten = "Torch is the only implementation so far."
    served += [Implementation(operation, "torch", unwritten) for operation in _TORCH_ONLY]
    return tuple(sorted(served, key=lambda implementation: implementation.operation))


def decode_int4(packed: Tensor, scale: Tensor) -> Tensor:
    """int32 [rows, cols / 8] and bf16 [rows, cols / 32] to bf16 [rows, cols]; KernelError if misshapen."""
    native.check_int4(packed, scale)
    if packed.device.type == "cpu" and _decoder().native:
        return native.decode_int4(packed.contiguous(), scale.contiguous())
    return reference.decode_int4(packed, scale)


def decode_fp8(weight: Tensor, scale_inv: Tensor) -> Tensor:
    """e4m3 [rows, cols] and fp32 [rows / 128, cols / 128] (up) to bf16 [rows, cols]; KernelError if misshapen."""
    native.check_fp8(weight, scale_inv)
    if weight.device.type == "cpu" and _decoder().native:
        return native.decode_fp8(weight.contiguous(), scale_inv.contiguous())
    return reference.decode_fp8(weight, scale_inv)


@functools.cache
def _decoder() -> _Decoder:
    """What decodes weights in this process: settled at the first use, since a process keeps one environment."""
    asked = read_settings().kernels
    if asked == "reference":
        return _Decoder(False, "torch", "EARTHSHINE_KERNELS asks for the reference.")
    if not native.available():
        if asked == "auto":
            return _Decoder(False, "torch", native.reason())
        raise KernelError(f"EARTHSHINE_KERNELS asks for {asked}, but: {native.reason()}")
    offered = native.instruction_sets()
    if asked not in ("auto", *offered):
        permitted = ", ".join(("auto", "reference", *offered))
        raise KernelError(f"EARTHSHINE_KERNELS asks for {asked}, which can't run here; permitted are {permitted}.")
    native.force(asked)
    serving = native.instruction_set()
    return _Decoder(True, f"native {serving}", _why_not_better(asked, serving, offered))


def _why_not_better(asked: str, serving: str, offered: tuple[str, ...]) -> str:
    if serving != offered[0]:
        return f"EARTHSHINE_KERNELS asks for {asked}; {offered[0]} would run here."
    best = KERNEL_CHOICES[-1]
    return "" if serving == best else f"This processor, or this build for it, does not offer {best}."
