"""`earthshine eval compare`: two models' saved results; the answer first, then each benchmark, in plain sentences."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earthshine.cli.eval_words import about, often, p_value, points, questions, span
from earthshine.cli.layout import Report
from earthshine.cli.words import plain
from earthshine.errors import UsageError
from earthshine.evals.compare import Compared, Side, compare
from earthshine.evals.results import read_results
from earthshine.evals.verdicts import ALPHA, Verdict
from earthshine.untrusted import shown


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """The options of the command; `margin` in points."""

    first: Path
    second: Path
    margin: float
    common: bool
    scorer: str | None
    json: bool


def run_compare(options: CompareOptions) -> None:
    """The command. Raises UsageError for files that hold no results, or not of the same questions."""
    if not 0 < options.margin <= 100:
        raise UsageError(f"margin must be above 0 and at most 100 points, not {shown(options.margin)}.", "margin")
    first, second = (read_results(path, options.scorer) for path in (options.first, options.second))
    found = compare(first, second, options.margin / 100, options.common)
    alone = [sorted(set(one) - set(other)) for one, other in ((first, second), (second, first))]
    if options.json:
        print(json.dumps(_facts(options, found, alone), indent=2))
    else:
        _print(options, found, alone)


def _print(options: CompareOptions, found: Sequence[Compared], alone: Sequence[Sequence[str]]) -> None:
    report = Report()
    report.paragraph(f"A: {plain(options.first)}. B: {plain(options.second)}.")
    report.paragraph(summary(found))
    for each in found:
        _print_benchmark(report, each, len(found), options.margin)
    report.blank()
    for which, names in zip("AB", alone, strict=True):
        if names:
            report.paragraph(f"Only in {which}: {', '.join(map(plain, names))}.")
    report.paragraph(
        "p: how often two equally good models differ by this much. Holm: p corrected for the number of benchmarks; up "
        f"to {ALPHA:g} the difference holds. Answers that failed count as wrong. Better asks about other questions of "
        "this kind, the same model about these questions answered again."
    )


def summary(found: Sequence[Compared]) -> str:
    """The answer: in how many benchmarks one is better."""
    if len(found) == 1:
        (each,) = found
        if each.verdict in (Verdict.AHEAD, Verdict.BEHIND):
            which = "A" if each.verdict is Verdict.AHEAD else "B"
            return f"{which} is better in {plain(each.benchmark)}, by {abs(100 * each.paired.difference):.1f} points."
        return f"A and B are not distinguishable in {plain(each.benchmark)}."
    counts = Counter(each.verdict for each in found)
    text = f"Of {len(found)} benchmarks, A is better in {counts[Verdict.AHEAD]} and B in {counts[Verdict.BEHIND]}; "
    text += f"{counts[Verdict.NOT_DISTINGUISHABLE]} are not distinguishable"
    if counts[Verdict.UNCLEAR]:
        text += f", and {counts[Verdict.UNCLEAR]} would count alone, but not among this many comparisons"
    return text + "."


def _print_benchmark(report: Report, each: Compared, n_tests: int, margin: float) -> None:
    found = each.paired
    groups = f" in {found.groups:,} groups" if found.groups != found.questions else ""
    report.blank()
    report.heading(f"{plain(each.benchmark)}: {questions(found.questions)}{groups}")
    columns = ("", "score", "95% interval", "p", "Holm", "answers", "failed", "cut off")
    rows = [_side_cells(name, side) for name, side in (("A", each.first), ("B", each.second))]
    tests = (span(found.interval), p_value(found.p), p_value(each.adjusted_p))
    report.table(columns, [*rows, ("A - B", f"{100 * found.difference:+.1f}", *tests, "", "", "")])
    for name, side in (("A", each.first), ("B", each.second)):
        if side.uneven:
            report.note(f"{name} has fewer answers to {questions(side.uneven)} than to others; is its run complete?")
    report.note(f"Better? {better(each, n_tests)}")
    report.note(f"The same model? {same(each, margin)}")


def _side_cells(name: str, side: Side) -> tuple[str, ...]:
    counts = (f"{side.answers:,}", f"{side.errors:,}", f"{side.truncated:,}")
    return (name, f"{100 * side.score:.1f}", span(side.interval, signed=False), "", "", *counts)


def better(each: Compared, n_tests: int) -> str:
    """The verdict as a reader without statistics needs it, and what would settle it."""
    found = each.paired
    split = f"A has the higher score on {questions(found.better)} and B on {found.worse:,}"
    if not found.difference:
        return f"Not distinguishable. {split}, and their means are equal."
    gap = f"{abs(100 * found.difference):.1f} points"
    chance = f"Two equally good models differ by {gap} or more in {often(found.p)} such tests"
    if each.verdict in (Verdict.AHEAD, Verdict.BEHIND):
        return f"{'A' if found.difference > 0 else 'B'}, by more than chance explains. {split}. {chance}."
    if each.verdict is Verdict.UNCLEAR:
        return f"Unclear. {split}. {chance}: enough for a single benchmark, not for one of {n_tests}."
    text = f"Not distinguishable. {split}. {chance}."
    if each.needed is not None and each.needed > found.questions:
        text += f" If the difference is real, {about(each.needed)} questions like these would show it."
    return text


def same(each: Compared, margin: float) -> str:
    """Whether the difference is within the margin, if only the answers had been drawn again."""
    reach = f"with these questions answered again, the 90% interval is {span(each.same.interval)} points"
    within = f"a margin of {margin:g}"
    match each.same.verdict:
        case "consistent":
            return f"Consistent: {reach}, within {within}."
        case "inconclusive":
            return f"Inconclusive: {reach}, not wholly within {within}. More runs or questions narrow it."
        case _:
            return f"No: {reach}, beyond {within}."


def _facts(options: CompareOptions, found: Sequence[Compared], alone: Sequence[Sequence[str]]) -> dict[str, Any]:
    return {
        "first": str(options.first),
        "second": str(options.second),
        "margin_points": options.margin,
        "alpha": ALPHA,
        "only_first": alone[0],
        "only_second": alone[1],
        "benchmarks": [_compared(each) for each in found],
    }


def _compared(each: Compared) -> dict[str, Any]:
    found, error = each.paired, each.paired.error
    return {
        "benchmark": each.benchmark,
        "questions": found.questions,
        "groups": found.groups,
        "first": _side(each.first),
        "second": _side(each.second),
        "difference_points": 100 * found.difference,
        "error_points": None if math.isnan(error) else 100 * error,
        "interval_points": points(found.interval),
        "questions_first_better": found.better,
        "questions_second_better": found.worse,
        "p": found.p,
        "p_holm": each.adjusted_p,
        "verdict": str(each.verdict),
        "needed_questions": each.needed,
        "same": {
            "verdict": each.same.verdict,
            "p": each.same.p,
            "interval_90_points": points(each.same.interval),
        },
    }


def _side(side: Side) -> dict[str, Any]:
    counts = {"answers": side.answers, "failed": side.errors, "cut_off": side.truncated, "uneven": side.uneven}
    return {"score_points": 100 * side.score, "interval_points": points(side.interval), **counts}
