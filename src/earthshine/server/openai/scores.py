"""The log-probability of a token as chat completions and responses report it, with its bytes and alternatives."""

from typing import Any

from earthshine.generation.request import Scored

_LEAST = -9999.0  # OpenAI's value for a token of probability 0; JSON has no infinity


def score(token: Scored) -> dict[str, Any]:
    """{"token", "bytes", "logprob", "top_logprobs"}; the text of incomplete bytes holds U+FFFD."""
    logprob = _LEAST if token.logprob is None else token.logprob
    alternatives = [_score(raw, value) for _, raw, value in token.top]
    return {**_score(token.raw, logprob), "top_logprobs": alternatives}


def _score(raw: bytes, logprob: float) -> dict[str, Any]:
    return {"token": raw.decode("utf-8", "replace"), "bytes": list(raw), "logprob": max(logprob, _LEAST)}
