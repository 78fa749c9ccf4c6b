"""A router bias that makes some experts busier than others, as training does.

Expert popularity follows Zipf's law as far as the sigmoid router allows: an expert is chosen by no more than 95% of
tokens, and what it would get beyond that goes to the others.
"""

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_MOST = 0.95


def popularity(n_experts: int, top_k: int, exponent: float) -> NDArray[np.float64]:
    """The share of tokens that choose each expert, busiest first: about rank ** -exponent, together `top_k`."""
    most = max(_MOST, (1 + top_k / n_experts) / 2)
    weight: NDArray[np.float64] = np.arange(1, n_experts + 1, dtype=np.float64) ** -exponent
    share: NDArray[np.float64] = weight * (top_k / weight.sum())
    capped = 0
    while share[capped] > most:
        capped += 1
        share[:capped] = most
        share[capped:] = weight[capped:] * ((top_k - capped * most) / weight[capped:].sum())
    return share


def skewed_bias(n_experts: int, top_k: int, exponent: float, order: NDArray[np.int64]) -> NDArray[np.float64]:
    """The bias [n_experts] under which expert `order[rank]` has the popularity of its rank; its mean is 0.

    A router of rows with variance 1 / hidden on normalised inputs gives each expert a standard normal logit z, and an
    expert is chosen where sigmoid(z) + bias passes a threshold that hardly varies between tokens. So the bias is minus
    the sigmoid's quantile: sigmoid(z) + bias then passes 0 with the popularity as its probability. Router groups, where
    a model has them, disturb this, since a busy expert must share its group's chance.
    """
    quantile = np.array([-NormalDist().inv_cdf(share) for share in popularity(n_experts, top_k, exponent)])
    bias = np.empty(n_experts)
    bias[order] = -1 / (1 + np.exp(-quantile))
    bias -= bias.mean()
    return bias
