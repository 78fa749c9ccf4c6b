"""The log-probability of a token as chat completions and responses report it: one object with its bytes and rivals.

Invariant: every number is one that JSON has. Refuses nothing.
"""

from typing import Any

from earthshine.generation.request import Scored

_LEAST = -9999.0  # OpenAI's sign for a token that can't come


def score(token: Scored) -> dict[str, Any]:
    """{"token", "bytes", "logprob", "top_logprobs"}; the text of incomplete bytes holds U+FFFD."""
    logprob = _LEAST if token.logprob is None else token.logprob
    rivals = [_score(raw, value) for _, raw, value in token.top]
    return {**_score(token.raw, logprob), "top_logprobs": rivals}


def _score(raw: bytes, logprob: float) -> dict[str, Any]:
    return {"token": raw.decode("utf-8", "replace"), "bytes": list(raw), "logprob": max(logprob, _LEAST)}
