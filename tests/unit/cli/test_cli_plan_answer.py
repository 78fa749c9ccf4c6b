"""`earthshine plan` answers before its tables: for one machine, for several, and where the answer is no."""

import re
from dataclasses import replace

import pytest

from earthshine.cli.layout import Report
from earthshine.cli.words import rate
from earthshine.machine.probe import identity
from earthshine.units import format_bytes, format_duration

from .plans import MACHINES, MINI, facts, written

pytestmark = pytest.mark.usefixtures("no_profile")


@pytest.fixture(autouse=True)
def _sizes(monkeypatch):
    """What this machine has of memory and disk stays out of it."""
    monkeypatch.setattr("earthshine.machine.estimate.memory_total", lambda root: 32 << 30)
    monkeypatch.setattr("earthshine.cli.plan.memory_available", lambda: 24 << 30)
    monkeypatch.setattr("earthshine.plan.download.free_bytes", lambda folder: 1 << 40)


def answered(out: str) -> dict[str, str]:
    """The block of the answer, by its labels, at a width where no text wraps."""
    block = next(part for part in out.split("\n\n") if part.startswith("Does it run"))
    return dict(re.split(r"  +", line, maxsplit=1) for line in block.splitlines())


@pytest.mark.parametrize("machine", MACHINES)
def test_the_answer_comes_first_with_the_forecasts_figures(earthshine, monkeypatch, k2_6, machine):
    monkeypatch.setenv("COLUMNS", "300")
    found = facts(earthshine("plan", k2_6, "--machine", machine, "--json"))
    given = found["answer"]
    memory = found["plan"]["memory"]
    (at_4k,) = (row for row in found["contexts"] if row["at"] == 4096)
    (at_32k,) = (row for row in found["contexts"] if row["at"] == 32_768)
    assert given["runs"] == (machine != "8xh200")
    assert given["budget_bytes"] == memory["budget_bytes"]
    assert given["download_bytes"] == given["model_bytes"] == 23_040 * 24_772_632 + 23_444_463_616
    assert given["reply_seconds"] == pytest.approx(300 / given["tokens_per_second"])
    assert given["first_token_seconds"] == {
        "4096": at_4k["first_token"]["seconds"],
        "32768": at_32k["first_token"]["seconds"],
    }
    assert given["output_usd_per_million"] == found["usd_per_million"]["output"]
    assert given["times_service_price"] == pytest.approx(found["usd_per_million"]["output"] / 4.0)
    change, times = max(found["times_quicker"].items(), key=lambda item: item[1])
    assert given["helps_most"] == {"change": change, "times_as_fast": times}

    _, out, _ = earthshine("plan", k2_6, "--machine", machine)
    block = answered(out)
    assert out.index("Does it run") < out.index("What the memory holds")
    assert block["Download"].startswith("553.40 GiB (594 GB on a drive's label)")
    assert block["Speed"].startswith(f"{rate(given['tokens_per_second'])} tokens per second")
    assert block["300-token answer"] == format_duration(given["reply_seconds"])
    assert f"{format_duration(at_32k['first_token']['seconds'])} after a prompt of 32K tokens" in block["First token"]
    times_price, _, rest = block["Cost of output"].partition(" ")
    assert float(times_price) == pytest.approx(given["times_service_price"], rel=0.06)
    assert rest.startswith("times the API's price: $")
    if machine == "8xh200":
        assert block["Does it run there?"].startswith("Not with Earthshine")
        assert "no GPU kernels" in block["Does it run there?"]
        assert "vLLM" in block["Would help most"]
    else:
        assert block["Does it run there?"].startswith("Yes, with ")
        assert block["Would help most"].startswith(f"{change}: tokens come {times:.1f} times as fast")


def test_the_least_memory_of_the_answer_works_and_less_does_not(earthshine, k2_6):
    at = ("plan", k2_6, "--machine", "mini-24gb", "--memory")
    _, out, _ = earthshine(*at[:-1])
    least = re.search(r"; ([0-9.]+) GiB is the least that works", out)[1]
    assert earthshine(*at, f"{least}GiB")[0] == 0
    assert earthshine(*at, f"{float(least) - 0.01:.2f}GiB")[0] == 2


def test_every_smallest_budget_and_speed_names_its_length_of_conversation(earthshine, monkeypatch, k2_6):
    monkeypatch.setenv("COLUMNS", "300")
    _, out, _ = earthshine("plan", k2_6, "--machine", "mini-24gb")
    block = answered(out)
    assert block["Does it run there?"].endswith(" is the least that works, for 2,048 tokens of conversation.")
    assert re.search(r"tokens per second with 4,096 tokens of conversation, ", block["Speed"])
    assert re.search(r"smallest budget +[0-9.]+ GiB +for 32,768 tokens of conversation\n", out)
    assert "; for 2,048 tokens of conversation\n" in earthshine("inspect", k2_6)[1]
    _, out, _ = earthshine("plan", k2_6, "--machine", "mini-24gb", "--context", "5000", "--batch", "2")
    assert answered(out)["Does it run there?"].endswith("for 5,000 tokens of conversation.")
    found = re.search(r"smallest budget +([0-9.]+ GiB) +for 5,000 tokens of conversation\n", out)
    assert f"; {found[1]} is the least that works" in answered(out)["Does it run there?"]


