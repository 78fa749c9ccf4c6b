"""`earthshine score`: the log-likelihood, perplexity and bits per byte of a text under a model.

The first token is not scored, since nothing comes before it. A text longer than a window is scored in consecutive
windows, each beginning with the last token of the previous one.
"""

import json
import math
from itertools import pairwise
from pathlib import Path

import torch

from earthshine.cli.models import announce_download
from earthshine.cli.options import load_with_progress, read_text, standard_input
from earthshine.engine import Session
from earthshine.errors import UsageError
from earthshine.hub import find_readable
from earthshine.plan import Plan, PlanArgs

_MOST_NATS = 700.0  # per token; exp of more overflows


def run_score(model: str, file: Path, as_json: bool, plan: Plan | PlanArgs) -> None:
    text = _read(file)
    folder, tokenizer = find_readable(model, announce_download)
    tokens = tokenizer.encode(text, allow_special=False)
    if len(tokens) < 2:
        raise UsageError("The text has fewer than two tokens; a score needs at least two.")
    loaded = load_with_progress(folder, plan)
    window = max(2, loaded.plan.memory.context_tokens)
    logprobs = score_windows(loaded.session(min(window, len(tokens))), tokens, window)
    total = float(logprobs.double().sum())
    scored_bytes = len(tokenizer.decode_bytes(tokens[1:]))
    summary = {
        "tokens": len(tokens),
        "scored_tokens": len(logprobs),
        "scored_bytes": scored_bytes,
        "log_likelihood": total,
        "perplexity": math.exp(min(-total / len(logprobs), _MOST_NATS)),
        "bits_per_byte": -total / math.log(2) / scored_bytes,
    }
    if as_json:
        print(json.dumps(summary | {"token_ids": tokens, "logprobs": [None, *logprobs.tolist()]}))
        return
    for name, value in summary.items():
        print(f"{name:16} {value:,.4f}" if isinstance(value, float) else f"{name:16} {value:,}")


def score_windows(session: Session, tokens: list[int], window: int) -> torch.Tensor:
    """fp32 [n - 1]: the log-likelihood of each token but the first, given those before it in its window."""
    starts = [*range(0, len(tokens) - 1, window - 1), len(tokens) - 1]
    return torch.cat([session.score(tokens[start : end + 1]) for start, end in pairwise(starts)])


def _read(file: Path) -> str:
    if str(file) == "-":
        return read_text(standard_input(), "Standard input")
    try:
        with file.open("rb") as opened:
            return read_text(opened, str(file))
    except OSError as error:
        raise UsageError(f"{file} can't be read: {error.strerror}.") from None
