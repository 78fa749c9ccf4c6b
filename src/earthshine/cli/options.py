"""What several commands ask for in the same words: the activations' dtype, and room for so many tokens."""

import torch

from earthshine.errors import UsageError
from earthshine.spec import ModelSpec

LONGEST_CONTEXT = 32768  # tokens that a command makes room for, unless asked for more
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def parse_dtype(name: str) -> torch.dtype:
    """The dtype called bf16 or fp32; raises UsageError."""
    if name not in _DTYPES:
        raise UsageError(f"{name!r} is not a dtype here; choose one of {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def context_tokens(spec: ModelSpec, asked: int | None) -> int:
    """Tokens to make room for; raises UsageError for fewer than 2 or more than the model's context."""
    tokens = min(spec.max_context, LONGEST_CONTEXT) if asked is None else asked
    if not 2 <= tokens <= spec.max_context:
        raise UsageError(f"A context of {tokens} tokens is not possible; this model takes 2 to {spec.max_context}.")
    return tokens
