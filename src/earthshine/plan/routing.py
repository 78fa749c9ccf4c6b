"""How a router spreads tokens over experts, as a forecast models it: by popularity alone.

Invariant: every share is between 0 and 1, and at most 0.95 unless `top_k` requires more, and the shares of
a layer add up to `top_k`. Popularity follows Zipf's law with an exponent, the skew: 0 is even, and 0.9 is near what was
recorded of Kimi-Linear, a relative of Kimi-K2.6. There the busiest tenth of experts carries 53% of choices, by this law
55%; and slots for 1.6, 3.1, 6.3 and 25% of a layer's experts answer 27, 39, 50 and 76% of them under the store's policy
(tools/replay_routing.py), by this law 27, 37, 47 and 72%. Choices by different tokens count as independent, but those
of one text repeat: 8 tokens in a row choose 36 experts of a layer there, by this law 43.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

SKEW = 0.9
MOST_SKEW = 4
_MOST_SHARE = 0.95  # of all tokens, for any one expert


@dataclass(frozen=True, slots=True)
class Routing:
    """One layer's router. `skew`: Zipf's exponent of the experts' popularity."""

    n_experts: int
    top_k: int
    skew: float = SKEW

    def distinct(self, n_tokens: float, held: int = 0) -> float:
        """Experts that `n_tokens` tokens choose between them, without the `held` most popular ones."""
        return _distinct(self, n_tokens, held)


@lru_cache(maxsize=256)  # a plan asks 620 times for 11 of them, a fifth of its time
def _distinct(routing: Routing, n_tokens: float, held: int) -> float:
    shares = popularity(routing.n_experts, routing.top_k, routing.skew)
    return sum(_chosen(share, n_tokens) for share in shares[held:])


def _chosen(share: float, n_tokens: float) -> float:
    """The chance that any of `n_tokens` tokens chooses an expert of that share."""
    return min(1.0, n_tokens) if share >= 1 else -math.expm1(n_tokens * math.log1p(-share))


@lru_cache(maxsize=64)
def popularity(n_experts: int, top_k: int, skew: float) -> tuple[float, ...]:
    """The share of tokens that choose each expert, the busiest first."""
    weights = [rank**-skew for rank in range(1, n_experts + 1)]
    most = max(_MOST_SHARE, (1 + top_k / n_experts) / 2)
    rests = list(accumulate(reversed(weights)))[::-1]  # of each and all that are less popular
    shares: list[float] = []
    left = float(top_k)
    for weight, rest in zip(weights, rests, strict=True):
        shares.append(min(most, left * (weight / rest)))
        left -= shares[-1]
    return tuple(shares)
