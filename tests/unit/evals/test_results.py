"""Saved results: JSON lines and logs of inspect-ai, and what is refused.

inspect_a.json and inspect_b.json are logs of inspect-ai 0.3.285: eight invented sums, two epochs; in b one question
failed. They are without what is not read: events, messages, stores.
"""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from earthshine.errors import UsageError
from earthshine.evals.results import read_results

LOGS = Path(__file__).parent


def _lines(tmp_path, *lines, name="results.jsonl"):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (tmp_path / name).write_text(text + "\n")
    return tmp_path / name


def _line(**changes):
    return {"benchmark": "Quiz", "question": "1", "score": 1} | changes


def test_lines_are_read_by_benchmark_question_and_run(tmp_path):
    path = _lines(
        tmp_path,
        _line(),
        _line(run=2, score=0.25, truncated=True, tokens=77),
        _line(question=2, score=False, group="text 1"),
        "",
        _line(question="3", score=None, error=True),
        _line(benchmark="Other", score=True),
    )
    found = read_results(path)
    assert list(found) == ["Quiz", "Other"]
    assert found["Quiz"].scores == {"1": {1: 1.0, 2: 0.25}, "2": {1: 0.0}, "3": {1: 0.0}}
    assert found["Quiz"].groups == {"1": None, "2": "text 1", "3": None}
    assert (found["Quiz"].errors.total(), found["Quiz"].truncated.total()) == (1, 1)


def test_a_log_of_inspect_ai_is_read_with_failures_as_wrong():
    (a,), (b,) = (read_results(LOGS / f"inspect_{name}.json").values() for name in "ab")
    assert list(a.scores) == [str(number) for number in range(1, 9)]
    assert {len(runs) for runs in a.scores.values()} == {2}
    assert a.scores["3"] == {1: 1.0, 2: 1.0}
    assert (sum(map(sum, (runs.values() for runs in a.scores.values()))), a.errors.total()) == (12, 0)
    assert (b.errors, b.scores["5"]) == ({"5": 2} | dict.fromkeys("1234678", 0), {1: 0.0, 2: 0.0})
    assert b.truncated["3"] == 2


def test_a_folder_is_all_its_files(tmp_path):
    _lines(tmp_path, _line(), name="one.jsonl")
    _lines(tmp_path, _line(question="2"), name="two.jsonl")
    (tmp_path / "notes.txt").write_text("no results")
    assert list(read_results(tmp_path)["Quiz"].scores) == ["1", "2"]
    _lines(tmp_path, _line(), name="three.jsonl")
    with pytest.raises(UsageError, match=r"two\.jsonl', line 1: question '1' has run 1 twice|question '1' has run 1"):
        read_results(tmp_path)


def _log(tmp_path, change):
    found = json.loads((LOGS / "inspect_a.json").read_text())
    change(found)
    (tmp_path / "log.json").write_text(json.dumps(found))
    return tmp_path / "log.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda log: log.update(status="error"), "did not finish: its status is 'error'"),
        (lambda log: log.update(samples=None), "is no log of inspect-ai with its samples"),
        (lambda log: log["eval"].pop("task"), "eval lacks task"),
        (lambda log: log["samples"].append(7), "sample 17 is 7; it must be an object"),
        (lambda log: log["samples"].append(log["samples"][0]), "sample 17: question '1' has run 1 twice"),
        (lambda log: log["samples"][1].pop("id"), "sample 2 lacks id"),
        (lambda log: log["samples"][1].update(epoch="x"), "sample 2: epoch is 'x'"),
        (lambda log: log["samples"][1].update(scores={}), "sample 2 has neither scores nor an error"),
        (lambda log: log["samples"][1]["scores"].update(other={"value": 1}), "choose one with --scorer"),
        (lambda log: log["samples"][1].update(scores={"match": {"value": "good"}}), "score is 'good'"),
        (lambda log: log["samples"][1].update(scores={"match": {"value": {"a": 1}}}), "score is an object"),
        (lambda log: log["samples"][1].update(scores={"match": {"value": 7}}), "score is 7; it must be a number"),
    ],
)
def test_a_bad_log_is_refused_by_sample(tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        read_results(_log(tmp_path, change))


def test_one_of_several_scorers_is_chosen(tmp_path):
    def add(log):
        for sample in log["samples"]:
            sample["scores"]["half"] = {"value": 0.5}

    path = _log(tmp_path, add)
    assert set(read_results(path, "half")["sums"].scores["1"].values()) == {0.5}
    with pytest.raises(UsageError, match="has no scorer 'none'; it has 'match', 'half'"):
        read_results(path, "none")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question": "1", "score": 1}, "line 1 lacks benchmark"),
        ({"benchmark": "Quiz", "score": 1}, "line 1 lacks question"),
        ({"benchmark": "Quiz", "question": "1"}, "lacks score, from 0 to 1; an answer that failed has error: true"),
        (_line(score=54.0), r"score is 54\.0; it must be a number from 0 to 1"),
        (_line(score="right"), "score is 'right'"),
        (_line(score=[1]), "score is"),
        (_line(run=-1), "run is -1"),
        (_line(run=1.5), "run is 1.5"),
        (_line(error="yes"), "error is 'yes'; it must be true or false"),
        (_line(question=None), "question is null; it must be a line of text"),
        (_line(question=10**30), "question is an integer of more than 64 bits"),
        (_line(group=True), "group is true"),
        (_line(benchmark="\x1b[2J"), "benchmark is"),
        ("[1]", "line 1 holds no JSON object"),
        ("question,score", "line 1 is not JSON"),
        ("{\n", "is not JSON"),
    ],
)
def test_a_bad_line_is_refused_by_number_and_field(tmp_path, line, message):
    with pytest.raises(UsageError, match=message) as caught:
        read_results(_lines(tmp_path, line))
    assert "results.jsonl" in str(caught.value)


def test_a_question_twice_or_in_two_groups_is_refused(tmp_path):
    with pytest.raises(UsageError, match="line 2: question '1' has run 1 twice"):
        read_results(_lines(tmp_path, _line(), _line()))
    with pytest.raises(UsageError, match="line 2: question '1' is in two groups"):
        read_results(_lines(tmp_path, _line(group="a"), _line(run=2, group="b")))


def test_what_holds_no_results_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"has no \.json or \.jsonl file"):
        read_results(tmp_path)
    for name, raw, message in (
        ("empty.jsonl", b"\n", "has no results"),
        ("log.eval", b"PK\x03\x04", "is a compressed log; write it as JSON: inspect log convert"),
        ("raw.jsonl", b"\xff\xfe", "is not UTF-8"),
    ):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(UsageError, match=message):
            read_results(tmp_path / name)
    with pytest.raises(UsageError, match="can't be opened"):
        read_results(tmp_path / "missing.jsonl")


KEYS = ("eval", "samples", "task", "status", "id", "scores", "error", "output", "choices", "stop_reason", "epoch", "x")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("C"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=8,
)


@given(raw=st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
@example(raw=b'{"eval": ')
def test_any_bytes_are_results_or_refused(tmp_path_factory, raw):
    _read_or_refuse(tmp_path_factory, raw)


@given(sample=VALUES)
def test_any_sample_of_a_log_is_read_or_refused(tmp_path_factory, sample):
    log = {"status": "success", "eval": {"task": "t"}, "samples": [sample]}
    _read_or_refuse(tmp_path_factory, json.dumps(log).encode())


def _read_or_refuse(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("any") / "log.json"
    path.write_bytes(raw)
    with contextlib.suppress(UsageError):
        read_results(path)
