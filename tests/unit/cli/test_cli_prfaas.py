"""`earthshine prfaas solve`: the answer, its JSON, and what is refused. Numbers are held in tests/unit/prfaas."""

import json
import re

import pytest

from earthshine.prfaas.fleet import shipped_fleets

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
    assert slow["binds"] == ["link from prfaas to pd"]
    short = _json(earthshine("prfaas", "solve", "--mu", "7", "--longest", "8000", "--output-tokens", "100", "--json"))
    assert short["requests_per_second"] > 10
    assert short["output_tokens"] == 100


def test_no_link_leaves_local_prefill(earthshine):
    code, out, err = earthshine("prfaas", "solve", "--link", "0")
    assert (code, err) == (0, "")
    assert out.startswith("Prefill all prompts in pd.\n")


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
