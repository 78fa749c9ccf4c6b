"""`earthshine plan`: from a config alone, for any machine, to tables, JSON, a picture, and a file that chat takes."""

import errno
import json
import os
import re
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from earthshine.cli.words import rate
from earthshine.machine import Machine, described, memory_total, read_machine, save_machine
from earthshine.machine.probe import identity
from earthshine.plan import read_plan
from earthshine.plan.prices import Ownership
from earthshine.settings import read_settings
from earthshine.units import parse_bytes

from .plans import MACHINES, MINI, facts, written

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.usefixtures("no_profile")


@pytest.mark.parametrize("machine", MACHINES)
def test_k2_6_is_planned_for_every_machine_that_ships(earthshine, k2_6, machine):
    found = facts(earthshine("plan", k2_6, "--machine", machine, "--json"))
    computer = read_machine(described()[machine])
    memory = found["plan"]["memory"]
    assert found["machine"] == found["plan"]["machine"] == computer.name
    assert memory["budget_bytes"] == int(0.85 * computer.memory_bytes)
    assert sum(memory["parts"].values()) <= memory["budget_bytes"]
    assert memory["context_tokens"] == 32_768
    assert (len(memory["streamed"]) > 0) == (machine == "mini-24gb")
    assert found["budgets"][0]["at"] == found["smallest_budget"] > memory["smallest"]
    for row in found["contexts"] + found["budgets"]:
        for cost in (row["decode"], row["first_token"]):
            assert cost["tokens_per_second"] == pytest.approx(cost["tokens"] / cost["seconds"])
            assert cost["bound"] in ("disk", "memory", "compute", "overhead")
            assert 0 <= cost["hit_share"] <= 1
    assert all(times >= 0.999 for times in found["times_quicker"].values())
    assert len(found["services"]["prices"]) > 3

    code, out, err = earthshine("plan", k2_6, "--machine", machine)
    assert (code, err) == (0, "")
    assert f"on {computer.name}\n" in out
    for title in ("What the memory holds", "By length of the conversation", "By memory, for 32,768", "Terms"):
        assert title in out
    for label in ("limited by", "read per token", "first token", "one reply at a time", "--batch 8"):
        assert label in out
    row = next(line for line in out.splitlines() if line.startswith("32,768"))
    assert row.split()[1] == rate(
        next(r["decode"]["tokens_per_second"] for r in found["contexts"] if r["at"] == 32_768)
    )
    smallest = re.search(r"smallest budget +([0-9.]+ GiB) +for 32,768 tokens", out)
    assert parse_bytes(smallest[1]) == pytest.approx(found["smallest_budget"], rel=0.01)


def test_the_smallest_budget_printed_is_one_that_works(earthshine, k2_6):
    found = facts(earthshine("plan", k2_6, "--machine", "mini-24gb", "--json"))
    at = ("plan", k2_6, "--machine", "mini-24gb", "--context", 32768, "--json", "--memory")
    assert facts(earthshine(*at, found["smallest_budget"]))["plan"]["memory"]["context_tokens"] == 32_768
    code, _, err = earthshine(*at, found["smallest_budget"] - 1)
    assert code == 2
    assert "The smallest budget that works" in err


def test_plan_options_reach_the_plan(earthshine, k2_6):
    options = ("--memory", "100GiB", "--context", 2000, "--batch", 4, "--threads", 3, "--trunk", "int8", "--skew", 0.5)
    found = facts(earthshine("plan", k2_6, "--machine", "desktop-128gb", *options, "--json"))
    memory = found["plan"]["memory"]
    assert (memory["budget_bytes"], memory["context_tokens"], memory["batch"]) == (100 << 30, 2000, 4)
    assert (found["plan"]["threads"], found["plan"]["trunk"], found["skew"]) == (3, "int8", 0.5)
    assert found["contexts"][0]["decode"]["tokens"] == 4


def test_changes_without_an_effect_and_small_amounts_are_reported(earthshine):
    at = ("plan", "--machine", "desktop-128gb", "--watts", 200, "--machine-price", 1000)
    found, (code, out, err) = facts(earthshine(*at, "--json")), earthshine(*at)
    assert (code, err) == (0, "")
    assert "1.00 times" not in out
    idle = [name for name, times in found["times_quicker"].items() if times < 1.005]
    assert "one more GiB of memory" in idle
    assert f"No faster with: {'; '.join(idle)}." in " ".join(out.split())
    usd = found["usd_per_million"]
    assert 0 < usd["input"] < usd["output"] < 0.1
    (row,) = (line.split() for line in out.splitlines() if line.startswith("own machine, at"))
    for shown, amount in zip(row[-2:], usd.values(), strict=True):
        assert float(shown) == float(f"{amount:.2g}") > 0


