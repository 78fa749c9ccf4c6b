"""Samples a token from logits: penalties, temperature, min_p, top_k, top_p, in vLLM's order and with its meanings.

Each request has its own stream of random numbers, a function of its seed and of the number of tokens drawn, so that a
result does not depend on the batch, on threads or on a library's generator. Reported log-probabilities are those of the
model, before any of these. Refuses logits that are not numbers.
"""

import math
import secrets
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from earthshine.engine.request import Constraint
from earthshine.engine.sampling_params import SamplingParams
from earthshine.errors import EarthshineError, UsageError

_NUCLEUS_FIRST = 1024  # tokens sorted before a whole vocabulary is; nearly every nucleus is within these


@dataclass(frozen=True, slots=True)
class Sampled:
    token: int
    logprob: float  # in the model's distribution, before penalties and temperature
    top: tuple[tuple[int, float], ...]  # (id, logprob) of the most likely tokens, best first, lower id among equals


class Sampler:
    """The sampler of one request. `prompt_tokens`: counted by repetition_penalty, besides the tokens sampled here."""

    def __init__(self, params: SamplingParams, prompt_tokens: Sequence[int]) -> None:
        self.params = params
        self._prompt = sorted(set(prompt_tokens)) if params.penalizes else []
        seed = secrets.randbits(63) if params.seed is None else params.seed
        self._seed = struct.pack("<q", seed)
        self._drawn = self._sampled = 0
        self._seen: Tensor | None = None  # bool [vocab]: in the prompt or sampled
        self._counts: Tensor | None = None  # fp32 [vocab]: times sampled
        self._named: Tensor | None = None  # bool [vocab]: allowed_tokens

    def sample(self, logits: Tensor, allowed: Tensor | None = None, stops: Collection[int] = ()) -> Sampled:
        """Choose a token from logits, fp32 [vocab], and count it.

        `allowed`: bool [vocab], None for all; `stops`: stop tokens, which min_tokens excludes. Raises EarthshineError
        for logits that are not numbers, and where no token is allowed: UsageError if the request's own parameters cause
        that.
        """
        adjusted = self._adjusted(logits, allowed, stops)
        token = int(adjusted.argmax()) if self.params.temperature == 0 else self._draw(adjusted)
        if self._seen is not None and self._counts is not None:
            self._seen[token] = True
            self._counts[token] += 1
        self._sampled += 1
        logprobs = logits.log_softmax(-1)
        return Sampled(token, float(logprobs[token]), most_likely(logprobs, self.params.logprobs or 0))

    def constrained(self, logits: Tensor, constraint: Constraint | None, stops: Collection[int] = ()) -> Sampled:
        """As `sample`, a token that `constraint` allows, which is then advanced by it. Raises also as `constraint`."""
        if constraint is None:
            return self.sample(logits, stops=stops)
        likeliest = None if self.params.ignore_eos else self.likeliest(logits, stops)
        allowed = constraint.allowed(likeliest)
        sampled = self.sample(logits, None if allowed is None else _unpacked(allowed, len(logits)), stops)
        constraint.accept(sampled.token)
        return sampled

    def likeliest(self, logits: Tensor, stops: Collection[int] = ()) -> int:
        """The token that would be chosen from logits, fp32 [vocab], at temperature 0 without a constraint. `stops` and
        errors as in `sample`."""
        return int(self._adjusted(logits, None, stops).argmax())

    def _adjusted(self, logits: Tensor, allowed: Tensor | None, stops: Collection[int]) -> Tensor:
        if not math.isfinite(float(logits.max())):
            raise EarthshineError(
                "The model's output is not a number, so no token can be chosen; the weights or the state are damaged."
            )
        return self._allowed(self._biased(self._penalized(logits)), allowed, stops)

    def _penalized(self, logits: Tensor) -> Tensor:
        params = self.params
        if not params.penalizes:
            return logits
        if self._seen is None or self._counts is None:
            if self._prompt and not 0 <= self._prompt[0] <= self._prompt[-1] < len(logits):
                raise UsageError(f"The prompt has tokens outside this vocabulary of {len(logits)}.")
            self._seen = torch.zeros(len(logits), dtype=torch.bool)
            self._seen[torch.tensor(self._prompt, dtype=torch.int64)] = True
            self._counts = torch.zeros(len(logits))
        repeated = torch.where(logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty)
        # A huge penalty keeps its order but not an infinity: -inf is for tokens that the model itself excludes.
        finite = repeated.clamp(torch.finfo(torch.float32).min, torch.finfo(torch.float32).max)
        logits = torch.where(self._seen & (logits > -math.inf), finite, logits)
        return logits - params.frequency_penalty * self._counts - params.presence_penalty * (self._counts > 0)

    def _biased(self, logits: Tensor) -> Tensor:
        bias = self.params.logit_bias
        if not bias:
            return logits
        ids = torch.tensor(list(bias))
        if int(ids.max()) >= len(logits):
            raise UsageError(f"logit_bias names token {int(ids.max())}; this vocabulary ends at {len(logits) - 1}.")
        return logits.index_add(0, ids, torch.tensor([float(value) for value in bias.values()]))

    def _allowed(self, logits: Tensor, allowed: Tensor | None, stops: Collection[int]) -> Tensor:
        named, held = self.params.allowed_token_ids, list(stops) if self._sampled < self.params.min_tokens else []
        if allowed is None and not named and not held:
            return logits
        kept = torch.ones(len(logits), dtype=torch.bool) if allowed is None else allowed.clone()
        if named:
            if self._named is None:
                self._named = _flags(named, len(logits))
            kept &= self._named
        if held:
            kept[held] = False
        logits = torch.where(kept, logits, -math.inf)
        if not math.isfinite(float(logits.max())):
            bounds = ["the form that was asked for"] * (allowed is not None)
            bounds += ["allowed_token_ids"] * bool(named) + ["min_tokens"] * bool(held)
            refusal = UsageError if named or held else EarthshineError
            raise refusal(f"No token can come next: {' and '.join(bounds)} leave none.")
        return logits

    def _draw(self, logits: Tensor) -> int:
        """A token by inversion: the first whose cumulative weight, in order of ids, exceeds the random number."""
        ids, weights = self._candidates(logits)
        cumulative = weights.cumsum(0)
        point = self._uniform() * cumulative[-1]
        return int(ids[min(int(torch.searchsorted(cumulative, point, right=True)), len(ids) - 1)])

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Ids, ascending, and fp64 weights of what min_p, top_k and top_p leave; the best token's weight is 1."""
        params = self.params
        # Relative to the best before dividing, so that no temperature above 0 overflows.
        weights = ((logits.double() - logits.max()) / params.temperature).exp()
        kept = (weights >= params.min_p) & (weights > 0)
        if 0 < params.top_k < len(weights):
            kept &= weights >= weights.topk(params.top_k).values[-1]
        ids = kept.nonzero()[:, 0]
        if params.top_p < 1:
            ids = ids[_nucleus(weights[ids], params.top_p)]
        return ids, weights[ids]

    def _uniform(self) -> float:
        """In [0, 1), from the seed and the number of draws so far."""
        digest = blake2b(self._seed + struct.pack("<Q", self._drawn), digest_size=8).digest()
        self._drawn += 1
        return float((int.from_bytes(digest, "little") >> 11) * 2.0**-53)


