"""Renders the tables of docs/*.md from docs/results, and adds the rows that a benchmark prints.

    python tools/results.py
    python benchmarks/run.py | python tools/results.py add docs/results/run.json

A file of docs/results is a JSON object: "columns", the keys that its table shows, and "rows". Every row is one figure:

    command, processor  what was run, and on what
    median              a finite number; null where only "low" and "high" were recorded
    unit, commit, note  optional, as are "goal" and "floor", numbers (a median beyond the floor is shown in bold)
    low, high           the spread, or "runs", the list of what was measured; numbers

and the other columns of its table. Processor, commit and command are always shown: below the table where all rows
agree, else as columns. Where "pivot" names a key, rows that differ in that key alone share a line, a column for
each of its values. "titles" names columns otherwise, as {"median": "computed"}. Numbers keep the digits of the file.
Every page of docs that names results is rendered.
"""

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESULTS = DOCS / "results"
_BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_NOT_RECORDED = "not recorded"
_EMPTY = '{"columns": ["what", "median", "spread"], "rows": [\n]}'
Row = Mapping[str, Any]


def read(path: Path) -> dict[str, Any]:
    """A file of results, its numbers as the texts to show: "1.10", "28,179"."""
    found = json.loads(path.read_text(encoding="utf-8"), parse_float=str, parse_int=lambda text: f"{int(text):,}")
    assert isinstance(found, dict)
    return found


def problems(row: Row, results: Mapping[str, Any]) -> list[str]:
    """What is missing or wrong in a row of `results`, as json.loads gives it; empty where it is sound."""
    needed = ("command", "processor", "median", results["columns"][0], *filter(None, [results.get("pivot")]))
    found = [f"no {key}" for key in needed if key not in row or row[key] == ""]
    if row.get("median") is None and not {"low", "high"} <= row.keys():
        found.append("neither a median nor low and high")
    keys = ("median", "low", "high", "floor", *(["goal"] if "floor" in row else []))
    numbers = {key: row[key] for key in keys if row.get(key) is not None}
    runs = row.get("runs", [])
    numbers |= {f"runs[{at}]": run for at, run in enumerate(runs)} if isinstance(runs, list) else {"runs": runs}
    found += [
        f"{value!r} as {key}, which must be a finite number" for key, value in numbers.items() if not _finite(value)
    ]
    return found


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def page(text: str, folder: Path = RESULTS) -> str:
    """The page with each of its tables rendered from the file that the block names. Raises OSError, ValueError."""
    return _BLOCK.sub(lambda match: f"{match[1]}{table(read(folder / f'{match[2]}.json'))}\n{match[3]}", text)


def table(results: Mapping[str, Any]) -> str:
    """A Markdown table, and below it what holds for all rows and the commands, which the rows name by number.

    Raises ValueError where two rows would be one cell.
    """
    rows, columns, pivot = results["rows"], list(results["columns"]), results.get("pivot")
    commands = list(dict.fromkeys(row["command"] for row in rows))
    rows = [{**row, "command": str(commands.index(row["command"]) + 1)} for row in rows]
    below = []
    for key in ("processor", "commit"):
        values = list(dict.fromkeys(_cell(row, key) for row in rows))
        if len(values) == 1 or (pivot and key == "commit"):
            below.append(f"{key.capitalize()}: {', '.join(values)}.")
        else:
            columns.append(key)
    commands = [text if text == _NOT_RECORDED else f"`{text}`" for text in commands]
    if len(commands) == 1:
        below.append(f"Command: {commands[0]}.")
    elif not pivot:
        columns.append("command")
    cells = [[_cell(row, key) for key in columns] for row in rows]
    head, *lines = _pivoted(rows, columns, pivot) if pivot else [columns, *cells]
    head = [results.get("titles", {}).get(key, key) for key in head]
    shown = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for line in [head, ["---"] * len(head), *lines]
    ]
    listed = ["", *(f"{n}. {text}" for n, text in enumerate(commands, 1))] if len(commands) > 1 else []
    return "\n".join(["", *shown, *(["", " ".join(below)] if below else []), *listed, ""])


def _pivoted(rows: Sequence[Row], columns: Sequence[str], pivot: str) -> list[list[str]]:
    """The head, then a line for each combination of what the columns hold. ValueError for two rows of one cell."""
    names = list(dict.fromkeys(row[pivot] for row in rows))
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        spread = _cell(row, "spread")
        shown = _cell(row, "median") + ("" if spread == _NOT_RECORDED else f" ({spread})")
        key = tuple(_cell(row, name) for name in columns)
        line = lines.setdefault(key, {})
        if row[pivot] in line:
            raise ValueError(f"two rows have {pivot} {row[pivot]} for {', '.join(key)}; they would be one cell")
        line[row[pivot]] = shown
    return [[*columns, *names], *([*key, *(cells.get(name, "") for name in names)] for key, cells in lines.items())]


def _cell(row: Row, key: str) -> str:
    unit = f" {row.get('unit', '')}".rstrip().replace(" %", "%")
    if key == "median":
        return _NOT_RECORDED if row["median"] is None else (f"**{row[key]}**" if _missed(row) else row[key]) + unit
    if key == "spread" and "spread" not in row:
        parts = [f"{row['low']} to {row['high']}"] if "low" in row else []
        parts += [", ".join(row["runs"])] if "runs" in row else []
        return "; ".join(parts) + (unit if row["median"] is None else "") or _NOT_RECORDED
    return str(row.get(key, _NOT_RECORDED if key == "commit" else ""))


def _missed(row: Row) -> bool:
    """Whether the median is beyond the floor; a floor below the goal means that more is better."""
    if not {"goal", "floor"} <= row.keys():
        return False
    median, goal, floor = (float(row[key].replace(",", "")) for key in ("median", "goal", "floor"))
    return median < floor if floor < goal else median > floor


def add(path: Path, printed: str) -> int:
    """Appends rows to a file: all of "rows" in a JSON document, which is `printed` or its last line.

    Returns how many. Raises ValueError where there is no such document or a row is not sound.
    """
    try:
        document = json.loads(printed)
    except ValueError:
        document = json.loads(printed.strip().rpartition("\n")[2])
    rows = document.get("rows") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not rows:
        raise ValueError('the document has no list of "rows"; see docs/results for what a row holds')
    text = path.read_text(encoding="utf-8") if path.exists() else _EMPTY
    for row in rows:
        missing = problems(row, json.loads(text)) if isinstance(row, dict) else ["no keys"]
        if missing:
            raise ValueError(f"a row has {' and '.join(missing)}: {json.dumps(row)}")
    kept, end = text.rstrip(), re.compile(r"\n?\]\}$")
    if not end.search(kept):
        raise ValueError(f"{path} does not end in its rows, as docs/results does")
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(end.sub("" if kept.endswith("[\n]}") else ",", kept) + f"\n{lines}\n]}}\n", encoding="utf-8")
    return len(rows)


def main(arguments: Sequence[str]) -> None:
    try:
        if arguments and arguments[0] == "add" and len(arguments) == 2:
            print(f"{add(Path(arguments[1]), sys.stdin.read())} rows added to {arguments[1]}")
        elif arguments:
            sys.exit(__doc__)
        for path in DOCS.glob("*.md"):
            path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
    except (OSError, ValueError) as error:
        sys.exit(f"results: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
