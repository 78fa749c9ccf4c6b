"""Saved results of an evaluation, question by question: JSON lines, or a log of inspect-ai as JSON.

A line has benchmark, question and score, and may have run, group, error and truncated; other keys are left alone. An
answer that failed or has no score counts as wrong and is counted as an error. Texts of questions and answers are
neither kept nor shown. Files are not trusted. Raises UsageError, which names the file, the line or sample, and the
field.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earthshine.errors import UsageError
from earthshine.untrusted import (
    flag_field,
    number_field,
    parse_object,
    read_file,
    real_path,
    require_present,
    shown,
    text_field,
)

_MAX_BYTES = 1 << 30
_MOST_RUNS = 10_000
_WORDS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}  # inspect-ai: correct, incorrect, partial, no answer
_CUT = ("max_tokens", "model_length")
_SUFFIXES = (".json", ".jsonl")


@dataclass(slots=True)
class BenchmarkResults:
    """The scores of one benchmark, from 0 to 1, by question and run; and by question its group, and how many of its
    answers failed or were cut off."""

    scores: dict[str, dict[int, float]] = field(default_factory=dict)
    groups: dict[str, str | None] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    truncated: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Answer:
    benchmark: str
    question: str
    run: int
    score: float | None  # None for an answer that failed
    truncated: bool
    group: str | None = None


def read_results(path: Path, scorer: str | None = None) -> dict[str, BenchmarkResults]:
    """The results in a file, or in all .json and .jsonl files of a folder, by benchmark.

    `scorer`: whose scores to take from a log of inspect-ai that has several. Raises UsageError.
    """
    found: dict[str, BenchmarkResults] = {}
    for each in _files(path):
        for answer, where in _answers(each, scorer):
            _add(found.setdefault(answer.benchmark, BenchmarkResults()), answer, where)
    if not found:
        raise UsageError(f"{shown(path)} has no results.")
    return found


def _add(results: BenchmarkResults, answer: _Answer, where: str) -> None:
    runs = results.scores.setdefault(answer.question, {})
    if answer.run in runs:
        raise UsageError(f"{where}: question {shown(answer.question)} has run {answer.run} twice.")
    if results.groups.setdefault(answer.question, answer.group) != answer.group:
        raise UsageError(f"{where}: question {shown(answer.question)} is in two groups.")
    runs[answer.run] = answer.score or 0.0
    results.errors[answer.question] += answer.score is None
    results.truncated[answer.question] += answer.truncated


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = [path / name for name in sorted(os.listdir(path)) if name.endswith(_SUFFIXES)]
    if not found:
        raise UsageError(f"{shown(path)} has no .json or .jsonl file.")
    return found


def _answers(path: Path, scorer: str | None) -> Iterator[tuple[_Answer, str]]:
    """The answers in a file, each with its place."""
    where = shown(path)
    raw = read_file(real_path(path, UsageError), where, _MAX_BYTES, UsageError)
    if raw.startswith(b"PK"):
        raise UsageError(
            f"{where} is a compressed log; write it as JSON: inspect log convert {where} --to json --output-dir FOLDER"
        )
    if _is_log(raw):
        yield from _from_log(parse_object(raw, where, UsageError), where, scorer)
        return
    for number, line in enumerate(raw.split(b"\n"), 1):
        if line.strip():
            place = f"{where}, line {number}"
            yield _from_line(parse_object(line, place, UsageError), place), place


def _is_log(raw: bytes) -> bool:
    """Whether the first object goes on after its first line, or has a log's key."""
    first = raw.lstrip().partition(b"\n")[0].strip()
    return first == b"{" or (first.startswith(b"{") and b'"eval"' in first[:200])


def _from_line(found: dict[str, Any], where: str) -> _Answer:
    require_present(found, where, ("benchmark", "question"))
    failed = flag_field(found, "error", where)
    if not failed and found.get("score") is None:
        raise UsageError(f"{where} lacks score, from 0 to 1; an answer that failed has error: true instead.")
    run = int(number_field(found, "run", where, 0, _MOST_RUNS, whole=True)) if "run" in found else 1
    return _Answer(
        text_field(found, "benchmark", where),
        _name(found["question"], "question", where),
        run,
        None if failed else _score(found["score"], where),
        flag_field(found, "truncated", where),
        None if found.get("group") is None else _name(found["group"], "group", where),
    )


def _from_log(found: dict[str, Any], where: str, scorer: str | None) -> Iterator[tuple[_Answer, str]]:
    about, samples = found.get("eval"), found.get("samples")
    if not isinstance(about, dict) or not isinstance(samples, list):
        raise UsageError(f"{where} is no log of inspect-ai with its samples, which has eval and samples.")
    require_present(about, f"{where}: eval", ("task",))
    benchmark = text_field(about, "task", f"{where}: eval")
    if found.get("status") != "success":
        status = shown(found.get("status"))
        raise UsageError(f"{where} did not finish: its status is {status}. Finish it with inspect eval-retry.")
    for number, sample in enumerate(samples, 1):
        place = f"{where}, sample {number}"
        if not isinstance(sample, dict):
            raise UsageError(f"{place} is {shown(sample)}; it must be an object.")
        require_present(sample, place, ("id",))
        run = int(number_field(sample, "epoch", place, 1, _MOST_RUNS, whole=True)) if "epoch" in sample else 1
        name = _name(sample["id"], "id", place)
        yield _Answer(benchmark, name, run, _sample_score(sample, place, scorer), _was_cut(sample)), place


def _sample_score(sample: dict[str, Any], where: str, scorer: str | None) -> float | None:
    """The sample's score; None where it failed before it was scored."""
    scores = sample.get("scores")
    if not scores and sample.get("error") is not None:
        return None
    if not isinstance(scores, dict) or not scores:
        raise UsageError(f"{where} has neither scores nor an error; score the log first, with inspect score.")
    if scorer is None and len(scores) > 1:
        raise UsageError(f"{where} has the scorers {', '.join(map(shown, scores))}; choose one with --scorer.")
    name = next(iter(scores)) if scorer is None else scorer
    if name not in scores:
        raise UsageError(f"{where} has no scorer {shown(name)}; it has {', '.join(map(shown, scores))}.")
    score = scores[name]
    return _score(score.get("value") if isinstance(score, dict) else score, where)


def _was_cut(sample: dict[str, Any]) -> bool:
    """Whether the last reply ended at a limit of tokens."""
    output = sample.get("output")
    choices = output.get("choices") if isinstance(output, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return isinstance(first, dict) and first.get("stop_reason") in _CUT


def _score(value: object, where: str) -> float:
    if isinstance(value, str) and value in _WORDS:
        return _WORDS[value]
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise UsageError(f"{where}: score is {shown(value)}; it must be a number from 0 to 1, true or false.")
    return float(value)


def _name(value: object, name: str, where: str) -> str:
    """A question's or a group's name, which may be a whole number."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63:
        return str(value)
    return text_field({name: value}, name, where)
