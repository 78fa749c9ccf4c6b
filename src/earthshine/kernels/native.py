"""The native library, and the only module that loads native code.

It is `libearthshine.so` in one of this package's folders (an editable install has two: the sources and the built
files). A library that is absent or of another interface version is never loaded, and `reason()` says so.
Every tensor is checked before its address crosses the boundary; what does not fit raises KernelError.
Interface: native/include/earthshine.h.
"""

import ctypes
import functools
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from earthshine.errors import KernelError
from earthshine.kernels.reference import FP8_BLOCK, INT4_GROUP

ABI_VERSION = 1
FILE_NAME = "libearthshine.so"

_POINTER, _INT64, _INT32, _NAME = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_char_p
_DECODE = (_INT32, (_POINTER, _POINTER, _INT64, _INT64, _POINTER))
_SIGNATURES = MappingProxyType(
    {
        "es_status_text": (_NAME, (_INT32,)),
        "es_instruction_set_at": (_NAME, (_INT32,)),
        "es_instruction_set": (_NAME, ()),
        "es_force_instruction_set": (_INT32, (_NAME,)),
        "es_decode_int4": _DECODE,
        "es_decode_fp8": _DECODE,
    }
)


def available() -> bool:
    """Whether the library is loaded."""
    return not reason()


def reason() -> str:
    """Why the library does not serve, in a sentence; empty where it does."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else ""


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that this build and this processor have, best first; the last is "portable"."""
    library = _library()
    names: list[str] = []
    while (name := library.es_instruction_set_at(len(names))) is not None:
        names.append(name.decode("ascii"))
    return tuple(names)


def instruction_set() -> str:
    """The instruction set that serves now."""
    return str(_library().es_instruction_set().decode("ascii"))


def force(name: str) -> None:
    """Makes one of `instruction_sets()`, or with "auto" the best, serve the whole process; the bits stay the same."""
    permitted = ("auto", *instruction_sets())
    if name not in permitted:
        raise KernelError(f"The instruction set {name!r} can't run here; permitted are {', '.join(permitted)}.")
    _check_status(_library().es_force_instruction_set(name.encode("ascii")))


def decode_int4(packed: Tensor, scale: Tensor) -> Tensor:
    """As `reference.decode_int4`, bit for bit but for nan, which is always 0x7fc0. Contiguous CPU tensors only.

    packed: int32 [rows, cols / 8]; scale: bf16 [rows, cols / 32]; returns bf16 [rows, cols].
    """
    check_int4(packed, scale)
    rows, cols = packed.shape[0], packed.shape[1] * 8
    return _decode(_library().es_decode_int4, packed, scale, rows, cols)


def decode_fp8(weight: Tensor, scale_inv: Tensor) -> Tensor:
    """As `reference.decode_fp8`, bit for bit but for nan, which is always 0x7fc0. Contiguous CPU tensors only.

    weight: e4m3fn [rows, cols]; scale_inv: fp32 [ceil(rows / 128), ceil(cols / 128)]; returns bf16 [rows, cols].
    """
    check_fp8(weight, scale_inv)
    return _decode(_library().es_decode_fp8, weight, scale_inv, *weight.shape)


def check_int4(packed: Tensor, scale: Tensor) -> None:
    """Refuses tensors that are not the two halves of one int4 matrix, whichever implementation serves."""
    _check_matrix("packed", packed, torch.int32)
    _check_matrix("scale", scale, torch.bfloat16)
    rows, words = packed.shape
    if words * 8 % INT4_GROUP:
        raise KernelError(f"packed has {words * 8} columns, which is not a multiple of the group of {INT4_GROUP}.")
    _check_pair("scale", scale, (rows, words * 8 // INT4_GROUP), packed)


def check_fp8(weight: Tensor, scale_inv: Tensor) -> None:
    """Refuses tensors that are not the two halves of one fp8 matrix, whichever implementation serves."""
    _check_matrix("weight", weight, torch.float8_e4m3fn)
    _check_matrix("scale_inv", scale_inv, torch.float32)
    rows, cols = weight.shape
    _check_pair("scale_inv", scale_inv, (-(-rows // FP8_BLOCK), -(-cols // FP8_BLOCK)), weight)


def _check_matrix(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        raise KernelError(f"{name} is not a dense tensor; a {dtype} matrix is expected.")
    if tensor.dtype != dtype or tensor.ndim != 2:
        raise KernelError(f"{name} is {tensor.dtype} {list(tensor.shape)}; a {dtype} matrix is expected.")


def _check_pair(name: str, scales: Tensor, shape: tuple[int, int], codes: Tensor) -> None:
    if tuple(scales.shape) != shape:
        raise KernelError(f"{name} is {list(scales.shape)}; codes of {list(codes.shape)} need {list(shape)}.")
    if scales.device != codes.device:
        raise KernelError(f"{name} is on {scales.device} and its codes on {codes.device}; both must be on one device.")


def _decode(function: Callable[..., int], codes: Tensor, scales: Tensor, rows: int, cols: int) -> Tensor:
    for tensor in (codes, scales):
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise KernelError("The native library reads contiguous tensors in main memory; copy the weights there.")
    out = torch.empty(rows, cols, dtype=torch.bfloat16)
    _check_status(function(codes.data_ptr(), scales.data_ptr(), rows, cols, out.data_ptr()))
    return out


def _check_status(status: int) -> None:
    if status != 0:
        raise KernelError(str(_library().es_status_text(status).decode("ascii")))


def _library() -> ctypes.CDLL:
    loaded = _load()
    if isinstance(loaded, str):
        raise KernelError(loaded)
    return loaded


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none. Looked for once a process."""
    package = find_spec("earthshine.kernels")
    folders = (package and package.submodule_search_locations) or ()
    found = next((path for folder in folders if (path := Path(folder, FILE_NAME)).is_file()), None)
    if found is None:
        return f"The native library {FILE_NAME} is not installed; `pip install .` builds it, and needs a C++ compiler."
    return open_library(found)


def open_library(path: Path) -> ctypes.CDLL | str:
    """Loads one file and declares its functions; a sentence where it is not a library of this interface version."""
    try:
        library = ctypes.CDLL(str(path))
        library.es_abi_version.restype = _INT32
        version = int(library.es_abi_version())
        if version != ABI_VERSION:
            return f"{path} has interface version {version}, and this package needs {ABI_VERSION}; install it again."
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as problem:
        return f"{path} can't be loaded ({problem}); install the package again."
    return library
