"""docs/features.md: a test shows each feature, and a file of another program each statement about it."""

import re

from .source import ROOT

TEXT = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")


def _rows(title):
    section = TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return [re.split(r" *\| *", line)[1:-1] for line in section.splitlines() if line.startswith("|")][2:]


ROWS = [*_rows("The page"), *_rows("The terminal")]
SOURCES = re.findall(r"^- ([A-Z]\d+) .*`", TEXT.partition("\n## Sources\n")[2], re.MULTILINE)


def test_every_feature_names_a_test_that_exists():
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    present = set(re.findall(r"^ *(?:async )?def (test_\w+)\(", code, re.MULTILINE))
    named = [row[1].strip("`") for row in ROWS]
    assert len(named) > 40
    assert [name for name in named if name not in present] == []


def test_every_statement_about_another_program_names_its_source():
    cited = [re.fullmatch(r"\S.* \[([A-Z]\d+)\]", cell) for row in ROWS for cell in row[2:]]
    assert len(cited) == 2 * len(ROWS)
    assert None not in cited
    assert {match[1] for match in cited} == set(SOURCES)
    assert len(SOURCES) == len(set(SOURCES))