def test_money_by_hand(earthshine):
    own = Ownership(200.0, 0.1, 1000.0, 2.0)
    options = ("--watts", 200, "--kwh-price", 0.1, "--machine-price", 1000, "--life-years", 2)
    found = facts(earthshine("plan", "--machine", "mini-24gb", "--context", 1000, *options, "--json"))
    prompt = found["plan"]["forecast"]["first token of 500"]
    rate = prompt["tokens"] / prompt["seconds"]
    assert found["usd_per_million"]["input"] == pytest.approx(own.usd_per_hour / 3600 / rate * 1e6)
    assert found["usd_per_million"]["output"] > found["usd_per_million"]["input"]


@pytest.mark.parametrize(
    ("options", "hour"),
    [
        ((), "$0.070 per hour: $1,800 over 4 years of running day and night (--machine-price, --life-years) and 75 W "
             "at $0.25 per kWh (--watts, --kwh-price)."),
        (("--life-years", 1, "--machine-price", 8766, "--watts", 0, "--kwh-price", 0.1),
         "$1.000 per hour: $8,766 over 1 year of running day and night (--machine-price, --life-years) and 0 W at $0.1 "
         "per kWh (--watts, --kwh-price)."),
    ],
)  # fmt: skip
def test_what_the_cost_is_made_of_is_printed_with_its_options(earthshine, options, hour):
    out = earthshine("plan", "--machine", "laptop-64gb", *options)[1]
    assert f"The machine costs {hour}" in " ".join(out.split())


def test_other_prices_and_machines_without_any(earthshine, tmp_path):
    prices = tmp_path / "prices.json"
    entry = {"name": "[/b] :smile: [red]mine", "input": 1, "output": 22.5}
    prices.write_text(json.dumps({"format": "earthshine prices 1", "dated": "2026-01-02", "source": "x",
                                  "prices": [entry]}))  # fmt: skip
    plain = written(tmp_path, replace(MINI, watts=None, price_usd=None, name="[/i] a $\\frac{ machine :boom:"))
    code, out, err = earthshine("plan", "--machine", plain, "--prices", prices)
    assert (code, err) == (0, "")
    assert "The cost there needs --watts and --machine-price." in out
    assert "unknown without --watts and --machine-price" in out
    assert "on [/i] a $\\frac{ machine :boom:\n" in out, "a name is text, never markup"
    assert re.search(r"\[/b\] :smile: \[red\]mine +1\.00 +22\.50", out)
    found = facts(earthshine("plan", "--machine", plain, "--prices", prices, "--json"))
    assert "usd_per_million" not in found
    assert found["services"]["prices"][0]["name"] == entry["name"]


def measured(**changed) -> Machine:
    here = {"measured": "2026-01-02", "identity": identity(), "memory_bytes": memory_total()}
    return replace(MINI, **(here | changed))


def test_this_machines_plan_starts_from_what_is_free(earthshine):
    profile = read_settings().profile
    save_machine(measured(name="this one"), profile)
    found = facts(earthshine("plan", "--json"))
    assert found["machine"] == "this one"
    assert found["plan"]["memory"]["budget_bytes"] <= memory_total()
    save_machine(measured(identity={**identity(), "cpu_model": "another"}), profile)
    found = facts(earthshine("plan", "--json"))
    assert found["estimated"], "rates of another machine are not used"
    assert "was measured on another machine: its cpu_model is 'another'" in " ".join(earthshine("plan")[1].split())
    profile.write_text("{")
    code, out, err = earthshine("plan")
    assert (code, out) == (2, "")
    assert "machine.json" in err


def test_what_is_free_here_says_nothing_about_a_machine_measured_elsewhere(earthshine, tmp_path):
    elsewhere = measured(identity={**identity(), "cpu_model": "another"}, memory_bytes=900 << 30)
    found = facts(earthshine("plan", "--machine", written(tmp_path, elsewhere), "--json"))
    assert found["plan"]["memory"]["budget_bytes"] == int(0.85 * (900 << 30))


def test_saved_plan_changes_no_answer(earthshine, tmp_path):
    file, text = tmp_path / "plan.json", tmp_path / "text"
    text.write_text("List all files in a directory, then count them.")
    code, _, err = earthshine(
        "plan", "--machine", "mini-24gb", "--memory", "4GiB", "--context", 300, "--threads", 2, "--save", file
    )
    assert (code, err) == (0, "")
    assert read_plan(file).memory.budget_bytes == 4 << 30
    asked = ("chat", "-p", "How do I list files?", "--max-tokens", 12, "--temperature", 0)
    plain, planned = earthshine(*asked), earthshine(*asked, "--plan", file)
    assert plain == planned
    assert planned[0] == 0
    assert planned[1].strip()
    scored = [facts(earthshine("score", "gleam", text, "--json", *more)) for more in ((), ("--plan", file))]
    assert scored[0] == scored[1]


