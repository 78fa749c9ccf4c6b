"""The results of a comparison as a table, a JSON document and a picture.

Every figure has its spread; a side that failed has its reason in place of a figure. The ratio is the
median over pairs of neighbouring runs, their seconds over ours.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from result_rows import result_row

from earthshine.units import format_bytes, parse_bytes

from .alternation import Result, Run, Side

_QUIET = 0.1  # processors
_NAMES = {"memory_bytes_per_second": "memory {:.0f} GB/s", "matrix_flops": "{:.0f} GFLOP/s in bf16",
          "disk_bytes_per_second": "disk {:.1f} GB/s"}  # fmt: skip


def table(results: Sequence[Result], notes: Sequence[str] = ()) -> str:
    """One block a measurement."""
    blocks = [_block(result) for result in results]
    return "\n\n".join([*blocks, *(["\n".join(notes)] if notes else [])])


def _block(result: Result) -> str:
    lines = [result.measurement.name]
    lines += [_line(result, side) for side in (result.ours, result.theirs)]
    ratios = result.ratios()
    if ratios:
        spread = f"{min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} pairs"
        lines.append(f"  {'speed over theirs':<18} {statistics.median(ratios):9.2f}  ({spread})")
    if result.tried:
        shown = (f"{name}: {'failed' if took is None else f'{took:.4g} s'}" for name, took in result.tried.items())
        lines.append("  tried " + "; ".join(shown))
    if any(run.answer.get("page_cache") == "asked" for run in result.runs):
        lines.append("  the page cache could only be asked to let the files go, which it may decline: that needs root")
    if max(run.others for run in result.runs) >= _QUIET:
        others = f"{min(run.others for run in result.runs):.2f} to {max(run.others for run in result.runs):.2f}"
        lines.append(f"  NOT QUIET: other work kept {others} processors busy during the runs")
    lines.append("  limits before and after: " + "; ".join(_limits(limits) for limits in result.limits))
    return "\n".join(lines)


def _line(result: Result, side: Side) -> str:
    runs = result.of(side)
    good = [run.figure for run in runs if not run.failed]
    name = f"  {side.name:<18}"
    setting = f"  [{side.setting}]" if side.setting else ""
    if not good:
        return f"{name} failed: {runs[0].failed}{setting}"
    tokens = result.measurement.tokens_each
    rate = tokens / statistics.median(good)
    failed = f", {len(runs) - len(good)} of {len(runs)} runs failed" if len(good) < len(runs) else ""
    peak = max(run.peak_bytes or 0 for run in runs)
    return (
        f"{name} {statistics.median(good):9.4g} s  ({min(good):.4g} to {max(good):.4g}), {rate:.4g} tokens/s, "
        f"peak {format_bytes(peak)}{_over(side, peak)}{failed}{setting}"
    )


def _over(side: Side, peak: int) -> str:
    budget = side.settings.get("memory")
    return f" ({peak / parse_bytes(budget):.2f} of --memory {budget})" if budget else ""


def _limits(limits: Mapping[str, Any]) -> str:
    shown = [text.format(limits[name] / 1e9) for name, text in _NAMES.items() if name in limits]
    return ", ".join(shown) or "not measured"


def document(results: Sequence[Result]) -> dict[str, Any]:
    """Everything as JSON values: runs in their order, seconds whole; the ratios as rows of docs/results/peers.json."""
    return {
        "measurements": [_entry(result) for result in results],
        "rows": [_row(result) for result in results if result.ratios()],
    }


def _row(result: Result) -> dict[str, Any]:
    ratios = result.ratios()
    figures = (statistics.median(ratios), min(ratios), max(ratios))
    sides = {"peer": result.theirs.name}
    for name, side in (("ours", result.ours), ("theirs", result.theirs)):
        sides[name] = f"{statistics.median(run.figure for run in result.of(side) if not run.failed):.4g} s"
    limits = "; ".join(_limits(limits) for limits in result.limits)
    return result_row(result.measurement.name, *figures, **sides, **{"limits of the run": limits})


def _entry(result: Result) -> dict[str, Any]:
    ratios = result.ratios()
    return {
        "name": result.measurement.name,
        "request": dict(result.measurement.request),
        "tokens_each": result.measurement.tokens_each,
        "limit_bytes": result.measurement.limit_bytes,
        "ratio": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)} if ratios else None,
        "ours": _side(result.ours),
        "theirs": _side(result.theirs),
        "tried": dict(result.tried),
        "limits": [dict(limits) for limits in result.limits],
        "runs": [run_entry(run) for run in result.runs],
    }


def _side(side: Side) -> dict[str, Any]:
    return {"name": side.name, "setting": side.setting, **dict(side.settings)}


def run_entry(run: Run) -> dict[str, Any]:
    kept = {
        "side": run.side,
        "others": round(run.others, 3),
        "seconds": list(run.seconds),
        "peak_bytes": run.peak_bytes,
        "failed": run.failed,
    }
    if run.group_peak_bytes is not None:
        kept["group_peak_bytes"] = run.group_peak_bytes
    return kept | {key: value for key, value in run.answer.items() if key not in ("seconds", "peak_bytes", "failed")}


def watched(run: Run) -> None:
    """One line on a run that has ended, on standard error."""
    shown = run.failed or f"{run.figure:.4g} s, peak {format_bytes(run.peak_bytes or 0)}"
    print(f"  {run.side}: {shown}", file=sys.stderr, flush=True)


def over_budgets(runs: Mapping[str, Run]) -> str:
    """Earthshine's peaks by the budget that each had."""
    lines = ["peak resident memory over --memory"]
    for size, run in runs.items():
        peak = run.peak_bytes or 0
        shown = run.failed or f"{peak / parse_bytes(size):.2f}  ({format_bytes(peak)}), {run.figure:.4g} s"
        lines.append(f"  {size:<18} {shown}")
    return "\n".join(lines)


