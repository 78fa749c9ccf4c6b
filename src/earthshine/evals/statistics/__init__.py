"""Statistics of benchmark scores. Scores are shares from 0 to 1, differences are `first - second`.

Two questions need two standard errors (Miller 2024, https://arxiv.org/abs/2411.00640). "Is this the same model?" keeps
the questions fixed, so that only the sampling of answers counts: `fixed_set_error`. "Is this model better?" asks about
questions like these, so that their choice counts too: `question_set_error`, `two_shares`, `compare_paired`.
Approximations that need some hundreds of questions are avoided (Bowyer et al. 2025, https://arxiv.org/abs/2503.01747).

Every function refuses values that have no meaning with a UsageError that names the argument.
"""

from earthshine.evals.statistics.decide import Equivalence, equivalence, holm
from earthshine.evals.statistics.errors import answers_error, fixed_set_error, question_set_error
from earthshine.evals.statistics.f1 import F1, f1_interval
from earthshine.evals.statistics.paired import Paired, compare_paired, mcnemar
from earthshine.evals.statistics.shares import Difference, Interval, newcombe, two_shares, wilson
from earthshine.evals.statistics.size import (
    discordance,
    most_discordance,
    needed_like,
    needed_pairs,
    needed_questions,
    power_of_pairs,
    power_of_questions,
)

__all__ = [
    "F1",
    "Difference",
    "Equivalence",
    "Interval",
    "Paired",
    "answers_error",
    "compare_paired",
    "discordance",
    "equivalence",
    "f1_interval",
    "fixed_set_error",
    "holm",
    "mcnemar",
    "most_discordance",
    "needed_like",
    "needed_pairs",
    "needed_questions",
    "newcombe",
    "power_of_pairs",
    "power_of_questions",
    "question_set_error",
    "two_shares",
    "wilson",
]
