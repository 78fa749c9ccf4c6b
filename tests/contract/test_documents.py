"""Documents: links lead to existing targets, the README's example runs, and every dependency has a reason."""

import importlib.metadata
import re
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .source import PACKAGE, ROOT, modules
from .test_house import FLOOR

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("name", ["structures.md", "tour.md"])
def test_files_named_in_a_guide_exist(name):
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    files = re.findall(r"`([a-z_]+/(?:[a-z_/]+\.(?:py|h|cc)|(?:[a-z_]+/)*))`", text)
    assert len(files) > 20
    missing = [file for file in files if not any((root / file).exists() for root in (PACKAGE, ROOT, ROOT / "native"))]
    assert not missing


def test_structures_names_every_package_on_its_floor():
    table = (ROOT / "docs" / "structures.md").read_text(encoding="utf-8").partition("## Packages")[2]
    named = {}
    for floor, cell in re.findall(r"^\| (\d) \| (`[^|]*`) \|", table, re.MULTILINE):
        named |= dict.fromkeys(re.findall(r"`(\w+)`", cell), int(floor))
    present = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {
        path.stem for path in PACKAGE.glob("*.py")
    }
    assert named == {name: FLOOR[name] for name in present - {"__init__"}}


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 110


def test_continuous_integration_runs_every_supported_python():
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["classifiers"]
    versions = re.findall(r"Python :: (3\.\d+)", " ".join(classifiers))
    assert re.findall(r'"(3\.\d+)"', workflow.partition("matrix:")[2].partition("steps:")[0]) == versions


def test_the_example_in_the_readme_runs(forker):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    done = forker.run([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "<" not in done.stdout


def test_every_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = project["dependencies"] + project["optional-dependencies"]["dev"]
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Dependencies")[2]
    for requirement in listed:
        assert re.match(r"[\w-]+", requirement)[0] in table, requirement


def test_runtime_dependencies_are_those_that_the_package_imports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements):
        return {re.match(r"[\w-]+", requirement)[0].lower().replace("-", "_") for requirement in requirements}

    targets = {target.partition(".")[0] for module in modules() for _, target in module.imports}
    foreign = targets - set(sys.stdlib_module_names) - {"earthshine", "vllm"}  # vLLM loads its connector, not we vLLM
    distributions = importlib.metadata.packages_distributions()
    imported = {owner.lower().replace("-", "_") for name in foreign for owner in distributions.get(name, [name])}
    declared = names(project["dependencies"])
    assert declared <= imported, f"not imported by src: {declared - imported}"
    optional = names(project["optional-dependencies"]["plot"])
    assert imported <= declared | optional, f"imported, but not declared: {imported - declared - optional}"


def test_no_document_is_cited_that_is_not_here():
    own = {"tool_call_guidance.md"}  # of Kimi-K2's repository, cited as such
    for folder in ("src", "native", "tests", "tools", "docs", "benchmarks"):
        for path in (path for suffix in ("py", "md", "h", "cc") for path in (ROOT / folder).rglob(f"*.{suffix}")):
            for name in re.findall(r"[\w./-]+\.md\b", path.read_text(encoding="utf-8")):
                known = name in own or (ROOT / name).exists() or (path.parent / name).exists()
                assert known or (ROOT / "docs" / name).exists(), f"{path} cites {name}"


def test_changelog_entries_have_one_form():
    """Keep a Changelog's sections, and "Known limits"; an entry is a list item of whole sentences."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert re.search(rf"^## \[(Unreleased\]: )?{re.escape(version)}\b", text, re.MULTILINE)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Known limits"}
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= kinds
    entries = [line for line in text.partition("\n## ")[2].splitlines()[1:] if line and not line.startswith("#")]
    assert entries
    assert [line for line in entries if not re.fullmatch(r"- [A-Z`\w].*[.]", line)] == []


def test_locked_versions_lie_within_the_declared_ranges():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "requirements" / "tests.txt").read_text(encoding="utf-8").splitlines()
    locked = {line.partition("==")[0]: line.partition("==")[2].split()[0] for line in lines if "==" in line}
    for requirement in map(Requirement, project["dependencies"] + project["optional-dependencies"]["dev"]):
        version = locked[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, f"{requirement} is locked at {version}: run make lock"


def test_wheels_are_built_for_every_supported_python():
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    versions = re.findall(r"Python :: 3\.(\d+)", " ".join(document["project"]["classifiers"]))
    assert document["tool"]["cibuildwheel"]["build"] == [f"cp3{minor}-manylinux_x86_64" for minor in versions]
