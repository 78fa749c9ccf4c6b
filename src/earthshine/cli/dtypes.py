"""The activations' dtype as a person writes it."""

import torch

from earthshine.errors import UsageError

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def parse_dtype(name: str) -> torch.dtype:
    """The dtype called bf16 or fp32; raises UsageError."""
    if name not in _DTYPES:
        raise UsageError(f"{name!r} is not a dtype here; choose one of {', '.join(_DTYPES)}.")
    return _DTYPES[name]
