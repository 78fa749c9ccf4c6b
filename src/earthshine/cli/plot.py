"""Plots with matplotlib, an optional dependency. `earthshine plan --plot` draws the forecasts as three curves."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from earthshine.errors import UsageError
from earthshine.plan.explore import Case

Points = Sequence[tuple[float, float]]
_SUFFIXES = (".png", ".svg", ".pdf")


def plot_plan(path: Path, case: Case) -> None:
    """Write a PNG, SVG or PDF, by the name's suffix. Raises UsageError for another suffix and without matplotlib."""
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"--plot {path} must end in one of {', '.join(_SUFFIXES)}.")
    contexts, budgets = list(case.by_context()), list(case.by_budget())
    figure = new_figure()
    panels = figure.subplots(1, 3)
    _draw(
        panels[0], "context (tokens)", "decode (tokens/s)", [(at, cost.tokens_per_second) for at, cost, _ in contexts]
    )
    _draw(
        panels[1], "memory (GiB)", "decode (tokens/s)", [(b / 2**30, cost.tokens_per_second) for b, cost, _ in budgets]
    )
    _draw(panels[2], "prompt (tokens)", "first token after (s)", [(at, cost.seconds) for at, _, cost in contexts])
    figure.suptitle(
        f"{case.spec.family} on {case.machine.name}: a forecast", parse_math=False
    )  # names may have $ signs
    figure.savefig(path)


def new_figure() -> Any:
    """An empty wide figure. Raises UsageError without matplotlib."""
    try:
        module = importlib.import_module("matplotlib.figure")
    except ImportError:
        raise UsageError("--plot draws with matplotlib, which is not installed: pip install matplotlib") from None
    return module.Figure(figsize=(12, 3.6), layout="constrained")


def _draw(panel: Any, x: str, y: str, points: Points) -> None:
    panel.plot([at for at, _ in points], [value for _, value in points], "o-")
    panel.set(xlabel=x, ylabel=y, xscale="log", yscale="log")
    panel.grid(True, which="both", alpha=0.3)
