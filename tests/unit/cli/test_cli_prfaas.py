"""`earthshine prfaas solve` and `borrow`: answers, JSON, and what is refused. Numbers are held in tests/unit/prfaas."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from earthshine.prfaas import measure
from earthshine.prfaas.fleet import shipped_fleets

sys.path.insert(0, str(Path(__file__).parents[1] / "loadgen"))
from pretender import Pretender

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs" / "prfaas.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.usefixtures("no_profile")


def _json(done):
    code, out, err = done
    assert (code, err) == (0, "")
    return json.loads(out)


def test_answer_comes_first(earthshine):
    code, out, err = earthshine("prfaas", "solve")
    assert (code, err) == (0, "")
    first, roles, serves, *rest = out.splitlines()
    assert re.fullmatch(r"Prefill prompts up to (19,\d\d\d) tokens in pd, prompts above \1 tokens in prfaas\.", first)
    assert roles == "Instances: prfaas: 4 for prefill; pd: 3 for prefill and 5 for decode."
    assert serves == ("That serves 3.14 requests per second; what limits it: prefill of pd, prefill of prfaas.")
    assert rest[0].startswith("With one more instance of prfaas that prefills: 3.74 requests per second (+19%)")
    assert "No gain: twice the rate from prfaas to pd." in rest
    assert any(re.match(r"prfaas prefills +49\.\d% +44,\d+ ", line) for line in rest)


@pytest.mark.parametrize("name", list(shipped_fleets()))
def test_every_shipped_fleet_is_solved(earthshine, name):
    assert _json(earthshine("prfaas", "solve", name, "--json"))["requests_per_second"] > 0


def test_json_has_what_the_paper_reports(earthshine):
    found = _json(earthshine("prfaas", "solve", "--at-means", "--json"))
    assert found["thresholds"] == [19600]
    assert found["n_prefill"] == {"prfaas": 4, "pd": 3}
    assert found["requests_per_second"] == pytest.approx(3.195, abs=0.001)
    assert 8e-9 * found["egress_bytes_per_second"] == pytest.approx(11.94, abs=0.01)


def test_link_threshold_and_lengths_are_obeyed(earthshine):
    slow = _json(earthshine("prfaas", "solve", "--link", "2", "--threshold", "19400", "--at-means", "--json"))
    assert slow["requests_per_second"] == pytest.approx(0.53, abs=0.005)
    assert slow["bottlenecks"] == ["link from prfaas to pd"]
    short = _json(earthshine("prfaas", "solve", "--mu", "7", "--longest", "8000", "--output-tokens", "100", "--json"))
    assert short["requests_per_second"] > 10
    assert short["output_tokens"] == 100


def test_lengths_beyond_a_prefill_curve_are_said(earthshine):
    _, out, _ = earthshine("prfaas", "solve")
    assert "Extrapolated" not in out
    code, out, _ = earthshine("prfaas", "solve", "--longest", "200000")
    assert code == 0
    line = next(line for line in out.splitlines() if line.startswith("Extrapolated to 200,000 tokens"))
    assert "at 131,072" in line
    ends = _json(earthshine("prfaas", "solve", "--longest", "200000", "--json"))["extrapolated"]
    assert set(ends.values()) == {131072}


def test_no_link_leaves_local_prefill(earthshine):
    code, out, err = earthshine("prfaas", "solve", "--link", "0")
    assert (code, err) == (0, "")
    assert out.startswith("Prefill all prompts in pd.\n")
    found = _json(earthshine("prfaas", "solve", "--link", "0", "--at-means", "--json"))
    assert found["requests_per_second"] > 1
    assert (found["remote_share"], found["egress_bytes_per_second"]) == (0, 0)


def test_a_change_that_still_serves_nothing_is_no_gain(earthshine):
    code, out, err = earthshine("prfaas", "solve", "paper-naive", "--link", "0")
    assert (code, err) == (0, "")
    assert "serves 0 requests per second" in out
    assert "With one more" not in out
    assert "No gain: one more instance of prfaas that prefills, " in out


def test_lengths_come_from_a_trace_after_its_prefix_hits(earthshine, tmp_path):
    trace = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": n, "input_length": 4096, "output_length": 50, "hash_ids": [*range(7), 100 + n]} for n in range(4)
    ]
    trace.write_text("\n".join(map(json.dumps, rows)))
    found = _json(earthshine("prfaas", "solve", "paper-homogeneous", "--trace", trace, "--json"))
    assert found["stages"][0]["mean_tokens"] == pytest.approx((4096 + 3 * 512) / 4)
    assert found["output_tokens"] == 50


def test_trace_that_runs_backwards_is_refused(earthshine, tmp_path):
    trace = tmp_path / "trace.jsonl"
    trace.write_text("\n".join(f'{{"timestamp": {t}, "input_length": 9, "output_length": 5}}' for t in (5, 3)))
    code, _, err = earthshine("prfaas", "solve", "--trace", trace)
    assert code == 2
    assert "request 2 arrives before the one above it" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "'nowhere' is neither a file nor a known fleet; known are paper"),
        (["--link", "-1"], "--link must be from 0"),
        (["--link", "nan"], "--link must be from 0"),
        (["--mu", "nan"], "--mu of the lengths must be between"),
        (["--shortest", "500", "--longest", "400"], "the smaller one first"),
        (["--output-tokens", "0"], "--output-tokens must be from 1"),
        (["--threshold", "nan"], "--threshold must be from 0"),
        (["paper-naive", "--threshold", "5"], "needs two clusters that prefill; this fleet has 1"),
    ],
)
def test_wrong_options_are_named(earthshine, words, said):
    code, out, err = earthshine("prfaas", "solve", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_fleet_without_a_place_to_decode_is_refused(earthshine, tmp_path):
    fleet = json.loads(shipped_fleets()["paper"].read_text())
    fleet["clusters"], fleet["links"] = [{"name": "p", "profile": "8xH200", "n_prefill": 1}], []
    (tmp_path / "fleet.json").write_text(json.dumps(fleet))
    code, _, err = earthshine("prfaas", "solve", tmp_path / "fleet.json")
    assert code == 2
    assert "has no cluster that decodes; give one n_decode of at least 1" in err


def test_table_of_borrowing_is_what_the_command_prints(earthshine, k2_6):
    rows = re.findall(r"^\| `([\w-]+)` \|( [\d,]+ \|.*)\|$", DOCUMENT, re.MULTILINE)
    machines = [part for name in dict.fromkeys(name for name, _ in rows) for part in ("--machine", name)]
    code, out, err = earthshine("prfaas", "borrow", k2_6, *machines)
    assert (code, err, len(rows)) == (0, "", 18)
    for name, cells in rows:
        assert re.search(rf"^{name} +{' +'.join(cell.strip() for cell in cells.split('|'))}$", out, re.MULTILINE), out
    assert "desktop-128gb at 0.1 Gb/s: borrowing is sooner for every prompt." in out


def test_fleet_of_the_document_is_solved(earthshine, tmp_path):
    fleet = next(
        block for block in re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL) if "earthshine fleet" in block
    )
    (tmp_path / "fleet.json").write_text(fleet)
    found = _json(earthshine("prfaas", "solve", tmp_path / "fleet.json", "--json"))
    assert found["n_prefill"]["away"] == 4


def test_borrowed_fleet_is_saved_and_solved(earthshine, k2_6, tmp_path):
    words = ("--machine", "mini-24gb", "--link", "1", "--prompt", "8192", "--json", "--save", tmp_path / "fleet.json")
    found = _json(earthshine("prfaas", "borrow", k2_6, *words, "--usd-per-hour", "36"))["mini-24gb"]
    assert [row["tokens"] for row in found] == [8192]
    assert found[0]["usd_there"] == pytest.approx(36 / 3600 * found[0]["there_prefill"])
    assert found[0]["break_even"] == 1
    assert found[0]["usd_per_hour_saved"] == pytest.approx(
        3600 * found[0]["usd_held"] / (found[0]["here_seconds"] - found[0]["there_seconds"])
    )
    solved = _json(earthshine("prfaas", "solve", tmp_path / "fleet.json", "--longest", "8192", "--json"))
    assert solved["remote_share"] > 0.5


def test_a_slow_link_is_answered_for_the_longest_prompt_alone(earthshine, k2_6):
    code, out, err = earthshine(
        *("prfaas", "borrow", k2_6, "--machine", "mini-24gb", "--link", "0.00001", "--prompt", "8192")
    )
    assert (code, err) == (0, "")
    assert out.startswith("mini-24gb at 1e-05 Gb/s: a prompt of 8,192 tokens is computed sooner here.\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--link", "0"], "--link must be above 0"),
        (["--prompt", "1"], "--prompt must be from 2 to 262144 tokens"),
        (["--prompt", "262145"], "--prompt must be from 2 to 262144 tokens"),
        (["--usd-per-hour", "-1"], "--usd-per-hour must be from 0"),
        (["--machine", "toaster"], "'toaster' is neither a file nor a known machine"),
        (["--lender", "toaster"], "'toaster' is neither a file nor a known machine"),
        (["--save", "x.json"], "--save needs one machine and one link"),
    ],
)
def test_wrong_options_of_borrow_are_named(earthshine, k2_6, words, said):
    code, out, err = earthshine("prfaas", "borrow", k2_6, "--machine", "mini-24gb", *words)
    assert (code, out) == (2, "")
    assert said in err


@pytest.fixture
def server():
    made = Pretender()
    yield made
    made.close()


def _steps_of_a_millisecond(monkeypatch):
    """Requests are sent and answered, and only their times exchanged: all begin together."""
    drive = measure.drive

    def timed(*args, **kwargs):
        run = drive(*args, **kwargs)
        steps = (0.001,) * 63
        return replace(run, samples=tuple(replace(s, sent=0.0, first=0.02, gaps=steps) for s in run.samples))

    monkeypatch.setattr(measure, "drive", timed)


def test_measured_profile_is_one_that_a_fleet_takes(earthshine, server, k2_6, tmp_path, monkeypatch):
    _steps_of_a_millisecond(monkeypatch)
    found = _json(earthshine("prfaas", "profile", server.url, k2_6, "--longest", "600", "--batch", "2"))
    assert [size for size, _ in found["prefill"]] == [128, 256, 512, 600]
    assert found["cache"][-1] == [600, 600 * 70272]
    assert found["batch"] == 2
    assert found["decode"] == [[1, pytest.approx(0.001)], [2, pytest.approx(0.001)]]
    cluster = {"name": "home", "profile": "small", "n_prefill": 1, "n_decode": 1}
    fleet = {"format": "earthshine fleet 1", "profiles": [found], "clusters": [cluster]}
    (tmp_path / "fleet.json").write_text(json.dumps(fleet))
    assert _json(earthshine("prfaas", "solve", tmp_path / "fleet.json", "--json"))["requests_per_second"] > 0


def test_server_that_does_not_answer_is_named(earthshine, k2_6):
    code, out, err = earthshine("prfaas", "profile", "http://127.0.0.1:9", k2_6)
    assert (code, out) == (1, "")
    assert "http://127.0.0.1:9/v1/models: no connection" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--api", "grpc"], "--api must be completions or chat"),
        (["--longest", "5"], "--longest must be from 128"),
        (["--batch", "0"], "--batch must be from 1"),
        (["--batch", "4097"], "--batch must be from 1 to 4096, not 4097"),
        (["--seconds", "nan"], "--seconds must be from 1"),
        (["--usd-per-hour", "-2"], "--usd-per-hour must be from 0"),
    ],
)
def test_wrong_options_of_profile_are_named(earthshine, server, k2_6, words, said):
    code, out, err = earthshine("prfaas", "profile", server.url, k2_6, *words)
    assert (code, out) == (2, "")
    assert said in err
    assert not server.bodies