@pytest.mark.parametrize("more", [("--memory", "2GiB"), ("--threads", 1), ("--trunk", "int8"), ("--context", 300),
                                  ("--dtype", "fp32")], ids=str)  # fmt: skip
def test_a_plan_says_all_about_how_a_model_is_held(earthshine, tmp_path, more):
    file = tmp_path / "plan.json"
    earthshine("plan", "--machine", "mini-24gb", "--memory", "2GiB", "--save", file)
    code, out, err = earthshine("chat", "-p", "x", "--plan", file, *more)
    assert (code, out) == (2, "")
    assert "--plan has all options for loading the model" in err


def test_plans_that_chat_can_not_use_are_refused(earthshine, tmp_path, k2_6):
    file = tmp_path / "plan.json"
    earthshine("plan", k2_6, "--machine", "mini-24gb", "--save", file)
    for content, message in (
        (file.read_text(), "The plan is for 'kimi_k25-"),
        ("{}", "is not a plan; its format must be"),
        ('{"format": "earthshine plan 1"}', "is a plan of another version"),
        (None, "can't be opened"),
    ):
        file.unlink()
        if content is not None:
            file.write_text(content)
        code, out, err = earthshine("chat", "-p", "x", "--plan", file)
        assert (code, out) == (2, "")
        assert message in err
        file.touch()


BAD = [
    ("--memory", "much"), ("--memory", "1MiB"), ("--memory", "25GiB"), ("--memory", "0"), ("--context", 0),
    ("--context", 4097), ("--context", -1), ("--context", 10**30), ("--batch", 0), ("--batch", 4097), ("--threads", 0),
    ("--trunk", "fp4"), ("--skew", -1), ("--skew", "nan"), ("--skew", 5), ("--watts", -1), ("--watts", "inf"),
    ("--kwh-price", "nan"), ("--machine-price", -5), ("--life-years", 0), ("--prices", "absent.json"),
    ("--machine", "laptop"), ("--machine", "."), ("--machine", ""), ("--machine", "x" * 5000),
    ("--plot", "picture.gif"), ("--plot", "picture"), ("--memory", "16"), ("--memory", "9" * 400), ("--prices", "."),
]  # fmt: skip


@pytest.mark.parametrize("option", BAD, ids=lambda option: " ".join(map(str, option))[:30])
def test_options_that_can_not_be_are_refused_in_a_sentence(earthshine, option):
    """By the exit code 2, before anything is printed."""
    machine = () if option[0] == "--machine" else ("--machine", "mini-24gb")
    code, out, err = earthshine("plan", *machine, *option)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert err.startswith("earthshine: ")
    assert len(err) < 700
    assert 1 <= len(re.findall(r"[.;:](?=\s|$)", err.removeprefix("earthshine: "))) <= 8
    assert err.count("\n") == 1


def test_an_unknown_machine_is_answered_with_the_known_ones_and_where_files_of_them_are(earthshine):
    _, _, err = earthshine("plan", "--machine", "laptop")
    assert all(name in err for name in ("this", *MACHINES))
    folder = re.search(r"copy one of '([^']+)'", err)[1]
    assert set(os.listdir(folder)) == {f"{name}.json" for name in MACHINES}


def test_more_memory_than_the_machine_has_is_answered_with_other_machines(earthshine, tmp_path):
    for machine in ("mini-24gb", written(tmp_path, MINI)):
        code, _, err = earthshine("plan", "--machine", machine, "--memory", "25GiB")
        assert code == 2
        assert "--memory must be at most 23.52 GiB" in err
        assert "For another machine, use --machine with a file or " in err
        assert all(name in err for name in MACHINES)
    assert "another machine" not in earthshine("plan", "--machine", "mini-24gb", "--memory", "1MiB")[2]


CONFIGS = {
    "Kimi-K2.6": "moonshotai--Kimi-K2.6",
    "DeepSeek-V3, FP8": "deepseek-ai--DeepSeek-V3",
    "Qwen3-30B-A3B": "Qwen--Qwen3-30B-A3B",
}


