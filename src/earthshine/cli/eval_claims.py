"""`earthshine eval claims`: what published scores show; the answer first, then each benchmark, in plain sentences."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from earthshine.cli.eval_words import about, often, p_value, points, questions, span
from earthshine.cli.layout import Report
from earthshine.cli.plot import new_figure, require_picture, save_figure
from earthshine.errors import UsageError
from earthshine.evals.claims import F1, REPORTED, Benchmark, Claims, Score, read_claims, shipped_claims
from earthshine.evals.verdicts import ALPHA, CORRELATION, Comparison, Verdict, interval_of, judge
from earthshine.units import counted
from earthshine.untrusted import shown

_MOST_DRAWN = 200
_COLOURS = {
    Verdict.AHEAD: "tab:green",
    Verdict.BEHIND: "tab:red",
    Verdict.UNCLEAR: "tab:orange",
    Verdict.NOT_DISTINGUISHABLE: "tab:gray",
}


def run_claims(name: str, as_json: bool, plot: Path | None) -> None:
    """The command. Raises UsageError for a file that holds no claims."""
    if plot is not None:
        require_picture(plot)
        new_figure()
    shipped = shipped_claims()
    if name not in shipped and not os.path.exists(name):
        raise UsageError(f"{shown(name)} is neither a file nor known claims; known are {', '.join(shipped)}.")
    claims = read_claims(shipped.get(name) or Path(name))
    found = judge(claims)
    judged = [each for each in found if each.found is not None]
    if plot is not None:
        if not 1 <= len(judged) <= _MOST_DRAWN:
            problem = f"{len(judged)} differences that can be judged; --plot draws 1 to {_MOST_DRAWN}"
            raise UsageError(f"{shown(name)} has {problem}.")
        _draw(plot, claims, judged)
    if as_json:
        print(json.dumps(_facts(claims, found), indent=2))
    else:
        _print(claims, found, judged)


def _print(claims: Claims, found: Sequence[Comparison], judged: Sequence[Comparison]) -> None:
    report = Report()
    report.paragraph(summary(claims, judged))
    for benchmark in claims.benchmarks:
        rows = [each for each in judged if each.benchmark is benchmark]
        if rows or (not benchmark.rivals and interval_of(benchmark.claimed, benchmark)):
            _print_benchmark(report, benchmark, rows, len(judged))
    _print_rest(report, [each for each in found if each.found is None])
    alone = [each for each in claims.benchmarks if not each.rivals and interval_of(each.claimed, each) is None]
    report.blank()
    if alone:
        names = "; ".join(f"{each.title} {each.claimed.points:g}" for each in alone)
        report.paragraph(f"Neither rivals nor the number of questions are given for: {names}.")
    if claims.unclaimed:
        report.paragraph(f"No published claim: {', '.join(claims.unclaimed)}.")
    for line in _caveats(claims):
        report.paragraph(line)


def summary(claims: Claims, judged: Sequence[Comparison]) -> str:
    """The answer: how many comparisons show a difference."""
    if not judged:
        return f"{claims.model}: no score can be compared with a rival's."
    counts = Counter(each.verdict for each in judged)
    text = f"{claims.model} has {counted(len(judged), 'published difference')} from rivals that can be judged. It is "
    text += f"ahead in {counts[Verdict.AHEAD]} and behind in {counts[Verdict.BEHIND]}; "
    text += f"{counts[Verdict.NOT_DISTINGUISHABLE]} are not distinguishable from chance"
    if counts[Verdict.UNCLEAR]:
        text += f", and {counts[Verdict.UNCLEAR]} would count alone, but not among this many comparisons"
    return text + "."


def _print_benchmark(report: Report, benchmark: Benchmark, rows: Sequence[Comparison], n_tests: int) -> None:
    report.blank()
    claimed, interval = benchmark.claimed, interval_of(benchmark.claimed, benchmark)
    head = f"{questions(benchmark.questions or 0)}, "
    head += f"mean of {counted(claimed.runs, 'run')}" if claimed.runs else "runs not stated"
    report.heading(f"{benchmark.title}: {claimed.points:.1f} ({head})")
    if interval is not None:
        report.note(f"95% interval of the score: {span(interval, signed=False)}.")
    if rows:
        columns = ("against", "score", "difference", "95% interval", "p", "Holm", "")
        report.table(columns, [_cells(each) for each in rows])
    for each in rows:
        report.note(sentence(each, n_tests))
    if benchmark.settings:
        report.note(f"Settings: {benchmark.settings}.")


def _cells(each: Comparison) -> tuple[str, ...]:
    assert each.found is not None
    assert each.adjusted_p is not None
    tests = (f"{each.points:+.1f}", span(each.found.interval), p_value(each.found.p), p_value(each.adjusted_p))
    return (each.rival.model, f"{each.rival.points:.1f}", *tests, f"{each.verdict}; {each.rival.reported}")


def sentence(each: Comparison, n_tests: int) -> str:
    """The verdict as a reader without statistics needs it, and what would settle it."""
    assert each.found is not None
    head = f"{each.rival.model}: {each.verdict}"
    if not each.points:
        return f"{head}. The scores are equal."
    gap = f"{abs(each.points):.1f} points"
    chance = f"Two equally good models differ by {gap} or more in {often(each.found.p)} such tests"
    if each.verdict in (Verdict.AHEAD, Verdict.BEHIND):
        return f"{head} by more than chance explains. {chance}."
    if each.verdict is Verdict.UNCLEAR:
        chance += f": enough for a single comparison, not for one of {n_tests}"
    return f"{head}. {chance}. {_settled(each)}"


def _settled(each: Comparison) -> str:
    """What n would settle it."""
    return (
        f"If the difference is real, {about(each.needed)} questions would show it, or {about(each.needed_paired)} if "
        f"both models' answers were compared question by question; this benchmark has {each.benchmark.questions:,}."
    )


def _print_rest(report: Report, rest: Sequence[Comparison]) -> None:
    """Benchmarks that the file does not allow to judge, each with its closest rival and what that would need."""
    if not rest:
        return
    report.blank()
    report.heading("Not judged")
    closest: dict[str, Comparison] = {}
    for each in sorted(rest, key=lambda each: abs(each.points)):
        closest.setdefault(each.benchmark.title, each)
    columns = ("benchmark", "score", "closest rival", "difference", "needed", "in pairs", "")
    rows = [_rest_cells(closest[title]) for title in dict.fromkeys(each.benchmark.title for each in rest)]
    report.table(columns, rows, words=("closest rival",))
    report.note(
        "The number of questions is not given, or the score is no share of questions. needed: questions that show a "
        "real difference of this size in 80% of tests; in pairs: if both models' answers to them are compared."
    )


def _rest_cells(each: Comparison) -> tuple[str, ...]:
    note = "F1 score" if each.benchmark.measure == F1 else "" if each.points else "equal"
    scores = (each.benchmark.title, f"{each.benchmark.claimed.points:.1f}", each.rival.model, f"{each.points:+.1f}")
    return (*scores, about(each.needed), about(each.needed_paired), note)


def _caveats(claims: Claims) -> Iterator[str]:
    yield (
        "Intervals and p count chance over questions alone, as if each question were answered once. p: how often two "
        "equally good models differ by this much. Holm: p corrected for the number of comparisons; up to "
        f"{ALPHA:g} the difference holds. Question by question: with an assumed correlation of {CORRELATION:g} between "
        "both models' results. Other harnesses, tools, prompts and judges are not counted, and may move a score more."
    )
    kinds = {score.reported for each in claims.benchmarks for score in (each.claimed, *each.rivals)}
    yield "; ".join(f"{kind}: {about}" for kind, about in REPORTED.items() if kind in kinds) + "."
    yield f"Source: {claims.source}, as of {claims.dated}. {claims.note or ''}".rstrip()


def _facts(claims: Claims, found: Sequence[Comparison]) -> dict[str, Any]:
    head = {name: getattr(claims, name) for name in ("model", "dated", "source", "note", "unclaimed")}
    benchmarks = []
    for benchmark in claims.benchmarks:
        facts = {"name": benchmark.name, "variant": benchmark.variant, "questions": benchmark.questions}
        facts |= {"measure": benchmark.measure, "settings": benchmark.settings, "source": benchmark.source}
        rows = [_comparison(each) for each in found if each.benchmark is benchmark]
        benchmarks.append(facts | {"claimed": _score(benchmark.claimed, benchmark), "comparisons": rows})
    n_tests = sum(each.found is not None for each in found)
    return head | {"tests": n_tests, "alpha": ALPHA, "correlation": CORRELATION, "benchmarks": benchmarks}


def _score(score: Score, benchmark: Benchmark) -> dict[str, Any]:
    return asdict(score) | {"interval_points": points(interval_of(score, benchmark))}


def _comparison(each: Comparison) -> dict[str, Any]:
    found = each.found
    return {
        "rival": _score(each.rival, each.benchmark),
        "difference_points": each.points,
        "error_points": None if found is None else 100 * found.error,
        "interval_points": None if found is None else points(found.interval),
        "z": None if found is None else found.z,
        "p": None if found is None else found.p,
        "p_holm": each.adjusted_p,
        "verdict": str(each.verdict),
        "needed_questions": each.needed,
        "needed_questions_paired": each.needed_paired,
        "most_share_differing": each.most_differing,
    }


def _draw(path: Path, claims: Claims, judged: Sequence[Comparison]) -> None:
    """Each difference as a point with its interval, one below the other."""
    figure = new_figure(1.6 + 0.27 * len(judged))
    panel = figure.subplots(1, 1)
    labelled: set[Verdict] = set()
    for row, each in enumerate(judged):
        assert each.found is not None
        low, high = 100 * each.found.interval.low, 100 * each.found.interval.high
        label = None if each.verdict in labelled else str(each.verdict)
        labelled.add(each.verdict)
        reach = [[max(0.0, each.points - low)], [max(0.0, high - each.points)]]
        panel.errorbar(each.points, row, xerr=reach, fmt="o", color=_COLOURS[each.verdict], capsize=3, label=label)
    panel.axvline(0, color="black", linewidth=0.8)
    names = [f"{each.benchmark.title}, {each.rival.model}" for each in judged]
    panel.set_yticks(range(len(judged)), names, parse_math=False)
    panel.invert_yaxis()
    panel.grid(True, axis="x", alpha=0.3)
    panel.set(xlabel=f"points by which {claims.model} is ahead, with 95% intervals of chance over questions")
    panel.xaxis.label.set_parse_math(False)  # names may have $ signs
    panel.legend(loc="best", fontsize="small")
    save_figure(figure, path)
