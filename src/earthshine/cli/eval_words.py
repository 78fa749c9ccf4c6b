"""Intervals, probabilities and numbers of questions as `earthshine eval` prints them."""

from earthshine.evals.statistics import Interval


def span(interval: Interval, signed: bool = True) -> str:
    low, high = (f"{100 * end:{'+' if signed else ''}.1f}" for end in (interval.low, interval.high))
    return f"{low} to {high}"


def p_value(p: float) -> str:
    return f"{p:.2f}" if p >= 0.1 else f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def often(p: float) -> str:
    """A probability as a frequency: "48 of 100", "7 of 1,000"."""
    for among in (100, 1000, 10_000, 100_000, 1_000_000):
        if round(p * among) >= 1 and (p * among >= 5 or among == 1_000_000):
            return f"{round(p * among)} of {among:,}"
    return "less than 1 of 1,000,000"


def questions(n: int) -> str:
    """1 is "1 question", 2500 "2,500 questions"."""
    return f"{n:,} question" + ("" if n == 1 else "s")


def about(n: int | None) -> str:
    """To three digits."""
    return "-" if n is None else f"{int(float(f'{n:.3g}')):,}"


def points(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [100 * interval.low, 100 * interval.high]
