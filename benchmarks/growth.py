"""How cost grows, against the forecast: decode over context, prompts over length, tokens per second over batch.

    python benchmarks/growth.py MODEL [--memory 8GiB --memory 12GiB ...] [--contexts 0,4096] [--prompts 512,4096]
                                [--batches 1,4] [--machine FILE] [--png FILE] [--tokens N] [--repeats N]

Every budget runs in a process of its own (growth_side.py). For each point: the measured median and spread, what `plan`
forecasts from the machine's profile, and the forecast over the measurement; bytes read per token and the peak of memory
likewise. This machine's rates change within minutes, so measure the profile right before: earthshine bench machine. The
last line is one JSON document.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from result_rows import result_row

from earthshine.units import format_bytes

SIDE = Path(__file__).with_name("growth_side.py")
AXES = {"decode": ("context (tokens)", "tokens/s"), "prompt": ("prompt (tokens)", "s"), "batch": ("batch", "tokens/s")}


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("model", type=Path)
    made.add_argument("--memory", action="append", help="such as 12GiB; may be repeated; default: free memory")
    made.add_argument("--contexts", type=numbers, default=[0, 1024, 4096, 16384])
    made.add_argument("--prompts", type=numbers, default=[512, 2048, 4096])
    made.add_argument("--batches", type=numbers, default=[1, 2, 4, 8])
    made.add_argument("--tokens", type=int, default=16, help="decoded at each point")
    made.add_argument("--repeats", type=int, default=3, help="of each prompt, where all experts are in memory")
    made.add_argument("--skew", type=float, default=0.0, help="of the model's routing; synthesised ones are even")
    made.add_argument("--machine", type=Path, help="a profile; default: the one that bench machine saved")
    made.add_argument("--png", type=Path)
    return made


def main() -> None:
    options = parser().parse_args()
    names = ("contexts", "prompts", "batches", "tokens", "repeats", "skew")
    request = {name: getattr(options, name) for name in names} | {"model": str(options.model.resolve())}
    request["machine"] = str(options.machine.resolve()) if options.machine else None
    runs = []
    for budget in options.memory or [None]:
        command = [sys.executable, str(SIDE), json.dumps(request | {"memory": budget})]
        finished = subprocess.run(command, capture_output=True, text=True)
        if finished.returncode:
            raise SystemExit(finished.stderr)
        runs.append(json.loads(finished.stdout.splitlines()[-1]))
        show(runs[-1])
    if options.png:
        draw(options.png, options.model.name, runs)
    rows = [row(options.model.name, run, point) for run in runs for point in run["points"]]
    print(json.dumps({"what": "growth", "model": options.model.name, "runs": runs, "rows": rows}))


def row(model: str, run: dict[str, Any], point: dict[str, Any]) -> dict[str, Any]:
    """A point as a row of docs/results/forecast_L.json."""
    seconds = point["seconds"]
    more = {
        "memory": format_bytes(run["budget"]),
        "forecast over measurement": round(point["forecast"] / seconds["median"], 2),
    }
    figures = (1e3 * seconds[name] for name in ("median", "least", "most"))
    return result_row(f"*{model}*, {point['what']} {point['at']:,}", *figures, "ms", **more)


def show(run: dict[str, Any]) -> None:
    peak, budget, planned = run["peak"], run["budget"], run["planned"]
    print(
        f"budget {format_bytes(budget)}: planned {format_bytes(planned)}, peak {format_bytes(peak)}, "
        f"peak over budget {peak / budget:.2f}, planned over peak {planned / peak:.2f}"
    )
    for p in run["points"]:
        median, least, most = (1e3 * p["seconds"][name] for name in ("median", "least", "most"))
        line = f"  {p['what']:8}{p['at']:>8}  {median:10.1f} ms ({least:.1f} to {most:.1f})"
        line += f"  forecast {1e3 * p['forecast']:10.1f}  ratio {1e3 * p['forecast'] / median:.2f}"
        if p["bytes_forecast"]:
            line += f"  read {format_bytes(p['bytes'])}, forecast {format_bytes(p['bytes_forecast'])}"
        print(line, flush=True)


def draw(path: Path, name: str, runs: list[dict[str, Any]]) -> None:
    """A panel each for decode, prompts and batches; measured and forecast, a pair of lines for every budget."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    for panel, (what, (x, y)) in zip(figure.subplots(1, 3), AXES.items(), strict=True):
        for number, run in enumerate(runs):
            points = [p for p in run["points"] if p["what"] == what]
            at = [max(p["at"], 1 if what == "batch" else 16) for p in points]
            for kind, style in (("measured", "o-"), ("forecast", "x--")):
                label = f"{format_bytes(run['budget'])}, {kind}"
                panel.plot(at, [value(p, kind) for p in points], style, color=f"C{number}", label=label)
        panel.set(xlabel=x, ylabel=y, xscale="log", ylim=(0, None))
        panel.grid(True, alpha=0.3)
        panel.legend(fontsize=7)
    figure.suptitle(name)
    figure.savefig(path, dpi=120)


def value(point: dict[str, Any], kind: str) -> float:
    """Seconds of a prompt; of decoding, tokens per second."""
    seconds: float = point["seconds"]["median"] if kind == "measured" else point["forecast"]
    if point["what"] == "prompt":
        return seconds
    return (point["at"] if point["what"] == "batch" else 1) / seconds


if __name__ == "__main__":
    main()