def picture(results: Sequence[Result], path: Path) -> None:
    """Decoding over context as lines where several contexts were measured; every other ratio as a bar."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plot

    decoding = [r for r in results if r.measurement.request.get("what") == "decode" and _answered(r)]
    lined = decoding if len({r.measurement.request.get("context", 0) for r in decoding}) > 2 else []
    barred = [r for r in results if r not in lined and r.ratios()]
    panels = [draw for draw, rows in ((_lines, lined), (_bars, barred)) if rows]
    if not panels:
        return
    figure, axes = plot.subplots(1, len(panels), figsize=(7 * len(panels), 4.5), squeeze=False)
    for draw, axis in zip(panels, axes[0], strict=True):
        draw(axis, lined if draw is _lines else barred)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plot.close(figure)


def _answered(result: Result) -> bool:
    return all(any(not run.failed for run in result.of(side)) for side in (result.ours, result.theirs))


def _lines(axis: Any, results: Sequence[Result]) -> None:
    for pick in ("ours", "theirs"):
        rows = [(r.measurement.request.get("context", 0), r.of(getattr(r, pick))) for r in results]
        rows.sort(key=lambda row: row[0])
        figures = [[1 / run.figure for run in runs if not run.failed] for _, runs in rows]
        middle = [statistics.median(rates) for rates in figures]
        below = [m - min(rates) for m, rates in zip(middle, figures, strict=True)]
        above = [max(rates) - m for m, rates in zip(middle, figures, strict=True)]
        name = getattr(results[0], pick).name
        axis.errorbar([c for c, _ in rows], middle, yerr=[below, above], marker="o", capsize=3, label=name)
    axis.set_xlabel("tokens of context")
    axis.set_ylabel("tokens decoded per second")
    axis.set_ylim(bottom=0)
    axis.legend()


def _bars(axis: Any, results: Sequence[Result]) -> None:
    names = [result.measurement.name for result in results]
    ratios = [result.ratios() for result in results]
    middle = [statistics.median(values) for values in ratios]
    spread = [[m - min(v) for m, v in zip(middle, ratios, strict=True)],
              [max(v) - m for m, v in zip(middle, ratios, strict=True)]]  # fmt: skip
    axis.barh(names, middle, xerr=spread, capsize=3)
    axis.axvline(1.0, color="black", linewidth=1)
    axis.invert_yaxis()
    axis.set_xlabel(f"speed over {results[0].theirs.name} (times)")
