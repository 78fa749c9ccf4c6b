"""Claims: the shipped files are sound, verdicts follow from the scores, and bad files are refused by field."""

import json

import pytest

from earthshine.errors import UsageError
from earthshine.evals.claims import read_claims, shipped_claims
from earthshine.evals.statistics import wilson
from earthshine.evals.verdicts import Verdict, interval_of, judge


def _file(tmp_path, **changes):
    """A file with one benchmark of two models; `changes` replace what it says, by dotted path, None removes."""
    scores = [
        {"model": "A", "score": 60.0, "runs": 1, "reported": "self"},
        {"model": "B", "score": 50.0, "reported": "quoted"},
    ]
    benchmark = {"name": "Quiz", "questions": 1000, "scores": scores}
    found = {"format": "earthshine claims 1", "model": "A", "dated": "2026-01-01", "source": "a card"}
    found["benchmarks"] = [benchmark]
    places = {"file": found, "benchmark": benchmark, "score": scores[0], "rival": scores[1]}
    for name, value in changes.items():
        place, _, key = name.partition("_")
        if value is None:
            del places[place][key]
        else:
            places[place][key] = value
    (tmp_path / "claims.json").write_text(json.dumps(found))
    return tmp_path / "claims.json"


@pytest.mark.parametrize("name", list(shipped_claims()))
def test_shipped_files_are_read_and_judged(name):
    claims = read_claims(shipped_claims()[name])
    judge(claims)
    assert len(claims.benchmarks) >= 28
    for each in claims.benchmarks:
        interval = interval_of(each.claimed, each)
        assert interval is None or each.claimed.points / 100 in interval


def test_every_row_of_kimi_k2_6_is_there_with_its_rivals():
    claims = read_claims(shipped_claims()["kimi-k2.6"])
    rows = [each for each in claims.benchmarks if each.rivals]
    assert len(rows) == 33
    assert {len(each.rivals) for each in rows} == {1, 3, 4}
    assert sum(score.reported == "measured" for each in rows for score in each.rivals) == 24
    assert "HumanEval" in claims.unclaimed


def test_verdicts_on_kimi_k2_6():
    found = {(each.benchmark.title, each.rival.model.split(" (")[0]): each for each in _judged("kimi-k2.6")}
    hle = found["HLE-Full with tools", "Claude Opus 4.6"]
    assert (hle.points, hle.verdict) == (1.0, Verdict.NOT_DISTINGUISHABLE)
    assert (round(hle.found.p, 2), hle.adjusted_p) == (0.48, 1.0)
    assert [round(100 * end, 1) for end in (hle.found.interval.low, hle.found.interval.high)] == [-1.8, 3.8]
    assert (hle.needed, hle.needed_paired) == (39049, 19530)
    assert round(hle.most_differing, 3) == 0.065
    assert found["HLE-Full without tools", "Claude Opus 4.6"].verdict is Verdict.BEHIND
    assert found["HLE-Full without tools", "Kimi K2.5"].verdict is Verdict.AHEAD
    one_of_many = found["HLE-Full with tools", "Kimi K2.5"]
    assert (round(one_of_many.found.p, 3), one_of_many.verdict) == (0.007, Verdict.UNCLEAR)
    assert found["SWE-Bench Pro", "GPT-5.4"].verdict is Verdict.NOT_JUDGED
    assert found["SWE-Bench Pro", "GPT-5.4"].needed > 40_000
    assert found["DeepSearchQA F1 score", "GPT-5.4"].needed is None


def _judged(name):
    return judge(read_claims(shipped_claims()[name]))


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, Verdict.AHEAD),
        ({"rival_score": 70}, Verdict.BEHIND),
        ({"rival_score": 59}, Verdict.NOT_DISTINGUISHABLE),
        ({"rival_score": 60}, Verdict.NOT_DISTINGUISHABLE),
        ({"score_score": 100, "rival_score": 0, "benchmark_questions": 1}, Verdict.NOT_DISTINGUISHABLE),
        ({"score_score": 100, "rival_score": 100, "benchmark_questions": 10**9}, Verdict.NOT_DISTINGUISHABLE),
        ({"score_score": 0, "rival_score": 100}, Verdict.BEHIND),
        ({"benchmark_questions": None}, Verdict.NOT_JUDGED),
        ({"benchmark_measure": "f1"}, Verdict.NOT_JUDGED),
    ],
)
def test_verdict_follows_from_scores_and_questions(tmp_path, changes, verdict):
    (found,) = judge(read_claims(_file(tmp_path, **changes)))
    assert found.verdict is verdict
    assert (found.found is None) == (verdict is Verdict.NOT_JUDGED)


