"""The tables of docs are what tools/results.py renders from docs/results, and every row names how it was measured."""

import importlib.util
import json
import re
import subprocess
import sys

import pytest

from .source import ROOT

RESULTS = sorted((ROOT / "docs" / "results").glob("*.json"))
PAGES = [path for path in sorted((ROOT / "docs").glob("*.md")) if "<!-- results: " in path.read_text(encoding="utf-8")]
ROW = {"what": "decode", "median": 2.5, "unit": "s", "command": "python run.py", "processor": "Z80"}
FILE = (
    '{"columns": ["what", "median"], "rows": [\n{"what": "a", "median": 1.10, "command": "b", "processor": "c"}\n]}\n'
)


@pytest.fixture(scope="module")
def numbers():
    spec = importlib.util.spec_from_file_location("results_tool", ROOT / "tools" / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_page_is_what_the_tool_renders(numbers, path):
    text = path.read_text(encoding="utf-8")
    assert text == numbers.page(text), "the page is stale: run python tools/results.py"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_row_names_command_processor_and_median(numbers, path):
    results = json.loads(path.read_text(encoding="utf-8"))
    assert results["rows"]
    for row in results["rows"]:
        assert not numbers.problems(row, results), row
        assert row["median"] is None or type(row["median"]) in (int, float), row
        always = {"command", "processor", "commit", "median", "unit", "low", "high", "runs", "spread"}
        beside = {results["pivot"], "goal", "floor", "note"} if "pivot" in results else set()
        assert row.keys() <= {*results["columns"], *always, *beside}, row


def test_every_file_of_results_is_shown_once():
    named = [name for path in PAGES for name in re.findall(r"<!-- results: (\w+) -->", path.read_text("utf-8"))]
    assert sorted(named) == [path.stem for path in RESULTS]


def test_added_rows_leave_the_digits_of_others_alone(numbers, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(FILE)
    assert numbers.add(path, "some table\n" + json.dumps({"rows": [ROW, ROW | {"median": 3}]})) == 2
    assert path.read_text().startswith(FILE.removesuffix("\n]}\n"))
    assert [row["median"] for row in json.loads(path.read_text())["rows"]] == [1.1, 2.5, 3]
    assert "| decode | 2.5 s |" in numbers.table(numbers.read(path))
    assert "| a | 1.10 |" in numbers.table(numbers.read(path))


def test_rows_start_a_new_file(numbers, tmp_path):
    path = tmp_path / "new.json"
    numbers.add(path, json.dumps({"rows": [ROW]}, indent=1))
    numbers.add(path, json.dumps({"rows": [ROW]}))
    assert json.loads(path.read_text())["rows"] == [ROW, ROW]


@pytest.mark.parametrize("missing", ["command", "processor", "median", "what"])
def test_incomplete_row_is_refused_and_nothing_is_written(numbers, tmp_path, missing):
    path = tmp_path / "results.json"
    path.write_text(FILE)
    row = {key: value for key, value in ROW.items() if key != missing}
    with pytest.raises(ValueError, match=f"no {missing}"):
        numbers.add(path, json.dumps({"rows": [ROW, row]}))
    assert path.read_text() == FILE


@pytest.mark.parametrize("value", ["NaN", "1e400", "-Infinity", '"2.5"', '"fast"', "true", "[1]"])
@pytest.mark.parametrize("key", ["median", "low", "high", "floor", "goal", "runs[1]"])
def test_value_that_is_not_a_finite_number_is_refused_and_nothing_is_written(numbers, tmp_path, key, value):
    path = tmp_path / "results.json"
    path.write_text(FILE)
    row = ROW | {"low": 1, "high": 2, "goal": 3, "floor": 4, "runs": [1, 2]}
    text = json.dumps({"rows": [row | ({"runs": [1, "here"]} if key == "runs[1]" else {key: "here"})]})
    with pytest.raises(ValueError, match=f"as {re.escape(key)}, which must be a finite number"):
        numbers.add(path, text.replace('"here"', value))
    assert path.read_text() == FILE


def test_goal_without_a_floor_may_be_words(numbers, tmp_path):
    assert numbers.add(tmp_path / "results.json", json.dumps({"rows": [ROW | {"goal": "nothing lost"}]})) == 1


@pytest.mark.parametrize(
    ("tool", "words"), [("results.py", ["add"]), ("results.py", ["--help"]), ("cli_reference.py", ["--help"])]
)
def test_tool_with_wrong_arguments_prints_its_use_and_writes_nothing(tmp_path, tool, words):
    """A copy of it, beside folders of its own."""
    (tmp_path / "tools").mkdir()
    copy = tmp_path / "tools" / tool
    copy.write_text((ROOT / "tools" / tool).read_text(encoding="utf-8"), encoding="utf-8")
    ended = subprocess.run([sys.executable, str(copy), *words], capture_output=True, text=True)
    assert ended.returncode == 1
    assert f"python tools/{tool}" in ended.stderr
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [tool]


@pytest.mark.parametrize("printed", ["", "no JSON", "[]", '{"rows": []}', '{"rows": 3}', "3"])
def test_output_without_rows_is_refused(numbers, tmp_path, printed):
    with pytest.raises(ValueError):  # noqa: PT011
        numbers.add(tmp_path / "results.json", printed)


@pytest.mark.parametrize(
    ("median", "goal", "floor", "bold"),
    [(0.9, 1.1, 0.95, True), (0.95, 1.1, 0.95, False), (1.2, 1.0, 1.1, True), (1.1, 1.0, 1.1, False)],
)
def test_median_beyond_its_floor_is_bold(numbers, tmp_path, median, goal, floor, bold):
    path = tmp_path / "results.json"
    numbers.add(path, json.dumps({"rows": [ROW | {"median": median, "goal": goal, "floor": floor}]}))
    assert (f"**{median}** s" in numbers.table(numbers.read(path))) == bold


def test_pivoted_rows_share_a_line(numbers, tmp_path):
    path = tmp_path / "results.json"
    rows = [ROW | {"side": side, "median": median} for side, median in (("ours", 1.50), ("theirs", 2.25))]
    path.write_text(json.dumps({"columns": ["what"], "pivot": "side", "rows": rows}))
    assert "| what | ours | theirs |\n| --- | --- | --- |\n| decode | 1.5 s | 2.25 s |" in numbers.table(
        numbers.read(path)
    )


def test_column_has_the_title_that_the_file_gives_it(numbers):
    rows = [{key: str(value) for key, value in ROW.items()}]
    shown = numbers.table({"columns": ["what", "median"], "titles": {"median": "computed"}, "rows": rows})
    assert "| what | computed |\n| --- | --- |\n| decode | 2.5 s |" in shown


def test_two_rows_of_one_cell_are_refused(numbers):
    rows = [{key: str(value) for key, value in ROW.items()} | {"side": "ours", "median": each} for each in ("1", "2")]
    with pytest.raises(ValueError, match="two rows have side ours for decode"):
        numbers.table({"columns": ["what"], "pivot": "side", "rows": rows})
