"""Published claims: the scores that a model's publisher reports, beside those of the models it is compared with.

A file has JSON's form, as the package's other data. Scores are in points from 0 to 100, as published. Files are not
trusted: every key must be known. Raises UsageError, which names the file, the entry, the field and what would be right.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earthshine.errors import UsageError
from earthshine.untrusted import number_field, parse_object, read_file, real_path, require_keys, shown, text_field

FORMAT = "earthshine claims 1"
REPORTED = {
    "self": "by those who publish or serve the model",
    "quoted": "copied from the rival's own report",
    "measured": "the rival, measured by the publisher of these claims",
}
SHARE, F1 = "share", "f1"  # right answers among all, or a mean of scores from 0 to 1; a score of another form
_MAX_BYTES = 4 << 20
_MOST_QUESTIONS = 10**9
_MOST = 1000  # benchmarks, and models of one


@dataclass(frozen=True, slots=True)
class Score:
    """A model's score in points. `runs`: answers to each question, whose mean it is; None where that is not known."""

    model: str
    points: float
    runs: int | None
    reported: str  # a key of REPORTED


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Scores of one benchmark in one variant. `questions` is None where their number is not known."""

    name: str
    variant: str | None
    questions: int | None
    measure: str
    settings: str | None
    source: str
    claimed: Score
    rivals: tuple[Score, ...]

    @property
    def title(self) -> str:
        return f"{self.name} {self.variant}" if self.variant else self.name


@dataclass(frozen=True, slots=True)
class Claims:
    """What a file says about `model`. `unclaimed`: benchmarks for which its publisher gives no score."""

    model: str
    dated: str
    source: str
    note: str | None
    unclaimed: tuple[str, ...]
    benchmarks: tuple[Benchmark, ...]


def shipped_claims() -> Mapping[str, Path]:
    """The names and files of the claims that ship with the package."""
    folder = Path(__file__).with_name("published")
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def read_claims(path: Path) -> Claims:
    """The claims in a JSON file; raises UsageError that names the entry and what would be right."""
    where = shown(path)
    found = parse_object(read_file(real_path(path, UsageError), where, _MAX_BYTES, UsageError), where, UsageError)
    if found.get("format") != FORMAT:
        raise UsageError(f"{where} has no claims; its format must be {FORMAT!r}.")
    required = ("format", "model", "dated", "source", "benchmarks")
    require_keys(found, where, required, (*required, "note", "unclaimed"))
    model, source = text_field(found, "model", where), text_field(found, "source", where)
    benchmarks: dict[str, Benchmark] = {}
    for number, entry in enumerate(_objects(found, "benchmarks", where), 1):
        benchmark = _benchmark(entry, f"{where}: benchmark {number}", model, source)
        if benchmarks.setdefault(benchmark.title, benchmark) is not benchmark:
            raise UsageError(f"{where}: two benchmarks are {shown(benchmark.title)}; give one another variant.")
    return Claims(
        model,
        text_field(found, "dated", where),
        source,
        _optional_text(found, "note", where),
        _names(found.get("unclaimed", []), where),
        tuple(benchmarks.values()),
    )


def _benchmark(found: dict[str, Any], where: str, model: str, source: str) -> Benchmark:
    required = ("name", "scores")
    require_keys(found, where, required, (*required, "variant", "questions", "measure", "settings", "source"))
    name = text_field(found, "name", where)
    where = f"{where}, {shown(name)}"
    measure = found.get("measure", SHARE)
    if measure not in (SHARE, F1):
        raise UsageError(f"{where}: measure is {shown(measure)}; it must be {SHARE} or {F1}.")
    scores: dict[str, Score] = {}
    for number, entry in enumerate(_objects(found, "scores", where), 1):
        score = _score(entry, f"{where}: score {number}")
        if scores.setdefault(score.model, score) is not score:
            raise UsageError(f"{where}: two scores are of {shown(score.model)}.")
    if model not in scores:
        raise UsageError(f"{where}: scores has none of {shown(model)}, whose claims these are.")
    claimed = scores.pop(model)
    return Benchmark(
        name,
        _optional_text(found, "variant", where),
        _optional_count(found, "questions", where),
        measure,
        _optional_text(found, "settings", where),
        _optional_text(found, "source", where) or source,
        claimed,
        tuple(scores.values()),
    )


def _score(found: dict[str, Any], where: str) -> Score:
    required = ("model", "score", "reported")
    require_keys(found, where, required, (*required, "runs"))
    reported = found["reported"]
    if not isinstance(reported, str) or reported not in REPORTED:
        raise UsageError(f"{where}: reported is {shown(reported)}; it must be one of {', '.join(REPORTED)}.")
    points = number_field(found, "score", where, 0, 100)
    return Score(text_field(found, "model", where), points, _optional_count(found, "runs", where), reported)


def _objects(found: dict[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    value = found[name]
    if not isinstance(value, list) or not 1 <= len(value) <= _MOST or not all(isinstance(each, dict) for each in value):
        raise UsageError(f"{where}: {name} must be a list of 1 to {_MOST} objects.")
    return value


def _names(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise UsageError(f"{where}: unclaimed is {shown(value)}; it must be a list of benchmarks' names.")
    return tuple(text_field({"unclaimed": name}, "unclaimed", where) for name in value)


def _optional_text(found: dict[str, Any], name: str, where: str) -> str | None:
    return None if found.get(name) is None else text_field(found, name, where)


def _optional_count(found: dict[str, Any], name: str, where: str) -> int | None:
    return None if found.get(name) is None else int(number_field(found, name, where, 1, _MOST_QUESTIONS, whole=True))