def test_a_difference_counts_less_among_many(tmp_path):
    """p = 0.03 alone; with three more comparisons that show nothing it holds no longer."""
    path = _file(tmp_path, rival_score=55.2)
    (alone,) = judge(read_claims(path))
    assert alone.verdict is Verdict.AHEAD
    found = json.loads(path.read_text())
    found["benchmarks"][0]["scores"] += [{"model": name, "score": 60, "reported": "quoted"} for name in "CDE"]
    path.write_text(json.dumps(found))
    among, *_ = judge(read_claims(path))
    assert (among.found.p, among.verdict) == (alone.found.p, Verdict.UNCLEAR)
    assert among.adjusted_p == pytest.approx(4 * alone.found.p)


def test_interval_of_a_score(tmp_path):
    (benchmark,) = read_claims(_file(tmp_path)).benchmarks
    assert interval_of(benchmark.claimed, benchmark) == wilson(0.6, 1000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file_format": "yaml"}, "has no claims; its format must be 'earthshine claims 1'"),
        ({"file_model": None}, "lacks model"),
        ({"file_scores": []}, "has 'scores', which is not known"),
        ({"file_benchmarks": []}, "benchmarks must be a list of 1 to 1000 objects"),
        ({"file_benchmarks": [7]}, "benchmarks must be a list of 1 to 1000 objects"),
        ({"file_unclaimed": "MMLU"}, "unclaimed is 'MMLU'; it must be a list of benchmarks' names"),
        ({"file_unclaimed": [1]}, "unclaimed is 1; it must be a line of text"),
        ({"file_model": "C"}, "benchmark 1, 'Quiz': scores has none of 'C', whose claims these are"),
        ({"benchmark_name": None}, "benchmark 1 lacks name"),
        ({"benchmark_question": 10}, "has 'question', which is not known; it may have .*questions"),
        ({"benchmark_questions": 0}, "'Quiz': questions is 0; it must be a whole number from 1 to 1000000000"),
        ({"benchmark_questions": "many"}, "questions is 'many'"),
        ({"benchmark_questions": 2.5}, "questions is 2.5; it must be a whole number"),
        ({"benchmark_measure": "percent"}, "measure is 'percent'; it must be share or f1"),
        ({"benchmark_variant": 3}, "variant is 3; it must be a line of text"),
        ({"score_score": 154}, "score 1: score is 154; it must be a number from 0 to 100"),
        ({"score_score": "54.0"}, "score is '54.0'; it must be a number"),
        ({"score_score": True}, "score is true; it must be a number"),
        ({"score_runs": 0}, "runs is 0; it must be a whole number from 1"),
        ({"rival_reported": "rumour"}, "score 2: reported is 'rumour'; it must be one of self, quoted, measured"),
        ({"rival_reported": []}, r"reported is \[\]; it must be one of"),
        ({"rival_model": "A"}, "two scores are of 'A'"),
        ({"rival_model": "B\x1b[2J"}, "it must be a line of text"),
    ],
)
def test_a_bad_file_is_refused_by_field(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message) as caught:
        read_claims(_file(tmp_path, **changes))
    assert "claims.json" in str(caught.value)


def test_a_benchmark_twice_is_refused(tmp_path):
    path = _file(tmp_path)
    found = json.loads(path.read_text())
    found["benchmarks"] *= 2
    path.write_text(json.dumps(found))
    with pytest.raises(UsageError, match="two benchmarks are 'Quiz'; give one another variant"):
        read_claims(path)


@pytest.mark.parametrize("raw", [b"", b"[]", b"model: Kimi", b'{"format": 1, "format": 2}', b"\xff", b"{" * 9999])
def test_what_is_no_json_is_refused(tmp_path, raw):
    (tmp_path / "claims.json").write_bytes(raw)
    with pytest.raises(UsageError, match=r"claims\.json"):
        read_claims(tmp_path / "claims.json")
