"""The split of gleam's pairs into training and evaluation: one fixed draw that both use."""

import random

from gleam.tldr import Pair

HELD_OUT = 1000
SEED = 20


def split(pairs: list[Pair], held_out: int = HELD_OUT, seed: int = SEED) -> tuple[list[Pair], list[Pair]]:
    """Training pairs and `held_out` others, of which neither question nor command occurs in training."""
    shuffled = pairs[:]
    random.Random(seed).shuffle(shuffled)
    unseen, seen = shuffled[:held_out], shuffled[held_out:]
    questions = {pair.question.lower() for pair in unseen}
    answers = {pair.command for pair in unseen}
    return [p for p in seen if p.question.lower() not in questions and p.command not in answers], unseen
