"""Earthshine runs open sparse mixture-of-experts models with latent attention on hardware people have.

`from earthshine import LLM, SamplingParams` is the way in from Python. Importing this package loads no torch; using one
of these names does.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from earthshine.engine import SamplingParams
    from earthshine.llm import LLM, CompletionOutput, RequestOutput

__all__ = ["LLM", "CompletionOutput", "RequestOutput", "SamplingParams"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from earthshine import llm

    return getattr(llm, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