@pytest.mark.parametrize("model", ["Moonlight", *CONFIGS])
def test_the_guides_table_of_trunks_and_smallest_budgets_is_what_plan_says(earthshine, shared_data, model):
    """And with a trunk in int8, which does not stream, the smallest budget is larger, as --help says."""
    config = ROOT / "tools" / "synthesis" / "moonlight.json"
    if model in CONFIGS:
        config = shared_data / "configs" / f"{CONFIGS[model]}_config.json"
    (row,) = re.findall(rf"^\| {model} \| (.*) \|$", (ROOT / "docs" / "planning.md").read_text(), re.MULTILINE)
    found = {
        trunk: facts(earthshine("plan", config, "--machine", "server-768gb", "--trunk", trunk, "--json"))
        for trunk in ("bf16", "int8")
    }
    parts = found["bf16"]["plan"]["memory"]["parts"]
    least = [each["answer"]["smallest_bytes"] for each in found.values()]
    figures = (parts["trunk"], parts["embedding"], *least)
    assert [f"{nbytes / 2**30:.1f}" for nbytes in figures] == row.split(" | ")
    assert least[0] < least[1]


@pytest.mark.parametrize("option", ["--save", "--plot"])
def test_a_file_that_can_not_be_written_is_named(earthshine, tmp_path, option):
    if option == "--plot":
        pytest.importorskip("matplotlib")
    code, out, err = earthshine("plan", "--machine", "mini-24gb", option, tmp_path / "absent" / "a.png")
    assert (code, out) == (1, "")
    assert "absent" in err
    assert "No such file" in err
    assert err.count("\n") == 1


def test_a_plan_that_can_not_be_written_leaves_the_one_before(earthshine, tmp_path, monkeypatch):
    file = tmp_path / "plan.json"
    command = ("plan", "--machine", "mini-24gb", "--save", file, "--memory")
    earthshine(*command, "2GiB")
    before = file.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        code, out, err = earthshine(*command, "3GiB")
    assert (code, out) == (1, "")
    assert f"{file}: No space left on device" in err
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["plan.json"]
    (tmp_path / "link").symlink_to(file)
    earthshine(*command[:-2], tmp_path / "link", "--memory", "3GiB")
    assert read_plan(file).memory.budget_bytes == 3 << 30


def test_a_picture_that_can_not_be_written_leaves_no_file(earthshine, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("a.png", "a.svg", "a.pdf"):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            code, out, err = earthshine("plan", "--machine", "mini-24gb", "--plot", tmp_path / name)
        assert (code, out) == (1, "")
        assert f"{name}: No space left on device" in err
    assert os.listdir(tmp_path) == []


def test_a_saved_plan_has_the_permissions_that_the_umask_leaves(earthshine, tmp_path):
    """A file that is replaced keeps its own."""
    file = tmp_path / "plan.json"
    before = os.umask(0o027)
    try:
        earthshine("plan", "--machine", "mini-24gb", "--save", file)
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
        file.chmod(0o604)
        earthshine("plan", "--machine", "mini-24gb", "--save", file)
        assert stat.S_IMODE(file.stat().st_mode) == 0o604
    finally:
        os.umask(before)


def test_a_plan_is_written_to_what_is_no_file(earthshine):
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe:
        code, _, err = earthshine("plan", "--machine", "mini-24gb", "--save", f"/proc/self/fd/{writing}")
        os.close(writing)
        assert (code, err) == (0, "")
        assert json.loads(pipe.read())["format"].startswith("earthshine plan ")


@pytest.mark.parametrize(("suffix", "first"), [(".png", b"\x89PNG"), (".SVG", b"<?xml"), (".pdf", b"%PDF")])
def test_a_picture_is_drawn(earthshine, tmp_path, suffix, first):
    """Of a machine whose name would be a broken formula."""
    pytest.importorskip("matplotlib")
    machine = written(tmp_path, replace(MINI, name="a $\\frac{ $ machine"))
    code, _, err = earthshine("plan", "--machine", machine, "--plot", tmp_path / f"forecast{suffix}")
    assert (code, err) == (0, "")
    raw = (tmp_path / f"forecast{suffix}").read_bytes()
    assert raw.startswith(first)
    assert len(raw) > 5000


def test_without_matplotlib_a_picture_is_refused_with_the_way_to_get_it(earthshine, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = earthshine("plan", "--machine", "mini-24gb", "--plot", tmp_path / "a.png")
    assert (code, out) == (2, "")
    assert "pip install matplotlib" in err
    assert not (tmp_path / "a.png").exists()


def test_neither_torch_nor_numpy_is_loaded(tmp_path):
    code = (
        "import atexit, sys\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'huggingface_hub'}\n"
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules)), file=sys.stderr))\n"
        "sys.argv = ['earthshine', 'plan', '--machine', 'mini-24gb', '--json', '--save', sys.argv[1]]\n"
        "from earthshine.cli import main\n"
        "main()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "plan.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stderr.strip() == "[]"
    assert json.loads(done.stdout)["plan"]["model"].startswith("kimi_k25-")
    assert read_plan(tmp_path / "plan.json").machine == MINI.name
