"""The native library, and the only module that loads native code.

It is `libearthshine.so` in one of this package's folders (an editable install has two: the sources and the built
files). A missing library, or one of another interface version, is not loaded, and `reason()` says why. Interface:
native/include/earthshine.h.
"""

import ctypes
import functools
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from earthshine.errors import KernelError
from earthshine.settings import read_settings

ABI_VERSION = 8
FILE_NAME = "libearthshine.so"

_POINTER, _INT64, _INT32, _NAME = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_char_p
_FLOAT = ctypes.c_float
_SIGNATURES = MappingProxyType(
    {
        "es_status_text": (_NAME, (_INT32,)),
        "es_instruction_set_at": (_NAME, (_INT32,)),
        "es_instruction_set": (_NAME, ()),
        "es_force_instruction_set": (_INT32, (_NAME,)),
        "es_narrow": (_INT32, (_NAME,)),
        "es_refusal": (_NAME, (_NAME,)),
        "es_set_threads": (_INT32, (_INT32,)),
        "es_threads": (_INT32, ()),
        "es_decode": (_INT32, (_POINTER, _POINTER)),
        "es_linear": (_INT32, (_POINTER, _POINTER, _INT64, _POINTER, _INT32)),
        "es_linear_by_head": (_INT32, (_POINTER, _POINTER, _POINTER, _INT64, _POINTER)),
        "es_moe_ffn": (_INT32, (_POINTER, _INT64, _POINTER, _POINTER, _INT64, _POINTER, _INT64, _INT64, _POINTER)),
        "es_moe_sum": (_INT32, (_POINTER, _POINTER, _POINTER, _INT64, _INT64, _INT64, _POINTER)),
        "es_rms_norm": (
            _INT32,
            (
                _POINTER,
                _INT32,
                _INT64,
                _INT64,
                _POINTER,
                _INT64,
                _POINTER,
                _FLOAT,
                _INT64,
                _INT64,
                _INT64,
                _POINTER,
                _INT64,
                _INT64,
            ),
        ),
        "es_rotate": (
            _INT32,
            (_POINTER, _INT64, _INT64, _POINTER, _POINTER, _INT32, _INT64, _INT64, _INT64, _POINTER, _INT64, _INT64),
        ),
        "es_swiglu": (_INT32, (_POINTER, _INT64, _POINTER, _INT64, _INT32, _INT64, _INT64, _POINTER)),
        "es_route": (
            _INT32,
            (_POINTER, _INT32, _POINTER, _INT64, _INT64, _INT64, _INT64, _INT64, _INT32, _FLOAT, _POINTER, _POINTER),
        ),
        "es_paged_attention": (_INT32, (_POINTER, _POINTER, _INT64, _POINTER, _INT64, _POINTER, _POINTER)),
        "es_gated_rms_norm": (
            _INT32,
            (_POINTER, _POINTER, _INT64, _POINTER, _FLOAT, _INT64, _INT64, _POINTER),
        ),
        "es_kda": (
            _INT32,
            (_POINTER, _POINTER, _INT64, _POINTER, _POINTER, _POINTER, _INT64, _POINTER, _POINTER, _POINTER, _POINTER),
        ),
        "es_mla_layer": (_INT32, (_POINTER, _POINTER, _POINTER, _POINTER)),
        "es_gqa_layer": (_INT32, (_POINTER, _POINTER, _POINTER, _POINTER)),
        "es_ffn_layer": (_INT32, (_POINTER, _POINTER, _POINTER, _POINTER, _INT64, _POINTER)),
        "es_read": (_INT32, (_POINTER, _INT64, _POINTER)),
    }
)


def available() -> bool:
    """Whether the library is loaded."""
    return not reason()


def reason() -> str:
    """Why the library does not serve, in a sentence; empty if it does."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else ""


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that this build and this processor have, best first; the last is "portable"."""
    loaded = library()
    names: list[str] = []
    while (name := loaded.es_instruction_set_at(len(names))) is not None:
        names.append(name.decode("ascii"))
    return tuple(names)


def instruction_set() -> str:
    """The instruction set in use."""
    return str(library().es_instruction_set().decode("ascii"))


def refusal(name: str) -> str:
    """Why an instruction set can't be used here, in a sentence; empty if it can."""
    text = library().es_refusal(name.encode("ascii"))
    return f"This build has no {name}." if text is None else str(text.decode("ascii"))


def force(name: str) -> None:
    """Use one of `instruction_sets()`, or with "auto" the best, in the whole process."""
    permitted = ("auto", *instruction_sets())
    if name not in permitted:
        raise KernelError(f"The instruction set {name!r} can't run here; permitted are {', '.join(permitted)}.")
    check_status(library().es_force_instruction_set(name.encode("ascii")))


def narrow(name: str) -> None:
    """Hide every instruction set better than `name` from this process; "auto" hides none.

    Raises KernelError, saying why, for a name that can't run here.
    """
    _narrow(library(), name)


def set_threads(n_threads: int) -> None:
    """Set the number of threads of the library's operations, 1 to 512. No result depends on it."""
    if not 1 <= n_threads <= 512:
        raise KernelError(f"n_threads must be between 1 and 512, not {n_threads}.")
    if available():
        check_status(library().es_set_threads(n_threads))


def threads() -> int:
    """The number of threads of the library's operations."""
    return int(library().es_threads())


def check_status(status: int) -> None:
    """Raises KernelError, with the reason, for any status other than success."""
    if status != 0:
        raise KernelError(str(library().es_status_text(status).decode("ascii")))


def library() -> ctypes.CDLL:
    """The loaded library; raises KernelError, saying why, where there is none."""
    loaded = _load()
    if isinstance(loaded, str):
        raise KernelError(loaded)
    return loaded


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The library, narrowed as EARTHSHINE_CPU asks, or why there is none. Looked for once a process.

    Raises KernelError where EARTHSHINE_CPU names what this processor lacks, and UsageError where it names nothing.
    """
    package = find_spec("earthshine.kernels")
    folders = (package and package.submodule_search_locations) or ()
    found = next((path for folder in folders if (path := Path(folder, FILE_NAME)).is_file()), None)
    if found is None:
        return f"The native library {FILE_NAME} is not installed; `pip install .` builds it, and needs a C++ compiler."
    loaded = open_library(found)
    if isinstance(loaded, ctypes.CDLL):
        _narrow(loaded, read_settings().cpu)
    return loaded


def _narrow(loaded: ctypes.CDLL, name: str) -> None:
    if loaded.es_narrow(name.encode("ascii")) == 0:
        return
    why = loaded.es_refusal(name.encode("ascii"))
    raise KernelError(
        f"The processor can't be narrowed to {name} (EARTHSHINE_CPU): it only hides what is there. "
        f"{'This build has no such instruction set.' if why is None else why.decode('ascii')}"
    )


def open_library(path: Path) -> ctypes.CDLL | str:
    """Loads one file and declares its functions; a sentence where it is not a library of this interface version."""
    try:
        loaded = ctypes.CDLL(str(path))
        loaded.es_abi_version.restype = _INT32
        version = int(loaded.es_abi_version())
        if version != ABI_VERSION:
            return f"{path} has interface version {version}, and this package needs {ABI_VERSION}; install it again."
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as problem:
        return f"{path} can't be loaded ({problem}); install the package again."
    return loaded
