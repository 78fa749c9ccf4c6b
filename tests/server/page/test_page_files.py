"""The page's files: what is vendored is what its publishers published, and the rest is small and asks nobody."""

import hashlib
import json
import re

from earthshine.server.http.page_files import CHAT_PAGE, page_files

PAGE = CHAT_PAGE
VENDOR = PAGE / "vendor"
LIBRARIES = json.loads((VENDOR / "manifest.json").read_text(encoding="utf-8"))
LICENCES = {"MIT", "BSD-3-Clause", "BSD-2-Clause"}
MOST_LINES, MOST_BYTES = 400, 1_500_000


def test_each_vendored_file_is_as_listed():
    listed = {}
    for library in LIBRARIES:
        folder = VENDOR / library["folder"]
        listed |= {folder / path.removeprefix(library["below"]): sha256 for path, sha256 in library["files"].items()}
    found = {path for path in VENDOR.rglob("*") if path.is_file() and path.name != "manifest.json"}
    assert found == listed.keys()
    assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in found} == listed


def test_each_library_has_its_version_and_its_licence():
    for library in LIBRARIES:
        assert library["licence"] in LICENCES, library["package"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", library["version"]), library["package"]
        assert [path for path in library["files"] if path.startswith("LICENSE")], library["package"]


def test_what_a_library_asks_for_is_there():
    css = (VENDOR / "katex/katex.min.css").read_text(encoding="utf-8")
    fonts = {VENDOR / "katex" / path for path in re.findall(r"url\(([^)]+\.woff2)\)", css)}
    assert fonts == set((VENDOR / "katex/fonts").iterdir())


def test_our_own_files_are_small_and_ask_nobody():
    for path in (path for path in PAGE.iterdir() if path.is_file()):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= MOST_LINES, path
        assert not re.search(r"https?://[\w.]", text.replace("http://www.w3.org/", "")), path
        assert not re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|srcdoc)\b", text), path


def test_the_page_stays_small():
    assert sum(path.stat().st_size for path in PAGE.rglob("*") if path.is_file()) < MOST_BYTES


def test_every_module_that_is_imported_is_served():
    served = page_files()
    html = served["/"].read_text(encoding="utf-8")
    wanted = {f"/{name}" for name in re.findall(r'(?:src|href)="([^"]+)"', html)}
    for path in PAGE.glob("*.js"):
        found = re.findall(r'(?:from |import |import\()"\./([^"]+)"', path.read_text(encoding="utf-8"))
        wanted |= {f"/{name}" for name in found}
    assert wanted <= served.keys()