@pytest.mark.parametrize("estimated", [False, True])
def test_speeds_of_a_batch_are_of_each_reply_and_of_all(earthshine, monkeypatch, k2_6, estimated):
    monkeypatch.setenv("COLUMNS", "300")
    asked = ("plan", k2_6, "--batch", 8, *(() if estimated else ("--machine", "mini-24gb")))
    found = facts(earthshine(*asked, "--json"))
    out = earthshine(*asked)[1]
    about, each, every = re.match(
        r"(about )?([0-9.]+) tokens per second for each of 8 replies, ([0-9.]+) for all, with 4,096 tokens",
        answered(out)["Speed"],
    ).groups()
    assert (about is not None) == estimated
    exact = found["answer"]["tokens_per_second"]
    assert float(each) == pytest.approx(exact, rel=0.06)
    assert float(every) == pytest.approx(8 * exact, rel=0.06)
    assert estimated or "there for machine and power (8 replies at a time), $" in answered(out)["Cost of output"]
    assert "while 8 conversations of that length are in the cache; if it holds fewer, the others wait." in out
    for column in ("tokens ", "memory "):
        (head,) = re.findall(rf"^{column} +(\S.*)$", out, re.MULTILINE)
        assert head.startswith("tokens/s, all  ")
    for row in found["contexts"]:
        assert re.search(rf"^{row['at']:,} +{rate(row['decode']['tokens_per_second'])} ", out, re.MULTILINE)
    comparison = earthshine(*asked[:4], "--machine", "mini-24gb", "--machine", "laptop-64gb")[1]
    assert "tokens/s: of each of 8 replies." in comparison
    assert "tokens/s: of each" not in earthshine(*asked[:2], "--machine", "mini-24gb", "--machine", "laptop-64gb")[1]


def test_the_memory_of_a_batch_is_a_table_at_80_columns(earthshine, monkeypatch, k2_6):
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("mini-24gb", "laptop-64gb"):
        out = earthshine("plan", k2_6, "--machine", name, "--batch", 8)[1]
        assert re.search(r"^trunk +[0-9.]+ GiB", out, re.MULTILINE)
        assert re.search(r"^smallest budget +[0-9.]+ GiB  for 32,768 tokens of conversation$", out, re.MULTILINE)
        assert "size: " not in out


def test_the_rates_that_a_forecast_starts_from_are_printed(earthshine, monkeypatch, tmp_path, k2_6):
    """The drive's is the one that the forecast takes: of an expert, by as many reads as there are."""
    monkeypatch.setenv("COLUMNS", "300")
    file = written(tmp_path, MINI)
    for name, line in (
        ("laptop-64gb", "8 cores, 62.7 GiB of memory read at 71.70 GB/s, experts read from disk at 3.60 GB/s: by data "
                        "sheets"),
        (file, "8 cores, 23.5 GiB of memory read at 71.70 GB/s, experts read from disk at 5.22 GB/s: as its file says"),
    ):  # fmt: skip
        found = facts(earthshine("plan", k2_6, "--machine", name, "--json"))
        assert answered(earthshine("plan", k2_6, "--machine", name)[1])["Machine"] == line
        cost = next(row["decode"] for row in found["contexts"] if row["at"] == 32_768)
        if name == "laptop-64gb":  # whose trunk stays in memory
            read = next(seconds for part, seconds in cost["parts"].items() if part == "disk")
            assert f"{cost['disk_bytes'] / read / 1e9:.2f} GB/s: " in line
    there = replace(MINI, measured="2026-01-02", identity=identity(), processors=1)
    line = answered(earthshine("plan", k2_6, "--machine", written(tmp_path, there))[1])["Machine"]
    assert line.startswith("1 thread, ")
    assert line.endswith(": measured on 2026-01-02")
    assert answered(earthshine("plan", k2_6)[1])["Machine"].startswith("Estimated, not measured: ")