def _unpacked(allowed: np.ndarray, vocab_size: int) -> Tensor:
    """bool [vocab_size] from int32 words whose lowest bit is the lowest id."""
    bits = np.unpackbits(allowed.view(np.uint8), bitorder="little", count=vocab_size)
    return torch.from_numpy(bits.view(np.bool_))


def _flags(tokens: Sequence[int], vocab_size: int) -> Tensor:
    """bool [vocab_size], true for these."""
    if max(tokens) >= vocab_size:
        raise UsageError(f"Token {max(tokens)} is allowed; this vocabulary ends at {vocab_size - 1}.")
    return torch.zeros(vocab_size, dtype=torch.bool).index_fill(0, torch.tensor(tokens), True)


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """Ascending indices of the smallest set of largest weights that holds `top_p` of the sum; always at least one."""
    threshold = top_p * float(weights.cumsum(0)[-1])
    for size in (_NUCLEUS_FIRST, len(weights)):
        if size < len(weights):
            among = (weights >= weights.topk(size).values[-1]).nonzero()[:, 0]
        else:
            among = torch.arange(len(weights))
        order = among[weights[among].sort(descending=True, stable=True).indices]
        cumulative = weights[order].cumsum(0)
        if cumulative[-1] >= threshold or len(among) == len(weights):
            break
    before = cumulative - weights[order]
    return order[: max(1, int((before < threshold).sum()))].sort().values


def most_likely(logprobs: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    """(id, value) of the `count` greatest of fp32 [vocab], best first, the lower id among equals."""
    if count == 0:
        return ()
    # All that tie with the last are sorted too, so that the lower id wins whatever order topk prefers.
    least = logprobs.topk(min(count, len(logprobs))).values[-1]
    ids = (logprobs >= least).nonzero()[:, 0]
    ids = ids[logprobs[ids].sort(descending=True, stable=True).indices][:count]
    return tuple(zip(ids.tolist(), logprobs[ids].tolist(), strict=True))
