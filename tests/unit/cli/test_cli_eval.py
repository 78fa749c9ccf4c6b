"""`earthshine eval`: answers in plain sentences, their JSON and picture, and what is refused."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from earthshine.evals.claims import shipped_claims

pytestmark = pytest.mark.usefixtures("no_profile")


def _words(done):
    code, out, err = done
    assert (code, err) == (0, "")
    return " ".join(out.split())


def test_the_answer_comes_first_and_each_benchmark_has_its_sentences(earthshine):
    words = _words(earthshine("eval", "claims"))
    assert words.startswith(
        "Kimi K2.6 has 23 published differences from rivals that can be judged. It is ahead in 2 and behind in 3; 17 "
        "are not distinguishable from chance, and 1 would count alone, but not among this many comparisons. "
        "HLE-Full with tools: 54.0 (2,500 questions, runs not stated) 95% interval of the score: 52.0 to 55.9."
    )
    assert "Claude Opus 4.6 (max effort) 53.0 +1.0 -1.8 to +3.8 0.48 1.00 not distinguishable; quoted" in words
    assert (
        "Claude Opus 4.6 (max effort): not distinguishable. Two equally good models differ by 1.0 points or more in 48 "
        "of 100 such tests. If the difference is real, 39,000 questions would show it, or 19,500 if both models' "
        "answers were compared question by question; this benchmark has 2,500."
    ) in words
    assert (
        "Claude Opus 4.6 (max effort): behind by more than chance explains. Two equally good models differ by 5.3 "
        "points or more in 11 of 100,000 such tests."
    ) in words
    assert "in 7 of 1,000 such tests: enough for a single comparison, not for one of 23." in words
    assert "No published claim: HumanEval, MATH-500, AIME 2024, MMLU." in words
    assert "SWE-Bench Pro 58.6 GPT-5.4 (xhigh) +0.9 47,200 23,600" in words


@pytest.mark.parametrize("name", list(shipped_claims()))
@pytest.mark.parametrize("columns", ["30", "200"])
def test_shipped_claims_are_printed_at_any_width(earthshine, monkeypatch, name, columns):
    monkeypatch.setenv("COLUMNS", columns)
    words = _words(earthshine("eval", "claims", name))
    assert "HLE-Full with tools" in words
    assert "as of 2026-11-21" in words


def test_json_has_every_figure_and_a_picture_is_drawn_beside_it(earthshine, tmp_path):
    picture = tmp_path / "claims.png"
    plot = ("--plot", str(picture)) if importlib.util.find_spec("matplotlib") else ()  # which is optional
    code, out, err = earthshine("eval", "claims", "--json", *plot)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["model"], found["tests"], len(found["benchmarks"])) == ("Kimi K2.6", 23, 38)
    hle = found["benchmarks"][0]
    assert (hle["name"], hle["variant"], hle["questions"]) == ("HLE-Full", "with tools", 2500)
    opus = hle["comparisons"][1]
    assert (opus["rival"]["points"], opus["difference_points"]) == (53.0, 1.0)
    assert opus["interval_points"] == pytest.approx([-1.76, 3.76], abs=0.01)
    assert (opus["p"], opus["p_holm"]) == (pytest.approx(0.478, abs=0.001), 1)
    assert (opus["verdict"], opus["needed_questions"]) == ("not distinguishable", 39049)
    assert not plot or picture.read_bytes().startswith(b"\x89PNG")


def test_equal_scores_and_a_single_question_are_said_plainly(earthshine, tmp_path):
    scores = [{"model": "A $x$", "score": 50, "reported": "self"}, {"model": "B", "score": 50, "reported": "quoted"}]
    found = {"format": "earthshine claims 1", "model": "A $x$", "dated": "now", "source": "a card"}
    found["benchmarks"] = [{"name": "Quiz", "questions": 1, "scores": scores}]
    (tmp_path / "claims.json").write_text(json.dumps(found))
    words = _words(earthshine("eval", "claims", tmp_path / "claims.json"))
    assert words.startswith("A $x$ has 1 published difference from rivals")
    assert "B: not distinguishable. The scores are equal." in words
    if importlib.util.find_spec("matplotlib"):
        _words(earthshine("eval", "claims", tmp_path / "claims.json", "--plot", tmp_path / "claims.svg"))
        assert (tmp_path / "claims.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("moon",), "'moon' is neither a file nor known claims; known are kimi-k2.5, kimi-k2.6."),
        (("--plot", "claims.txt"), "must end in one of .png"),
        (("kimi-k2.5", "--plot", "claims.png"), "has 0 differences that can be judged; --plot draws 1 to 200"),
        ((__file__,), "is not JSON"),
    ],
)
def test_what_holds_no_claims_is_refused(earthshine, options, problem):
    code, out, err = earthshine("eval", "claims", *options)
    assert (code, out) == (2, "")
    assert problem in err.replace("\n", " ")


def test_claims_are_judged_without_torch(forker):
    code = "import sys; sys.modules['torch'] = None; from earthshine.cli import main; main()"
    done = forker.run([sys.executable, "-c", code, "eval", "claims", "--json"], text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["tests"] == 23


LOGS = [str(Path(__file__).parents[1] / "evals" / f"inspect_{name}.json") for name in "ab"]


def test_two_logs_are_compared_in_plain_sentences(earthshine):
    words = _words(earthshine("eval", "compare", *LOGS))
    assert (
        "A and B are not distinguishable in sums. sums: 8 questions score 95% interval p Holm answers failed" in words
    )
    assert "B 68.8 37.5 to 93.8 16 2 2 A - B +6.2" in words
    assert "Better? Not distinguishable. A has the higher score on 3 questions and B on 2." in words
    assert "The same model? Inconclusive: with these questions answered again, the 90% interval is -20.9 to" in words


def _write(path, scores):
    lines = [
        {"benchmark": name, "question": at, "score": score} for name in scores for at, score in enumerate(scores[name])
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_better_of_two_is_named_and_json_has_every_figure(earthshine, tmp_path):
    a = _write(tmp_path / "a.jsonl", {"Quiz": [1] * 90 + [0] * 10, "Sums": [1] * 300, "Mine": [1]})
    b = _write(tmp_path / "b.jsonl", {"Quiz": [1] * 70 + [0] * 30, "Sums": [1] * 300})
    words = _words(earthshine("eval", "compare", a, b))
    assert "Of 2 benchmarks, A is better in 1 and B in 0; 1 are not distinguishable." in words
    assert "Better? A, by more than chance explains. A has the higher score on 20 questions and B on 0." in words
    assert "The same model? No: with these questions answered again" in words
    assert "The same model? Consistent: with these questions answered again" in words
    assert "Only in A: Mine." in words
    assert "fewer answers" not in words
    code, out, err = earthshine("eval", "compare", b, a, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    quiz, sums = found["benchmarks"]
    assert (quiz["verdict"], quiz["same"]["verdict"], quiz["questions_second_better"]) == ("behind", "lower", 20)
    assert quiz["difference_points"] == pytest.approx(-20)
    assert quiz["p"] < quiz["p_holm"] < 1e-4
    assert (sums["difference_points"], sums["p"], sums["needed_questions"]) == (0, 1, None)
    assert found["only_second"] == ["Mine"]


def test_an_incomplete_run_is_named(earthshine, tmp_path):
    a = _write(tmp_path / "a.jsonl", {"Quiz": [1, 1, 0]})
    b = tmp_path / "b.jsonl"
    b.write_text(a.read_text() + json.dumps({"benchmark": "Quiz", "question": 1, "score": 1, "run": 2}) + "\n")
    words = _words(earthshine("eval", "compare", a, b))
    assert "B has fewer answers to 2 questions than to others; is its run complete?" in words


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("missing.jsonl", LOGS[0]), "'missing.jsonl' can't be opened"),
        ((LOGS[0], LOGS[1], "--margin", "0"), "--margin must be above 0 and at most 100 points, not 0.0."),
        ((LOGS[0], LOGS[1], "--margin", "nan"), "--margin must be above 0"),
        ((LOGS[0], LOGS[1], "--scorer", "judge"), "has no scorer 'judge'; it has 'match'."),
        ((LOGS[0], __file__), "is not JSON"),
    ],
)
def test_what_can_not_be_compared_is_refused(earthshine, arguments, problem):
    code, out, err = earthshine("eval", "compare", *arguments)
    assert (code, out) == (2, "")
    assert problem in err.replace("\n", " ")