def test_a_small_model_is_not_said_to_take_all_the_memory(earthshine, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    taken = facts(earthshine("plan", "--json"))["plan"]["memory"]
    verdict = answered(earthshine("plan")[1])["Does it run here?"]
    budget = format_bytes(taken["budget_bytes"]).partition(".")[0]
    assert re.match(rf"Yes, with [0-9]+ MiB of the {budget}[0-9.]* GiB of memory that it may use; ", verdict)
    assert sum(taken["parts"].values()) < 1 << 30


def test_a_disk_that_is_too_small_is_a_no_with_what_is_missing(earthshine, monkeypatch, k2_6):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr("earthshine.plan.download.free_bytes", lambda folder: 100 << 30)
    given = facts(earthshine("plan", k2_6, "--json"))["answer"]
    assert (given["runs"], given["lacks"], given["free_disk_bytes"]) == (False, ["disk"], 100 << 30)
    block = answered(earthshine("plan", k2_6)[1])
    assert block["Does it run here?"].startswith("Not yet: 453 GiB (487 GB on a drive's label) of disk space are")
    assert "which the disk can't hold: " in block["Download"]
    assert "453 GiB (487 GB on a drive's label) more free space, or EARTHSHINE_HOME" in block["Would help most"]


def test_too_little_memory_is_a_no_with_the_least_that_works(earthshine, tmp_path, k2_6):
    small = written(tmp_path, replace(MINI, memory_bytes=2 << 30))
    found = facts(earthshine("plan", k2_6, "--machine", small, "--json"))
    assert (found["answer"]["runs"], found["answer"]["lacks"]) == (False, ["memory"])
    assert "plan" not in found
    code, out, err = earthshine("plan", k2_6, "--machine", small)
    assert (code, err) == (0, "")
    assert "No: it needs at least 4.9" in out
    assert "1.7 GiB can be used" in out
    code, out, err = earthshine("plan", k2_6, "--machine", small, "--save", tmp_path / "plan.json")
    assert (code, out) == (2, "")
    assert "--save need one plan: the model does not fit the memory there" in err


def test_machines_are_compared_row_by_row(earthshine, monkeypatch, k2_6):
    monkeypatch.setenv("COLUMNS", "80")
    names = ("mini-24gb", "desktop-128gb", "server-768gb", "8xh200", "this")
    options = [word for name in names for word in ("--machine", name)]
    found = facts(earthshine("plan", k2_6, *options, "--memory", "8GiB", "--json"))["machines"]
    alone = facts(earthshine("plan", k2_6, "--machine", "mini-24gb", "--memory", "8GiB", "--json"))
    assert found[0] == alone
    assert [one["estimated"] for one in found] == [False] * 4 + [True]
    code, out, err = earthshine("plan", k2_6, *options, "--memory", "8GiB")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    for name, one in zip(names[:4], found, strict=False):
        (row,) = (line.split() for line in lines if re.match(rf"{name} +(yes|no) ", line))
        given = one["answer"]
        about = "~" if one["estimated"] else ""
        assert row[1] == ("yes" if given["runs"] else "no")
        assert about + rate(given["tokens_per_second"]) in row
        assert f"{name}: " in out
    assert all(len(line) <= 80 for line in lines)


def test_a_machine_that_refuses_is_a_row_of_a_comparison(earthshine, k2_6):
    """Where alone it is an error: more memory than it has."""
    options = ("--memory", "60GiB", "--machine", "mini-24gb", "--machine", "desktop-128gb")
    first, second = facts(earthshine("plan", k2_6, *options, "--json"))["machines"]
    assert "60.00 GiB" in first["refusal"]
    assert second["answer"]["runs"]
    code, out, _ = earthshine("plan", k2_6, *options)
    assert code == 0
    assert re.search(r"^mini-24gb +no", out, re.MULTILINE)
    assert first["refusal"].partition(",")[0] in " ".join(out.split())
    for option in ("--save", "--plot"):
        code, out, err = earthshine("plan", k2_6, *options, option, "x.png")
        assert (code, out) == (2, "")
        assert f"{option} need one plan: give --machine once" in err


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_the_report_fits_the_terminal(earthshine, monkeypatch, k2_6, columns):
    """Without a blank at a line's end or a control sequence."""
    monkeypatch.setenv("COLUMNS", str(columns))
    for options in (("--machine", "mini-24gb"), ("--machine", "mini-24gb", "--machine", "8xh200"), ()):
        code, out, err = earthshine("plan", k2_6, *options)
        assert (code, err) == (0, "")
        assert "\x1b" not in out
        for line in out.splitlines():
            assert line == line.rstrip()
            assert len(line) <= columns or " " not in line.strip()


def test_a_machine_that_nobody_measured_is_estimated_and_says_so(earthshine):
    found = facts(earthshine("plan", "--json"))
    assert found["estimated"]
    assert found["answer"]["runs"]
    code, out, err = earthshine("plan")
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert "This machine has not been measured." in text
    assert "earthshine bench machine" in text
    assert "Estimated, not measured: " in text
    assert re.search(r"Speed +about [0-9,.]+ tokens per second", text)
    assert re.search(r"300-token answer +about ", text)
    assert not facts(earthshine("plan", "--machine", "mini-24gb", "--json"))["estimated"]


def test_a_table_that_is_too_wide_wraps_its_notes(monkeypatch, capsys):
    """Until they have no room; then each row is a paragraph."""
    rows = [("trunk", "1 GiB", "read at every step by all of its many parts"), ("total", "12 GiB", "")]
    for columns, lines in (
        (60, ["         size", "trunk   1 GiB  read at every step by all of its many parts", "total  12 GiB"]),
        (40, ["         size", "trunk   1 GiB  read at every step by all", " " * 15 + "of its many parts",
              "total  12 GiB"]),
        (38, ["trunk", "  size: 1 GiB; read at every step by", "  all of its many parts", "total", "  size: 12 GiB"]),
    ):  # fmt: skip
        monkeypatch.setenv("COLUMNS", str(columns))
        Report().table(("", "size", ""), rows)
        assert capsys.readouterr().out.splitlines() == lines
