"""Plots with matplotlib, an optional dependency. `earthshine plan --plot` draws the forecasts as three curves."""

import importlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from earthshine.errors import UsageError
from earthshine.files import write_file
from earthshine.plan.answer import READING_RATE
from earthshine.plan.explore import Case
from earthshine.untrusted import shown

Points = Sequence[tuple[float, float]]
_SUFFIXES = (".png", ".svg", ".pdf")
_GIB = 1 << 30


def plot_plan(path: Path, case: Case, title: str) -> None:
    """Draw the forecasts to a file. Raises UsageError as `require_picture` and `new_figure` do."""
    require_picture(path)
    contexts, budgets = list(case.by_context()), list(case.by_budget())
    figure = new_figure()
    panels = figure.subplots(1, 3)
    lengths = [at for at, _, _ in contexts]
    by_context = [(at, _rate(cost.seconds)) for at, cost, _ in contexts]
    by_budget = [(budget / _GIB, _rate(cost.seconds)) for budget, cost, _ in budgets]
    _draw(panels[0], ("conversation (tokens)", "speed of a reply (tokens per second)"), by_context, lengths, _tokens)
    _draw(panels[1], ("memory (GiB)", "speed of a reply (tokens per second)"), by_budget, None, _plain)
    _draw(
        panels[2], ("prompt (tokens)", "wait for the first token"), [(at, cost.seconds) for at, _, cost in contexts],
        lengths, _tokens, _duration,
    )  # fmt: skip
    budget = case.plan.memory.budget_bytes / _GIB
    _mark(panels[1].axvline, budget, f"budget in use: {budget:.3g} GiB")
    for panel in panels[:2]:
        _mark(panel.axhline, READING_RATE, f"reading speed: {READING_RATE:.1f} tokens per second")
        panel.legend(loc="best", fontsize="small")
    figure.suptitle(title, parse_math=False)  # names may have $ signs
    save_figure(figure, path)


def require_picture(path: Path) -> None:
    """Raises UsageError unless the name's suffix is that of a PNG, SVG or PDF."""
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"--plot {shown(path)} must end in one of {', '.join(_SUFFIXES)}.")


def save_figure(figure: Any, path: Path) -> None:
    """Write the file, in the format of its suffix, as a whole or not at all. Raises OSError."""
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.lower()[1:])
    write_file(path, picture.getvalue())


def new_figure(height: float = 4.2) -> Any:
    """An empty wide figure, its height in inches. Raises UsageError without matplotlib."""
    return _matplotlib("figure").Figure(figsize=(13, height), layout="constrained")


def _matplotlib(name: str) -> Any:
    try:
        return importlib.import_module(f"matplotlib.{name}")
    except ImportError:
        raise UsageError("--plot draws with matplotlib, which is not installed: pip install matplotlib") from None


def _rate(seconds: float) -> float:
    """Tokens per second of one reply, whatever the batch."""
    return 1 / seconds


def _draw(
    panel: Any,
    labels: tuple[str, str],
    points: Points,
    ticks: Sequence[float] | None,
    x: Callable[[float], str],
    y: Callable[[float], str] | None = None,
) -> None:
    """Draw on logarithmic axes whose ticks are plain numbers; `ticks`: those of x where they are few."""
    panel.plot([at for at, _ in points], [value for _, value in points], "o-")
    panel.set(xlabel=labels[0], ylabel=labels[1], xscale="log", yscale="log")
    panel.margins(x=0.08, y=0.15)
    _tick(panel.xaxis, ticks or _steps([at for at, _ in points]), x)
    values = [value for _, value in points]
    if y is None:
        _tick(panel.yaxis, _steps([*values, READING_RATE]), _plain)
    else:
        low, high = min(values) / 4, 4 * max(values)
        panel.set_ylim(low, high)
        _tick(panel.yaxis, [at for at in _DURATIONS if low <= at <= high], y)
    panel.grid(True, alpha=0.3)


def _tick(axis: Any, at: Sequence[float], text: Callable[[float], str]) -> None:
    ticker = _matplotlib("ticker")
    axis.set_major_locator(ticker.FixedLocator(at))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: text(value)))


_DURATIONS = (0.01, 0.1, 1, 10, 60, 600, 3600, 6 * 3600, 86400, 7 * 86400)


def _steps(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 times powers of ten around `values`; fewer where the values span far."""
    low, high = min(values) / 2, 2 * max(values)
    found = [step * 10.0**power for power in range(-6, 10) for step in (1, 2, 5)]
    some = [value for value in found if low <= value <= high]
    return some if len(some) <= 8 else [value for value in some if f"{value:e}"[0] == "1"]


def _mark(line: Callable[..., Any], at: float, label: str) -> None:
    line(at, linestyle="--", color="tab:orange" if "budget" in label else "tab:green", label=label)


def _plain(value: float) -> str:
    return f"{value:,.10g}"


def _tokens(value: float) -> str:
    return f"{value / 1024:.3g}K" if value >= 1024 else f"{value:.0f}"


def _duration(seconds: float) -> str:
    for least, unit, name in ((86400, 86400, "d"), (3600, 3600, "h"), (60, 60, "min")):
        if seconds >= least:
            return f"{seconds / unit:g} {name}"
    return f"{seconds:g} s"
