"""The harness of comparisons: alternation, ratios, failures, limits, caches, environments, and what is reported about
them."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from versus import agreement, alternation, page_cache, report, settings
from versus.alternation import Measurement, Result, Run, Side, alternate, run
from versus.comparison import arguments, earthshine, refuse_no_picture
from versus.environment import Environment
from versus.memory_limit import ROOT, memory_limit
from versus.worker import prompt

from earthshine.errors import UsageError

BENCHMARKS = Path(alternation.__file__).parents[1]
ANSWERS = """
import sys; sys.path.insert(0, {folder!r})
from worker import serve
def decode(request):
    with open(request["log"], "a") as log: log.write(request["name"])
    return {{"seconds": request["seconds"], "request": request}}
def broken(request): raise ValueError("no such thing")
serve({{"decode": decode, "broken": broken}})
"""


@pytest.fixture
def worker(tmp_path):
    path = tmp_path / "worker_side.py"
    path.write_text(ANSWERS.format(folder=str(BENCHMARKS / "versus")))
    return path


@pytest.fixture
def sides(tmp_path, worker):
    def side(name, seconds):
        settings = {"model": str(tmp_path), "log": str(tmp_path / "log"), "name": name, "seconds": seconds}
        return Side(name, Path(sys.executable), worker, settings)

    return side("A", [1.0, 9.0, 2.0]), side("B", [3.0])


def test_two_rounds_alternate_and_the_ratio_is_of_neighbours(tmp_path, sides):
    seen, limits = [], iter([{"n": 1}, {"n": 2}])
    result = alternate(
        *sides,
        Measurement("m", {"what": "decode"}),
        2,
        limits=lambda: next(limits),
        watch=lambda r: seen.append(r.side),
    )
    assert (tmp_path / "log").read_text() == "".join(seen) == "ABBAABBA"
    assert result.ratios() == [1.5] * 4  # 3 over the median of 1, 9, 2
    assert result.seconds(sides[0]) == 2.0
    assert result.limits == ({"n": 1}, {"n": 2})
    assert result.runs[0].peak_bytes > 1 << 20
    with pytest.raises(UsageError, match="--rounds is 0"):
        alternate(*sides, Measurement("m", {"what": "decode"}), 0)


def answered(name, took):
    return Run(name, () if took is None else (took,), 1, None, "killed" if took is None else None, {})


def test_ratios_pair_each_run_with_its_neighbour_whichever_came_first():
    a, b = (Side(name, Path(), Path(), {"model": ""}) for name in "AB")
    figures = [("A", 1.0), ("B", 2.0), ("B", 9.0), ("A", 3.0), ("A", 1.0), ("B", None), ("B", 4.0), ("A", 8.0)]
    runs = tuple(answered(*figure) for figure in figures)
    result = Result(Measurement("m", {}), a, b, runs, ({}, {}))
    assert result.ratios() == [2.0, 3.0, 0.5]  # the pair with a failure is none


class TestOneRun:
    def test_a_failure_is_an_answer(self, sides):
        found = run(sides[0], Measurement("m", {"what": "broken"}))
        assert (found.seconds, found.failed) == ((), "ValueError: no such thing")
        assert found.figure == float("inf")
        assert "KeyError" in run(sides[0], Measurement("m", {"what": "unknown"})).failed

    @pytest.mark.parametrize("printed", ["", "print('[1]')", "print('{')", "print('{}')", "print('done')"])
    def test_last_line_that_is_not_an_answer(self, tmp_path, printed):
        script = tmp_path / "other.py"
        script.write_text(printed)
        found = run(Side("x", Path(sys.executable), script, {"model": ""}), Measurement("m", {}))
        assert found.failed == "no answer on its last line"

    def test_death_and_silence(self, tmp_path):
        script = tmp_path / "other.py"
        script.write_text("import sys; sys.exit('out of luck')")
        side = Side("x", Path(sys.executable), script, {"model": ""})
        assert run(side, Measurement("m", {})).failed == "exit code 1: out of luck"
        script.write_text("import subprocess; subprocess.run(['sleep', '60'])")
        # The script says nothing in a minute, and less on a slower machine: half a second is always too short for it.
        assert run(side, Measurement("m", {}, timeout_seconds=0.5)).failed == "no answer in 0 s"

    def test_settings_win_over_the_request_and_variables_arrive(self, tmp_path):
        script = tmp_path / "other.py"
        script.write_text(
            "import json, os, sys; r = json.loads(sys.argv[1]); "
            "print(json.dumps({'seconds': [1], 'r': r, 'v': os.environ['ANY']}))"
        )
        side = Side("x", Path(sys.executable), script, {"model": "m", "threads": 3}, {"ANY": "1"})
        answer = run(side, Measurement("m", {"what": "decode", "threads": 1})).answer
        assert (answer["r"], answer["v"]) == ({"what": "decode", "threads": 3, "model": "m"}, "1")


class TestCeiling:
    def test_none_is_none(self):
        with memory_limit(None) as group:
            assert (group.prefix, group.peak(), group.killed()) == ((), None, False)

    def test_version_one_writes_the_limit_and_reads_the_peak(self, tmp_path):
        (tmp_path / "memory").mkdir()
        (tmp_path / "memory" / "memory.limit_in_bytes").touch()
        with memory_limit(1 << 20, tmp_path) as group:
            assert group.group.parent == tmp_path / "memory"
            assert (group.group / "memory.limit_in_bytes").read_text() == str(1 << 20)
            (group.group / "memory.max_usage_in_bytes").write_text("77\n")
            (group.group / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
            assert (group.peak(), group.killed()) == (77, True)
            assert group.prefix[-1] == str(group.group / "cgroup.procs")

    def test_version_two(self, tmp_path):
        (tmp_path / "cgroup.subtree_control").write_text("cpu memory")
        with memory_limit(5 << 20, tmp_path) as group:
            assert (group.group / "memory.max").read_text() == str(5 << 20)
            assert (group.group / "memory.swap.max").read_text() == "0"
            (group.group / "memory.events").write_text("low 0\noom 3\noom_kill 0\n")
            assert (group.version, group.peak(), group.killed()) == (2, None, False)

    def test_neither_is_refused_in_a_sentence(self, tmp_path, monkeypatch):
        monkeypatch.setattr("shutil.which", lambda name: None)
        with pytest.raises(UsageError, match="needs a control group"), memory_limit(1 << 20, tmp_path / "absent"):
            pass

    def test_the_kernel_ends_what_takes_too_much(self, tmp_path):
        if not os.access(ROOT / "memory", os.W_OK) and not os.access(ROOT / "cgroup.subtree_control", os.W_OK):
            pytest.skip("this user can't make control groups")
        script = tmp_path / "other.py"
        script.write_text("x = bytearray(200 << 20); print('{\"seconds\": [1]}')")
        side = Side("x", Path(sys.executable), script, {"model": str(tmp_path)})
        free = run(side, Measurement("m", {}))
        assert free.failed is None
        found = run(side, Measurement("m", {}, limit_bytes=64 << 20))
        assert found.failed == "killed: more than 64.00 MiB of memory were needed"
        assert 0 < found.group_peak_bytes <= 64 << 20


def test_without_root_the_files_alone_are_asked_for(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a").write_bytes(b"x" * 5000)
    assert page_cache.empty([tmp_path], tmp_path / "no" / "drop") == "asked"
    assert page_cache.empty([tmp_path], tmp_path / "drop") == "dropped"
    assert (tmp_path / "drop").read_text() == "3\n"
    assert page_cache.fill([tmp_path, tmp_path / "a"]) == 10002  # in the folder: a and drop; a once more


class TestEnvironment:
    def test_one_made_by_hand_is_used_and_another_recipe_is_not(self, tmp_path):
        recipe = Environment("peer", (("peer==1",),), {"FLAGS": "a"})
        python = tmp_path / "made" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.touch()
        (tmp_path / "peer").symlink_to(tmp_path / "made")
        assert recipe.python(tmp_path) == tmp_path / "peer" / "bin" / "python"
        (tmp_path / "made" / "requirements.txt").write_text("FLAGS=a\npeer==1\n")
        assert recipe.python(tmp_path) == tmp_path / "peer" / "bin" / "python"
        with pytest.raises(UsageError, match="another recipe"):
            Environment("peer", (("peer==2",),), {"FLAGS": "a"}).python(tmp_path)

    def test_made_again_only_when_the_recipe_changes(self, tmp_path, monkeypatch):
        ran = []

        def fake(words, env, **options):
            ran.append(words)
            if "venv" in words:
                (Path(words[-1]) / "bin").mkdir(parents=True)
                (Path(words[-1]) / "bin" / "python").touch()
            assert env.get("FLAGS") == ("a" if "pip" in words else None)
            return subprocess.CompletedProcess(words, "bad==1" in words, "", "No matching distribution\n")

        monkeypatch.setattr(subprocess, "run", fake)
        recipe = Environment("peer", (("one==1",), ("--no-binary", "two", "two==2")), {"FLAGS": "a"})
        recipe.python(tmp_path)
        recipe.python(tmp_path)
        assert len(ran) == 3
        assert ran[2][-3:] == ["--no-binary", "two", "two==2"]
        Environment("peer", (("one==2",),), {"FLAGS": "a"}).python(tmp_path)
        assert len(ran) == 5
        with pytest.raises(UsageError, match="No matching distribution"):
            Environment("worse", (("bad==1",),), {"FLAGS": "a"}).python(tmp_path)
        assert not (tmp_path / "worse" / "requirements.txt").exists()


COST = {("x", 1): 5.0, ("x", 2): 4.0, ("y", 2): 4.5, ("x", 3): None}


class TestChoosing:
    @staticmethod
    def once(side, measurement):
        return answered("p", COST[side.settings["load"], side.settings["ubatch"]])

    @staticmethod
    def side(choice):
        return Side("p", Path(), Path(), {"model": "", **choice}, setting=f"{choice['load']}{choice['ubatch']}")

    def test_settings_are_tried_one_after_the_other(self):
        knobs = settings.Knobs(self.side, lambda m: {"ubatch": [1, 2, 3], "load": ["x", "y"]})
        best, tried = settings.fastest(knobs, Measurement("m", {}), self.once)
        assert best.setting == "x2"
        assert tried == {"x1": 5.0, "x2": 4.0, "x3": None, "y2": 4.5}

    def test_a_list_is_tried_whole_and_one_alone_not_at_all(self):
        listed = [self.side({"load": load, "ubatch": n}) for load, n in COST]
        best, tried = settings.fastest(listed, Measurement("m", {}), self.once)
        assert (best.setting, len(tried)) == ("x2", 4)
        assert settings.fastest(listed[:1], Measurement("m", {}), self.once) == (listed[0], {})
        with pytest.raises(UsageError, match=r"no setting ran\. x3: killed"):
            settings.fastest([listed[3], listed[3]], Measurement("m", {}), self.once)


class TestReport:
    @pytest.fixture
    def result(self, tmp_path):
        ours = Side("Earthshine", Path(), Path(), {"model": "", "memory": "4GiB"}, setting="4GiB")
        theirs = Side("llama.cpp", Path(), Path(), {"model": ""}, setting="mmap")
        runs = tuple(
            Run(name, (took,), peak << 30, None, None, {"hits": 5})
            for name, took, peak in [
                ("Earthshine", 0.5, 2),
                ("llama.cpp", 1.0, 3),
                ("llama.cpp", 1.5, 3),
                ("Earthshine", 0.5, 3),
            ]
        )
        limits = {"memory_bytes_per_second": 71e9, "matrix_flops": 1e12, "matrix_unit": "any"}
        asked = Measurement("prompt of 10", {"what": "prompt"}, 10)
        return Result(asked, ours, theirs, runs, (limits, limits), {"mmap": 1.25, "none": None})

    def test_the_table_says_both_sides_the_ratio_and_what_was_tried(self, result):
        text = report.table([result], ["built so"])
        assert "0.5 s  (0.5 to 0.5), 20 tokens/s, peak 3.00 GiB (0.75 of --memory 4GiB)  [4GiB]" in text
        assert "1.25 s  (1 to 1.5), 8 tokens/s" in text
        assert "2.50  (2.00 to 3.00 over 2 pairs)" in text
        assert "tried mmap: 1.25 s; none: failed" in text
        assert "memory 71 GB/s, 1000 GFLOP/s in bf16; memory 71" in text
        assert text.endswith("built so")

    def test_a_side_that_failed_has_its_reason(self, result):
        runs = tuple(Run(r.side, (), None, None, "killed", {}) if r.side == "llama.cpp" else r for r in result.runs)
        failed = Result(result.measurement, result.ours, result.theirs, runs, result.limits)
        text = report.table([failed])
        assert "llama.cpp          failed: killed  [mmap]" in text
        assert "speed over" not in text
        assert report.document([failed])["measurements"][0]["ratio"] is None

    def test_other_work_on_the_machine_is_reported(self, result):
        assert "NOT QUIET" not in report.table([result])
        runs = (*result.runs[:3], dataclasses.replace(result.runs[3], others=0.83))
        text = report.table([dataclasses.replace(result, runs=runs)])
        assert "NOT QUIET: other work kept 0.00 to 0.83 processors busy" in text

    def test_the_document_is_json_and_whole(self, result):
        entry = json.loads(json.dumps(report.document([result])))["measurements"][0]
        assert entry["ratio"] == {"median": 2.5, "least": 2.0, "most": 3.0}
        assert [r["seconds"] for r in entry["runs"]] == [[0.5], [1.0], [1.5], [0.5]]
        assert entry["runs"][0]["hits"] == 5

    def test_the_document_has_rows_for_docs_results(self, result):
        (row,) = json.loads(json.dumps(report.document([result])))["rows"]
        assert (row["what"], row["median"], row["low"], row["high"]) == ("prompt of 10", 2.5, 2.0, 3.0)
        assert (row["peer"], row["ours"], row["theirs"]) == (result.theirs.name, "0.5 s", "1.25 s")
        assert row["processor"].endswith(("core", "cores"))
        assert row["command"].startswith("python ")

    def test_a_comparison_without_ratios_has_no_rows(self, result):
        runs = tuple(dataclasses.replace(run, failed="no room") for run in result.runs)
        assert report.document([dataclasses.replace(result, runs=runs)])["rows"] == []

    def test_the_picture(self, result, tmp_path):
        pytest.importorskip("matplotlib")
        report.picture([result], tmp_path / "out.png")
        assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_without_matplotlib_is_refused_before_measuring(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refuse_no_picture(arguments("").parse_args([]))
    with pytest.raises(UsageError, match="pip install matplotlib"):
        refuse_no_picture(arguments("").parse_args(["--png", str(tmp_path / "a.png")]))


def test_our_budget_stays_below_the_limit_unless_given():
    parse = arguments("").parse_args
    assert earthshine(parse([]), Path("m")).settings["memory"] is None
    assert earthshine(parse(["--limit", "12GiB"]), Path("m")).settings["memory"] == "11776MiB"
    assert earthshine(parse(["--limit", "12GiB", "--memory", "9GiB"]), Path("m")).settings["memory"] == "9GiB"


def test_the_prompt_is_the_same_everywhere_and_inside_the_vocabulary():
    assert prompt(4, 10000) == [1605, 1377, 175, 1883]
    assert prompt(3, 10000, 1) != prompt(3, 10000)
    assert {5 <= token < 64 for token in prompt(500, 64)} == {True}


class TestAgreement:
    def test_errors_are_shares_of_the_spread(self):
        import numpy as np

        logits = np.random.default_rng(0).standard_normal((50, 400)).astype(np.float32)
        other = logits + 0.01 * np.float32(logits.std())
        other[7] += 1
        found = agreement.difference(logits, other, [1, 2, 3], [1, 2, 4])
        assert found.median_error == pytest.approx(0.01, rel=1e-3)
        assert found.largest_error == pytest.approx(1 + 0.01, rel=0.02)
        assert (found.same_top, found.same_greedy) == (1.0, 2)
        with pytest.raises(UsageError, match="can't be compared"):
            agreement.difference(logits, other * np.nan, [1], [1])

    def test_another_model_is_refused(self, monkeypatch, tmp_path):
        import numpy as np

        rows = {"arbiter": np.random.default_rng(0).standard_normal((9, 40)).astype(np.float32)}
        rows["same"] = rows["arbiter"] * 1.001
        rows["near"] = rows["arbiter"] * 1.015
        rows["other"] = rows["arbiter"] * 1.04
        rows["far"] = rows["arbiter"] * 2
        sides = {name: Side(name, Path(), Path(), {"model": ""}) for name in rows}
        monkeypatch.setattr(agreement, "_logits", lambda side, out: (rows[side.name], [1, 2]))
        assert agreement.against(sides["arbiter"], [sides["same"]], tmp_path)["same"]["same_greedy"] == 2
        with pytest.raises(UsageError, match="other computes another model"):
            agreement.against(sides["arbiter"], [sides["same"], sides["other"]], tmp_path)
        assert len(agreement.against(sides["arbiter"], [sides["same"], sides["near"]], tmp_path)) == 2
        assert len(agreement.against(sides["arbiter"], [sides["other"], sides["other"]], tmp_path)) == 1
        with pytest.raises(UsageError, match="too deep to tell"):
            agreement.against(sides["arbiter"], [sides["far"]], tmp_path)


def test_the_harness_loads_neither_torch_nor_a_peer():
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import versus_llama_cpp; "
        "sys.exit(bool({'torch', 'transformers', 'llama_cpp', 'vllm', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
